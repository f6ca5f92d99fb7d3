//! `newborns N FILE`: role `root` and the N processes that it creates wait in user code, in a page
//! fault that is not answered, and so without a system call that could return. On the second line
//! the page comes, and each of them forks one child, whose first instructions write into FILE. All
//! of them are of a user who owns nothing, so that a killer that lacks the right may not signal
//! them.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::args::Args;
use crate::process::{exit_now, until};
use crate::shared::words;
use crate::talk::{begin, commands, fail, next_step, report};

const PROCESSES_MAX: u32 = 1_400;
const STACK_BYTES: usize = 64 * 1024;
const PAGE_BYTES: usize = 4096;
const DEADLINE_S: u32 = 60;
/// The user who owns nothing.
const NOBODY: libc::c_long = 65_534;

/// From `linux/userfaultfd.h`.
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const REGISTER_MODE_MISSING: u64 = 1;

/// The page that is missing, and what each process has to itself.
static MISSING: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static PLACES: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());
static WAITING: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Two words of FILE for each process: the pid of its child, written by the kernel before the child
/// can run, and what the child has written.
struct Place {
    child: &'static AtomicU64,
    has_run: &'static AtomicU64,
    stack_top: *mut libc::c_void,
}

pub(crate) fn newborns(args: &mut Args) -> i32 {
    let count = args.count("processes", PROCESSES_MAX) as usize + 1;
    let shared = words(&args.path("file"), 2 * count);
    begin();
    // The limit that holds for users, as far up as it goes; that of the sandbox is the one that
    // counts.
    let limit = getrlimit(Resource::RLIMIT_NPROC);
    let raised = limit.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NPROC, hard, hard));
    raised.unwrap_or_else(|errno| fail(&format!("limit of processes: {errno}")));
    let page = map(PAGE_BYTES);
    let faults = catch_faults(page);
    let stacks = map(count * STACK_BYTES);
    let places = shared.chunks(2).zip(1..).map(|(pair, number)| Place {
        child: &pair[0],
        has_run: &pair[1],
        // SAFETY: within the mapping, or one past its end.
        stack_top: unsafe { stacks.add(number * STACK_BYTES) }.cast(),
    });
    let places: &'static mut [Place] = Vec::leak(places.collect());
    MISSING.store(page, Ordering::SeqCst);
    COUNT.store(count as u64, Ordering::SeqCst);
    PLACES.store(places.as_mut_ptr(), Ordering::SeqCst);
    let root = share_memory(&places[0], create_others, ptr::null_mut());
    report(Pid::from_raw(root), "root");
    until(|| WAITING.load(Ordering::SeqCst) == count as u64);
    next_step();
    let zero_page = [page as u64, PAGE_BYTES as u64, 0, 0];
    call(faults, UFFDIO_ZEROPAGE, &zero_page);
    commands()
}

fn map(bytes: usize) -> *mut u8 {
    let length = bytes.try_into().unwrap_or_else(|_| fail("nothing to map"));
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice, never unmapped.
    let start = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) };
    start
        .unwrap_or_else(|errno| fail(&format!("mmap: {errno}")))
        .as_ptr()
        .cast()
}

/// Makes whoever touches the page from now on wait until it is there.
fn catch_faults(page: *mut u8) -> i32 {
    // SAFETY: no memory is passed.
    let faults = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let Ok(faults @ 0..) = i32::try_from(faults) else {
        fail(&format!("userfaultfd: {}", Errno::last()));
    };
    call(faults, UFFDIO_API, &[UFFD_API, 0, 0]);
    let range = [page as u64, PAGE_BYTES as u64, REGISTER_MODE_MISSING, 0];
    call(faults, UFFDIO_REGISTER, &range);
    faults
}

fn call<const N: usize>(faults: i32, request: libc::c_ulong, argument: &[u64; N]) {
    let mut argument = *argument;
    // SAFETY: the argument has the size that is part of the request, and outlives the call.
    if unsafe { libc::ioctl(faults, request, argument.as_mut_ptr()) } != 0 {
        fail(&format!("userfaultfd: {}", Errno::last()));
    }
}

/// Makes a process, not a thread, that shares the memory and so the missing page. It runs on a
/// stack of its own, and calls nothing that keeps state in a thread.
fn share_memory(
    place: &Place,
    body: extern "C" fn(*mut libc::c_void) -> libc::c_int,
    argument: *mut libc::c_void,
) -> i32 {
    // SAFETY: the stack is mapped for ever and no other process runs on it.
    unsafe {
        libc::clone(
            body,
            place.stack_top,
            libc::CLONE_VM | libc::SIGCHLD,
            argument,
        )
    }
}

extern "C" fn create_others(_: *mut libc::c_void) -> libc::c_int {
    // The bare system call: that of libc would do it for every thread it knows of, and knows of
    // none here. SAFETY: no memory is passed.
    if unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) } != 0 {
        return 4;
    }
    let places = PLACES.load(Ordering::SeqCst);
    let count = COUNT.load(Ordering::SeqCst) as usize;
    for index in 1..count {
        // SAFETY: stored with that many elements, which live for ever.
        let place = unsafe { &*places.add(index) };
        if share_memory(place, wait_and_fork, ptr::from_ref(place).cast_mut().cast()) < 0 {
            return 4;
        }
    }
    wait_and_fork(places.cast())
}

extern "C" fn wait_and_fork(place: *mut libc::c_void) -> libc::c_int {
    // SAFETY: an element of the places, which live for ever. An alarm of this process alone.
    let place = unsafe {
        libc::alarm(DEADLINE_S);
        &*place.cast::<Place>()
    };
    WAITING.fetch_add(1, Ordering::SeqCst);
    // SAFETY: mapped for ever; where it is missing this waits.
    unsafe { MISSING.load(Ordering::SeqCst).read_volatile() };
    let flags = libc::c_long::from(libc::CLONE_PARENT_SETTID | libc::SIGCHLD);
    // SAFETY: a fork; the child has a copy of this stack. The kernel writes the child's pid to a
    // word that is mapped for ever.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, place.child.as_ptr(), 0, 0) } {
        0 => {
            place.has_run.store(1, Ordering::SeqCst);
            exit_now(0)
        }
        -1 => 4,
        _ => 0,
    }
}
