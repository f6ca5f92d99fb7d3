//! Standard output that behaves: a closed pipe ends quietly, any other error is an error, and what
//! was written is there before lifemon goes on.

use std::io::{self, IsTerminal as _, Write as _};

/// Returns whether colour belongs on standard output: a terminal, and no `NO_COLOR`.
#[must_use]
pub fn wants_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The reader has gone: success, and the end.
    #[error("standard output was closed")]
    Closed,
    /// Anything else: a full disk.
    #[error("cannot write to standard output: {0}")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Closed
        } else {
            Self::Failed(error)
        }
    }
}

/// Writes `text`, and flushes.
///
/// # Errors
/// [`WriteError`].
pub fn print(text: &str) -> Result<(), WriteError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Makes text of others safe for a terminal: control characters are escaped, so that no process
/// name can move the cursor or change the colour.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_unsafe =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(is_unsafe) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_never_printed_raw() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(printable("VLLM::EngineCor"), "VLLM::EngineCor");
        assert_eq!(printable("\u{202e}txt"), "\\u{202e}txt");
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        assert!(matches!(
            WriteError::from(io::Error::from(io::ErrorKind::BrokenPipe)),
            WriteError::Closed
        ));
        assert!(matches!(
            WriteError::from(io::Error::from(io::ErrorKind::StorageFull)),
            WriteError::Failed(_)
        ));
    }
}
