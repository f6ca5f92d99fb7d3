//! A process that serves strangers and needs nothing but the descriptors it has: what it gives up,
//! whoever takes it over does not get.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    Scope,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as ArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule,
};

/// The system calls that are left: memory, time, waiting, and what is done with a descriptor that
/// is open. All others fail with EPERM.
const CALLS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Those of which one argument has to be one of these.
const CALLS_WITH: &[(libc::c_long, u8, &[u64])] = &[
    (
        libc::SYS_fcntl,
        1,
        &[
            libc::F_GETFD as u64,
            libc::F_SETFD as u64,
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
            libc::F_DUPFD_CLOEXEC as u64,
        ],
    ),
    (libc::SYS_ioctl, 1, &[libc::FIONBIO]),
];

/// Leaves this thread, and all that it starts, the descriptors that are open: no path, no TCP port,
/// no abstract socket of others, no signal to others (Landlock, as far as this kernel has it), and
/// of the system calls only those on what is open already (seccomp).
///
/// # Errors
/// When the kernel refuses the filter. That it has no Landlock is none.
pub(crate) fn enter() -> io::Result<()> {
    // Before the filter, which leaves no way to do it.
    keep_away_from_files().map_err(io::Error::other)?;
    let architecture = ARCH.try_into().map_err(io::Error::other)?;
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = rules().and_then(|rules| {
        SeccompFilter::new(rules, eperm, SeccompAction::Allow, architecture)?.try_into()
    });
    let program: BpfProgram = filter.map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// Returns what is left, with the conditions of each call.
fn rules() -> Result<BTreeMap<libc::c_long, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<_, _> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let only = |argument, value| {
        let is_it = SeccompCondition::new(argument, ArgLen::Dword, SeccompCmpOp::Eq, value)?;
        SeccompRule::new(vec![is_it])
    };
    for (call, argument, values) in CALLS_WITH {
        let values = values.iter().map(|value| only(*argument, *value));
        rules.insert(*call, values.collect::<Result<_, _>>()?);
    }
    // To itself alone: this is how a process aborts.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![only(0, own)?]);
    Ok(rules)
}

fn keep_away_from_files() -> Result<(), landlock::RulesetError> {
    let abi = ABI::V6;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};
    use std::process::Command;
    use std::thread;

    /// Does `work` in a thread of its own, which alone is restricted.
    fn restricted<T: Send + 'static>(
        restrict: impl FnOnce() + Send + 'static,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let thread = thread::spawn(|| {
            restrict();
            work()
        });
        thread.join().expect("it does not panic")
    }

    /// Sends the null signal to process 1.
    fn signal_init() -> Option<io::Error> {
        // SAFETY: the call takes no pointer, and the null signal does nothing.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) };
        (result < 0).then(io::Error::last_os_error)
    }

    #[test]
    fn what_is_open_can_be_used_and_nothing_else_opened() {
        let (mut here, mut there) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let (written, errors) = restricted(
            || enter().expect("it can be entered"),
            move || {
                use std::io::{Read as _, Write as _};
                let mut read = [0; 2];
                let written = there
                    .write_all(b"hi")
                    .and_then(|()| here.read_exact(&mut read));
                let errors = [
                    File::open("/dev/null").err(),
                    UdpSocket::bind("127.0.0.1:0").err(),
                    TcpListener::bind("127.0.0.1:0").err(),
                    Command::new("/bin/true").spawn().err(),
                    signal_init(),
                ];
                (
                    written,
                    errors.map(|error| error.and_then(|error| error.raw_os_error())),
                )
            },
        );
        assert!(written.is_ok(), "{written:?}");
        assert_eq!(errors, [Some(libc::EPERM); 5]);
    }

    #[test]
    fn files_are_out_of_reach_by_landlock_alone() {
        let error = restricted(
            || keep_away_from_files().expect("it can be done"),
            || File::open("/dev/null").err(),
        );
        // SAFETY: the version is asked for, no pointer is given.
        let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
        let expected = (abi > 0).then_some(libc::EACCES);
        assert_eq!(error.and_then(|error| error.raw_os_error()), expected);
    }
}
