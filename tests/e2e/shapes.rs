//! The shapes of what lifemon prints as JSON, against files: which fields there are, and where. A
//! field that is renamed, moved or gone is a change that users notice, and fails here by name.

use std::collections::BTreeSet;
use std::fs;

use lifemon_tests::handicap::{as_nobody, readable_copy};
use lifemon_tests::left_behind::{kill_and_wait, leave_workers};
use lifemon_tests::nvml::NvmlDouble;
use lifemon_tests::{
    Actor, DEADLINE, HostTracker, Lifemon, Sandbox, actor, needs, run_alone, wait_until,
};
use serde_json::{Value, json};

use crate::gpu::{device, with_driver};
use crate::manager::server::Server;
use crate::run::lifemon_run::{Rights, keeping, report_path, run};

/// What depends on the host: how it places its processes, whether its kernel measures programs, and
/// whether a BPF file system is mounted.
const OF_THE_HOST: [&str; 4] = ["unit", "container", "ns_per_run", "mounted"];

/// Adds the path of every field: `killed[].exit.code`.
fn add_fields(value: &Value, at: &str, fields: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                if OF_THE_HOST.contains(&name.as_str()) {
                    continue;
                }
                let dot = if at.is_empty() { "" } else { "." };
                let path = format!("{at}{dot}{name}");
                add_fields(value, &path, fields);
                fields.insert(path);
            }
        }
        Value::Array(list) => {
            for value in list {
                add_fields(value, &format!("{at}[]"), fields);
            }
        }
        _ => {}
    }
}

/// Claims that these answers together have exactly the fields that the file lists.
#[track_caller]
fn assert_shape(answers: &[Value], file: &str, listed: &str) {
    let mut fields = BTreeSet::new();
    for answer in answers {
        add_fields(answer, "", &mut fields);
    }
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    let new: Vec<_> = fields.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&fields).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "{file} is no longer right (a change for the changelog, if it is meant): \
         new {new:#?}, gone {gone:#?}"
    );
}

/// Claims the shape that is in the file of this name.
macro_rules! assert_shape_of_file {
    ($name:literal, $answers:expr) => {
        assert_shape($answers, $name, include_str!(concat!("shapes/", $name)))
    };
}

/// Returns the answer to these words, which is one object.
#[track_caller]
fn ask(words: &[&str]) -> Value {
    Lifemon::find()
        .run([words, &["-o", "json"]].concat())
        .success()
}

#[test]
fn of_a_kill() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let pid = actor.pid().to_string();
    assert_shape_of_file!("kill_dry_run.txt", &[ask(&["kill", &pid, "--dry-run"])]);
    assert_shape_of_file!("kill.txt", &[ask(&["kill", &pid])]);
}

#[test]
fn of_orphans() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    let (server, _) = leave_workers(&mut actor);
    let tree = server.pid.to_string();
    assert_shape_of_file!("orphans.txt", &[ask(&["orphans", "--tree", &tree])]);
}

#[test]
fn of_a_tree_with_a_ghost() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let pid = actor.pid().to_string();
    assert_shape_of_file!("tree.txt", &[ask(&["tree", &pid])]);
}

#[test]
fn of_the_state_of_the_tracker() {
    let tracker = HostTracker::off();
    assert_shape_of_file!("track_off.txt", &[ask(&["track", "off"])]);
    assert_shape_of_file!("track_on.txt", &[ask(&["track", "on"])]);
    assert_shape_of_file!("track_status.txt", &[ask(&["track", "status"])]);
    tracker.switch_off();
}

/// Reads the lines that a stream has printed, each below the word of its kind.
#[track_caller]
fn lines(printed: &str) -> Vec<Value> {
    let lines = printed.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("an object a line");
        let word = line["event"].as_str().expect("a word").to_owned();
        json!({ word: line })
    });
    lines.collect()
}

/// Every kind of line but those about the memory of GPUs.
#[test]
fn of_the_lines_of_a_stream() {
    let tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::find();
    let attach = |actor: &Actor| {
        let words = ["attach", &actor.pid().to_string(), "-o", "json"].map(str::to_owned);
        let stream = lifemon.start(lifemon.command(words));
        wait_until("the first line", DEADLINE, || {
            stream.stdout_so_far().contains('\n')
        });
        stream
    };
    // A fork, an exec, a fatal signal, an orphan, and the end of all of it.
    let mut actor = actor!(sandbox, "serve", 1, "init", "worker");
    let whole = attach(&actor);
    actor.step();
    let worker = actor.child("worker");
    kill_and_wait(actor.child("server"));
    wait_until("the orphan", DEADLINE, || {
        whole.stdout_so_far().contains("\"orphaned\"")
    });
    kill_and_wait(worker);
    actor.close();
    actor.wait();
    let whole = whole.finish(DEADLINE);
    assert_eq!((whole.code, whole.stderr.as_str()), (Some(0), ""));
    // A ghost at the beginning, and a loss.
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let lost = attach(&actor);
    tracker.switch_off();
    let lost = lost.finish(DEADLINE);
    assert_eq!(lost.code, Some(1), "{lost:?}");
    let lines = [lines(&whole.stdout), lines(&lost.stdout)].concat();
    assert_shape_of_file!("attach.txt", &lines);
}

#[test]
fn of_the_lines_about_the_memory_of_gpus() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let workers = actor.children("worker");
    let (one, two) = (workers[0].pid, workers[1].pid);
    double.answer(&format!("process {one} 4096\nprocess {two} 4096\n"));
    let pid = actor.pid().to_string();
    let lifemon = Lifemon::find();
    let words = ["attach", &pid, "-o", "json", "--device", device()];
    let limit = ["--release-timeout", "5s"];
    let mut command = lifemon.command([&words[..], &limit].concat());
    double.offer_to(&mut command);
    let stream = lifemon.start(command);
    wait_until("the first line", DEADLINE, || {
        stream.stdout_so_far().contains('\n')
    });
    double.wait_until_asked();
    for (worker, answer, word) in [
        (one, format!("process {two} 4096\n"), "\"released\""),
        (two, format!("process {two} 4096\n"), "\"held\""),
    ] {
        actor.command(&format!("kill {worker}"));
        wait_until("its exit", DEADLINE, || {
            let exits = stream.stdout_so_far();
            exits.matches("\"exit\"").count() > usize::from(worker == two)
        });
        double.answer(&answer);
        wait_until(word, DEADLINE, || stream.stdout_so_far().contains(word));
    }
    actor.close();
    let output = stream.finish(DEADLINE);
    let is_about_memory =
        |line: &Value| line.get("released").is_some() || line.get("held").is_some();
    let mut lines = lines(&output.stdout);
    lines.retain(is_about_memory);
    assert_shape_of_file!("attach_gpu.txt", &lines);
}

#[test]
fn of_gpus_and_their_holders() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let double = NvmlDouble::new(&sandbox);
    let mut actor = actor!(sandbox, "serve", 1, "init");
    actor.step();
    let worker = actor.child("worker").pid;
    kill_and_wait(actor.child("server"));
    double.answer(&format!("process {worker} 1000\nprocess 2147483647 5\n"));
    let output = with_driver(&double, &["gpu"]);
    assert_shape_of_file!("gpu.txt", &[output.success()]);
}

#[test]
fn of_a_run() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let path = report_path(&sandbox);
        let script = "(setsid sleep 100 &); exit 3";
        let words = ["--grace", "0", "--json", &path, "--", "sh", "-c", script];
        let output = run(&sandbox, rights, &words);
        assert_eq!(output.code, Some(3), "{output:?}");
        let text = fs::read_to_string(path).expect("the report");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        match rights {
            Rights::Root => assert_shape_of_file!("run.txt", &[report]),
            Rights::Nobody => assert_shape_of_file!("run_without_rights.txt", &[report]),
        }
    }
}

#[test]
fn of_a_run_that_keeps_what_is_left() {
    let sandbox = Sandbox::new();
    let path = report_path(&sandbox);
    let script = "exec >/dev/null 2>&1; setsid sleep 100 & exit 0";
    let output = run(&sandbox, Rights::Root, &keeping(&path, script));
    assert_eq!(output.code, Some(0), "{output:?}");
    let text = fs::read_to_string(path).expect("the report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_shape_of_file!("run_keep.txt", &[report]);
}

/// For a user without rights, for whom some of it has a remedy on every host.
#[test]
fn of_the_doctor() {
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::at(readable_copy(&sandbox));
    let output = run_alone(&lifemon, &["doctor", "-o", "json"], as_nobody);
    assert_shape_of_file!("doctor.txt", &[output.report()]);
}

#[test]
fn of_the_health_of_a_server() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[], &[]);
    server.wait_for_way("ebpf");
    assert_shape_of_file!("health_ok.txt", &[server.get("/health").1]);
    server.kill_worker(0);
    server.wait_for_orphans(1);
    assert_shape_of_file!("health.txt", &[server.get("/health").1]);
    server.stops(&sandbox);
}
