//! The turn in which the kernel gives out pids: whether one can have come again.

use crate::sys::text;

/// Returns whether there are at least as many pids as the kernel gives by default (32,768). They
/// are given out one after the other, and threads and processes of the whole host would have to use
/// up all of them before one comes again.
#[must_use]
pub(crate) fn has_many_pids() -> bool {
    const DEFAULT_PIDS: u32 = 32_768;
    pid_max().is_some_and(|pids| pids >= DEFAULT_PIDS)
}

fn pid_max() -> Option<u32> {
    let text = text::read("/proc/sys/kernel/pid_max").ok()?;
    text.trim().parse().ok()
}

/// How far the kernel is in giving out pids, upwards and then from the beginning again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PidTurn {
    /// The last one, in the pid namespace of this process.
    pub(crate) last: u32,
    /// Those that nothing has, of the host: as many at least come before one comes again.
    pub(crate) free: u32,
}

/// Returns how far that is; `None` where `/proc` does not say.
#[must_use]
pub(crate) fn pid_turn() -> Option<PidTurn> {
    read(&text::read("/proc/loadavg").ok()?, pid_max()?)
}

/// Reads the last two fields: `running/all` of all threads, and the last pid.
fn read(loads: &str, pid_max: u32) -> Option<PidTurn> {
    /// Below this the kernel gives out no pid a second time.
    const RESERVED: u32 = 300;
    let mut fields = loads.split_whitespace().rev();
    let last = fields.next()?.parse().ok()?;
    let (_, threads) = fields.next()?.split_once('/')?;
    let used = RESERVED.saturating_add(threads.parse().ok()?);
    let free = pid_max.saturating_sub(used);
    Some(PidTurn { last, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pid_and_the_free_ones_are_read() {
        let turn = read("2.58 2.42 3.54 3/99 11032\n", 32_768);
        let (last, free) = (11_032, 32_768 - 300 - 99);
        assert_eq!(turn, Some(PidTurn { last, free }));
        assert_eq!(read("2.58 2.42 3.54 3/40000 7", 32_768).unwrap().free, 0);
        for broken in ["", "7", "3/x 7", "1 2 3 4 5"] {
            assert_eq!(read(broken, 32_768), None, "{broken}");
        }
    }

    #[test]
    fn this_host_says_it() {
        let turn = pid_turn().expect("a turn");
        assert!(turn.last > 0 && turn.free > 0, "{turn:?}");
    }
}
