//! Whether a program is attached to the return of every system call: by `bpf(2)`, from outside
//! lifemon.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::bpf::Traces;

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
/// Kinds of links, and of what the second is linked to.
const RAW_TRACEPOINT: u32 = 1;
const PERF_EVENT: u32 = 7;
const OF_TRACEPOINT: u32 = 5;
const NAME_BYTES: usize = 64;

/// `struct bpf_link_info`: its head, and words that depend on the kind.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    // As many as make it longer than any: the kernel wants what it does not know to be 0.
    words: [u64; 16],
}

/// The part of `union bpf_attr` for this call.
#[repr(C)]
struct InfoByFd {
    fd: i32,
    info_bytes: u32,
    info: u64,
}

/// Links to the tracepoint `sys_exit` on this host.
#[must_use]
pub fn attached() -> usize {
    let names = Traces::link_ids().into_iter().filter_map(tracepoint_of);
    names.filter(|name| name == "sys_exit").count()
}

/// Returns the tracepoint of a link; `None` where it is of another kind, gone by now, or not in
/// place yet.
fn tracepoint_of(id: u32) -> Option<String> {
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
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a descriptor that was just made for us and that nobody else owns.
    let link = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut name = [0_u8; NAME_BYTES];
    let place = [name.as_mut_ptr() as u64, NAME_BYTES as u64];
    // Where the name goes is the first thing of a raw tracepoint, and the second of a perf event.
    [0, 1].into_iter().find_map(|at| {
        let mut info = LinkInfo::default();
        info.words[at..at + place.len()].copy_from_slice(&place);
        fill(&link, &mut info)?;
        let is_named = match info.kind {
            RAW_TRACEPOINT => at == 0,
            PERF_EVENT => at == 1 && info.words[0] as u32 == OF_TRACEPOINT,
            _ => false,
        };
        let length = name.iter().position(|byte| *byte == 0)?;
        is_named.then(|| String::from_utf8_lossy(&name[..length]).into_owned())
    })
}

/// Asks the kernel about a link.
fn fill(link: &File, info: &mut LinkInfo) -> Option<()> {
    let request = InfoByFd {
        fd: link.as_raw_fd(),
        info_bytes: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(info) as u64,
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
    (told == 0).then_some(())
}
