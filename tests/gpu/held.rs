//! Who holds a GPU, by lifemon and by `nvidia-smi`; and what `doctor` and `explain` say of it.

use lifemon_tests::left_behind::{ask, kill_and_wait};
use lifemon_tests::reports::{DoctorReport, GpuReport, Holder, entry, find};
use lifemon_tests::torch::{BYTES, TorchServer, compute_apps, used_mib, wait_until_free};
use lifemon_tests::{Lifemon, Sandbox, needs};
use serde_json::Value;

/// Returns the answer of `lifemon gpu`, of which nothing is missing.
#[track_caller]
pub(crate) fn gpu() -> GpuReport {
    let report: GpuReport = ask("gpu", &[]).success();
    assert_eq!(report.nvml.state, "ok", "{report:?}");
    assert!(report.complete, "{report:?}");
    report
}

/// Claims that lifemon and `nvidia-smi` say the same of one process; how many MiB.
#[track_caller]
fn assert_as_nvidia_smi(holder: &Holder) -> u64 {
    let known = compute_apps();
    let mib = known.get(&holder.pid).copied().flatten();
    let bytes = holder.memory_bytes.unwrap_or_else(|| panic!("{holder:?}"));
    assert_eq!(Some(bytes >> 20), mib, "{holder:?} {known:?}");
    bytes >> 20
}

#[test]
fn who_has_allocated_is_listed_with_what_the_driver_says() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.hold(BYTES);
    let report = gpu();
    let holder = entry(&report.holders, worker);
    let mib = assert_as_nvidia_smi(holder);
    assert!(mib >= BYTES >> 20, "{holder:?}");
    println!("measured: a context and 1024 MiB are {mib} MiB");
    for device in ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm"] {
        assert!(
            holder.devices.iter().any(|path| path == device),
            "{holder:?}"
        );
    }
    let [memory] = &holder.memory[..] else {
        panic!("not of one GPU: {holder:?}");
    };
    assert_eq!(memory.kind, "compute", "{holder:?}");
    assert_eq!(Some(&memory.gpu), report.gpus[0].uuid.as_ref());
    assert_eq!(holder.lineage[0].pid, server.0.pid(), "{holder:?}");
    assert_eq!(report.strangers, [], "{report:?}");
    // The server has forked it, and never touched the GPU.
    assert_eq!(find(&report.holders, server.0.process()), None);

    kill_and_wait(worker);
    wait_until_free(before_mib);
    let report = gpu();
    assert_eq!(find(&report.holders, worker), None, "{report:?}");
    assert_eq!(report.strangers, [], "{report:?}");
}

#[test]
fn each_of_several_holders_has_its_own() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    let sizes = [1, 2, 4, 8].map(|gib| gib << 30);
    let workers = sizes.map(|bytes| server.hold(bytes));
    let report = gpu();
    let held = workers.map(|worker| {
        let holder = entry(&report.holders, worker);
        assert_as_nvidia_smi(holder)
    });
    let contexts = [0, 1, 2, 3].map(|index| held[index] - (sizes[index] >> 20));
    println!("measured: contexts of {contexts:?} MiB");
    assert!(contexts.iter().all(|mib| *mib == contexts[0]), "{held:?}");
    let mut trees = report.trees.iter();
    let tree = trees.find(|tree| tree.processes == 4).expect("the tree");
    assert_eq!(
        tree.memory_bytes.map(|bytes| bytes >> 20),
        Some(held.iter().sum())
    );
}

#[test]
fn who_has_opened_a_device_and_allocated_nothing_is_listed_without_memory() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.worker("open");
    let report = gpu();
    let holder = entry(&report.holders, worker);
    assert_eq!(
        holder.devices,
        ["/dev/nvidia0", "/dev/nvidiactl"],
        "{holder:?}"
    );
    assert_eq!(holder.memory, [], "{holder:?}");
    assert_eq!(compute_apps().get(&worker.pid), None);
}

#[test]
fn nobody_holds_memory_where_nobody_computes() {
    needs!(gpu, host_tracker);
    assert_eq!(compute_apps(), [].into());
    let report = gpu();
    let with_memory = report.holders.iter().filter(|one| !one.memory.is_empty());
    assert_eq!(with_memory.count(), 0, "{report:?}");
    assert_eq!(report.strangers, [], "{report:?}");
    let text = Lifemon::find().run(["gpu"]);
    println!("{}", text.stdout);
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""));
}

/// The process that asks the library has the devices open as long as a stream goes on. That of
/// another command is listed, without memory; the command's own is not.
#[test]
fn lifemons_own_helper_is_no_holder() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.hold(BYTES);
    let mut stream = Lifemon::find().attach(&server.0.pid(), &[]);
    stream.attached();
    for _ in 0..20 {
        let report = gpu();
        let is_helper = |one: &&Holder| one.command.iter().any(|word| word == "nvml-server");
        let helpers: Vec<_> = report.holders.iter().filter(is_helper).collect();
        // The stream's, once it has been asked.
        assert!(helpers.len() <= 1, "{helpers:?}");
        assert!(
            helpers.iter().all(|one| one.memory.is_empty()),
            "{helpers:?}"
        );
        let _ = entry(&report.holders, worker);
    }
}

#[test]
fn doctor_counts_the_gpus_that_tell() {
    needs!(gpu, host_tracker);
    let report: DoctorReport = Lifemon::find().run(["doctor", "-o", "json"]).report();
    let check = report
        .checks
        .iter()
        .find(|check| check.name == "GPU memory");
    let check = check.expect("the check");
    println!("{check:?}");
    assert_eq!(check.state, "ok", "{check:?}");
    assert!(
        check.detail.starts_with("1 GPU of NVIDIA tells"),
        "{check:?}"
    );
}

#[test]
fn a_holder_is_explained_with_what_it_holds() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.hold(BYTES);
    let it: Value = ask("explain", &[&worker.pid.to_string()]).success();
    let bytes = it["holds"]["gpu"]["memory_bytes"].as_u64();
    assert!(bytes.is_some_and(|bytes| bytes >= BYTES), "{it}");
    let pid = server.0.pid().to_string();
    let it: Value = ask("explain", &[&pid]).success();
    assert_eq!(it["subtree"]["gpu"]["memory_bytes"].as_u64(), bytes, "{it}");
    assert!(it["holds"]["gpu"].is_null(), "{it}");
    let text = Lifemon::find().run(["explain", &pid]);
    println!("{}", text.stdout);
}
