//! How orphans were left: the ways in which people start what stays and what leaks, re-enacted step
//! by step, each with the verdict, with what `--check` answers, and with who is killed.

mod evidence;
mod question;
mod ways;

use lifemon_tests::left_behind::{ask, checked_orphans, orphans, tree};
use lifemon_tests::reports::{GpuReport, Identified as _, entry, find};
use lifemon_tests::{DEADLINE, Lifemon, Pidfd, Process, Sandbox, needs, private_lock, proc};

use serde_json::Value;
use ways::{DELIBERATE, LEAKED, LEFT, Way, chain, leave, way};

/// Claims the verdict on what each of these ways leaves, whatever is asked, and what follows.
#[track_caller]
fn assert_verdicts(ways: &[Way], verdict: &str) {
    let is_left_behind = ["leaked", "left"].contains(&verdict);
    for way in ways {
        let sandbox = Sandbox::new();
        let Some((actor, process)) = leave(&sandbox, way) else {
            eprintln!("{}: not here", way.name);
            continue;
        };
        let tree = actor.pid().to_string();
        let of_tree = orphans(&["--tree", &tree, "--all"]);
        let orphan = entry(&of_tree.orphans, process);
        assert_eq!(orphan.verdict, verdict, "{way:?} {orphan:?}");
        assert_eq!(
            orphan.stranded,
            Some(way.root_is_killed),
            "{way:?} {orphan:?}"
        );
        // The same process, asked for in other ways.
        let own = process.pid.to_string();
        for options in [&["--all"][..], &["--tree", &own, "--all"]] {
            let other = orphans(options);
            let other = entry(&other.orphans, process);
            assert_eq!(other.verdict, verdict, "{options:?} {way:?} {other:?}");
            assert_eq!(other.evidence, orphan.evidence, "{options:?} {way:?}");
            assert_eq!(other.root, orphan.root, "{options:?} {way:?}");
        }
        assert_shown_and_ended(way, &own, process, is_left_behind);
    }
}

/// Claims that only what was left behind is shown, makes `--check` answer 1, and is killed.
#[track_caller]
fn assert_shown_and_ended(way: &Way, tree: &str, process: Process, is_left_behind: bool) {
    let shown = orphans(&["--tree", tree]);
    assert_eq!(
        find(&shown.orphans, process).is_some(),
        is_left_behind,
        "{way:?} {shown:?}"
    );
    let checked = ask("orphans", &["--tree", tree, "--check"]);
    assert_eq!(
        checked.code,
        Some(i32::from(is_left_behind)),
        "{way:?} {checked:?}"
    );
    let killed = ask("orphans", &["--tree", tree, "--kill"]);
    assert_eq!(
        (killed.code, killed.stderr.as_str()),
        (Some(0), ""),
        "{way:?} {killed:?}"
    );
    assert_eq!(
        proc::is_running(process.pid),
        !is_left_behind,
        "{way:?} {killed:?}"
    );
    if !is_left_behind {
        let report = checked_orphans(killed.report());
        assert_eq!(
            report.not_shown.get("deliberate"),
            Some(&1),
            "{way:?} {report:?}"
        );
    }
}

#[test]
fn what_was_to_stay_is_deliberate() {
    needs!(host_tracker);
    assert_verdicts(DELIBERATE, "deliberate");
}

#[test]
fn what_was_left_by_starters_that_exited_well_is_left() {
    needs!(host_tracker);
    assert_verdicts(LEFT, "left");
}

#[test]
fn what_was_left_by_the_killed_and_the_failed_is_leaked() {
    needs!(host_tracker);
    assert_verdicts(LEAKED, "leaked");
}

#[test]
fn what_has_a_living_starter_is_no_orphan() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let healthy = way("a healthy server", "exec fork:live session null exec");
    let (actor, process) = leave(&sandbox, &healthy).expect("no namespace");
    let tree = actor.pid().to_string();
    let report = orphans(&["--tree", &tree, "--all"]);
    assert!(find(&report.orphans, process).is_none(), "{report:?}");
    let killed = ask("orphans", &["--tree", &tree, "--kill"]);
    assert_eq!(killed.code, Some(0), "{killed:?}");
    assert!(proc::is_running(process.pid), "{killed:?}");
}

#[test]
fn verdicts_select_and_what_was_left_needs_to_be_asked_for() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (actor, left) = leave(&sandbox, &LEFT[0]).expect("no namespace");
    let (other, leaked) = leave(&sandbox, &LEAKED[0]).expect("no namespace");
    let (tree, of_leaked) = (actor.pid().to_string(), other.pid().to_string());
    let selected = |tree: &str, verdicts: &str| orphans(&["--tree", tree, "--verdict", verdicts]);
    let report = selected(&tree, "leaked,deliberate");
    assert!(find(&report.orphans, left).is_none(), "{report:?}");
    assert_eq!(report.not_shown["left"], 1, "{report:?}");
    assert!(find(&selected(&tree, "left").orphans, left).is_some());
    assert!(find(&selected(&of_leaked, "leaked").orphans, leaked).is_some());
    // As text, and for the user that it belongs to.
    let text = Lifemon::find().run(["orphans", "--tree", &tree, "--verdict", "leaked"]);
    // Others of the same session may look like orphans of it that are older than tracking.
    let counted = text.stdout.starts_with("no orphans; 1 left");
    assert!(counted && text.stdout.ends_with(": --all\n"), "{text:?}");
    let of_others = orphans(&["--tree", &tree, "--user", "4294967294"]);
    assert_eq!(
        (of_others.orphans, of_others.not_shown.len()),
        (Vec::new(), 0)
    );
    assert!(find(&orphans(&["--tree", &tree, "--user", "root"]).orphans, left).is_some());
}

#[test]
fn a_name_that_is_no_text_is_told_without_loss() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let no_text = way("a job", "exec fork:0 exec no-text");
    let (actor, left) = leave(&sandbox, &no_text).expect("no namespace");
    let root = actor.pid().to_string();
    for (command, options, list) in [
        ("orphans", &["--all", "--tree", &root][..], "orphans"),
        ("tree", &[&root], "processes"),
        ("kill", &["--accept-suspects", &root], "killed"),
    ] {
        let report: Value = ask(command, options).success();
        let mut entries = report[list].as_array().expect("a list").iter();
        let entry = entries.find(|entry| entry["pid"] == left.pid);
        let entry = entry.unwrap_or_else(|| panic!("{command} {report}"));
        assert_eq!(entry["name"], "a\u{fffd}b\u{fffd}", "{command} {entry}");
        assert_eq!(entry["name_bytes"], "Yf9iww==", "{command} {entry}");
    }
}

/// The device in the place of a GPU, under a name that no pattern knows; the same where the file
/// system of the tests has no devices.
fn other_name(sandbox: &Sandbox, device: &str) -> String {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod, stat};
    let path = sandbox.directory().join("renamed");
    let number = stat(device).map_or(makedev(1, 7), |stat| stat.st_rdev);
    let made = mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR, number);
    let opens = made.is_ok() && std::fs::File::open(&path).is_ok();
    if opens {
        path.display().to_string()
    } else {
        device.to_owned()
    }
}

/// The flagship: a killed server, its child that is the orphan, and a grandchild that holds the
/// GPU.
#[test]
fn a_gpu_that_is_held_below_an_orphan_is_the_orphans() {
    needs!(host_tracker);
    for last in ["", " leaderless"] {
        let sandbox = Sandbox::new();
        let device = "/dev/full";
        let name = other_name(&sandbox, device);
        let steps = format!("exec fork:KILL exec name:EngineCore fork:live exec open:{name}{last}");
        let (actor, chain) = chain(&sandbox, &steps).expect("no namespace");
        let (orphan, holder) = (chain[1], chain[2]);
        let tree = actor.pid().to_string();

        let report = orphans(&["--gpu", "--device", device]);
        let found = entry(&report.orphans, orphan);
        assert_eq!(found.verdict, "leaked", "{found:?}");
        assert_eq!(
            (&found.gpu, found.subtree.processes),
            (&None, 2),
            "{found:?}"
        );
        let held = found.subtree.gpu.as_ref().expect("a device below");
        assert_eq!(held.devices, [device], "{found:?}");
        let own_bytes = proc::resident_bytes(orphan.pid);
        assert!(
            found.subtree.resident_bytes > own_bytes,
            "{own_bytes} {found:?}"
        );
        let check = ask("orphans", &["--device", device, "--tree", &tree, "--check"]);
        assert_eq!(check.code, Some(1), "{check:?}");

        let gpu: GpuReport = ask("gpu", &["--device", device]).success();
        let held = entry(&gpu.holders, holder);
        let above = held.orphan.as_ref().expect("an orphan above");
        assert_eq!(above.process(), orphan, "{held:?}");
        assert_eq!(above.verdict, "leaked", "{held:?}");
        assert_eq!(held.devices, [device], "{held:?}");
        assert_eq!(held.command[1], "leave-on", "{held:?}");
        let text = Lifemon::find().run(["gpu", "--device", device]);
        let line = format!("below the orphan {} EngineCore", orphan.pid);
        assert!(text.stdout.contains(&line), "{text:?}");

        // A healthy twin, which nobody may touch.
        let healthy = format!("exec fork:live exec open:{name}");
        let (_twin, twins) = ways::chain(&sandbox, &healthy).expect("no namespace");
        let ends = [orphan, holder].map(Pidfd::of);
        let killed = ask("gpu", &["--device", device, "--kill-orphans"]);
        assert_eq!(killed.code, Some(0), "{killed:?}");
        for end in &ends {
            end.wait_gone(DEADLINE);
        }
        assert!(
            twins.iter().all(|twin| proc::is_running(twin.pid)),
            "{killed:?}"
        );
        let after: GpuReport = ask("gpu", &["--device", device]).success();
        assert_eq!(find(&after.holders, holder), None);
        let check = ask("orphans", &["--device", device, "--tree", &tree, "--check"]);
        assert_eq!(check.code, Some(0), "{check:?}");
    }
}

#[test]
fn the_living_have_their_present_names_and_are_matched_by_them() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let steps = "exec fork:KILL exec name:engine fork:live exec name:pt_data_worker";
    let (actor, chain) = chain(&sandbox, steps).expect("no namespace");
    let (orphan, worker) = (chain[1], chain[2]);
    let tree = actor.pid().to_string();
    let all = self::tree(&[&tree]).processes;
    let name = |process| entry(&all, process).name.as_deref();
    assert_eq!(name(worker), Some("pt_data_worker"));
    assert_eq!(name(orphan), Some("engine"));
    // By the name of what is below it, by its own name, and by the command line.
    for pattern in [
        "^pt_data_worker$",
        "^engine$",
        "^actor leave-on .*name:pt_data_worker$",
    ] {
        let found = orphans(&["--tree", &tree, "--match", pattern]);
        assert!(
            find(&found.orphans, orphan).is_some(),
            "{pattern} {found:?}"
        );
    }
    let none = orphans(&["--tree", &tree, "--match", "^pt_data_worke$"]);
    assert_eq!(none.orphans, [], "{none:?}");
}

#[test]
fn what_leads_a_session_and_is_older_than_tracking_is_a_candidate() {
    let sandbox = Sandbox::new();
    let lock = private_lock();
    let (actor, chain) = chain(&sandbox, "exec fork:0 session exec").expect("no namespace");
    let (_healthy, twins) = ways::chain(&sandbox, "exec fork:live session exec").expect("as above");
    drop(lock);
    needs!(host_tracker);
    let shown = orphans(&[]);
    assert!(find(&shown.orphans, chain[1]).is_none(), "{shown:?}");
    assert!(shown.not_shown["inferred"] >= 1, "{shown:?}");
    let all = orphans(&["--all"]);
    let orphan = entry(&all.orphans, chain[1]);
    assert_eq!(orphan.verdict, "inferred", "{orphan:?}");
    let mut kinds = orphan
        .evidence
        .iter()
        .map(|evidence| evidence.kind.as_str());
    assert!(kinds.any(|kind| kind == "own_session"), "{orphan:?}");
    assert!(find(&all.orphans, twins[1]).is_none(), "{all:?}");
    // Nobody ends it unasked, whatever is chosen; here, what has something in common with its root.
    let tree = actor.pid().to_string();
    let spared = ask("orphans", &["--all", "--tree", &tree, "--kill"]);
    assert_eq!(spared.code, Some(1), "{spared:?}");
    assert!(proc::is_running(chain[1].pid), "{spared:?}");
}

/// The parent that it had when tracking began stands for its creator, and may have adopted it.
#[test]
fn what_is_older_than_tracking_is_inferred_also_when_its_parent_was_seen_to_die() {
    let sandbox = Sandbox::new();
    let lock = private_lock();
    let (_actor, chain) = chain(&sandbox, "exec fork:live exec").expect("no namespace");
    drop(lock);
    needs!(host_tracker);
    let pidfd = Pidfd::of(chain[0]);
    pidfd.kill();
    pidfd.wait_gone(DEADLINE);
    let all = orphans(&["--all"]);
    let orphan = entry(&all.orphans, chain[1]);
    assert_eq!(orphan.verdict, "inferred", "{orphan:?}");
    assert_eq!(orphan.evidence[0].kind, "parent_died", "{orphan:?}");
    let exit = orphan.creator_exit.as_ref().expect("it was seen");
    assert_eq!(exit.signal, Some(libc::SIGKILL), "{orphan:?}");
}
