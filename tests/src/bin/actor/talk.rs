//! What an actor says and hears: JSON objects, one a line, on stdout; plain lines on stdin.
//! No buffers of ours in either direction, so forks and execs neither repeat nor lose a line.

use std::io;

use lifemon_tests::proc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, read, write};
use serde_json::{Value, json};

use crate::process::exit_now;

const LINE_BYTES_MAX: usize = 4096;

/// Prints a line by one write, so lines of several processes do not mix.
pub(crate) fn say(value: &Value) {
    // A listener that went away is no reason to behave otherwise.
    _ = write(io::stdout(), format!("{value}\n").as_bytes());
}

/// Reads the next line of stdin, or `None` at its end.
pub(crate) fn next_line() -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LINE_BYTES_MAX && read(io::stdin(), &mut byte) == Ok(1) {
        if byte == *b"\n" {
            return Some(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
    None
}

/// Waits for a line; the end of stdin ends the actor.
pub(crate) fn await_line() {
    if next_line().is_none() {
        exit_now(0);
    }
}

fn ready() {
    let pid = nix::unistd::getpid().as_raw();
    say(&json!({"ready": true, "pid": pid, "start_ticks": start_ticks(pid)}));
}

/// Begins a behaviour: says that it is ready, and waits for the first line.
pub(crate) fn begin() {
    ready();
    await_line();
}

pub(crate) fn done() {
    say(&json!({"done": true}));
}

/// Ends a step; the next one begins with the next line.
pub(crate) fn next_step() {
    done();
    await_line();
}

/// Reports a living or unreaped process, pid as this one sees it.
pub(crate) fn report(pid: Pid, role: &str) {
    let pid = pid.as_raw();
    say(&json!({"child": pid, "role": role, "start_ticks": start_ticks(pid)}));
}

fn start_ticks(pid: i32) -> Option<u64> {
    proc::stat(pid).map(|stat| stat.start_ticks)
}

/// Waits for a child and reports how it ended.
pub(crate) fn reap(child: Pid) {
    say(&match waitpid(child, None) {
        Ok(WaitStatus::Exited(pid, code)) => json!({"reaped": pid.as_raw(), "code": code}),
        Ok(WaitStatus::Signaled(pid, signal, core)) => {
            json!({"reaped": pid.as_raw(), "signal": signal as i32, "core_dumped": core})
        }
        other => json!({"error": format!("wait for {child}: {other:?}")}),
    });
}

/// Says that the behaviour is impossible on this host.
pub(crate) fn skip(reason: &str) {
    say(&json!({"skip": reason}));
}

pub(crate) fn fail(problem: &str) -> ! {
    say(&json!({"error": problem}));
    exit_now(1)
}

/// Does nothing but to take commands.
pub(crate) fn pause() -> i32 {
    ready();
    commands()
}

/// Ends most behaviours: says that it is done, then takes commands until told to exit.
pub(crate) fn commands() -> i32 {
    commands_and(|_| false)
}

/// Does the same with commands of one's own, tried first: `own` says whether it knew the line.
pub(crate) fn commands_and(own: impl Fn(&str) -> bool) -> i32 {
    loop {
        done();
        let Some(line) = next_line() else { return 0 };
        if own(&line) {
            continue;
        }
        match line
            .split_once(' ')
            .map(|(verb, number)| (verb, number.parse()))
        {
            Some(("exit", Ok(code))) => return code,
            Some(("kill", Ok(pid))) => of_own_child(pid, |child| _ = kill(child, Signal::SIGKILL)),
            Some(("reap", Ok(pid))) => of_own_child(pid, |_| {}),
            _ => say(&json!({"error": format!("unknown command: {line}")})),
        }
    }
}

/// Acts on an unreaped child of this process, and on nobody else: its pid cannot be another's.
fn of_own_child(pid: i32, act: impl Fn(Pid)) {
    let child = Pid::from_raw(pid);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if pid <= 1 || waitid(Id::Pid(child), flags).is_err() {
        return say(&json!({"error": format!("{pid} is no child of this actor")}));
    }
    act(child);
    reap(child);
}
