//! `sqpoll`: a child whose ring has a kernel thread, `iou-sqp-N`, which belongs to the process and
//! is the last of it to exit, with a status of its own.

use nix::errno::Errno;
use nix::unistd::getpid;
use serde_json::json;

use crate::process::{spawn, until};
use crate::talk::{begin, commands, reap, report, say, skip};

const ENTRIES: u32 = 8;
/// `IORING_SETUP_SQPOLL`, from `linux/io_uring.h`.
const SETUP_SQPOLL: u32 = 1 << 1;
/// `sizeof(struct io_uring_params)` in words; `flags` is the third, `sq_thread_idle` the fifth.
const PARAMS_WORDS: usize = 30;
const FLAGS: usize = 2;
const SQ_THREAD_IDLE: usize = 4;
const IDLE_MS: u32 = 60_000;

/// Makes role `worker`, which sets the ring up, says so, and exits with 9 on the second line.
pub(crate) fn sqpoll() -> i32 {
    begin();
    let up = crate::pipe::Pipe::new();
    let down = crate::pipe::Pipe::new();
    let worker = spawn(|| {
        up.send(set_up_ring().map_or_else(|errno| errno as i32, |()| 0));
        down.receive()
    });
    match up.receive() {
        0 => {
            report(worker, "worker");
            say(&json!({"thread": kernel_thread(worker.as_raw())}));
            crate::talk::next_step();
        }
        errno => skip(&format!("io_uring_setup: {}", Errno::from_raw(errno))),
    }
    down.send(9);
    reap(worker);
    commands()
}

/// Makes a ring, which stays open until the process ends.
fn set_up_ring() -> nix::Result<()> {
    let mut params = [0_u32; PARAMS_WORDS];
    params[FLAGS] = SETUP_SQPOLL;
    params[SQ_THREAD_IDLE] = IDLE_MS;
    // SAFETY: the array has the size of the struct that the kernel reads and fills.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) };
    Errno::result(ring)?;
    let me = getpid().as_raw();
    until(|| kernel_thread(me).is_some());
    Ok(())
}

/// Returns the thread of this process that is not its leader.
fn kernel_thread(pid: i32) -> Option<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let ids = threads
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.into_iter().find(|thread| *thread != pid)
}
