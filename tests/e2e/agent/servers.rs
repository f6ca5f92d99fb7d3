//! Servers of ordinary users and in containers, beside an agent: killed together with what watches
//! over their workers, they leave nothing.

use lifemon_tests::agent::{Agent, name};
use lifemon_tests::{DEADLINE, Pidfd, Sandbox, needs, proc, wait_until};

use super::callers;
use crate::manager::server::Server;

/// Returns the processes of the sandbox with this name.
fn named(sandbox: &Sandbox, wanted: &str) -> Vec<i32> {
    let mut pids = sandbox.pids();
    pids.retain(|pid| proc::is_running(*pid) && name(*pid).is_some_and(|name| name == wanted));
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Returns those of the sandbox that a worker is, or has started.
fn workers(sandbox: &Sandbox) -> Vec<i32> {
    let mut pids = sandbox.pids();
    pids.retain(|pid| {
        let name = name(*pid).unwrap_or_default();
        proc::is_running(*pid) && (name.starts_with("python") || name.starts_with("VLLM"))
    });
    pids
}

/// Kills the server and its guardian, and nobody else.
fn kill_both(sandbox: &Sandbox) {
    let both: Vec<_> = ["server", "lifemon-guard"]
        .iter()
        .flat_map(|name| named(sandbox, name))
        .filter_map(Pidfd::open)
        .collect();
    assert!(
        both.len() >= 2,
        "{:?}",
        sandbox
            .pids()
            .iter()
            .map(|pid| name(*pid))
            .collect::<Vec<_>>()
    );
    // Nobody sees the other's end before its own.
    for process in &both {
        process
            .signal(nix::sys::signal::Signal::SIGSTOP)
            .expect("it lives");
    }
    both.iter().for_each(Pidfd::kill);
}

#[test]
fn a_server_of_a_user_leaves_nothing() {
    callers!();
    needs!(host_tracker, python);
    let sandbox = Sandbox::new();
    let place = Sandbox::new();
    let agent = Agent::start(&place, &[]);
    let server = Server::start_beside(&sandbox, &agent.socket(), &[]);
    server.wait_for_way("agent");
    assert!(!workers(&sandbox).is_empty());
    kill_both(&sandbox);
    wait_until("nothing is left", DEADLINE, || workers(&sandbox).is_empty());
    server.finish();
}

#[test]
fn a_server_of_a_user_that_ends_by_itself_gives_its_guard_back() {
    callers!();
    needs!(host_tracker, python);
    let sandbox = Sandbox::new();
    let place = Sandbox::new();
    let mut agent = Agent::start(&place, &[]);
    let server = Server::start_beside(&sandbox, &agent.socket(), &[]);
    server.wait_for_way("agent");
    // Also after the agent was restarted.
    agent.kill();
    agent.start_again();
    assert!(!workers(&sandbox).is_empty());
    server.stops(&sandbox);
    wait_until("it was given back", DEADLINE, || {
        let root = lifemon_tests::agent::Caller::root();
        root.get(&agent, "/v1/guards").json()["guards"] == serde_json::json!([])
    });
}

#[test]
fn a_server_in_a_container_leaves_nothing() {
    callers!();
    needs!(host_tracker, python);
    let sandbox = Sandbox::new();
    let place = Sandbox::new();
    let agent = Agent::start(&place, &[]);
    let before = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        // Its init lives on, so that the namespace does not end with the server.
        "\"$@\" & wait; exec sleep 600",
        "sh",
    ];
    let server = Server::start_beside(&sandbox, &agent.socket(), &before);
    server.wait_for_way("agent");
    assert!(!workers(&sandbox).is_empty());
    kill_both(&sandbox);
    wait_until("nothing is left", DEADLINE, || workers(&sandbox).is_empty());
}
