//! What this process was given by whoever executed it, and the runtime of Rust changes before
//! `main`: it opens `/dev/null` where a standard stream is closed, and ignores SIGPIPE. Looked at
//! before that, for commands that are to find it as it was.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::sys::text;

/// The standard streams.
const STREAMS: [libc::c_int; 3] = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];

/// Bit of [`FOUND`] for SIGPIPE; below it there is one for each stream.
const IGNORES_PIPE: u8 = 1 << STREAMS.len();

/// What was found at the start.
static FOUND: AtomicU8 = AtomicU8::new(0);

/// Called by the loader before `main`.
#[used]
// SAFETY: the section holds pointers to functions without arguments that the loader calls, one by
// one, before any other thread exists. What the loader passes to them is not looked at.
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = look;

extern "C" fn look() {
    let mut found = 0;
    for (bit, stream) in STREAMS.iter().enumerate() {
        // SAFETY: the call takes no pointer.
        if unsafe { libc::fcntl(*stream, libc::F_GETFD) } < 0 {
            found |= 1 << bit;
        }
    }
    // SAFETY: a null action is allowed, and changes nothing; all zero is valid for the other.
    let handler = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action);
        action.sa_sigaction
    };
    if handler == libc::SIG_IGN {
        found |= IGNORES_PIPE;
    }
    FOUND.store(found, Ordering::Relaxed);
}

/// Returns the standard streams that were closed.
pub(crate) fn closed_streams() -> impl Iterator<Item = libc::c_int> {
    let found = FOUND.load(Ordering::Relaxed);
    let is_closed = move |(bit, _): &(usize, libc::c_int)| found >> bit & 1 == 1;
    STREAMS
        .into_iter()
        .enumerate()
        .filter(is_closed)
        .map(|(_, stream)| stream)
}

/// Returns whether SIGPIPE was ignored.
pub(crate) fn ignored_pipe() -> bool {
    FOUND.load(Ordering::Relaxed) & IGNORES_PIPE != 0
}

/// Clears the words that `ps` shows for this process.
pub(crate) fn clear_words() {
    let Some((start, length)) = words() else {
        return;
    };
    // SAFETY: the kernel says that the words of this process lie there: memory of its own that it
    // may write to, and that nobody reads while this copy of one thread runs no other code. The
    // standard library has pointers to it, and finds empty words from now on.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(start).write_bytes(0, length) };
}

/// Returns where the words of this process lie, and their length: from the 48th and the 49th field
/// of its `stat`.
fn words() -> Option<(usize, usize)> {
    let line = text::read("/proc/self/stat").ok()?;
    let (_, fields) = line.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(48 - 3);
    let start: usize = fields.next()?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    let length = end.checked_sub(start)?;
    (start != 0).then_some((start, length))
}
