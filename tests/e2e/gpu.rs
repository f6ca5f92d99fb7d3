//! `lifemon gpu` and the last stage of a death: who holds a GPU, by open device files and by what a
//! driver says; a driver that fails or hangs; memory that is released late or never. The driver is
//! a stand-in, the device files and everything else are real.

use std::time::{Duration, Instant};

use lifemon_tests::killing::{alive, assert_killed};
use lifemon_tests::left_behind::{entry, find, kill_and_wait};
use lifemon_tests::nvml::NvmlDouble;
use lifemon_tests::reports::Identified as _;
use lifemon_tests::story::is_about;
use lifemon_tests::{Actor, DEADLINE, Lifemon, Output, Process, Sandbox, actor, needs, stretched};
use serde_json::{Value, json};

/// Device nodes that hosts have, in the place of a GPU's.
const DEVICES: [&str; 5] = [
    "/dev/fuse",
    "/dev/net/tun",
    "/dev/kvm",
    "/dev/full",
    "/dev/zero",
];

fn device() -> &'static str {
    let exists = |path: &&&str| std::fs::File::open(path).is_ok();
    DEVICES.iter().find(exists).expect("a device node")
}

/// `lifemon WORDS -o json` with the stand-in of the driver.
#[track_caller]
fn with_driver(double: &NvmlDouble, words: &[&str]) -> Output {
    let lifemon = Lifemon::find();
    let mut command = lifemon.command([words, &["-o", "json"]].concat());
    double.offer_to(&mut command);
    lifemon.start(command).finish(DEADLINE)
}

/// A server with workers that have `device` open.
#[track_caller]
fn server_on(sandbox: &Sandbox, count: u32) -> (Actor, Process, Vec<Process>) {
    let mut actor = actor!(
        sandbox,
        "serve",
        count,
        "init",
        "VLLM::EngineCore",
        device()
    );
    actor.step();
    let server = actor.child("server");
    let workers = actor.children("worker");
    for worker in &workers {
        wait_for_device(*worker);
    }
    (actor, server, workers)
}

/// The worker reports itself before its exec.
#[track_caller]
fn wait_for_device(process: Process) {
    let fds = format!("/proc/{}/fd", process.pid);
    lifemon_tests::wait_until("the open device", DEADLINE, || {
        let links = std::fs::read_dir(&fds).into_iter().flatten().flatten();
        let mut links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let name = std::fs::read(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
        name.starts_with(b"VLLM::EngineCor") && links.any(|link| link.as_os_str() == device())
    });
}

#[test]
fn who_has_a_device_open_holds_it() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (mut actor, server, workers) = server_on(&sandbox, 2);
    let output = Lifemon::find().run(["gpu", "-o", "json", "--device", device()]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let report = output.json();
    assert_eq!(report["nvml"]["state"], "absent", "{report}");
    assert_eq!(report["complete"], true, "{report}");
    for worker in &workers {
        let holder = entry(&report["holders"], *worker);
        assert_eq!(holder["devices"], json!([device()]), "{holder}");
        assert_eq!(holder["memory"], json!([]), "{holder}");
        assert!(is_about(&holder["lineage"][0], server), "{holder}");
        assert!(is_about(&holder["root"], actor.process()), "{holder}");
        assert!(holder.get("orphan").is_none(), "{holder}");
    }
    assert!(find(&report["holders"], server).is_none(), "{report}");

    kill_and_wait(server);
    actor.kill();
    let report = Lifemon::find()
        .run(["gpu", "-o", "json", "--device", device()])
        .json();
    for worker in &workers {
        let holder = entry(&report["holders"], *worker);
        assert_eq!(holder["orphan"]["verdict"], "leaked", "{holder}");
        assert_eq!(holder["root"]["alive"], false, "{holder}");
    }
    let other = Lifemon::find().run(["orphans", "-o", "json", "--gpu"]);
    assert!(find(&other.json()["orphans"], workers[0]).is_none());
    let killed = Lifemon::find().run(["gpu", "--kill-orphans", "--device", device()]);
    assert_eq!(killed.code, Some(0), "{killed:?}");
    assert_eq!(alive(&sandbox), [].into());
}

#[test]
fn memory_is_told_by_process_and_by_tree() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let mut actor = actor!(sandbox, "serve", 2, "init");
    actor.step();
    let workers = actor.children("worker");
    let (one, two) = (workers[0].pid, workers[1].pid);
    double.answer(&format!(
        "process {one} 1000\nprocess {two} -1\ngraphics {two} 24\nprocess 2147483647 5\n"
    ));
    let report = with_driver(&double, &["gpu"]).json();
    assert_eq!(report["nvml"]["state"], "ok", "{report}");
    assert_eq!(report["gpus"][0]["name"], "Double 1000", "{report}");
    let holder = entry(&report["holders"], workers[0]);
    let memory = json!([{"gpu": "GPU-double-0", "kind": "compute", "bytes": 1000}]);
    assert_eq!(holder["memory"], memory, "{holder}");
    let holder = entry(&report["holders"], workers[1]);
    assert_eq!(holder["memory"][0]["kind"], "compute");
    assert!(holder["memory"][0].get("bytes").is_none(), "{holder}");
    assert_eq!(holder["memory_bytes"], 24, "{holder}");
    assert_eq!(report["strangers"][0]["pid"], 2_147_483_647, "{report}");
    let trees = report["trees"].as_array().expect("a list");
    let tree = trees
        .iter()
        .find(|tree| is_about(&tree["root"], actor.process()));
    assert_eq!(tree.expect("the tree")["memory_bytes"], 1024, "{report}");

    // The memory of orphans.
    kill_and_wait(actor.child("server"));
    let report = with_driver(&double, &["orphans", "--gpu"]).json();
    let orphan = entry(&report["orphans"], workers[0]);
    assert_eq!(orphan["gpu"]["memory_bytes"], 1000, "{orphan}");
}

#[test]
fn a_driver_that_fails_is_said() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    // Driver not loaded: not an NVIDIA host. No permission, unknown: failures.
    for (lines, state, is_complete) in [
        ("init 9", "absent", true),
        ("init 4", "failed", false),
        ("init 999", "failed", false),
        ("count 15", "failed", false),
        ("device 15", "ok", false),
        ("list 15", "ok", false),
        ("list 3", "ok", true),
    ] {
        double.answer(lines);
        let output = with_driver(&double, &["gpu"]);
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
        let report = output.json();
        assert_eq!(report["nvml"]["state"], state, "{lines}: {report}");
        assert_eq!(report["complete"], is_complete, "{lines}: {report}");
    }
}

#[test]
fn a_driver_that_hangs_is_not_suffered() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    double.answer("hang");
    let begun = Instant::now();
    let output = with_driver(&double, &["gpu", "--driver-timeout", "300ms"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{output:?}");
    assert_eq!(output.code, Some(0), "{output:?}");
    let report = output.json();
    assert_eq!(report["nvml"]["state"], "hung", "{report}");
    assert_eq!(report["nvml"]["after_ms"], 300, "{report}");
    assert_eq!(report["incomplete"][0]["reason"], "driver_hung", "{report}");
}

/// `attach` with the stand-in, on a host that has `device()` in the place of a GPU.
fn attach(double: &NvmlDouble, actor: &Actor, options: &[&str]) -> lifemon_tests::Stream {
    let lifemon = Lifemon::find();
    let pid = actor.pid().to_string();
    let words = ["attach", &pid, "-o", "json", "--device", device()];
    let mut command = lifemon.command(words.iter().chain(options));
    double.offer_to(&mut command);
    lifemon.stream_of(command)
}

fn is_event(line: &Value, event: &str, process: Process) -> bool {
    line["event"] == event && is_about(&line["process"], process)
}

#[test]
fn memory_of_the_dead_is_released() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let workers = actor.children("worker");
    double.answer(&format!("process {} 4096\n", workers[0].pid));
    let mut stream = attach(&double, &actor, &[]);
    stream.wait_for("attached", |line| line["event"] == "attached");
    for worker in &workers {
        actor.command(&format!("kill {}", worker.pid));
        stream.wait_for("gone", |line| is_event(line, "gone", *worker));
    }
    // Dead, gone, reaped, and the driver accounts memory to it all the same.
    std::thread::sleep(stretched(Duration::from_millis(60)));
    assert!(
        !stream
            .events()
            .iter()
            .any(|line| line["event"] == "released")
    );
    double.answer("");
    let released = stream.wait_for("released", |line| is_event(line, "released", workers[0]));
    let after_us = released["after_us"].as_u64().expect("a time");
    assert!(after_us >= 60_000, "{released}");
    actor.close();
    stream.wait_for("detached", |line| line["event"] == "detached");
    let told = stream.events().iter();
    assert_eq!(told.filter(|line| line["event"] == "released").count(), 1);
}

#[test]
fn memory_that_is_never_released_is_told_as_held() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let mut actor = actor!(sandbox, "fork-hold", 1);
    actor.step();
    let worker = actor.child("worker");
    double.answer(&format!("process {} 4096\n", worker.pid));
    let mut stream = attach(&double, &actor, &["--release-timeout", "200ms"]);
    stream.wait_for("attached", |line| line["event"] == "attached");
    actor.command(&format!("kill {}", worker.pid));
    let held = stream.wait_for("held", |line| is_event(line, "held", worker));
    assert!(
        held["state"]
            .as_str()
            .is_some_and(|state| !state.is_empty())
    );
    assert!(held["after_us"].as_u64().is_some_and(|us| us >= 200_000));
    actor.close();
    stream.wait_for("detached", |line| line["event"] == "detached");
}

/// `kill` with the stand-in, and the memory of the killed given back after a while.
#[test]
fn a_kill_waits_until_memory_is_released() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let worker = actor.child("worker");
    double.answer(&format!("process {} 4096\n", worker.pid));
    let pid = actor.pid().to_string();
    let lifemon = Lifemon::find();
    let words = [
        "kill",
        &pid,
        "-o",
        "json",
        "--accept-suspects",
        "--device",
        device(),
    ];
    let mut command = lifemon.command(words);
    double.offer_to(&mut command);
    let running = lifemon.start(command);
    lifemon_tests::wait_until("the end of the tree", DEADLINE, || {
        alive(&sandbox).is_empty()
    });
    std::thread::sleep(Duration::from_millis(60));
    double.answer("");
    let output = running.finish(DEADLINE);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let report = assert_killed(&output);
    let memory = report.gpu.expect("memory to wait for");
    let [released] = &memory.released[..] else {
        panic!("not of one: {memory:?}");
    };
    assert_eq!(released.process(), worker, "{memory:?}");
    assert!(released.after_ms >= 60.0, "{memory:?}");
    assert_eq!(memory.held, [], "{memory:?}");
}

#[test]
fn a_kill_does_not_wait_for_a_driver_that_fails() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    double.answer("init 999");
    let mut actor = actor!(sandbox, "fork-hold", 1);
    actor.step();
    let pid = actor.pid().to_string();
    let output = with_driver(
        &double,
        &["kill", &pid, "--accept-suspects", "--device", device()],
    );
    // A driver that fails at once has nothing to wait for.
    let memory = assert_killed(&output).gpu;
    assert_eq!(memory.map(|memory| memory.hung), Some(false), "{output:?}");
    assert_eq!(alive(&sandbox), [].into());
}
