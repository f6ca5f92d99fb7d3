//! Processes that something else holds: `traced` and `stuck`. What holds them is the actor, which
//! is outside of their tree.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace::{self, Options};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, close, read, write};

use crate::args::{Args, usage};
use crate::process::{hold, spawn};
use crate::talk::{begin, commands, fail, next_step, reap, report, skip};

/// The least that the kernel accepts.
const REQUEST_BYTES: usize = 8_192;
const HEADER_BYTES: usize = 16;
const INIT_BYTES: usize = 64;
/// From `linux/fuse.h`.
const INIT: u32 = 26;
const LOOKUP: u32 = 1;
const VERSION: [u32; 2] = [7, 23];

/// Makes role `traced`, a child of the actor: `traced stop` stops it, `traced exit` lets it run
/// until it exits, and holds it there until the second line.
pub(crate) fn traced(args: &mut Args) -> i32 {
    let (options, stops) = match args.word("where").as_str() {
        "exit" => (Options::PTRACE_O_TRACEEXIT, false),
        "stop" => (Options::empty(), true),
        other => usage(&format!("traced exit or stop, not {other}")),
    };
    begin();
    let child = spawn(|| hold());
    let seized = ptrace::seize(child, options);
    seized.unwrap_or_else(|errno| fail(&format!("ptrace: {errno}")));
    if stops {
        let stopped = ptrace::interrupt(child).and_then(|()| waitpid(child, None));
        stopped.unwrap_or_else(|errno| fail(&format!("ptrace: {errno}")));
    }
    report(child, "traced");
    next_step();
    if !stops {
        let at_exit = waitpid(child, None).and_then(|_| ptrace::cont(child, None));
        at_exit.unwrap_or_else(|errno| fail(&format!("ptrace: {errno}")));
    }
    reap(child);
    commands()
}

/// Makes role `stuck`, a child of the actor: it asks a file system for a file, and the file system,
/// which is the actor, has taken the request and answers it on the second line. No signal ends such
/// a wait. The mount is in DIRECTORY, seen by these two processes alone.
pub(crate) fn stuck(args: &mut Args) -> i32 {
    let directory = args.path("directory");
    begin();
    let device = match mount_on(&directory) {
        Ok(device) => device,
        Err(errno) => {
            skip(&format!("no file system of a process here: {errno}"));
            return commands();
        }
    };
    let (kind, unique, _) = request(&device);
    if kind != INIT {
        fail("a file system that does not begin with its beginning");
    }
    let mut init = [0; INIT_BYTES];
    for (word, value) in init.chunks_mut(4).zip(VERSION) {
        word.copy_from_slice(&value.to_ne_bytes());
    }
    answer(&device, unique, 0, &init);
    let stuck = spawn(|| {
        // The file system ends with its last descriptor.
        _ = close(device.as_raw_fd());
        i32::from(fs::metadata(directory.join("file")).is_ok())
    });
    let unique = loop {
        let (kind, unique, pid) = request(&device);
        if kind == LOOKUP && pid == stuck {
            break unique;
        }
        answer(&device, unique, -libc::ENOSYS, &[]);
    };
    report(stuck, "stuck");
    next_step();
    answer(&device, unique, -libc::ENOENT, &[]);
    reap(stuck);
    commands()
}

fn mount_on(directory: &Path) -> nix::Result<OwnedFd> {
    let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, flags, none)?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("lifemon-test"),
        directory,
        Some("fuse"),
        flags,
        Some(options.as_str()),
    )?;
    Ok(device)
}

/// Reads the next request: its kind, its number, and who asks.
fn request(device: &OwnedFd) -> (u32, u64, Pid) {
    let mut bytes = [0; REQUEST_BYTES];
    let length = read(device, &mut bytes).unwrap_or_else(|errno| fail(&format!("fuse: {errno}")));
    if length < 40 {
        fail("a short request");
    }
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
    let unique = u64::from_ne_bytes(std::array::from_fn(|index| bytes[8 + index]));
    (word(4), unique, Pid::from_raw(word(32).cast_signed()))
}

fn answer(device: &OwnedFd, unique: u64, error: i32, body: &[u8]) {
    let length = (HEADER_BYTES + body.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(body);
    // Nobody listens any more where the asker was let go otherwise.
    _ = write(device, &bytes);
}
