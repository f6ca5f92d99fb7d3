//! Processes that outlive what created them: `double-fork`, `chain N`, `three-children CODE`, and
//! living generations: the three of `nested`, and the orphaned line of `deep N`.

use nix::unistd::{Pid, getpid, getppid, setsid};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{hold, spawn, until};
use crate::talk::{begin, commands, commands_and, next_step, reap, report};

const GENERATIONS_MAX: u32 = 20_000;
const FORK_LEAF: i32 = 1;
const SPAWN_MID: i32 = 2;
const SPAWN_LEAF: i32 = 3;

/// Makes the classic daemon: roles `middle` (setsid, fork, exit 0) and `grandchild`, which stays.
pub(crate) fn double_fork() -> i32 {
    begin();
    let up = Pipe::new();
    let middle = spawn(|| {
        _ = setsid();
        spawn(|| {
            up.send(getpid().as_raw());
            hold()
        });
        0
    });
    report(middle, "middle");
    report(up.receive_pid(), "grandchild");
    reap(middle);
    commands()
}

/// Makes N generations (2 at least), each of which forks the next and exits. The `last` reports
/// itself once its own creator is dead, and stays.
pub(crate) fn chain(args: &mut Args) -> i32 {
    let generations = args.count("generations", GENERATIONS_MAX).max(2);
    begin();
    let up = Pipe::new();
    let actor = getpid();
    let first = spawn(|| generation(generations, actor, &up));
    report(first, "first");
    reap(first);
    report(up.receive_pid(), "last");
    commands()
}

/// Forks the next generation by recursion in the child: each level is another process, and the
/// depth has a bound.
fn generation(left: u32, creator: Pid, up: &Pipe) -> i32 {
    if left > 1 {
        let me = getpid();
        spawn(|| generation(left - 1, me, up));
        return 0;
    }
    until(|| getppid() != creator);
    up.send(getpid().as_raw());
    hold()
}

/// Makes N generations (2 at least) that all stay, the first of them an orphan; the `last` reports
/// itself.
pub(crate) fn deep(args: &mut Args) -> i32 {
    let generations = args.count("generations", 100).max(2);
    begin();
    let up = Pipe::new();
    let middle = spawn(|| {
        spawn(|| deeper(generations, &up));
        0
    });
    reap(middle);
    report(up.receive_pid(), "last");
    commands()
}

fn deeper(left: u32, up: &Pipe) -> i32 {
    if left > 1 {
        spawn(|| deeper(left - 1, up));
    } else {
        up.send(getpid().as_raw());
    }
    hold()
}

/// Makes role `middle` with three of role `worker`. On the second line the middle exits with CODE.
pub(crate) fn three_children(args: &mut Args) -> i32 {
    let code = args.exit_code();
    begin();
    let (up, down) = (Pipe::new(), Pipe::new());
    let middle = spawn(|| {
        (0..3).for_each(|_| up.send(spawn(|| hold()).as_raw()));
        down.receive()
    });
    report(middle, "middle");
    (0..3).for_each(|_| report(up.receive_pid(), "worker"));
    next_step();
    down.send(code);
    reap(middle);
    commands()
}

/// Roles `mid` and its `leaf`, both stay. The lines `spawn-mid` and `spawn-leaf` make that one
/// fork a child that exits at once (roles `mid-child`, `leaf-child`).
pub(crate) fn nested() -> i32 {
    begin();
    let (up, to_mid, to_leaf) = (Pipe::new(), Pipe::new(), Pipe::new());
    report(spawn(|| mid(&up, &to_mid, &to_leaf)), "mid");
    let order = |command| {
        to_mid.send(command);
        up.receive();
    };
    order(FORK_LEAF);
    commands_and(|line| {
        match line {
            "spawn-mid" => order(SPAWN_MID),
            "spawn-leaf" => order(SPAWN_LEAF),
            _ => return false,
        }
        true
    })
}

fn mid(up: &Pipe, to_mid: &Pipe, to_leaf: &Pipe) -> i32 {
    loop {
        match to_mid.receive() {
            FORK_LEAF => report(spawn(|| leaf(up, to_leaf)), "leaf"),
            SPAWN_MID => brief_child("mid-child"),
            command => {
                to_leaf.send(command);
                continue;
            }
        }
        up.send(0);
    }
}

fn leaf(up: &Pipe, to_leaf: &Pipe) -> i32 {
    loop {
        to_leaf.receive();
        brief_child("leaf-child");
        up.send(0);
    }
}

fn brief_child(role: &str) {
    let child = spawn(|| 0);
    report(child, role);
    reap(child);
}
