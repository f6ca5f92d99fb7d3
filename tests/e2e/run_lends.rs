//! The helper that `lifemon run` lends to servers below it: whom it serves, that it knows all of a
//! worker's tree and nothing else, and that nobody holds the run up with it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifemon_tests::agent::python_for_all;
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Lifemon, Output, Pidfd, Sandbox, needs, proc, wait_until};
use serde_json::Value;

use crate::run::lifemon_run::{Rights, command, guardian_of, run, writable_file};

/// What each server begins with.
const ASKER: &str = include_str!("run/asker.py");

/// The text of a server that does this.
fn server(body: &str) -> String {
    format!("{ASKER}\n{body}")
}

/// Runs a server as the command, to its end.
#[track_caller]
fn end_of_server(
    python: &str,
    (sandbox, rights): (&Sandbox, Rights),
    options: &[&str],
    body: &str,
) -> Output {
    let text = server(body);
    let words = [options, &["--", python, "-c", &text]].concat();
    run(sandbox, rights, &words)
}

/// What a server has printed, line by line.
#[track_caller]
fn printed(output: &Output) -> Vec<Value> {
    assert_eq!(output.code, Some(0), "{output:?}");
    let lines = output.stdout.lines();
    let lines = lines.map(|line| serde_json::from_str(line).expect("a line of JSON"));
    lines.collect()
}

#[test]
fn a_workers_tree_is_known_and_killed_as_a_whole_and_nothing_else_is() {
    needs!(python, private_tracker);
    let Some(python) = python_for_all() else {
        return;
    };
    // Two children that lose their parents at once, and sessions of their own.
    let body = r#"
SCATTER = "setsid sh -c '(sleep 101 & echo $!) ; (setsid sleep 102 & echo $!)' ; exec sleep 103"
worker, other = shell(SCATTER), shell(SCATTER)
channel, state = watch([worker, other])
mine = [int(go(worker)), int(worker.stdout.readline())]
others = [int(go(other)), int(other.stdout.readline())]
stray = int(subprocess.check_output(
    ["sh", "-c", "setsid sleep 104 >/dev/null 2>&1 & echo $!"]))
ask(channel, {"kill": name(worker.pid)})
ended = hear(channel, "ended")
worker.wait()
wait_for(lambda: not any(map(lives, mine)))
assert all(map(lives, [*others, other.pid, stray])), (others, other.pid, stray)
killed = sorted(one["pid"] for one in ended["killed"])
assert killed == sorted([worker.pid, *mine]), (killed, worker.pid, mine)
ask(channel, "end")
ended = hear(channel, "ended")
other.wait()
wait_for(lambda: not any(map(lives, others)))
assert lives(stray)
print(json.dumps([state, ended["survivors"]]))
"#;
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let output = end_of_server(&python, (&sandbox, rights), &["--grace", "0"], body);
        let lines = printed(&output);
        let state = &lines[0][0];
        assert_eq!(state["ebpf"], rights == Rights::Root, "{output:?}");
        assert_eq!(state["incomplete"], serde_json::json!([]), "{output:?}");
        assert_eq!(lines[0][1], serde_json::json!([]), "{output:?}");
        assert!(
            output.stderr.contains("1 process left behind"),
            "{output:?}"
        );
        assert_nobody(&sandbox);
    }
}

#[test]
fn what_was_left_before_makes_it_incomplete_only_where_something_was() {
    needs!(python, private_tracker);
    let Some(python) = python_for_all() else {
        return;
    };
    let body = r#"
reasons = []
for before in ("true", "(sleep 101 >/dev/null &)"):
    words = ["sh", "-c", f"{before}; echo; exec sleep 103"]
    worker = subprocess.Popen(words, stdout=subprocess.PIPE)
    worker.stdout.readline()
    channel, state = watch([worker])
    reasons.append([one["reason"] for one in state["incomplete"]])
    ask(channel, "end")
    hear(channel, "ended")
    worker.wait()
print(json.dumps(reasons))
"#;
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let output = end_of_server(&python, (&sandbox, rights), &["--grace", "0"], body);
        let expected = serde_json::json!([[], ["no_history"]]);
        assert_eq!(printed(&output), [expected], "{rights:?} {output:?}");
        assert_nobody(&sandbox);
    }
}

#[test]
fn orphans_that_nobody_has_seen_before_are_reported() {
    needs!(python);
    let Some(python) = python_for_all() else {
        return;
    };
    let body = r#"
worker = shell("setsid sh -c '(sleep 101 & echo $!)'; exec sleep 103")
channel, _ = watch([worker])
orphan = int(go(worker))
while [one["pid"] for one in hear(channel, "state")["orphans"]] != [orphan]:
    pass
ask(channel, "end")
hear(channel, "ended")
"#;
    let sandbox = Sandbox::new();
    let output = end_of_server(&python, (&sandbox, Rights::Nobody), &["--grace", "0"], body);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_nobody(&sandbox);
}

#[test]
fn the_death_of_a_worker_comes_with_its_cause() {
    needs!(python, private_tracker);
    let Some(python) = python_for_all() else {
        return;
    };
    let body = r#"
worker = shell("exec sleep 101")
channel, _ = watch([worker])
os.kill(worker.pid, signal.SIGKILL)
died = hear(channel, "died")
sender = died["exit"]["sender"]["pid"]
print(json.dumps([died["pid"] == worker.pid, died["cause"], sender == os.getpid()]))
"#;
    let sandbox = Sandbox::new();
    let output = end_of_server(&python, (&sandbox, Rights::Root), &[], body);
    let lines = printed(&output);
    assert_eq!(lines[0][0], true);
    let cause = lines[0][1].as_str().expect("a cause");
    assert!(cause.starts_with("SIGKILL from "), "{cause}");
    assert_eq!(lines[0][2], true);
}

#[test]
fn a_server_that_is_killed_takes_its_workers_along_and_nobody_else() {
    needs!(python, private_tracker);
    let Some(python) = python_for_all() else {
        return;
    };
    let body = r#"
worker = shell("setsid sh -c '(sleep 101 & echo $!)'; exec sleep 103")
channel, _ = watch([worker])
print(worker.pid, go(worker), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"#;
    for rights in Rights::BOTH {
        for keeps in [false, true] {
            let sandbox = Sandbox::new();
            let file = writable_file(&sandbox, "server.py");
            // The shell is the command; the parent of the server is the guardian.
            let text = server(body);
            std::fs::write(&file, text).expect("a file in the sandbox");
            let script = format!(
                "(setsid {python} {file} &); sleep 104 & beside=$!; read go; \
                 kill -0 $beside && echo beside"
            );
            let options: &[&str] = if keeps { &["--keep-orphans"] } else { &[] };
            let grace = ["--grace", "0", "--", "sh", "-c", &script];
            let words = [options, &grace].concat();
            let mut command = command(&sandbox, rights, &words);
            let (answer, go) = std::io::pipe().expect("a pipe");
            command.stdin(answer);
            let running = Lifemon::find().start(command);
            let mut pids: Vec<i32> = Vec::new();
            wait_until("the server's workers", DEADLINE, || {
                let text = running.stdout_so_far();
                let line = text.lines().next().unwrap_or_default().to_owned();
                pids = line.split(' ').flat_map(str::parse).collect();
                pids.len() == 2
            });
            wait_until("their end", DEADLINE, || {
                !pids.iter().any(|pid| proc::is_running(*pid))
            });
            drop(go);
            let output = running.finish(DEADLINE);
            assert!(output.stdout.contains("beside"), "{rights:?} {output:?}");
            let said = "the server is dead: 2 processes of its workers' trees killed";
            let said_by_all = "the server is dead: 3 processes of its workers' trees killed";
            let is_said = output.stderr.contains(said) || output.stderr.contains(said_by_all);
            assert!(is_said, "{rights:?} {output:?}");
            assert_eq!(output.stderr.contains("kept"), keeps, "{output:?}");
            if !keeps {
                assert_nobody(&sandbox);
            }
        }
    }
}

#[test]
fn who_is_not_below_or_another_user_is_refused_and_so_is_who_asks_for_others() {
    needs!(python);
    let Some(python) = python_for_all() else {
        return;
    };
    let sandbox = Sandbox::new();
    let mut stranger = Command::new("sleep");
    sandbox.enter(stranger.arg("600").stdout(Stdio::null()));
    let mut stranger = stranger.spawn().expect("sleep");
    let body = format!(
        r#"
worker = shell("exec sleep 101")
for refused in (int("{}"), os.getpid(), os.getppid(), 1):
    channel = connect(os.getppid())
    ask(channel, {{"watch": [name(worker.pid), name(refused)]}})
    assert hear(channel, "state") is None, refused
channel, state = watch([worker])
assert state is not None
# What is none of the tree is not killed.
ask(channel, {{"kill": name(os.getppid())}})
assert hear(channel, "ended") == {{"killed": [], "survivors": []}}
ask(channel, "release")
assert hear(channel, "ended") is None and lives(worker.pid)
limits = open(f"/proc/{{worker.pid}}/limits").read()
assert "Max file locks            unlimited            unlimited" in limits, limits
if os.getuid() == 0:
    guardian = os.getppid()
    if os.fork() == 0:
        os.setresuid(65534, 65534, 65534)
        channel = connect(guardian)
        ask(channel, {{"watch": []}})
        os._exit(hear(channel, "state") is not None)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, "another user is served"
print(0, flush=True)
sys.stdin.read()
"#,
        stranger.id()
    );
    for rights in Rights::BOTH {
        let text = server(&body);
        let words = ["--grace", "0", "--", &python, "-c", &text];
        let mut command = command(&sandbox, rights, &words);
        let (answer, go) = std::io::pipe().expect("a pipe");
        command.stdin(answer);
        let running = Lifemon::find().start(command);
        wait_until("the server", DEADLINE, || {
            let said = running.stderr_so_far();
            assert!(said.is_empty(), "{said}");
            !running.stdout_so_far().is_empty()
        });
        let guardian = guardian_of(&sandbox, running.pid());
        let beside = server(&format!(
            "channel = connect({guardian})\nask(channel, {{\"watch\": []}})\n\
             print(hear(channel, \"state\"))"
        ));
        let outside = Command::new(&python).args(["-c", &beside]).output();
        let outside = outside.expect("python");
        assert_eq!(outside.stdout, b"None\n", "{outside:?}");
        drop(go);
        let output = running.finish(DEADLINE);
        assert_eq!(output.code, Some(0), "{rights:?} {output:?}");
    }
    assert!(stranger.try_wait().expect("wait").is_none());
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
    assert_nobody(&sandbox);
}

#[test]
fn nobody_holds_the_run_up_with_it() {
    needs!(python);
    let Some(python) = python_for_all() else {
        return;
    };
    // As many as there are and more, from the command and from what it leaves: they say nothing,
    // or something that is not understood, or ask and do not read.
    let body = r#"
guardian = os.getppid()
worker = shell("exec sleep 101")
held = []
if os.fork() == 0:
    os.setsid()
    time.sleep(0.3)
for message in range(40):
    try:
        channel = connect(guardian)
        channel.settimeout(0.1)
        held.append(channel)
        if message % 3 == 1:
            channel.sendall(b"\xff" * 100)
        if message % 3 == 2:
            ask(channel, {"watch": [name(worker.pid)]})
            while ask(channel, {"kill": {"pid": 1, "start_ns": 1}}):
                pass
    except OSError:
        pass
if os.getpid() == os.getsid(0) and os.getppid() != guardian:
    time.sleep(600)
"#;
    let sandbox = Sandbox::new();
    let begun = Instant::now();
    let output = end_of_server(&python, (&sandbox, Rights::Nobody), &["--grace", "0"], body);
    assert_eq!(output.code, Some(0), "{output:?}");
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(40), "{elapsed:?}");
    assert_nobody(&sandbox);
}

#[test]
fn a_helper_that_is_stopped_is_waited_for_and_then_killed() {
    needs!(python);
    let Some(python) = python_for_all() else {
        return;
    };
    let body = r#"
worker = shell("exec sleep 101")
channel, _ = watch([worker])
def helper():
    for child in open(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read().split():
        if open(f"/proc/{child}/comm").read() == "lifemon-helper\n":
            return int(child)
os.kill(helper(), signal.SIGSTOP)
"#;
    let sandbox = Sandbox::new();
    let output = end_of_server(&python, (&sandbox, Rights::Nobody), &["--grace", "0"], body);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(
        output.stderr.contains("1 process left behind"),
        "{output:?}"
    );
    assert_nobody(&sandbox);
}

#[test]
fn a_helper_that_is_killed_costs_nothing_but_itself() {
    needs!(python);
    let Some(python) = python_for_all() else {
        return;
    };
    let body = r#"
worker = shell("exec sleep 101")
channel, _ = watch([worker])
print(0, flush=True)
assert hear(channel, "nothing") is None
channel, state = watch([worker])
print(json.dumps(state["incomplete"]))
"#;
    let sandbox = Sandbox::new();
    let text = server(body);
    let words = ["--grace", "0", "--", &python, "-c", &text];
    let running = Lifemon::find().start(command(&sandbox, Rights::Nobody, &words));
    let guardian = guardian_of(&sandbox, running.pid());
    wait_until("the helper", DEADLINE, || {
        !running.stdout_so_far().is_empty()
    });
    let is_helper = |pid: &i32| {
        let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        proc::ppid(*pid) == Some(guardian) && name == b"lifemon-helper\n"
    };
    let helper = sandbox.pids().into_iter().find(is_helper);
    Pidfd::open(helper.expect("it runs"))
        .expect("it runs")
        .kill();
    let output = running.finish(DEADLINE);
    assert_eq!(output.code, Some(0), "{output:?}");
    // The mark of the first is on the worker still.
    assert!(output.stdout.contains("no_tracker"), "{output:?}");
    assert_nobody(&sandbox);
}
