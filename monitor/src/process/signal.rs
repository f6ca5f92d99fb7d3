//! A signal by its number, with its name: the one type for signals that lifemon reports and sends.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The highest number that a signal has on Linux.
const NUMBER_MAX: i32 = 64;

/// A signal.
///
/// `Display` is its name. As JSON it is its number.
///
/// ```
/// use lifemon::Signal;
///
/// assert_eq!(Signal::TERM.number(), 15);
/// assert_eq!(Signal::new(9), Some(Signal::KILL));
/// assert_eq!(Signal::KILL.to_string(), "SIGKILL");
/// assert_eq!(Signal::new(0), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "i32", try_from = "i32")]
pub struct Signal(i32);

impl Signal {
    /// Asks a process to end, as a terminal that hangs up does.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// Asks a process to end, as Ctrl-C does.
    pub const INT: Self = Self(libc::SIGINT);
    /// Ends a process, which cannot refuse.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// Asks a process to end.
    pub const TERM: Self = Self(libc::SIGTERM);

    /// Returns the signal with this number; `None` where Linux has none.
    #[must_use]
    pub const fn new(number: i32) -> Option<Self> {
        if number >= 1 && number <= NUMBER_MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Returns the signal that a status or an event names. Both come from the kernel.
    pub(crate) const fn of_kernel(number: u32) -> Self {
        Self(number.cast_signed())
    }

    /// Reads `TERM`, `SIGTERM`, `term` or `15`; `None` for what is no signal with a name.
    #[cfg(feature = "cli")]
    pub(crate) fn named(text: &str) -> Option<Self> {
        use nix::sys::signal::Signal as Standard;
        let standard = if let Ok(number) = text.parse::<i32>() {
            Standard::try_from(number).ok()
        } else {
            let name = text.to_ascii_uppercase();
            let name = name.strip_prefix("SIG").unwrap_or(&name);
            format!("SIG{name}").parse().ok()
        };
        standard.map(|standard| Self(standard as i32))
    }

    /// Returns its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Returns it as it is sent; `None` for a real-time signal.
    pub(crate) fn standard(self) -> Option<nix::sys::signal::Signal> {
        self.0.try_into().ok()
    }
}

/// `SIGKILL` for 9, and so on; `SIG34` for those without a name.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.standard() {
            Some(signal) => f.write_str(signal.as_str()),
            None => write!(f, "SIG{}", self.0),
        }
    }
}

impl From<Signal> for i32 {
    fn from(signal: Signal) -> Self {
        signal.0
    }
}

impl TryFrom<i32> for Signal {
    type Error = NoSignal;

    fn try_from(number: i32) -> Result<Self, NoSignal> {
        Self::new(number).ok_or(NoSignal(number))
    }
}

/// A number that is no signal's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no signal; give a number from 1 to {NUMBER_MAX}")]
pub struct NoSignal(i32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_its_number_as_json() {
        assert_eq!(serde_json::to_value(Signal::KILL).unwrap(), 9);
        assert_eq!(serde_json::from_str::<Signal>("15").unwrap(), Signal::TERM);
        assert!(serde_json::from_str::<Signal>("0").is_err());
        assert!(serde_json::from_str::<Signal>("65").is_err());
    }

    #[test]
    fn a_signal_without_a_name_is_called_by_its_number() {
        assert_eq!(Signal::new(34).unwrap().to_string(), "SIG34");
    }
}
