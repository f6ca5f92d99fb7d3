//! `lifemon run` whose own processes come too late: what they report, and what they leave.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use lifemon_tests::killing::{assert_nobody, kill};
use lifemon_tests::{
    DEADLINE, Freezer, Lifemon, Pidfd, Process, Running, Sandbox, needs, proc, wait_until,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::run::lifemon_run::{Rights, command, guardian_of};

/// More than one time slice is enough to look at.
const MANY: usize = 400;

/// The nice value of who comes last.
const LOWEST: i32 = 19;

/// With one processor for this and all below it.
fn on_one_processor(command: &mut Command) {
    // SAFETY: system calls only.
    unsafe {
        command.pre_exec(|| {
            let mut one = CpuSet::new();
            one.set(0)?;
            Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
        });
    }
}

/// Keeps the one processor busy until it is dropped.
struct Busy(Child);

impl Busy {
    fn begin(sandbox: &Sandbox) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        sandbox.enter(&mut command);
        on_one_processor(&mut command);
        Self(command.spawn().expect("a shell"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The killer has priority: on a busy processor it can have killed all before the owner has looked.
#[test]
fn whoever_is_first_all_who_are_killed_are_named() {
    needs!(host_tracker);
    for _ in 0..2 {
        let sandbox = Sandbox::new();
        let script = format!(
            "i=0; while [ $i -lt {MANY} ]; do (setsid sleep 100 &); i=$((i+1)); done; exec sleep 103"
        );
        let words = ["--", "sh", "-c", &script];
        let mut command = command(&sandbox, Rights::Root, &words);
        on_one_processor(&mut command);
        let running = Lifemon::find().start(command);
        let pid = running.pid();
        let guardian = guardian_of(&sandbox, pid);
        wait_until("all who are left behind", DEADLINE, || {
            let pids: BTreeSet<_> = sandbox.pids().into_iter().collect();
            let is_left = |pid: &&i32| proc::ppid(**pid) == Some(guardian);
            pids.iter().filter(is_left).count() > MANY
        });
        let busy = [(); 2].map(|()| Busy::begin(&sandbox));
        // SAFETY: the call takes no pointer.
        let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, pid.cast_unsigned(), LOWEST) };
        assert_eq!(nice, 0, "root may");
        Pidfd::open(guardian).expect("it runs").kill();
        let output = running.finish(DEADLINE);
        drop(busy);
        assert_eq!(output.code, Some(137), "{output:?}");
        let told = output.stderr.split_whitespace().nth(1);
        let count: usize = told.and_then(|word| word.parse().ok()).unwrap_or_default();
        assert!(count >= MANY, "{count} of {MANY}: {output:?}");
    }
}

/// A run whose command has lost two processes, one of them in a session of its own.
struct Family {
    sandbox: Sandbox,
    running: Running,
    guardian: i32,
}

impl Family {
    fn start(rights: Rights) -> Self {
        let sandbox = Sandbox::new();
        let script = "(setsid sleep 101 &); (sleep 102 &); exec sleep 103";
        let mut command = command(&sandbox, rights, &["--", "sh", "-c", script]);
        command.process_group(0);
        let running = Lifemon::find().start(command);
        let guardian = guardian_of(&sandbox, running.pid());
        let family = Self {
            sandbox,
            running,
            guardian,
        };
        wait_until("the family", DEADLINE, || family.sleeps().len() == 3);
        family
    }

    fn sleeps(&self) -> BTreeSet<i32> {
        let is_sleep = |pid: &i32| {
            let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name == b"sleep\n" && proc::ppid(*pid) == Some(self.guardian)
        };
        self.sandbox.pids().into_iter().filter(is_sleep).collect()
    }

    fn witness(&self) -> i32 {
        let is_witness = |pid: &i32| {
            let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name == b"witness\n"
        };
        let pids = self.sandbox.pids();
        pids.into_iter().find(is_witness).expect("the witness")
    }

    fn is_stopped(pid: i32) -> bool {
        proc::stat(pid).is_some_and(|stat| stat.state == 'T')
    }

    #[track_caller]
    fn stop(pid: i32) {
        let pidfd = Pidfd::open(pid).expect("it runs");
        pidfd.signal(Signal::SIGSTOP).expect("it runs");
        wait_until("it stopped", DEADLINE, || Self::is_stopped(pid));
    }
}

#[test]
fn an_owner_that_is_stopped_goes_on_when_its_guardian_is_killed() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let family = Family::start(rights);
        Family::stop(family.running.pid());
        Pidfd::open(family.guardian).expect("it runs").kill();
        let output = family.running.finish(DEADLINE);
        assert_eq!(output.code, Some(137), "{rights:?} {output:?}");
        assert!(output.stderr.contains("killed"), "{rights:?} {output:?}");
        assert_nobody(&family.sandbox);
    }
}

#[test]
fn a_guardian_that_is_stopped_goes_on_when_its_owner_is_killed() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let family = Family::start(rights);
        Family::stop(family.guardian);
        Pidfd::open(family.running.pid()).expect("it runs").kill();
        let sandbox = &family.sandbox;
        wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
    }
}

#[test]
fn where_both_are_stopped_the_end_of_one_continues_the_other() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        for kill_the_owner in [true, false] {
            let family = Family::start(rights);
            let owner = family.running.pid();
            Family::stop(owner);
            Family::stop(family.guardian);
            let (victim, other) = if kill_the_owner {
                (owner, family.guardian)
            } else {
                (family.guardian, owner)
            };
            Pidfd::open(victim).expect("it runs").kill();
            wait_until("the other goes on", DEADLINE, || !Family::is_stopped(other));
            let sandbox = &family.sandbox;
            wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
        }
    }
}

#[test]
fn without_a_witness_signals_are_handed_on_all_the_same() {
    let family = Family::start(Rights::Nobody);
    Pidfd::open(family.witness()).expect("it runs").kill();
    let lifemon = Pidfd::open(family.running.pid()).expect("it runs");
    lifemon.signal(Signal::SIGTERM).expect("it runs");
    let output = family.running.finish(DEADLINE);
    assert_eq!(output.code, None, "{output:?}");
    assert!(output.stderr.contains("2 processes left"), "{output:?}");
    assert_nobody(&family.sandbox);
}

#[test]
fn nobody_outlives_any_of_its_processes() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        for who in ["owner", "guardian", "group"] {
            let family = Family::start(rights);
            match who {
                "owner" => Pidfd::open(family.running.pid()).expect("it runs").kill(),
                "guardian" => Pidfd::open(family.guardian).expect("it runs").kill(),
                _ => {
                    let group = Pid::from_raw(family.running.pid());
                    killpg(group, Signal::SIGKILL).expect("it runs");
                }
            }
            let sandbox = &family.sandbox;
            wait_until(who, DEADLINE, || sandbox.pids().is_empty());
        }
    }
}

/// Kills both at once: what they had left escapes, and the lineage still knows whose it is.
#[test]
fn what_has_escaped_is_known_to_the_tracker_and_killed_by_the_name_of_its_owner() {
    needs!(host_tracker);
    let family = Family::start(Rights::Root);
    let owner = family.running.pid();
    // Both are dead before either can do anything.
    let Some(freezer) = Freezer::new() else {
        return;
    };
    for pid in [owner, family.guardian] {
        let start_ticks = proc::stat(pid).expect("it runs").start_ticks;
        freezer.freeze(Process { pid, start_ticks });
    }
    for pid in [owner, family.guardian] {
        Pidfd::open(pid).expect("it runs").kill();
    }
    freezer.thaw();
    let output = family.running.finish(DEADLINE);
    assert_eq!(output.code, None, "{output:?}");
    let escaped = family.sandbox.pids().len();
    assert!(escaped >= 2, "{escaped}");
    let killed = kill(&owner, &[]);
    assert_eq!(killed.code, Some(0), "{killed:?}");
    assert_nobody(&family.sandbox);
}
