//! `pid-namespace`: processes whose own pid is not the one that the host knows them by.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

use crate::pipe::Pipe;
use crate::process::{hold, pid_outside, spawn};
use crate::talk::{begin, commands, reap, report, skip};

/// Roles `unsharer`, `ns-init` (pid 1 inside, child of the unsharer) and `ns-worker` (pid 2
/// inside, child of the init). All stay; pids are reported as outside.
pub(crate) fn pid_namespace() -> i32 {
    begin();
    let up = Pipe::new();
    let unsharer = spawn(|| {
        if unshare(CloneFlags::CLONE_NEWPID).is_err() {
            up.send(0);
            return 1;
        }
        spawn(|| {
            up.send(pid_outside());
            spawn(|| {
                up.send(pid_outside());
                hold()
            });
            hold()
        });
        hold()
    });
    match up.receive() {
        0 => {
            skip("not permitted to make a pid namespace");
            reap(unsharer);
        }
        init => {
            report(unsharer, "unsharer");
            report(Pid::from_raw(init), "ns-init");
            report(up.receive_pid(), "ns-worker");
        }
    }
    commands()
}
