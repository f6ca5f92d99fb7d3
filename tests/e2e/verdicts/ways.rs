//! The ways: how programs and people leave processes behind, as steps of the actor `leave`.

use std::path::Path;

use lifemon_tests::{Actor, DEADLINE, Pidfd, Process, Sandbox, proc, wait_until};
use nix::sys::signal::Signal;

/// A way to leave a process behind: the steps of the actor `leave`, whose own end is the root's.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) steps: &'static str,
    /// The actor, which is the root, is killed in the end.
    pub(super) root_is_killed: bool,
    /// Which of the chain is looked at; the last one when absent.
    pub(super) orphan: Option<usize>,
}

pub(super) const fn way(name: &'static str, steps: &'static str) -> Way {
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

pub(super) const DELIBERATE: &[Way] = &[
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
        "nohup X &, by a name that is no text",
        "exec fork:0 hup exec no-text",
    ),
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
    with_killed_root(
        "gunicorn --daemon below a killed runner",
        "exec fork:0 session fork:0 null",
    ),
];

pub(super) const LEFT: &[Way] = &[
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

pub(super) const LEAKED: &[Way] = &[
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
    way(
        "the crash handler of a killed browser: forked twice, in a session",
        "exec fork:KILL session fork:0 exec null",
    ),
    way(
        "the monitor of the crash handler of a killed browser",
        "exec fork:KILL session fork:0 exec fork:live session fork:0 exec",
    ),
    with_killed_root("nohup below a killed root", "exec fork:0 hup exec"),
];

/// Does the steps and the ends of a way; the chain of its processes.
#[track_caller]
pub(super) fn chain(sandbox: &Sandbox, steps: &str) -> Option<(Actor, Vec<Process>)> {
    chain_of_job(sandbox, &[], steps)
}

/// Does the same with these environment variables, and no others.
#[track_caller]
pub(super) fn chain_of_job(
    sandbox: &Sandbox,
    variables: &[&str],
    steps: &str,
) -> Option<(Actor, Vec<Process>)> {
    let program = ["-i"].into_iter().chain(variables.iter().copied());
    let words = program.chain([env!("CARGO_BIN_EXE_actor"), "leave"]);
    let words = words.chain(steps.split(' ')).map(str::to_owned);
    let words: Vec<_> = words.collect();
    let mut actor = Actor::spawn(Path::new("env"), sandbox, &words);
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
pub(super) fn leave(sandbox: &Sandbox, way: &Way) -> Option<(Actor, Process)> {
    let (mut actor, mut chain) = chain(sandbox, way.steps)?;
    if way.root_is_killed {
        actor.kill();
    }
    let index = way.orphan.unwrap_or(chain.len() - 1);
    Some((actor, chain.swap_remove(index)))
}
