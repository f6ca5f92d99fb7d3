//! What a program is denied: each function changes how a command starts, so that it runs as if the
//! host were poorer. Only the process of the command is affected, never the test or the host.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, setgroups, setresgid, setresuid};

use crate::{Lifemon, Sandbox};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// `uname` then says 2.6.
const UNAME26: libc::c_ulong = 0x0002_0000;

/// More than the kernel has capabilities.
const CAPABILITIES: libc::c_ulong = 64;

/// Runs `prepare` between fork and exec.
fn before_exec(
    command: &mut Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: every `prepare` of this file makes system calls and touches its own, prepared memory;
    // a path of nix is copied to the stack.
    unsafe { command.pre_exec(prepare) };
}

/// Makes a command run as a user without any right. The program must be readable for all.
pub fn as_nobody(command: &mut Command) {
    before_exec(command, || {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
        Ok(())
    });
}

/// Makes it start as a user who owns nothing and has these capabilities. The program must be
/// readable for all.
pub fn as_nobody_with(command: &mut Command, kept: &'static [libc::c_ulong]) {
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let mut sets = [Sets::default(); 2];
    for capability in kept {
        let bit = 1 << (capability % 32);
        let set = &mut sets[usize::from(*capability >= 32)];
        set.effective |= bit;
        set.permitted |= bit;
        set.inheritable |= bit;
    }
    let failed = |result: libc::c_long| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    before_exec(command, move || {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        let zero: libc::c_ulong = 0;
        // SAFETY: no memory is passed.
        failed(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, zero, zero, zero) }.into())?;
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
        let header = [VERSION_3, 0];
        // SAFETY: the header and both halves of the sets live until the call returns.
        failed(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
        for capability in kept {
            // SAFETY: no memory is passed.
            let raised = unsafe {
                let raise = libc::PR_CAP_AMBIENT_RAISE;
                libc::prctl(libc::PR_CAP_AMBIENT, raise, *capability, zero, zero)
            };
            failed(raised.into())?;
        }
        Ok(())
    });
}

/// Makes a copy of the program that everybody may read.
///
/// # Panics
/// When it cannot be made.
#[must_use]
#[track_caller]
pub fn readable_copy(sandbox: &Sandbox) -> PathBuf {
    let copy = sandbox.directory().join("lifemon");
    // By a program of its own: a descriptor of ours that writes to the copy could be inherited by
    // a process that another test forks now, and then the copy could not be executed.
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(Lifemon::find().program());
    let copied = install.arg(&copy).status().expect("install");
    assert!(copied.success(), "{install:?}");
    copy
}

/// Makes a command run with SIGCHLD ignored, as some programs start others.
pub fn ignoring_children(command: &mut Command) {
    before_exec(command, || {
        // SAFETY: no handler is installed.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        Ok(())
    });
}

/// Makes a command start with SIGPIPE ignored, as some programs start others.
pub fn ignoring_pipes(command: &mut Command) {
    before_exec(command, || {
        // SAFETY: no handler is installed.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
        Ok(())
    });
}

/// Makes a command run as root with these capabilities alone: exec gives root what is in the
/// bounding set.
pub fn with_capabilities(command: &mut Command, kept: &'static [libc::c_ulong]) {
    before_exec(command, move || {
        for capability in (0..CAPABILITIES).filter(|capability| !kept.contains(capability)) {
            // SAFETY: no memory is passed.
            let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            // Numbers that are no capability come last.
            if dropped != 0 && capability == 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    });
}

/// Makes a command run with `directory` in the place of `over`, in a mount namespace of its own.
pub fn with_directory_over(command: &mut Command, directory: &Path, over: &'static str) {
    let directory = PathBuf::from(directory);
    before_exec(command, move || {
        own_mounts()?;
        let none: Option<&str> = None;
        mount(Some(&directory), over, none, MsFlags::MS_BIND, none)?;
        Ok(())
    });
}

/// Makes a command run with a `/proc` that hides the processes of other users, in a mount namespace
/// of its own.
pub fn with_hidden_processes(command: &mut Command) {
    before_exec(command, || {
        own_mounts()?;
        let flags = MsFlags::empty();
        Ok(mount(
            Some("proc"),
            "/proc",
            Some("proc"),
            flags,
            Some("hidepid=2"),
        )?)
    });
}

/// Enters a mount namespace whose changes stay in it.
pub(crate) fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(mount(none, "/", none, flags, none)?)
}

/// Makes a command run on a kernel whose release reads 2.6.
pub fn on_an_old_kernel(command: &mut Command) {
    before_exec(command, || {
        // SAFETY: no memory is passed.
        match unsafe { libc::personality(UNAME26) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    });
}

/// Makes a command run in a sandbox that answers each `unshare` with this error.
pub fn without_unshare(command: &mut Command, errno: Errno) {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let call = libc::SYS_unshare as u32;
    let mut filter = [
        step(LOAD_WORD, 0, 0),
        step(JUMP_IF_EQUAL, 1, call),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    before_exec(command, move || {
        set_no_new_privs()?;
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program and its steps outlive the call.
        let set = unsafe {
            let mode = libc::SECCOMP_MODE_FILTER;
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program)
        };
        match set {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    });
}

/// Makes a command run as the first process of a pid namespace, with a `/proc` of its own. The
/// command's process itself stays outside, waits, and ends with the same exit code.
pub fn in_a_pid_namespace(command: &mut Command) {
    before_exec(command, || {
        own_mounts()?;
        unshare(CloneFlags::CLONE_NEWPID)?;
        // SAFETY: the process has one thread, so the child is a whole copy of it.
        match unsafe { fork() }? {
            ForkResult::Child => {
                set_pdeathsig(Signal::SIGKILL)?;
                let none: Option<&str> = None;
                Ok(mount(
                    Some("proc"),
                    "/proc",
                    Some("proc"),
                    MsFlags::empty(),
                    none,
                )?)
            }
            ForkResult::Parent { child } => {
                // The test must not wait for an exec of this process: it has none.
                // SAFETY: closes descriptors of this process; nothing here uses one any more.
                unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                let code = match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => code,
                    _ => 255,
                };
                // SAFETY: ends the process; there is no state to keep whole.
                unsafe { libc::_exit(code) }
            }
        }
    });
}
