//! What is lost is said: a ring that is too small, maps that are too small. Whatever was lost, no
//! event that is reported is wrong, and after a full ring the model is right again. With a tracker
//! of its own each, so that limits are this test's alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lifemon_tests::story::{is_about, process, processes};
use lifemon_tests::{
    Actor, DEADLINE, Finished, HostLock, Lifemon, Process, Sandbox, Stream, actor, needs,
    on_every_path, private_lock, proc,
};
use nix::sys::signal::Signal;
use serde_json::Value;

fn attach(actor: &Actor, options: &[&str]) -> (Stream, HostLock) {
    let lock = private_lock();
    (watch(actor, options), lock)
}

fn watch(actor: &Actor, options: &[&str]) -> Stream {
    let mut stream = Lifemon::find().attach(&actor.pid(), options);
    assert_eq!(stream.attached()["tracker"], "private");
    stream
}

/// A process by its whole identity: pids are used again in a burst.
type Id = (u64, u64);

fn id(value: &Value) -> Id {
    let field = |name| {
        value[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name}: {value}"))
    };
    (field("pid"), field("start_ns"))
}

/// The model that a reader of the stream has.
#[derive(Default)]
struct Model {
    alive: BTreeMap<Id, Process>,
    dead: BTreeSet<Id>,
    forked: BTreeSet<Process>,
    losses: Vec<Value>,
}

impl Model {
    /// Takes one line, which must not contradict those before it.
    #[track_caller]
    fn apply(&mut self, event: &Value) {
        match event["event"].as_str().expect("a word") {
            "attached" => {
                for member in event["members"].as_array().expect("members") {
                    self.alive
                        .insert(id(member), process(member).expect("a process"));
                }
            }
            "fork" => {
                let (id, born) = (
                    id(&event["process"]),
                    process(&event["process"]).expect("one"),
                );
                assert!(!self.dead.contains(&id), "born when dead: {event}");
                assert!(self.alive.insert(id, born).is_none(), "born twice: {event}");
                self.forked.insert(born);
            }
            "exit" => {
                // Its fork may have been lost.
                let id = id(&event["process"]);
                self.alive.remove(&id);
                assert!(self.dead.insert(id), "dead twice: {event}");
            }
            "lost" => self.losses.push(event.clone()),
            _ => {}
        }
    }

    fn living(&self) -> BTreeSet<Process> {
        self.alive.values().copied().collect()
    }

    /// Whether what was lost last has been made good.
    fn has_recovered(&self) -> bool {
        self.losses
            .last()
            .is_some_and(|loss| loss["recovered"] == true)
    }

    fn of(events: &[Value]) -> Self {
        let mut model = Self::default();
        for event in events {
            model.apply(event);
        }
        model
    }
}

/// Reads until the model is this, everything lost being made good; then interrupts.
#[track_caller]
fn until_living(mut stream: Stream, truth: &BTreeSet<Process>) -> Finished {
    let mut model = Model::of(stream.events());
    while !model.has_recovered() || model.living() != *truth {
        let Some(event) = stream.next_event(DEADLINE) else {
            let losses = &model.losses[model.losses.len().saturating_sub(3)..];
            let (living, missing) = (model.living(), truth - &model.living());
            let over = &living - truth;
            panic!("never right; missing {missing:?}, over {over:?}, last losses {losses:?}");
        };
        model.apply(&event);
    }
    stream.interrupt();
    let finished = stream.finish();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished
}

/// What must hold after rings were full: each loss is counted, comparisons follow, all is well.
#[track_caller]
fn assert_lost_and_recovered(finished: &Finished, truth: &BTreeSet<Process>) {
    let model = Model::of(&finished.events);
    assert_eq!(model.living(), *truth);
    for loss in &model.losses {
        assert_eq!(loss["reason"], "ring_full", "{loss}");
        assert!(
            loss["count"].as_u64().is_some_and(|count| count > 0),
            "{loss}"
        );
        // What was before the tracker stays unknown.
        assert_eq!(loss["complete"], false, "{loss}");
    }
    assert_eq!(model.losses[0]["recovered"], false);
    assert!(model.has_recovered());
    let resynced = finished
        .events
        .iter()
        .filter(|event| event["resynced"] == true);
    let resynced = resynced.count();
    let summary = &finished.events.last().expect("a summary")["summary"];
    assert_eq!(summary["alive"], truth.len(), "{summary}");
    assert_eq!(summary["resynced"], resynced, "{summary}");
    assert!(
        summary["lost_events"]
            .as_u64()
            .is_some_and(|count| count > 0),
        "{summary}"
    );
    let survivors = truth.iter().filter(|process| proc::is_running(process.pid));
    assert_eq!(
        survivors.count(),
        truth.len(),
        "the truth of this test is wrong"
    );
}

on_every_path! {
    a_stopped_reader_of_a_small_ring_recovers,
    forks_of_survivors_that_were_lost_are_found,
    a_reader_that_is_too_slow_recovers,
    full_maps_are_said_and_what_fits_is_right,
}

fn a_stopped_reader_of_a_small_ring_recovers(options: &[&str]) {
    const KEPT: usize = 40;
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "burst-hold", lifemon_tests::scaled(20_000), KEPT);
    let (mut stream, _lock) = attach(&actor, &[&["--ring-size", "4K"], options].concat());
    stream.signal(Signal::SIGSTOP);
    actor.send("go");
    // Half of it unseen, the other half while the reader catches up.
    let mut kept = 0;
    while kept < KEPT / 2 {
        kept += usize::from(actor.line()["role"] == "kept");
    }
    stream.signal(Signal::SIGCONT);
    actor.finish_step();

    let mut truth: BTreeSet<_> = actor.children("kept").into_iter().collect();
    assert_eq!(truth.len(), KEPT);
    truth.insert(actor.process());
    let finished = until_living(stream, &truth);
    assert_lost_and_recovered(&finished, &truth);
    let forked = Model::of(&finished.events).forked;
    assert!(
        actor
            .children("kept")
            .iter()
            .all(|process| forked.contains(process))
    );
}

fn forks_of_survivors_that_were_lost_are_found(options: &[&str]) {
    const KEPT: usize = 300;
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", KEPT);
    let (mut stream, _lock) = attach(&actor, &[&["--ring-size", "4K"], options].concat());
    stream.signal(Signal::SIGSTOP);
    actor.step();
    let children = actor.children("worker");
    assert_eq!(children.len(), KEPT);
    // Deaths that are lost as well, of processes whose forks are lost.
    for child in &children[..KEPT / 3] {
        actor.command(&format!("kill {}", child.pid));
    }
    stream.signal(Signal::SIGCONT);

    let mut truth: BTreeSet<_> = children[KEPT / 3..].iter().copied().collect();
    truth.insert(actor.process());
    let finished = until_living(stream, &truth);
    assert_lost_and_recovered(&finished, &truth);
    let resynced = |event: &&Value| event["event"] == "fork" && event["resynced"] == true;
    let mut found = finished.events.iter().filter(resynced);
    assert!(found.all(|event| is_about(&event["creator"], actor.process())));
}

fn a_reader_that_is_too_slow_recovers(options: &[&str]) {
    const KEPT: usize = 200;
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "burst-hold", lifemon_tests::scaled(20_000), KEPT);
    let (stream, _lock) = attach(&actor, &[&["--ring-size", "4K"], options].concat());
    actor.step();
    let mut truth: BTreeSet<_> = actor.children("kept").into_iter().collect();
    truth.insert(actor.process());
    // Whether anything was lost is for the host to decide; the truth is the same.
    let mut stream = stream;
    let mut model = Model::of(stream.events());
    while model.living() != truth || !(model.losses.is_empty() || model.has_recovered()) {
        let event = stream.next_event(DEADLINE).expect("the rest of the events");
        model.apply(&event);
    }
    stream.interrupt();
    let finished = stream.finish();
    let model = Model::of(&finished.events);
    assert_eq!(model.living(), truth);
    let summary = &finished.events.last().expect("a summary")["summary"];
    assert_eq!(summary["alive"], truth.len(), "{summary}");
    let lost = summary["lost_events"].as_u64().expect("a number");
    assert_eq!(lost > 0, !model.losses.is_empty(), "{summary}");
}

/// Those that have a record: kernel threads and zombies run no file.
fn processes_of_the_host() -> usize {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let is_process = |entry: &fs::DirEntry| fs::read_link(entry.path().join("exe")).is_ok();
    entries
        .filter(|entry| entry.path() != Path::new("/proc/self"))
        .filter(is_process)
        .count()
}

fn full_maps_are_said_and_what_fits_is_right(options: &[&str]) {
    let count = lifemon_tests::scaled(1000).max(400);
    // The processes of other tests would take the room of this one's.
    needs!(no_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", count);
    let room = (processes_of_the_host() + 250).to_string();
    let mut stream = watch(&actor, &[&["--max-processes", &room], options].concat());
    actor.step();
    let children: BTreeSet<_> = actor.children("worker").into_iter().collect();
    assert_eq!(children.len() as u64, count);

    stream.wait_for("a full lineage", |event| event["reason"] == "lineage_full");
    stream.wait_for("full memberships", |event| {
        event["reason"] == "members_full"
    });
    let members: BTreeSet<_> = Model::of(stream.events()).living();
    for child in &children {
        actor.command(&format!("kill {}", child.pid));
    }
    for member in members.iter().filter(|member| **member != actor.process()) {
        stream.wait_for(&format!("exit of {member:?}"), |event| {
            event["event"] == "exit" && is_about(&event["process"], *member)
        });
    }
    actor.send("exit 3");
    let finished = stream.finish();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));

    let model = Model::of(&finished.events);
    assert!(!model.forked.is_empty() && model.forked.is_subset(&children));
    assert_eq!(model.living(), [].into(), "dead, but not said to be");
    for loss in &model.losses {
        assert!(
            ["lineage_full", "members_full"]
                .iter()
                .any(|word| loss["reason"] == *word),
            "{loss}"
        );
        assert!(
            loss["count"].as_u64().is_some_and(|count| count > 0),
            "{loss}"
        );
    }
    for event in &finished.events {
        let Some(creator) = event.get("creator").filter(|_| is_child(event, &children)) else {
            continue;
        };
        assert!(is_about(creator, actor.process()), "{event}");
    }
    let last = finished.events.last().expect("a summary");
    assert_eq!(
        (&last["event"], &last["complete"]),
        (&"detached".into(), &false.into())
    );
    let reasons: Vec<_> = last["incomplete"]
        .as_array()
        .expect("reasons")
        .iter()
        .collect();
    assert!(
        reasons
            .iter()
            .any(|reason| reason["reason"] == "lineage_full"),
        "{last}"
    );
    let last_exit = finished
        .events
        .iter()
        .find(|event| event["event"] == "exit" && is_about(&event["process"], actor.process()));
    assert_eq!(last_exit.expect("the root's exit")["exit"]["code"], 3);
}

fn is_child(event: &Value, children: &BTreeSet<Process>) -> bool {
    let subject = process(&event["process"]);
    subject.is_some_and(|process| children.contains(&process))
}

#[test]
fn a_tree_that_does_not_fit_is_told_at_once() {
    needs!(no_tracker);
    let sandbox = Sandbox::new();
    let count = usize::try_from(lifemon_tests::scaled(1000).max(400)).expect("few");
    let mut actor = actor!(sandbox, "fork-hold", count);
    actor.step();
    let pid = actor.pid().to_string();
    let room = (processes_of_the_host() - count / 2).to_string();
    let words = [
        "attach",
        &pid,
        "-o",
        "json",
        "--max-processes",
        &room,
        "--for",
        "100ms",
    ];
    let run = Lifemon::find().run(words);
    if run.code == Some(4) {
        // Pids have wrapped, and the children were learnt before the root.
        return assert!(run.stderr.contains("--max-processes"), "{run:?}");
    }
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let first = run.stdout.lines().next().expect("a line");
    let attached: Value = serde_json::from_str(first).expect("JSON");
    assert_eq!(attached["complete"], false, "{attached}");
    let reasons = attached["incomplete"].as_array().expect("reasons");
    let is_loss = |reason: &Value| reason["reason"] != "no_history";
    assert!(reasons.iter().any(is_loss), "{attached}");
    let truth: BTreeSet<_> = actor
        .children("worker")
        .into_iter()
        .chain([actor.process()])
        .collect();
    let members: BTreeSet<_> = processes(&attached["members"]).into_iter().collect();
    assert!(members.is_subset(&truth), "{attached}");
}
