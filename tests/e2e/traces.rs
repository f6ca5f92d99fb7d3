//! Real runs for the model of the protocol (`monitor/src/kernel/explore`): what small trees did, and
//! what the records said of them then. They are in a file, which the model replays: it has to come
//! to the same records. Here each is run again, so that the file says what the kernel half does
//! today. `LIFEMON_WRITE_TRACES=1` writes the file.

use std::collections::BTreeMap;
use std::path::Path;

use lifemon::{ProcessId, tree};
use lifemon_tests::reports::{Exited, Fork, Identified as _, Line as _};
use lifemon_tests::{Actor, Lifemon, Sandbox, needs};
use serde::{Deserialize, Serialize};

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../monitor/src/kernel/explore/traces.json"
);

/// What the trees do: a daemon, short and long lines of dead creators, the living with and without
/// dead ones between them, and a child that its creator gives away.
const BEHAVIOURS: [&str; 7] = [
    "double-fork",
    "chain 4",
    "chain 9",
    "chain 14",
    "deep 5",
    "three-children 0",
    "clone-parent",
];

/// One run. Processes are numbered in the order in which they were created; the root is 0.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Trace {
    behaviour: String,
    steps: Vec<Step>,
    records: Vec<Kept>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Fork { creator: usize, child: usize },
    Exit(usize),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    process: usize,
    creator: Option<usize>,
    is_live: bool,
    elided: u32,
}

impl Trace {
    /// Returns the living, each with the number of creations between it and the root.
    fn lines(&self) -> Vec<(usize, u32)> {
        let record = |process: usize| self.records.iter().find(|kept| kept.process == process);
        let above = |kept: &&Kept| record(kept.creator?);
        let steps = |kept: &Kept| kept.creator.map_or(0, |_| kept.elided + 1);
        let living = self.records.iter().filter(|kept| kept.is_live);
        let depth = |kept| std::iter::successors(Some(kept), above).map(steps).sum();
        living.map(|kept| (kept.process, depth(kept))).collect()
    }
}

/// Runs a behaviour under a watcher.
fn record(behaviour: &str) -> Trace {
    let sandbox = Sandbox::new();
    let words: Vec<String> = behaviour.split(' ').map(str::to_owned).collect();
    let mut actor = Actor::spawn(Path::new(env!("CARGO_BIN_EXE_actor")), &sandbox, &words);
    let root = actor.process();
    let lifemon = Lifemon::find();
    let mut watcher = lifemon.attach(&root.pid, &[]);
    watcher.attached();
    actor.step();
    let report = tree(Some(root.pid.cast_unsigned().into())).expect("a tree");
    watcher.interrupt();
    let events = watcher.finish().events;

    // No pid comes back within a run.
    let mut numbers: BTreeMap<i32, usize> = [(root.pid, 0)].into();
    let mut steps = Vec::new();
    for event in &events {
        if let Some(fork) = Fork::of(event) {
            let creator = fork.creator.as_ref().expect("it is known");
            let (creator, child) = (numbers[&creator.id().pid], numbers.len());
            numbers.insert(fork.process.id().pid, child);
            steps.push(Step::Fork { creator, child });
        } else if let Some(exit) = Exited::of(event) {
            steps.push(Step::Exit(numbers[&exit.process.id().pid]));
        }
    }
    let number = |id: ProcessId| numbers.get(&id.pid.cast_signed()).copied();
    let records = report.entries.iter().map(|entry| Kept {
        process: number(entry.process.id).expect("one of the tree"),
        creator: entry.process.creator.and_then(number),
        is_live: entry.died.is_none(),
        elided: entry.process.elided,
    });
    Trace {
        behaviour: behaviour.to_owned(),
        records: records.collect(),
        steps,
    }
}

#[test]
fn the_runs_that_the_model_replays_are_those_of_this_kernel() {
    needs!(host_tracker);
    let recorded: Vec<Trace> = BEHAVIOURS
        .iter()
        .map(|behaviour| record(behaviour))
        .collect();
    if std::env::var_os("LIFEMON_WRITE_TRACES").is_some() {
        let text = serde_json::to_string_pretty(&recorded).expect("JSON");
        std::fs::write(FILE, text + "\n").expect("the file can be written");
        return;
    }
    let expected: Vec<Trace> =
        serde_json::from_str(include_str!("../../monitor/src/kernel/explore/traces.json"))
            .expect("traces");
    for (recorded, expected) in recorded.iter().zip(&expected) {
        let name = &recorded.behaviour;
        assert_eq!(recorded.lines(), expected.lines(), "{name}");
        // Two neighbours of a line that die at the same moment can leave a ghost more.
        if !name.starts_with("chain") {
            assert_eq!(recorded.records, expected.records, "{name}");
        }
        // A process and what it has created run at the same time.
        let sorted = |trace: &Trace| {
            let mut steps = trace.steps.clone();
            steps.sort_unstable();
            steps
        };
        assert_eq!(sorted(recorded), sorted(expected), "{name}");
    }
    assert_eq!(recorded.len(), expected.len());
}
