//! `lifemon attach` through the agent: it shows what it shows without one, ends as it ends without
//! one, and leaves no watch behind however it ends.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use lifemon_tests::agent::{Agent, Caller, Sleeper};
use lifemon_tests::handicap::readable_copy;
use lifemon_tests::schema::assert_is;
use lifemon_tests::{DEADLINE, Lifemon, Output, Running, Sandbox, actor, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::begin;

const USER: u32 = 54_321;
const OTHER: u32 = 54_322;
const SCHEMA: &str = include_str!("../../../docs/schema/event.json");

/// Returns the command that asks this agent.
fn asking(agent: &Agent, words: &[&str]) -> Command {
    let mut command = Lifemon::find().command(words);
    command.env("LIFEMON_AGENT", agent.socket());
    command
}

#[track_caller]
fn run(agent: &Agent, words: &[&str]) -> Output {
    let lifemon = Lifemon::find();
    lifemon.start(asking(agent, words)).finish(DEADLINE)
}

#[track_caller]
fn start(agent: &Agent, words: &[&str]) -> Running {
    Lifemon::find().start(asking(agent, words))
}

/// Returns the watches that the agent has.
fn watches(agent: &Agent) -> usize {
    let listed = Caller::root().get(agent, "/v1/watches").expect(200);
    listed["watches"].as_array().map_or(0, Vec::len)
}

#[track_caller]
fn wait_for_watches(agent: &Agent, count: usize) {
    wait_until("the watches", DEADLINE, || watches(agent) == count);
}

/// Starts a tree that does what it does when it is told to: `go` into its input. Each thing has
/// happened before the next one, also for who notices it late.
fn tree(sandbox: &Sandbox) -> std::process::Child {
    let script = "read go; sh -c 'sleep 2 & sleep 0.5; exit 7'; sh -c 'kill -TERM $$'; \
        sleep 3; exit 3";
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::piped());
    sandbox.enter(&mut command);
    command.spawn().expect("a shell")
}

#[track_caller]
fn go(tree: &mut std::process::Child) {
    let input = tree.stdin.take();
    input.expect("piped").write_all(b"go\n").expect("it reads");
    tree.wait().expect("it ends");
}

/// Returns the lines without what hangs on the moment, in one order: a process that is gone is
/// noticed by each for itself.
fn told(output: &Output) -> Vec<String> {
    assert_eq!(output.code, Some(0), "{output:?}");
    let lines = output.stdout.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).expect("an object a line");
        let fields = line.as_object_mut().expect("an object");
        for moment in ["time", "since", "seq", "after_us", "age_ms", "answered_by"] {
            fields.remove(moment);
        }
        if let Some(signal) = fields.get_mut("signal") {
            signal.as_object_mut().expect("one").remove("sender_root");
        }
        line.to_string()
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

#[test]
fn it_tells_what_it_tells_without_the_agent() {
    begin!(sandbox, agent);
    for options in [&[][..], &["--events", "exit,orphaned"]] {
        let mut tree = tree(&sandbox);
        let pid = tree.id().to_string();
        let words = [&["attach", &pid, "-o", "json"][..], options].concat();
        let here = start(&agent, &[&words[..], &["--local"]].concat());
        let there = start(&agent, &[&words[..], &["--agent"]].concat());
        for running in [&here, &there] {
            wait_until("the first line", DEADLINE, || {
                running.stdout_so_far().contains('\n')
            });
        }
        go(&mut tree);
        let (here, there) = (here.finish(DEADLINE), there.finish(DEADLINE));
        assert_eq!(told(&there), told(&here));
        assert!(there.stdout.contains("orphaned"), "{there:?}");
        for (index, line) in there.stdout.lines().enumerate() {
            let mut line: Value = serde_json::from_str(line).expect("an object a line");
            let by = line.as_object_mut().map(|line| line.remove("answered_by"));
            assert_eq!(by, Some(Some("agent".into())), "{line}");
            assert_eq!(line["seq"], index + 1, "{line}");
            assert_is(&line, SCHEMA);
        }
        wait_for_watches(&agent, 0);
    }
}

/// Returns the text without the columns that hang on the moment.
fn read(output: &Output) -> Vec<String> {
    assert_eq!(output.code, Some(0), "{output:?}");
    let lines = output.stdout.lines().map(|line| {
        let line = match line.split_once(' ') {
            Some((time, rest)) if time.contains(':') => rest,
            _ => line,
        };
        let line = line.split(", aged ").next().unwrap_or(line);
        let line = line.split(" since ").next().unwrap_or(line);
        match line.strip_suffix(" after exit") {
            // How long it took is of the one who has noticed.
            Some(line) => line.rsplit_once("  ").map_or(line, |(before, _)| before),
            None => line,
        }
        .to_owned()
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

#[test]
fn its_text_is_the_same_without_the_agent() {
    begin!(sandbox, agent);
    let mut tree = tree(&sandbox);
    let pid = tree.id().to_string();
    let here = start(&agent, &["attach", &pid, "--local"]);
    let there = start(&agent, &["attach", &pid, "--agent"]);
    for running in [&here, &there] {
        wait_until("the tree", DEADLINE, || {
            running.stdout_so_far().lines().count() >= 3
        });
    }
    go(&mut tree);
    let (here, there) = (here.finish(DEADLINE), there.finish(DEADLINE));
    // The root of the tree of who has sent a signal is not the caller's business.
    let without_root = |line: String| line.split(" (of the tree").next().map(str::to_owned);
    let here: Vec<_> = read(&here).into_iter().map(without_root).collect();
    let there: Vec<_> = read(&there).into_iter().map(Some).collect();
    assert_eq!(there, here);
    assert!(there.len() > 15, "{there:?}");
}

#[test]
fn it_ends_as_it_ends_without_the_agent_and_leaves_no_watch() {
    begin!(sandbox, agent);
    let sleeper = Sleeper::start(&sandbox, &Caller::root());
    let pid = sleeper.pid().to_string();
    let attach = ["--agent", "attach", &pid, "-o", "json"];
    let over = run(&agent, &[&attach[..], &["--for", "300ms"]].concat());
    assert_eq!(over.code, Some(0), "{over:?}");
    let last: Value = serde_json::from_str(over.stdout.lines().last().expect("lines")).unwrap();
    assert_eq!(last["event"], "detached", "{over:?}");
    assert_eq!(last["summary"]["alive"], 1, "{over:?}");
    wait_for_watches(&agent, 0);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut attached = start(&agent, &attach);
        wait_until("it is attached", DEADLINE, || {
            attached.stdout_so_far().contains("attached")
        });
        attached.signal(signal);
        let ended = attached.finish(DEADLINE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("\"detached\""), "{ended:?}");
        assert_eq!(ended.stderr, "");
        assert_eq!(watches(&agent), 0);
    }
    // It cannot say goodbye.
    let attached = start(&agent, &attach);
    wait_for_watches(&agent, 1);
    attached.kill();
    wait_for_watches(&agent, 0);
}

#[test]
fn what_has_happened_before_the_signal_is_told() {
    begin!(sandbox, agent);
    let mut actor = actor!(sandbox, "three-children", 0);
    let pid = actor.pid().to_string();
    let mut attached = start(&agent, &["--agent", "attach", &pid, "-o", "json"]);
    wait_until("it is attached", DEADLINE, || {
        attached.stdout_so_far().contains("attached")
    });
    actor.step();
    attached.signal(Signal::SIGINT);
    let ended = attached.finish(DEADLINE);
    let forks = ended.stdout.matches("\"event\":\"fork\"").count();
    assert_eq!(forks, 4, "{ended:?}");
}

#[test]
fn a_signal_at_any_moment_ends_it_and_its_watch() {
    begin!(sandbox, agent);
    let sleeper = Sleeper::start(&sandbox, &Caller::root());
    let pid = sleeper.pid().to_string();
    for index in 0..60 {
        let mut attached = start(&agent, &["--agent", "attach", &pid]);
        std::thread::sleep(Duration::from_micros(400 * index));
        attached.signal(Signal::SIGINT);
        let ended = attached.finish(DEADLINE);
        // Before it listens, it is the signal's.
        let is_early = ended.stdout.is_empty() && ended.code.is_none();
        assert!(is_early || ended.code == Some(0), "{ended:?}");
        assert_eq!(ended.stderr, "");
        wait_for_watches(&agent, 0);
    }
}

#[test]
fn what_the_agent_does_not_know_is_refused() {
    begin!(sandbox, agent);
    let sleeper = Sleeper::start(&sandbox, &Caller::root());
    let pid = sleeper.pid().to_string();
    for option in [
        &["--kill-on-root-exit"][..],
        &["--ring-size", "64K"],
        &["--max-processes", "1000"],
        &["--device", "/dev/null"],
        &["--release-timeout", "1s"],
        &["--events", "exit,released"],
    ] {
        let refused = run(&agent, &[&["--agent", "attach", &pid][..], option].concat());
        assert_eq!(refused.code, Some(2), "{option:?}: {refused:?}");
    }
    let unknown = run(&agent, &["--agent", "attach", "4194304"]);
    assert_eq!(unknown.code, Some(4), "{unknown:?}");
    assert_eq!(watches(&agent), 0);
}

#[test]
fn a_user_asks_the_agent_unasked_and_sees_what_is_its_own() {
    begin!(sandbox, agent);
    std::fs::set_permissions(sandbox.directory(), Permissions::from_mode(0o755)).expect("its mode");
    let program = readable_copy(&sandbox).display().to_string();
    // Root's shell becomes the user, beside one of another.
    let script = format!(
        "setpriv --reuid {OTHER} --regid {OTHER} --clear-groups sleep 2 & \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups sleep 600"
    );
    let words = ["sh", "-c", &script];
    let mut tree = Sleeper::run(&sandbox, &Caller::root(), &words, "sleep");
    let pid = tree.pid().to_string();
    let attach = |uid: u32, output: &str| {
        let words = [program.as_str(), "attach", &pid, "-o", output];
        let mut command = Caller::user(uid, &[]).command(&words);
        command.env("LIFEMON_AGENT", agent.socket());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Lifemon::find().start(command)
    };
    let forbidden = attach(OTHER, "json").finish(DEADLINE);
    assert_eq!(forbidden.code, Some(1), "{forbidden:?}");
    let (lines, text) = (attach(USER, "json"), attach(USER, "text"));
    wait_for_watches(&agent, 2);
    // That of the other ends meanwhile.
    wait_until("one is left", DEADLINE, || {
        lifemon_tests::agent::pids(&sandbox).len() == 1
    });
    tree.kill();
    let (lines, text) = (lines.finish(DEADLINE), text.finish(DEADLINE));
    assert_eq!(lines.code, Some(0), "{lines:?}");
    let all: Vec<Value> = lines
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect();
    assert_eq!(all[0]["members"].as_array().map(Vec::len), Some(1));
    assert_eq!(all[0]["others"], 1, "{lines:?}");
    for line in &all {
        let uid = &line["process"]["uid"];
        assert!(uid.is_null() || *uid == USER, "{line}");
    }
    assert_eq!(
        all.last().map(|line| &line["event"]),
        Some(&json!("detached"))
    );
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.contains("not shown: 1 of others"), "{text:?}");
    assert!(text.stdout.contains("SIGKILL"), "{text:?}");
}

#[test]
fn what_a_slow_reader_has_missed_is_shown() {
    begin!(sandbox, agent);
    for output in ["json", "text"] {
        let script = "read go; i=0; while [ $i -lt 8000 ]; do : & i=$((i+1)); done; wait; exit 3";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped());
        sandbox.enter(&mut command);
        let mut tree = command.spawn().expect("a shell");
        let pid = tree.id().to_string();
        let mut attach = asking(&agent, &["--agent", "attach", &pid, "-o", output]);
        // Nobody reads what it prints.
        let mut attached = attach.stdout(Stdio::piped()).spawn().expect("it starts");
        wait_for_watches(&agent, 1);
        go(&mut tree);
        wait_for_watches(&agent, 0);
        let mut shown = String::new();
        let out = attached.stdout.as_mut().expect("piped");
        out.read_to_string(&mut shown).expect("text");
        let code = attached.wait().expect("it ends").code();
        assert!(shown.contains("slow_reader"), "nothing was lost");
        // The end was among it.
        assert_eq!(code, Some(1), "{output}");
        let last = shown.lines().last().expect("lines");
        assert!(last.contains("detached") || last.contains("lost"), "{last}");
    }
}

#[test]
fn an_agent_that_ends_is_no_end_of_the_tree() {
    begin!(sandbox, mut agent);
    let sleeper = Sleeper::start(&sandbox, &Caller::root());
    let attached = start(&agent, &["--agent", "attach", &sleeper.pid().to_string()]);
    wait_until("it is attached", DEADLINE, || {
        attached.stdout_so_far().contains("watching the tree")
    });
    agent.kill();
    let ended = attached.finish(DEADLINE);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("the agent has ended"), "{ended:?}");
}
