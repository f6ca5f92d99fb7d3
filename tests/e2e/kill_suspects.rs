//! `lifemon kill` where history is missing: who looks like a former member is listed with its
//! evidence, ends the command with 1, and dies only where that was asked for; a healthy twin, a
//! daemon and what is older than the root are nobody's former members.

use std::collections::BTreeSet;

use lifemon_tests::killing::{alive, checked};
use lifemon_tests::reports::{KillReport, assert_only_history_is_missing, entry, set_of};
use lifemon_tests::{Actor, HostTracker, Lifemon, Output, Process, Sandbox, needs};

/// The five processes of the behaviour.
struct Family {
    older: Process,
    root: Process,
    former: Process,
    daemon: Process,
    twin: Process,
}

/// Makes them; those who go away go to the other sandbox.
fn family(sandbox: &Sandbox, elsewhere: &Sandbox, how: &str) -> (Actor, Family) {
    let paths = elsewhere.paths().into_iter();
    let groups = paths.map(|path| path.join("cgroup.procs"));
    let groups = groups.filter(|file| file.exists());
    let groups = groups.map(|file| file.display().to_string());
    let words: Vec<_> = ["former".to_owned(), how.to_owned()]
        .into_iter()
        .chain(groups)
        .collect();
    let mut actor = Actor::spawn(env!("CARGO_BIN_EXE_actor").as_ref(), sandbox, &words);
    actor.step();
    let [older, root, former, daemon, twin] =
        ["older", "root", "former", "daemon", "twin"].map(|role| actor.child(role));
    (
        actor,
        Family {
            older,
            root,
            former,
            daemon,
            twin,
        },
    )
}

fn kill(family: &Family, options: &[&str]) -> (Output, KillReport) {
    let pid = family.root.pid.to_string();
    let words = ["kill", &pid, "-o", "json"];
    let output = Lifemon::find().run(words.iter().chain(options));
    assert_eq!(output.stderr, "", "{output:?}");
    let report = checked(output.report());
    (output, report)
}

fn kinds(report: &KillReport, process: Process) -> BTreeSet<&str> {
    let evidence = &entry(&report.suspects, process).evidence;
    assert!(
        evidence.iter().all(|it| !it.text.is_empty()),
        "{evidence:?}"
    );
    evidence.iter().map(|it| it.kind.as_str()).collect()
}

#[test]
fn each_thing_in_common_is_evidence() {
    needs!(private_tracker);
    for (how, expected) in [
        (
            "group",
            &["same_cgroup", "same_group", "same_pipe", "same_session"][..],
        ),
        ("pipe", &["same_pipe"]),
        ("memory", &["same_memory"]),
        ("job", &["same_job"]),
    ] {
        let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
        let (_actor, family) = family(&sandbox, &elsewhere, how);
        let before = &alive(&sandbox) | &alive(&elsewhere);
        let (output, report) = kill(&family, &[]);
        assert_eq!(output.code, Some(1), "{how}: {output:?}");
        assert_eq!(
            set_of(&report.suspects),
            [family.former].into(),
            "{how}: {report:?}"
        );
        assert_eq!(
            kinds(&report, family.former),
            expected.iter().copied().collect(),
            "{how}"
        );
        let suspect = &report.suspects[0];
        assert!(!suspect.killed && suspect.parent.pid == 1, "{suspect:?}");
        assert!(report.extinct && report.survivors.is_empty(), "{report:?}");
        assert_only_history_is_missing(report.complete, &report.incomplete, true);
        // Nobody was killed by a guess.
        let rest = &alive(&sandbox) | &alive(&elsewhere);
        assert_eq!(rest, &before - &[family.root.pid].into(), "{how}");
    }
}

#[test]
fn who_has_nothing_in_common_is_no_suspect_and_missing_history_alone_no_failure() {
    needs!(private_tracker);
    for how in ["away", "twins"] {
        let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
        let (_actor, family) = family(&sandbox, &elsewhere, how);
        let (output, report) = kill(&family, &[]);
        assert_eq!(
            (output.code, &report.suspects[..]),
            (Some(0), &[][..]),
            "{how}: {output:?}"
        );
        assert_only_history_is_missing(report.complete, &report.incomplete, true);
        let rest = &alive(&sandbox) | &alive(&elsewhere);
        assert!(rest.contains(&family.former.pid), "{how}: {rest:?}");
    }
}

/// The subreaper has all in common with the twin that it has made, and not the root's group.
#[test]
fn what_a_process_has_from_its_present_parent_is_no_evidence() {
    needs!(private_tracker);
    let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
    let (actor, family) = family(&sandbox, &elsewhere, "subreaper");
    let (output, report) = kill(&family, &["--dry-run"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(
        set_of(&report.suspects),
        [family.former].into(),
        "{report:?}"
    );
    assert_eq!(kinds(&report, family.former), ["same_group"].into());
    assert_eq!(report.suspects[0].parent.pid, actor.pid(), "{report:?}");
}

#[test]
fn suspects_that_are_accepted_are_listed_and_the_command_ends_well() {
    needs!(private_tracker);
    let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
    let (_actor, family) = family(&sandbox, &elsewhere, "group");
    let (output, report) = kill(&family, &["--accept-suspects"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(
        set_of(&report.suspects),
        [family.former].into(),
        "{report:?}"
    );
    assert!(alive(&sandbox).contains(&family.former.pid), "{report:?}");
}

#[test]
fn suspects_die_with_the_tree_where_that_is_asked_for_and_nobody_else() {
    needs!(private_tracker);
    let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
    let (actor, family) = family(&sandbox, &elsewhere, "group");
    let (dry, plan) = kill(&family, &["--kill-suspects", "--dry-run"]);
    assert_eq!(dry.code, Some(0), "{dry:?}");
    assert_eq!(set_of(&plan.members), [family.root, family.former].into());
    let (output, report) = kill(&family, &["--kill-suspects"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(
        set_of(&report.killed),
        [family.root, family.former].into(),
        "{report:?}"
    );
    assert!(entry(&report.suspects, family.former).killed, "{report:?}");
    let spared = [family.older, family.daemon, family.twin].map(|process| process.pid);
    assert_eq!(
        alive(&sandbox),
        spared.into_iter().chain([actor.pid()]).collect()
    );
}

#[test]
fn the_text_claims_no_more_than_is_so() {
    needs!(private_tracker);
    let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
    let (_actor, family) = family(&sandbox, &elsewhere, "group");
    let output = Lifemon::find().run(["kill", &family.root.pid.to_string()]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let suspect = format!("suspect: {} actor  child of 1 ", family.former.pid);
    for words in [
        suspect.as_str(),
        "--kill-suspects",
        "not complete: ",
        "lifemon track on",
    ] {
        assert!(output.stdout.contains(words), "no {words:?}: {output:?}");
    }
    assert!(!output.stdout.contains("none of it is left"), "{output:?}");
}

/// The history of a tree that is younger than the tracker is whole: the former member still belongs
/// to it, and nobody is a suspect. One that is older has no more history than without a tracker.
#[test]
fn with_the_whole_history_nobody_is_a_suspect() {
    let tracker = HostTracker::off();
    for is_older in [false, true] {
        let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
        if !is_older {
            tracker.switch_on(&[]);
        }
        let (_actor, family) = family(&sandbox, &elsewhere, "group");
        if is_older {
            tracker.switch_on(&[]);
        }
        let (output, report) = kill(&family, &[]);
        assert_only_history_is_missing(report.complete, &report.incomplete, is_older);
        let dead = set_of(&report.killed);
        if is_older {
            assert_eq!(output.code, Some(1), "{output:?}");
            assert_eq!(
                set_of(&report.suspects),
                [family.former].into(),
                "{report:?}"
            );
            assert_eq!(dead, [family.root].into(), "{report:?}");
        } else {
            assert_eq!(
                (output.code, &report.suspects[..]),
                (Some(0), &[][..]),
                "{output:?}"
            );
            assert_eq!(
                dead,
                [family.root, family.former, family.daemon].into(),
                "{report:?}"
            );
            let text = Lifemon::find().run(["kill", &family.twin.pid.to_string()]);
            assert!(text.stdout.contains(", none of it is left\n"), "{text:?}");
        }
        tracker.switch_off();
    }
}
