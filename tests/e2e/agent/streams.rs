//! Events: what was missed is said, never passed over, and who watches what others watch too has
//! what is its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use lifemon_tests::agent::{Agent, Caller, READERS, Sleeper};
use lifemon_tests::{DEADLINE, Lifemon, wait_until};
use serde_json::{Value, json};

use super::begin;

const USER: u32 = 54_321;

struct Listener {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Listener {
    fn start(agent: &Agent, of: &Caller, query: &str) -> Self {
        let socket = agent.socket().display().to_string();
        let url = format!("http://lifemon/v1/events{query}");
        let words = [
            "curl",
            "-sSN",
            "--max-time",
            "60",
            "--unix-socket",
            &socket,
            &url,
        ];
        let mut command = of.command(&words);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("curl runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// Reads the next line.
    #[track_caller]
    fn until_any(&mut self) -> Value {
        let line = self.lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).expect("JSON")
    }

    /// Reads until this event comes; returns all up to it.
    #[track_caller]
    fn until(&mut self, event: &str) -> Vec<Value> {
        let mut seen = Vec::new();
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            let is_last = line["event"] == event;
            seen.push(line);
            if is_last {
                return seen;
            }
        }
        panic!("no {event}: {seen:?}");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_stream_goes_on_where_it_was_and_says_so_where_it_cannot() {
    begin!(sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    let words = ["sh", "-c", "sleep 2; sleep 3 & exec sleep 600"];
    let tree = Sleeper::run(&sandbox, &user, &words, "sh");
    let body = json!({"process": tree.name()});
    let made = user.post(&agent, "/v1/watches", &body).expect(201);
    let mut listener = Listener::start(&agent, &user, "");
    let begin = listener.until("ready");
    assert_eq!(begin[0]["event"], "attached", "{begin:?}");
    let seen = listener.until("fork");
    let id = seen.last().expect("a fork")["id"].as_str().expect("an id");
    drop(listener);
    // Others have other watches.
    let other = Caller::user(USER + 1, &[]);
    let mut nothing = Listener::start(&agent, &other, "");
    assert_eq!(nothing.until("ready").len(), 1);

    let mut again = Listener::start(&agent, &user, &format!("?after={id}"));
    let resumed = again.until("exit");
    assert_eq!(resumed[0]["event"], "resumed", "{resumed:?}");
    assert!(resumed.iter().all(|line| line["event"] != "attached"));
    drop(again);
    let path = format!("/v1/watches/{}", made["id"].as_str().expect("an id"));
    agent.kill();
    agent.start_again();
    let gone = user.ask(&agent, "DELETE", &path, &[]).expect(404);
    assert_eq!(gone["code"], "no_such_watch", "{gone}");
    user.post(&agent, "/v1/watches", &body).expect(201);
    let mut after = Listener::start(&agent, &user, &format!("?after={id}"));
    let begin = after.until("ready");
    assert_eq!(begin[0]["event"], "lost", "{begin:?}");
    assert_eq!(begin[0]["reason"], "restarted", "{begin:?}");
    assert_eq!(begin[1]["event"], "attached", "{begin:?}");
}

#[test]
fn four_trees_and_four_streams() {
    begin!(sandbox, agent);
    let user = Caller::user(USER, &[]);
    let sleepers: Vec<_> = (0..5).map(|_| Sleeper::start(&sandbox, &user)).collect();
    for (index, sleeper) in sleepers.iter().enumerate() {
        let body = json!({"process": sleeper.name()});
        let answer = user.post(&agent, "/v1/watches", &body);
        if index < 4 {
            answer.expect(201);
        } else {
            answer.problem(429, "limit_reached");
        }
    }
    let mut streams: Vec<_> = (0..4).map(|_| Listener::start(&agent, &user, "")).collect();
    for stream in &mut streams {
        stream.until("ready");
    }
    user.get(&agent, "/v1/events").problem(429, "limit_reached");
    drop(streams);
}

#[test]
fn who_reads_slowly_gets_lost_and_a_snapshot_and_delays_nobody() {
    begin!(sandbox, agent);
    let user = Caller::user(USER, &[]);
    // Far more events than may be under way to one reader.
    let script = "sleep 2; i=0; while [ $i -lt 6000 ]; do : & i=$((i+1)); done; wait; \
        sh -c 'exit 7'; exec sleep 600";
    let tree = Sleeper::run(&sandbox, &user, &["sh", "-c", script], "sh");
    let body = json!({"process": tree.name()});
    user.post(&agent, "/v1/watches", &body).expect(201);
    let mut slow = Listener::start(&agent, &user, "");
    let mut quick = Listener::start(&agent, &user, "");
    slow.until("ready");
    quick.until("ready");
    // The quick one sees the end of the storm while the slow one reads nothing.
    let is_last = |line: &Value| line["exit"]["code"] == 7;
    let mut forks = 0;
    loop {
        let line = quick.until_any();
        forks += usize::from(line["event"] == "fork");
        assert_ne!(line["reason"], "slow_reader", "{line}");
        if is_last(&line) {
            break;
        }
    }
    assert!(forks >= 6_000, "{forks}");
    // What has not found room is said, and what is the case now.
    let lost = loop {
        let line = slow.until_any();
        if line["event"] == "lost" {
            break line;
        }
    };
    assert_eq!(lost["reason"], "slow_reader", "{lost}");
    assert_eq!(slow.until_any()["event"], "attached");
}

/// Returns the slots of the kernel that are in use.
#[track_caller]
fn slots() -> u64 {
    let status = Lifemon::find().run(["track", "status", "-o", "json"]);
    let status: Value = status.success();
    status["watched_trees"].as_u64().expect("a number")
}

/// Begins to watch a tree; returns the path of the watch.
#[track_caller]
fn watch(agent: &Agent, of: &Caller, tree: &Sleeper) -> String {
    let body = json!({"process": tree.name()});
    let made = of.post(agent, "/v1/watches", &body).expect(201);
    format!("/v1/watches/{}", made["id"].as_str().expect("an id"))
}

#[test]
fn all_who_watch_a_tree_share_one_slot_and_the_last_one_frees_it() {
    begin!(sandbox, agent);
    let tree = Sleeper::run(
        &sandbox,
        &Caller::user(USER, &[]),
        &["sh", "-c", "while :; do sleep 0.2; done"],
        "sh",
    );
    assert_eq!(slots(), 0);
    let callers: Vec<_> = (0..10)
        .map(|index| Caller::user(USER + index, &[READERS.1]))
        .collect();
    let watches: Vec<_> = callers
        .iter()
        .flat_map(|caller| [caller; 4])
        .map(|caller| (caller, watch(&agent, caller, &tree)))
        .collect();
    assert_eq!(watches.len(), 40);
    assert_eq!(slots(), 1);
    for caller in [&callers[0], &callers[9]] {
        let body = json!({"process": tree.name()});
        let one_more = caller.post(&agent, "/v1/watches", &body);
        one_more.problem(429, "limit_reached");
    }
    // Each has its events once, and the others' ends are not its own.
    let mut listener = Listener::start(&agent, &callers[9], "");
    assert_eq!(listener.until("ready").len(), 2);
    let (last, others) = watches.split_last().expect("forty");
    for (caller, path) in others {
        caller.ask(&agent, "DELETE", path, &[]).expect(200);
    }
    let mut forks = std::collections::HashSet::new();
    let mut ends = 0;
    while forks.len() < 10 {
        let line = listener.until_any();
        match line["event"].as_str() {
            Some("fork") => assert!(forks.insert(line["process"].to_string()), "{line}"),
            Some("detached") => ends += 1,
            _ => {}
        }
    }
    assert!(ends <= 3, "{ends}");
    assert_eq!(slots(), 1);
    last.0.ask(&agent, "DELETE", &last.1, &[]).expect(200);
    wait_until("the slot is free", DEADLINE, || slots() == 0);
}

#[test]
fn each_of_those_who_watch_a_tree_sees_what_it_may() {
    begin!(sandbox, agent);
    let other = USER + 1;
    let script = format!(
        "while :; do setpriv --reuid {other} --regid {other} --clear-groups sleep 0.1; \
         setpriv --reuid {USER} --regid {USER} --clear-groups sleep 0.1; done & \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups sleep 600"
    );
    let words = ["sh", "-c", &script];
    let tree = Sleeper::run(&sandbox, &Caller::root(), &words, "sleep");
    let user = Caller::user(USER, &[]);
    let reader = Caller::user(USER + 2, &[READERS.1]);
    let (own, all) = (watch(&agent, &user, &tree), watch(&agent, &reader, &tree));
    assert_eq!(slots(), 1);
    // Also of one stream that begins before the other's watch is told.
    let mut of_user = Listener::start(&agent, &user, "");
    let mut of_reader = Listener::start(&agent, &reader, "");
    let (of_user_, of_reader_) = (of_user.until("ready"), of_reader.until("ready"));
    assert_eq!((of_user_.len(), of_reader_.len()), (2, 2));
    let uids = |listener: &mut Listener| {
        let mut uids = std::collections::BTreeSet::new();
        for _ in 0..60 {
            let line = listener.until_any();
            uids.extend(line["process"]["uid"].as_u64());
        }
        uids
    };
    let seen = uids(&mut of_user);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [u64::from(USER)]);
    let seen = uids(&mut of_reader);
    for uid in [USER, other] {
        assert!(seen.contains(&u64::from(uid)), "{seen:?}");
    }
    // Nobody ends, or reads, the watch of another.
    reader.ask(&agent, "DELETE", &own, &[]).expect(404);
    let id = all.rsplit('/').next().expect("an id");
    let path = format!("/v1/events?watch={id}");
    user.get(&agent, &path).expect(404);
}

#[test]
fn who_reads_slowly_delays_nobody_who_watches_the_same_tree() {
    begin!(sandbox, agent);
    let user = Caller::user(USER, &[]);
    let script = "sleep 2; i=0; while [ $i -lt 6000 ]; do : & i=$((i+1)); done; wait; \
        sh -c 'exit 7'; exec sleep 600";
    let tree = Sleeper::run(&sandbox, &user, &["sh", "-c", script], "sh");
    let reader = Caller::user(USER + 1, &[READERS.1]);
    for caller in [&user, &reader] {
        watch(&agent, caller, &tree);
    }
    let mut slow = Listener::start(&agent, &user, "");
    let mut quick = Listener::start(&agent, &reader, "");
    slow.until("ready");
    quick.until("ready");
    let mut forks = 0;
    loop {
        let line = quick.until_any();
        forks += usize::from(line["event"] == "fork");
        assert_ne!(line["reason"], "slow_reader", "{line}");
        if line["exit"]["code"] == 7 {
            break;
        }
    }
    assert!(forks >= 6_000, "{forks}");
    let lost = slow.until("lost");
    assert_eq!(lost.last().expect("it")["reason"], "slow_reader");
    assert_eq!(slow.until_any()["event"], "attached");
}
