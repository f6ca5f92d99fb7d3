//! Where the fields of kernel structures are, as the running kernel's own type information says.
//! Userspace fills this in before the programs are loaded; the verifier sees constants.

/// The field does not exist in this kernel.
pub const MISSING: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident: $structure:literal . $member:literal,)*) => {
        /// Byte offsets, each from the start of its structure; [`MISSING`] where there is none.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Offsets {
            $($(#[$doc])* pub $field: u32,)*
            /// Size of `struct upid`, in bytes.
            pub upid_size: u32,
            /// Size of `struct k_sigaction`, in bytes; the handler comes first.
            pub sigaction_size: u32,
            /// The bit of `signal_struct` that says whether the process is a subreaper, counted
            /// from the start of the structure.
            pub signal_subreaper_bit: u32,
        }

        impl Offsets {
            /// Nothing known.
            pub const UNKNOWN: Self = Self { $($field: MISSING,)* upid_size: MISSING, sigaction_size: MISSING, signal_subreaper_bit: MISSING };

            /// Each field with the structure and the member that it stands for.
            pub const MEMBERS: &'static [(&'static str, &'static str)] =
                &[$(($structure, $member),)*];

            /// Fills every field from `find(structure, member)`.
            ///
            /// # Errors
            /// Whatever `find` fails with.
            pub fn fill<E>(
                mut find: impl FnMut(&'static str, &'static str) -> Result<Option<u32>, E>,
            ) -> Result<Self, E> {
                Ok(Self {
                    $($field: find($structure, $member)?.unwrap_or(MISSING),)*
                    ..Self::UNKNOWN
                })
            }
        }
    };
}

offsets! {
    /// Thread id.
    task_pid: "task_struct"."pid",
    /// Thread group id.
    task_tgid: "task_struct"."tgid",
    /// `PF_*` flags.
    task_flags: "task_struct"."flags",
    /// The thread that the group is named after.
    task_group_leader: "task_struct"."group_leader",
    /// The parent that gets the exit status.
    task_real_parent: "task_struct"."real_parent",
    /// What the threads of a group share.
    task_signal: "task_struct"."signal",
    /// Start, ns since boot.
    task_start_boottime: "task_struct"."start_boottime",
    /// Wait status of a single thread.
    task_exit_code: "task_struct"."exit_code",
    /// Name, 16 bytes.
    task_comm: "task_struct"."comm",
    /// Objective credentials.
    task_real_cred: "task_struct"."real_cred",
    /// Set of cgroups.
    task_cgroups: "task_struct"."cgroups",
    /// Pid in every namespace that sees it.
    task_thread_pid: "task_struct"."thread_pid",
    /// Open files.
    task_files: "task_struct"."files",
    /// The table of descriptors.
    files_fdt: "files_struct"."fdt",
    /// How many descriptors it has room for.
    fdtable_max_fds: "fdtable"."max_fds",
    /// One pointer to a file for each.
    fdtable_fd: "fdtable"."fd",
    /// What the file is.
    file_f_inode: "file"."f_inode",
    /// The device that it is.
    inode_i_rdev: "inode"."i_rdev",
    /// Threads that can still run.
    signal_live: "signal_struct"."live",
    /// `SIGNAL_*` flags.
    signal_flags: "signal_struct"."flags",
    /// Wait status of the group.
    signal_group_exit_code: "signal_struct"."group_exit_code",
    /// What the process does on each signal.
    task_sighand: "task_struct"."sighand",
    /// One `struct k_sigaction` for each signal.
    sighand_action: "sighand_struct"."action",
    /// Real user id.
    cred_uid: "cred"."uid",
    /// The process group and the session, by type.
    signal_pids: "signal_struct"."pids",
    /// Depth of the innermost pid namespace.
    pid_level: "pid"."level",
    /// One `struct upid` for each namespace.
    pid_numbers: "pid"."numbers",
    /// The number in that namespace.
    upid_nr: "upid"."nr",
    /// The cgroup of the v2 hierarchy.
    css_set_dfl_cgrp: "css_set"."dfl_cgrp",
    /// The directory of a cgroup.
    cgroup_kn: "cgroup"."kn",
    /// The id of that directory.
    kernfs_id: "kernfs_node"."id",
    /// Where a signal comes from.
    siginfo_code: "kernel_siginfo"."si_code",
    /// Whether the last thread exits, in what the tracing files show of an exit.
    exit_group_dead: "trace_event_raw_sched_process_exit"."group_dead",
}
