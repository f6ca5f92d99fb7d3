//! The last stage of a death: `released`, when the driver accounts no more GPU memory to a process
//! that held some. A dead process can keep it for long, or for ever when the driver hangs.
//!
//! Works in a task of its own: it receives deaths, asks the driver with growing pauses, and reports
//! when the memory is released. The driver's first answer takes longer than a small holder needs to
//! die: who had a GPU open is noted before a kill, so that its release is reported all the same.
//!
//! The race: a pid can be used again while it is waited for; memory that the driver accounts to a
//! pid whose process started later is not the dead one's.

use std::collections::HashSet;
use std::time::Duration;

use lifemon_ebpf::ProcessId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::nvml::{Answer, Server};
use crate::kernel::clock;
use crate::proc;

/// First and longest pause between two questions.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Longest time to wait until the memory of the dead is released.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// A change of GPU memory after a death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// No driver accounts any to it any more.
    Released {
        /// The dead process.
        id: ProcessId,
        /// Time of the observation, in ns since boot.
        at_ns: u64,
        /// Since it began to die, in ns.
        after_ns: u64,
    },
    /// It still has some, and is not waited for any longer.
    StillHeld {
        /// The dead process.
        id: ProcessId,
        /// Since it began to die, in ns.
        after_ns: u64,
        /// The state of the process as far as visible: `state D in nvidia_close`.
        state: String,
    },
    /// The driver does not answer: nothing more will be reported.
    Hung,
    /// The driver's answer is an error, in its words: nothing more will be reported.
    Failed(String),
}

/// A member that began to die.
#[derive(Debug, Clone, Copy)]
struct Died {
    id: ProcessId,
    at_ns: u64,
    /// True if it is known to have held a GPU, whatever the driver says afterwards.
    held: bool,
}

/// Follows the GPU memory of the members of one tree.
#[derive(Debug)]
pub struct Releases {
    deaths: Option<UnboundedSender<Died>>,
    news: UnboundedReceiver<News>,
}

impl Releases {
    /// Begins to follow. Must be called in a tokio runtime with I/O and time.
    #[must_use]
    pub fn follow(server: Server, timeout: Duration) -> Self {
        let (deaths, told) = unbounded_channel();
        let (tell, news) = unbounded_channel();
        tokio::spawn(follow(server, told, tell, timeout));
        Self {
            deaths: Some(deaths),
            news,
        }
    }

    /// Takes note that a member has begun to die at `at_ns`, ns since boot. Its release is reported
    /// if an answer of the driver shows that it held memory.
    pub fn died(&self, id: ProcessId, at_ns: u64) {
        let held = false;
        self.take_note(Died { id, at_ns, held });
    }

    /// Takes note of the death of a member that had a GPU open while it lived. Its release is
    /// reported also where the driver took the memory back before its first answer.
    pub fn holder_died(&self, id: ProcessId, at_ns: u64) {
        let held = true;
        self.take_note(Died { id, at_ns, held });
    }

    fn take_note(&self, died: Died) {
        if let Some(deaths) = &self.deaths {
            // Without a driver nobody receives.
            let _ = deaths.send(died);
        }
    }

    /// Takes note that no member will die any more: [`Releases::next`] ends when all that died are
    /// released.
    pub fn close(&mut self) {
        self.deaths = None;
    }

    /// Waits for what becomes of the next one; `None` when there is nothing more to wait for. Safe
    /// to drop and call again.
    pub async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }
}

/// Those that are waited for.
#[derive(Default)]
struct Waiting {
    /// The holders of memory in the last answer of the driver.
    holders: HashSet<u32>,
    dead: Vec<Dead>,
}

struct Dead {
    died: Died,
    /// True once it was seen to hold memory.
    held: bool,
    deadline: Instant,
}

async fn follow(
    mut server: Server,
    mut deaths: UnboundedReceiver<Died>,
    news: UnboundedSender<News>,
    timeout: Duration,
) {
    let mut waiting = Waiting::default();
    // Who holds memory now: one that dies later and lets go at once is known by this.
    if !waiting.take(&server.ask().await, &news) {
        return;
    }
    let (mut pause, mut open) = (FIRST_PAUSE, true);
    while open || !waiting.dead.is_empty() {
        let told = tokio::select! {
            died = deaths.recv(), if open => Some(died),
            () = sleep(pause), if !waiting.dead.is_empty() => None,
        };
        match told {
            Some(Some(died)) => {
                waiting.add(died, timeout);
                while let Ok(died) = deaths.try_recv() {
                    waiting.add(died, timeout);
                }
                pause = FIRST_PAUSE;
            }
            Some(None) => {
                open = false;
                continue;
            }
            None => pause = LONGEST_PAUSE.min(pause * 2),
        }
        if !waiting.take(&server.ask().await, &news) {
            return;
        }
    }
}

impl Waiting {
    fn add(&mut self, died: Died, timeout: Duration) {
        self.dead.push(Dead {
            died,
            held: died.held || self.holders.contains(&died.id.pid),
            deadline: Instant::now() + timeout,
        });
    }

    /// Applies an answer of the driver; returns false when there will be no further answer.
    fn take(&mut self, answer: &Answer, news: &UnboundedSender<News>) -> bool {
        match answer {
            Answer::Gpus(_) => {}
            Answer::Hung(_) => {
                let _ = news.send(News::Hung);
                return false;
            }
            Answer::Failed(why) => {
                let _ = news.send(News::Failed(why.clone()));
                return false;
            }
            Answer::Absent(_) | Answer::NotAsked => return false,
        }
        self.holders = answer.pids().collect();
        let now = clock::boot_ns();
        let holders = &self.holders;
        self.dead.retain_mut(|dead| {
            let Died { id, at_ns, .. } = dead.died;
            let after_ns = now.saturating_sub(at_ns);
            let holds = holders.contains(&id.pid) && !proc::has_successor(id);
            dead.held |= holds;
            let told = if !holds {
                dead.held.then_some(News::Released {
                    id,
                    at_ns: now,
                    after_ns,
                })
            } else if Instant::now() >= dead.deadline {
                let state = state(id);
                Some(News::StillHeld {
                    id,
                    after_ns,
                    state,
                })
            } else {
                return true;
            };
            if let Some(told) = told {
                let _ = news.send(told);
            }
            false
        });
        true
    }
}

/// Describes what a process that does not let go is doing.
fn state(id: ProcessId) -> String {
    let stat = proc::stat(id.pid).filter(|_| proc::owns_pid(id));
    // A zombie has closed its files: whoever has inherited them keeps what they stand for.
    let Some(stat) = stat.filter(|stat| stat.state != 'Z') else {
        return "it is gone, and its driver accounts memory to it: a process that has inherited \
                its descriptors keeps it, or the driver hangs"
            .to_owned();
    };
    match proc::wait_channel(id.pid) {
        Some(channel) => format!("state {} in {channel}", stat.state),
        None => format!("state {}", stat.state),
    }
}

#[cfg(test)]
mod tests {
    use super::super::nvml::Gpu;
    use super::*;

    const PID: u32 = u32::MAX / 4;

    fn died(pid: u32) -> Died {
        Died {
            id: ProcessId::new(pid, 7),
            at_ns: 9,
            held: false,
        }
    }

    fn holds(pid: u32) -> Answer {
        Answer::Gpus(vec![Gpu::of_one_process(pid, 1)])
    }

    /// Returns what is reported after these answers, the first of which precedes the death.
    fn told(before: &Answer, answers: &[Answer], timeout: Duration) -> Vec<News> {
        let (tell, mut news) = unbounded_channel();
        let mut waiting = Waiting::default();
        waiting.take(before, &tell);
        waiting.add(died(PID), timeout);
        for answer in answers {
            waiting.take(answer, &tell);
        }
        std::iter::from_fn(|| news.try_recv().ok()).collect()
    }

    #[test]
    fn memory_that_is_given_back_is_told_once() {
        let nobody = Answer::Gpus(Vec::new());
        let answers = [holds(PID), holds(PID), nobody.clone(), nobody.clone()];
        let news = told(&nobody, &answers, RELEASE_TIMEOUT);
        assert!(matches!(&news[..], [News::Released { .. }]), "{news:?}");
    }

    #[test]
    fn who_held_before_and_let_go_at_once_is_told_as_well() {
        let nobody = [Answer::Gpus(Vec::new())];
        let news = told(&holds(PID), &nobody, RELEASE_TIMEOUT);
        assert!(matches!(&news[..], [News::Released { .. }]), "{news:?}");
    }

    #[test]
    fn who_never_held_anything_is_not_told() {
        let nobody = Answer::Gpus(Vec::new());
        let news = told(&nobody, &[holds(1), nobody.clone()], RELEASE_TIMEOUT);
        assert_eq!(news, []);
    }

    #[test]
    fn who_is_known_to_have_held_is_told_although_no_answer_shows_it() {
        let nobody = Answer::Gpus(Vec::new());
        let (tell, mut news) = unbounded_channel();
        let mut waiting = Waiting::default();
        waiting.take(&nobody, &tell);
        let held = true;
        waiting.add(Died { held, ..died(PID) }, RELEASE_TIMEOUT);
        waiting.take(&nobody, &tell);
        let news = std::iter::from_fn(|| news.try_recv().ok()).collect::<Vec<_>>();
        assert!(matches!(&news[..], [News::Released { .. }]), "{news:?}");
    }

    #[test]
    fn who_does_not_let_go_is_told_with_its_state() {
        let news = told(&holds(PID), &[holds(PID)], Duration::ZERO);
        assert!(matches!(&news[..], [News::StillHeld { .. }]), "{news:?}");
    }

    #[test]
    fn a_driver_that_hangs_ends_it() {
        let news = told(&holds(PID), &[Answer::Hung(5)], RELEASE_TIMEOUT);
        assert_eq!(news, [News::Hung]);
    }

    #[test]
    fn a_driver_that_fails_ends_it_and_is_told() {
        let news = told(
            &holds(PID),
            &[Answer::Failed("x".to_owned())],
            RELEASE_TIMEOUT,
        );
        assert_eq!(news, [News::Failed("x".to_owned())]);
    }
}
