//! Whether a program is attached to the return of every system call: by `bpf(2)`, from outside
//! lifemon. And the priority with which a test can see that in time.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::bpf::Traces;
use crate::wait::poll;
use crate::{Pidfd, Running, proc};

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const RAW_TRACEPOINT: u32 = 1;
const NAME_BYTES: usize = 64;
const STEP: Duration = Duration::from_micros(50);
/// How long a link may be coming.
const ATTACHING: Duration = Duration::from_millis(500);

/// The part of `struct bpf_link_info` that raw tracepoints use.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    name: u64,
    name_bytes: u32,
    rest: [u32; 32],
}

/// The part of `union bpf_attr` for this call.
#[repr(C)]
struct InfoByFd {
    fd: i32,
    info_bytes: u32,
    info: u64,
}

/// How a link is there.
enum Link {
    /// Its number is taken; what it is to run is being put in place.
    Coming,
    /// Runs at this raw tracepoint.
    At(String),
    /// Of another kind, or gone by now.
    Other,
}

/// Links to the raw tracepoint `sys_exit` on this host.
#[must_use]
pub fn attached() -> usize {
    let links = Traces::link_ids().into_iter().map(link);
    let names = links.filter(|link| matches!(link, Link::At(name) if name == "sys_exit"));
    names.count()
}

/// Whether some link is about to be.
fn is_one_coming() -> bool {
    let mut links = Traces::link_ids().into_iter().map(link);
    links.any(|link| matches!(link, Link::Coming))
}

fn link(id: u32) -> Link {
    let request = [id, 0, 0];
    // SAFETY: the attributes live as long as the call and have the size that is passed.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_GET_FD_BY_ID,
            request.as_ptr(),
            size_of_val(&request),
        )
    };
    match i32::try_from(fd) {
        Ok(fd @ 0..) => raw_tracepoint(fd).map_or(Link::Other, Link::At),
        _ if Errno::last() == Errno::EAGAIN => Link::Coming,
        _ => Link::Other,
    }
}

/// The tracepoint of the link that has just been opened, if it is of that kind.
fn raw_tracepoint(fd: i32) -> Option<String> {
    // SAFETY: a descriptor that was just made for us and that nobody else owns.
    let link = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut name = [0_u8; NAME_BYTES];
    let mut info = LinkInfo {
        name: name.as_mut_ptr() as u64,
        name_bytes: NAME_BYTES as u32,
        ..LinkInfo::default()
    };
    let request = InfoByFd {
        fd: link.as_raw_fd(),
        info_bytes: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attributes, the info and the name that they point to outlive the call, with the
    // sizes that are passed.
    let told = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const request,
            size_of::<InfoByFd>(),
        )
    };
    if told != 0 || info.kind != RAW_TRACEPOINT {
        return None;
    }
    let length = name.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&name[..length]).into_owned())
}

/// Stops lifemon while it attaches the closer, looking twenty times a millisecond; whether it stands
/// still with the closer attached. False when it has ended without.
///
/// # Panics
/// When it is no child of this process, or was waited for.
#[must_use]
#[track_caller]
pub fn stop_when_attached(lifemon: &Running) -> bool {
    let pid = lifemon.pid();
    let lifemon = Pidfd::open(pid).expect("a lifemon that was not waited for");
    let _priority = Priority::raise();
    while proc::is_running(pid) {
        if attached() > 0 || is_one_coming() {
            // What the kernel is doing for it goes on, no other thread of it does.
            lifemon
                .signal(Signal::SIGSTOP)
                .expect("it was not waited for");
            if poll(ATTACHING, || (attached() > 0).then_some(())).is_some() {
                return true;
            }
            // That was another link.
            lifemon
                .signal(Signal::SIGCONT)
                .expect("it was not waited for");
        }
        std::thread::sleep(STEP);
    }
    false
}

/// Real-time priority of the calling thread until it is dropped.
#[derive(Debug)]
struct Priority(());

impl Priority {
    /// Above what lifemon gives itself.
    fn raise() -> Self {
        assert!(schedule(libc::SCHED_FIFO, 5), "real-time priority");
        Self(())
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER, 0);
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // Children of this thread start as everybody does.
    let policy = policy | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is this thread; the parameters live until the call returns.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}
