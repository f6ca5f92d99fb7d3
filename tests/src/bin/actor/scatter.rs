//! `scatter PROCS...`: one child each that leaves for another control group (the files named),
//! session, process group, pid namespace and user. All stay.

use std::fs;
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Pid, Uid, setgroups, setpgid, setresgid, setresuid, setsid};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{exit_now, hold, pid_outside, spawn};
use crate::talk::{begin, commands, fail, report};

const NOBODY: u32 = 65_534;

/// Roles `cgroup`, `session`, `group`, `user`, `unsharer` and its `namespace`, which is pid 1
/// inside.
pub(crate) fn scatter(args: &mut Args) -> i32 {
    let groups: Vec<PathBuf> = std::iter::from_fn(|| args.optional().map(Into::into)).collect();
    begin();
    let up = Pipe::new();
    let leave = |role: &str, how: &dyn Fn() -> bool| {
        let child = spawn(|| {
            if !how() {
                exit_now(3);
            }
            up.send(pid_outside());
            hold()
        });
        if up.receive() != child.as_raw() {
            fail(role);
        }
        report(child, role);
    };
    leave("cgroup", &|| {
        groups.iter().all(|file| fs::write(file, "0").is_ok())
    });
    leave("session", &|| setsid().is_ok());
    leave("group", &|| {
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).is_ok()
    });
    leave("user", &become_nobody);
    let unsharer = spawn(|| {
        if unshare(CloneFlags::CLONE_NEWPID).is_err() {
            fail("not permitted to make a pid namespace");
        }
        spawn(|| {
            up.send(pid_outside());
            hold()
        });
        hold()
    });
    report(unsharer, "unsharer");
    report(up.receive_pid(), "namespace");
    commands()
}

fn become_nobody() -> bool {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[]).is_ok()
        && setresgid(group, group, group).is_ok()
        && setresuid(user, user, user).is_ok()
}
