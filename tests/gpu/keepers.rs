//! Who keeps a server with a GPU: `lifemon run`, and the `ProcessManager` of the Python package.

use std::fs;
use std::path::Path;

use lifemon_tests::killing::alive;
use lifemon_tests::left_behind::kill_and_wait;
use lifemon_tests::torch::{BYTES, TorchServer, compute_apps, used_mib, wait_until_free};
use lifemon_tests::{Actor, DEADLINE, Lifemon, Process, Sandbox, needs, wait_until};

const MANAGED: &str = include_str!("python/managed.py");

/// Waits until the driver accounts nothing to these, and no more memory is in use than before.
#[track_caller]
fn wait_until_released(processes: &[Process], before_mib: u64) {
    wait_until("the driver", DEADLINE, || {
        let known = compute_apps();
        processes
            .iter()
            .all(|process| !known.contains_key(&process.pid))
    });
    wait_until_free(before_mib);
}

/// The protocol is that of the command: `lifemon run` hands both ends on.
#[test]
fn what_a_server_leaves_below_lifemon_run_frees_the_gpu() {
    needs!(gpu, private_tracker);
    for how in ["leave", "kill"] {
        let sandbox = Sandbox::new();
        let before_mib = used_mib();
        let lifemon = Lifemon::find().program().display().to_string();
        let mut server = TorchServer::start_below(&sandbox, &[&lifemon, "run", "--", "python3"]);
        let workers = [server.hold(BYTES), server.hold(BYTES)];
        if how == "leave" {
            server.0.send("leave");
        } else {
            kill_and_wait(server.0.process());
        }
        wait_until("the end of lifemon run", DEADLINE, || {
            alive(&sandbox).is_empty()
        });
        wait_until_released(&workers, before_mib);
    }
}

#[test]
fn a_manager_in_python_ends_what_a_dead_worker_leaves_on_the_gpu() {
    needs!(gpu, private_tracker);
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let file = sandbox.directory().join("managed.py");
    fs::write(&file, MANAGED).expect("a file in the sandbox");
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/src");
    let lifemon = Lifemon::find();
    let words = [&file, &package, lifemon.program()].map(|path: &Path| path.display().to_string());
    let mut server = Actor::spawn(Path::new("python3"), &sandbox, &words);
    server.step();
    let (worker, engine) = (server.child("worker"), server.child("engine"));
    let line = server.wait_for("the health status", |line| line["way"].is_string());
    assert_eq!(line["way"], "helper", "{line}");
    assert_eq!(line["gpu"], serde_json::json!([worker.pid]), "{line}");
    let known = compute_apps();
    assert!(known.contains_key(&engine.pid), "{known:?}");
    kill_and_wait(worker);
    wait_until("the end of the server", DEADLINE, || {
        alive(&sandbox).is_empty()
    });
    wait_until_released(&[worker, engine], before_mib);
}
