//! What is lost is said: a ring that is too small, maps that are too small. Whatever was lost, no
//! event that is reported is wrong, and after a full ring the model is right again. With a tracker
//! of its own each, so that limits are this test's alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lifemon_tests::reports::{Attached, Event, Exited, Fork, Id, Identified as _, Lost, set_of};
use lifemon_tests::{
    Actor, DEADLINE, Finished, HostLock, Lifemon, Process, Sandbox, Stream, actor, needs,
    on_every_path, private_lock, proc,
};
use nix::sys::signal::Signal;

fn attach(actor: &Actor, options: &[&str]) -> (Stream, HostLock) {
    let lock = private_lock();
    (watch(actor, options), lock)
}

fn watch(actor: &Actor, options: &[&str]) -> Stream {
    let mut stream = Lifemon::find().attach(&actor.pid(), options);
    assert_eq!(stream.attached().tracker, "private");
    stream
}

/// The model that a reader of the stream has.
#[derive(Default)]
struct Model {
    alive: BTreeMap<Id, Process>,
    dead: BTreeSet<Id>,
    forked: BTreeSet<Process>,
    losses: Vec<Lost>,
}

impl Model {
    /// Takes one line, which must not contradict those before it.
    #[track_caller]
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Attached(attached) => {
                let members = attached.members.iter();
                self.alive
                    .extend(members.map(|member| (member.id(), member.process())));
            }
            Event::Fork(fork) => {
                let (id, born) = (fork.process.id(), fork.process.process());
                assert!(!self.dead.contains(&id), "born when dead: {event:?}");
                let before = self.alive.insert(id, born);
                assert!(before.is_none(), "born twice: {event:?}");
                self.forked.insert(born);
            }
            Event::Exit(exit) => {
                // Its fork may have been lost.
                let id = exit.process.id();
                self.alive.remove(&id);
                assert!(self.dead.insert(id), "dead twice: {event:?}");
            }
            Event::Lost(lost) => self.losses.push(lost.clone()),
            _ => {}
        }
    }

    fn living(&self) -> BTreeSet<Process> {
        self.alive.values().copied().collect()
    }

    /// Returns whether what was lost last has been recovered.
    fn has_recovered(&self) -> bool {
        self.losses.last().is_some_and(|loss| loss.recovered)
    }

    fn of(events: &[Event]) -> Self {
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
        assert_eq!(loss.reason, "ring_full", "{loss:?}");
        assert!(loss.count > 0, "{loss:?}");
        // What was before the tracker stays unknown.
        assert!(!loss.complete, "{loss:?}");
    }
    assert!(!model.losses[0].recovered);
    assert!(model.has_recovered());
    let resynced = finished.events.iter().filter(|event| event.is_resynced());
    let summary = &finished.detached().summary;
    assert_eq!(summary.alive, truth.len() as u64, "{summary:?}");
    assert_eq!(summary.resynced, resynced.count() as u64, "{summary:?}");
    assert!(summary.lost_events > 0, "{summary:?}");
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
    let mut found = finished.all::<Fork>().filter(|fork| fork.resynced);
    assert!(found.all(|fork| fork.is_by(actor.process())));
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
    let summary = &finished.detached().summary;
    assert_eq!(summary.alive, truth.len() as u64, "{summary:?}");
    let has_lost = summary.lost_events > 0;
    assert_eq!(has_lost, !model.losses.is_empty(), "{summary:?}");
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

    for reason in ["lineage_full", "members_full"] {
        stream.wait_for_line::<Lost>(reason, |lost| lost.reason == reason);
    }
    let members: BTreeSet<_> = Model::of(stream.events()).living();
    for child in &children {
        actor.command(&format!("kill {}", child.pid));
    }
    for member in members.iter().filter(|member| **member != actor.process()) {
        stream.wait_for_event::<Exited>(*member);
    }
    actor.send("exit 3");
    let finished = stream.finish();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));

    let model = Model::of(&finished.events);
    assert!(!model.forked.is_empty() && model.forked.is_subset(&children));
    assert_eq!(model.living(), [].into(), "dead, but not said to be");
    for loss in &model.losses {
        let reasons = ["lineage_full", "members_full"];
        assert!(reasons.contains(&loss.reason.as_str()), "{loss:?}");
        assert!(loss.count > 0, "{loss:?}");
    }
    let is_child = |event: &&Event| {
        let subject = event.subject();
        subject.is_some_and(|subject| children.contains(&subject.process()))
    };
    for event in finished.events.iter().filter(is_child) {
        let is_right = event.creator().is_none() || event.is_by(actor.process());
        assert!(is_right, "{event:?}");
    }
    let last = finished.detached();
    assert!(!last.complete, "{last:?}");
    let mut reasons = last.incomplete.iter().map(|loss| loss.reason.as_str());
    assert!(reasons.any(|reason| reason == "lineage_full"), "{last:?}");
    let mut exits = finished.all::<Exited>();
    let of_root = exits.find(|exit| exit.process.process() == actor.process());
    assert_eq!(of_root.expect("the root's exit").death().code, Some(3));
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
    let first: Event = run.first();
    let attached = first.as_kind::<Attached>().expect("the first line");
    assert!(!attached.complete, "{attached:?}");
    let mut reasons = attached.incomplete.iter().map(|it| it.reason.as_str());
    assert!(reasons.any(|reason| reason != "no_history"), "{attached:?}");
    let truth: BTreeSet<_> = actor
        .children("worker")
        .into_iter()
        .chain([actor.process()])
        .collect();
    assert!(set_of(&attached.members).is_subset(&truth), "{attached:?}");
}
