//! `explain`, `log` and `wait` through the agent: everybody about what is theirs, and no more; and
//! the command line, which asks it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use lifemon_tests::agent::{Agent, Caller, Container, READERS, Sleeper, pids};
use lifemon_tests::{DEADLINE, Lifemon, Output, Sandbox, needs, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{begin, callers};

const USER: u32 = 54_321;
const OTHER: u32 = 54_322;

/// Runs the command line with this agent.
#[track_caller]
fn lifemon(agent: &Agent, words: &[&str]) -> Output {
    let mut command = Lifemon::find().command(words);
    command.env("LIFEMON_AGENT", agent.socket());
    Lifemon::find().start(command).finish(DEADLINE)
}

#[test]
fn one_process_is_explained_as_far_as_the_caller_sees() {
    begin!(sandbox, agent);
    // Root's shell has started one of its own and one of the user, and then become the user.
    let script = "sleep 600 & setpriv --reuid 54321 --regid 54321 --clear-groups sleep 601 & \
        exec setpriv --reuid 54321 --regid 54321 --clear-groups sleep 602";
    let sleeper = Sleeper::run(&sandbox, &Caller::root(), &["sh", "-c", script], "sleep");
    wait_until("all sleep", DEADLINE, || {
        let pids = pids(&sandbox);
        let names = pids.iter().map(|pid| lifemon_tests::agent::name(*pid));
        pids.len() == 3 && names.flatten().all(|name| name == "sleep")
    });
    let path = format!("/v1/explain/{}", sleeper.name());
    let ask = |caller: &Caller| caller.get(&agent, &path).expect(200);
    let all = ask(&Caller::root());
    assert_eq!(all["kind"], "explain", "{all}");
    assert_eq!(all["process"]["pid"], sleeper.pid(), "{all}");
    let creator = &all["lineage"][0];
    assert_eq!(creator["pid"], std::process::id(), "{all}");
    assert_eq!(all["subtree"]["processes"], 3, "{all}");
    assert_eq!(all["kill"]["would_die"], 3, "{all}");
    assert_eq!(all["waiters"][0]["how"], "parent", "{all}");
    assert!(all.get("others").is_none(), "{all}");

    let own = ask(&Caller::user(USER, &[]));
    assert_eq!(own["process"]["pid"], sleeper.pid(), "{own}");
    assert_eq!(own["lineage"], json!([]), "{own}");
    assert_eq!(own["root"]["pid"], sleeper.pid(), "{own}");
    assert_eq!(own["waiters"], json!([]), "{own}");
    assert_eq!(own["subtree"]["processes"], 2, "{own}");
    assert_eq!(own["kill"]["would_die"], 2, "{own}");
    // The creators, of whom one waits, and root's sleeper.
    let creators = all["lineage"].as_array().expect("a list").len();
    assert_eq!(own["others"], creators + 1, "{own}");
    let creator = lifemon_tests::agent::name(std::process::id().cast_signed());
    let creator = creator.expect("a name");
    assert!(!own.to_string().contains(&creator), "{own}");
    let text = ["-H", "Accept: text/plain"];
    let text = Caller::user(USER, &[]).ask(&agent, "GET", &path, &text);
    assert!(text.text.contains("would end 2 processes"), "{text:?}");
    let others = format!("not shown: {} of others", creators + 1);
    assert!(text.text.contains(&others), "{text:?}");

    // Who sees all does not end all.
    let reader = Caller::user(USER, &[READERS.1]);
    let seen = ask(&reader);
    assert_eq!(seen["subtree"]["processes"], 3, "{seen}");
    assert_eq!(seen["kill"]["would_die"], 2, "{seen}");
    let of_root = Sleeper::start(&sandbox, &Caller::root());
    let seen = reader.get(&agent, &format!("/v1/explain/{}", of_root.name()));
    let kill = &seen.expect(200)["kill"];
    assert_eq!(kill["would_die"], 0, "{kill}");
    assert_eq!(kill["refused"], "it is not yours to end", "{kill}");

    let other = Caller::user(OTHER, &[]);
    other.get(&agent, &path).problem(403, "forbidden");
    let container = Container::new(&sandbox);
    let inside = other.within(container.path());
    inside.get(&agent, &path).problem(404, "no_such_process");
}

#[test]
fn what_a_set_uid_program_has_open_is_not_for_its_user() {
    callers!();
    if !lifemon_tests::has_programs(&["flock"]) {
        return;
    }
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let agent = Agent::start(&sandbox, &[]);
    let directory = sandbox.directory();
    std::fs::set_permissions(directory, Permissions::from_mode(0o755)).expect("its mode");
    let (program, file) = (directory.join("flock"), directory.join("locked"));
    std::fs::write(&file, "").expect("a file");
    std::fs::set_permissions(&file, Permissions::from_mode(0o666)).expect("its mode");
    let words = [program.display().to_string(), file.display().to_string()];
    let user = Caller::user(USER, &[]);
    for (mode, is_known) in [(0o755, true), (0o4755, false)] {
        let mut copy = std::process::Command::new("sh");
        copy.args(["-c", "cp $(command -v flock) $0", &words[0]]);
        assert!(copy.status().is_ok_and(|status| status.success()));
        std::fs::set_permissions(&program, Permissions::from_mode(mode)).expect("its mode");
        let words = [&words[0], &words[1], "sleep", "600"];
        let sleeper = Sleeper::run(&sandbox, &user, &words, "flock");
        let path = format!("/v1/explain/{}", sleeper.name());
        let locks = |caller: &Caller| {
            let told = caller.get(&agent, &path).expect(200);
            told["subtree"]["locks"].as_array().expect("a list").len()
        };
        wait_until("it has the lock", DEADLINE, || locks(&Caller::root()) > 0);
        assert_eq!(locks(&user) > 0, is_known, "{mode:o}");
        for pid in pids(&sandbox) {
            // Each ends with the other as well.
            let process = lifemon_tests::Pidfd::open(pid);
            drop(process.map(|process| process.signal(Signal::SIGKILL)));
        }
        wait_until("nothing is left", DEADLINE, || pids(&sandbox).len() <= 1);
    }
}

#[test]
fn a_zombie_is_explained_to_its_user() {
    callers!();
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let agent = Agent::start(&sandbox, &[]);
    let text = format!(
        "import os, time
pid = os.fork()
if pid == 0:
    os.setuid({USER})
    os._exit(7)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(f'zombie {{pid}}')
print('ready', flush=True)
time.sleep(1000)"
    );
    let script = lifemon_tests::Script::start(&sandbox, "python3", &text);
    let zombie = script.process("zombie").pid;
    let path = format!("/v1/explain/{}", lifemon_tests::agent::name_of(zombie));
    let it = Caller::user(USER, &[]).get(&agent, &path).expect(200);
    assert_eq!(it["zombie"]["pid"], zombie, "{it}");
    assert_eq!(it["zombie"]["exit"]["code"], 7, "{it}");
    assert_eq!(it["zombie"]["parent"], Value::Null, "it is root's: {it}");
    let all = Caller::root().get(&agent, &path).expect(200);
    assert_eq!(all["zombie"]["parent"]["pid"], script.own().pid, "{all}");
    let other = Caller::user(OTHER, &[]).get(&agent, &path);
    other.problem(404, "no_such_process");
}

#[test]
fn deaths_are_known_to_whose_they_are() {
    begin!(sandbox, agent);
    let die = |of: &Caller| {
        let mut sleeper = Sleeper::start(&sandbox, of);
        let (pid, name) = (sleeper.pid(), sleeper.name());
        sleeper.kill();
        (pid, name)
    };
    let (user, other) = (Caller::user(USER, &[]), Caller::user(OTHER, &[]));
    let container = Container::new(&sandbox);
    let inside = user.clone().within(container.path());
    let (own, own_name) = die(&user);
    let (foreign, foreign_name) = die(&other);
    let (of_root, _) = die(&Caller::root());
    let ask = |caller: &Caller, query: &str| {
        let answer = caller.get(&agent, &format!("/v1/log{query}")).expect(200);
        let entries = answer["entries"].as_array().expect("a list");
        let died = entries.iter().map(|entry| entry["process"]["pid"].clone());
        (died.collect::<Vec<_>>(), answer.clone())
    };
    let (died, all) = ask(&Caller::root(), "?since=10m");
    for pid in [own, foreign, of_root] {
        assert!(died.contains(&pid.into()), "{pid}: {all}");
    }
    assert!(all.get("others").is_none(), "{all}");
    let (died, seen) = ask(&user, "?since=10m");
    assert!(died.contains(&own.into()), "{seen}");
    for entry in seen["entries"].as_array().expect("a list") {
        assert_eq!(entry["process"]["uid"], USER, "{entry}");
    }
    assert_eq!(
        seen["others"].as_u64().map(|others| others >= 2),
        Some(true)
    );
    let entry = seen["entries"].as_array().expect("a list");
    let entry = entry.iter().find(|entry| entry["process"]["pid"] == own);
    let entry = entry.expect("its own");
    assert_eq!(entry["exit"]["signal"], 9, "{entry}");
    assert_eq!(entry["exit"]["sender"]["pid"], std::process::id());
    assert_eq!(entry["creator"]["pid"], std::process::id(), "{entry}");
    assert_eq!(entry["creator"]["name"], Value::Null, "{entry}");
    assert_eq!(entry["sender_root"], Value::Null, "{entry}");

    assert_eq!(ask(&user, &format!("?tree={own_name}")).0, [own]);
    let path = format!("/v1/log?tree={foreign_name}");
    user.get(&agent, &path).problem(404, "no_such_process");
    let (died, hidden) = ask(&user, &format!("?user={OTHER}"));
    assert!(died.is_empty(), "{hidden}");
    assert_ne!(hidden["others"], 0, "{hidden}");
    assert_eq!(
        ask(&other, &format!("?user={OTHER}&since=10m")).0,
        [foreign]
    );
    // Of the dead of a container nothing says that they were of it, but a ghost.
    let (died, hidden) = ask(&inside, "?since=10m");
    assert!(died.is_empty(), "{hidden}");
    for query in ["?since=soon", "?user=bob", "?tree=12", "?until=now"] {
        let answer = user.get(&agent, &format!("/v1/log{query}"));
        answer.problem(400, "invalid_request");
    }
    let text = user.ask(&agent, "GET", "/v1/log", &["-H", "Accept: text/plain"]);
    assert!(text.text.contains("SIGKILL from"), "{text:?}");
    assert!(text.text.contains("of others\n"), "{text:?}");
}

#[test]
fn the_command_line_asks_for_all_of_these() {
    begin!(sandbox, agent);
    let mut sleeper = Sleeper::start(&sandbox, &Caller::root());
    let (pid, name) = (sleeper.pid().to_string(), sleeper.name());
    let told = lifemon(&agent, &["--agent", "explain", &pid]);
    assert!(told.stdout.contains("would end 1 process"), "{told:?}");
    let it: Value = lifemon(&agent, &["--agent", "-o", "json", "explain", &pid]).success();
    assert_eq!(it["answered_by"], "agent", "{it}");
    assert_eq!(it["process"]["pid"], sleeper.pid(), "{it}");
    let here: Value = lifemon(&agent, &["--local", "-o", "json", "explain", &pid]).success();
    assert!(here.get("answered_by").is_none(), "{here}");
    let unknown = lifemon(&agent, &["--agent", "explain", "4194304"]);
    assert_eq!(unknown.code, Some(4), "{unknown:?}");
    let unknown = lifemon(&agent, &["--agent", "explain", "--device", "/dev/x", &pid]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");

    sleeper.kill();
    let options = ["--since", "10m", "--user", "0", "--tree", &name];
    let words = [&["--agent", "log"][..], &options].concat();
    let told = lifemon(&agent, &words);
    assert!(told.stdout.contains("SIGKILL from"), "{told:?}");
    let words = [&["--agent", "-o", "json", "log"][..], &options].concat();
    let log: Value = lifemon(&agent, &words).success();
    assert_eq!(log["answered_by"], "agent", "{log}");
    assert_eq!(log["entries"].as_array().map(Vec::len), Some(1), "{log}");
}

#[test]
fn a_wait_says_who_has_died_of_those_that_the_caller_sees() {
    begin!(sandbox, agent);
    // The user's tree, of which one member has become another user.
    let script = |uid: u32| {
        format!(
            "setpriv --reuid {uid} --regid {uid} --clear-groups sleep 600 & \
             exec setpriv --reuid {USER} --regid {USER} --clear-groups sleep 601"
        )
    };
    let user = Caller::user(USER, &[]);
    for (uid, is_own) in [(USER, true), (OTHER, false)] {
        let words = ["sh", "-c", &script(uid)];
        let tree = Sleeper::run(&sandbox, &Caller::root(), &words, "sleep");
        let child = lifemon_tests::poll(DEADLINE, || {
            let mut pids = pids(&sandbox);
            pids.remove(&tree.pid());
            let child = pids.pop_first()?;
            (lifemon_tests::agent::name(child)? == "sleep").then_some(child)
        });
        let child = child.expect("a child");
        let body = json!({"process": tree.name(), "until": "any_exit", "timeout": "60s"});
        let foreign = Caller::user(OTHER, &[]).post(&agent, "/v1/wait", &body);
        foreign.problem(403, "forbidden");
        let dying = lifemon_tests::Pidfd::open(child).expect("it lives");
        let killer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_secs(1));
            dying.kill();
        });
        let waited = user.post(&agent, "/v1/wait", &body).expect(200);
        killer.join().expect("it has killed it");
        assert_eq!(waited["kind"], "wait", "{waited}");
        assert_eq!(waited["holds"], true, "{waited}");
        let died = if is_own { json!(child) } else { Value::Null };
        assert_eq!(waited["process"]["pid"], died, "{waited}");
        assert_eq!(waited["exit"].is_null(), !is_own, "{waited}");
    }
}

#[test]
fn the_command_line_lets_the_agent_wait() {
    begin!(sandbox, agent);
    let mut sleeper = Sleeper::start(&sandbox, &Caller::root());
    let pid = sleeper.pid().to_string();
    let words = ["--agent", "wait", &pid, "--timeout", "200ms"];
    let over = lifemon(&agent, &words);
    assert_eq!(over.code, Some(1), "{over:?}");
    assert!(over.stdout.starts_with("not extinct after"), "{over:?}");
    let json = lifemon(&agent, &[&words[..], &["-o", "json"]].concat());
    assert_eq!(json.code, Some(1), "{json:?}");
    let json: Value = json.report();
    assert_eq!(json["answered_by"], "agent", "{json}");
    assert_eq!(json["alive"], 1, "{json}");
    let mut command = Lifemon::find().command(["--agent", "wait", &pid, "--until", "any-exit"]);
    command.env("LIFEMON_AGENT", agent.socket());
    let waiting = Lifemon::find().start(command);
    // Whether the wait has begun by then or not, it says how.
    std::thread::sleep(std::time::Duration::from_secs(1));
    sleeper.kill();
    let waited = waiting.finish(DEADLINE);
    assert_eq!(waited.code, Some(0), "{waited:?}");
    assert!(waited.stdout.contains("sleep has died after"), "{waited:?}");
    assert!(waited.stdout.contains("SIGKILL"), "{waited:?}");
    let refused = lifemon(&agent, &["--agent", "wait", "--device", "/dev/x", "1"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
}

#[test]
fn one_wait_is_for_several_trees_of_those_that_the_caller_sees() {
    begin!(sandbox, agent);
    let root = Caller::root();
    let mut sleepers: Vec<_> = (0..6).map(|_| Sleeper::start(&sandbox, &root)).collect();
    let pids: Vec<_> = sleepers.iter().map(|one| one.pid().to_string()).collect();
    let words = ["--agent", "wait", "-o", "json"].into_iter();
    let words: Vec<_> = words.chain(pids.iter().map(String::as_str)).collect();
    let over: Value = lifemon(&agent, &[&words[..], &["--timeout", "200ms"]].concat()).report();
    assert_eq!(over["holds"], false, "{over}");
    assert_eq!(over["alive"], 6, "{over}");
    assert_eq!(over["targets"].as_array().map(Vec::len), Some(6), "{over}");
    let start = |more: &[&str]| {
        let mut command = Lifemon::find().command([&words[..], more].concat());
        command.env("LIFEMON_AGENT", agent.socket());
        Lifemon::find().start(command)
    };
    let (all, first) = (start(&[]), start(&["--until", "any-exit"]));
    std::thread::sleep(std::time::Duration::from_secs(1));
    sleepers.pop().expect("six").kill();
    let first: Value = first.finish(DEADLINE).success();
    assert_eq!(first["process"]["pid"].to_string(), pids[5], "{first}");
    for mut sleeper in sleepers {
        assert_eq!(all.stdout_so_far(), "", "not all have ended");
        sleeper.kill();
    }
    let all: Value = all.finish(DEADLINE).success();
    assert_eq!(all["holds"], true, "{all}");
    assert_eq!(all["answered_by"], "agent", "{all}");

    // One that is not the caller's is enough for a refusal.
    let user = Caller::user(USER, &[]);
    let (own, foreign) = (
        Sleeper::start(&sandbox, &user),
        Sleeper::start(&sandbox, &root),
    );
    let wait = |processes: &Value| {
        let body = json!({"processes": processes, "until": "gone", "timeout": "1ms"});
        user.post(&agent, "/v1/wait", &body)
    };
    wait(&json!([own.name(), own.name()])).expect(200);
    wait(&json!([own.name(), foreign.name()])).problem(403, "forbidden");
    wait(&json!([own.name(), "4194304@1"])).problem(404, "no_such_process");
    wait(&json!([])).problem(400, "invalid_request");
    wait(&json!(vec![own.name(); 65])).problem(400, "invalid_request");
}
