//! The shapes of what lifemon prints as JSON, against files: which fields there are, and where. A
//! field that is renamed, moved or gone is a change that users notice, and fails here by name.

use std::collections::BTreeSet;

use lifemon_tests::left_behind::kill_and_wait;
use lifemon_tests::{Lifemon, Sandbox, actor, needs};
use serde_json::Value;

/// What depends on the host: how it places its processes, and whether its kernel measures programs.
const OF_THE_HOST: [&str; 3] = ["unit", "container", "ns_per_run"];

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

/// Claims that the answer to these words has exactly the fields that the file lists.
#[track_caller]
fn assert_shape(words: &[&str], file: &str, listed: &str) {
    let output = Lifemon::find().run([words, &["-o", "json"]].concat());
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let mut fields = BTreeSet::new();
    add_fields(&output.report(), "", &mut fields);
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
    ($name:literal, $words:expr) => {
        assert_shape($words, $name, include_str!(concat!("shapes/", $name)));
    };
}

#[test]
fn of_a_kill() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let pid = actor.pid().to_string();
    assert_shape_of_file!("kill_dry_run.txt", &["kill", &pid, "--dry-run"]);
    assert_shape_of_file!("kill.txt", &["kill", &pid]);
}

#[test]
fn of_orphans() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    actor.step();
    let server = actor.child("server");
    kill_and_wait(server);
    let tree = server.pid.to_string();
    assert_shape_of_file!("orphans.txt", &["orphans", "--tree", &tree]);
}

#[test]
fn of_a_tree_with_a_ghost() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let pid = actor.pid().to_string();
    assert_shape_of_file!("tree.txt", &["tree", &pid]);
}

#[test]
fn of_the_state_of_the_tracker() {
    needs!(host_tracker);
    assert_shape_of_file!("track_status.txt", &["track", "status"]);
}
