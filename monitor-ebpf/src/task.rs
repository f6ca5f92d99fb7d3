//! All reads of kernel structures: a task as the hooks see it. A field that this kernel does not
//! have reads as 0.

use aya_ebpf::helpers::{
    bpf_get_current_task_btf,
    generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str},
};
use lifemon_ebpf::{ProcessId, offsets::MISSING};

const PF_EXITING: u32 = 0x0000_0004;
const PF_KTHREAD: u32 = 0x0020_0000;
/// `signal->flags`: the group is exiting, and `group_exit_code` is its status.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// Index of the session in `signal->pids`.
const PIDTYPE_SID: u32 = 3;

/// Returns the byte that a bit is in.
#[inline(always)]
fn bit_byte(bit: u32) -> u32 {
    if bit == MISSING { MISSING } else { bit / 8 }
}

/// Reads one field of `OFFSETS` where it stands: the whole would go over the stack.
macro_rules! offset {
    ($field:ident) => {{
        let offsets = (&raw const crate::maps::OFFSETS).cast::<lifemon_ebpf::offsets::Offsets>();
        // SAFETY: `Global` is transparent over its value; volatile, because userspace sets it.
        unsafe { (&raw const (*offsets).$field).read_volatile() }
    }};
}
pub(crate) use offset;

/// A pointer to kernel memory that is read field by field, with faults caught.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(pub(crate) *const u8);

impl Kernel {
    /// Returns the value at `offset`, or 0 when there is no such field or the pointer is bad.
    #[inline(always)]
    pub(crate) fn read<T: Copy + Default>(self, offset: u32) -> T {
        if offset == MISSING {
            return T::default();
        }
        let mut value = T::default();
        // SAFETY: the helper checks the address and fills the value with zeros for a bad one. What
        // it returns says the same once more, at the price of a branch for the verifier to follow.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut value).cast(),
                size_of::<T>() as u32,
                self.0.add(offset as usize).cast(),
            );
        }
        value
    }

    /// Reads the text that begins here, up to its end or what fits; `text` is all zero before.
    #[inline(always)]
    pub(crate) fn read_text(self, text: &mut [u8; 16]) {
        // SAFETY: the helper checks the address, and ends the text with a zero within its size.
        unsafe {
            bpf_probe_read_kernel_str(text.as_mut_ptr().cast(), 16, self.0.cast());
        }
    }

    /// Returns the pointer at `offset`.
    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        Self(self.read::<usize>(offset) as *const u8)
    }
}

/// A `struct fdtable`: open files by their descriptors.
#[derive(Clone, Copy)]
pub(crate) struct Files(Kernel);

impl Files {
    /// Returns how many descriptors there is room for.
    #[inline(always)]
    pub(crate) fn count(self) -> u32 {
        self.0.read(offset!(fdtable_max_fds))
    }

    /// Returns the number of the device that an open file is; 0 where it is none.
    #[inline(always)]
    pub(crate) fn device(self, descriptor: u32) -> u32 {
        let list = self.0.follow(offset!(fdtable_fd));
        let file = list.follow(descriptor.wrapping_mul(size_of::<usize>() as u32));
        file.follow(offset!(file_f_inode))
            .read(offset!(inode_i_rdev))
    }
}

/// A `struct task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(pub(crate) Kernel);

impl Task {
    #[inline(always)]
    pub(crate) fn new(task: *const u8) -> Self {
        Self(Kernel(task))
    }

    /// Returns the one that runs now.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: the helper has no preconditions.
        Self::new(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
    }

    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.0.read(offset!(task_pid))
    }

    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        self.0.read(offset!(task_tgid))
    }

    /// Returns whether the thread is in its exit.
    #[inline(always)]
    pub(crate) fn is_exiting(self) -> bool {
        self.0.read::<u32>(offset!(task_flags)) & PF_EXITING != 0
    }

    /// Returns whether this is the thread that gives the process its pid. Says nothing about its
    /// death.
    #[inline(always)]
    pub(crate) fn is_leader(self) -> bool {
        self.tid() == self.pid()
    }

    #[inline(always)]
    pub(crate) fn is_kernel_thread(self) -> bool {
        self.0.read::<u32>(offset!(task_flags)) & PF_KTHREAD != 0
    }

    #[inline(always)]
    pub(crate) fn leader(self) -> Self {
        Self(self.0.follow(offset!(task_group_leader)))
    }

    #[inline(always)]
    pub(crate) fn real_parent(self) -> Self {
        Self(self.0.follow(offset!(task_real_parent)))
    }

    /// Returns the identity of the process that this thread belongs to.
    #[inline(always)]
    pub(crate) fn process(self) -> ProcessId {
        ProcessId::new(
            self.pid(),
            self.leader().0.read(offset!(task_start_boottime)),
        )
    }

    /// Returns the number of threads that can still return to user code.
    #[inline(always)]
    pub(crate) fn live_threads(self) -> u32 {
        self.0
            .follow(offset!(task_signal))
            .read(offset!(signal_live))
    }

    /// Status of the process as `wait(2)` gives it. `task->exit_code` of the last thread would be
    /// wrong: another thread's code, or without the core bit.
    #[inline(always)]
    pub(crate) fn wait_status(self) -> u32 {
        let signal = self.0.follow(offset!(task_signal));
        if signal.read::<u32>(offset!(signal_flags)) & SIGNAL_GROUP_EXIT != 0 {
            signal.read(offset!(signal_group_exit_code))
        } else {
            self.leader().0.read(offset!(task_exit_code))
        }
    }

    #[inline(always)]
    pub(crate) fn name(self) -> [u8; 16] {
        self.0.read(offset!(task_comm))
    }

    /// Returns the real user id.
    #[inline(always)]
    pub(crate) fn uid(self) -> u32 {
        self.0
            .follow(offset!(task_real_cred))
            .read(offset!(cred_uid))
    }

    /// Returns the session: the pid of its leader, which can be dead.
    #[inline(always)]
    pub(crate) fn session(self) -> u32 {
        let pids = offset!(signal_pids).wrapping_add(PIDTYPE_SID * size_of::<usize>() as u32);
        let leader = self.0.follow(offset!(task_signal)).follow(pids);
        leader.read(offset!(pid_numbers).wrapping_add(offset!(upid_nr)))
    }

    /// Returns whether the process handles this signal, so that it does not end by it.
    #[inline(always)]
    pub(crate) fn handles(self, signal: u32) -> bool {
        /// `SIG_DFL` and `SIG_IGN` are no handlers.
        const SIG_IGN: usize = 1;
        let size = offset!(sigaction_size);
        if size == MISSING || offset!(sighand_action) == MISSING {
            return false;
        }
        let at = offset!(sighand_action).wrapping_add(signal.wrapping_sub(1).wrapping_mul(size));
        let handler: usize = self.0.follow(offset!(task_sighand)).read(at);
        handler > SIG_IGN
    }

    /// Returns whether whoever is orphaned below the process becomes its child.
    #[inline(always)]
    pub(crate) fn is_subreaper(self) -> bool {
        let bit = offset!(signal_subreaper_bit);
        let flags: u8 = self.0.follow(offset!(task_signal)).read(bit_byte(bit));
        bit != MISSING && flags >> (bit & 7) & 1 != 0
    }

    /// Returns the id of the cgroup in the v2 hierarchy.
    #[inline(always)]
    pub(crate) fn cgroup_id(self) -> u64 {
        self.0
            .follow(offset!(task_cgroups))
            .follow(offset!(css_set_dfl_cgrp))
            .follow(offset!(cgroup_kn))
            .read(offset!(kernfs_id))
    }

    /// Returns the open files of the process.
    #[inline(always)]
    pub(crate) fn files(self) -> Files {
        Files(
            self.0
                .follow(offset!(task_files))
                .follow(offset!(files_fdt)),
        )
    }

    /// Returns the pid in the innermost pid namespace.
    #[inline(always)]
    pub(crate) fn namespace_pid(self) -> u32 {
        let pid = self.0.follow(offset!(task_thread_pid));
        let level = pid.read::<u32>(offset!(pid_level));
        let entry = level.wrapping_mul(offset!(upid_size));
        let at = offset!(pid_numbers)
            .wrapping_add(entry)
            .wrapping_add(offset!(upid_nr));
        pid.read(at)
    }
}
