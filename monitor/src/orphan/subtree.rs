//! Sums up an orphan and everything below it: what would be free if they ended. Each process is
//! counted once for every orphan that it stands below.

use std::collections::HashMap;

use lifemon_ebpf::ProcessId;
use serde::{Deserialize, Serialize};

use super::{Known, Orphan};
use crate::forest::{Forest, walk};
use crate::gpu::Holding;
use crate::proc;

/// An orphan and everything below it, together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Subtree {
    /// Number of living processes.
    pub processes: usize,
    /// Their resident memory in bytes; pages that they share count for each.
    pub resident_bytes: u64,
    /// Their time on processors, in ms.
    pub cpu_ms: u64,
    /// The GPUs and the GPU memory that they hold.
    pub gpu: Holding,
}

impl Subtree {
    /// Adds another one to it.
    pub(crate) fn add(&mut self, other: &Self) {
        self.processes += other.processes;
        self.resident_bytes = self.resident_bytes.saturating_add(other.resident_bytes);
        self.cpu_ms = self.cpu_ms.saturating_add(other.cpu_ms);
        self.gpu.add(&other.gpu);
    }
}

/// Counts the living below each orphan, and sums up what they hold of GPUs.
pub(super) fn add_held(known: &Known<'_>, orphans: &mut [Orphan]) {
    let held = |id: ProcessId| Subtree {
        processes: 1,
        gpu: known.holders.get(&id).cloned().unwrap_or_default(),
        ..Subtree::default()
    };
    for (orphan, sum) in sums(known.forest, orphans, held) {
        orphan.subtree = sum;
    }
}

/// Reads the memory and the time on processors of everything that is below these orphans. What has
/// died meanwhile counts nothing.
pub fn measure(forest: &Forest, orphans: &mut [Orphan]) {
    let read = |id: ProcessId| {
        let stat = proc::stat(id.pid).filter(|_| proc::owns_pid(id));
        stat.map_or_else(Subtree::default, |stat| Subtree {
            resident_bytes: stat.resident_bytes(id.pid),
            cpu_ms: stat.cpu_ms(),
            ..Subtree::default()
        })
    };
    for (orphan, sum) in sums(forest, orphans, read) {
        orphan.subtree.resident_bytes = sum.resident_bytes;
        orphan.subtree.cpu_ms = sum.cpu_ms;
    }
}

/// Sums up these living processes.
#[must_use]
pub fn sum(known: &Known<'_>, ids: &[ProcessId]) -> Subtree {
    let mut sum = Subtree::default();
    for id in ids {
        sum.processes += 1;
        if let Some(stat) = proc::stat(id.pid).filter(|_| proc::owns_pid(*id)) {
            sum.resident_bytes += stat.resident_bytes(id.pid);
            sum.cpu_ms += stat.cpu_ms();
        }
        sum.gpu
            .add(known.holders.get(id).unwrap_or(&Holding::default()));
    }
    sum
}

/// Returns for each orphan the sum of what `of_one` says of every living process of its subtree;
/// each is asked for once.
fn sums<'a>(
    forest: &Forest,
    orphans: &'a mut [Orphan],
    of_one: impl Fn(ProcessId) -> Subtree,
) -> impl Iterator<Item = (&'a mut Orphan, Subtree)> {
    let tops: Vec<_> = orphans.iter().map(|orphan| orphan.process.id).collect();
    let mut order = walk(&tops, |id| forest.children(id));
    // Whoever was created later is added first: a process starts after its creator.
    order.sort_unstable_by_key(|(id, _)| std::cmp::Reverse((id.start_ns, id.pid)));
    let mut sums: HashMap<ProcessId, Subtree> = HashMap::new();
    for (id, _) in order {
        let mut sum = sums.remove(&id).unwrap_or_default();
        if forest.is_live(&id) {
            sum.add(&of_one(id));
        }
        if let Some(record) = forest.record(&id) {
            sums.entry(record.creator).or_default().add(&sum);
        }
        sums.insert(id, sum);
    }
    orphans.iter_mut().map(move |orphan| {
        let sum = sums.remove(&orphan.process.id).unwrap_or_default();
        (orphan, sum)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use lifemon_ebpf::{DEAD, LIVE, Record};

    use super::*;
    use crate::gpu::{Holders, Kind, Memory};
    use crate::orphan::{Verdict, above, with_any};
    use crate::proc::{CommandLine, Placement};
    use crate::process::Process;

    fn id(pid: u32) -> ProcessId {
        // Of nobody on this host.
        ProcessId::new(u32::MAX / 4 + pid, u64::from(pid) * 10)
    }

    /// 1 (dead) -> 2 (orphan) -> 3 -> 4 (dead) -> 5 (orphan, below the other); 6 is beside them.
    fn forest() -> Forest {
        let record = |creator: u32, state| Record {
            creator: if creator == 0 {
                ProcessId::NONE
            } else {
                id(creator)
            },
            state,
            name: *b"worker\0\0\0\0\0\0\0\0\0\0",
            ..Record::default()
        };
        Forest::new([
            (id(1), record(0, DEAD)),
            (id(2), record(1, LIVE)),
            (id(3), record(2, LIVE)),
            (id(4), record(3, DEAD)),
            (id(5), record(4, LIVE)),
            (id(6), record(0, LIVE)),
        ])
    }

    fn orphan(pid: u32, verdict: Verdict) -> Orphan {
        Orphan {
            process: Process::unknown(id(pid)),
            verdict,
            evidence: Vec::new(),
            creator: None,
            creator_death: None,
            orphaned_ns: None,
            root: None,
            root_alive: false,
            parent: None,
            state: 'S',
            command: CommandLine::default(),
            placement: Placement::default(),
            gpu: Holding::default(),
            subtree: Subtree::default(),
        }
    }

    fn holds(bytes: u64) -> Holding {
        Holding {
            devices: [PathBuf::from("/dev/nvidia0")].into(),
            memory: vec![Memory {
                gpu: "GPU-1".to_owned(),
                kind: Kind::Compute,
                bytes: Some(bytes),
                gpu_instance: None,
            }],
        }
    }

    #[test]
    fn what_is_held_below_an_orphan_is_held_by_its_subtree() {
        let holders: Holders = [(id(3), holds(7)), (id(5), holds(9)), (id(6), holds(1))].into();
        let forest = forest();
        let known = Known {
            forest: &forest,
            subreapers: &std::collections::HashSet::new(),
            holders: &holders,
        };
        // In any order.
        let mut orphans = vec![orphan(5, Verdict::Left), orphan(2, Verdict::Leaked)];
        add_held(&known, &mut orphans);
        let [inner, outer] = &orphans[..] else {
            panic!("two")
        };
        assert_eq!((inner.subtree.processes, outer.subtree.processes), (1, 3));
        assert_eq!(inner.subtree.gpu, holds(9));
        assert_eq!(outer.subtree.gpu, holds(16));
    }

    #[test]
    fn a_holder_belongs_to_the_orphan_above_it_with_the_worst_verdict() {
        let orphans = [orphan(5, Verdict::Deliberate), orphan(2, Verdict::Leaked)];
        let found = above(&forest(), &orphans, [id(5), id(3), id(6)].into_iter());
        assert_eq!(found[&id(5)].process.id, id(2));
        assert_eq!(found[&id(3)].process.id, id(2));
        assert!(!found.contains_key(&id(6)));
        let orphans = [orphan(5, Verdict::Left), orphan(2, Verdict::Left)];
        let found = above(&forest(), &orphans, [id(5)].into_iter());
        assert_eq!(found[&id(5)].process.id, id(5));
    }

    #[test]
    fn a_filter_looks_at_everything_below() {
        let orphans = [orphan(2, Verdict::Leaked), orphan(6, Verdict::Left)];
        let mut asked = 0;
        let found = with_any(&forest(), &orphans, |_, record| {
            asked += 1;
            record.name.starts_with(b"worker") && asked == 3
        });
        assert_eq!(asked, 4);
        assert!(found.contains(&id(2)) && !found.contains(&id(6)));
    }
}
