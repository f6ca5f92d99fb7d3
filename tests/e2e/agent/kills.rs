//! Kills through the agent: with the rights of the caller, once for each key, and logged.

use std::time::Duration;

use lifemon_tests::agent::{Agent, Caller, Sleeper, name_of, pids};
use lifemon_tests::{DEADLINE, Lifemon, Sandbox, Script, needs, proc, wait_until};
use serde_json::json;

use super::{begin, callers};

const USER: u32 = 54_321;

#[test]
fn a_user_ends_a_tree_without_the_members_of_others() {
    begin!(sandbox, agent);
    // Root's shell has started one of its own, and then become the user.
    let script = "sleep 600 & sleep 601 & setpriv --reuid 54321 --regid 54321 --clear-groups \
        sleep 602 & exec setpriv --reuid 54321 --regid 54321 --clear-groups sleep 603";
    let sleeper = Sleeper::run(&sandbox, &Caller::root(), &["sh", "-c", script], "sleep");
    wait_until("the user's child runs", DEADLINE, || {
        sandbox_uids(&sandbox, USER) == 2
    });
    let user = Caller::user(USER, &[]);
    let tried = json!({"process": sleeper.name(), "dry_run": true});
    let would = user.post(&agent, "/v1/kills", &tried).expect(200);
    assert_eq!(
        would["members"].as_array().map(Vec::len),
        Some(2),
        "{would}"
    );
    assert_eq!(would["others"], 2, "{would}");
    let body = json!({"process": sleeper.name(), "reason": "a test"});
    let done = user.post(&agent, "/v1/kills", &body).expect(200);
    assert_eq!(done["killed"].as_array().map(Vec::len), Some(2), "{done}");
    assert_eq!(done["others"], 2, "{done}");
    assert_eq!(done["extinct"], true, "{done}");
    assert_eq!(sandbox_uids(&sandbox, USER), 0);
    assert_eq!(sandbox_uids(&sandbox, 0), 2, "root's live on");
    let log = agent.log();
    let kill = log.iter().find(|line| line["reason"] == "a test");
    let kill = kill.unwrap_or_else(|| panic!("{log:?}"));
    assert_eq!(kill["uid"], USER, "{kill}");
    assert!(
        kill["lineage"]
            .as_array()
            .is_some_and(|line| !line.is_empty())
    );
    let refused = json!({"process": name_of(1)});
    user.post(&agent, "/v1/kills", &refused)
        .problem(403, "forbidden");
    assert!(agent.log().iter().any(|line| line["audit"] == "refused"));
}

/// Counts the sleeping processes of a user in the sandbox.
fn sandbox_uids(sandbox: &Sandbox, uid: u32) -> usize {
    let has_uid = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with("Name:\tsleep") && status.contains(&format!("Uid:\t{uid}\t"))
    };
    pids(sandbox).iter().filter(|pid| has_uid(pid)).count()
}

#[test]
fn a_fork_bomb_of_a_user_is_ended_by_that_user() {
    callers!();
    needs!(host_tracker, bash);
    let sandbox = Sandbox::new();
    let agent = Agent::start(&sandbox, &[]);
    let user = Caller::user(USER, &[]);
    // Each of a bounded number of lines forks and dies, on and on.
    let script = "f() { i=0; while [ $i -lt 20000 ]; do (sleep 0.01 &) ; i=$((i+1)); done; }; \
        for n in 1 2 3 4; do f & done; wait";
    let bomb = Sleeper::run(&sandbox, &user, &["bash", "-c", script], "bash");
    wait_until("it burns", DEADLINE, || pids(&sandbox).len() > 20);
    let body = json!({"process": bomb.name()});
    let done = user.post(&agent, "/v1/kills", &body).expect(200);
    assert_eq!(done["extinct"], true, "{done}");
    assert_eq!(
        done["survivors"].as_array().map(Vec::len),
        Some(0),
        "{done}"
    );
    wait_until("nothing is left", DEADLINE, || pids(&sandbox).is_empty());
}

#[test]
fn clients_of_mps_and_the_caller_itself_are_not_ended_unasked() {
    callers!();
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let agent = Agent::start(&sandbox, &[]);
    let script = Script::with_mps_client(&sandbox);
    let client = script.process("client");
    let root = Caller::root();
    let body = |more: (&str, bool)| {
        let mut body = json!({"process": name_of(client.pid)});
        body[more.0] = more.1.into();
        body
    };
    let would = root.post(&agent, "/v1/kills", &body(("dry_run", true)));
    assert_eq!(would.expect(200)["members"][0]["mps_client"], true);
    let refused = root.post(&agent, "/v1/kills", &body(("force", false)));
    refused.problem(409, "mps_clients");
    let named = format!("{} sleep would die", client.pid);
    assert!(refused.text.contains(&named), "{refused:?}");
    assert!(agent.log().iter().any(|line| line["code"] == "mps_clients"));
    // The same through the command line.
    let lifemon = |words: &[&str]| {
        let mut command = Lifemon::find().command(words);
        command.env("LIFEMON_AGENT", agent.socket());
        Lifemon::find().start(command).finish(DEADLINE)
    };
    let daemon = name_of(script.own().pid);
    let output = lifemon(&["--agent", "kill", &daemon]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("(--force)"), "{output:?}");
    assert!(proc::is_running(client.pid));
    let output = lifemon(&["--agent", "kill", "--force", &daemon]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(wait_gone(client.pid), "it was asked for");

    let own = json!({"process": "self", "dry_run": true});
    let user = Caller::user(USER, &[]);
    user.post(&agent, "/v1/kills", &own)
        .problem(409, "own_tree");
    let own = json!({"process": "self", "dry_run": true, "force": true});
    let would = user.post(&agent, "/v1/kills", &own).expect(200);
    assert_eq!(would["members"][0]["name"], "curl", "{would}");
}

#[test]
fn a_key_ends_something_once() {
    begin!(sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    let sleeper = Sleeper::start(&sandbox, &user);
    let body = json!({"process": sleeper.name()}).to_string();
    let ask = |agent: &Agent, body: &str| {
        let more = ["-H", "Idempotency-Key: one", "-d", body];
        user.ask(agent, "POST", "/v1/kills", &more)
    };
    let first = ask(&agent, &body).expect(200);
    let again = ask(&agent, &body).expect(200);
    assert_eq!(first, again);
    let another = json!({"process": "self"}).to_string();
    ask(&agent, &another).problem(409, "key_reused");
    let id = first["id"].as_str().expect("an id");
    let path = format!("/v1/kills/{id}");
    assert_eq!(user.get(&agent, &path).expect(200), first);
    Caller::user(USER + 1, &[])
        .get(&agent, &path)
        .problem(404, "no_such_kill");
    // Also by an agent that was not there.
    agent.kill();
    agent.start_again();
    assert_eq!(ask(&agent, &body).expect(200), first);
}

#[test]
fn a_kill_that_was_interrupted_is_not_repeated() {
    begin!(sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    // It does not hear SIGTERM.
    let words = ["sh", "-c", "trap '' TERM; exec sleep 600"];
    let mut sleeper = Sleeper::run(&sandbox, &user, &words, "sleep");
    let body = json!({"process": sleeper.name(), "grace": "60s", "wait": false}).to_string();
    let more = ["-H", "Idempotency-Key: two", "-d", &body];
    let begun = user.ask(&agent, "POST", "/v1/kills", &more).expect(202);
    assert_eq!(begun["state"], "running", "{begun}");
    agent.kill();
    agent.start_again();
    let path = format!("/v1/kills/{}", begun["id"].as_str().expect("an id"));
    let state = user.get(&agent, &path).expect(200);
    assert_eq!(state["state"], "interrupted", "{state}");
    let again = user.ask(&agent, "POST", "/v1/kills", &more).expect(200);
    assert_eq!(again["state"], "interrupted", "{again}");
    assert!(sleeper.is_running());
}

#[test]
fn ten_kills_in_a_minute_and_root_is_not_in_the_way() {
    begin!(sandbox, agent);
    let user = Caller::user(USER, &[]);
    for _ in 0..10 {
        let sleeper = Sleeper::start(&sandbox, &user);
        let body = json!({"process": sleeper.name()});
        user.post(&agent, "/v1/kills", &body).expect(200);
    }
    let sleeper = Sleeper::start(&sandbox, &user);
    let body = json!({"process": sleeper.name()});
    user.post(&agent, "/v1/kills", &body)
        .problem(429, "limit_reached");
    assert!(proc::is_running(sleeper.pid()));
    Caller::root().post(&agent, "/v1/kills", &body).expect(200);
    let gone = wait_gone(sleeper.pid());
    assert!(gone, "root has ended it");
}

fn wait_gone(pid: i32) -> bool {
    lifemon_tests::poll(Duration::from_secs(10), || {
        (!proc::is_running(pid)).then_some(())
    })
    .is_some()
}

#[test]
fn waiting_ends_with_the_process_or_the_time() {
    begin!(sandbox, agent);
    let user = Caller::user(USER, &[]);
    let sleeper = Sleeper::start(&sandbox, &user);
    for until in ["gone", "extinct", "any_exit"] {
        let body = json!({"process": sleeper.name(), "until": until, "timeout": "100ms"});
        let waited = user.post(&agent, "/v1/wait", &body).expect(200);
        assert_eq!(waited["holds"], false, "{waited}");
    }
    for until in ["gone", "extinct", "any_exit"] {
        let words = ["sleep", "1"];
        let short = Sleeper::run(&sandbox, &user, &words, "sleep");
        let body = json!({"process": short.name(), "until": until, "timeout": "20s"});
        let waited = user.post(&agent, "/v1/wait", &body).expect(200);
        assert_eq!(waited["holds"], true, "{waited}");
        assert_eq!(waited["until"], until, "{waited}");
    }
}

#[test]
fn a_user_who_takes_all_there_is_does_not_stop_roots_kill() {
    begin!(sandbox, agent);
    let mut sleepers = Vec::new();
    let mut waiting = Vec::new();
    for uid in USER..USER + 8 {
        let user = Caller::user(uid, &[]);
        let sleeper = Sleeper::start(&sandbox, &user);
        let body = json!({"process": sleeper.name()});
        // As many trees as there are, all on one root, so that each takes a layer; and as much
        // work, for which there are trees as well.
        for _ in 0..if uid % 2 == 0 { 4 } else { 1 } {
            let watched = user.post(&agent, "/v1/watches", &body);
            assert!(matches!(watched.status, 201 | 429), "{watched:?}");
        }
        let socket = agent.socket().display().to_string();
        for _ in 0..3 {
            let body = json!({"process": sleeper.name(), "until": "gone", "timeout": "60s"});
            let words = [
                "curl",
                "-s",
                "--unix-socket",
                &socket,
                "-d",
                &body.to_string(),
                "http://lifemon/v1/wait",
            ];
            let mut command = user.command(&words);
            command.stdout(std::process::Stdio::null());
            waiting.push(command.spawn().expect("curl runs"));
        }
        sleepers.push(sleeper);
    }
    for sleeper in &sleepers {
        let killed = Lifemon::find().run(["kill", "-o", "json", &sleeper.name()]);
        assert_eq!(killed.code, Some(0), "{killed:?}");
    }
    let more = Sleeper::start(&sandbox, &Caller::root());
    let body = json!({"process": more.name()});
    Caller::root().post(&agent, "/v1/kills", &body).expect(200);
    for mut child in waiting {
        child.wait().expect("its wait ends with the process");
    }
}
