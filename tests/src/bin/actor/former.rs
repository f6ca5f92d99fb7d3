//! `former HOW PROCS...`: a tree that has lost a member before anybody looked, and processes that
//! only look as if they had been members.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::prctl::set_child_subreaper;
use nix::unistd::{Pid, getpid, getppid, setpgid, setsid};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{exit_now, hold, spawn, until};
use crate::servers::hold_with_mark;
use crate::talk::{begin, commands, fail, reap, report};

/// Roles `older`, an orphan of the actor; `root`; `former`, the orphan of a child of the root;
/// `daemon`, the same with a session of its own; `twin`, made by the actor after the root.
///
/// HOW says what `former` has in common with the root alone: its process group and session
/// (`group`); a pipe (`pipe`), memory (`memory`) or the mark of a job (`job`) after it has gone to
/// the control groups named, and to another session; nothing (`away`). With `subreaper` the actor
/// takes in orphans, and `former` has the root's group; with `twins` nothing that the actor has
/// not.
pub(crate) fn former(args: &mut Args) -> i32 {
    let how = args.word("how");
    let groups: Vec<PathBuf> = std::iter::from_fn(|| args.optional().map(Into::into)).collect();
    let is_subreaper = how == "subreaper" || how == "twins";
    if is_subreaper && set_child_subreaper(true).is_err() {
        fail("no subreapers here");
    }
    begin();
    if setsid().is_err() {
        fail("leads a group already");
    }
    let [up, of_former, of_daemon, of_root] = [(); 4].map(|()| Pipe::new());
    let older = spawn(|| orphan(&|| tell_and_hold(&up)));
    reap(older);
    report(up.receive_pid(), "older");
    let root = spawn(|| root(&how, &groups, [&of_former, &of_daemon, &of_root]));
    report(root, "root");
    report(of_former.receive_pid(), "former");
    report(of_daemon.receive_pid(), "daemon");
    of_root.receive();
    report(spawn(|| hold()), "twin");
    commands()
}

fn root(how: &str, groups: &[PathBuf], [of_former, of_daemon, up]: [&Pipe; 3]) -> i32 {
    if how == "subreaper" {
        _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    }
    // Its own: what it has from the actor connects it with nobody.
    let _pipe = Pipe::new();
    let is_shared = how == "memory";
    let memory = is_shared.then(share_memory);
    let child = spawn(|| {
        if matches!(how, "pipe" | "memory" | "job" | "away") {
            _ = setsid();
            if !groups.iter().all(|file| fs::write(file, "0").is_ok()) {
                fail("no other control group");
            }
        }
        orphan(&|| {
            of_former.send(getpid().as_raw());
            if how != "pipe" && how != "group" {
                close_files();
            }
            if how == "job" {
                return hold_with_mark();
            }
            hold()
        })
    });
    wait(child);
    let child = spawn(|| {
        orphan(&|| {
            _ = setsid();
            tell_and_hold(of_daemon)
        })
    });
    wait(child);
    up.send(0);
    _ = memory;
    if how == "job" {
        return hold_with_mark();
    }
    hold()
}

/// Leaves a process behind, which begins once its creator is dead.
fn orphan(body: &dyn Fn() -> i32) -> i32 {
    let me = getpid();
    spawn(|| {
        until(|| getppid() != me);
        body()
    });
    0
}

fn tell_and_hold(up: &Pipe) -> i32 {
    up.send(getpid().as_raw());
    hold()
}

fn wait(child: Pid) {
    if nix::sys::wait::waitpid(child, None).is_err() {
        exit_now(1);
    }
}

/// Maps memory that every process forked from here on has in common with this one.
fn share_memory() {
    let length = NonZeroUsize::new(4096).unwrap_or(NonZeroUsize::MIN);
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice, never used.
    let mapped = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_SHARED) };
    if let Err(errno) = mapped {
        fail(&format!("mmap: {errno}"));
    }
}

/// Closes all but the standard ones.
fn close_files() {
    // SAFETY: closes descriptors of this process; nothing here uses one any more.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}
