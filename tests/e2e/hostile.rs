//! What users can do to root's commands: nest deep, fill the map, storm with signals, watch too
//! much, and whom deaths are blamed on. Nothing of it may slow, blind or block others, or make an
//! answer false.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use lifemon_tests::killing::{assert_killed, kill};
use lifemon_tests::reports::{Exited, Identified as _, KillReport, Sender, TreeReport, set_of};
use lifemon_tests::{
    DEADLINE, HostTracker, Lifemon, Process, Sandbox, actor, needs, on_every_path, private_lock,
    proc, scaled, wait_until,
};
use nix::sys::signal::Signal;

/// More than any number of steps that a walk could be limited to.
const DEEP: u32 = 90;

#[test]
fn a_deep_line_is_exact_and_costs_only_those_in_it() {
    needs!(host_tracker);
    let (sandbox, near) = (Sandbox::new(), Sandbox::new());
    let mut deep = actor!(sandbox, "deep", DEEP);
    deep.step();
    let last = deep.child("last");
    let mut other = actor!(near, "fork-hold", 2);
    other.step();

    // The median of a few: the machine has other things to do as well.
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            let begun = Instant::now();
            let attached = Lifemon::find().attach(&other.pid(), &[]).attached();
            assert!(attached.complete, "{attached:?}");
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    assert!(times[2] < Duration::from_millis(500), "{times:?}");

    let mut stream = Lifemon::find().attach(&deep.pid(), &[]);
    let attached = stream.attached();
    assert!(attached.complete, "{attached:?}");
    assert_eq!(attached.members.len(), DEEP as usize + 1, "{attached:?}");
    drop(stream);
    let report = assert_killed(&kill(&deep.pid(), &[]));
    assert!(set_of(&report.killed).contains(&last));
    assert_eq!(report.killed.len(), DEEP as usize + 1);
    assert!(!other.seen().is_empty() && is_alive(other.process()));
}

/// Switches the tracker on with room for this many more processes than there are.
fn tracker_with_room_for(more: usize) -> HostTracker {
    let now = fs::read_dir("/proc").expect("processes").flatten();
    let is_pid = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().is_ok();
    let runs = |entry: &fs::DirEntry| fs::read_link(entry.path().join("exe")).is_ok();
    let now = now.filter(is_pid).filter(runs).count();
    HostTracker::on(&["--max-processes", &(now + more).to_string()])
}

const ROOM: usize = 200;
const FILLERS: usize = 400;

fn tree(pid: &str) -> TreeReport {
    Lifemon::find().run(["tree", pid, "-o", "json"]).report()
}

#[test]
fn a_line_that_dies_from_its_end_upwards_leaves_few_ghosts() {
    const ROUNDS: u32 = 12;
    const LENGTH: u32 = 60;
    let tracker = HostTracker::on(&[]);
    let before = tracker.status().ghosts;
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "flood", ROUNDS, LENGTH);
    actor.step();
    let leaf = actor.child("leaf");
    let status = tracker.status();
    assert!(status.ghosts < before + 40, "{status:?}");
    let tree = tree(&actor.pid().to_string());
    assert!(tree.complete, "{tree:?}");
    let found = tree
        .processes
        .iter()
        .find(|process| process.process() == leaf);
    let elided = found.expect("the leaf").elided;
    assert!(elided > ROUNDS * LENGTH / 2, "{tree:?}");
    let report = assert_killed(&kill(&actor.pid(), &[]));
    assert!(set_of(&report.killed).contains(&leaf));
}

#[test]
fn no_flood_of_ghosts_fills_the_map() {
    const ROUNDS: u32 = 12;
    const LENGTH: u32 = 60;
    let tracker = tracker_with_room_for(300);
    let (sandbox, near) = (Sandbox::new(), Sandbox::new());
    let mut flood = actor!(sandbox, "flood", ROUNDS, LENGTH);
    flood.step();
    let mut actor = actor!(near, "fork-hold", 3);
    actor.step();
    let pid = actor.pid().to_string();
    let attached = Lifemon::find().attach(&pid, &[]).attached();
    assert!(attached.complete, "{attached:?}");
    assert_eq!(attached.members.len(), 4, "{attached:?}");
    let status = tracker.status();
    assert!(status.complete && status.ghosts < 100, "{status:?}");
    let report = assert_killed(&kill(&pid, &[]));
    assert_eq!(report.killed.len(), 4, "{report:?}");
}

#[test]
fn whoever_was_lost_once_is_learnt_again() {
    let tracker = tracker_with_room_for(ROOM);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "lost-creator", FILLERS);
    actor.step();
    let (pid, middle) = (actor.pid().to_string(), actor.child("middle"));
    assert!(tracker.status().lost.records > 0);
    assert!(!tree(&pid).complete);

    // The fillers end, and the middle, which has no record, forks.
    actor.step();
    let leaf = actor.child("leaf");
    let tree = tree(&pid);
    assert!(tree.complete, "{tree:?}");
    let found = set_of(&tree.processes);
    assert!(found.is_superset(&BTreeSet::from([actor.process(), middle, leaf])));
    let status = tracker.status();
    assert_eq!((status.lost.records, status.complete), (0, true));
    let report = assert_killed(&kill(&pid, &[]));
    assert!(set_of(&report.killed).is_superset(&BTreeSet::from([middle, leaf])));
}

#[test]
fn what_a_lost_creator_leaves_is_told_and_never_held_for_outside() {
    let _tracker = tracker_with_room_for(ROOM);
    let (sandbox, near) = (Sandbox::new(), Sandbox::new());
    // Older than whoever is lost: nothing that was lost can descend from it.
    let mut younger = None;
    let mut actor = actor!(sandbox, "lost-creator", FILLERS);
    actor.step();
    actor.step();
    let leaf = actor.child("leaf");
    // Nothing has looked meanwhile: the creator of the leaf dies unknown.
    actor.step();
    let report: KillReport = kill(&actor.pid(), &[]).report();
    assert!(!report.complete, "{report:?}");
    assert!(is_alive(leaf), "nothing proves that it belongs");

    let after = younger.insert(actor!(near, "pause"));
    assert_killed(&kill(&after.pid(), &[]));
    end(leaf);
}

fn is_alive(process: Process) -> bool {
    proc::is_running(process.pid)
}

/// Ends a process that the test has made and nobody else will end.
fn end(process: Process) {
    assert!(is_alive(process));
    let pid = nix::unistd::Pid::from_raw(process.pid);
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it is ours");
}

#[test]
fn watchers_that_are_killed_at_any_moment_leave_no_mark() {
    let tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    for trial in 0..scaled(120) {
        let mut command = Lifemon::find().command(["attach", &actor.pid().to_string()]);
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("lifemon");
        std::thread::sleep(Duration::from_micros(trial % 40 * 250));
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }
    let mut stream = Lifemon::find().attach(&actor.pid(), &[]);
    assert!(stream.attached().complete);
    drop(stream);
    assert_eq!(tracker.status().watched_trees, 0);
    assert_killed(&kill(&actor.pid(), &[]));
}

/// The sets of capabilities of every thread of a process.
fn capabilities(pid: i32) -> BTreeSet<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let texts: Vec<_> = tasks.flatten().filter_map(status).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    let sets = lines.filter(|line| line.starts_with("Cap"));
    let set = |line: &str| {
        let (name, set) = line.split_once(":\t").expect("a field");
        (
            name.to_owned(),
            u64::from_str_radix(set, 16).expect("a set"),
        )
    };
    sets.map(set).collect()
}

#[test]
fn what_reads_the_words_of_users_has_few_capabilities() {
    const SYS_ADMIN: u64 = 1 << 21;
    needs!(host_tracker);
    // DAC_READ_SEARCH, KILL, SETPCAP, SYS_PTRACE, SYS_NICE, PERFMON, BPF.
    let kept: u64 = [2, 5, 8, 19, 23, 38, 39].iter().map(|bit| 1 << bit).sum();
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid().to_string();
    for (words, kept) in [
        (&["attach", &pid][..], kept),
        (&["wait", &pid], kept),
        (&["orphans", "--watch"], kept),
        (&["gpu", "--watch"], kept),
        (&["orphans", "--watch", "--port", "1"], kept | SYS_ADMIN),
    ] {
        let lifemon = Lifemon::find();
        let mut running = lifemon.start(lifemon.command(words.iter().copied()));
        let expected = [
            ("CapInh".to_owned(), 0),
            ("CapPrm".to_owned(), kept),
            ("CapEff".to_owned(), kept),
            ("CapBnd".to_owned(), kept),
            ("CapAmb".to_owned(), 0),
        ];
        wait_until(&words.join(" "), DEADLINE, || {
            capabilities(running.pid()) == expected.clone().into()
        });
        running.signal(Signal::SIGINT);
        let _ = running.finish(DEADLINE);
    }
}

fn deaths_outlive_a_storm(options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "storm", scaled(5_000));
    let _lock = private_lock();
    let ring = ["--ring-size", "16K"];
    let mut stream = Lifemon::find().attach(&actor.pid(), &[&ring, options].concat());
    stream.attached();
    // Nobody reads while signals pour in, and the deaths come last: they have room of their own.
    stream.signal(Signal::SIGSTOP);
    actor.step();
    let workers = actor.children("worker");
    for worker in &workers {
        actor.command(&format!("kill {}", worker.pid));
    }
    stream.signal(Signal::SIGCONT);
    for worker in workers {
        let exit: Exited = stream.wait_for_event(worker);
        assert!(!exit.resynced, "its event was lost: {exit:?}");
        assert_eq!(exit.death().signal, Some(9), "{exit:?}");
    }
}

fn a_timer_is_nobody(options: &[&str]) {
    for signal in [Signal::SIGTERM, Signal::SIGUSR1] {
        let sender = || {
            let sandbox = Sandbox::new();
            let mut actor = actor!(sandbox, "timer", signal as i32);
            let _lock = private_lock();
            let mut stream = Lifemon::find().attach(&actor.pid(), options);
            stream.attached();
            actor.step();
            let worker = actor.child("worker");
            let exit: Exited = stream.wait_for_event(worker);
            assert_eq!(exit.death().signal, Some(signal as i32), "{exit:?}");
            exit.death().sender.clone()
        };
        // Where the interrupt comes in the middle of this hook, as it can in the storm of the test
        // beside this one, the kernel skips it: then no sender is known, but never a wrong one.
        let found = (0..5).map(|_| sender()).find(Option::is_some).flatten();
        assert_eq!(found, Some(Sender::KERNEL), "{signal}");
    }
}

on_every_path!(deaths_outlive_a_storm, a_timer_is_nobody);

#[test]
fn whom_the_closer_kills_was_killed_by_the_command() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("made");
    for _ in 0..scaled(4) {
        let mut actor = actor!(sandbox, "comet", file.display(), "init");
        actor.step();
        wait_until("it burns", lifemon_tests::DEADLINE, || file.exists());
        let report = assert_killed(&kill(&actor.pid(), &[]));
        for killed in &report.killed {
            let by_signal = killed.exit.as_ref().filter(|exit| exit.signal == Some(9));
            let Some(exit) = by_signal else { continue };
            let name = exit
                .sender
                .as_ref()
                .and_then(|sender| sender.name.as_deref());
            assert_eq!(name, Some("lifemon"), "{killed:?}");
        }
    }
}
