//! A server that is killed leaves workers that hold the GPU: they are found, and their memory comes
//! back.

use lifemon_tests::killing::{alive, assert_killed};
use lifemon_tests::left_behind::{ask, checked_orphans, kill_and_wait, orphans};
use lifemon_tests::reports::{GpuReport, Identified, KillReport, Orphan, entry};
use lifemon_tests::torch::{BYTES, TorchServer, compute_apps, used_mib, wait_until_free};
use lifemon_tests::{Process, Sandbox, needs};

use crate::held::gpu;

/// Returns a server that has been killed, and the workers that it has left.
#[track_caller]
fn killed_server(sandbox: &Sandbox, count: usize) -> (TorchServer, Vec<Process>) {
    let mut server = TorchServer::start(sandbox);
    let workers = (0..count).map(|_| server.hold(BYTES)).collect();
    kill_and_wait(server.0.process());
    (server, workers)
}

#[track_caller]
fn assert_leaked(orphan: &Orphan) {
    assert_eq!(orphan.verdict, "leaked", "{orphan:?}");
    let bytes = orphan.gpu.as_ref().and_then(|gpu| gpu.memory_bytes);
    assert!(bytes.is_some_and(|bytes| bytes >= BYTES), "{orphan:?}");
}

/// Claims that the memory of each of these was released, and that the report says so.
#[track_caller]
pub(crate) fn assert_released(report: &KillReport, holders: &[Process]) {
    let memory = report.gpu.as_ref().expect("a host with a GPU");
    let mut released: Vec<_> = memory.released.iter().map(Identified::process).collect();
    released.sort();
    let mut expected = holders.to_vec();
    expected.sort();
    assert_eq!(released, expected, "{report:?}");
    assert!(memory.held.is_empty() && !memory.hung, "{report:?}");
    let known = compute_apps();
    assert!(
        holders.iter().all(|one| !known.contains_key(&one.pid)),
        "{known:?}"
    );
    let after: Vec<_> = memory.released.iter().map(|one| one.after_ms).collect();
    println!(
        "measured: extinct after {} ms, gone {:?}, released {after:?}",
        report.elapsed_ms, report.gone_ms
    );
}

#[test]
fn a_kill_of_a_dead_servers_tree_frees_the_gpu() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let (server, workers) = killed_server(&sandbox, 3);
    let root = server.0.pid().to_string();
    let report = orphans(&["--gpu", "--tree", &root]);
    assert_eq!(report.orphans.len(), 3, "{report:?}");
    for worker in &workers {
        assert_leaked(entry(&report.orphans, *worker));
    }
    let output = lifemon_tests::killing::kill(&root, &[]);
    let report = assert_killed(&output);
    assert_released(&report, &workers);
    wait_until_free(before_mib);
    assert_eq!(alive(&sandbox), [].into());
}

/// Which members have memory is known, however fast the driver takes it back.
#[test]
fn each_of_ten_kills_says_that_memory_was_released() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    for _ in 0..10 {
        let worker = server.hold(BYTES);
        let output = lifemon_tests::killing::kill(&worker.pid, &[]);
        assert_released(&assert_killed(&output), &[worker]);
    }
}

#[test]
fn killing_the_orphans_that_hold_a_gpu_spares_a_healthy_server() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut healthy = TorchServer::start(&sandbox);
    let kept = healthy.hold(BYTES);
    let before_mib = used_mib();
    let (_server, workers) = killed_server(&sandbox, 2);
    let output = ask("gpu", &["--kill-orphans", "--yes"]);
    let report: GpuReport = output.success();
    let kill = report.kill.as_ref().expect("a kill");
    assert_released(kill, &workers);
    wait_until_free(before_mib);
    let _ = entry(&gpu().holders, kept);
    drop(healthy);
}

#[test]
fn spawned_workers_of_a_killed_server_are_ended_with_their_memory() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.worker(&format!("spawn {BYTES}"));
    let root = server.0.process();
    kill_and_wait(root);
    let tree = root.pid.to_string();
    let report = orphans(&["--gpu", "--tree", &tree]);
    assert_leaked(entry(&report.orphans, worker));
    let output = ask("orphans", &["--tree", &tree, "--kill"]);
    let report = checked_orphans(output.success());
    assert_released(report.kill.as_ref().expect("a kill"), &[worker]);
    wait_until_free(before_mib);
}
