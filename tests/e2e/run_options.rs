//! Options of `lifemon run` that say how the command runs, and what becomes of signals and codes.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Lifemon, Pidfd, Sandbox, needs, wait_until};
use nix::unistd::Pid;
use serde_json::Value;

use crate::run::lifemon_run::{Rights, guardian_of, read_report, report_path, run};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const LAST_SIGNAL: i32 = 64;

/// What no process hears, or a supervisor needs for itself.
const UNHEARD: [i32; 3] = [libc::SIGKILL, libc::SIGCHLD, libc::SIGSTOP];

/// A command that says which signals it hears, below lifemon in a process group of its own.
struct Hearing {
    child: Child,
    out: BufReader<ChildStdout>,
    command: i32,
}

impl Hearing {
    fn start(sandbox: &Sandbox, options: &[&str]) -> Self {
        let lifemon = Lifemon::find().inside(sandbox);
        let words = [&["run"], options, &["--", ACTOR, "hears"]].concat();
        let mut command: Command = lifemon.command(words);
        command.stderr(Stdio::inherit()).process_group(0);
        let mut child = command.spawn().expect("lifemon starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let mut hearing = Self {
            child,
            out,
            command: 0,
        };
        let pid = hearing.line()["pid"].as_i64().expect("a pid");
        hearing.command = i32::try_from(pid).expect("a pid");
        hearing
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// By number, which has no name for the real-time signals; to lifemon, or to its group.
    fn send(&self, signal: i32, to_group: bool) {
        let pid = self.child.id().cast_signed();
        let to = if to_group { -pid } else { pid };
        // SAFETY: the pid of a child of this test that is not reaped yet.
        assert_eq!(unsafe { libc::kill(to, signal) }, 0, "signal {signal}");
    }

    /// Waits until lifemon has taken what was sent to it: the same signal would be merged with it.
    #[track_caller]
    fn fence(&mut self, after: i32) {
        let fence = if after == libc::SIGRTMAX() {
            libc::SIGRTMIN()
        } else {
            libc::SIGRTMAX()
        };
        self.send(fence, false);
        assert_eq!(self.heard(), fence, "{after} was heard again");
    }

    /// The next signal that the command hears.
    #[track_caller]
    fn heard(&mut self) -> i32 {
        let heard = self.line()["heard"].as_i64().expect("a signal");
        i32::try_from(heard).expect("a signal")
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        if let Some(command) = Pidfd::open(self.command) {
            _ = command.signal(nix::sys::signal::Signal::SIGKILL);
        }
        _ = self.child.wait();
    }
}

#[test]
fn each_signal_is_heard_once_whether_it_is_for_the_group_or_not() {
    for options in [&[][..], &["--group"]] {
        let sandbox = Sandbox::new();
        let mut hearing = Hearing::start(&sandbox, options);
        for signal in (1..=LAST_SIGNAL).filter(|signal| !UNHEARD.contains(signal)) {
            for to_group in [true, false] {
                hearing.send(signal, to_group);
                assert_eq!(hearing.heard(), signal, "{options:?} group: {to_group}");
                hearing.fence(signal);
            }
        }
    }
}

#[test]
fn signals_in_a_storm_are_none_too_many_and_the_last_is_heard() {
    for options in [&[][..], &["--group"]] {
        let sandbox = Sandbox::new();
        let mut hearing = Hearing::start(&sandbox, options);
        let rounds = 500;
        for round in 0..rounds {
            hearing.send(libc::SIGRTMAX(), round % 2 == 0);
        }
        hearing.send(libc::SIGUSR1, false);
        // Queued signals come as often as they are sent. One with a lower number overtakes them.
        let mut counts = [0; 2];
        while counts[0] < rounds || counts[1] == 0 {
            match hearing.heard() {
                libc::SIGUSR1 => counts[1] += 1,
                _ => counts[0] += 1,
            }
        }
        hearing.send(libc::SIGUSR2, true);
        assert_eq!(hearing.heard(), libc::SIGUSR2, "{options:?} {counts:?}");
    }
}

#[test]
fn a_signal_is_rewritten_or_kept_back() {
    let sandbox = Sandbox::new();
    let options = ["--rewrite", "TERM=QUIT", "--rewrite", "USR1=0"];
    let mut hearing = Hearing::start(&sandbox, &options);
    for to_group in [true, false] {
        hearing.send(libc::SIGUSR1, to_group);
        hearing.send(libc::SIGTERM, to_group);
        assert_eq!(hearing.heard(), libc::SIGQUIT);
        hearing.send(libc::SIGHUP, to_group);
        assert_eq!(hearing.heard(), libc::SIGHUP);
    }
}

#[test]
fn with_group_a_signal_to_lifemon_reaches_the_whole_group() {
    let sandbox = Sandbox::new();
    let script = "trap '' TERM; (trap 'echo child; exit' TERM; echo ready; \
                  while :; do sleep 0.01; done)& wait; exit 5";
    let lifemon = Lifemon::find().inside(&sandbox);
    let mut command = lifemon.command(["run", "--group", "--", "sh", "-c", script]);
    let mut child = command.spawn().expect("lifemon starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "ready");
    nix::sys::signal::kill(
        Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("it lives");
    assert_eq!(lines.next().expect("a line").expect("text"), "child");
    assert_eq!(child.wait().expect("it ends").code(), Some(5));
    assert_nobody(&sandbox);
}

#[test]
fn codes_are_remapped_and_those_of_signals_too() {
    let sandbox = Sandbox::new();
    let options = ["--remap-exit", "143", "--remap-exit", "7"];
    for (script, code) in [
        ("exit 7", 0),
        ("exit 8", 8),
        ("kill -TERM $$", 0),
        ("exit 143", 0),
        ("exit 0", 0),
    ] {
        let report = report_path(&sandbox);
        let words = [&options[..], &["--json", &report, "--", "sh", "-c", script]].concat();
        let output = run(&sandbox, Rights::Root, &words);
        assert_eq!(output.code, Some(code), "{script} {output:?}");
        assert_eq!(read_report(&report).code, code, "{script}");
    }
    let words = ["--remap-exit", "143", "--", "sh", "-c", "kill -INT $$"];
    assert_eq!(run(&sandbox, Rights::Root, &words).code, None);
}

#[test]
fn what_cannot_be_meant_is_125() {
    let sandbox = Sandbox::new();
    for words in [
        &[][..],
        &["--no-such-option", "--", "true"],
        &["--grace", "x", "--", "true"],
        &["--rewrite", "TERM", "--", "true"],
        &["--rewrite", "KILL=TERM", "--", "true"],
        &["--remap-exit", "256", "--", "true"],
        &["--parent-death-signal", "NONE", "--", "true"],
        &["--chdir", "/no/such/directory", "--", "true"],
    ] {
        let output = run(&sandbox, Rights::Root, words);
        assert_eq!(output.code, Some(125), "{words:?} {output:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
    assert_eq!(run(&sandbox, Rights::Root, &["--help"]).code, Some(0));
}

#[test]
fn what_was_typed_does_nothing_to_a_terminal_when_it_is_wrong() {
    let odd = "/nowhere/\x1b[31mred\nlifemon: all is well";
    let reports = ["--json", odd, "--", "true"];
    for words in [
        &["--", odd][..],
        &["--chdir", odd, "--", "true"],
        &reports[..],
    ] {
        let output = Lifemon::find().run([&["run"], words].concat());
        assert!(matches!(output.code, Some(125..=127)), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
        assert!(!output.stderr.contains('\x1b'), "{output:?}");
    }
}

#[test]
fn a_daemon_that_is_cleaned_up_comes_with_a_hint() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        for (script, is_hinted) in [
            ("setsid sleep 100 >/dev/null 2>&1 & sleep 0.1", true),
            (
                "setsid sleep 100 >/dev/null 2>&1 & sleep 0.1; exit 3",
                false,
            ),
            ("sleep 100 >/dev/null 2>&1 & exit 0", false),
        ] {
            let words = ["--grace", "0", "--", "sh", "-c", script];
            let output = run(&sandbox, rights, &words);
            let has_hint = output.stderr.contains("--keep-orphans");
            assert_eq!(has_hint, is_hinted, "{rights:?} {script} {output:?}");
            assert!(output.stderr.contains("killed"), "{output:?}");
        }
        assert_nobody(&sandbox);
    }
}

#[test]
fn the_end_of_the_parent_is_heard_on_request() {
    let sandbox = Sandbox::new();
    let said = sandbox.directory().join("said");
    let said = said.to_str().expect("a path in UTF-8");
    let inner = format!(
        "trap \"echo heard >>{said}; exit\" USR1; echo ready >{said}; \
                         while :; do sleep 0.01; done"
    );
    let script = format!(
        "$LIFEMON run --parent-death-signal USR1 -- sh -c '{inner}' & \
         until grep -qs ready {said}; do sleep 0.01; done"
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .env("LIFEMON", Lifemon::find().program());
    sandbox.enter(&mut command);
    assert_eq!(command.status().expect("a shell").code(), Some(0));
    wait_until("the signal", DEADLINE, || {
        fs::read_to_string(said).is_ok_and(|said| said.contains("heard"))
    });
    wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
}

fn directory_of(pid: i32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/cwd")).expect("a process");
    link.to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn the_command_has_a_directory_and_lifemon_keeps_none_busy() {
    let sandbox = Sandbox::new();
    let own = sandbox.directory().to_str().expect("a path in UTF-8");
    let relative = Path::new(own).file_name().and_then(|name| name.to_str());
    for (options, expected) in [
        (&[][..], own),
        (&["--chdir", "/proc"][..], "/proc"),
        (&["--chdir", relative.map_or("", |_| ".")][..], own),
    ] {
        let lifemon = Lifemon::find().inside(&sandbox);
        let words = [&["run"], options, &["--", "sleep", "100"]].concat();
        let mut command = lifemon.command(words);
        command.current_dir(own);
        let running = Lifemon::find().start(command);
        let pid = running.pid();
        let guardian = guardian_of(&sandbox, pid);
        let mut sleep = None;
        wait_until("the sleep", DEADLINE, || {
            let is_sleep = |pid: &i32| {
                let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
                name == b"sleep\n"
            };
            sleep = sandbox.pids().into_iter().find(is_sleep);
            sleep.is_some()
        });
        let sleep = sleep.expect("waited for");
        assert_eq!(directory_of(sleep), expected);
        for own in sandbox.pids().into_iter().filter(|pid| *pid != sleep) {
            // The guardian leaves it once the command is started.
            let what = format!("the root of {own}, of {pid} and {guardian}");
            wait_until(&what, DEADLINE, || directory_of(own) == "/");
        }
        Pidfd::open(sleep).expect("it runs").kill();
        assert_eq!(running.finish(DEADLINE).code, Some(137));
    }
}

#[test]
fn whoever_signals_lifemon_by_name_means_it_and_not_its_group() {
    let sandbox = Sandbox::new();
    let mut hearing = Hearing::start(&sandbox, &[]);
    let lifemon = hearing.child.id().cast_signed();
    let words = |pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = |pid| fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    // As `pkill lifemon` and `pkill -f 'lifemon run'` find them.
    for pid in sandbox.pids() {
        let by_words = words(pid).starts_with(&words(lifemon));
        if pid == lifemon || by_words || name(pid).starts_with(b"lifemon") {
            Pidfd::open(pid)
                .expect("it lives")
                .signal(nix::sys::signal::Signal::SIGTERM)
                .expect("it lives");
        }
    }
    assert_eq!(hearing.heard(), libc::SIGTERM);
    Pidfd::open(hearing.command).expect("it lives").kill();
    let status = hearing.child.wait().expect("it ends");
    assert_eq!((status.code(), status.signal()), (Some(137), None));
}
