//! What a kill spares and what it asks for: members by pid and by pattern, those that look
//! deliberate, clients of CUDA MPS; and processes by their pids in a pid namespace.

use lifemon_tests::handicap::{as_nobody, readable_copy};
use lifemon_tests::left_behind::{ask, leave_workers};
use lifemon_tests::reports::{KillReport, find};
use lifemon_tests::{Lifemon, Sandbox, Script, actor, needs, proc};
use serde_json::Value;

/// Three workers, one of which is another program with a child of its own.
const TREE: &str = r"
sleep 1001 & echo one $!
bash -c 'sleep 1002 & echo below $!; exec -a keeper sleep 1003' & echo keeper $!
sleep 1004 & echo two $!
sleep 0.5
echo ready
wait
";

#[test]
fn what_is_spared_stays_with_what_is_below_it() {
    needs!(bash, host_tracker);
    let sandbox = Sandbox::new();
    let script = Script::start(&sandbox, "bash", TREE);
    let root = script.own().pid.to_string();
    let two = script.process("two");
    let spare = ["--spare", "keeper", "--spare", &two.pid.to_string()];
    let words = [&[root.as_str(), "--accept-suspects"][..], &spare].concat();
    let dry: Value = ask("kill", &[&words[..], &["--dry-run"]].concat()).success();
    assert_eq!(dry["members"].as_array().unwrap().len(), 2, "{dry}");
    assert_eq!(dry["spared"].as_array().unwrap().len(), 3, "{dry}");
    let report: KillReport = ask("kill", &words).success();
    assert!(report.extinct, "{report:?}");
    for (name, is_alive) in [
        ("one", false),
        ("keeper", true),
        ("below", true),
        ("two", true),
    ] {
        let process = script.process(name);
        assert_eq!(proc::is_running(process.pid), is_alive, "{name}");
        assert_eq!(find(&report.killed, process).is_some(), !is_alive, "{name}");
    }
    let output = ask("kill", &[&root, "--spare", "("]);
    assert_eq!(output.code, Some(2), "{output:?}");
}

#[test]
fn a_dry_run_marks_what_looks_deliberate() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "daemonise", "classic");
    actor.step();
    let pid = actor.pid().to_string();
    let dry: Value = ask("kill", &["--dry-run", &pid]).success();
    let members = dry["members"].as_array().unwrap();
    let marked: Vec<_> = members
        .iter()
        .filter(|one| one["deliberate"].is_array())
        .collect();
    assert!(!marked.is_empty(), "{dry}");
    let text = Lifemon::find().run(["kill", "--dry-run", &pid]);
    assert!(text.stdout.contains("looks deliberate"), "{text:?}");
}

#[test]
fn clients_of_mps_are_not_killed_unasked() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let script = Script::with_mps_client(&sandbox);
    let client = script.process("client");
    let pid = client.pid.to_string();
    let dry: Value = ask("kill", &["--dry-run", &pid]).success();
    assert_eq!(dry["members"][0]["mps_client"], true, "{dry}");
    let refused = ask("kill", &[&pid]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for word in ["MPS", "--force", "--before-kill", &pid] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    let failed = ask("kill", &[&pid, "--before-kill", "exit 7"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(proc::is_running(client.pid));
    let told = sandbox.directory().join("told");
    let remedy = format!("echo $LIFEMON_ROOT $LIFEMON_PIDS > {}", told.display());
    let report: KillReport = ask("kill", &[&pid, "--before-kill", &remedy]).success();
    assert_eq!(report.killed.len(), 1, "{report:?}");
    let told = std::fs::read_to_string(told).unwrap();
    assert!(
        told.ends_with(&format!(" {pid}\n")) && told.contains('@'),
        "{told}"
    );
    // What is no client is killed as ever.
    let other: KillReport = ask("kill", &[&script.own().pid.to_string()]).success();
    assert!(other.extinct, "{other:?}");
}

#[test]
fn a_pid_in_a_namespace_names_its_process() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "pid-namespace");
    actor.step();
    let init = actor.child("ns-init");
    let inside = init.pid.to_string();
    let it: Value = ask("explain", &["1", "--in", &inside]).success();
    assert_eq!(it["process"]["pid"], init.pid, "{it}");
    let link = std::fs::read_link(format!("/proc/{inside}/ns/pid")).unwrap();
    let inode: String = link
        .to_str()
        .unwrap()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    let it: Value = ask("explain", &[&format!("{inode}:1")]).success();
    assert_eq!(it["process"]["pid"], init.pid, "{it}");
    let it: Value = ask("explain", &["ns:1", "--in", &inside]).success();
    assert_eq!(it["process"]["pid"], init.pid, "{it}");
    for words in [
        &["explain", "77777", "--in", &inside][..],
        &["explain", "1", "--in", "4194304"],
    ] {
        let output = Lifemon::find().run(words);
        assert_eq!(output.code, Some(4), "{output:?}");
    }
}

#[test]
fn a_run_keeps_who_matches_and_ends_the_rest() {
    needs!(bash, no_tracker);
    let text = "sleep 1001 & echo one $!; \
                bash -c 'sleep 1002 & echo below $!; exec -a keeper sleep 1003' & echo keeper $!; \
                sleep 0.5; exit 3";
    for is_nobody in [false, true] {
        let sandbox = Sandbox::new();
        let program = Lifemon::at(readable_copy(&sandbox)).inside(&sandbox);
        let mut lifemon = program.command([
            "run",
            "--grace",
            "1s",
            "--keep-orphans=^keeper",
            "--",
            "bash",
            "-c",
            text,
        ]);
        if is_nobody {
            // Without eBPF the rest is found below a subreaper.
            as_nobody(&mut lifemon);
        }
        let output = Lifemon::find()
            .start(lifemon)
            .finish(lifemon_tests::DEADLINE);
        assert_eq!(output.code, Some(3), "{output:?}");
        let pid = |name: &str| -> i32 {
            let mut lines = output.stdout.lines();
            let line = lines
                .find_map(|line| line.strip_prefix(name))
                .expect("a pid");
            line.trim().parse().unwrap()
        };
        assert!(!proc::is_running(pid("one ")), "{output:?}");
        assert!(proc::is_running(pid("keeper ")), "{output:?}");
        assert!(output.stderr.contains("kept"), "{output:?}");
    }
}

#[test]
fn each_tree_that_was_killed_is_named() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    let (server, workers) = leave_workers(&mut actor);
    let tree = server.pid.to_string();
    let output = Lifemon::find().run(["orphans", "--tree", &tree, "--kill"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    for worker in &workers {
        let line = format!("killed the tree of {}", worker.pid);
        assert!(output.stdout.contains(&line), "{output:?}");
    }
    assert!(output.stdout.contains("2 trees: 2 killed"), "{output:?}");
}
