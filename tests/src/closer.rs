//! Whether a program is attached to the return of every system call: by `bpf(2)`, from outside
//! lifemon.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::bpf::Traces;

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const RAW_TRACEPOINT: u32 = 1;
const NAME_BYTES: usize = 64;

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
    // As long as padding would be: the kernel wants what it does not know to be 0.
    rest: [u32; 31],
}

/// The part of `union bpf_attr` for this call.
#[repr(C)]
struct InfoByFd {
    fd: i32,
    info_bytes: u32,
    info: u64,
}

/// Links to the raw tracepoint `sys_exit` on this host.
#[must_use]
pub fn attached() -> usize {
    let names = Traces::link_ids().into_iter().filter_map(tracepoint_of);
    names.filter(|name| name == "sys_exit").count()
}

/// The raw tracepoint of a link; `None` where it is of another kind, gone by now, or not in place yet.
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
