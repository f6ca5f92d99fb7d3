//! Output that behaves: a closed pipe ends quietly, any other error is an error, what was written
//! is there before lifemon goes on, and nothing that comes from the host does anything to a
//! terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anstream::{AutoStream, ColorChoice};

/// True if nothing is to be printed on standard output.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Takes note of what was asked for: silence, and colours.
pub fn set_up(is_quiet: bool, colours: ColorChoice) {
    IS_QUIET.store(is_quiet, Ordering::Relaxed);
    colours.write_global();
}

/// Returns whether colour belongs on standard output, by what was asked for (`--color`), else by
/// `NO_COLOR`, `CLICOLOR_FORCE`, `CLICOLOR` and `TERM`, and whether it is a terminal.
#[must_use]
pub fn wants_colour() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// Returns how many columns text for people has: those of the terminal. `None` where standard
/// output is none.
#[must_use]
pub fn columns() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// Clears the screen before something is printed again, where there is one.
///
/// # Errors
/// [`WriteError`].
pub fn clear() -> Result<(), WriteError> {
    if io::stdout().is_terminal() && !IS_QUIET.load(Ordering::Relaxed) {
        io::stdout().write_all(b"\x1b[H\x1b[2J\x1b[3J")?;
    }
    Ok(())
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

/// Writes `text`, and flushes. Everything that is printed comes through here, or through
/// [`tell`]: what somebody has forgotten to make safe is made so.
///
/// # Errors
/// [`WriteError`].
pub fn print(text: &str) -> Result<(), WriteError> {
    if IS_QUIET.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    // Text for people never begins so.
    let is_json = text.starts_with('{');
    let colours = if is_json { None } else { Some(wants_colour()) };
    out.write_all(finished(text, colours).as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a line to standard error, made safe. It may be closed: then nobody can read the line.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

/// Writes text of several lines to standard error, or one that an answer follows; what somebody has
/// forgotten to make safe is made so.
///
/// # Errors
/// When standard error cannot be written.
pub fn tell_text(text: &str) -> io::Result<()> {
    let mut err = io::stderr().lock();
    err.write_all(finished(text, None).as_bytes())?;
    err.flush()
}

/// The colours of the text, as noncharacters: no host's text has them after [`printable`], and
/// nothing else can become an escape sequence. Each is followed by its end.
const PAINT: [(char, &str); 5] = [
    ('\u{fdd0}', "\x1b[0m"),
    ('\u{fdd1}', "\x1b[31m"),
    ('\u{fdd2}', "\x1b[33m"),
    ('\u{fdd3}', "\x1b[32m"),
    ('\u{fdd4}', "\x1b[2m"),
];

/// Colours by meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tone {
    Bad = 1,
    Warn = 2,
    Good = 3,
    Faint = 4,
}

/// Returns text in a colour, where colour is wanted, as [`print`] understands it.
pub(crate) fn paint(colour: bool, tone: Tone, text: &str) -> String {
    if !colour {
        return text.to_owned();
    }
    let ((begin, _), (end, _)) = (PAINT[tone as usize], PAINT[0]);
    format!("{begin}{text}{end}")
}

/// Cuts each line to this many columns, with a mark where something is missing. Colours take none.
#[must_use]
pub(crate) fn fit(text: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns.filter(|columns| *columns > 1) else {
        return text.to_owned();
    };
    let mut fitted = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let length = line.chars().filter(|c| is_printed(*c)).count();
        let mut left = if length > columns {
            columns - 1
        } else {
            length
        };
        let mut is_cut = length <= columns;
        for c in line.chars() {
            if !is_printed(c) {
                fitted.push(c);
            } else if left > 0 {
                fitted.push(c);
                left -= 1;
            } else if !is_cut {
                fitted.push('\u{2026}');
                is_cut = true;
            }
        }
    }
    fitted
}

/// Returns whether a character takes a column: the ends of lines and our colours do not.
fn is_printed(c: char) -> bool {
    c != '\n' && !PAINT.iter().any(|(mark, _)| *mark == c)
}

/// Returns whether a character may do something to a terminal, or to the order of a text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fdd0}'..='\u{fdef}')
}

/// Returns JSON as it is written into a file: what is unsafe is escaped.
#[must_use]
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    finished(json, None)
}

/// Returns a text as it is written: what is unsafe is escaped as JSON has it, so that JSON, which
/// has such characters in strings alone, means what it meant. `colours` says whether they are
/// wanted; `None` where the text has none.
fn finished(text: &str, colours: Option<bool>) -> Cow<'_, str> {
    let is_escaped = |c: char| is_unsafe(c) && c != '\n' && c != '\t';
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut written = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        let paint = PAINT.iter().find(|(mark, _)| *mark == c);
        match (paint, colours) {
            (Some((_, code)), Some(true)) => written.push_str(code),
            (Some(_), Some(false)) => {}
            _ if is_escaped(c) => {
                let _ = write!(written, "\\u{:04x}", u32::from(c));
            }
            _ => written.push(c),
        }
    }
    Cow::Owned(written)
}

/// Makes text of others safe for a terminal: control characters are escaped, so that no process
/// name can move the cursor, change the colour or begin a line.
#[must_use]
pub fn printable(text: &str) -> String {
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
        assert_eq!(printable("\u{fdd1}"), "\\u{fdd1}", "a colour of ours");
    }

    #[test]
    fn what_nobody_made_safe_is_made_so_when_it_is_written() {
        assert_eq!(finished("a\n\tb\n", Some(true)), "a\n\tb\n");
        let raw = finished("a\x1b[2J\r\u{9b}b", Some(true));
        assert_eq!(raw, "a\\u001b[2J\\u000d\\u009bb");
        let name = "/a\u{7f}\u{9b}\u{202e}\u{fdd1}b";
        let json = serde_json::to_string(name).unwrap();
        let written = finished(&json, None);
        assert!(written.is_ascii(), "{written}");
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), name);
    }

    #[test]
    fn colours_are_written_where_they_are_wanted_alone() {
        let text = paint(true, Tone::Bad, "x");
        assert_eq!(finished(&text, Some(true)), "\x1b[31mx\x1b[0m");
        assert_eq!(finished(&text, Some(false)), "x");
        assert_eq!(paint(false, Tone::Bad, "x"), "x");
    }

    #[test]
    fn lines_fit_into_the_columns_and_colours_take_none() {
        let line = format!("ab{}\nabcdef\n", paint(true, Tone::Bad, "cdef"));
        let fitted = fit(&line, Some(4));
        assert_eq!(finished(&fitted, Some(false)), "abc\u{2026}\nabc\u{2026}\n");
        assert_eq!(
            finished(&fitted, Some(true)),
            "ab\x1b[31mc\u{2026}\x1b[0m\nabc\u{2026}\n"
        );
        assert_eq!(fit("abcd\n", Some(4)), "abcd\n");
        assert_eq!(fit(&line, None), line);
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
