//! `lifemon gpu` and the last stage of a death: who holds a GPU, by open device files and by what a
//! driver says; a driver that fails or hangs; memory that is released late or never. The driver is
//! a stand-in, the device files and everything else are real.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lifemon_tests::killing::{alive, assert_killed, kill};
use lifemon_tests::left_behind::kill_and_wait;
use lifemon_tests::nvml::NvmlDouble;
use lifemon_tests::reports::{
    Detached, Event, Gone, GpuHeld, GpuReleased, GpuReport, Identified as _, KillReport, Memory,
    OrphansReport, entry, find, set_of,
};
use lifemon_tests::{
    Actor, DEADLINE, Lifemon, Output, Process, Running, Sandbox, actor, needs, proc, stretched,
};
use serde_json::Value;

/// Device nodes that hosts have, in the place of a GPU's.
const DEVICES: [&str; 5] = [
    "/dev/fuse",
    "/dev/net/tun",
    "/dev/kvm",
    "/dev/full",
    "/dev/zero",
];

/// Returns the first of them that can be opened here.
pub(crate) fn device() -> &'static str {
    let exists = |path: &&&str| std::fs::File::open(path).is_ok();
    DEVICES.iter().find(exists).expect("a device node")
}

/// Runs `lifemon WORDS -o json` with the stand-in of the driver.
#[track_caller]
pub(crate) fn with_driver(double: &NvmlDouble, words: &[&str]) -> Output {
    let lifemon = Lifemon::find();
    let mut command = lifemon.command([words, &["-o", "json"]].concat());
    double.offer_to(&mut command);
    lifemon.start(command).finish(DEADLINE)
}

/// Starts a server with workers that have [`device`] open.
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

/// Waits until a worker has the device open: it reports itself before its exec.
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
    // Whatever this host has, there is no driver behind the library.
    let double = NvmlDouble::new(&sandbox);
    double.answer("init 9");
    let gpu = || with_driver(&double, &["gpu", "--device", device()]);
    let (mut actor, server, workers) = server_on(&sandbox, 2);
    let report: GpuReport = gpu().success();
    assert_eq!(report.schema, "lifemon/2");
    assert_eq!(report.nvml.state, "absent", "{report:?}");
    assert!(report.complete, "{report:?}");
    for worker in &workers {
        let holder = entry(&report.holders, *worker);
        assert_eq!(holder.devices, [device()], "{holder:?}");
        assert_eq!(holder.memory, [], "{holder:?}");
        assert_eq!(holder.lineage[0].process(), server, "{holder:?}");
        assert_eq!(holder.root.process(), actor.process(), "{holder:?}");
        // What runs the tests may look like something that was left behind.
        let verdict = holder.orphan.as_ref().map(|orphan| orphan.verdict.as_str());
        assert!(
            verdict.is_none_or(|verdict| verdict == "inferred"),
            "{holder:?}"
        );
    }
    assert_eq!(find(&report.holders, server), None);

    kill_and_wait(server);
    actor.kill();
    let report: GpuReport = gpu().success();
    for worker in &workers {
        let holder = entry(&report.holders, *worker);
        let verdict = holder.orphan.as_ref().map(|orphan| orphan.verdict.as_str());
        assert_eq!(verdict, Some("leaked"), "{holder:?}");
        assert!(!holder.root.alive, "{holder:?}");
    }
    let other = Lifemon::find().run(["orphans", "-o", "json", "--gpu"]);
    let other: OrphansReport = other.report();
    assert_eq!(find(&other.orphans, workers[0]), None);
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
    let report: GpuReport = with_driver(&double, &["gpu"]).report();
    assert_eq!(report.nvml.state, "ok", "{report:?}");
    let name = report.gpus[0].name.as_deref();
    assert_eq!(name, Some("Double 1000"), "{report:?}");
    let holder = entry(&report.holders, workers[0]);
    let memory = Memory {
        gpu: "GPU-double-0".to_owned(),
        kind: "compute".to_owned(),
        bytes: Some(1000),
        gpu_instance: None,
    };
    assert_eq!(holder.memory, [memory], "{holder:?}");
    let holder = entry(&report.holders, workers[1]);
    assert_eq!(holder.memory[0].kind, "compute");
    assert_eq!(holder.memory[0].bytes, None, "{holder:?}");
    assert_eq!(holder.memory_bytes, Some(24), "{holder:?}");
    assert_eq!(report.strangers[0].pid, i32::MAX, "{report:?}");
    let mut trees = report.trees.iter();
    let tree = trees.find(|tree| tree.root.process() == actor.process());
    assert_eq!(tree.expect("the tree").memory_bytes, Some(1024));

    // The memory of orphans.
    kill_and_wait(actor.child("server"));
    let report: OrphansReport = with_driver(&double, &["orphans", "--gpu"]).report();
    let holding = entry(&report.orphans, workers[0]).gpu.as_ref();
    assert_eq!(holding.expect("a holding").memory_bytes, Some(1000));
}

/// What a process forks after it has begun to compute inherits its descriptors, and with them what
/// the driver accounts to it.
#[test]
fn memory_of_the_dead_is_listed_with_who_keeps_it() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let (_actor, server, workers) = server_on(&sandbox, 2);
    kill_and_wait(server);
    double.answer(&format!(
        "process {} 4096\nprocess 2147483647 5\n",
        server.pid
    ));
    let report: GpuReport = with_driver(&double, &["gpu", "--device", device()]).success();
    let kept = |pid: i32| {
        let mut strangers = report.strangers.iter();
        let found = strangers.find(|stranger| stranger.pid == pid);
        let kept = found.unwrap_or_else(|| panic!("no {pid}: {report:?}"));
        kept.kept_by
            .iter()
            .map(|id| id.pid)
            .collect::<BTreeSet<_>>()
    };
    let workers = workers.iter().map(|worker| worker.pid);
    assert_eq!(kept(server.pid), workers.collect(), "{report:?}");
    assert_eq!(kept(i32::MAX), [].into(), "{report:?}");
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
        let report: GpuReport = output.success();
        let found = (report.nvml.state.as_str(), report.complete);
        assert_eq!(found, (state, is_complete), "{lines}: {report:?}");
    }
}

#[test]
fn the_librarys_process_has_no_capability() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let _: GpuReport = with_driver(&double, &["gpu"]).success();
    let status = double.loaded_by();
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let line = status.lines().find_map(|line| line.strip_prefix(set));
        assert_eq!(
            line.map(str::trim),
            Some("0000000000000000"),
            "{set} {status}"
        );
    }
}

/// It has the devices open for its answer alone, as long as the command that has started it.
#[test]
fn the_process_that_asks_the_library_is_no_holder() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    double.answer(&format!("open {}\n", device()));
    let (_actor, _, workers) = server_on(&sandbox, 1);
    let output = with_driver(&double, &["gpu", "--device", device()]);
    double.wait_until_asked();
    assert!(!output.stdout.contains("nvml-server"), "{output:?}");
    let report: GpuReport = output.success();
    let _ = entry(&report.holders, workers[0]);
}

/// Anybody can start lifemon's program with a device open, or preload a library into it.
#[test]
fn a_holder_that_runs_lifemons_own_program_is_not_left_out() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let lifemon = Lifemon::find();
    let mut command = lifemon.command(["nvml-server"]);
    let open = std::fs::File::open(device()).expect("the device");
    // It is never asked, so it writes nothing.
    command.stdin(Stdio::piped()).stdout(open);
    let hidden = lifemon.start(command);
    let report: GpuReport = with_driver(&double, &["gpu", "--device", device()]).success();
    let pids: Vec<_> = report.holders.iter().map(|holder| holder.pid).collect();
    let it = report.holders.iter().find(|one| one.pid == hidden.pid());
    let it = it.unwrap_or_else(|| panic!("{} is not among {pids:?}", hidden.pid()));
    assert!(it.command.ends_with(&["nvml-server".to_owned()]), "{it:?}");
    assert_eq!(it.devices, [device()], "{it:?}");
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
    let report: GpuReport = output.report();
    let nvml = &report.nvml;
    let answer = (nvml.state.as_str(), nvml.after_ms);
    assert_eq!(answer, ("hung", Some(300)), "{report:?}");
    assert_eq!(report.incomplete[0].reason, "driver_hung", "{report:?}");
}

/// Runs `attach` with the stand-in, on a host that has [`device`] in the place of a GPU.
fn attach(double: &NvmlDouble, actor: &Actor, options: &[&str]) -> lifemon_tests::Stream {
    let lifemon = Lifemon::find();
    let pid = actor.pid().to_string();
    let words = ["attach", &pid, "-o", "json", "--device", device()];
    let mut command = lifemon.command(words.iter().chain(options));
    double.offer_to(&mut command);
    lifemon.stream_of(command)
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
    stream.attached();
    double.wait_until_asked();
    for worker in &workers {
        actor.command(&format!("kill {}", worker.pid));
        stream.wait_for_event::<Gone>(*worker);
    }
    // Dead, gone, reaped, and the driver accounts memory to it all the same.
    std::thread::sleep(stretched(Duration::from_millis(60)));
    let is_released = |event: &&Event| event.as_kind::<GpuReleased>().is_some();
    assert_eq!(stream.events().iter().find(is_released), None);
    double.answer("");
    let released = stream.wait_for_event::<GpuReleased>(workers[0]);
    assert!(released.after_us >= 60_000, "{released:?}");
    actor.close();
    stream.wait_for_line::<Detached>("the end", |_| true);
    assert_eq!(stream.events().iter().filter(is_released).count(), 1);
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
    stream.attached();
    double.wait_until_asked();
    actor.command(&format!("kill {}", worker.pid));
    let held = stream.wait_for_event::<GpuHeld>(worker);
    assert!(!held.state.is_empty(), "{held:?}");
    assert!(held.after_us >= 200_000, "{held:?}");
    actor.close();
    stream.wait_for_line::<Detached>("the end", |_| true);
}

/// Gives the memory of the killed back after a while.
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
    double.wait_until_asked();
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

/// A real driver has often taken the memory back before it first answers.
#[test]
fn a_kill_reports_released_what_came_back_before_the_drivers_first_answer() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let (actor, server, workers) = server_on(&sandbox, 3);
    let pid = actor.pid().to_string();
    let report = assert_killed(&with_driver(&double, &["kill", &pid, "--device", device()]));
    let memory = report.gpu.expect("memory to wait for");
    let released = set_of(&memory.released);
    assert_eq!(released, workers.into_iter().collect(), "{memory:?}");
    assert!(!released.contains(&server), "{memory:?}");
    assert_eq!(memory.held, [], "{memory:?}");
}

/// Begins `wait --until released` with the stand-in.
fn wait_for_released(double: &NvmlDouble, process: Process) -> Running {
    let lifemon = Lifemon::find();
    let pid = process.pid.to_string();
    let words = ["wait", &pid, "--until", "released", "-o", "json"];
    let mut command = lifemon.command(words.iter().chain(&["--device", device()]));
    double.offer_to(&mut command);
    lifemon.start(command)
}

#[test]
fn a_wait_covers_who_was_dead_when_it_began() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let (_actor, server, workers) = server_on(&sandbox, 2);
    double.answer(&format!("process {} 4096\n", server.pid));
    kill_and_wait(server);
    let waiting = wait_for_released(&double, server);
    double.wait_until_asked();
    workers.into_iter().for_each(kill_and_wait);
    std::thread::sleep(stretched(Duration::from_millis(60)));
    assert!(
        proc::is_running(waiting.pid()),
        "{}",
        waiting.stdout_so_far()
    );
    double.answer("");
    let it: Value = waiting.finish(DEADLINE).success();
    assert_eq!(it["holds"], true, "{it}");
}

#[test]
fn a_wait_with_a_driver_that_fails_does_not_say_released() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    double.answer("init 999");
    let (actor, _, _) = server_on(&sandbox, 1);
    let waiting = wait_for_released(&double, actor.process());
    assert_killed(&kill(&actor.pid(), &[]));
    let output = waiting.finish(DEADLINE);
    assert_eq!(output.code, Some(1), "{output:?}");
    let it: Value = output.report();
    assert_eq!(it["holds"], false, "{it}");
    assert!(
        it["reason"]
            .as_str()
            .is_some_and(|why| why.contains("does not say")),
        "{it}"
    );
}

#[test]
fn a_kill_with_a_driver_that_fails_does_not_say_released() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    double.answer("init 999");
    let kill = |pid: i32| {
        let pid = pid.to_string();
        let words = ["kill", &pid, "--accept-suspects", "--device", device()];
        with_driver(&double, &words)
    };
    // Whoever has no GPU open leaves nothing to the driver.
    let mut actor = actor!(sandbox, "fork-hold", 1);
    actor.step();
    let output = kill(actor.pid());
    assert_eq!(output.code, Some(0), "{output:?}");

    let (actor, _, _) = server_on(&sandbox, 1);
    let output = kill(actor.pid());
    assert_eq!(alive(&sandbox), [].into());
    assert_eq!(output.code, Some(1), "{output:?}");
    let report: KillReport = output.report();
    assert!(report.extinct, "{report:?}");
    let memory = report.gpu.expect("memory to wait for");
    assert!(
        memory.failed.is_some_and(|why| !why.is_empty()),
        "{output:?}"
    );
    assert!(!memory.hung && memory.released.is_empty(), "{output:?}");
}
