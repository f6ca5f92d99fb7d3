//! What an agent loses when parts of it are killed again and again, or the disk is full: nothing.

use std::collections::BTreeSet;

use lifemon_tests::agent::{Agent, Answer, Caller, Sleeper, name, pids};
use lifemon_tests::{DEADLINE, Pidfd, Sandbox, has_programs, needs, poll, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{begin, callers};

const USER: u32 = 54_321;

/// Makes a guard that fires at the death of the owner alone.
#[track_caller]
fn guard(agent: &Agent, of: &Caller, owner: &Sleeper, tree: &Sleeper) -> Answer {
    let body = json!({"owner": owner.name(), "trees": [tree.name()], "on_disconnect": false});
    of.post(agent, "/v1/guards", &body)
}

/// Returns the id of what was made.
#[track_caller]
fn id(made: &Value) -> String {
    made["id"].as_str().expect("an id").to_owned()
}

/// Returns the guards that the agent has, armed.
#[track_caller]
fn armed(agent: &Agent, of: &Caller) -> BTreeSet<String> {
    let listed = of.get(agent, "/v1/guards").expect(200);
    let guards = listed["guards"].as_array().expect("a list").clone();
    let armed = guards.iter().filter(|guard| guard["state"] == "armed");
    armed.map(id).collect()
}

#[test]
fn a_full_disk_refuses_what_it_has_no_room_for_and_loses_nothing() {
    callers!();
    if !has_programs(&["nsenter", "mount"]) {
        return;
    }
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    // The state has room for two files, in a mount namespace that outlives the agent.
    let state = sandbox.directory().join("run/state");
    let script = format!(
        "mkdir -p {0} && mount -t tmpfs -o size=8k,mode=0700 state {0} && exec sleep 600",
        state.display()
    );
    let mounts = Caller::root().unshared(&["--mount"]);
    let holder = Sleeper::run(&sandbox, &mounts, &["sh", "-c", &script], "sleep");
    let mut agent = Agent::start_in(&sandbox, holder.pid());
    let user = Caller::user(USER, &[]);
    let words = ["sh", "-c", "trap '' TERM; exec sleep 600"];
    let mut deaf = Sleeper::run(&sandbox, &user, &words, "sleep");
    let body = json!({"process": deaf.name(), "grace": "200s", "wait": false});
    let kill = id(&user.post(&agent, "/v1/kills", &body).expect(202));
    let mut owner = Sleeper::start(&sandbox, &user);
    let mut tree = Sleeper::start(&sandbox, &user);
    let mut free = Sleeper::start(&sandbox, &user);
    let kept = id(&guard(&agent, &user, &owner, &tree).expect(201));

    guard(&agent, &user, &owner, &free).problem(503, "unavailable");
    let body = json!({"process": free.name()});
    user.post(&agent, "/v1/kills", &body)
        .problem(503, "unavailable");
    assert!(free.is_running(), "nothing was done");
    assert_eq!(armed(&agent, &user), BTreeSet::from([kept.clone()]));

    // Nor does the next agent, for which there is no room either.
    agent.kill();
    agent.start_again();
    assert_eq!(armed(&agent, &user), BTreeSet::from([kept]));
    let state = user.get(&agent, &format!("/v1/kills/{kill}")).expect(200);
    assert_eq!(state["state"], "interrupted", "{state}");
    assert!(deaf.is_running(), "it is not repeated");
    owner.kill();
    wait_until("the tree has ended", DEADLINE, || !tree.is_running());
    wait_until("the guard is gone", DEADLINE, || {
        armed(&agent, &user).is_empty()
    });
    // What it has left is room for another.
    let mut owner = Sleeper::start(&sandbox, &user);
    guard(&agent, &user, &owner, &free).expect(201);
    owner.kill();
    wait_until("the tree has ended", DEADLINE, || !free.is_running());
}

/// Sets the limit of open descriptors of a process, as it is until that raises it.
fn limit_descriptors(pid: i32, soft: u32) {
    let (pid, limit) = (pid.to_string(), format!("--nofile={soft}:"));
    let set = std::process::Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status();
    assert!(set.is_ok_and(|status| status.success()), "prlimit");
}

#[test]
fn an_owner_for_whom_no_descriptor_is_left_is_tried_again_with_the_next_request() {
    if !has_programs(&["prlimit"]) {
        return;
    }
    begin!(sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    let mut owner = Sleeper::start(&sandbox, &user);
    let mut tree = Sleeper::start(&sandbox, &user);
    let id = id(&guard(&agent, &user, &owner, &tree).expect(201));
    agent.kill();
    // The next agent reads this behind the guard, and so stands still until it is written.
    let hold = agent.directory().join("state/guards/z.json");
    nix::unistd::mkfifo(&hold, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    agent.start_again();
    let writing = std::fs::File::options().write(true).open(&hold);
    limit_descriptors(agent.pid(), 3);
    drop(writing.expect("it reads"));
    let has_failed = |line: &str| line.contains(&id) && line.contains("is tried again");
    let seen = poll(DEADLINE, || {
        agent.stderr().lines().any(has_failed).then_some(())
    });
    assert!(seen.is_some(), "{}", agent.stderr());
    std::fs::remove_file(&hold).expect("it is there");
    limit_descriptors(agent.pid(), 1_024);
    assert_eq!(armed(&agent, &user), BTreeSet::from([id]));
    owner.kill();
    wait_until("the tree has ended", DEADLINE, || !tree.is_running());
    wait_until("the guard is gone", DEADLINE, || {
        armed(&agent, &user).is_empty()
    });
}

/// A part of the agent that is killed.
#[derive(Debug, Clone, Copy)]
enum Part {
    Core,
    Fronts,
    Helper,
}

impl Part {
    fn kill(self, agent: &mut Agent) {
        match self {
            Self::Core => {
                agent.kill();
                agent.start_again();
            }
            Self::Fronts => {
                let fronts = agent.fronts();
                fronts
                    .iter()
                    .filter_map(|pid| Pidfd::open(*pid))
                    .for_each(|front| front.kill());
                wait_until("they are replaced", DEADLINE, || {
                    let again = agent.fronts();
                    again.len() == 2 && again.iter().all(|pid| !fronts.contains(pid))
                });
            }
            Self::Helper => {
                // It is there while a driver is asked.
                let agent = &*agent;
                std::thread::scope(|scope| {
                    let asking = scope.spawn(|| {
                        let root = Caller::root();
                        (0..20).for_each(|_| drop(root.get(agent, "/v1/gpu").expect(200)));
                    });
                    let mut killed = false;
                    while !asking.is_finished() {
                        let helpers = agent.helpers();
                        for helper in helpers.into_iter().filter_map(Pidfd::open) {
                            // One that has answered by now is gone.
                            killed |= helper.signal(Signal::SIGKILL).is_ok();
                        }
                    }
                    asking.join().expect("it is answered");
                    assert!(killed, "a helper was met");
                });
            }
        }
    }
}

/// Starts a tree of the user, one member of which was created by somebody who is dead, and returns
/// it with its living members: itself and those of `others`.
fn leave_one(sandbox: &Sandbox, user: &Caller) -> (Sleeper, BTreeSet<i32>) {
    let before = pids(sandbox);
    let words = ["sh", "-c", "sleep 601 & (sleep 602 &); exec sleep 603"];
    let tree = Sleeper::run(sandbox, user, &words, "sleep");
    let mut members = BTreeSet::new();
    wait_until("all of them sleep", DEADLINE, || {
        members = &pids(sandbox) - &before;
        members.retain(|pid| name(*pid).as_deref() == Some("sleep"));
        members.len() == 3
    });
    (tree, members)
}

/// Checks that the agent knows the living members of a tree, each below the root.
#[track_caller]
fn check_lineage(agent: &Agent, of: &Caller, tree: &Sleeper, members: &BTreeSet<i32>) {
    let told = of
        .get(agent, &format!("/v1/tree/{}", tree.name()))
        .expect(200);
    let processes = told["processes"].as_array().expect("a list");
    let number = |value: &Value| value.as_i64().and_then(|pid| i32::try_from(pid).ok());
    let living = processes.iter().filter(|process| process["alive"] == true);
    let living: BTreeSet<_> = living
        .filter_map(|process| number(&process["pid"]))
        .collect();
    assert_eq!(living, *members, "{told}");
    for member in members {
        let mut at = *member;
        while at != tree.pid() {
            let record = processes.iter().find(|process| process["pid"] == at);
            let record = record.unwrap_or_else(|| panic!("no {at} above {member}: {told}"));
            at = number(&record["creator"]["pid"]).expect("a creator");
        }
    }
}

#[test]
fn whatever_of_it_is_killed_guards_and_lineage_stay() {
    callers!();
    needs!(host_tracker, bash);
    let sandbox = Sandbox::new();
    let place = Sandbox::new();
    let mut agent = Agent::start(&place, &[]);
    let user = Caller::user(USER, &[]);
    // Forks all the time, beside what is looked at.
    let words = ["bash", "-c", "while :; do (:); done"];
    let _load = Sleeper::run(&place, &Caller::user(USER + 1, &[]), &words, "bash");
    let owner = Sleeper::start(&place, &user);
    let (mut tree, members) = leave_one(&sandbox, &user);
    let kept = id(&guard(&agent, &user, &owner, &tree).expect(201));
    let rounds = usize::try_from(lifemon_tests::scaled(10).max(3)).expect("a few");
    for (round, part) in [Part::Core, Part::Fronts, Part::Helper]
        .into_iter()
        .cycle()
        .enumerate()
        .take(rounds)
    {
        let mut one = Sleeper::start(&place, &user);
        let mut its = Sleeper::start(&place, &user);
        let made = id(&guard(&agent, &user, &one, &its).expect(201));
        // Its owner dies before, or afterwards.
        if round % 2 == 0 {
            one.kill();
        }
        part.kill(&mut agent);
        if round % 2 == 1 {
            let guards = BTreeSet::from([kept.clone(), made]);
            assert_eq!(armed(&agent, &user), guards, "{part:?}");
            assert!(its.is_running(), "{part:?}");
            one.kill();
        }
        wait_until("its tree has ended", DEADLINE, || !its.is_running());
        wait_until("its guard is gone", DEADLINE, || {
            armed(&agent, &user) == BTreeSet::from([kept.clone()])
        });
        assert!(tree.is_running(), "{part:?}");
        check_lineage(&agent, &user, &tree, &members);
    }
    drop(owner);
    wait_until("the kept one fires", DEADLINE, || !tree.is_running());
    wait_until("nothing is left of it", DEADLINE, || {
        pids(&sandbox).is_empty()
    });
}
