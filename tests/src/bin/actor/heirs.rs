//! Pids that are used again at once, by processes that have nothing to do with those who had them
//! before: `heir` and `successors`. The kernel gives a free pid to whom root asks it to (`set_tid`
//! of clone3), so no limit of the host has to be lowered for it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read, write};
use serde_json::json;

use crate::args::Args;
use crate::load::line_waits;
use crate::pipe::Pipe;
use crate::process::{exit_now, hold, set_deadline, spawn, try_spawn};
use crate::shared::Fuse;
use crate::talk::{begin, commands, done, fail, next_line, next_step, reap, report, say};

const MEMBERS_MAX: u64 = 60_000;
const STEP: Duration = Duration::from_micros(20);
const MEMBER_EVERY: Duration = Duration::from_micros(200);
const MEMBER_LIFE_US: u64 = 60_000;
const HEIR_LIFE: Duration = Duration::from_millis(250);
/// Heirs made before the behaviour says that it is under way.
const UNDER_WAY: usize = 200;

/// Forks into exactly this pid. `None` when it is taken, again or still, or the sandbox is full.
fn fork_into(pid: Pid, body: impl FnOnce() -> i32) -> Option<Pid> {
    let wanted = [pid.as_raw()];
    // SAFETY: a structure of integers.
    let mut request: libc::clone_args = unsafe { std::mem::zeroed() };
    request.exit_signal = libc::SIGCHLD as u64;
    request.set_tid = wanted.as_ptr() as u64;
    request.set_tid_size = 1;
    let size = size_of::<libc::clone_args>();
    // SAFETY: without CLONE_VM this is a fork of a process with one thread; the request and the pid
    // it points to live until the call returns.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const request, size) } {
        0 => {
            set_deadline();
            exit_now(body())
        }
        -1 if matches!(Errno::last(), Errno::EEXIST | Errno::EAGAIN) => None,
        -1 => fail(&format!("clone3: {}", Errno::last())),
        child => Some(Pid::from_raw(child as i32)),
    }
}

/// Makes role `first`, which with `heir orphan` has a child in role `orphan` On the
/// second line it is killed, and its pid becomes that of role `heir`.
pub(crate) fn heir(args: &mut Args) -> i32 {
    let leaves_orphan = args.optional().is_some();
    begin();
    let up = Pipe::new();
    let first = spawn(|| {
        if leaves_orphan {
            up.send(spawn(|| hold()).as_raw());
        }
        hold()
    });
    report(first, "first");
    if leaves_orphan {
        report(up.receive_pid(), "orphan");
    }
    next_step();
    _ = kill(first, Signal::SIGKILL);
    reap(first);
    match fork_into(first, || hold()) {
        Some(heir) => report(heir, "heir"),
        None => fail("the pid was taken by somebody else"),
    }
    commands()
}

/// Runs `successors FILE [clone-parent]`: role `root` creates processes that live for up to 60 ms.
/// As soon as one of them is dead, its pid goes to a bystander, a child of the actor. With
/// `clone-parent` the actor is also the parent of the root's processes, and learns of each death at
/// once. On the line `stop` the actor waits for all and says how many bystanders a signal has
/// ended.
pub(crate) fn successors(args: &mut Args) -> i32 {
    let fuse = Fuse::from_args(args, MEMBERS_MAX);
    let is_parent = args.optional().is_some_and(|word| word == "clone-parent");
    if set_child_subreaper(true).is_err() {
        fail("no subreapers here");
    }
    begin();
    let (freed, free) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap_or_else(|errno| {
        fail(&format!("pipe: {errno}"));
    });
    let root = spawn(|| {
        if is_parent {
            breed_siblings(&fuse)
        } else {
            breed(&fuse, &free)
        }
    });
    report(root, "root");
    let mut estate = Estate::default();
    loop {
        let mut pid = [0; 4];
        if read(&freed, &mut pid) == Ok(4) {
            estate.inherit(Pid::from_raw(i32::from_ne_bytes(pid)));
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => thread::sleep(STEP),
            Ok(status) => estate.bury(status),
            Err(Errno::ECHILD) if estate.closed => break,
            // All are dead, and nobody has said stop yet.
            Err(Errno::ECHILD) => thread::sleep(STEP),
            Err(errno) => fail(&format!("wait: {errno}")),
        }
        if estate.made == UNDER_WAY && !estate.told {
            estate.told = true;
            done();
        }
        if !estate.closed && line_waits() {
            estate.closed = true;
            _ = next_line();
            // Nobody else's pid while it has not been waited for.
            if !estate.dead.contains(&root) {
                _ = kill(root, Signal::SIGKILL);
            }
        }
    }
    say(&json!({"bystanders": estate.made, "hit": estate.hit}));
    commands()
}

/// Pids, and the bystanders who have them now.
#[derive(Default)]
struct Estate {
    heirs: HashSet<Pid>,
    dead: HashSet<Pid>,
    made: usize,
    hit: usize,
    told: bool,
    closed: bool,
}

impl Estate {
    /// Makes a bystander with this pid, whose process is dead and gone.
    fn inherit(&mut self, pid: Pid) {
        if !self.closed && fork_into(pid, linger).is_some() {
            self.heirs.insert(pid);
            self.made += 1;
        }
    }

    fn bury(&mut self, status: WaitStatus) {
        let Some(pid) = status.pid() else { return };
        if self.heirs.remove(&pid) {
            self.hit += usize::from(matches!(status, WaitStatus::Signaled(..)));
        } else {
            self.dead.insert(pid);
            self.inherit(pid);
        }
    }
}

fn linger() -> i32 {
    thread::sleep(HEIR_LIFE);
    0
}

/// Returns how long the next member lives: a linear congruential generator.
fn next_life(seed: &mut u64) -> Duration {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    Duration::from_micros((*seed >> 33) % MEMBER_LIFE_US)
}

/// Creates members that are children of the actor, for ever.
fn breed_siblings(fuse: &Fuse) -> i32 {
    let mut seed = 1;
    while fuse.burn() {
        let life = next_life(&mut seed);
        let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
        // SAFETY: without CLONE_VM this is a fork of a process with one thread.
        if unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } == 0 {
            set_deadline();
            thread::sleep(life);
            return 0;
        }
        thread::sleep(MEMBER_EVERY);
    }
    0
}

/// Creates members that are its own children, for ever, and tells whose pids are free.
fn breed(fuse: &Fuse, free: &OwnedFd) -> i32 {
    let mut seed = 1;
    while fuse.burn() {
        let life = next_life(&mut seed);
        _ = try_spawn(|| {
            thread::sleep(life);
            0
        });
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { break };
            _ = write(free, &pid.as_raw().to_ne_bytes());
        }
        thread::sleep(MEMBER_EVERY);
    }
    0
}
