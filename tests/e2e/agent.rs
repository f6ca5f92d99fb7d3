//! `lifemon agent`, through its sockets: what it answers and to whom, what it ends and for whom,
//! and what stays when it is killed.

mod attached;
mod guards;
mod kills;
mod limits;
mod malformed;
mod questions;
mod restarts;
mod rights;
mod servers;
mod streams;
mod upgrades;
mod waits;

use lifemon_tests::agent::{Agent, Caller, Sleeper};
use lifemon_tests::{Lifemon, Sandbox, needs};
use serde_json::Value;

/// Skips a test where the programs of callers are missing, or a Python that each of them may run.
macro_rules! callers {
    () => {
        if !lifemon_tests::has_programs(&["curl", "setpriv", "unshare"]) {
            return;
        }
    };
    (python) => {
        $crate::agent::callers!();
        if lifemon_tests::agent::python_for_all().is_none() {
            return;
        }
    };
}
pub(crate) use callers;

/// Begins a test as most of them begin: with the host's tracker, a sandbox, and an agent in it.
/// `python = NAME` names a Python that every caller may run; `tracker = NAME` the host's tracker.
macro_rules! begin {
    (python = $python:ident, $($rest:tt)+) => {
        $crate::agent::callers!();
        let Some($python) = lifemon_tests::agent::python_for_all() else {
            return;
        };
        $crate::agent::begin!($($rest)+);
    };
    (python, $($rest:tt)+) => {
        $crate::agent::callers!(python);
        $crate::agent::begin!($($rest)+);
    };
    (tracker = $host:ident, $sandbox:ident, $($agent:tt)+) => {
        $crate::agent::callers!();
        let $host = lifemon_tests::HostTracker::on(&[]);
        let $sandbox = lifemon_tests::Sandbox::new();
        let $($agent)+ = lifemon_tests::agent::Agent::start(&$sandbox, &[]);
    };
    ($sandbox:ident, $($agent:tt)+) => {
        $crate::agent::callers!();
        lifemon_tests::needs!(host_tracker);
        let $sandbox = lifemon_tests::Sandbox::new();
        let $($agent)+ = lifemon_tests::agent::Agent::start(&$sandbox, &[]);
    };
}
pub(crate) use begin;

#[test]
fn it_answers_with_the_objects_that_the_command_line_prints() {
    begin!(sandbox, agent);
    let sleeper = Sleeper::start(&sandbox, &Caller::root());
    let root = Caller::root();
    assert_eq!(root.get(&agent, "/livez").expect(200)["live"], true);
    assert_eq!(root.get(&agent, "/readyz").expect(200)["ready"], true);

    let path = format!("/v1/tree/{}", sleeper.name());
    let mut asked = root.get(&agent, &path).expect(200);
    let printed = Lifemon::find().run(["tree", "-o", "json", &sleeper.name()]);
    let mut printed: Value = printed.success();
    for answer in [&mut asked, &mut printed] {
        // What depends on the moment.
        answer["since"].take();
        answer["processes"][0]["age_ms"].take();
    }
    assert_eq!(asked, printed);

    let own = root.get(&agent, "/v1/tree/self").expect(200);
    assert_eq!(own["processes"][0]["name"], "curl", "{own}");
    let orphans = root.get(&agent, "/v1/orphans").expect(200);
    assert!(orphans["orphans"].is_array(), "{orphans}");
    let info = root.get(&agent, "/v1/info").expect(200);
    assert_eq!(info["caller"]["uid"], 0, "{info}");
    assert_eq!(info["caller"]["sees"], "all", "{info}");
    let gpu = root.get(&agent, "/v1/gpu").expect(200);
    assert!(gpu["holders"].is_array(), "{gpu}");
    let health = root.get(&agent, &format!("/v1/health/{}", sleeper.name()));
    assert_eq!(health.expect(200)["healthy"], true);

    let text = root.ask(&agent, "GET", &path, &["-H", "Accept: text/plain"]);
    assert_eq!(text.status, 200, "{text:?}");
    assert!(text.text.contains("sleep 600"), "{text:?}");
}

#[test]
fn it_switches_the_tracker_on_where_that_is_off_and_leaves_it_on() {
    callers!();
    needs!(no_tracker);
    let sandbox = Sandbox::new();
    let mut agent = Agent::start(&sandbox, &[]);
    let info = Caller::root().get(&agent, "/v1/info").expect(200);
    assert_eq!(info["agent"]["tracker"], "host", "{info}");
    agent.stop();
    assert!(!agent.socket().exists());
    let status = Lifemon::find().run(["track", "status", "-o", "json"]);
    assert!(status.stdout.contains("since"), "{status:?}");
}

#[test]
fn one_agent_has_a_directory_and_takes_over_what_a_killed_one_has_left() {
    begin!(sandbox, mut agent);
    let directory = agent.directory().display().to_string();
    let second = Lifemon::find().run(["agent", "--runtime-dir", &directory]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("another agent"), "{second:?}");
    assert_eq!(Caller::root().get(&agent, "/livez").status, 200);
    agent.kill();
    assert!(agent.socket().exists(), "it could not remove it");
    agent.start_again();
    assert_eq!(Caller::root().get(&agent, "/livez").status, 200);
    // A directory that somebody else can change.
    agent.stop();
    let chmod = std::process::Command::new("chmod")
        .args(["777", &directory])
        .status();
    assert!(chmod.is_ok_and(|status| status.success()));
    let refused = Lifemon::find().run(["agent", "--runtime-dir", &directory]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("chmod 755"), "{refused:?}");
}

#[test]
fn the_front_has_no_privileges_and_is_replaced_when_it_dies() {
    begin!(sandbox, agent);
    for _ in 0..10 {
        assert_eq!(Caller::root().get(&agent, "/v1/info").status, 200);
        let fronts = agent.fronts();
        assert_eq!(fronts.len(), 2, "{fronts:?}");
        for front in &fronts {
            let status = std::fs::read_to_string(format!("/proc/{front}/status"));
            let status = status.expect("it lives");
            assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
            // Only the calls that it needs.
            assert!(status.contains("Seccomp:\t2"), "{status}");
            assert!(
                status.contains("Uid:\t65534\t65534\t65534\t65534"),
                "{status}"
            );
            assert!(status.contains("NoNewPrivs:\t1"), "{status}");
            let process = lifemon_tests::Pidfd::open(*front).expect("it lives");
            process.kill();
            process.wait_gone(lifemon_tests::DEADLINE);
        }
        lifemon_tests::wait_until("they are replaced", lifemon_tests::DEADLINE, || {
            let again = agent.fronts();
            again.len() == 2 && again.iter().all(|front| !fronts.contains(front))
        });
    }
}
