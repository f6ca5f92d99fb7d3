//! Data flows one way: every module has a rank, and imports from its own rank or below. Within a
//! rank no two files import each other.
//!
//! What counts is every path that begins with `crate::` or `super::`, in `use` lines and in bodies;
//! comments and the tests at the end of a file do not count. A module and what lies in its
//! directory are one room: its parts use its types, and it uses its parts.

#![expect(clippy::disallowed_methods, reason = "sources are text")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the ground to the top.
const RANKS: [&[&str]; 9] = [
    &["loss", "process", "words"],
    &["forest", "proc", "sys"],
    &["kernel", "watch"],
    &["session"],
    &[
        "client", "deaths", "doctor", "explain", "gpu", "kill", "orphan", "tree", "wait",
    ],
    &["face", "manager", "supervise"],
    &["report"],
    &["agent"],
    &["cli"],
];

/// A module by its path below the crate: `["gpu", "drm"]`.
type Module = Vec<String>;

/// The text of every module.
type Sources = BTreeMap<Module, String>;

#[test]
fn data_flows_one_way() {
    let mut sources = Sources::new();
    read(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")),
        &[],
        &mut sources,
    );
    assert!(
        sources.contains_key(&module("kernel::tracker")),
        "the reader finds the sources"
    );
    let wrong = violations(&sources);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Reads the modules of a directory, without its root files and without tests.
fn read(directory: &Path, above: &[String], sources: &mut Sources) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            read(&path, &[above, &[stem]].concat(), sources);
        } else if stem == "mod" {
            sources.insert(above.to_vec(), fs::read_to_string(&path).unwrap());
        } else if !["lib", "main", "tests"].contains(&stem.as_str()) {
            let module = [above, &[stem]].concat();
            sources.insert(module, fs::read_to_string(&path).unwrap());
        }
    }
}

/// Returns what is wrong with the imports of these modules, a line each.
fn violations(sources: &Sources) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut arrows = BTreeSet::new();
    for (from, text) in sources {
        let Some(own) = rank(from) else {
            wrong.push(format!("{} has no rank: give it one in RANKS", name(from)));
            continue;
        };
        for to in imports(from, text)
            .iter()
            .filter_map(|path| resolve(path, sources))
        {
            if rank(&to).is_some_and(|rank| rank > own) {
                wrong.push(format!(
                    "{} imports {}, which is above it",
                    name(from),
                    name(&to)
                ));
            }
            arrows.insert((from.clone(), to));
        }
    }
    for (from, to) in &arrows {
        let is_one_room = from.starts_with(to) || to.starts_with(from);
        let is_level = rank(from) == rank(to);
        if from < to && is_level && !is_one_room && arrows.contains(&(to.clone(), from.clone())) {
            wrong.push(format!("{} and {} import each other", name(from), name(to)));
        }
    }
    wrong
}

fn rank(module: &[String]) -> Option<usize> {
    let top = module.first()?;
    RANKS.iter().position(|names| names.contains(&top.as_str()))
}

/// Returns the module that a path leads to: its longest part that is one. `None` for what stands at
/// the root of the crate.
fn resolve(path: &[String], sources: &Sources) -> Option<Module> {
    let parts = (1..=path.len()).rev().map(|length| &path[..length]);
    parts
        .into_iter()
        .find(|part| sources.contains_key(*part))
        .map(<[String]>::to_vec)
}

/// Returns every path that a module names with `crate::` or `super::`, from the root of the crate.
fn imports(module: &[String], text: &str) -> Vec<Vec<String>> {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    let text: String = lines.flat_map(|line| [line, " "]).collect();
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while let Some(at) = rest
        .find("crate::")
        .into_iter()
        .chain(rest.find("super::"))
        .min()
    {
        let is_part = rest[..at].ends_with(|c: char| is_of_name(c) || c == ':');
        let (mut prefix, mut path) = (Vec::new(), &rest[at..]);
        if let Some(below) = path.strip_prefix("crate::") {
            path = below;
        } else {
            prefix = module.to_vec();
            while let Some(below) = path.strip_prefix("super::") {
                prefix.pop();
                path = below;
            }
        }
        rest = if is_part {
            path
        } else {
            collect(path, &prefix, &mut found)
        };
    }
    found
}

/// Collects the paths of one tree of imports: `a::{b, c::D}`. Returns what follows it.
fn collect<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut text = text.trim_start();
    if let Some(inner) = text.strip_prefix('{') {
        text = inner.trim_start();
        while !text.starts_with('}') && !text.is_empty() {
            text = collect(text, prefix, found).trim_start();
            // Nothing that can be read as a path: do not stay here.
            text = text.strip_prefix(',').map_or_else(
                || text.trim_start_matches(|c| c != '}' && c != ','),
                str::trim_start,
            );
        }
        return text.strip_prefix('}').unwrap_or_default();
    }
    let end = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut path = prefix.to_vec();
    if !name.is_empty() && name != "self" {
        path.push(name.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(below)
            if below
                .trim_start()
                .starts_with(|c| is_of_name(c) || c == '{') =>
        {
            collect(below, &path, found)
        }
        _ => {
            found.push(path);
            rest
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn module(path: &str) -> Module {
    path.split("::").map(str::to_owned).collect()
}

fn name(module: &[String]) -> String {
    module.join("::")
}

fn named(at: &str, text: &str) -> Vec<String> {
    imports(&module(at), text)
        .iter()
        .map(|path| name(path))
        .collect()
}

#[test]
fn paths_are_read_from_use_lines_and_bodies() {
    let text = "use crate::kernel::{self, Error, clock::{boot_ns, WallClock as Clock}};\n\
        pub(crate) use crate::proc::stat;\nuse std::fs;\nuse other_crate::session;\n\
        fn f() -> crate::kill::Report { crate::gpu::ask::<u8>(3) }\n";
    assert_eq!(
        named("report", text),
        [
            "kernel",
            "kernel::Error",
            "kernel::clock::boot_ns",
            "kernel::clock::WallClock",
            "proc::stat",
            "kill::Report",
            "gpu::ask",
        ]
    );
}

#[test]
fn super_is_the_module_above() {
    let text = "use super::json::Id;\nuse super::super::kill;\nfn f() { super::g() }";
    let found = named("report::stream::text", text);
    assert_eq!(
        found,
        [
            "report::stream::json::Id",
            "report::kill",
            "report::stream::g"
        ]
    );
}

#[test]
fn comments_and_tests_do_not_count() {
    let text = "//! [`crate::cli`]\nuse crate::proc; // as crate::report does\n\
        #[cfg(test)]\nmod tests {\n    use crate::session::Session;\n}\n";
    assert_eq!(named("kernel", text), ["proc"]);
}

#[test]
fn what_runs_up_or_in_a_circle_is_found() {
    let sources = |modules: &[(&str, &str)]| -> Sources {
        let modules = modules.iter();
        modules
            .map(|(at, text)| (module(at), (*text).to_owned()))
            .collect()
    };
    let good = sources(&[
        (
            "session",
            "use crate::kernel::Tracker; use crate::loss::Loss;",
        ),
        ("kernel", "pub use tracker::Tracker; mod tracker; mod pins;"),
        (
            "kernel::tracker",
            "use super::pins; use super::Error; use crate::ProcessId;",
        ),
        ("kernel::pins", "use super::Error; use crate::proc;"),
        ("loss", ""),
        ("proc", ""),
    ]);
    assert_eq!(violations(&good), [""; 0]);
    let mut up = good.clone();
    up.insert(module("loss"), "fn f() { crate::session::g() }".to_owned());
    assert_eq!(violations(&up), ["loss imports session, which is above it"]);
    let mut circle = good.clone();
    circle.insert(
        module("kernel::pins"),
        "use super::{Error, tracker::Tracker};".to_owned(),
    );
    assert_eq!(
        violations(&circle),
        ["kernel::pins and kernel::tracker import each other"]
    );
    let mut unknown = good;
    unknown.insert(module("stranger"), String::new());
    assert_eq!(
        violations(&unknown),
        ["stranger has no rank: give it one in RANKS"]
    );
}
