//! Questions about one process or one tree: `explain`, `wait`, zombies; and the ways to ask: `-o
//! name`, `-q`, `--watch`, `--events`.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use lifemon_tests::left_behind::{ask, kill_and_wait, leave_workers, orphans, tree};
use lifemon_tests::reports::{Identified as _, find};
use lifemon_tests::{
    DEADLINE, HostTracker, Lifemon, Pidfd, Sandbox, Script, actor, needs, wait_until,
};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

/// Waits until a running lifemon has something in its stdout.
#[track_caller]
fn until_it_says(running: &lifemon_tests::Running, word: &str) {
    wait_until(word, DEADLINE, || running.stdout_so_far().contains(word));
}

#[test]
fn an_orphan_is_explained() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    let (server, workers) = leave_workers(&mut actor);
    let worker = workers[0];
    let it: Value = ask("explain", &[&worker.pid.to_string()]).success();
    assert_eq!(it["kind"], "explain");
    assert_eq!(it["process"]["alive"], true, "{it}");
    assert_eq!(it["lineage"][0]["pid"], server.pid, "{it}");
    assert_eq!(it["lineage"][0]["exit"]["signal"], 9, "{it}");
    assert_eq!(it["orphan"]["verdict"], "leaked", "{it}");
    assert_eq!(it["root"]["pid"], actor.pid(), "{it}");
    assert_eq!(it["kill"]["would_die"], 1, "{it}");
    let waiter = &it["waiters"][0];
    assert_eq!(waiter["how"], "parent", "{it}");
    let text = Lifemon::find().run(["explain", &worker.pid.to_string()]);
    assert_eq!(text.code, Some(0), "{text:?}");
    for word in ["leaked", "SIGKILL", "would end 1 process", "waited for"] {
        assert!(text.stdout.contains(word), "{word}: {text:?}");
    }
    // The dead server too, as long as a worker lives.
    let it: Value = ask("explain", &[&server.pid.to_string()]).success();
    assert_eq!(it["process"]["alive"], false, "{it}");
    assert_eq!(it["process"]["exit"]["signal"], 9, "{it}");
    assert_eq!(it["kill"]["would_die"], 2, "{it}");
}

#[test]
fn who_is_dead_or_another_is_not_explained() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let other = format!("{}@{}", actor.pid(), 12_345);
    let output = ask("explain", &[&other]);
    assert_eq!(output.code, Some(4), "{output:?}");
    assert!(output.stderr.contains("another process now"), "{output:?}");
    let output = ask("explain", &["4194304"]);
    assert_eq!(output.code, Some(4), "{output:?}");
    let own = Lifemon::find().run(["explain", &std::process::id().to_string()]);
    assert!(own.stdout.contains("refused"), "{own:?}");
}

#[test]
fn what_a_process_holds_is_explained() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let path = sandbox.directory().join("locked");
    let text = r#"
import fcntl, os, socket, time
kept = socket.create_server(("127.0.0.1", 0)); file = open("FILE", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(f"port-{kept.getsockname()[1]} {os.getpid()}")
print("ready", flush=True)
time.sleep(1000)
"#;
    let script = Script::start(
        &sandbox,
        "python3",
        &text.replace("FILE", path.to_str().unwrap()),
    );
    let it: Value = ask("explain", &[&script.own().pid.to_string()]).success();
    let port = script.word("port-");
    assert_eq!(it["holds"]["ports"][0]["port"].to_string(), port, "{it}");
    assert_eq!(
        it["holds"]["locks"][0]["path"],
        path.to_str().unwrap(),
        "{it}"
    );
    assert_eq!(it["orphan"], Value::Null, "{it}");
}

#[test]
fn a_zombie_is_told_with_who_does_not_reap_it() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let text = r#"
import os, time
pid = os.fork()
if pid == 0: os._exit(7)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(f"zombie {pid}")
print("ready", flush=True)
time.sleep(1000)
"#;
    let script = Script::start(&sandbox, "python3", text);
    let (zombie, parent) = (script.process("zombie"), script.own());
    let report = orphans(&["--zombies"]);
    let zombies = report.zombies.as_ref().expect("zombies");
    let found = zombies.iter().find(|found| found.pid == zombie.pid);
    let found = found.unwrap_or_else(|| panic!("{report:?}"));
    assert_eq!(found.process(), zombie);
    assert_eq!(found.parent.as_ref().map(|who| who.pid), Some(parent.pid));
    assert_eq!(found.exit.as_ref().and_then(|exit| exit.code), Some(7));
    assert!(found.dead_ms.is_none_or(|ms| ms < 60_000), "{found:?}");
    assert_eq!(orphans(&[]).zombies, None);
    let shown = tree(&[&parent.pid.to_string()]);
    assert!(find(&shown.zombies, zombie).is_some(), "{shown:?}");
    let it: Value = ask("explain", &[&zombie.pid.to_string()]).success();
    assert_eq!(it["zombie"]["parent"]["pid"], parent.pid, "{it}");
    assert_eq!(it["zombie"]["exit"]["code"], 7, "{it}");
    assert_eq!(it["process"]["alive"], false, "{it}");
}

#[test]
fn a_wait_ends_when_the_tree_is_extinct() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    actor.step();
    let (server, workers) = (actor.child("server"), actor.children("worker"));
    let lifemon = Lifemon::find();
    let words = |until: &'static str| {
        let pid = server.pid.to_string();
        ["wait", &pid, "-o", "json", "--until", until].map(str::to_owned)
    };
    let short = |until| {
        let mut words = words(until).to_vec();
        words.extend(["--timeout", "200ms"].map(str::to_owned));
        lifemon.run(words)
    };
    let output = short("any-exit");
    assert_eq!(output.code, Some(1), "{output:?}");
    let waits = ["extinct", "any-exit", "gone", "released"];
    let waits = waits.map(|until| lifemon.start(lifemon.command(words(until))));
    // Each of them watches by now, or looks at the dead when it begins to.
    wait_until("the watchers", DEADLINE, || {
        short("extinct").code == Some(1)
    });
    kill_and_wait(server);
    let [extinct, any_exit, gone, released] = waits;
    for done in [any_exit, gone] {
        let output = done.finish(DEADLINE);
        assert_eq!(output.code, Some(0), "{output:?}");
        let report: Value = output.report();
        assert_eq!(report["holds"], true, "{report}");
    }
    let output = short("extinct");
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_eq!(output.report::<Value>()["alive"], 2);
    for worker in workers {
        kill_and_wait(worker);
    }
    for done in [extinct, released] {
        let output = done.finish(DEADLINE);
        assert_eq!(output.code, Some(0), "{output:?}");
    }
    let output = lifemon.run(["wait", "4194304"]);
    assert_eq!(output.code, Some(4), "{output:?}");
}

#[test]
fn the_first_exit_says_who_and_how() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let workers = actor.children("worker");
    let lifemon = Lifemon::find();
    let pids = workers.iter().map(|worker| worker.pid.to_string());
    let words = ["wait", "-o", "json", "--until", "any-exit"].map(str::to_owned);
    let waiting = lifemon.start(lifemon.command(words.into_iter().chain(pids)));
    // It has begun when the kernel counts one tree more.
    std::thread::sleep(Duration::from_millis(500));
    Pidfd::of(workers[1]).kill();
    let output = waiting.finish(DEADLINE);
    let report: Value = output.success();
    assert_eq!(report["process"]["pid"], workers[1].pid, "{report}");
    assert_eq!(report["exit"]["signal"], 9, "{report}");
}

#[test]
fn one_that_dies_before_the_watching_begins_has_ended() {
    let host = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let workers = actor.children("worker");
    // Whoever begins to watch has looked at the lineage by then, and waits for this.
    let directory = PathBuf::from(host.status().directory);
    let home = File::open(directory.parent().expect("a home")).expect("it is there");
    let lock = Flock::lock(home, FlockArg::LockExclusive).expect("free");
    let lifemon = Lifemon::find();
    let waits = ["extinct", "any-exit", "gone"].map(|until| {
        let words = ["wait", "-o", "json", "--until", until].map(str::to_owned);
        let pids = workers.iter().map(|worker| worker.pid.to_string());
        lifemon.start(lifemon.command(words.into_iter().chain(pids)))
    });
    for waiting in &waits {
        wait_until("it waits for the lock", DEADLINE, || {
            waiting.stderr_so_far().contains("waiting for")
        });
    }
    kill_and_wait(workers[0]);
    drop(lock);
    let [extinct, any_exit, gone] = waits;
    let report: Value = any_exit.finish(DEADLINE).report();
    assert_eq!(report["process"]["pid"], workers[0].pid, "{report}");
    kill_and_wait(workers[1]);
    for done in [extinct, gone] {
        let output = done.finish(DEADLINE);
        assert_eq!(output.code, Some(0), "{output:?}");
        assert_eq!(output.report::<Value>()["holds"], true, "{output:?}");
    }
}

#[test]
fn lists_as_names_and_silence() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    let (server, workers) = leave_workers(&mut actor);
    let root = server.pid.to_string();
    let lifemon = Lifemon::find();
    let output = lifemon.run(["orphans", "--tree", &root, "-o", "name"]);
    let report = orphans(&["--tree", &root]);
    assert!(find(&report.orphans, workers[0]).is_some(), "{report:?}");
    let names: Vec<_> = report
        .orphans
        .iter()
        .map(|orphan| format!("{}@{}\n", orphan.pid, orphan.start_ns))
        .collect();
    assert_eq!(output.stdout, names.concat(), "{output:?}");
    let output = lifemon.run(["orphans", "--tree", &root, "--check", "-q"]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""));
    let output = lifemon.run(["kill", "-o", "name", &root]);
    assert_eq!(output.code, Some(2), "{output:?}");
    let wide = lifemon.run(["tree", &root, "-o", "wide"]);
    assert!(
        wide.stdout.contains(&workers[0].pid.to_string()),
        "{wide:?}"
    );
}

#[test]
fn a_list_is_watched_until_ctrl_c() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 1, "init");
    actor.step();
    let (server, worker) = (actor.child("server"), actor.children("worker")[0]);
    let lifemon = Lifemon::find();
    let root = server.pid.to_string();
    let words = ["orphans", "--tree", &root, "--watch=0.1s", "-o", "json"];
    let mut watching = lifemon.start(lifemon.command(words));
    until_it_says(&watching, "\"orphans\":[]");
    kill_and_wait(server);
    until_it_says(&watching, &format!("\"pid\":{}", worker.pid));
    watching.signal(nix::sys::signal::Signal::SIGINT);
    let output = watching.finish(DEADLINE);
    assert_eq!(output.code, Some(0), "{output:?}");
    let each = output.stdout.lines().map(serde_json::from_str::<Value>);
    assert!(each.clone().count() > 1);
    assert!(each.flatten().all(|report| report["kind"] == "orphans"));
}

/// As soon as it does not end lifemon by itself any more: what listens may not be complete by then.
#[test]
fn a_ctrl_c_that_comes_first_of_all_is_heard() {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let lifemon = Lifemon::find();
    let pid = actor.pid().to_string();
    for words in [&["orphans", "--watch"][..], &["wait", &pid]] {
        for _ in 0..10 {
            let mut running = lifemon.start(lifemon.command(words.iter().copied()));
            while !catches(running.pid(), libc::SIGINT) {
                assert!(lifemon_tests::proc::is_running(running.pid()), "{words:?}");
            }
            running.signal(nix::sys::signal::Signal::SIGINT);
            let output = running.finish(DEADLINE);
            let has_waited = output.stderr.contains("interrupted while waiting for");
            let expected = if has_waited { &[1][..] } else { &[0, 130] };
            let code = output.code.expect("it ended by itself");
            assert!(expected.contains(&code), "{output:?}");
        }
    }
}

fn catches(pid: i32, signal: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:\t"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[test]
fn a_stream_of_chosen_events() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 1, "init");
    let lifemon = Lifemon::find();
    let pid = actor.pid().to_string();
    let words = ["attach", &pid, "-o", "json", "--events", "exit,orphaned"];
    let stream = lifemon.start(lifemon.command(words));
    until_it_says(&stream, "\"attached\"");
    actor.step();
    kill_and_wait(actor.child("server"));
    until_it_says(&stream, "\"orphaned\"");
    actor.close();
    for worker in actor.children("worker") {
        kill_and_wait(worker);
    }
    actor.wait();
    let output = stream.finish(DEADLINE);
    let lines: Vec<Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect();
    let allowed = ["attached", "exit", "orphaned", "lost", "detached"];
    for (index, line) in lines.iter().enumerate() {
        let event = line["event"].as_str().unwrap();
        assert!(allowed.contains(&event), "{line}");
        assert_eq!(line["seq"], index + 1, "{line}");
    }
    let output = lifemon.run(["attach", &pid, "--events", "birth"]);
    assert_eq!(output.code, Some(2), "{output:?}");
}
