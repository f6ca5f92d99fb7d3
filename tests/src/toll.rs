//! Holds up every call of one kind that a program makes to the kernel, until the test lets it go
//! on: so that a race which takes microseconds happens each time. By a filter of seccomp, which the
//! program cannot tell from a slow machine.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::{DEADLINE, Running, proc};

const SET_MODE_FILTER: libc::c_long = 1;
const NEW_LISTENER: libc::c_long = 1 << 3;
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ASK: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;
const GO_ON: u32 = 1;
/// In ms.
const STEP: u8 = 20;

/// Room for one descriptor in a message, aligned as the kernel wants it.
type Control = [u64; 3];

/// Where the calls of a command stop. Made before it is started.
#[derive(Debug)]
pub struct Toll {
    /// The near end of the way on which the listener comes.
    channel: OwnedFd,
    listener: Option<OwnedFd>,
}

/// A call that waits.
#[derive(Debug)]
pub struct HeldUp {
    id: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Toll {
    /// Lets the command stop at each of these calls.
    ///
    /// # Panics
    /// When there are no sockets.
    #[must_use]
    pub fn on(command: &mut Command, call: libc::c_long) -> Self {
        let mut ends: [RawFd; 2] = [0; 2];
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: room for two descriptors.
        let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
        assert_eq!(made, 0, "socketpair: {}", Errno::last());
        // SAFETY: two descriptors that were just made for us and that nobody else owns.
        let [near, far] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let number = u32::try_from(call).expect("the number of a call");
        let prepare = move || send(far.as_raw_fd(), listen(number)?);
        // SAFETY: between fork and exec it makes system calls and touches its own stack.
        unsafe { command.pre_exec(prepare) };
        Self {
            channel: near,
            listener: None,
        }
    }

    /// Waits for the next call of this run, or `None` once it has ended.
    ///
    /// # Panics
    /// When neither comes within the default deadline.
    #[track_caller]
    pub fn next(&mut self, running: &Running) -> Option<HeldUp> {
        let listener = match &self.listener {
            Some(listener) => listener,
            None => self.listener.insert(receive(&self.channel)),
        };
        let begun = Instant::now();
        loop {
            let mut sources = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut sources, STEP).expect("a listener that can be polled");
            if ready > 0 && sources[0].revents()?.contains(PollFlags::POLLIN) {
                return take(listener);
            }
            // Older kernels say that nobody can call any more only when it has been reaped.
            if ready > 0 || !proc::is_running(running.pid()) {
                return None;
            }
            assert!(begun.elapsed() < DEADLINE, "neither a call nor the end");
        }
    }

    /// Lets a call go on, as if nothing had been.
    pub fn let_go(&self, call: &HeldUp) {
        let mut answer = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: GO_ON,
        };
        if let Some(listener) = &self.listener {
            // SAFETY: an answer has the size that is part of the request. Who was killed meanwhile
            // does not hear it.
            unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer) };
        }
    }

    /// Lets all calls go on until the run ends.
    ///
    /// # Panics
    /// As [`Toll::next`].
    #[track_caller]
    pub fn let_all_go(&mut self, running: &Running) {
        while let Some(call) = self.next(running) {
            self.let_go(&call);
        }
    }
}

/// Takes the call that waits; `None` when its process was killed in the middle of it.
fn take(listener: &OwnedFd) -> Option<HeldUp> {
    // SAFETY: integers alone; the kernel wants them all to be 0.
    let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: room for a notice, which has the size that is part of the request.
    let taken = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut notice) };
    (taken == 0).then_some(HeldUp {
        id: notice.id,
        arguments: notice.data.args,
    })
}

/// Makes this process stop at the call from here on; returns the descriptor that hears of it.
fn listen(call: u32) -> io::Result<RawFd> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, call),
        step(RETURN, 0, 0, ASK),
        step(RETURN, 0, 0, ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its steps outlive the call.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            NEW_LISTENER,
            &raw const program,
        )
    };
    match i32::try_from(listener) {
        Ok(listener @ 0..) => Ok(listener),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Prepares a message of one byte with room for one descriptor.
fn message(byte: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: integers and pointers; all zero is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = byte;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    message
}

fn send(channel: RawFd, descriptor: RawFd) -> io::Result<()> {
    let (mut byte, mut control) = (0_u8, Control::default());
    let mut byte = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let message = message(&mut byte, &mut control);
    // SAFETY: the control block has room for a header and one descriptor, and outlives the call.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
        libc::CMSG_DATA(header)
            .cast::<RawFd>()
            .write_unaligned(descriptor);
        libc::sendmsg(channel, &raw const message, 0)
    };
    if sent == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[track_caller]
fn receive(channel: &OwnedFd) -> OwnedFd {
    let (mut byte, mut control) = (0_u8, Control::default());
    let mut byte = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let mut message = message(&mut byte, &mut control);
    // SAFETY: the message and all that it points to outlive the call.
    let got = unsafe {
        libc::recvmsg(
            channel.as_raw_fd(),
            &raw mut message,
            libc::MSG_CMSG_CLOEXEC,
        )
    };
    assert_eq!(got, 1, "no listener: {}", Errno::last());
    // SAFETY: what was received is a header and one descriptor, if there is a header; the
    // descriptor is new and nobody else owns it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!header.is_null(), "a message without a listener");
        OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned())
    }
}
