//! How orphans were left: the ways in which people start what stays and what leaks, re-enacted step
//! by step, each with the verdict, with what `--check` answers, and with who is killed.

use std::path::Path;

use lifemon_tests::left_behind::{ask, checked_orphans, orphans, tree};
use lifemon_tests::reports::{GpuReport, Identified as _, entry, find};
use lifemon_tests::{Actor, DEADLINE, Lifemon, Pidfd, Process, Sandbox, needs, proc, wait_until};
use nix::sys::signal::Signal;

/// A way to leave a process behind: the steps of the actor `leave`, whose own end is the root's.
#[derive(Debug)]
struct Way {
    name: &'static str,
    steps: &'static str,
    /// The actor, which is the root, is killed in the end.
    root_is_killed: bool,
    /// Which of the chain is looked at; the last one when absent.
    orphan: Option<usize>,
}

const fn way(name: &'static str, steps: &'static str) -> Way {
    Way {
        name,
        steps,
        root_is_killed: false,
        orphan: None,
    }
}

const fn with_killed_root(name: &'static str, steps: &'static str) -> Way {
    Way {
        root_is_killed: true,
        ..way(name, steps)
    }
}

const DELIBERATE: &[Way] = &[
    way("daemon(3): redis, tmux", "exec fork:0 session null"),
    way(
        "nginx: the child makes the session, and creates workers",
        "exec fork:0 session null",
    ),
    way(
        "gunicorn --daemon: a double fork",
        "exec fork:0 session fork:0 null",
    ),
    way(
        "sshd: it runs its own program again",
        "exec fork:0 session exec null",
    ),
    way("pg_ctl start", "exec fork:0 session exec exec null"),
    way(
        "pg_ctl -w that gave up with an error",
        "exec fork:1 session exec exec null",
    ),
    way(
        "start-stop-daemon --background",
        "exec fork:0 session null exec",
    ),
    way("pm2: node that starts node", "exec fork:0 session exec"),
    way(
        "setsid nohup X </dev/null &",
        "exec fork:0 session hup null exec",
    ),
    way(
        "setsid nohup X &, and the terminal hangs up",
        "exec fork:HUP session hup null exec",
    ),
    way("nohup X &, and exit", "exec fork:0 hup exec"),
    way(
        "nohup X &, exit with the code of what failed before",
        "exec fork:1 hup exec",
    ),
    way(
        "nohup X &, and the terminal hangs up",
        "exec fork:HUP hup exec",
    ),
    way(
        "nohup X & of a kernel of Jupyter",
        "exec fork:live exec fork:0 hup null exec",
    ),
    way(
        "containerd-shim: a subreaper without a session",
        "exec fork:0 exec subreaper",
    ),
    way(
        "a subreaper whose starter was killed",
        "exec fork:KILL exec subreaper",
    ),
    way("conmon", "exec fork:0 session exec subreaper"),
    Way {
        orphan: Some(1),
        ..way(
            "unshare --pid --fork",
            "exec fork:0 exec namespace fork:live",
        )
    },
    with_killed_root(
        "a database that a test runner started properly, and the runner is killed",
        "exec fork:0 session exec null",
    ),
];

const LEFT: &[Way] = &[
    way("( X & )", "exec fork:live fork:0 null exec"),
    way("X & disown, and exit", "session exec fork:0 exec"),
    way(
        "X & disown, and the terminal hangs up",
        "session exec fork:HUP exec",
    ),
    way(
        "os.system(X &) of a kernel of Jupyter",
        "exec fork:live exec fork:0 null exec",
    ),
    way(
        "node's spawn(bash -c 'job &', detached)",
        "exec fork:live session exec fork:0 null exec",
    ),
    way("setsid bash -c 'job &'", "session exec fork:0 null exec"),
    way(
        "setsid bash -c 'nohup-less job &', two shells deep",
        "session exec fork:0 exec fork:0 null exec",
    ),
    way("a session without anything else", "exec fork:0 session"),
];

const LEAKED: &[Way] = &[
    way("a killed server: fork", "exec fork:KILL"),
    way("a killed server: spawn", "exec fork:KILL exec"),
    way("a terminated server: spawn", "exec fork:TERM exec"),
    with_killed_root("a killed server: forkserver that has ended", "exec fork:0"),
    way(
        "a killed master of gunicorn --daemon",
        "exec fork:0 session fork:0 null fork:KILL",
    ),
    way(
        "a killed daemon that makes sessions for its workers",
        "exec fork:KILL session exec null",
    ),
    way(
        "a killed nohup server",
        "exec fork:live hup exec fork:KILL exec",
    ),
    way("a crashed runner", "exec fork:1 exec"),
    way(
        "a crashed runner in a session of its own",
        "session exec fork:1 null exec",
    ),
    way(
        "a killed shell of a coding agent",
        "session exec fork:KILL null exec",
    ),
    with_killed_root(
        "the helper of a killed browser, forked twice",
        "exec fork:0 exec",
    ),
    with_killed_root("nohup below a killed root", "exec fork:0 hup exec"),
];

/// Does the steps and the ends of a way; the chain of its processes.
#[track_caller]
fn chain(sandbox: &Sandbox, steps: &str) -> Option<(Actor, Vec<Process>)> {
    let words = ["leave"].into_iter().chain(steps.split(' '));
    let words: Vec<_> = words.map(str::to_owned).collect();
    let mut actor = Actor::spawn(Path::new(env!("CARGO_BIN_EXE_actor")), sandbox, &words);
    actor.step();
    if let Some(why) = actor.skipped() {
        eprintln!("{steps}: {why}");
        return None;
    }
    let ends = steps
        .split(' ')
        .filter_map(|step| step.strip_prefix("fork:"));
    let ends: Vec<_> = ends.collect();
    let roles = (0..=ends.len()).map(|index| format!("p{index}"));
    let chain: Vec<_> = roles.map(|role| actor.child(&role)).collect();
    for (process, end) in chain.iter().zip(ends) {
        if end.parse::<i32>().is_ok() {
            let has_ended = || !proc::is_running(process.pid);
            wait_until("the exit of a starter", DEADLINE, has_ended);
        } else if end != "live" {
            let signal: Signal = format!("SIG{end}").parse().expect("a signal");
            let pidfd = Pidfd::of(*process);
            pidfd.signal(signal).expect("it lives");
            pidfd.wait_gone(DEADLINE);
        }
    }
    Some((actor, chain))
}

/// Does all of a way, and returns the process that is looked at, with the root.
#[track_caller]
fn leave(sandbox: &Sandbox, way: &Way) -> Option<(Actor, Process)> {
    let (mut actor, mut chain) = chain(sandbox, way.steps)?;
    if way.root_is_killed {
        actor.kill();
    }
    let index = way.orphan.unwrap_or(chain.len() - 1);
    Some((actor, chain.swap_remove(index)))
}

/// Claims the verdict on what each of these ways leaves, whatever is asked, and what follows.
#[track_caller]
fn assert_verdicts(ways: &[Way], verdict: &str) {
    let is_left_behind = ["leaked", "left"].contains(&verdict);
    for way in ways {
        let sandbox = Sandbox::new();
        let Some((actor, process)) = leave(&sandbox, way) else {
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
    assert_eq!(text.stdout, "no orphans; 1 left: --all\n", "{text:?}");
    let of_others = orphans(&["--tree", &tree, "--user", "4294967294"]);
    assert_eq!(
        (of_others.orphans, of_others.not_shown.len()),
        (Vec::new(), 0)
    );
    assert!(find(&orphans(&["--tree", &tree, "--user", "root"]).orphans, left).is_some());
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

/// The flagship: a killed server, its child that is the orphan, and a grandchild that holds the GPU.
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
        let (_twin, twins) = self::chain(&sandbox, &healthy).expect("no namespace");
        let ends = [orphan, holder].map(Pidfd::of);
        let killed = ask("gpu", &["--device", device, "--kill-orphans"]);
        assert_eq!(killed.code, Some(0), "{killed:?}");
        ends.iter().for_each(|end| end.wait_gone(DEADLINE));
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
