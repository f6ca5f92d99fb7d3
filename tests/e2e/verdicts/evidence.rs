//! Evidence that needs more of the host than a chain of processes: control groups under the names
//! of units and containers, and the marks that launchers leave in the environment.

use lifemon_tests::left_behind::{ask, checked_orphans, orphans};
use lifemon_tests::reports::{Orphan, entry, find};
use lifemon_tests::{Group, Sandbox, needs, private_lock, proc};

use super::ways::{chain, chain_of_job};

fn kinds(orphan: &Orphan) -> Vec<&str> {
    let evidence = orphan.evidence.iter();
    evidence.map(|evidence| evidence.kind.as_str()).collect()
}

#[test]
fn a_unit_or_a_container_of_its_own_is_evidence_and_any_other_group_is_none() {
    needs!(host_tracker);
    let id = "0123456789abcdef".repeat(4);
    let docker = format!("docker-{id}.scope");
    let names = ["job.service", "job.scope", &id, &docker, "job", "job.slice"];
    for name in names {
        let is_own = !["job", "job.slice"].contains(&name);
        let sandbox = Sandbox::new();
        let group = Group::new(&sandbox, name);
        let join = format!("join:{}", group.path().display());
        // The starter is killed: only what manages others is deliberate all the same.
        let own = chain(&sandbox, &format!("exec fork:KILL {join} exec"));
        let (actor, own) = own.expect("no namespace");
        let tree = actor.pid().to_string();
        let report = orphans(&["--tree", &tree, "--all"]);
        let orphan = entry(&report.orphans, own[1]);
        let expected = if is_own { "deliberate" } else { "leaked" };
        assert_eq!(orphan.verdict, expected, "{name} {orphan:?}");
        if is_own {
            assert_eq!(kinds(orphan), ["own_unit"], "{name} {orphan:?}");
            let of_container = orphan.container.as_deref() == Some(&id);
            let of_unit = orphan.unit.as_deref() == Some(name);
            assert!(of_container || of_unit, "{name} {orphan:?}");
            let spared = ask("orphans", &["--tree", &tree, "--kill"]);
            assert_eq!(spared.code, Some(0), "{spared:?}");
            assert!(proc::is_running(own[1].pid), "{name} {spared:?}");
        }
        // Its twin is in the same group, and was started there.
        let twin = chain(&sandbox, &format!("exec {join} fork:KILL exec"));
        let (actor, twins) = twin.expect("no namespace");
        let report = orphans(&["--tree", &actor.pid().to_string(), "--all"]);
        let orphan = entry(&report.orphans, twins[1]);
        assert_eq!(orphan.verdict, "leaked", "{name} {orphan:?}");
        drop(group);
    }
}

/// Each is in the session of whoever has adopted it: nothing but the mark speaks for it.
#[test]
fn the_marks_of_ci_jobs_and_batch_systems_are_evidence() {
    let marks = [
        "RUNNER_TRACKING_ID=github_7",
        "CI_JOB_ID=7",
        "JENKINS_NODE_COOKIE=7",
        "BUILDKITE_JOB_ID=7",
        "SLURM_JOB_ID=7",
        "PBS_JOBID=7",
        "LSB_JOBID=7",
        "FLUX_JOB_ID=7",
        "LIFEMON_JOB=7",
    ];
    let others = [
        "CI_JOB_ID=",
        "CI_JOB_IDS=7",
        "INVOCATION_ID=7",
        "NO_JOB_ID=7",
    ];
    let sandbox = Sandbox::new();
    let lock = private_lock();
    let start = |mark: &str| {
        let steps = "exec subreaper fork:live exec fork:0 exec";
        let (actor, chain) = chain_of_job(&sandbox, &[mark], steps).expect("no namespace");
        (actor, chain[2])
    };
    let marked = marks.map(start);
    let unmarked = others.map(start);
    drop(lock);
    needs!(host_tracker);
    let report = checked_orphans(ask("orphans", &["--all"]).success());
    for (mark, (_, process)) in marks.iter().zip(&marked) {
        let orphan = entry(&report.orphans, *process);
        assert_eq!(orphan.verdict, "inferred", "{mark} {orphan:?}");
        assert_eq!(kinds(orphan), ["of_job"], "{mark} {orphan:?}");
        assert!(orphan.evidence[0].text.contains(mark), "{mark} {orphan:?}");
    }
    for (other, (_, process)) in others.iter().zip(&unmarked) {
        let found = find(&report.orphans, *process);
        assert!(found.is_none(), "{other} {found:?}");
    }
}
