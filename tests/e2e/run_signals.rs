//! `lifemon run` and signals: all are handed on, zombies are reaped, and the job stops and goes on
//! as one, without a terminal.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Lifemon, Pidfd, Sandbox, proc, scaled, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const LAST_SIGNAL: i32 = 64;

/// What a supervisor cannot see, or needs for itself.
const NOT_FORWARDED: [i32; 3] = [libc::SIGKILL, libc::SIGCHLD, libc::SIGSTOP];

/// A run with both ends of a conversation, in a process group of its own, so that its group has a
/// parent elsewhere and may be stopped.
struct Run {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Run {
    fn start(sandbox: &Sandbox, words: &[&str]) -> Self {
        let lifemon = Lifemon::find().inside(sandbox);
        let mut command: Command =
            lifemon.command(["run", "--grace", "0", "--"].iter().chain(words));
        command.stdin(Stdio::piped()).stderr(Stdio::inherit());
        command.process_group(0);
        let mut child = command.spawn().expect("lifemon starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// By number, which has no name for the real-time signals.
    fn signal(&self, signal: i32) {
        // SAFETY: the pid of a child of this test that is not reaped yet.
        let sent = unsafe { libc::kill(self.pid(), signal) };
        assert_eq!(sent, 0, "signal {signal}");
    }

    fn end(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        let mut status = None;
        wait_until("the end of lifemon", DEADLINE, || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn state(pid: i32) -> Option<char> {
    proc::stat(pid).map(|stat| stat.state)
}

#[test]
fn every_signal_reaches_the_command() {
    let sandbox = Sandbox::new();
    let mut run = Run::start(&sandbox, &[ACTOR, "hears"]);
    let ready = run.json();
    let command = i32::try_from(ready["pid"].as_i64().expect("a pid")).expect("a pid");
    for signal in (1..=LAST_SIGNAL).filter(|signal| !NOT_FORWARDED.contains(signal)) {
        run.signal(signal);
        assert_eq!(run.json()["heard"], signal);
    }
    Pidfd::open(command).expect("it lives").kill();
    assert_eq!(run.end(), Some(128 + 9));
    assert_nobody(&sandbox);
}

#[test]
fn a_thousand_zombies_are_reaped_while_the_command_runs() {
    let sandbox = Sandbox::new();
    let count = scaled(1_000);
    let script = format!(
        "i=0; while [ $i -lt {count} ]; do (sh -c 'exit 3' &); i=$((i+1)); done; \
         echo done; read line"
    );
    let mut run = Run::start(&sandbox, &["sh", "-c", &script]);
    assert_eq!(run.line(), "done");
    wait_until("no zombie", DEADLINE, || {
        let children = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = children.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let own: Vec<_> = std::iter::once(run.pid()).chain(sandbox.pids()).collect();
        let is_zombie = |pid: i32| {
            proc::stat(pid).is_some_and(|stat| stat.state == 'Z' && own.contains(&stat.ppid))
        };
        !pids.into_iter().any(is_zombie)
    });
    assert_eq!(run.end(), Some(1), "the end of its input");
    assert_nobody(&sandbox);
}

#[test]
fn the_job_stops_and_goes_on_as_one() {
    let sandbox = Sandbox::new();
    let mut run = Run::start(&sandbox, &["sh", "-c", "echo $$; read line; exit 8"]);
    let command: i32 = run.line().parse().expect("a pid");
    for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
        run.signal(signal as i32);
        wait_until("both stopped", DEADLINE, || {
            state(command) == Some('T') && state(run.pid()) == Some('T')
        });
        run.signal(Signal::SIGCONT as i32);
        wait_until("both go on", DEADLINE, || {
            state(command) == Some('S') && state(run.pid()) == Some('S')
        });
    }
    writeln!(run.child.stdin.as_mut().expect("open")).expect("it reads");
    assert_eq!(run.end(), Some(8));
}

#[test]
fn sigstop_to_the_command_alone_stops_nobody_else() {
    let sandbox = Sandbox::new();
    let mut run = Run::start(&sandbox, &["sh", "-c", "echo $$; read line; exit 8"]);
    let command: i32 = run.line().parse().expect("a pid");
    let pidfd = Pidfd::open(command).expect("it lives");
    pidfd.signal(Signal::SIGSTOP).expect("it lives");
    wait_until("the command stopped", DEADLINE, || {
        state(command) == Some('T')
    });
    // Lifemon still hears, and hands on.
    run.signal(Signal::SIGCONT as i32);
    wait_until("it goes on", DEADLINE, || state(command) == Some('S'));
    assert_eq!(state(run.pid()), Some('S'));
    writeln!(run.child.stdin.as_mut().expect("open")).expect("it reads");
    assert_eq!(run.end(), Some(8));
}
