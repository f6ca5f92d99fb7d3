//! A guard can outlive the lineage that it was made in: an agent of another version begins a new
//! one, and so does whoever switches the tracker off and on. No wrong process is ended then, and no
//! guard is forgotten without a word.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lifemon_tests::agent::{Agent, Caller, Sleeper, name, pids};
use lifemon_tests::{DEADLINE, HostTracker, Pidfd, Sandbox, poll, wait_until};
use serde_json::{Value, json};

use super::{begin, callers};

const USER: u32 = 54_321;
const HOME: &str = "/sys/fs/bpf/lifemon";

#[track_caller]
fn guard(agent: &Agent, of: &Caller, owner: &Sleeper, tree: &Sleeper) -> String {
    let body = json!({"owner": owner.name(), "trees": [tree.name()], "on_disconnect": false});
    let made = of.post(agent, "/v1/guards", &body).expect(201);
    made["id"].as_str().expect("an id").to_owned()
}

/// Returns the state of a guard; `None` where it is gone.
#[track_caller]
fn state(agent: &Agent, of: &Caller, id: &str) -> Option<String> {
    let listed = of.get(agent, "/v1/guards").expect(200);
    let guards = listed["guards"].as_array().expect("a list");
    let guard = guards.iter().find(|guard| guard["id"] == id)?;
    Some(guard["state"].as_str().expect("a word").to_owned())
}

/// Waits for a line of the agent's log about a guard.
#[track_caller]
fn wait_for_line(agent: &Agent, event: &str, id: &str) -> Value {
    let is_it = |line: &Value| line["audit"] == event && line["id"] == id;
    let found = poll(DEADLINE, || agent.log().into_iter().find(is_it));
    found.unwrap_or_else(|| panic!("no {event} of {id}: {:?}", agent.log()))
}

/// Starts a process that has a child, and returns it with the child's pid.
fn with_child(sandbox: &Sandbox, of: &Caller) -> (Sleeper, i32) {
    let before = pids(sandbox);
    let words = ["sh", "-c", "sleep 601 & exec sleep 602"];
    let root = Sleeper::run(sandbox, of, &words, "sleep");
    let child = poll(DEADLINE, || {
        let mut added = &pids(sandbox) - &before;
        added.remove(&root.pid());
        added
            .into_iter()
            .find(|pid| name(*pid).as_deref() == Some("sleep"))
    });
    (root, child.expect("a child"))
}

fn versions() -> BTreeSet<String> {
    let entries = fs::read_dir(HOME).expect("a home").flatten();
    entries
        .map(|entry| entry.file_name().display().to_string())
        .collect()
}

/// Lets the tracker be that of another version.
fn disguise(host: &HostTracker) {
    let directory = host.status().directory;
    let other = Path::new(HOME).join("v99");
    fs::rename(directory, other).expect("it is renamed");
}

#[test]
fn guards_and_kills_outlive_the_tracker_of_another_version() {
    callers!();
    let host = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let place = Sandbox::new();
    let mut agent = Agent::start(&place, &[]);
    let user = Caller::user(USER, &[]);
    let (mut owner, mut early, mut late) = (
        Sleeper::start(&place, &user),
        Sleeper::start(&place, &user),
        Sleeper::start(&place, &user),
    );
    let bystander = with_child(&sandbox, &user);
    let (mut kept, _) = with_child(&sandbox, &user);
    let (mut ended, _) = with_child(&sandbox, &user);
    let (mut lost, orphan) = with_child(&sandbox, &user);
    let of_kept = guard(&agent, &user, &owner, &kept);
    let of_ended = guard(&agent, &user, &early, &ended);
    let of_lost = guard(&agent, &user, &late, &lost);
    let words = ["sh", "-c", "trap '' TERM; exec sleep 600"];
    let mut deaf = Sleeper::run(&place, &user, &words, "sleep");
    let body = json!({"process": deaf.name(), "grace": "200s", "wait": false});
    let kill = user.post(&agent, "/v1/kills", &body).expect(202);
    let kill = kill["id"].as_str().expect("an id").to_owned();

    agent.kill();
    // While no agent runs, two owners die, and of one tree the root, which leaves an orphan.
    early.kill();
    late.kill();
    lost.kill();
    disguise(&host);
    agent.start_again();
    let now = versions();
    assert!(!now.contains("v99") && !now.is_empty(), "{now:?}");

    let adopted = wait_for_line(&agent, "guard_adopted", &of_kept);
    assert_eq!(adopted["older_than_lineage"], true, "{adopted}");
    // A root that lives ends with what is below it.
    let done = wait_for_line(&agent, "guard_done", &of_ended);
    assert_eq!(done["trees"][0]["killed"], 2, "{done}");
    assert_eq!(done["trees"][0]["older_than_lineage"], true, "{done}");
    assert!(!ended.is_running());
    // Whose orphan that is, the new lineage does not know: it lives, and that is reported.
    let done = wait_for_line(&agent, "guard_done", &of_lost);
    assert_eq!(done["trees"][0]["error"], "lineage_lost", "{done}");
    // The one whose owner lives is armed, and does what it is for.
    assert_eq!(state(&agent, &user, &of_kept).as_deref(), Some("armed"));
    assert!(kept.is_running());
    owner.kill();
    wait_for_line(&agent, "guard_done", &of_kept);
    wait_until("the tree has ended", DEADLINE, || !kept.is_running());
    let left = BTreeSet::from([bystander.0.pid(), bystander.1, orphan]);
    wait_until("nobody else has", DEADLINE, || pids(&sandbox) == left);

    let interrupted = user.get(&agent, &format!("/v1/kills/{kill}")).expect(200);
    assert_eq!(interrupted["state"], "interrupted", "{interrupted}");
    assert!(deaf.is_running(), "it is not repeated");
    Pidfd::open(orphan).expect("it lives").kill();
}

#[test]
fn a_guard_that_fires_while_the_tracker_is_off_is_kept_for_the_next_agent() {
    begin!(tracker = host, sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    let mut owner = Sleeper::start(&sandbox, &user);
    let mut tree = Sleeper::start(&sandbox, &user);
    let mut free = Sleeper::start(&sandbox, &user);
    let kept = guard(&agent, &user, &owner, &tree);
    let released = guard(&agent, &user, &owner, &free);
    host.switch_off();
    owner.kill();
    for id in [&kept, &released] {
        wait_until("it has failed", DEADLINE, || {
            state(&agent, &user, id).as_deref() == Some("failed")
        });
        wait_for_line(&agent, "guard_failed", id);
    }
    assert!(tree.is_running() && free.is_running());
    // Its caller can do without it.
    let path = format!("/v1/guards/{released}");
    user.ask(&agent, "DELETE", &path, &[]).expect(200);
    agent.kill();
    agent.start_again();
    wait_until("the tree has ended", DEADLINE, || !tree.is_running());
    wait_until("the guard is gone", DEADLINE, || {
        state(&agent, &user, &kept).is_none()
    });
    assert!(free.is_running(), "it was released");
}

#[test]
fn an_owner_that_a_full_lineage_has_no_record_of_is_not_dead() {
    begin!(tracker = host, sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    let mut owner = Sleeper::start(&sandbox, &user);
    let mut tree = Sleeper::start(&sandbox, &user);
    let id = guard(&agent, &user, &owner, &tree);
    agent.kill();
    host.switch_off();
    host.switch_on(&["--max-processes", "16"]);
    agent.start_again();
    wait_for_line(&agent, "guard_adopted", &id);
    assert_eq!(state(&agent, &user, &id).as_deref(), Some("armed"));
    assert!(tree.is_running(), "its owner lives");
    owner.kill();
    wait_for_line(&agent, "guard_fires", &id);
    // Whether the tree can be found here or not: it ends at last where there is room for it.
    agent.kill();
    host.switch_off();
    agent.start_again();
    wait_until("the tree has ended", DEADLINE, || !tree.is_running());
    wait_until("the guard is gone", DEADLINE, || {
        state(&agent, &user, &id).is_none()
    });
}
