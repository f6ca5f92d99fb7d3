//! Servers with workers, to be killed so that the workers are left behind: `serve`, `serve-here`,
//! `odd-commands`; and daemons, which leave on purpose: `daemonise`.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_child_subreaper, set_name};
use nix::unistd::{dup2_stdin, execve, pipe2, read, setsid};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{exit_now, hold, pid_outside, spawn};
use crate::talk::{begin, commands, fail, reap, report, skip};

/// Makes this program do nothing but hold, whatever its arguments are.
pub(crate) const HOLD: &str = "LIFEMON_ACTOR_HOLD";

const WORKERS_MAX: u32 = 2_500;
/// The kernel takes arguments of up to 128 KiB, with the zero at the end.
const LONGEST_ARGUMENT: usize = 128 * 1024 - 1;

/// Runs this program again as one that only holds, with these arguments. Its name becomes the
/// first. The wait ends when that program runs.
fn hold_as(arguments: &[Vec<u8>], started: &UntilHeld) -> i32 {
    hold_in(arguments, &[], started.writer.as_raw_fd())
}

/// Runs this program again as one that only holds, with the mark of one job.
pub(crate) fn hold_with_mark() -> i32 {
    let marks = ["LIFEMON_JOB=former".to_owned()];
    hold_in(&[b"marked".to_vec()], &marks, NOBODY_WAITS)
}

/// No descriptor: nobody waits for the program to run.
const NOBODY_WAITS: i32 = -1;

fn hold_in(arguments: &[Vec<u8>], marks: &[String], signal: i32) -> i32 {
    let program = std::env::current_exe().map(|path| path.into_os_string().into_vec());
    let program = program.ok().and_then(|path| CString::new(path).ok());
    let arguments: Vec<CString> = arguments
        .iter()
        .filter_map(|argument| CString::new(argument.clone()).ok())
        .collect();
    let holds = format!("{HOLD}={signal}");
    let environment = marks.iter().chain([&holds]);
    let environment: Vec<_> = environment
        .map(|variable| CString::new(variable.as_str()).unwrap_or_default())
        .collect();
    if let Some(program) = program {
        _ = execve(&program, &arguments, &environment);
    }
    127
}

/// Waits until everybody who was forked between its making and its waiting holds as another
/// program, or is dead. A pipe that exec itself closes would end the wait too early: exec closes it
/// before its hook has run, and the hook has run for certain when the new program closes the pipe.
struct UntilHeld {
    reader: OwnedFd,
    /// The one end that survives exec.
    writer: OwnedFd,
}

impl UntilHeld {
    fn new() -> Self {
        let pipe = pipe2(OFlag::O_CLOEXEC).and_then(|(reader, writer)| {
            fcntl(&writer, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok((reader, writer))
        });
        let (reader, writer) = pipe.unwrap_or_else(|errno| fail(&format!("pipe: {errno}")));
        Self { reader, writer }
    }

    fn wait(self) {
        drop(self.writer);
        _ = read(&self.reader, &mut [0]);
    }
}

/// Holds as the program that [`hold_as`] runs. Pipes to the test are let go of, devices are kept.
pub(crate) fn hold_now() -> ! {
    let first = std::env::args_os().next().unwrap_or_default();
    if let Ok(name) = CString::new(OsString::into_vec(first)) {
        _ = set_name(&name);
    }
    let signal = std::env::var(HOLD).ok().and_then(|fd| fd.parse().ok());
    if let Some(signal) = signal.filter(|signal| *signal != NOBODY_WAITS) {
        // SAFETY: nobody else has this descriptor here: it was left open for this alone.
        drop(unsafe { OwnedFd::from_raw_fd(signal) });
    }
    hold()
}

/// Opens these files so that they survive exec.
pub(crate) fn open_for_ever(files: &[String]) {
    for path in files {
        let file = File::open(path).unwrap_or_else(|error| fail(&format!("{path}: {error}")));
        let inherited = fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()));
        inherited.unwrap_or_else(|errno| fail(&format!("{path}: {errno}")));
        _ = file.into_raw_fd();
    }
}

/// Makes N workers: as they were forked, or with another command line and open files.
fn make_workers(count: u32, up: &Pipe, argument: Option<&str>, files: &[String]) {
    for _ in 0..count {
        let started = UntilHeld::new();
        spawn(|| {
            up.send(pid_outside());
            let Some(argument) = argument else { hold() };
            open_for_ever(files);
            hold_as(
                &[argument.as_bytes().to_vec(), b"--worker".to_vec()],
                &started,
            )
        });
        if argument.is_some() {
            started.wait();
        }
    }
}

/// Runs `serve N MODE [ARGUMENT [FILE...]]`: role `server` with N of role `worker`, in a session
/// that is not that of process 1, whatever started this. MODE says who takes over what the server
/// leaves: `init`, `subreaper` (the actor), `namespace` (role `ns-init`, its creator). The workers
/// call themselves ARGUMENT and have the FILEs open.
pub(crate) fn serve(args: &mut Args) -> i32 {
    let count = args.count("workers", WORKERS_MAX);
    let mode = args.word("mode");
    let argument = args.optional();
    let files: Vec<String> = std::iter::from_fn(|| args.optional()).collect();
    if mode == "subreaper" && set_child_subreaper(true).is_err() {
        fail("no subreapers here");
    }
    begin();
    if setsid().is_err() {
        fail("leads a group already");
    }
    let up = Pipe::new();
    let server = || {
        up.send(pid_outside());
        make_workers(count, &up, argument.as_deref(), &files);
        hold()
    };
    if mode == "namespace" {
        if unshare(CloneFlags::CLONE_NEWPID).is_err() {
            skip("not permitted to make a pid namespace");
            return commands();
        }
        spawn(|| {
            up.send(pid_outside());
            spawn(server);
            hold()
        });
        report(up.receive_pid(), "ns-init");
    } else {
        spawn(server);
    }
    report(up.receive_pid(), "server");
    (0..count).for_each(|_| report(up.receive_pid(), "worker"));
    commands()
}

/// Runs `serve-here N`: the actor itself is the server.
pub(crate) fn serve_here(args: &mut Args) -> i32 {
    let count = args.count("workers", WORKERS_MAX);
    begin();
    let up = Pipe::new();
    make_workers(count, &up, None, &[]);
    (0..count).for_each(|_| report(up.receive_pid(), "worker"));
    commands()
}

/// Makes role `server` with workers whose command lines are odd: roles `newline`, `invalid`,
/// `long`, `empty`, `escape`.
pub(crate) fn odd_commands() -> i32 {
    begin();
    let up = Pipe::new();
    let odd: [(&str, Vec<Vec<u8>>); 5] = [
        ("newline", vec![b"two\nlines".to_vec(), b"\r".to_vec()]),
        ("invalid", vec![b"not\xff\xfetext".to_vec()]),
        ("long", vec![b"long".to_vec(), vec![b'x'; LONGEST_ARGUMENT]]),
        ("empty", vec![Vec::new()]),
        ("escape", vec![b"\x1b[31mred\x1b]0;title\x07".to_vec()]),
    ];
    spawn(|| {
        up.send(pid_outside());
        for (_, arguments) in &odd {
            let started = UntilHeld::new();
            let child = spawn(|| hold_as(arguments, &started));
            started.wait();
            up.send(child.as_raw());
        }
        hold()
    });
    report(up.receive_pid(), "server");
    for (role, _) in &odd {
        report(up.receive_pid(), role);
    }
    commands()
}

/// Runs `daemonise HOW`: roles `middle`, which exits with 0 at once, and `daemon`. HOW: `classic`
/// as daemon(3) does it (a session, input from /dev/null), `program` (a session, and another
/// program), `half` (no session of its own).
pub(crate) fn daemonise(args: &mut Args) -> i32 {
    let how = args.word("how");
    begin();
    let up = Pipe::new();
    let started = UntilHeld::new();
    let middle = spawn(|| {
        spawn(|| {
            if how != "half" {
                _ = setsid();
            }
            up.send(pid_outside());
            if how == "program" {
                return hold_as(&[b"some-daemon".to_vec()], &started);
            }
            if let Ok(null) = File::open("/dev/null") {
                _ = dup2_stdin(&null);
            }
            hold()
        });
        exit_now(0)
    });
    if how == "program" {
        started.wait();
    }
    report(middle, "middle");
    let daemon = up.receive_pid();
    report(daemon, "daemon");
    reap(middle);
    commands()
}
