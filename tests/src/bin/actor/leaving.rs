//! Re-enactments of how people leave processes behind: `leave STEP...`. The steps are done by a
//! chain of processes, roles `p0`, `p1` and so on, each created by the one before it; the first is
//! a child of the actor, and the last one stays.
//!
//! `fork:END` creates the next, which goes on with the steps; who called it ends with the exit code
//! END once everything below is in place, or stays when END is no number. `exec` runs this program
//! again, `session` is setsid(2), `null` is input from /dev/null, `hup` ignores SIGHUP, `subreaper`
//! adopts orphans, `join:DIRECTORY` goes to that control group, `namespace` makes the next one the
//! first of a pid namespace, `name:NAME` is a new name and `no-text` one that is no UTF-8,
//! `open:FILE` an open file that exec leaves open, and with `leaderless` the thread that leads the
//! last process exits while another goes on.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use lifemon_tests::proc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_child_subreaper, set_name};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, execv, setsid};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{exit_now, pid_outside, spawn, until};
use crate::servers::open_for_ever;
use crate::talk::{begin, commands, fail, report, skip};

const FORK: &str = "fork:";
/// Processes that wait until the last one is in place.
const WAITING_MAX: u32 = 16;
const LIFETIME: Duration = Duration::from_mins(2);

/// The pipes of a chain: pids upwards, and that they were reported; and that the last is in place.
struct Pipes {
    up: Pipe,
    reported: Pipe,
    in_place: Pipe,
}

pub(crate) fn leave(args: &mut Args) -> i32 {
    let steps: Vec<String> = std::iter::from_fn(|| args.optional()).collect();
    begin();
    let pipes = Pipes {
        up: Pipe::new(),
        reported: Pipe::new(),
        in_place: Pipe::new(),
    };
    if steps.iter().any(|step| step == "namespace") && !may_make_namespaces() {
        skip("not permitted to make a pid namespace");
        return commands();
    }
    spawn(|| {
        read_from("/dev/zero");
        start(&steps, &pipes)
    });
    let forks = steps.iter().filter(|step| step.starts_with(FORK)).count();
    for index in 0..=forks {
        report(pipes.up.receive_pid(), &format!("p{index}"));
        pipes.reported.send(0);
    }
    pipes.in_place.receive();
    commands()
}

/// Goes on as the program that `exec` runs: `leave-on DESCRIPTOR... STEP...`.
pub(crate) fn leave_on(args: &mut Args) -> i32 {
    let mut pipe = || {
        let mut descriptor = || {
            let number = args.count("descriptor", 1_024).cast_signed();
            // SAFETY: whoever ran this program has left the descriptor to it, and to nobody else.
            unsafe { OwnedFd::from_raw_fd(number) }
        };
        Pipe::from_ends(descriptor(), descriptor())
    };
    let pipes = Pipes {
        up: pipe(),
        reported: pipe(),
        in_place: pipe(),
    };
    let steps: Vec<String> = std::iter::from_fn(|| args.optional()).collect();
    go_on(&steps, &pipes)
}

fn may_make_namespaces() -> bool {
    let probe = spawn(|| i32::from(unshare(CloneFlags::CLONE_NEWPID).is_err()));
    matches!(
        waitpid(probe, None),
        Ok(nix::sys::wait::WaitStatus::Exited(_, 0))
    )
}

/// The beginning of each process of the chain.
fn start(steps: &[String], pipes: &Pipes) -> i32 {
    pipes.up.send(pid_outside());
    pipes.reported.receive();
    go_on(steps, pipes)
}

fn go_on(mut steps: &[String], pipes: &Pipes) -> i32 {
    while let Some((step, rest)) = steps.split_first() {
        steps = rest;
        match step.as_str() {
            "session" => _ = setsid(),
            "null" => read_from("/dev/null"),
            // SAFETY: no handler is installed.
            "hup" => _ = unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) },
            "subreaper" => _ = set_child_subreaper(true),
            "namespace" => _ = unshare(CloneFlags::CLONE_NEWPID),
            "exec" => run_again(steps, pipes),
            "leaderless" => return leaderless(pipes),
            "no-text" => _ = set_name(c"a\xffb\xc3"),
            other => match other.split_once(':') {
                Some(("name", name)) => _ = CString::new(name).map(|name| set_name(&name)),
                Some(("join", group)) => join(group),
                Some(("open", path)) => open_for_ever(&[path.to_owned()]),
                Some(("fork", end)) => {
                    let child = spawn(|| start(steps, pipes));
                    return after(end, child, steps, pipes);
                }
                _ => fail(&format!("unknown step {other}")),
            },
        }
    }
    say_in_place(pipes);
    stay()
}

fn join(group: &str) {
    if let Err(error) = std::fs::write(format!("{group}/cgroup.procs"), "0") {
        fail(&format!("{group}: {error}"));
    }
}

fn say_in_place(pipes: &Pipes) {
    (0..WAITING_MAX).for_each(|_| pipes.in_place.send(0));
}

/// Leaves the process to a thread that stays.
fn leaderless(pipes: &Pipes) -> i32 {
    let own = pid_outside();
    thread::scope(|scope| {
        scope.spawn(|| {
            until(|| proc::stat(own).is_some_and(|stat| stat.state == 'Z'));
            say_in_place(pipes);
            stay()
        });
        // SAFETY: ends this thread alone; its stack, which the other uses, is never given back.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    0
}

/// The end of who has created the next: inner ones end before outer ones.
fn after(end: &str, child: Pid, steps: &[String], pipes: &Pipes) -> i32 {
    let Ok(code) = end.parse() else { stay() };
    let next = steps.iter().find_map(|step| step.strip_prefix(FORK));
    if next.is_some_and(|end| end.parse::<i32>().is_ok()) {
        _ = waitpid(child, None);
    } else {
        pipes.in_place.receive();
    }
    code
}

fn run_again(steps: &[String], pipes: &Pipes) {
    let program = std::env::current_exe().ok();
    let program =
        program.and_then(|path| CString::new(path.into_os_string().into_encoded_bytes()).ok());
    let program = program.unwrap_or_else(|| fail("no program of its own"));
    let ends = [&pipes.up, &pipes.reported, &pipes.in_place].map(Pipe::ends);
    let ends = ends
        .into_iter()
        .flatten()
        .map(|end| end.as_raw_fd().to_string());
    let words = ["actor", "leave-on"].map(str::to_owned).into_iter();
    let words = words.chain(ends).chain(steps.iter().cloned());
    let words: Vec<_> = words.filter_map(|word| CString::new(word).ok()).collect();
    let errno = execv(&program, &words).unwrap_err();
    fail(&format!("exec: {errno}"));
}

fn read_from(path: &str) {
    let opened = File::open(path).map(|file| dup2_stdin(&file));
    if !matches!(opened, Ok(Ok(()))) {
        fail(&format!("no input from {path}"));
    }
}

/// Lets go of the pipes to the test, and keeps the input as it is.
fn stay() -> ! {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        _ = dup2_stdout(&null);
        _ = dup2_stderr(&null);
    }
    thread::sleep(LIFETIME);
    exit_now(0)
}
