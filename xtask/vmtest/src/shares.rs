//! Which modules of tests run on which kernel. All of them on every kernel take an hour and more
//! when emulated; so, unless everything is asked for, those whose outcome hangs most on the kernel
//! run on each, the others on one or two, and what only needs Linux, or much of it, on none. What
//! is left out is said, by name.

use crate::kernels::Suite;

/// The hooks, the lineage and the words of the stream.
const EVERYWHERE: [&str; 2] = ["deaths", "lifecycle"];

/// By suite.
const SHARES: [(&str, &[&str]); 4] = [
    (
        "bookworm",
        &["history", "kill", "lineage", "loss", "pins", "refusals"],
    ),
    (
        "trixie",
        &[
            "actors",
            "hostile",
            "kill_bombs",
            "kill_refused",
            "log",
            "run_lives",
            "run_options",
            "run_signals",
            "run_terminal",
            "tree",
            "watchers",
        ],
    ),
    ("sid", &["kill_exact", "kill_survivors", "lineage", "pins"]),
    ("trixie-backports", &["orphans", "tracker"]),
];

/// What takes minutes on a single processor that is emulated, or asks little of the kernel.
const NOWHERE: [&str; 25] = [
    "agent",
    "commands",
    "gpu",
    "honest",
    "kill_interrupted",
    "kill_on_root_exit",
    "kill_suspects",
    "load",
    "manager",
    "manager_direct",
    "manager_wire",
    "python_servers",
    "questions",
    "recipes",
    "run",
    "run_alone",
    "run_keepers",
    "run_lends",
    "run_many",
    "run_supervised",
    "schemas",
    "selectors",
    "shapes",
    "sparing",
    "verdicts",
];

/// What takes longest in a guest, the longest last: a slow machine leaves these out first.
const SLOW: [&str; 9] = [
    "pins",
    "history",
    "kill_survivors",
    "orphans",
    "loss",
    "tracker",
    "kill_exact",
    "kill",
    "kill_bombs",
];

/// Returns the place of a module among those of a guest: what runs everywhere, what is quick, the
/// rest.
pub(crate) fn place(module: &str) -> usize {
    let slow = SLOW.iter().position(|slow| *slow == module);
    match slow {
        _ if EVERYWHERE.contains(&module) => 0,
        None => 1,
        Some(position) => position + 2,
    }
}

/// Returns whether every guest must have run this module, however slow the machine is.
pub(crate) fn is_due(module: &str) -> bool {
    EVERYWHERE.contains(&module)
}

/// Returns whether this module runs on the kernel of this suite. One that is not named above does.
pub(crate) fn is_shared(suite: Suite, module: &str) -> bool {
    let is_elsewhere = SHARES.iter().any(|(_, share)| share.contains(&module));
    let own = SHARES.iter().find(|(name, _)| *name == suite.name);
    let is_own = own.is_some_and(|(_, share)| share.contains(&module));
    EVERYWHERE.contains(&module) || is_own || !(is_elsewhere || NOWHERE.contains(&module))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::SUITES;

    #[test]
    fn each_runs_where_it_is_named_and_a_new_one_everywhere() {
        let on = |test: &str| {
            let suites = SUITES.iter().filter(|suite| is_shared(**suite, test));
            suites.map(|suite| suite.name).collect::<Vec<_>>()
        };
        assert_eq!(on("lineage"), ["bookworm", "sid"]);
        assert_eq!(on("deaths").len(), SUITES.len());
        assert_eq!(on("one_that_is_new").len(), SUITES.len());
        assert!(on("load").is_empty());
    }

    #[test]
    fn what_takes_long_comes_last() {
        let mut tests = [
            "kill_bombs",
            "actors",
            "lifecycle",
            "history",
            "one_that_is_new",
        ];
        tests.sort_by_key(|test| place(test));
        let expected = [
            "lifecycle",
            "actors",
            "one_that_is_new",
            "history",
            "kill_bombs",
        ];
        assert_eq!(tests, expected);
        assert!(is_due("deaths") && !is_due("kill"));
    }

    #[test]
    fn every_suite_has_its_share() {
        for (name, share) in SHARES {
            assert!(SUITES.iter().any(|suite| suite.name == name), "{name}");
            assert!(share.iter().all(|test| !NOWHERE.contains(test)), "{name}");
        }
    }
}
