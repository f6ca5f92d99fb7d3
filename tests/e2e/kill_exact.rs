//! The two promises of `lifemon kill` that rest on single instructions: no child of the condemned
//! runs, and no heir of a pid is hit. Each race is made to happen every time.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use lifemon_tests::handicap::with_capabilities;
use lifemon_tests::killing::{alive, assert_killed, assert_nobody, words};
use lifemon_tests::reports::{KillReport, set_of};
use lifemon_tests::{
    Actor, DEADLINE, HostTracker, Lifemon, Process, Running, Sandbox, Toll, actor, closer, needs,
    proc, scaled, stretched, wait_until, with_either_tracker,
};
use serde_json::json;

/// Kills at most until something that the killer has read is stale.
const STALE_ROUNDS: u32 = 10;

/// Children that must have been created, and none of them may run.
const NEWBORNS: u64 = 1_000;
/// Pids that pass to somebody else in the middle of a strike.
const HEIRS: u64 = 10;
/// Longer than any member lives: all that the killer has read is dead by then, and their pids have
/// passed on.
const SLOWNESS: Duration = Duration::from_millis(150);

const CAP_SYS_ADMIN: libc::c_ulong = 21;
/// Without it a killer can lose the processor in the middle of a call on a BPF map, and where
/// tracepoints can be preempted the kernel skips the closer meanwhile.
const CAP_SYS_NICE: libc::c_ulong = 23;
const CAP_PERFMON: libc::c_ulong = 38;
const CAP_BPF: libc::c_ulong = 39;

/// The processes that wait to fork, and where each of them has two words.
struct Newborns {
    sandbox: Sandbox,
    actor: Actor,
}

impl Newborns {
    #[track_caller]
    fn new(count: u64) -> Self {
        let sandbox = Sandbox::new();
        let file = sandbox.directory().join("words");
        let mut actor = actor!(sandbox, "newborns", count, file.display());
        actor.step();
        Self { sandbox, actor }
    }

    #[track_caller]
    fn root(&mut self) -> Process {
        self.actor.child("root")
    }

    /// Lets all of them fork.
    #[track_caller]
    fn bear(&mut self) {
        self.actor.step();
    }

    fn words(&self) -> Vec<u64> {
        words(&self.sandbox.directory().join("words"))
    }

    /// Pids of the children that were created, as the kernel wrote them before they could run.
    fn created(&self) -> BTreeSet<i32> {
        let pids = self.words().into_iter().step_by(2).filter(|pid| *pid != 0);
        pids.map(|pid| i32::try_from(pid).expect("a pid")).collect()
    }

    /// How many of them have run.
    fn run(&self) -> u64 {
        self.words().into_iter().skip(1).step_by(2).sum()
    }
}

/// Starts a kill that may not signal the processes of others, and waits for its closer: from then
/// on the closer is all that kills.
#[track_caller]
fn kill_by_the_closer_alone(newborns: &mut Newborns) -> Running {
    let lifemon = Lifemon::find();
    let root = newborns.root().pid.to_string();
    let mut command = lifemon.command(["kill", &root, "-o", "json", "--accept-suspects"]);
    with_capabilities(
        &mut command,
        &[CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_NICE],
    );
    let running = lifemon.start(command);
    wait_until("the closer", DEADLINE, || closer::attached() > 0);
    running
}

#[track_caller]
fn no_child_of_the_condemned_runs() {
    let count = scaled(NEWBORNS);
    let mut newborns = Newborns::new(count);
    let running = kill_by_the_closer_alone(&mut newborns);
    // Nobody was hit, and nobody is on the way back from a system call.
    assert_eq!(alive(&newborns.sandbox).len() as u64, count + 2);
    newborns.bear();
    let output = running.finish(DEADLINE);
    assert_eq!(
        alive(&newborns.sandbox),
        [newborns.actor.pid()].into(),
        "{output:?}"
    );
    let created = newborns.created();
    // Elsewhere nobody can fork any more: not even the beginning of the call is reached.
    if cfg!(target_arch = "x86_64") {
        assert_eq!(created.len() as u64, count + 1, "not every parent forked");
    }
    assert_eq!(newborns.run(), 0, "children ran");
    let killed = set_of(&assert_killed(&output).killed);
    let killed: BTreeSet<_> = killed.iter().map(|process| process.pid).collect();
    let untold: Vec<_> = created.difference(&killed).collect();
    assert!(untold.is_empty(), "not in the report: {untold:?}");
}

#[test]
fn no_child_of_the_condemned_runs_tracker_off() {
    needs!(no_tracker);
    no_child_of_the_condemned_runs();
}

#[test]
fn no_child_of_the_condemned_runs_tracker_on() {
    needs!(host_tracker);
    no_child_of_the_condemned_runs();
}

/// The same children without lifemon: all of them run, so the words can tell.
#[test]
fn children_of_nobody_condemned_run() {
    let count = scaled(100);
    let mut newborns = Newborns::new(count);
    newborns.bear();
    wait_until("every child", DEADLINE, || newborns.run() == count + 1);
    assert_eq!(newborns.created().len() as u64, count + 1);
}

/// What is condemned by a lifemon that is killed goes free with it.
#[test]
fn who_is_condemned_goes_free_with_lifemon() {
    for on in [false, true] {
        let _tracker = if on {
            HostTracker::on(&[])
        } else {
            HostTracker::off()
        };
        let count = scaled(50);
        let mut newborns = Newborns::new(count);
        kill_by_the_closer_alone(&mut newborns).kill();
        wait_until("its detaching", DEADLINE, || closer::attached() == 0);
        newborns.bear();
        wait_until("every child", DEADLINE, || newborns.run() == count + 1);
        wait_until("their end", DEADLINE, || {
            alive(&newborns.sandbox) == [newborns.actor.pid()].into()
        });
    }
}

/// Kills one process whose pid becomes another's while lifemon is in the middle of this call about
/// it; the report.
#[track_caller]
fn kill_while_the_pid_passes_on(
    call: libc::c_long,
    is_about: impl Fn(u64, i32) -> bool,
) -> KillReport {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "heir");
    actor.step();
    let first = actor.child("first");
    let lifemon = Lifemon::find();
    let target = first.pid.to_string();
    let mut command = lifemon.command(["kill", &target, "-o", "json", "--accept-suspects"]);
    let mut toll = Toll::on(&mut command, call);
    let running = lifemon.start(command);
    let held = toll.next(&running).expect("the call");
    assert!(is_about(held.arguments[0], first.pid), "{held:?}");
    actor.step();
    let heir = actor.child("heir");
    assert_eq!(heir.pid, first.pid);
    toll.let_go(&held);
    toll.let_all_go(&running);
    let output = running.finish(DEADLINE);
    let stat = proc::stat(heir.pid).expect("the heir");
    assert_eq!(stat.start_ticks, heir.start_ticks);
    assert!(proc::is_running(heir.pid), "the heir was hit: {output:?}");
    let report = assert_killed(&output);
    assert_eq!(set_of(&report.killed), [first].into(), "{report:?}");
    assert_eq!(set_of(&report.already_dying), [first].into(), "{report:?}");
    report
}

fn an_heir_between_look_and_descriptor_is_not_hit() {
    for _ in 0..scaled(HEIRS) {
        let is_about = |argument, pid| argument == u64::try_from(pid).expect("a pid");
        let report = kill_while_the_pid_passes_on(libc::SYS_pidfd_open, is_about);
        assert_eq!(report.rejected, 1, "{report:?}");
    }
}

fn an_heir_between_descriptor_and_signal_is_not_hit() {
    for _ in 0..scaled(HEIRS) {
        // Its first argument is a descriptor.
        let report = kill_while_the_pid_passes_on(libc::SYS_pidfd_send_signal, |_, _| true);
        assert_eq!(report.rejected, 0, "{report:?}");
    }
}

/// Processes that come and go by the thousand, whose pids pass to bystanders at once, and a killer
/// that is slow: most of what it has read is stale when its turn comes.
#[track_caller]
fn kill_slowly(file: &Path, sandbox: &Sandbox, options: &[&str]) -> u64 {
    let mut actor = actor!(sandbox, "successors", file.display(), "clone-parent");
    actor.step();
    let root = actor.child("root");
    let lifemon = Lifemon::find();
    let root = root.pid.to_string();
    let words = ["kill", &root, "-o", "json", "--accept-suspects"];
    let mut command = lifemon.command(words.iter().chain(options));
    let mut toll = Toll::on(&mut command, libc::SYS_pidfd_open);
    let running = lifemon.start(command);
    let held = toll.next(&running).expect("a strike");
    std::thread::sleep(stretched(SLOWNESS));
    toll.let_go(&held);
    toll.let_all_go(&running);
    let report = assert_killed(&running.finish(DEADLINE));
    actor.send("stop");
    let answer = actor.wait_for("the bystanders", |line| line["bystanders"].is_u64());
    assert!(answer["bystanders"].as_u64() >= Some(200), "{answer}");
    assert_eq!(answer["hit"], json!(0), "{answer}; {report:?}");
    report.rejected
}

fn bystanders_with_the_pids_of_the_dead_are_not_hit() {
    for options in [&[][..], &["--signal", "TERM", "--grace", "100ms"]] {
        // On a slow machine the killer may have read so early that nothing of it is stale.
        let is_stale = (0..STALE_ROUNDS).any(|_| {
            let sandbox = Sandbox::new();
            let file = sandbox.directory().join("made");
            let rejected = kill_slowly(&file, &sandbox, options);
            assert_nobody_but_heirs(&sandbox);
            rejected > 0
        });
        assert!(is_stale, "nothing was stale in {STALE_ROUNDS} rounds");
    }
}

/// All bystanders have ended by themselves.
#[track_caller]
fn assert_nobody_but_heirs(sandbox: &Sandbox) {
    wait_until("the end of all", DEADLINE, || alive(sandbox).is_empty());
    assert_nobody(sandbox);
}

with_either_tracker!(
    an_heir_between_look_and_descriptor_is_not_hit,
    an_heir_between_descriptor_and_signal_is_not_hit,
    bystanders_with_the_pids_of_the_dead_are_not_hit,
);
