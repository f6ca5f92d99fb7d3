//! The recipes of `docs/events.md`, each run as it stands there, on a tree that has what they ask
//! about.

use std::process::Command;

use lifemon_tests::left_behind::leave_workers;
use lifemon_tests::{Lifemon, Sandbox, actor, has_programs, needs};

const DOCUMENT: &str = include_str!("../../docs/events.md");

/// The process that the recipes are about.
const NAMED: &str = "4200";

/// Returns the lines of the block of recipes.
fn recipes() -> Vec<&'static str> {
    let section = DOCUMENT.split("## Recipes").nth(1).expect("recipes");
    let block = section.split("```sh\n").nth(1).expect("a block");
    let block = block.split("```").next().expect("its end");
    block.lines().filter(|line| !line.is_empty()).collect()
}

#[test]
fn each_recipe_works() {
    needs!(bash, host_tracker);
    if !has_programs(&["jq"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    let (server, _) = leave_workers(&mut actor);
    let lifemon = Lifemon::find().program().display().to_string();
    let recipes = recipes();
    assert!(recipes.len() >= 8, "{recipes:?}");
    for recipe in recipes {
        let line = recipe
            .replace("lifemon ", &format!("{lifemon} "))
            .replace(NAMED, &server.pid.to_string())
            // It would go on until the workers have died.
            .replace(" -o json |", " -o json $WATCHES |");
        let watches = if recipe.contains("attach") {
            "--for 200ms"
        } else {
            ""
        };
        let output = Command::new("bash")
            .args(["-c", &format!("set -o pipefail; {line}")])
            .env("WATCHES", watches)
            .output()
            .expect("bash");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && err.is_empty(),
            "{recipe}: {output:?}"
        );
        let finds = ["orphans[]", ".entries[]", "verdict:", "select(.alive"];
        if finds.iter().any(|word| recipe.contains(word)) && !recipe.contains("gpu") {
            assert!(!output.stdout.is_empty(), "{recipe}: {output:?}");
        }
    }
}
