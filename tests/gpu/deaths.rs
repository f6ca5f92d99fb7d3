//! The last stage of a death, `released`, with a real driver: how it is reported, and when.

use std::time::Instant;

use lifemon_tests::left_behind::{ask, kill_and_wait};
use lifemon_tests::reports::{Detached, Exited, GpuHeld, GpuReleased};
use lifemon_tests::torch::{BYTES, TorchServer, compute_apps, used_mib, wait_until_free};
use lifemon_tests::{DEADLINE, Lifemon, Pidfd, Process, Sandbox, Stream, needs};
use serde_json::Value;

use crate::held::gpu;

/// Watches a server; returns when the driver has said who holds memory.
#[track_caller]
fn watch(server: &TorchServer) -> Stream {
    let mut stream = Lifemon::find().attach(&server.0.pid(), &[]);
    stream.attached();
    // The driver's first answer to `attach` is no later than the first to this, which asks later.
    let _ = gpu();
    stream
}

/// Kills a worker; returns after how many us it was reported dead, and released, by the clock of
/// this test, and what lifemon says how long it took.
#[track_caller]
fn killed(stream: &mut Stream, worker: Process) -> [u128; 3] {
    let pidfd = Pidfd::of(worker);
    let begun = Instant::now();
    pidfd.kill();
    stream.wait_for_event::<Exited>(worker);
    let dead = begun.elapsed();
    let released = stream.wait_for_event::<GpuReleased>(worker);
    let whole = begun.elapsed();
    assert_eq!(compute_apps().get(&worker.pid), None);
    [
        dead.as_micros(),
        whole.as_micros(),
        released.after_us.into(),
    ]
}

#[test]
fn a_killed_holder_is_reported_released() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    let workers: Vec<_> = (0..10).map(|_| server.hold(BYTES)).collect();
    let mut stream = watch(&server);
    for worker in workers {
        let [dead, whole, said] = killed(&mut stream, worker);
        println!("measured: killed, exit {dead} us, released {whole} us, said {said} us");
    }
    let is_held = |event: &&lifemon_tests::reports::Event| event.as_kind::<GpuHeld>().is_some();
    assert_eq!(stream.events().iter().find(is_held), None);
}

#[test]
fn a_holder_of_most_of_the_memory_is_reported_released() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.hold(64 * BYTES);
    let mut stream = watch(&server);
    let [dead, whole, said] = killed(&mut stream, worker);
    println!("measured: killed with 64 GiB, exit {dead} us, released {whole} us, said {said} us");
    wait_until_free(before_mib);
}

#[test]
fn a_holder_that_is_killed_in_the_middle_of_a_kernel_is_reported_released() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.worker(&format!("busy {BYTES}"));
    let mut stream = watch(&server);
    let [dead, whole, said] = killed(&mut stream, worker);
    println!("measured: killed in a kernel, exit {dead} us, released {whole} us, said {said} us");
    wait_until_free(before_mib);
}

#[test]
fn a_holder_that_exits_is_reported_released() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.hold(BYTES);
    let mut stream = watch(&server);
    server.end(worker);
    let exited = stream.wait_for_event::<Exited>(worker);
    let released = stream.wait_for_event::<GpuReleased>(worker);
    println!(
        "measured: exit, released after {} us, {exited:?}",
        released.after_us
    );
    server.0.close();
    stream.wait_for_line::<Detached>("the end", |_| true);
}

#[test]
fn a_wait_for_released_ends_when_the_memory_is_back() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let mut server = TorchServer::start(&sandbox);
    let worker = server.hold(8 * BYTES);
    let pid = server.0.pid().to_string();
    let lifemon = Lifemon::find();
    let words = [
        "wait",
        &pid,
        "-o",
        "json",
        "--until",
        "released",
        "--timeout",
        "30s",
    ];
    let waiting = lifemon.start(lifemon.command(words));
    let _ = gpu();
    kill_and_wait(server.0.process());
    kill_and_wait(worker);
    let it: Value = waiting.finish(DEADLINE).success();
    assert_eq!(it["holds"], true, "{it}");
    assert_eq!(compute_apps().get(&worker.pid), None, "{it}");
    let used = used_mib();
    println!("measured: used before {before_mib} MiB, when the wait ended {used} MiB: {it}");
    wait_until_free(before_mib);
}

#[test]
fn the_log_says_that_the_dead_held_a_gpu() {
    needs!(gpu, host_tracker);
    let sandbox = Sandbox::new();
    let mut server = TorchServer::start(&sandbox);
    let (killed, failed) = (server.hold(BYTES), server.worker(&format!("fail {BYTES}")));
    let other = server.worker("many 1");
    let pidfd = Pidfd::of(failed);
    kill_and_wait(killed);
    kill_and_wait(other);
    server.end(failed);
    pidfd.wait_gone(DEADLINE);
    let report: Value = ask("log", &["--since", "1m"]).success();
    let entries = report["entries"].as_array().expect("a list");
    let held = |process: Process| {
        let entry = entries
            .iter()
            .find(|entry| entry["process"]["pid"] == process.pid);
        entry.unwrap_or_else(|| panic!("no {process:?}: {report}"))["held_gpu"].clone()
    };
    assert_eq!(held(killed), true, "{report}");
    assert_eq!(held(failed), true, "{report}");
    assert_eq!(held(other), false, "{report}");
}
