//! Memory that more than one process stands for: mapped by CUDA IPC, kept by a child that has
//! inherited the descriptors, in the care of MPS.

use std::process::Command;

use lifemon_tests::killing::{assert_killed, kill};
use lifemon_tests::left_behind::kill_and_wait;
use lifemon_tests::reports::{GpuHeld, GpuReleased, entry};
use lifemon_tests::torch::{BYTES, TorchServer, compute_apps, used_mib, wait_until_free};
use lifemon_tests::{DEADLINE, Lifemon, Pidfd, Sandbox, has_programs, needs, wait_until};

use crate::held::gpu;
use crate::left_behind::assert_released;

/// The memory of a tensor that another process has mapped stays until that one is dead too.
#[test]
fn memory_that_is_shared_stays_with_the_other_process() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let owner = server.worker(&format!("share {}", 4 * BYTES));
    let mapper = server.0.child("user");
    let report = gpu();
    let both = [owner, mapper].map(|one| entry(&report.holders, one).memory_bytes);
    println!(
        "measured: owner and user {both:?}, used {} of {before_mib} MiB",
        used_mib()
    );
    let mut stream = Lifemon::find().attach(&server.0.pid(), &[]);
    stream.attached();
    let _ = gpu();
    Pidfd::of(owner).kill();
    let released = stream.wait_for_event::<GpuReleased>(owner);
    let (used, report) = (used_mib(), gpu());
    println!(
        "measured: owner released after {} us, used {used} MiB",
        released.after_us
    );
    println!("measured: then {:?} {:?}", report.holders, report.strangers);
    assert!(
        used > before_mib + ((4 * BYTES) >> 20),
        "{used} of {before_mib}"
    );
    let left = entry(&report.holders, mapper);
    assert!(
        left.memory_bytes.is_some_and(|bytes| bytes >= 4 * BYTES),
        "{left:?}"
    );
    Pidfd::of(mapper).kill();
    stream.wait_for_event::<GpuReleased>(mapper);
    wait_until_free(before_mib);
}

/// A child that was forked after CUDA was used has the descriptors, and with them the memory.
#[test]
fn memory_is_kept_by_a_child_that_has_inherited_the_descriptors() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.worker(&format!("heir {}", 4 * BYTES));
    let heir = server.0.child("heir");
    let holder = entry(&gpu().holders, heir).clone();
    assert_eq!(holder.memory, [], "{holder:?}");
    assert!(!holder.devices.is_empty(), "{holder:?}");
    let mut stream = Lifemon::find().attach(&server.0.pid(), &["--release-timeout", "2s"]);
    stream.attached();
    let _ = gpu();
    Pidfd::of(worker).kill();
    let held = stream.wait_for_event::<GpuHeld>(worker);
    assert!(held.state.contains("inherited"), "{held:?}");
    // The driver accounts it to the dead process as before.
    let (used, known, report) = (used_mib(), compute_apps(), gpu());
    println!("measured: kept by the heir, used {used} of {before_mib} MiB: {known:?}");
    let kept = report.strangers.iter().find(|one| one.pid == worker.pid);
    let kept = kept.unwrap_or_else(|| panic!("no {worker:?}: {report:?}"));
    assert!(
        kept.bytes.is_some_and(|bytes| bytes >= 4 * BYTES),
        "{kept:?}"
    );
    let keepers: Vec<_> = kept.kept_by.iter().map(|id| id.pid).collect();
    assert_eq!(keepers, [heir.pid], "{report:?}");
    println!("{}", Lifemon::find().run(["gpu"]).stdout);
    kill_and_wait(heir);
    wait_until_free(before_mib);
    assert_eq!(compute_apps().get(&worker.pid), None);
}

#[test]
fn a_kill_of_a_holder_and_its_heir_frees_the_gpu() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.worker(&format!("heir {BYTES}"));
    let heir = server.0.child("heir");
    // Both had the device open, so both are waited for.
    let report = assert_killed(&kill(&server.0.pid(), &[]));
    assert_released(&report, &[worker, heir]);
    wait_until_free(before_mib);
}

/// The control daemon of CUDA MPS, ended on drop.
struct Mps<'sandbox>(&'sandbox Sandbox);

impl Mps<'_> {
    fn start(sandbox: &Sandbox) -> Mps<'_> {
        let mps = Mps(sandbox);
        let mut daemon = mps.command("nvidia-cuda-mps-control");
        sandbox.enter(daemon.arg("-d"));
        let output = daemon.output().expect("the daemon");
        assert!(output.status.success(), "{output:?}");
        mps
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.directories(|name, path| _ = command.env(name, path));
        command
    }

    fn directories(&self, mut each: impl FnMut(&'static str, &std::path::Path)) {
        each("CUDA_MPS_PIPE_DIRECTORY", &self.0.directory().join("mps"));
        each(
            "CUDA_MPS_LOG_DIRECTORY",
            &self.0.directory().join("mps-log"),
        );
    }
}

impl Drop for Mps<'_> {
    fn drop(&mut self) {
        let mut quit = self.command("sh");
        quit.args(["-c", "echo quit | timeout 10 nvidia-cuda-mps-control"]);
        _ = quit.output();
    }
}

#[test]
fn a_client_of_mps_is_known_and_spared() {
    needs!(gpu, host_tracker);
    if !has_programs(&["nvidia-cuda-mps-control", "nvidia-cuda-mps-server"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    for name in ["mps", "mps-log"] {
        std::fs::create_dir(sandbox.directory().join(name)).expect("a directory");
    }
    let mps = Mps::start(&sandbox);
    let pipe = format!(
        "CUDA_MPS_PIPE_DIRECTORY={}/mps",
        sandbox.directory().display()
    );
    let mut server = TorchServer::start_below(&sandbox, &["env", &pipe, "python3"]);
    let worker = server.hold(BYTES);
    let report = gpu();
    println!("measured: smi {:?}", compute_apps());
    let holder = entry(&report.holders, worker);
    assert!(
        holder.memory_bytes.is_some_and(|bytes| bytes >= BYTES),
        "{holder:?}"
    );
    let pid = server.0.pid().to_string();
    let refused = Lifemon::find().run(["kill", &pid, "-o", "json"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("as a client of CUDA MPS"),
        "{refused:?}"
    );
    let report = assert_killed(&kill(&pid, &["--force"]));
    assert_released(&report, &[worker]);
    drop(mps);
    wait_until("the end of the daemon", DEADLINE, || {
        lifemon_tests::killing::alive(&sandbox).is_empty()
    });
    wait_until_free(before_mib);
}
