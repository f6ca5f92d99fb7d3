//! The rule over every combination of facts, against the table that people are given; and the
//! situations that it is for, by name.

use super::*;

const ENDINGS: [Ending; 5] = [
    Ending::Unknown,
    Ending::Well,
    Ending::Failed,
    Ending::HungUp,
    Ending::Killed,
];

/// Calls `check` with every combination of facts.
fn for_all(mut check: impl FnMut(&Facts)) {
    let endings = ENDINGS
        .iter()
        .flat_map(|starter| ENDINGS.map(|root| (*starter, root)));
    for (starter, root) in endings {
        for bits in 0..1_u32 << 9 {
            let bit = |index: u32| bits >> index & 1 == 1;
            check(&Facts {
                is_older: bit(0),
                own_unit: bit(1).then(|| "a.service".to_owned()),
                has_entered: false,
                is_subreaper: bit(2),
                created_init: bit(3).then_some(77),
                starter,
                elided_badly: bit(4),
                root,
                own_session: bit(5),
                other_program: bit(6),
                null_input: bit(7),
                ignores_hangup: bit(8),
            });
        }
    }
}

/// The table: the first line that holds decides.
fn by_the_table(facts: &Facts) -> Verdict {
    use Ending::{Failed, HungUp, Killed, Well};
    let exited = matches!(facts.starter, Well | Failed);
    let evident = facts.other_program || facts.null_input || facts.ignores_hangup;
    let session = facts.own_session && evident && exited;
    let nohup = facts.ignores_hangup && (exited || facts.starter == HungUp);
    let manages = facts.own_unit.is_some() || facts.is_subreaper || facts.created_init.is_some();
    let lines = [
        (facts.is_older, Verdict::Inferred),
        (manages, Verdict::Deliberate),
        (facts.starter == Killed && !session, Verdict::Leaked),
        (facts.root == Killed && !session, Verdict::Leaked),
        (session || nohup, Verdict::Deliberate),
        (facts.starter == Failed, Verdict::Leaked),
        (facts.elided_badly, Verdict::Leaked),
    ];
    let line = lines.into_iter().find(|(holds, _)| *holds);
    line.map_or(Verdict::Left, |(_, verdict)| verdict)
}

#[test]
fn every_combination_of_facts_is_judged_by_the_table() {
    let mut seen = [0_u32; 4];
    for_all(|facts| {
        let verdict = judge(facts).0;
        assert_eq!(verdict, by_the_table(facts), "{facts:?}");
        seen[verdict as usize] += 1;
    });
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn only_what_is_deliberate_comes_with_evidence() {
    for_all(|facts| {
        let (verdict, evidence) = judge(facts);
        assert_eq!(
            !evidence.is_empty(),
            verdict == Verdict::Deliberate,
            "{facts:?}"
        );
    });
}

#[test]
fn what_is_not_known_never_makes_a_leak() {
    for_all(|facts| {
        let unknown = Facts {
            starter: Ending::Unknown,
            root: Ending::Unknown,
            elided_badly: false,
            ..facts.clone()
        };
        assert_ne!(judge(&unknown).0, Verdict::Leaked, "{unknown:?}");
    });
}

#[test]
fn a_killed_starter_leaves_nothing_deliberate_that_does_not_manage_others() {
    for_all(|facts| {
        let killed = Facts {
            is_older: false,
            starter: Ending::Killed,
            own_unit: None,
            has_entered: false,
            is_subreaper: false,
            created_init: None,
            ..facts.clone()
        };
        assert_eq!(judge(&killed).0, Verdict::Leaked, "{killed:?}");
    });
}

#[test]
fn how_a_death_counts() {
    let ending = |status: i32| Ending::of(&Death::from_wait_status(status));
    let (hup, kill, int) = (libc::SIGHUP, libc::SIGKILL, libc::SIGINT);
    assert_eq!((ending(0), ending(3 << 8)), (Ending::Well, Ending::Failed));
    assert_eq!(
        (ending(hup), ending(kill)),
        (Ending::HungUp, Ending::Killed)
    );
    assert_eq!(ending(int), Ending::Killed);
    let oom = Death {
        is_oom: true,
        ..Death::from_wait_status(kill)
    };
    assert_eq!(Ending::of(&oom), Ending::Killed);
    let unseen = Death {
        unseen: true,
        ..Death::from_wait_status(kill)
    };
    assert_eq!(Ending::of(&unseen), Ending::Unknown);
}

#[test]
fn a_word_is_what_is_sent() {
    for verdict in Verdict::ALL {
        assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.word());
    }
}
