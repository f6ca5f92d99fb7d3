//! The `bpf(2)` calls that aya does not offer: whole maps in batches, a test run, deleting from an
//! array of maps, what the kernel counts about a program. Nothing here knows what the maps mean.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{
    PERF_FLAG_FD_CLOEXEC, bpf_attach_type, bpf_cmd, bpf_prog_info, perf_event_attr, perf_type_id,
};
use lifemon_ebpf::ProcessId;

/// Types whose bytes may cross to the kernel: no padding, no pointers, any bytes valid.
///
/// # Safety
/// The implementor is `repr(C)`, without padding, and valid for every bit pattern.
pub(super) unsafe trait Plain: Copy + Default {}

// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: laid out in lifemon-ebpf without padding; integers only.
unsafe impl Plain for lifemon_ebpf::ProcessId {}
// SAFETY: as above.
unsafe impl Plain for lifemon_ebpf::Record {}
// SAFETY: as above.
unsafe impl Plain for lifemon_ebpf::MemberKey {}
// SAFETY: as above.
unsafe impl Plain for lifemon_ebpf::Membership {}
// SAFETY: as above.
unsafe impl Plain for lifemon_ebpf::Event {}

// SAFETY: as above.
unsafe impl Plain for lifemon_ebpf::LogEntry {}
// SAFETY: as above.
unsafe impl Plain for lifemon_ebpf::LogShare {}
// SAFETY: as above.
unsafe impl Plain for lifemon_ebpf::Traits {}

/// Entries asked for in the first batch; doubled when one bucket of the map holds more.
const FIRST_BATCH: usize = 4_096;
/// A bucket that needs more than this is no map of ours.
const LARGEST_BATCH: usize = 1 << 20;

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct StatsAttr {
    kind: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct PinnedAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct IteratorAttr {
    link_fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointAttr {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<A>(command: bpf_cmd, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is a live, zero-initialised structure of the given size, laid out as the
    // kernel defines it for `command`; every pointer in it is to live memory of the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<A>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Returns the value under `key`, if there is one.
pub(super) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address(key),
        value: std::ptr::from_mut(&mut value) as u64,
        ..ElementAttr::default()
    };
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Inserts or replaces.
pub(super) fn update<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    write(map, key, value, 0)
}

/// Inserts; false when there is one already.
pub(super) fn insert<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    match write(map, key, value, BPF_NOEXIST) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn write<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address(key),
        value: address(value),
        flags,
        ..ElementAttr::default()
    };
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Deletes; whether there was something to delete.
pub(super) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address(key),
        ..ElementAttr::default()
    };
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns every entry of a hash map, or of an array. Each bucket is read under its lock, and
/// entries do not change buckets: what is in the map during the whole call is in the result,
/// exactly once.
pub(super) fn read_all<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut size = FIRST_BATCH;
    let (mut keys, mut values) = (vec![K::default(); size], vec![V::default(); size]);
    let (mut position, mut next, mut started) = (0_u32, 0_u32, false);
    loop {
        let mut attr = BatchAttr {
            in_batch: if started { address(&position) } else { 0 },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: size as u32,
            map_fd: raw(map),
            ..BatchAttr::default()
        };
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        let code = result.as_ref().err().and_then(io::Error::raw_os_error);
        if code == Some(libc::ENOSPC) && size < LARGEST_BATCH {
            size *= 2;
            keys.resize(size, K::default());
            values.resize(size, V::default());
            continue;
        }
        let is_last = code == Some(libc::ENOENT);
        if !is_last {
            result?;
        }
        let found = (attr.count as usize).min(size);
        entries.extend(
            keys[..found]
                .iter()
                .copied()
                .zip(values[..found].iter().copied()),
        );
        if is_last {
            return Ok(entries);
        }
        position = next;
        started = true;
    }
}

/// Reads what an iterator prints, as items of one type; that is what makes it run.
pub(super) fn read_items<T: Plain>(mut iterator: File) -> io::Result<Vec<T>> {
    let mut bytes = Vec::new();
    iterator.read_to_end(&mut bytes)?;
    let items = bytes.chunks_exact(size_of::<T>());
    // SAFETY: as long as the type, which is valid for any bytes.
    let items = items.map(|item| unsafe { item.as_ptr().cast::<T>().read_unaligned() });
    Ok(items.collect())
}

/// Opens a pinned map, program or link.
pub(super) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinnedAttr {
        path: path.as_ptr() as u64,
        ..PinnedAttr::default()
    };
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a tracepoint, as its arguments are; detached with the descriptor.
pub(super) fn attach_to_raw_tracepoint(
    program: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<OwnedFd> {
    let mut attr = RawTracepointAttr {
        name: name.as_ptr() as u64,
        prog_fd: raw(program),
        pad: 0,
    };
    let fd = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a tracepoint in the form of the tracing files, by its number there;
/// detached with the descriptor.
pub(super) fn attach_to_tracepoint(program: BorrowedFd<'_>, number: u64) -> io::Result<OwnedFd> {
    const ALL_PROCESSES: libc::pid_t = -1;
    // A tracepoint passes its programs on every processor, whichever the event is of.
    const FIRST_PROCESSOR: libc::c_int = 0;
    const NO_GROUP: libc::c_int = -1;
    // SAFETY: integers and unions of integers; all zero is valid and asks for nothing.
    let mut event: perf_event_attr = unsafe { std::mem::zeroed() };
    event.type_ = perf_type_id::PERF_TYPE_TRACEPOINT as u32;
    event.size = size_of::<perf_event_attr>() as u32;
    event.config = number;
    // SAFETY: `event` lives, and says its size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const event,
            ALL_PROCESSES,
            FIRST_PROCESSOR,
            NO_GROUP,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut attr = LinkAttr {
        prog_fd: raw(program),
        target_fd: raw(event.as_fd()),
        attach_type: bpf_attach_type::BPF_PERF_EVENT as u32,
        flags: 0,
    };
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates an iterator of a link; reading it to its end runs its program.
pub(super) fn create_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = IteratorAttr {
        link_fd: raw(link),
        ..IteratorAttr::default()
    };
    let fd = bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a raw tracepoint program once, for one process: its arguments are the pid and the start.
pub(super) fn run_for(program: BorrowedFd<'_>, process: &ProcessId) -> io::Result<u32> {
    let args = [u64::from(process.pid), process.start_ns];
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        ctx_size_in: size_of_val(&args) as u32,
        ctx_in: args.as_ptr() as u64,
        ..TestRunAttr::default()
    };
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}

/// Returns what the kernel knows and counts about a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: integers and addresses only; all zero is valid and means "nothing wanted".
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = InfoAttr {
        bpf_fd: raw(program),
        info_len: size_of::<bpf_prog_info>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Lets the kernel measure the run time of all programs until the descriptor is closed.
pub(super) fn enable_stats() -> io::Result<OwnedFd> {
    let fd = bpf(bpf_cmd::BPF_ENABLE_STATS, &mut StatsAttr::default())?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns when every program that was running at the time of the call has ended, so that all that
/// run from now on see what was written to shared memory before.
///
/// The kernel's `membarrier` waits for a grace period, and programs run inside one. Where it is
/// refused (full dynticks), deleting from an array of maps waits in the same way; the caller falls
/// back by doing that anyway when it takes or gives back a slot.
pub(super) fn wait_for_running_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
