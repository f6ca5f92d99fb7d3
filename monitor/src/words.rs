//! Words of messages that depend on a number. Pure.

use std::fmt::Display;

/// Returns a number with what it counts: `1 process`, `2 processes`.
pub(crate) fn count<N: Copy + Display + PartialEq + From<u8>>(number: N, one: &str) -> String {
    if number == N::from(1) {
        return format!("{number} {one}");
    }
    let ending = if one.ends_with('s') { "es" } else { "s" };
    format!("{number} {one}{ending}")
}

/// Returns that these are missing: `CAP_BPF is missing`, `CAP_BPF and CAP_PERFMON are missing`.
pub(crate) fn missing(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb} missing", names.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_nouns_agree() {
        assert_eq!(count(0_u64, "process"), "0 processes");
        assert_eq!(count(1_usize, "process"), "1 process");
        assert_eq!(count(2_u32, "ghost"), "2 ghosts");
        assert_eq!(count(1_u64, "missed hook run"), "1 missed hook run");
    }

    #[test]
    fn names_and_verbs_agree() {
        assert_eq!(missing(&["CAP_BPF"]), "CAP_BPF is missing");
        let both = missing(&["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(both, "CAP_BPF and CAP_PERFMON are missing");
    }
}
