//! What is noted of the members of a tree before it is killed: those that look deliberate, and
//! clients of CUDA MPS, which are not killed unasked.

use std::collections::{HashMap, HashSet};
use std::fmt;

use lifemon_ebpf::ProcessId;

use crate::forest::Forest;
use crate::gpu::mps;
use crate::orphan::{self, Evidence, Known, Verdict};
use crate::process::{Process, Who};

/// Clients of CUDA MPS that a refusal names.
const NAMED_MAX: usize = 5;

/// What is said of the members of a tree beside the report of its kill.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    /// Members that were to stay, by what says so.
    pub(crate) deliberate: HashMap<ProcessId, Vec<Evidence>>,
    /// Clients of CUDA MPS.
    pub(crate) mps_clients: HashSet<ProcessId>,
    /// Members that are spared.
    pub(crate) spared: Vec<Who>,
    /// Members that selectors have left out.
    pub(crate) not_shown: usize,
}

impl Marks {
    /// Looks at the living members of a tree; `clients` are those of CUDA MPS, `spared` stay.
    pub(crate) fn look(
        forest: &Forest,
        subreapers: &HashSet<ProcessId>,
        root: ProcessId,
        clients: MpsClients,
        spared: &[ProcessId],
    ) -> Self {
        let known = Known {
            forest,
            subreapers,
            holders: &HashMap::new(),
        };
        let orphans = forest.living(root).into_iter();
        let orphans = orphans.filter(|id| forest.is_orphan(id));
        let found = orphans.filter_map(|id| Some((id, orphan::of(&known, id)?)));
        let deliberate = found.filter(|(_, orphan)| orphan.verdict == Verdict::Deliberate);
        Self {
            deliberate: deliberate
                .map(|(id, orphan)| (id, orphan.evidence))
                .collect(),
            mps_clients: clients.0.into_iter().map(|who| who.id).collect(),
            spared: spared
                .iter()
                .filter_map(|id| Some(Process::of_record(*id, forest.record(id)?).who()))
                .collect(),
            not_shown: 0,
        }
    }
}

/// Members of a tree that are clients of CUDA MPS and would die with it. As an error it says why
/// nothing was killed; names are as the processes have them, and whoever prints it makes it safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MpsClients(Vec<Who>);

impl MpsClients {
    /// Finds those that `dies` says of that they would die.
    pub(crate) fn find(forest: &Forest, root: ProcessId, dies: impl Fn(ProcessId) -> bool) -> Self {
        let mut ids = forest.living(root);
        ids.retain(|id| mps::is_client(*id) && dies(*id));
        ids.sort_unstable();
        let who = |id| Some(Process::of_record(id, forest.record(&id)?).who());
        Self(ids.into_iter().filter_map(who).collect())
    }

    /// Checks that there is none.
    ///
    /// # Errors
    /// With those that there are.
    pub(crate) fn check(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for MpsClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.0.iter().take(NAMED_MAX).map(Who::to_string).collect();
        if self.0.len() > NAMED_MAX {
            names.push(format!("{} more", self.0.len() - NAMED_MAX));
        }
        write!(
            f,
            "{} would die as a client of CUDA MPS: with work under way that can take down other \
             clients; nothing was killed; end its work first, or kill it all the same",
            names.join(", ")
        )
    }
}

impl std::error::Error for MpsClients {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_some_and_counts_the_rest() {
        assert_eq!(MpsClients(Vec::new()).check(), Ok(()));
        let who = |pid| Process::unknown(ProcessId::new(pid, 1)).who();
        let refused = MpsClients((1..=7).map(who).collect()).check();
        let text = refused.unwrap_err().to_string();
        assert!(
            text.starts_with("1, 2, 3, 4, 5, 2 more would die"),
            "{text}"
        );
    }
}
