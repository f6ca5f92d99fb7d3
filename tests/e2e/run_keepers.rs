//! `lifemon run` whose own processes come too late: what they report, and what they leave.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use lifemon_tests::{DEADLINE, Lifemon, Pidfd, Sandbox, needs, proc, wait_until};
use nix::sched::{CpuSet, sched_setaffinity};
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
