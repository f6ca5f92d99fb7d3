//! How everything below this process ends: the first signal, the grace, the kill, and what became
//! of each. Driven by the loop of its process, which waits and reaps.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::census;
use super::descendants::{self, Descendant};
use super::killer::{Killer, TIMEOUT};
use super::message::Order;
use crate::ProcessId;
use crate::kernel::preflight;
use crate::proc;
use crate::process::{Death, signal_name};
use crate::sys::child::has_children;

/// Pause between two looks while the rest is being killed.
const PAUSE: Duration = Duration::from_millis(2);

/// The same once it takes long.
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// What a killer may take beyond the grace and its own time-out.
const KILLER_SLACK: Duration = Duration::from_secs(20);

/// How long an ending may take without a grace: that of the killer, and then that of this process.
pub(crate) const LIMIT: Duration = TIMEOUT.saturating_add(KILLER_SLACK).saturating_add(TIMEOUT);

/// How the rest was found and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// By the tracker: exact also against what forks while it is killed.
    Ebpf,
    /// By parents, because all of it ends up below a subreaper of ours.
    Subreaper,
}

impl Way {
    /// The word of the output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Subreaper => "subreaper",
        }
    }
}

/// What became of what was left behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rest {
    /// How it was done.
    pub way: Way,
    /// Why eBPF was not used, where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not_ebpf: Option<String>,
    /// Processes that were left behind and died, each with `pid`, `start_ns`, `name` and, where it is
    /// known, `exit`.
    pub killed: Vec<Value>,
    /// Processes that are still alive, each with `pid`, `start_ns`, `name` and `reason`.
    pub survivors: Vec<Value>,
    /// Whether nothing can have been missed.
    pub complete: bool,
    /// Reasons why it is not complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<String>,
    /// From the order until the end.
    pub elapsed_ms: f64,
}

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
    /// When the first signal was sent.
    asked: Instant,
    /// When this process began to kill.
    killing_since: Option<Instant>,
    stage: Stage,
    /// The killer, until it is reaped: below this process, and none of the rest.
    killer: Option<u32>,
    hurried: bool,
    report: Option<Value>,
    why_not_ebpf: Option<String>,
    /// Who was found alive: by pid, because an unreaped child keeps it.
    found: HashMap<u32, (ProcessId, Option<String>)>,
    struck: HashSet<ProcessId>,
    dead: Vec<Value>,
    found_new: bool,
}

impl Ending {
    /// Begins. This process must have one thread only.
    pub(crate) fn begin(order: Order) -> Self {
        let mut ending = Self {
            order,
            begun: Instant::now(),
            asked: Instant::now(),
            killing_since: None,
            stage: Stage::Killing,
            killer: None,
            hurried: order.signal.is_none(),
            report: None,
            why_not_ebpf: None,
            found: HashMap::new(),
            struck: HashSet::new(),
            dead: Vec::new(),
            found_new: false,
        };
        if order.keep || !has_children() {
            return ending;
        }
        let killer = preflight::check()
            .map_err(|refusal| refusal.to_string())
            .and_then(|()| Killer::start(order).map_err(|error| error.to_string()));
        match killer {
            Ok(killer) => {
                ending.killer = Some(killer.pid);
                ending.stage = Stage::Killer(killer);
            }
            Err(why) => ending.go_alone(why),
        }
        ending
    }

    /// The killer's pipe, to wait for.
    pub(crate) fn killer_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.stage {
            Stage::Killer(killer) => Some(killer.fd()),
            _ => None,
        }
    }

    /// How long to wait at most before the next [`Ending::step`].
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

    /// No more grace.
    pub(crate) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// The killer's pipe has something.
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

    /// A child was reaped.
    pub(crate) fn reaped(&mut self, pid: u32, status: i32) {
        if self.killer == Some(pid) {
            self.killer = None;
            return;
        }
        if let Some((id, name)) = self.found.remove(&pid) {
            let mut process = process(id, name);
            process["exit"] = exit(status);
            self.dead.push(process);
        }
    }

    /// Does what is to do now; the result once it is over.
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
            Stage::Reported if self.killer.is_some() => return None,
            Stage::Reported => self.stage = Stage::Killing,
            Stage::Grace | Stage::Killing => {}
        }
        if !has_children() {
            return Some(self.rest(Vec::new(), None));
        }
        if matches!(self.stage, Stage::Killing) {
            return self.kill();
        }
        None
    }

    /// Without a grace there is nothing to wait for: what can be killed is, while the killer gets
    /// ready for the rest. Where nothing is left for it, the kernel's own word is proof enough.
    fn strike_beside_killer(&mut self) {
        self.strike(libc::SIGKILL);
        if let Stage::Killer(killer) = &self.stage
            && descendants::has_only(self.killer)
        {
            killer.stop();
            self.stage = Stage::Reported;
        }
    }

    /// The first signal from this process itself.
    fn go_alone(&mut self, why: String) {
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
        let denied = self.strike(libc::SIGKILL);
        // Who sees nobody does not find anybody later either.
        let is_late = since.elapsed() >= TIMEOUT || !proc::is_ours();
        if denied.is_none() && !is_late {
            return None;
        }
        let denied = denied.unwrap_or_default();
        let census = census::take(self.killer);
        let is_denied = |left: &Descendant| denied.contains_key(&left.id);
        // Whom the walk has missed the next one kills, and what is dead and not reaped yet is no
        // survivor.
        let is_stuck = !census.members.is_empty()
            && census.doubt.is_none()
            && census.members.iter().all(is_denied);
        if !is_stuck && !is_late {
            return None;
        }
        let survivors = census.members.iter();
        let survivors = survivors.map(|left| survivor(left, denied.get(&left.id)));
        Some(self.rest(survivors.collect(), census.doubt))
    }

    /// Everything that is left, untouched.
    fn kept(&mut self) -> Rest {
        if !has_children() {
            return self.rest(Vec::new(), None);
        }
        let census = census::take(None);
        let left = census.members.iter();
        let left = left.map(|left| process(left.id, left.name())).collect();
        self.rest(left, census.doubt)
    }

    /// Sends a signal to everything below; those that may not be signalled, where nobody else was
    /// found.
    fn strike(&mut self, signal: i32) -> Option<HashMap<ProcessId, io::Error>> {
        self.found_new = false;
        let all = descendants::of_this_process(self.killer);
        let mut denied = HashMap::new();
        for descendant in &all {
            self.note(descendant);
            match descendant.signal(signal) {
                Ok(_) => {}
                Err(error) => _ = denied.insert(descendant.id, error),
            }
            if signal == libc::SIGKILL {
                self.found_new |= self.struck.insert(descendant.id);
            }
        }
        (!all.is_empty() && denied.len() == all.len()).then_some(denied)
    }

    /// Remembers who was found. Whoever had this pid before was reaped by its own parent.
    fn note(&mut self, descendant: &Descendant) {
        let id = descendant.id;
        if self
            .found
            .get(&id.pid)
            .is_some_and(|(known, _)| *known == id)
        {
            return;
        }
        let found = (id, descendant.name());
        if let Some((id, name)) = self.found.insert(id.pid, found) {
            self.dead.push(process(id, name));
        }
    }

    fn rest(&mut self, survivors: Vec<Value>, doubt: Option<String>) -> Rest {
        let way = if self.report.is_some() {
            Way::Ebpf
        } else {
            Way::Subreaper
        };
        let mut killed = std::mem::take(&mut self.dead);
        // Those whom their own parents have reaped: how they ended is not known here.
        let found = std::mem::take(&mut self.found).into_values();
        let over = found.filter(|(id, _)| proc::is_gone(*id));
        killed.extend(over.map(|(id, name)| process(id, name)));
        let mut incomplete = Vec::new();
        if let Some(report) = &self.report {
            let list = |field: &str| report[field].as_array().cloned().unwrap_or_default();
            let known = list("killed");
            let pids: HashSet<_> = known.iter().map(|dead| dead["pid"].as_u64()).collect();
            killed.retain(|dead| !pids.contains(&dead["pid"].as_u64()));
            killed.splice(0..0, known);
            incomplete = list("incomplete")
                .iter()
                .filter_map(|reason| reason.as_str().map(str::to_owned))
                .collect();
        }
        incomplete.extend(doubt);
        Rest {
            way,
            why_not_ebpf: self.why_not_ebpf.take(),
            killed,
            complete: incomplete.is_empty(),
            incomplete,
            survivors,
            elapsed_ms: self.begun.elapsed().as_secs_f64() * 1e3,
        }
    }
}

/// A process as the output has it.
pub(crate) fn process(id: ProcessId, name: Option<String>) -> Value {
    let mut process = json!({ "pid": id.pid });
    // It is 0 where /proc hides the process.
    if id.start_ns != 0 {
        process["start_ns"] = id.start_ns.into();
    }
    if let Some(name) = name {
        process["name"] = name.into();
    }
    process
}

fn survivor(descendant: &Descendant, error: Option<&io::Error>) -> Value {
    let mut process = process(descendant.id, descendant.name());
    let reason = match (error, proc::stat(descendant.id.pid)) {
        (Some(error), _) => format!("cannot be signalled: {error}"),
        (None, Some(stat)) => format!("has not died yet (state {})", stat.state),
        (None, None) => "dying".to_owned(),
    };
    process["reason"] = reason.into();
    process
}

/// How a process ended, from its status as `wait(2)` gives it.
pub(crate) fn exit(status: i32) -> Value {
    let death = Death {
        status: status.cast_unsigned(),
        is_oom: false,
        sender: None,
        unseen: false,
    };
    let mut exit = json!({
        "code": death.code(),
        "signal": death.signal(),
        "core_dumped": death.core_dumped(),
        "cause": death.cause().word(),
    });
    if let Some(signal) = death.signal() {
        exit["signal_name"] = signal_name(signal).into();
    }
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_has_a_code_or_a_signal() {
        assert_eq!(exit(3 << 8)["code"], 3);
        assert_eq!(exit(3 << 8)["signal"], Value::Null);
        assert_eq!(exit(9)["signal_name"], "SIGKILL");
        assert_eq!(exit(9)["code"], Value::Null);
    }
}
