//! What one budget may take at once, so that nobody takes everything. The operator of the host
//! has limits of its own, and what is kept for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::problem::{Code, Problem};

/// The name of the operator's budget.
const OPERATOR: &str = "root";
/// Kills of a budget in [`WINDOW`].
const KILLS: usize = 10;
const WINDOW: Duration = Duration::from_mins(1);
/// Budgets whose kills are remembered.
const BUDGETS_MAX: usize = 4_096;

/// A thing of which there is not enough for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Good {
    /// Open connections.
    Connection,
    /// Trees that are watched for somebody: for events, a guard or a wait.
    Tree,
    /// Slots of the kernel. Watches of one tree share one.
    Slot,
    /// Open streams of events.
    Stream,
    /// Kills under way, and waits.
    Work,
}

impl Good {
    /// Returns how many one budget has, the operator, and all others together.
    const fn limits(self) -> (usize, usize, usize) {
        match self {
            Self::Connection => (16, 512, 1_024),
            Self::Tree => (4, 32, 256),
            // Of 63 slots 8 are for kills alone; 16 of the others stay for the operator. What one
            // budget has of them its trees say.
            Self::Slot => (31, 32, 31),
            Self::Stream => (4, 16, 64),
            Self::Work => (4, 16, 24),
        }
    }

    const fn noun(self) -> &'static str {
        match self {
            Self::Connection => "connections",
            Self::Tree => "watched trees",
            Self::Slot => "slots of the kernel",
            Self::Stream => "streams",
            Self::Work => "kills and waits at once",
        }
    }
}

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    taken: HashMap<(Good, String), usize>,
    kills: HashMap<String, VecDeque<Instant>>,
}

/// Something that was taken; given back on drop.
#[derive(Debug)]
pub(super) struct Taken {
    limits: Arc<Limits>,
    good: Good,
    budget: String,
}

impl Limits {
    /// Takes one for a budget.
    ///
    /// # Errors
    /// [`Code::LimitReached`].
    pub(super) fn take(self: &Arc<Self>, good: Good, budget: &str) -> Result<Taken, Problem> {
        let (each, operators, others) = good.limits();
        let mut inner = self.lock();
        let own = inner.taken.get(&(good, budget.to_owned())).copied();
        let own = own.unwrap_or(0);
        let is_operator = budget == OPERATOR;
        let of_others = || {
            let all = inner.taken.iter();
            let of_good = all.filter(|((taken, budget), _)| *taken == good && budget != OPERATOR);
            of_good.map(|(_, count)| count).sum::<usize>()
        };
        let limit = if is_operator { operators } else { each };
        if own >= limit {
            let detail = format!("{budget} has {limit} {} already", good.noun());
            return Err(Problem::new(Code::LimitReached, detail));
        }
        if !is_operator && of_others() >= others {
            let detail = format!("all {} are in use; try again later", good.noun());
            return Err(Problem::new(Code::LimitReached, detail));
        }
        inner.taken.insert((good, budget.to_owned()), own + 1);
        Ok(Taken {
            limits: Arc::clone(self),
            good,
            budget: budget.to_owned(),
        })
    }

    /// Takes a tree for a budget, and a slot that nobody else shares.
    ///
    /// # Errors
    /// [`Code::LimitReached`].
    pub(super) fn take_tree(self: &Arc<Self>, budget: &str) -> Result<[Taken; 2], Problem> {
        let tree = self.take(Good::Tree, budget)?;
        Ok([tree, self.take(Good::Slot, budget)?])
    }

    /// Counts a kill of a budget.
    ///
    /// # Errors
    /// [`Code::LimitReached`].
    pub(super) fn count_kill(&self, budget: &str, now: Instant) -> Result<(), Problem> {
        if budget == OPERATOR {
            return Ok(());
        }
        let mut inner = self.lock();
        if inner.kills.len() >= BUDGETS_MAX {
            let is_recent = |at: &Instant| now.duration_since(*at) < WINDOW;
            inner
                .kills
                .retain(|_, kills| kills.back().is_some_and(is_recent));
        }
        let kills = inner.kills.entry(budget.to_owned()).or_default();
        while kills
            .front()
            .is_some_and(|at| now.duration_since(*at) >= WINDOW)
        {
            kills.pop_front();
        }
        if kills.len() >= KILLS {
            let detail = format!("{budget} has had {KILLS} kills in a minute");
            return Err(Problem::new(Code::LimitReached, detail));
        }
        kills.push_back(now);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut inner = self.limits.lock();
        let key = (self.good, std::mem::take(&mut self.budget));
        if let Some(count) = inner.taken.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                inner.taken.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_has_its_share_and_gets_it_again() {
        let limits = Arc::new(Limits::default());
        let take = |budget| limits.take(Good::Tree, budget);
        let mut taken: Vec<_> = (0..4).map(|_| take("uid 1").unwrap()).collect();
        assert_eq!(take("uid 1").unwrap_err().code, Code::LimitReached);
        taken.pop();
        taken.push(take("uid 1").unwrap());
        // Others have theirs, and what is the operator's stays.
        let mut trees = Vec::new();
        for user in 2..20 {
            let budget = format!("uid {user}");
            for _ in 0..4 {
                trees.extend(limits.take_tree(&budget).ok());
            }
        }
        assert_eq!(trees.len(), 31);
        assert!(limits.take_tree("uid 99").is_err());
        assert!(take("uid 99").is_ok(), "a slot that is there is shared");
        assert!(limits.take_tree(OPERATOR).is_ok());
    }

    #[test]
    fn ten_kills_in_a_minute_and_then_again() {
        let limits = Limits::default();
        let begin = Instant::now();
        let kill = |after| limits.count_kill("uid 1", begin + Duration::from_secs(after));
        assert!((0..10).all(|second| kill(second).is_ok()));
        assert!(kill(59).is_err());
        assert!(kill(60).is_ok() && kill(60).is_err());
        assert!((0..100).all(|_| limits.count_kill(OPERATOR, begin).is_ok()));
    }
}
