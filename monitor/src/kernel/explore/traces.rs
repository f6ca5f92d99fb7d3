//! The model against real runs: what small trees did on a real kernel, done again here, has to leave
//! the same records. The runs are recorded, and kept up to date, by an end-to-end test.

use lifemon_ebpf::{HELD, LIVE, ProcessId};
use serde::Deserialize;
use shuttle::scheduler::RandomScheduler;

use super::world::{INIT, Measures, World};

#[derive(Debug, Deserialize)]
struct Trace {
    behaviour: String,
    steps: Vec<Step>,
    records: Vec<Kept>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Fork { creator: usize, child: usize },
    Exit(usize),
}

#[derive(Debug, PartialEq, Deserialize)]
struct Kept {
    process: usize,
    creator: Option<usize>,
    is_live: bool,
    elided: u32,
}

/// Does what a run did; returns the records of its tree then.
fn replay(steps: &[Step]) -> Vec<Kept> {
    let world = World::new(Measures {
        pids: 64,
        births: 64,
        ..Measures::SOUND
    });
    let mut processes = vec![world.settle_in(INIT)];
    for step in steps {
        match *step {
            Step::Fork { creator, child } => {
                assert_eq!(child, processes.len(), "numbered in their order");
                let id = world.fork(processes[creator]).expect("a pid is free");
                processes.push(id);
            }
            Step::Exit(process) => world.exit(processes[process]),
        }
    }
    let number = |id: ProcessId| processes.iter().position(|known| *known == id);
    let records = world.peek(|state| {
        let all = state.lineage.iter();
        all.map(|(id, record)| (*id, *record)).collect::<Vec<_>>()
    });
    let mut kept: Vec<_> = records
        .into_iter()
        .filter_map(|(id, record)| {
            Some(Kept {
                process: number(id)?,
                creator: number(record.creator).filter(|_| record.holds_creator == HELD),
                is_live: record.state == LIVE,
                elided: record.elided,
            })
        })
        .collect();
    kept.sort_unstable_by_key(|kept| kept.process);
    kept
}

#[test]
fn what_the_kernel_half_did_on_a_real_kernel_the_model_does() {
    let traces: Vec<Trace> = serde_json::from_str(include_str!("traces.json")).expect("traces");
    assert!(!traces.is_empty());
    super::run(RandomScheduler::new(1), move || {
        for trace in &traces {
            assert_eq!(replay(&trace.steps), trace.records, "{}", trace.behaviour);
        }
    });
}
