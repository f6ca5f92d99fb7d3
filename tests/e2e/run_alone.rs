//! `lifemon run` against the same command alone: what starts it must not see a difference.

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lifemon_tests::handicap::{ignoring_pipes, in_a_pid_namespace};
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Lifemon, Sandbox, needs, poll, proc, wait_until};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const LAST_SIGNAL: i32 = 64;

/// What stops a process instead of ending it.
const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// What stands before the words of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    /// Nothing: it runs alone.
    Nothing,
    /// `lifemon run` with these options.
    Run(&'static str),
}

impl Before {
    const BOTH: [Self; 2] = [Self::Nothing, Self::Run("")];
    const ALL: [Self; 3] = [Self::Nothing, Self::Run(""), Self::Run("--group")];

    /// Returns it as words of a shell.
    fn words(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Run(options) => {
                format!(
                    "{} run --grace 0 {options} --",
                    Lifemon::find().program().display()
                )
            }
        }
    }
}

/// Makes `shell -c SCRIPT` in the sandbox, in a session of its own, with `RUN` in it replaced.
fn command(sandbox: &Sandbox, shell: &str, script: &str, before: Before) -> Command {
    let mut command = Command::new(shell);
    command
        .args(["-c", &script.replace("RUN", &before.words())])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    sandbox.enter(&mut command);
    // SAFETY: system calls only.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    command
}

/// Runs a script to its end; what it has written, and how it ended.
#[track_caller]
fn end_of(sandbox: &Sandbox, shell: &str, script: &str, before: Before) -> (String, ExitStatus) {
    let output = command(sandbox, shell, script, before)
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, output.status)
}

/// Claims that a script does the same with `lifemon run` as without.
#[track_caller]
fn assert_same(script: &str) {
    let sandbox = Sandbox::new();
    for shell in ["sh", "bash"] {
        let [alone, run] = Before::BOTH.map(|before| {
            let (text, status) = end_of(&sandbox, shell, script, before);
            (text, status.code(), status.signal())
        });
        assert_eq!(run, alone, "{shell}: {script}");
    }
    // A signal to the group can have ended the script before lifemon has.
    wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
}

/// A script that runs, killed on drop.
struct Job(Child);

impl Job {
    fn start(sandbox: &Sandbox, shell: &str, script: &str, before: Before) -> Self {
        let mut command = command(sandbox, shell, script, before);
        Self(command.spawn().expect("a shell"))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn signal_group(&self, signal: Signal) {
        killpg(Pid::from_raw(self.pid()), signal).expect("its group");
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let status = poll(DEADLINE, || self.0.try_wait().expect("wait"));
        status.expect("it ends")
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A job that sleeps: a shell that has become lifemon, if it is not alone, and its command.
struct Sleeping {
    job: Job,
    command: i32,
    _sandbox: Sandbox,
}

impl Sleeping {
    #[track_caller]
    fn start(before: Before) -> Self {
        let sandbox = Sandbox::new();
        let job = Job::start(&sandbox, "sh", "exec RUN sleep 120", before);
        let command = wait_for_sleep(&sandbox, "120");
        Self {
            job,
            command,
            _sandbox: sandbox,
        }
    }

    /// Returns the pid of lifemon, or that of the command where it is alone.
    fn lifemon(&self) -> i32 {
        self.job.pid()
    }

    #[track_caller]
    fn guardian(&self) -> i32 {
        proc::ppid(self.command).expect("it lives")
    }

    /// Returns whether both are in this state.
    fn both(&self, wanted: char) -> bool {
        [self.command, self.lifemon()].map(state) == [Some(wanted); 2]
    }

    /// Stops lifemon, and lets the command go on.
    #[track_caller]
    fn send_both_ways(&self) {
        send(self.lifemon(), Signal::SIGSTOP);
        wait_until("both stopped", DEADLINE, || self.both('T'));
        send(self.command, Signal::SIGCONT);
        wait_until("both go on", DEADLINE, || self.both('S'));
    }
}

/// Sends a signal to one process.
#[track_caller]
fn send(pid: i32, signal: Signal) {
    nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("it lives");
}

/// Processes of the sandbox that have this argument.
fn with_argument(sandbox: &Sandbox, argument: &str) -> Vec<i32> {
    let has = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.next() == Some(b"sleep") && words.any(|word| word == argument.as_bytes())
    };
    let mut pids: Vec<i32> = sandbox.pids().into_iter().filter(has).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[track_caller]
fn wait_for_sleep(sandbox: &Sandbox, argument: &str) -> i32 {
    let mut found = Vec::new();
    wait_until("the sleep", DEADLINE, || {
        found = with_argument(sandbox, argument);
        !found.is_empty()
    });
    found[0]
}

fn state(pid: i32) -> Option<char> {
    proc::stat(pid).map(|stat| stat.state)
}

#[test]
fn whatever_signal_ends_the_command_ends_lifemon() {
    let sandbox = Sandbox::new();
    for signal in (1..=LAST_SIGNAL).filter(|signal| !STOPS.contains(signal)) {
        let script = format!("exec RUN sh -c 'kill -{signal} $$; exit 55'");
        let [alone, run] = Before::BOTH.map(|before| end_of(&sandbox, "sh", &script, before).1);
        if signal == libc::SIGKILL {
            let expected = (Some(signal), Some(128 + signal));
            assert_eq!((alone.signal(), run.code()), expected);
            continue;
        }
        let seen = |status: ExitStatus| (status.code(), status.signal());
        assert_eq!(seen(run), seen(alone), "{signal}");
        assert!(!run.core_dumped(), "{signal}");
        let coded = Before::Run("--exit-code");
        let coded = end_of(&sandbox, "sh", &script, coded).1;
        let expected = alone.signal().map_or(55, |signal| 128 + signal);
        assert_eq!(coded.code(), Some(expected), "{signal}");
    }
    assert_nobody(&sandbox);
}

#[test]
fn as_the_first_process_of_a_pid_namespace_it_ends_with_128_and_the_signal() {
    let sandbox = Sandbox::new();
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGSEGV,
        libc::SIGKILL,
        40,
    ] {
        let script = format!("kill -{signal} $$");
        let lifemon = Lifemon::find().inside(&sandbox);
        let mut command = lifemon.command(["run", "--", "sh", "-c", &script]);
        in_a_pid_namespace(&mut command);
        let output = Lifemon::find().start(command).finish(DEADLINE);
        assert_eq!(output.code, Some(128 + signal), "{output:?}");
    }
}

#[test]
fn the_loop_of_a_script_ends_with_ctrl_c() {
    needs!(bash);
    let script = "trap 'exit 3' USR1; for i in 1 2 3; do RUN sleep 120; done; exit 4";
    for shell in ["sh", "bash"] {
        for before in Before::BOTH {
            let sandbox = Sandbox::new();
            let mut job = Job::start(&sandbox, shell, script, before);
            _ = wait_for_sleep(&sandbox, "120");
            // As a terminal sends it to the group in the foreground.
            job.signal_group(Signal::SIGINT);
            let status = job.end();
            assert_eq!(status.signal(), Some(libc::SIGINT), "{shell} {before:?}");
            assert_nobody(&sandbox);
        }
    }
}

#[test]
fn scripts_see_what_they_see_without_it() {
    needs!(bash);
    for script in [
        "RUN sh -c 'exit 7'; echo $?",
        "RUN sh -c 'kill -TERM $$'; echo $?",
        "RUN yes | head -n 1",
        "set -o pipefail 2>/dev/null; RUN sh -c 'kill -HUP $$' | cat; echo $?",
        "echo in | RUN cat; echo $?",
        "RUN sh -c 'ulimit -c; umask; pwd'",
        "RUN sh -c 'kill -TERM 0'; echo unreached",
        "trap '' TERM INT; RUN sh -c 'kill -INT $$; kill -TERM $$; echo on'",
        "RUN sh -c 'trap \"echo caught; exit 5\" TERM; kill 0'; echo unreached",
        "(trap 'echo outer' TERM; RUN sh -c 'trap : TERM; kill -TERM 0'; echo $?)",
        "RUN sh -c 'kill -TSTP $$; kill -TTIN $$; echo on'",
        "cd /proc; RUN sh -c 'pwd -P'",
        "exec RUN sh -c 'exit 9'",
        "RUN sh -c 'env | grep -v ^_= | sort; ls /proc/$$/fd; cat /proc/$$/limits'",
    ] {
        assert_same(script);
    }
    let script = "RUN yes | head -n 1; echo ${PIPESTATUS[0]}";
    let sandbox = Sandbox::new();
    let [alone, run] = Before::BOTH.map(|before| end_of(&sandbox, "bash", script, before).0);
    assert_eq!((alone.as_str(), run.as_str()), ("y\n141\n", "y\n141\n"));
}

#[test]
fn timeout_ends_the_group_of_the_command() {
    needs!(bash);
    let waits = "bash -c 'trap \"exit 7\" TERM; sleep 120'";
    for (script, code) in [
        (format!("timeout 0.5 RUN {waits}"), 124),
        (format!("timeout --preserve-status 0.5 RUN {waits}"), 7),
        ("timeout 0.5 RUN sleep 120".to_owned(), 124),
        ("timeout -s INT 0.5 RUN sleep 120".to_owned(), 124),
    ] {
        for before in Before::ALL {
            let sandbox = Sandbox::new();
            let begun = Instant::now();
            let (_, status) = end_of(&sandbox, "sh", &script, before);
            assert_eq!(status.code(), Some(code), "{before:?} {script}");
            let elapsed = begun.elapsed();
            assert!(elapsed < Duration::from_secs(30), "{elapsed:?} {before:?}");
            assert_nobody(&sandbox);
        }
    }
}

#[test]
fn timeout_that_kills_the_group_leaves_nobody() {
    needs!(bash);
    for before in [Before::Run(""), Before::Run("--group")] {
        let sandbox = Sandbox::new();
        let script = "timeout -s KILL 0.5 RUN sh -c '(setsid sleep 120 &); sleep 121'";
        let (_, status) = end_of(&sandbox, "sh", script, before);
        assert_eq!(status.code(), Some(137), "{before:?}");
        wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
    }
}

#[test]
fn a_job_that_is_stopped_stands_still_and_goes_on() {
    for before in Before::ALL {
        let sleeping = Sleeping::start(before);
        // To the group, and to the process alone, as supervisors do.
        for to_group in [true, false, true] {
            for (signal, wanted) in [(Signal::SIGSTOP, 'T'), (Signal::SIGCONT, 'S')] {
                if to_group {
                    sleeping.job.signal_group(signal);
                } else {
                    send(sleeping.lifemon(), signal);
                }
                wait_until(signal.as_str(), DEADLINE, || sleeping.both(wanted));
            }
        }
        // Whoever lets the command alone go on lets the job go on.
        sleeping.send_both_ways();
    }
}

/// A guardian that is late hears at once that the command went on and that the owner has stopped.
#[test]
fn a_stop_that_follows_at_once_is_not_taken_back() {
    for before in [Before::Run(""), Before::Run("--group")] {
        let sleeping = Sleeping::start(before);
        let (sleep, lifemon, guardian) =
            (sleeping.command, sleeping.lifemon(), sleeping.guardian());
        for _ in 0..2 {
            send(lifemon, Signal::SIGSTOP);
            wait_until("stopped", DEADLINE, || state(sleep) == Some('T'));
            // It has seen the stop of the command.
            std::thread::sleep(Duration::from_millis(50));
            send(guardian, Signal::SIGSTOP);
            wait_until("late", DEADLINE, || state(guardian) == Some('T'));
            sleeping.job.signal_group(Signal::SIGCONT);
            send(sleep, Signal::SIGCONT);
            wait_until("it goes on", DEADLINE, || sleeping.both('S'));
            send(lifemon, Signal::SIGSTOP);
            wait_until("stopped", DEADLINE, || state(lifemon) == Some('T'));
            send(guardian, Signal::SIGCONT);
            wait_until("both stopped", DEADLINE, || sleeping.both('T'));
            send(lifemon, Signal::SIGCONT);
            wait_until("both go on", DEADLINE, || sleeping.both('S'));
        }
    }
}

/// Signals that follow on each other as fast as they take effect, with a guardian that hears of
/// some of them too late.
#[test]
fn whatever_is_stopped_last_is_stopped_and_what_goes_on_last_goes_on() {
    for before in [Before::Run(""), Before::Run("--group")] {
        let sleeping = Sleeping::start(before);
        let (lifemon, guardian) = (sleeping.lifemon(), sleeping.guardian());
        let lifemon_and_command = |signal| {
            sleeping.job.signal_group(signal);
            // With --group the group of lifemon is not that of the command.
            send(sleeping.command, signal);
        };
        let both = |wanted| sleeping.both(wanted);
        for round in 0..60 {
            let is_late = round % 3 == 1;
            match round % 4 {
                0 | 2 => lifemon_and_command(Signal::SIGSTOP),
                _ => send(lifemon, Signal::SIGSTOP),
            }
            at_once(&format!("both stopped in round {round}"), || both('T'));
            if is_late {
                send(guardian, Signal::SIGSTOP);
                at_once("late", || state(guardian) == Some('T'));
            }
            match round % 5 {
                0 | 3 if !is_late => send(lifemon, Signal::SIGCONT),
                _ => lifemon_and_command(Signal::SIGCONT),
            }
            at_once(&format!("both go on in round {round}"), || both('S'));
            if is_late {
                send(lifemon, Signal::SIGSTOP);
                at_once("stopped", || state(lifemon) == Some('T'));
                send(guardian, Signal::SIGCONT);
                at_once(&format!("both stopped late in round {round}"), || both('T'));
                send(lifemon, Signal::SIGCONT);
                at_once(&format!("both go on late in round {round}"), || both('S'));
            }
        }
        sleeping.send_both_ways();
    }
}

/// Waits without a pause.
#[track_caller]
fn at_once(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for: {what}");
    }
}

#[test]
fn a_command_that_dies_while_it_is_stopped_ends_the_job() {
    for before in Before::BOTH {
        let mut sleeping = Sleeping::start(before);
        let sleep = sleeping.command;
        sleeping.job.signal_group(Signal::SIGSTOP);
        wait_until("stopped", DEADLINE, || state(sleep) == Some('T'));
        send(sleep, Signal::SIGKILL);
        let status = sleeping.job.end();
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        assert_eq!(code, Some(137), "{before:?}");
    }
}

#[test]
fn standard_streams_that_are_closed_stay_closed() {
    let found = "s=0; for n in 0 1 2; do test -e /proc/$$/fd/$n || s=$((s+(1<<n))); done; exit $s";
    let sandbox = Sandbox::new();
    let script = sandbox.directory().join("script");
    fs::write(&script, found).expect("a file");
    for closed in 0..8 {
        let close = |n| {
            if closed >> n & 1 == 1 {
                format!("{n}>&- ")
            } else {
                String::new()
            }
        };
        let closes: String = (0..3).map(close).collect();
        let line = format!("exec RUN sh -c '. {}' {closes}", script.display());
        for before in Before::ALL {
            let (_, status) = end_of(&sandbox, "sh", &line, before);
            assert_eq!(status.code(), Some(closed), "{before:?} {closes}");
        }
    }
}

#[test]
fn signals_that_are_ignored_and_blocked_are_as_they_were() {
    let sandbox = Sandbox::new();
    let script = "exec RUN grep -E 'Sig(Ign|Blk)|ShdPnd' /proc/self/status";
    for ignores in [true, false] {
        let [alone, run] = Before::BOTH.map(|before| {
            let mut command = command(&sandbox, "sh", script, before);
            if ignores {
                ignoring_pipes(&mut command);
            }
            let output = command.output().expect("a shell");
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        assert_eq!(run, alone, "ignores: {ignores}");
    }
}
