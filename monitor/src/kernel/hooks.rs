//! Which programs are attached where: the hooks of this kernel.
//!
//! Up to Linux 6.19 a tracepoint runs its programs with preemption off. From 7.0 on a task can lose
//! the processor in the middle of one, and the kernel skips that program for every other task that
//! passes the tracepoint on that processor meanwhile: a fork or a death would go unseen. There the
//! hooks stand where preemption is off all the same: on the waking of a new process, which happens
//! under the lock of a run queue, and on the exit and exec events in the form of the tracing files.
//!
//! In the kernel:
//! - Preemption in tracepoints:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/include/linux/tracepoint.h?h=v7.2.13#n315>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/trace/bpf_trace.c?h=v7.2.13#n2119>
//! - The form of the tracing files:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/include/trace/perf.h?h=v7.2.13#n74>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/trace/bpf_trace.c?h=v7.2.13#n117>

use std::path::Path;
use std::thread;

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Program, ProgramError, RawTracePoint, TracePoint};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Error;
use super::preflight::{Refusal, kernel_release, parse_release};

/// Tracepoints can be preempted from this kernel on.
const PREEMPTIBLE: (u32, u32) = (7, 0);

/// The places where the kernel shows its tracepoints.
pub(super) const TRACE_FS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The purpose of a hook: its name in pins and reports.
pub(super) type Role = &'static str;

/// The hooks that every tracker has, deaths first.
pub(super) const ROLES: [Role; 6] = ["exit", "fork", "exec", "rename", "signal", "oom"];

/// Stands in for the exit hook where that was skipped; only where tracepoints can be preempted.
pub(super) const STAND_IN: Role = "exit-stand-in";

/// One program at one tracepoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    pub(super) role: Role,
    /// Its name in the kernel half.
    pub(super) program: &'static str,
    point: Point,
}

#[derive(Debug, Clone, Copy)]
enum Point {
    /// With the kernel's own arguments.
    Typed(&'static str),
    /// In the form of the tracing files: category and name.
    Traced(&'static str, &'static str),
}

/// Returns whether the running kernel can preempt tracepoints.
pub(super) fn is_preemptible() -> bool {
    parse_release(&kernel_release()).is_some_and(|version| version >= PREEMPTIBLE)
}

/// Returns the hooks in the order in which they are attached: deaths first, so that no process can
/// be learnt and then die unseen. Of the two for deaths the later one finds the death claimed.
pub(super) fn hooks(preemptible: bool) -> Vec<Hook> {
    let hook = |role, program, point| Hook {
        role,
        program,
        point,
    };
    let exit = Point::Typed("sched_process_exit");
    let mut hooks = if preemptible {
        vec![
            hook(
                "exit",
                "exit_guarded",
                Point::Traced("sched", "sched_process_exit"),
            ),
            hook(STAND_IN, "exit", exit),
            hook("fork", "fork_waking", Point::Typed("sched_wakeup_new")),
            hook(
                "exec",
                "exec_guarded",
                Point::Traced("sched", "sched_process_exec"),
            ),
        ]
    } else {
        vec![
            hook("exit", "exit", exit),
            hook("fork", "fork", Point::Typed("sched_process_fork")),
            hook("exec", "exec", Point::Typed("sched_process_exec")),
        ]
    };
    hooks.push(hook("rename", "rename", Point::Typed("task_rename")));
    hooks.push(hook("signal", "signal", Point::Typed("signal_generate")));
    hooks.push(hook("oom", "oom", Point::Typed("mark_victim")));
    hooks
}

/// Learns what is older than tracking and dies while that starts. It is attached between the hooks
/// for deaths, so that no process can be learnt and then die unseen, and the one for forks.
pub(super) const LEARNER: Hook = Hook {
    role: "learn",
    program: "learn_by_exit",
    point: Point::Typed("sched_process_exit"),
};

impl Hook {
    /// Loads the program.
    pub(super) fn load(&self, program: &mut Program, btf: &aya::Btf) -> Result<(), Error> {
        let failed = |error| Error::load(self.program, &error);
        match self.point {
            Point::Typed(tracepoint) => {
                let program: &mut BtfTracePoint = program.try_into().map_err(failed)?;
                program.load(tracepoint, btf).map_err(failed)
            }
            Point::Traced(..) => {
                let program: &mut TracePoint = program.try_into().map_err(failed)?;
                program.load().map_err(failed)
            }
        }
    }

    /// Attaches the loaded program for as long as the link lives.
    pub(super) fn attach(&self, program: &mut Program) -> Result<FdLink, Error> {
        let failed = |error| Error::load(self.program, &error);
        match self.point {
            Point::Typed(_) => {
                let program: &mut BtfTracePoint = program.try_into().map_err(failed)?;
                let link = program.attach().map_err(failed)?;
                Ok(program.take_link(link).map_err(failed)?.into())
            }
            Point::Traced(category, name) => {
                let program: &mut TracePoint = program.try_into().map_err(failed)?;
                let link = with_trace_fs(|| program.attach(category, name))?;
                let link = link.map_err(|error| self.refused(&error))?;
                let link = program.take_link(link).map_err(failed)?;
                FdLink::try_from(link).map_err(|error| Error::load(self.program, &error))
            }
        }
    }

    fn refused(&self, error: &ProgramError) -> Error {
        let is_denied = match error {
            ProgramError::SyscallError(error) => matches!(
                error.io_error.raw_os_error(),
                Some(libc::EACCES | libc::EPERM)
            ),
            _ => false,
        };
        if is_denied {
            Refusal::NoTracepoints.into()
        } else {
            Error::load(self.program, error)
        }
    }
}

/// Returns the name of the closer in the kernel half.
pub(super) fn closer(preemptible: bool) -> &'static str {
    if preemptible {
        "closer_guarded"
    } else {
        "closer"
    }
}

/// Loads the closer.
pub(super) fn load_closer(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::TracePoint(program) => program.load(),
        program => <&mut RawTracePoint>::try_from(program)?.load(),
    }
}

/// Runs `attach` where the tracing files can be seen. Where nobody has mounted them, that is a
/// mount namespace of one thread, which ends with it: this host's mounts stay as they are.
pub(super) fn with_trace_fs<T: Send>(attach: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let is_mounted = |root: &&str| Path::new(root).join("events/sched").is_dir();
    if TRACE_FS.iter().any(is_mounted) {
        return Ok(attach());
    }
    let attached = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&str>;
            mount(
                nothing,
                "/",
                nothing,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                nothing,
            )?;
            mount(
                Some("tracefs"),
                TRACE_FS[0],
                Some("tracefs"),
                MsFlags::empty(),
                nothing,
            )?;
            nix::Result::Ok(attach())
        });
        thread.join()
    });
    match attached {
        Ok(Ok(attached)) => Ok(attached),
        Ok(Err(errno)) => Err(Error::NoTraceFs(errno.into())),
        Err(_) => Err(Error::NoTraceFs(std::io::Error::other("a thread failed"))),
    }
}
