//! The description of one process, decoded from records and events: names, deaths, signals. Pure:
//! no I/O, no clock. `json` has the form in which it is printed and sent.

pub(crate) mod json;
mod name;
mod signal;

use std::fmt;

use lifemon_ebpf::{
    EXIT_UNSEEN, Event, INFERRED, LIVE, LogEntry, OOM_KILLED, PARENT_DEATH, ProcessId, Record,
    SENDER_KNOWN, SENT_BY_KERNEL,
};
use serde::{Deserialize, Serialize};

pub use name::Name;
pub use signal::{NoSignal, Signal};

/// Length of the clock tick to which `/proc` rounds starts down, in ns. It is a constant of the
/// interface (`USER_HZ`), not of the kernel's configuration.
const TICK_NS: u64 = 10_000_000;

/// Returns whether two identities are of one process, where one of them, or both, are from `/proc`,
/// which gives a start to a clock tick. A start that is not known (0) is like no other: the pid
/// alone proves nothing.
#[must_use]
pub const fn is_same_process(one: ProcessId, other: ProcessId) -> bool {
    one.pid == other.pid
        && (one.start_ns == 0) == (other.start_ns == 0)
        && one.start_ns / TICK_NS == other.start_ns / TICK_NS
}

/// Returns whether a start may have been rounded to a clock tick, as `/proc` does.
#[must_use]
pub(crate) const fn is_to_a_tick(id: ProcessId) -> bool {
    id.start_ns != 0 && id.start_ns.is_multiple_of(TICK_NS)
}

/// Returns whether nothing speaks against two identities being of one process: a start that is not
/// known, because `/proc` hid the process then, fits each. For a pid that its own process is known
/// to have, as an unreaped child does.
#[must_use]
pub(crate) const fn may_be_same_process(one: ProcessId, other: ProcessId) -> bool {
    let is_known = one.start_ns != 0 && other.start_ns != 0;
    one.pid == other.pid && (!is_known || is_same_process(one, other))
}

/// A process by identity and, when known, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Who {
    /// Its identity.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", schemars(with = "crate::process::json::IdSchema"))]
    pub id: ProcessId,
    /// Its `comm`; `None` when nothing is known but the identity.
    #[serde(flatten)]
    pub name: Option<Name>,
}

/// A member of a watched tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Process {
    /// Its identity.
    #[serde(flatten)]
    pub id: ProcessId,
    /// Its `comm`, at most 15 bytes.
    #[serde(flatten)]
    pub name: Option<Name>,
    /// Real user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its pid in its own pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_pid: Option<u32>,
    /// The process that called fork or clone; `None` when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<ProcessId>,
    /// True if it is older than tracking: then `creator` is the parent that it had when it was
    /// learnt.
    #[serde(default)]
    pub inferred: bool,
    /// Dead creators that are not known any more between it and `creator`.
    #[serde(default)]
    pub elided: u32,
}

/// The death of a process. `Display` puts it in words, `SIGKILL from 77 bash`; the alternate form
/// (`{:#}`) leaves out who sent the signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "json::ExitJson", from = "json::ExitJson")]
#[non_exhaustive]
pub struct Death {
    /// Status as `wait(2)` gives it.
    pub status: u32,
    /// Chosen by the out-of-memory killer.
    pub is_oom: bool,
    /// The sender of the signal, when known.
    pub sender: Option<Sender>,
    /// Nobody saw it die: how is not known.
    pub unseen: bool,
    /// The signal was the one that it wanted to get at the death of its parent, the sender.
    pub by_parent_death: bool,
}

/// The death of a process, and when it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Died {
    /// Time of its death (*dying*), in ns since boot.
    pub at_ns: u64,
    /// Its death.
    #[serde(rename = "exit")]
    pub death: Death,
}

impl Died {
    /// Returns a death at this time, ns since boot.
    #[must_use]
    pub const fn new(at_ns: u64, death: Death) -> Self {
        Self { at_ns, death }
    }

    /// Returns what a ghost's record tells of its death; `None` while it is live.
    #[must_use]
    pub(crate) fn of_record(record: &Record) -> Option<Self> {
        (record.state != LIVE).then(|| Self {
            at_ns: record.exit_ns,
            death: Death::of_record(record),
        })
    }
}

/// The sender of a signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "json::SenderJson", try_from = "json::SenderJson")]
#[non_exhaustive]
pub enum Sender {
    /// A process.
    Process(Who),
    /// The kernel on its own account: a fault, a limit, a dying pid namespace.
    Kernel,
}

/// The cause of a death, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// It called exit.
    Exited,
    /// A signal ended it.
    Signal,
    /// The out-of-memory killer chose it.
    Oom,
    /// Not known: the kernel skipped the hook.
    Unseen,
}

impl Cause {
    /// Returns the word of the output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signal => "signal",
            Self::Oom => "oom",
            Self::Unseen => "unseen",
        }
    }
}

impl Death {
    /// Returns the exit code, unless a signal ended it.
    #[must_use]
    pub const fn code(&self) -> Option<u32> {
        if self.unseen || self.signal().is_some() {
            None
        } else {
            Some(self.status >> 8 & 0xff)
        }
    }

    /// Returns the signal that ended it.
    #[must_use]
    pub const fn signal(&self) -> Option<Signal> {
        match self.status & 0x7f {
            0 => None,
            signal => Some(Signal::of_kernel(signal)),
        }
    }

    /// Returns whether a core was dumped.
    #[must_use]
    pub const fn core_dumped(&self) -> bool {
        self.signal().is_some() && self.status & 0x80 != 0
    }

    /// Returns why it ended.
    #[must_use]
    pub const fn cause(&self) -> Cause {
        if self.unseen {
            Cause::Unseen
        } else if self.is_oom {
            Cause::Oom
        } else if self.signal().is_some() {
            Cause::Signal
        } else {
            Cause::Exited
        }
    }

    /// Returns the death that a status of `wait(2)` describes.
    #[must_use]
    pub const fn from_wait_status(status: i32) -> Self {
        Self {
            status: status.cast_unsigned(),
            is_oom: false,
            sender: None,
            unseen: false,
            by_parent_death: false,
        }
    }

    /// Returns the death that an exit event reports.
    #[must_use]
    pub(crate) fn of_event(event: &Event) -> Self {
        Self::of_facts(event.status, event.flags, event.sender, &event.sender_name)
    }

    /// Returns the death that the flight recorder has.
    #[must_use]
    pub(crate) fn of_log(entry: &LogEntry) -> Self {
        Self::of_facts(entry.status, entry.flags, entry.sender, &entry.sender_name)
    }

    /// Returns the death that a ghost's record describes.
    #[must_use]
    pub(crate) fn of_record(record: &Record) -> Self {
        let (flags, name) = (record.exit_flags, &record.sender_name);
        Self::of_facts(record.status, flags, record.sender, name)
    }

    /// Returns the death of which the kernel half says this. That it went unseen only a record can
    /// say.
    fn of_facts(status: u32, flags: u32, from: ProcessId, name: &[u8; 16]) -> Self {
        Self {
            status,
            is_oom: flags & OOM_KILLED != 0,
            sender: sender(flags, from, name),
            unseen: flags & EXIT_UNSEEN != 0,
            by_parent_death: flags & PARENT_DEATH != 0,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cause(), self.signal()) {
            (Cause::Unseen, _) => return f.write_str("how is not known"),
            (Cause::Oom, _) => return f.write_str("out of memory (SIGKILL)"),
            (_, None) => return write!(f, "code {}", self.code().unwrap_or_default()),
            (_, Some(signal)) => signal.fmt(f)?,
        }
        if let Some(sender) = self.sender.as_ref().filter(|_| !f.alternate()) {
            write!(f, " from {sender}")?;
        }
        if self.by_parent_death {
            f.write_str(", for its parent died (parent-death signal)")?;
        }
        if self.core_dumped() {
            f.write_str(", core dumped")?;
        }
        Ok(())
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(who) => who.fmt(f),
            Self::Kernel => f.write_str("the kernel"),
        }
    }
}

/// `4251 python3`. The name is as the process has it: whoever prints it makes it safe.
impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id.pid)?;
        match &self.name {
            Some(name) => write!(f, " {name}"),
            None => Ok(()),
        }
    }
}

/// Returns who sent, from the flags and fields of an event or a record.
#[must_use]
pub fn sender(flags: u32, id: ProcessId, name: &[u8; 16]) -> Option<Sender> {
    if flags & SENT_BY_KERNEL != 0 {
        Some(Sender::Kernel)
    } else if flags & SENDER_KNOWN != 0 {
        Some(Sender::Process(Who {
            id,
            name: comm(name),
        }))
    } else {
        None
    }
}

impl Process {
    /// Returns the process that an event is about.
    #[must_use]
    pub(crate) fn of_event(event: &Event) -> Self {
        Self {
            id: event.process,
            name: comm(&event.name),
            uid: Some(event.uid),
            ns_pid: Some(event.ns_pid),
            creator: known(event.creator),
            inferred: false,
            elided: 0,
        }
    }

    /// Returns the process that a record describes.
    #[must_use]
    pub(crate) fn of_record(id: ProcessId, record: &Record) -> Self {
        Self {
            id,
            name: comm(&record.name),
            uid: Some(record.uid),
            ns_pid: Some(record.ns_pid),
            creator: known(record.creator),
            inferred: record.origin & INFERRED != 0,
            elided: record.elided,
        }
    }

    /// Returns a process of which nothing but the identity is known.
    #[must_use]
    pub const fn unknown(id: ProcessId) -> Self {
        Self {
            id,
            name: None,
            uid: None,
            ns_pid: None,
            creator: None,
            inferred: false,
            elided: 0,
        }
    }

    /// Returns identity and name.
    #[must_use]
    pub fn who(&self) -> Who {
        Who {
            id: self.id,
            name: self.name.clone(),
        }
    }
}

fn known(id: ProcessId) -> Option<ProcessId> {
    (!id.is_none()).then_some(id)
}

/// Returns a `comm`; `None` when it is empty.
#[must_use]
pub fn comm(bytes: &[u8; 16]) -> Option<Name> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    (end > 0).then(|| Name::from_bytes(&bytes[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(status: u32) -> Death {
        Death {
            status,
            is_oom: false,
            sender: None,
            unseen: false,
            by_parent_death: false,
        }
    }

    #[test]
    fn a_start_that_is_not_known_fits_each_and_a_known_one_only_its_own() {
        let id = |start_ns| ProcessId::new(77, start_ns);
        let (hidden, first, second) = (id(0), id(10_000_000), id(30_000_000));
        for (one, other) in [
            (hidden, first),
            (first, hidden),
            (hidden, hidden),
            (first, first),
        ] {
            assert!(may_be_same_process(one, other), "{one:?} {other:?}");
        }
        assert!(!is_same_process(hidden, first) && !may_be_same_process(first, second));
        assert!(!may_be_same_process(hidden, ProcessId::new(78, 0)));
    }

    #[test]
    fn a_status_is_a_code_or_a_signal() {
        assert_eq!(
            (death(3 << 8).code(), death(3 << 8).signal()),
            (Some(3), None)
        );
        assert_eq!(
            (death(9).code(), death(9).signal()),
            (None, Some(Signal::KILL))
        );
        assert!(death(6 | 0x80).core_dumped());
        assert!(!death(6).core_dumped());
        assert_eq!(death(0).cause(), Cause::Exited);
        assert_eq!(
            Death {
                is_oom: true,
                ..death(9)
            }
            .cause(),
            Cause::Oom
        );
    }

    #[test]
    fn a_death_in_words() {
        let sender = Who {
            id: ProcessId::new(77, 5),
            name: Some("bash".into()),
        };
        let killed = |sender| Death { sender, ..death(9) };
        let bash = killed(Some(Sender::Process(sender)));
        assert_eq!(bash.to_string(), "SIGKILL from 77 bash");
        assert_eq!(format!("{bash:#}"), "SIGKILL");
        let kernel = killed(Some(Sender::Kernel));
        assert_eq!(kernel.to_string(), "SIGKILL from the kernel");
        assert_eq!(death(6 | 0x80).to_string(), "SIGABRT, core dumped");
        assert_eq!(Death::from_wait_status(3 << 8).to_string(), "code 3");
        let oom = Death {
            is_oom: true,
            ..bash
        };
        assert_eq!(oom.to_string(), "out of memory (SIGKILL)");
        let unseen = Death {
            unseen: true,
            by_parent_death: false,
            ..death(0)
        };
        assert_eq!(unseen.to_string(), "how is not known");
    }

    #[test]
    fn a_pid_that_two_processes_have_had_is_of_neither() {
        let exact = ProcessId::new(77, 1_234_567_890);
        assert!(is_same_process(exact, ProcessId::new(77, 1_230_000_000)));
        assert!(!is_same_process(exact, ProcessId::new(77, 1_240_000_000)));
        assert!(!is_same_process(exact, ProcessId::new(78, 1_234_567_890)));
        let unknown = ProcessId::new(77, 0);
        assert!(is_same_process(unknown, unknown));
        assert!(!is_same_process(unknown, ProcessId::new(77, 5)));
    }

    #[test]
    fn a_comm_ends_at_the_first_zero() {
        assert_eq!(
            comm(b"VLLM::EngineCor\0").as_deref(),
            Some("VLLM::EngineCor")
        );
        assert_eq!(comm(&[0; 16]), None);
        assert_eq!(
            comm(b"a\xffb\0\0\0\0\0\0\0\0\0\0\0\0\0").as_deref(),
            Some("a\u{fffd}b")
        );
    }
}
