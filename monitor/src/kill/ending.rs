//! Ends everything below this process: the first signal, the grace, the kill, and what became of
//! each. Driven by the loop of its process, which waits and reaps.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::below::{Below, Pass, Scope};
use super::census::{self, Census};
use super::child::{Killer, Report, TIMEOUT};
use super::keep::Keep;
use super::outcome::{Order, Outcome, Rest, Subject, Survivor, Way};
use super::survivor;
use super::walk::{self, Descendant, Reaped};
use crate::ProcessId;
use crate::kernel::preflight;
use crate::loss::{Incomplete, Loss};
use crate::proc;
use crate::sys::child::has_children;

/// Pause between two looks while the rest is being killed.
const PAUSE: Duration = Duration::from_millis(2);

/// The same once it takes long.
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// The time that a killer may take beyond the grace and its own time-out.
const KILLER_SLACK: Duration = Duration::from_secs(20);

/// The time that an ending may take without a grace: that of the killer, and then that of this
/// process.
pub(crate) const LIMIT: Duration = TIMEOUT.saturating_add(KILLER_SLACK).saturating_add(TIMEOUT);

enum Stage {
    /// The killer works.
    Killer(Killer),
    /// It has reported, or was not needed, and is not reaped yet.
    Reported,
    /// The first signal was sent by this process.
    Grace,
    /// This process kills.
    Killing,
}

/// An ending under way.
pub(crate) struct Ending {
    order: Order,
    begun: Instant,
    /// The time of the first signal.
    asked: Instant,
    /// The time when this process began to kill.
    killing_since: Option<Instant>,
    stage: Stage,
    hurried: bool,
    /// True if the last pass has found a new process.
    found_new: bool,
    report: Option<Report>,
    /// True if the killer has sent signals, and its report did not come.
    is_report_lost: bool,
    why_not_ebpf: Option<String>,
    below: Below,
}

impl Ending {
    /// Starts an ending. This process must have one thread only.
    pub(crate) fn begin(order: Order) -> Self {
        let keep = Keep::new(order.keep_matching.as_deref());
        let mut ending = Self {
            begun: Instant::now(),
            asked: Instant::now(),
            killing_since: None,
            stage: Stage::Killing,
            hurried: order.signal.is_none(),
            order,
            found_new: false,
            report: None,
            is_report_lost: false,
            why_not_ebpf: None,
            below: Below::default(),
        };
        ending.below.keep = keep;
        if ending.order.keep || ending.is_over() {
            return ending;
        }
        let kept = ending.exact_kept();
        let killer = preflight::check()
            .map_err(|refusal| refusal.to_string())
            .and_then(|()| Killer::start(&ending.order, kept).map_err(|error| error.to_string()));
        match killer {
            Ok(killer) => {
                ending.below.except = Some(killer.pid);
                ending.stage = Stage::Killer(killer);
            }
            Err(why) => ending.go_alone(why),
        }
        ending
    }

    /// Returns the killer's pipe, to wait for.
    pub(crate) fn killer_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.stage {
            Stage::Killer(killer) => Some(killer.fd()),
            _ => None,
        }
    }

    /// Returns how long to wait at most before the next [`Ending::step`].
    pub(crate) fn wait(&self) -> Duration {
        match &self.stage {
            Stage::Killer(_) if !self.hurried => Duration::from_secs(1),
            Stage::Grace => self.grace_left().min(Duration::from_secs(1)),
            Stage::Reported => LONG_PAUSE,
            Stage::Killing if self.found_new => Duration::ZERO,
            Stage::Killer(_) | Stage::Killing => {
                let since = self.killing_since.unwrap_or(self.begun);
                if since.elapsed() < Duration::from_secs(1) {
                    PAUSE
                } else {
                    LONG_PAUSE
                }
            }
        }
    }

    fn grace_left(&self) -> Duration {
        self.order.grace.saturating_sub(self.asked.elapsed())
    }

    /// Ends the grace.
    pub(crate) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Reads from the killer's pipe, which has something.
    pub(crate) fn read_killer(&mut self) {
        let Stage::Killer(killer) = &mut self.stage else {
            return;
        };
        match killer.read() {
            None => {}
            Some(Ok(report)) => {
                self.report = Some(report);
                self.stage = Stage::Reported;
            }
            Some(Err(why)) => self.go_alone(why),
        }
    }

    /// Takes in that a child was reaped.
    pub(crate) fn reaped(&mut self, reaped: &Reaped) {
        // The killer is none of the rest, and keeps its pid until now.
        if self.below.except == Some(reaped.id.pid) {
            self.below.except = None;
        } else {
            self.below.note(reaped);
        }
    }

    /// Does what is to do now; returns the result once all has ended.
    pub(crate) fn step(&mut self) -> Option<Rest> {
        if self.order.keep {
            return Some(self.kept());
        }
        match &self.stage {
            Stage::Killer(killer) => {
                let limit = self.order.grace + TIMEOUT + KILLER_SLACK;
                if self.begun.elapsed() > limit {
                    killer.stop();
                    self.go_alone("the killer did not end".to_owned());
                } else if self.hurried {
                    self.strike_beside_killer();
                }
                return None;
            }
            Stage::Grace if self.grace_left().is_zero() || self.hurried => {
                self.stage = Stage::Killing;
            }
            Stage::Reported if self.below.except.is_some() => return None,
            Stage::Reported => self.stage = Stage::Killing,
            Stage::Grace | Stage::Killing => {}
        }
        if self.is_over() {
            let kept = if self.below.keep.is_given() {
                self.census().1
            } else {
                Vec::new()
            };
            return Some(self.rest(kept, None));
        }
        if matches!(self.stage, Stage::Killing) {
            return self.kill();
        }
        None
    }

    /// Returns whether nobody is left but those who are kept.
    fn is_over(&mut self) -> bool {
        if !has_children() {
            return true;
        }
        self.below.keep.is_given() && {
            let (census, _) = self.census();
            census.members.is_empty() && census.doubt.is_none()
        }
    }

    /// Lists everybody who is left: those who are to end, and those who are kept.
    fn census(&mut self) -> (Census, Vec<Survivor>) {
        let mut census = census::take(self.below.except);
        let mut kept = Vec::new();
        census.members.retain(|left| {
            let is_kept = self.below.keep.keeps(left);
            if is_kept {
                kept.push(Survivor::new(Subject::new(left.id, left.name()), None));
            }
            !is_kept
        });
        (census, kept)
    }

    /// Returns those who are kept, with the starts that a tracker knows where it can.
    fn exact_kept(&mut self) -> Vec<ProcessId> {
        if !self.below.keep.is_given() {
            return Vec::new();
        }
        drop(self.census());
        self.below.keep.found().collect()
    }

    /// Kills what can be killed while the killer gets ready for the rest: without a grace there is
    /// nothing to wait for. Where nothing is left for it, the kernel's own word is proof enough;
    /// but whom the killer has killed before this process has seen them, only its report names.
    fn strike_beside_killer(&mut self) {
        self.strike(libc::SIGKILL);
        if let Stage::Killer(killer) = &mut self.stage
            && walk::has_only(self.below.except)
            // In this order: all are reaped, so one that has not begun by now kills nobody.
            && !killer.has_begun()
        {
            killer.stop();
            self.stage = Stage::Reported;
        }
    }

    /// Goes on without the killer: sends the first signal from this process itself.
    fn go_alone(&mut self, why: String) {
        if let Stage::Killer(killer) = &mut self.stage {
            self.is_report_lost = killer.has_begun();
        }
        self.why_not_ebpf = Some(why);
        self.stage = Stage::Grace;
        self.asked = Instant::now();
        if let Some(signal) = self.order.signal {
            self.strike(signal);
        } else {
            self.stage = Stage::Killing;
        }
    }

    fn kill(&mut self) -> Option<Rest> {
        let since = *self.killing_since.get_or_insert_with(Instant::now);
        let pass = self.strike(libc::SIGKILL);
        // Who sees nobody does not find anybody later either.
        let is_late = since.elapsed() >= TIMEOUT || !proc::is_ours();
        if !pass.is_denied() && !is_late {
            return None;
        }
        let (census, kept) = self.census();
        let is_denied = |left: &Descendant| pass.denied.contains_key(&left.id);
        // Whom the walk has missed the next one kills, and what is dead and not reaped yet is no
        // survivor.
        let is_stuck = pass.is_denied()
            && !census.members.is_empty()
            && census.doubt.is_none()
            && census.members.iter().all(is_denied);
        if !is_stuck && !is_late {
            return None;
        }
        let survivors = census.members.iter().map(|left| {
            let denied = pass.denied.get(&left.id).map(survivor::denied);
            let reason = denied.unwrap_or_else(|| survivor::reason(left.id));
            Survivor::new(Subject::new(left.id, left.name()), Some(reason))
        });
        let survivors = survivors.chain(kept).collect();
        Some(self.rest(survivors, census.doubt))
    }

    /// Lists everything that is left, untouched.
    fn kept(&mut self) -> Rest {
        if !has_children() {
            return self.rest(Vec::new(), None);
        }
        let census = census::take(None);
        let left = census.members.iter();
        let left = left.map(|left| Survivor::new(Subject::new(left.id, left.name()), None));
        self.rest(left.collect(), census.doubt)
    }

    /// Sends a signal to everything below.
    fn strike(&mut self, signal: i32) -> Pass {
        let pass = self.below.pass(Scope::Everything, signal);
        self.found_new = pass.found_new;
        pass
    }

    /// Joins what the killer has reported with what this process has seen.
    fn rest(&mut self, survivors: Vec<Survivor>, doubt: Option<Incomplete>) -> Rest {
        let (way, mut outcome, losses) = match self.report.take() {
            Some(report) => (Way::Ebpf, report.outcome, report.losses),
            None => (Way::Subreaper, Outcome::default(), Vec::new()),
        };
        outcome.add_killed(self.below.killed());
        let losses = losses.into_iter().map(Incomplete::from);
        let lost = self.is_report_lost.then_some(Loss::ReportLost);
        let lost = lost.map(Incomplete::from);
        let incomplete: Vec<_> = losses.chain(lost).chain(doubt).collect();
        Rest {
            way,
            why_not_ebpf: self.why_not_ebpf.take(),
            killed: outcome.killed,
            survivors,
            complete: incomplete.is_empty(),
            incomplete,
            elapsed: self.begun.elapsed(),
        }
    }
}
