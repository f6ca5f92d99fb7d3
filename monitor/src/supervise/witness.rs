//! The witness: a child of the owner in the owner's process group. A signal does not tell whether
//! it was sent to one process or to a group; but what was sent to the group the witness has heard
//! too. It only waits to be asked.
//!
//! It ends with the owner. Its name and its words are not those of lifemon: who signals lifemon by
//! name does not mean its group.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::stops::is_stopped;
use crate::sys::child::{self, die_with, leave_directory, set_name};
use crate::sys::descriptor::close_all_but;
use crate::sys::inherited::clear_words;
use crate::sys::signals::{LAST, Signal, SignalSet, Signals, let_senders_finish, send_to_child};

/// From here on each signal that is sent comes; those below are merged with one that waits.
const FIRST_QUEUED: i32 = 32;

/// The time that an answer may take. One that is traced may never come.
const ANSWER: Duration = Duration::from_secs(1);

/// How often each signal has come.
#[derive(Debug, Clone, Copy)]
struct Counts([u16; Self::LENGTH]);

impl Counts {
    const LENGTH: usize = LAST as usize + 1;

    fn new() -> Self {
        Self([0; Self::LENGTH])
    }

    fn add(&mut self, signal: i32, count: u16) {
        let before = self.get(signal);
        let sum = if signal < FIRST_QUEUED {
            before.max(count.min(1))
        } else {
            before.saturating_add(count)
        };
        if let Ok(at) = usize::try_from(signal)
            && let Some(place) = self.0.get_mut(at)
        {
            *place = sum;
        }
    }

    fn get(&self, signal: i32) -> u16 {
        let at = usize::try_from(signal).unwrap_or(Self::LENGTH);
        self.0.get(at).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

/// The witness, as the owner has it. Killed and reaped when it is dropped.
#[derive(Debug)]
pub(super) struct Witness {
    pid: u32,
    channel: UnixStream,
}

impl Witness {
    /// Starts it, and waits until nothing of it looks like lifemon: whoever signals lifemon by name
    /// from then on does not hit it. For a process with one thread and all signals blocked.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, its) = UnixStream::pair()?;
        let owner = std::process::id();
        if let Some(pid) = child::fork()? {
            let mut witness = Self { pid, channel: ours };
            witness.channel.set_read_timeout(Some(ANSWER))?;
            witness.channel.read_exact(&mut [0])?;
            return Ok(witness);
        }
        let its = OwnedFd::from(its);
        close_all_but([&its]);
        let _ = listen(owner, its.into());
        child::exit(0)
    }

    /// Returns what it has heard since the last time; `None` when it is dead.
    fn ask(&mut self) -> Option<Counts> {
        let_senders_finish();
        // It was stopped with the group, and this process alone goes on. Sent to one that runs,
        // SIGCONT would take back what it has heard of SIGTSTP and its kin.
        if is_stopped(self.pid) {
            let _ = send_to_child(self.pid, libc::SIGCONT, false);
        }
        self.channel.write_all(&[0]).ok()?;
        let mut bytes = [0; 2 * Counts::LENGTH];
        self.channel.read_exact(&mut bytes).ok()?;
        let mut counts = Counts::new();
        for (count, pair) in counts.0.iter_mut().zip(bytes.chunks_exact(2)) {
            *count = pair.try_into().map_or(0, u16::from_ne_bytes);
        }
        Some(counts)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // An unreaped child of ours: its pid is nobody else's.
        let _ = send_to_child(self.pid, libc::SIGKILL, false);
        child::wait_for_end(self.pid);
    }
}

/// The life of the witness: answers until the owner asks no more.
fn listen(owner: u32, mut channel: UnixStream) -> io::Result<()> {
    die_with(owner)?;
    set_name(c"witness");
    clear_words();
    leave_directory();
    let signals = Signals::open()?;
    channel.write_all(&[0])?;
    let mut question = [0];
    while channel.read(&mut question)? > 0 {
        let mut counts = Counts::new();
        for signal in signals.read()? {
            let is_owners = signal.number == libc::SIGCONT && signal.sender == owner;
            counts.add(signal.number, u16::from(!is_owners));
        }
        let bytes: Vec<u8> = counts.0.into_iter().flat_map(u16::to_ne_bytes).collect();
        channel.write_all(&bytes)?;
    }
    Ok(())
}

/// A signal that came, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) signal: Signal,
    /// True if it was sent to the whole process group.
    pub(super) to_group: bool,
}

/// Hears the signals of the owner, and tells those to its group from those to it alone.
#[derive(Debug)]
pub(super) struct Hearing {
    witness: Option<Witness>,
    /// What the witness has heard and the owner has not yet.
    ahead: Counts,
}

impl Hearing {
    /// Hears with a witness. Without one, what comes from the keyboard is for the group.
    pub(super) fn new(witness: Option<Witness>) -> Self {
        Self {
            witness,
            ahead: Counts::new(),
        }
    }

    /// Dismisses the witness: from here on nobody needs to know.
    pub(super) fn dismiss(&mut self) {
        self.witness = None;
    }

    /// Notes that a child was reaped: the witness has no pid any more if it was that.
    pub(super) fn reaped(&mut self, pid: u32) {
        if self.witness.as_ref().is_some_and(|it| it.pid == pid) {
            std::mem::forget(self.witness.take());
        }
    }

    /// Notes what the group was sent while the guardian was in it, and the witness was not yet.
    pub(super) fn note(&mut self, early: SignalSet) {
        self.ask();
        for signal in (1..=LAST).filter(|signal| early.has(*signal)) {
            if self.ahead.get(signal) == 0 {
                self.ahead.add(signal, 1);
            }
        }
    }

    /// Asks the witness; returns whether it has heard something, `None` without one.
    fn ask(&mut self) -> Option<bool> {
        let Some(counts) = self.witness.as_mut()?.ask() else {
            self.witness = None;
            return None;
        };
        for signal in 1..=LAST {
            self.ahead.add(signal, counts.get(signal));
        }
        Some(!counts.is_empty())
    }

    /// Returns what has come since the last time. The owner's signals and those of the witness are
    /// read until both have none: so what was merged on one side is one signal on both.
    pub(super) fn hear(&mut self, signals: &Signals) -> io::Result<Vec<Heard>> {
        let mut came = signals.read()?;
        if came.is_empty() {
            return Ok(Vec::new());
        }
        while let Some(has_heard) = self.ask() {
            let more = signals.read()?;
            if more.is_empty() && !has_heard {
                break;
            }
            came.extend(more);
        }
        Ok(self.sort(came))
    }

    fn sort(&mut self, came: Vec<Signal>) -> Vec<Heard> {
        let mut heard: Vec<Heard> = Vec::new();
        for signal in came {
            let is_merged = |other: &Heard| other.signal.number == signal.number;
            if signal.is_about_child
                || (signal.number < FIRST_QUEUED && heard.iter().any(is_merged))
            {
                continue;
            }
            let count = self.ahead.get(signal.number);
            if let Some(place) = usize::try_from(signal.number)
                .ok()
                .and_then(|at| self.ahead.0.get_mut(at))
            {
                *place = count.saturating_sub(1);
            }
            let is_of_keyboard = signal.by_kernel && self.witness.is_none();
            let to_group = count > 0 || is_of_keyboard;
            heard.push(Heard { signal, to_group });
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(number: i32) -> Signal {
        Signal {
            number,
            by_kernel: false,
            sender: 0,
            is_about_child: false,
        }
    }

    fn sorted(hearing: &mut Hearing, numbers: &[i32]) -> Vec<(i32, bool)> {
        let came = numbers.iter().copied().map(signal).collect();
        let heard = hearing.sort(came).into_iter();
        heard.map(|it| (it.signal.number, it.to_group)).collect()
    }

    #[test]
    fn what_the_witness_has_heard_was_for_the_group() {
        let mut hearing = Hearing::new(None);
        hearing.ahead.add(libc::SIGTERM, 1);
        hearing.ahead.add(40, 2);
        let came = [libc::SIGTERM, libc::SIGINT, 40, 40, 40];
        let expected = [
            (libc::SIGTERM, true),
            (libc::SIGINT, false),
            (40, true),
            (40, true),
            (40, false),
        ];
        assert_eq!(sorted(&mut hearing, &came), expected);
        assert!(hearing.ahead.is_empty());
    }

    #[test]
    fn a_signal_below_the_queued_ones_is_merged_with_itself() {
        let mut hearing = Hearing::new(None);
        hearing.ahead.add(libc::SIGTERM, 1);
        hearing.ahead.add(libc::SIGTERM, 1);
        let came = [libc::SIGTERM, libc::SIGTERM];
        assert_eq!(sorted(&mut hearing, &came), [(libc::SIGTERM, true)]);
        assert_eq!(sorted(&mut hearing, &came), [(libc::SIGTERM, false)]);
    }

    #[test]
    fn what_a_child_has_caused_is_for_nobody() {
        let mut hearing = Hearing::new(None);
        let told = Signal {
            is_about_child: true,
            ..signal(libc::SIGCONT)
        };
        assert_eq!(hearing.sort(vec![told, signal(libc::SIGCONT)]).len(), 1);
    }
}
