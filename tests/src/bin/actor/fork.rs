//! Plain creation: children that exit, children that stay, a child by vfork that execs.
//! `fork-wait N CODE`, `fork-hold N`, `vfork-exec`.

use nix::unistd::Pid;

use crate::args::Args;
use crate::process::{hold, spawn};
use crate::talk::{begin, commands, fail, reap, report};

const CHILDREN_MAX: u32 = 2000;
const STACK_BYTES: usize = 64 * 1024;

/// Makes N children, which exit with CODE and are reaped.
pub(crate) fn fork_wait(args: &mut Args) -> i32 {
    let (count, code) = (args.count("children", CHILDREN_MAX), args.exit_code());
    begin();
    let children: Vec<_> = (0..count).map(|_| spawn(|| code)).collect();
    for child in &children {
        report(*child, "worker");
    }
    children.into_iter().for_each(reap);
    commands()
}

/// Makes N children that stay.
pub(crate) fn fork_hold(args: &mut Args) -> i32 {
    let count = args.count("children", CHILDREN_MAX);
    begin();
    let children: Vec<_> = (0..count).map(|_| spawn(|| hold())).collect();
    for child in &children {
        report(*child, "worker");
    }
    commands()
}

/// Makes a vfork whose child becomes `/bin/true`.
pub(crate) fn vfork_exec() -> i32 {
    begin();
    let Some(child) = vfork_true() else {
        fail("vfork failed");
    };
    report(child, "vforked");
    reap(child);
    commands()
}

/// Forks with `CLONE_VM | CLONE_VFORK`, by `clone` with a stack of its own, because a Rust function
/// must not return into a frame that a vfork child has used.
pub(crate) fn vfork_true() -> Option<Pid> {
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    let top = stack.as_mut_ptr_range().end.cast();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack outlives the child's use of it, since CLONE_VFORK suspends this thread
    // until the child has left our memory by exec or exit.
    let child = unsafe { libc::clone(exec_true, top, flags, std::ptr::null_mut()) };
    (child > 0).then(|| Pid::from_raw(child))
}

extern "C" fn exec_true(_: *mut libc::c_void) -> libc::c_int {
    let path = c"/bin/true".as_ptr();
    let (argv, envp) = ([path, std::ptr::null()], [std::ptr::null()]);
    // SAFETY: terminated arrays of terminated strings; nothing else of the shared memory is used.
    unsafe {
        libc::execve(path, argv.as_ptr(), envp.as_ptr());
        libc::_exit(127)
    }
}
