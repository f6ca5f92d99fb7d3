//! The little that the tests and the actors read from `/proc/PID/stat`: the truth that lifemon's
//! answers are compared with. Nothing here asks lifemon.

use std::fs;

/// Some fields of `/proc/PID/stat` (see `proc_pid_stat(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `D`, `Z` and so on.
    pub state: char,
    /// The parent as the kernel has it now, after any reparenting.
    pub ppid: i32,
    /// Threads that have not been reaped.
    pub threads: u32,
    /// Field 22: start time since boot, in clock ticks (`_SC_CLK_TCK`, 100 a second everywhere).
    pub start_ticks: u64,
}

/// Returns the stat line of a process, or `None` when there is no such process (zombies have one).
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    // A name may hold any bytes.
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse(&String::from_utf8_lossy(&line))
}

/// Returns whether this pid runs: neither free nor a zombie.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Returns the parent as the kernel has it now.
#[must_use]
pub fn ppid(pid: i32) -> Option<i32> {
    stat(pid).map(|stat| stat.ppid)
}

/// The resident memory of a process, in bytes; 0 when there is none.
#[must_use]
pub fn resident_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// Returns what field 22 of the stat line says for a process with this start time.
///
/// # Panics
/// When the system does not say how long a clock tick is.
#[must_use]
pub fn ticks_of_ns(start_ns: u64) -> u64 {
    // SAFETY: sysconf reads a constant.
    let ticks_per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let ticks_per_s = u64::try_from(ticks_per_s).expect("clock ticks a second");
    start_ns / (1_000_000_000 / ticks_per_s)
}

/// Reads the line. The name may hold spaces and brackets, so fields are counted from the last `)`.
fn parse(line: &str) -> Option<Stat> {
    let mut fields = line[line.rfind(')')? + 1..].split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        ppid: fields.next()?.parse().ok()?,
        threads: fields.nth(15)?.parse().ok()?,
        start_ticks: fields.nth(1)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let line = "7 (a) R 9 (b) S 3 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 5 0 1234 1 2";
        let stat = parse(line).expect("a whole line");
        assert_eq!(
            stat,
            Stat {
                state: 'S',
                ppid: 3,
                threads: 5,
                start_ticks: 1234
            }
        );
    }

    #[test]
    fn a_short_line_is_no_stat() {
        assert_eq!(parse("7 (a) S 3"), None);
        assert_eq!(parse(""), None);
    }
}
