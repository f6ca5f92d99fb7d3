//! Loads the kernel half, attaches it, and learns the processes that exist already. The result is
//! a [`Loaded`] tracker that ends with this process unless [`super::pins`] keeps it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use aya::maps::{Map, MapData};
use aya::programs::links::FdLink;
use aya::programs::{Iter, Program, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use lifemon_ebpf::offsets::{MISSING, Offsets};
use lifemon_ebpf::{LEARNING, LEARNING_ENDS, PASS_LEARN, Pass, limits};

use super::btf::{Btf, BtfError};
use super::hooks::{self, Hook, LEARNER, Role};
use super::preflight::{self, Refusal};
use super::shared::{HostView, PassView, Shared};
use super::{Error, clock};
use crate::proc;
use crate::sys::memory;

/// The compiled kernel half.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracker"));

const _: () = assert!(!OBJECT.is_empty(), "the kernel half was not built");

/// Every map, by its name in the kernel half.
pub(super) const MAPS: [&str; 13] = [
    "LINEAGE",
    "MEMBERS",
    "ALIVE",
    "ROOTS",
    "TREES",
    "RINGS",
    "HOST",
    "PASS",
    "SIGNALS",
    "OOM_VICTIMS",
    "LOG",
    "LOG_SHARES",
    "RECORDER",
];

/// Passes over all processes.
pub(super) const PASSES: [&str; 3] = ["learn", "label", "traits"];

/// Passes over all processes until one finds nothing to learn.
pub(super) const LEARN_PASSES: u32 = 8;

/// Between two looks whether a death is still being learnt, which takes microseconds.
const LEARNER_PAUSE: Duration = Duration::from_micros(50);

/// Options for loading a tracker.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Records in the lineage, and memberships: processes and ghosts that fit.
    pub max_processes: u32,
    /// If set, the kernel half writes debug messages.
    pub debug: bool,
    /// Works as on a kernel before 6.16, whose exit event does not say which thread is the last.
    /// For tests of that path on a newer kernel.
    pub without_group_dead: bool,
    /// Works as on a kernel from 7.0 on, whose tracepoints can be preempted. For tests of that path
    /// on an older kernel.
    pub preemptible: bool,
    /// The major number of devices that count as GPUs for the flight recorder, instead of those
    /// of this host. For tests.
    pub gpu_major: Option<u32>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            max_processes: limits::LINEAGE_RECORDS,
            debug: false,
            without_group_dead: false,
            preemptible: false,
            gpu_major: None,
        }
    }
}

/// The kernel half, loaded and attached.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) hooks: Vec<Hook>,
    /// True if the kernel may skip hooks.
    pub(super) is_preemptible: bool,
    /// The links that keep the hooks attached.
    pub(super) links: Vec<(Role, FdLink)>,
    /// True if the exit event says which thread is the last of its process.
    pub(super) has_group_dead: bool,
}

/// The layout of the running kernel, from its types.
struct Layout {
    offsets: Offsets,
    is_preemptible: bool,
    has_group_dead: u32,
    claims_exits: u32,
    oom_arg_is_task: u32,
}

/// Loads and attaches the kernel half and learns what exists already.
pub(super) fn load(options: &LoadOptions) -> Result<Loaded, Error> {
    preflight::check()?;
    raise_memlock();
    // Reading the kernel's types is most of the time that this takes: the loader's own reading
    // beside the two that follow.
    let (settings, layout, btf) = thread::scope(|scope| {
        let settings = scope.spawn(EbpfLoader::new);
        let layout = layout(options);
        let btf = aya::Btf::from_sys_fs();
        (settings.join(), layout, btf)
    });
    let settings = settings.map_err(|_| Refusal::BadBtf("the loader cannot read it".to_owned()))?;
    let layout = layout?;
    let btf = btf.map_err(|error| Refusal::BadBtf(error.to_string()))?;
    let ebpf = create(settings, &layout, options)?;
    let has_group_dead = layout.has_group_dead != 0;
    let mut loaded = Loaded {
        ebpf,
        hooks: hooks::hooks(layout.is_preemptible),
        is_preemptible: layout.is_preemptible,
        links: Vec::new(),
        has_group_dead,
    };
    loaded.load_programs(&btf)?;
    drop(btf);
    // The types take tens of megabytes while they are read, and none afterwards.
    memory::give_back();
    loaded.start()?;
    Ok(loaded)
}

/// Creates the maps and prepares the programs.
fn create(
    settings: EbpfLoader<'static>,
    layout: &Layout,
    options: &LoadOptions,
) -> Result<Ebpf, Error> {
    let level: u8 = if options.debug { 4 } else { 0 };
    let verifier = if options.debug {
        VerifierLogLevel::default()
    } else {
        VerifierLogLevel::STATS
    };
    let alive = if layout.claims_exits != 0 {
        options.max_processes
    } else {
        1
    };
    let found = options.gpu_major.map(|major| vec![major]);
    let found = found.unwrap_or_else(|| proc::device_majors(is_gpu));
    let mut gpu_majors = [0_u32; 5];
    for (major, found) in gpu_majors.iter_mut().zip(found) {
        *major = found;
    }
    let offsets = PodOffsets(layout.offsets);
    // It lives no longer than what it borrows below.
    let mut loader: EbpfLoader<'_> = settings;
    loader
        .btf(None)
        .verifier_log_level(verifier)
        .override_global("OFFSETS", &offsets, true)
        .override_global("HAS_GROUP_DEAD", &layout.has_group_dead, true)
        .override_global("CLAIMS_EXITS", &layout.claims_exits, true)
        .override_global("OOM_ARG_IS_TASK", &layout.oom_arg_is_task, true)
        .override_global("GPU_MAJORS", &gpu_majors, true)
        .override_global("AYA_LOG_LEVEL", &level, true)
        .map_max_entries("LINEAGE", options.max_processes)
        .map_max_entries("MEMBERS", options.max_processes.saturating_mul(2))
        .map_max_entries("ALIVE", alive)
        .load(OBJECT)
        .map_err(|error| Error::load("the kernel half", &error))
}

/// Returns whether a driver of devices, as `/proc/devices` names it, is one of GPUs.
fn is_gpu(name: &str) -> bool {
    name.starts_with("nvidia") || name == "drm" || name == "kfd"
}

/// Raises the limit of locked memory, against which map memory counted before 5.11.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// Offsets as aya takes a global.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodOffsets(Offsets);

// SAFETY: 32-bit integers only, `repr(C)`, no padding.
unsafe impl aya::Pod for PodOffsets {}

/// Asks the kernel's types where everything is.
fn layout(options: &LoadOptions) -> Result<Layout, Error> {
    let bad = |error: BtfError| Refusal::BadBtf(error.to_string());
    let bytes =
        fs::read(preflight::BTF_PATH).map_err(|error| Refusal::BadBtf(error.to_string()))?;
    let mut names: Vec<&str> = Offsets::MEMBERS
        .iter()
        .map(|&(structure, _)| structure)
        .collect();
    names.dedup();
    names.extend([
        "k_sigaction",
        "btf_trace_sched_process_exit",
        "btf_trace_mark_victim",
    ]);
    let btf = Btf::parse(&bytes, &names).map_err(bad)?;
    let mut offsets =
        Offsets::fill(|structure, member| btf.offset_of(structure, member)).map_err(bad)?;
    offsets.upid_size = btf.size_of("upid").map_err(bad)?.unwrap_or(MISSING);
    offsets.sigaction_size = btf.size_of("k_sigaction").map_err(bad)?.unwrap_or(MISSING);
    let subreaper = btf.bit_of("signal_struct", "is_child_subreaper");
    offsets.signal_subreaper_bit = subreaper.map_err(bad)?.unwrap_or(MISSING);
    check_offsets(&offsets)?;
    let args = |tracepoint| btf.tracepoint_args(tracepoint).map_err(bad);
    let group_dead = args("sched_process_exit")? == Some(2) && !options.without_group_dead;
    // Two threads may both find that they are the last, or two hooks see each exit.
    let is_preemptible = options.preemptible || hooks::is_preemptible();
    let claims_exits = !group_dead || is_preemptible;
    let oom_task = args("mark_victim")? == Some(2);
    Ok(Layout {
        offsets,
        is_preemptible,
        has_group_dead: u32::from(group_dead),
        claims_exits: u32::from(claims_exits),
        oom_arg_is_task: u32::from(oom_task),
    })
}

/// Refuses where identity or death could not be read; warns where one feature is lost.
fn check_offsets(offsets: &Offsets) -> Result<(), Refusal> {
    let needed = [
        ("task_struct.pid", offsets.task_pid),
        ("task_struct.tgid", offsets.task_tgid),
        ("task_struct.flags", offsets.task_flags),
        ("task_struct.group_leader", offsets.task_group_leader),
        ("task_struct.real_parent", offsets.task_real_parent),
        ("task_struct.signal", offsets.task_signal),
        ("task_struct.start_boottime", offsets.task_start_boottime),
        ("task_struct.exit_code", offsets.task_exit_code),
        ("signal_struct.live", offsets.signal_live),
        ("signal_struct.flags", offsets.signal_flags),
        (
            "signal_struct.group_exit_code",
            offsets.signal_group_exit_code,
        ),
    ];
    if let Some((name, _)) = needed.iter().find(|(_, offset)| *offset == MISSING) {
        return Err(Refusal::BadBtf(format!("{name} is missing")));
    }
    let optional = [
        ("process names", offsets.task_comm),
        ("user ids", offsets.task_real_cred.max(offsets.cred_uid)),
        (
            "pids in namespaces",
            offsets
                .pid_numbers
                .max(offsets.upid_size)
                .max(offsets.upid_nr),
        ),
        (
            "cgroup ids",
            offsets
                .css_set_dfl_cgrp
                .max(offsets.cgroup_kn)
                .max(offsets.kernfs_id),
        ),
        ("whether the kernel sent a signal", offsets.siginfo_code),
        (
            "whether a signal is handled",
            offsets
                .task_sighand
                .max(offsets.sighand_action)
                .max(offsets.sigaction_size),
        ),
        ("sessions", offsets.signal_pids.max(offsets.pid_numbers)),
        ("subreapers", offsets.signal_subreaper_bit),
    ];
    for (feature, _) in optional.iter().filter(|(_, offset)| *offset == MISSING) {
        log::warn!("{feature} are not available: this kernel's types do not describe them");
    }
    Ok(())
}

impl Loaded {
    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, Error>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or(Error::NoProgram(name))?;
        program
            .try_into()
            .map_err(|error| Error::load(name, &error))
    }

    fn load_programs(&mut self, btf: &aya::Btf) -> Result<(), Error> {
        for hook in self.hooks.iter().chain([&LEARNER]) {
            let program = self.ebpf.program_mut(hook.program);
            hook.load(program.ok_or(Error::NoProgram(hook.program))?, btf)?;
        }
        for name in PASSES {
            self.program::<Iter>(name)?
                .load("task", btf)
                .map_err(|error| Error::load(name, &error))?;
        }
        self.load_closer()?;
        for name in ["sweep", "settle"] {
            self.load_request(name)?;
        }
        Ok(())
    }

    /// Loads a program that is run on request.
    pub(super) fn load_request(&mut self, name: &'static str) -> Result<(), Error> {
        self.program::<RawTracePoint>(name)?
            .load()
            .map_err(|error| Error::load(name, &error))
    }

    fn load_closer(&mut self) -> Result<(), Error> {
        let name = hooks::closer(self.is_preemptible);
        let program = self.ebpf.program_mut(name).ok_or(Error::NoProgram(name))?;
        hooks::load_closer(program).map_err(|error| Error::load(name, &error))
    }

    /// Attaches, learns, and only then lets records go. A death that saw the flag of learning set
    /// has left its record behind: whoever goes on sweeps, once all such hooks have ended.
    fn start(&mut self) -> Result<(), Error> {
        let host = Shared::<HostView>::new(self.map("HOST")?, 1).map_err(Error::Map)?;
        let host = host.at(0);
        host.learning.store(LEARNING, Ordering::SeqCst);
        let mut learner = None;
        for hook in self.hooks.clone() {
            if hook.role == "fork" {
                learner = Some(self.attach(&LEARNER)?);
            }
            let link = self.attach(&hook)?;
            self.links.push((hook.role, link));
        }
        self.learn()?;
        drop(learner);
        // Whoever is still learning as it dies may be about to hold a record: none goes before.
        host.learning.store(LEARNING_ENDS, Ordering::SeqCst);
        while host.learners.load(Ordering::SeqCst) != 0 {
            thread::sleep(LEARNER_PAUSE);
        }
        host.learning.store(0, Ordering::SeqCst);
        host.since_ns.store(clock::boot_ns(), Ordering::SeqCst);
        Ok(())
    }

    fn attach(&mut self, hook: &Hook) -> Result<FdLink, Error> {
        let program = self.ebpf.program_mut(hook.program);
        hook.attach(program.ok_or(Error::NoProgram(hook.program))?)
    }

    /// Runs the pass that learns until one finds nothing more to do.
    fn learn(&mut self) -> Result<(), Error> {
        let pass = Shared::<PassView>::new(self.map("PASS")?, 1).map_err(Error::Map)?;
        for _ in 0..LEARN_PASSES {
            if learn_once(pass.at(0), self.pass("learn")?)?.inserted == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns a map by its name.
    pub(super) fn map(&self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        let map = self.ebpf.map(name).ok_or(Error::NoProgram(name))?;
        Ok(map_data(map).ok_or(Error::NoProgram(name))?.fd().as_fd())
    }

    /// Opens a program by its name.
    pub(super) fn program_fd(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let program = self.ebpf.program(name).ok_or(Error::NoProgram(name))?;
        let fd = program.fd().map_err(|error| Error::load(name, &error))?;
        fd.as_fd().try_clone_to_owned().map_err(Error::Map)
    }

    /// Opens the programs of the hooks.
    pub(super) fn hook_programs(&self) -> Result<Vec<(Role, OwnedFd)>, Error> {
        self.hooks
            .iter()
            .map(|hook| Ok((hook.role, self.program_fd(hook.program)?)))
            .collect()
    }

    /// Opens a pass: it runs as it is read.
    pub(super) fn pass(&mut self, name: &'static str) -> Result<File, Error> {
        open_iterator(self.program::<Iter>(name)?)
    }
}

/// Returns the data of any map kind that the kernel half has.
pub(super) fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// Opens an iterator program over all tasks: it runs as it is read.
fn open_iterator(program: &mut Iter) -> Result<File, Error> {
    let link = program
        .attach()
        .map_err(|error| Error::load("iterator", &error))?;
    let link = program
        .take_link(link)
        .map_err(|error| Error::load("iterator", &error))?;
    link.into_file()
        .map_err(|error| Error::load("iterator", &error))
}

/// What a pass that learns has found.
pub(super) struct Learnt {
    pub(super) inserted: u64,
    pub(super) failed: u64,
}

/// Runs one pass that learns: `iterator` is that of the program `learn`, not read yet.
pub(super) fn learn_once(pass: &PassView, iterator: File) -> Result<Learnt, Error> {
    pass.ask(&Pass {
        kind: PASS_LEARN,
        ..Pass::default()
    });
    drain_iterator(iterator).map_err(Error::Map)?;
    // The pass has ended: the iterator was read to its end.
    Ok(Learnt {
        inserted: pass.inserted.load(Ordering::SeqCst),
        failed: pass.failed.load(Ordering::SeqCst),
    })
}

/// Reads an iterator to its end: that is what makes it run. It prints nothing.
pub(super) fn drain_iterator(mut file: File) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Very many tasks without output: the kernel asks to go on.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
