//! `lifemon schema`: prints the JSON Schemas of what lifemon prints.

use schemars::Schema;

use super::{Code, Usage, doctor, track};
use crate::report::{out, schema};

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lifemon schema                  all of them: one object, a member for each kind
  lifemon schema orphans          that of `lifemon orphans -o json`")]
pub struct Args {
    /// The kind of object, as its member `kind` has it
    kind: Option<String>,
}

/// Returns the schema of each kind of object, by its name.
#[must_use]
pub fn all() -> Vec<(&'static str, Schema)> {
    let mut all = schema::all();
    all.extend([
        ("doctor", schema::of::<doctor::Report>("doctor")),
        ("track", schema::of::<track::SwitchedJson>("track")),
        (
            "track_status",
            schema::of::<track::StatusJson>("track_status"),
        ),
    ]);
    all.sort_by_key(|(kind, _)| *kind);
    all
}

/// Returns a schema as the text of its file.
#[must_use]
pub fn text(schema: &Schema) -> String {
    serde_json::to_string_pretty(schema).unwrap_or_default() + "\n"
}

pub(super) fn run(args: &Args) -> anyhow::Result<Code> {
    let all = all();
    let text = match &args.kind {
        None => {
            let members = all
                .into_iter()
                .map(|(kind, schema)| (kind.to_owned(), schema.to_value()));
            let all: serde_json::Map<_, _> = members.collect();
            serde_json::to_string_pretty(&all)? + "\n"
        }
        Some(wanted) => {
            let found = all.iter().find(|(kind, _)| kind == wanted);
            let kinds: Vec<_> = all.iter().map(|(kind, _)| *kind).collect();
            let (_, schema) = found.ok_or_else(|| {
                Usage(format!("no kind {wanted}; there are {}", kinds.join(", ")))
            })?;
            text(schema)
        }
    };
    out::print(&text)?;
    Ok(Code::Done)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_files_have_what_the_types_say() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema"));
        let all = all();
        for (kind, schema) in &all {
            let path = directory.join(format!("{kind}.json"));
            let file = crate::sys::text::read(&path).unwrap_or_default();
            // The order of fields hangs on what else is compiled with it.
            let value: Option<serde_json::Value> = serde_json::from_str(&file).ok();
            assert!(
                value.as_ref() == Some(schema.as_value()),
                "{} is not what `cargo xtask schema` writes",
                path.display()
            );
        }
        let files = std::fs::read_dir(directory).unwrap().count();
        assert_eq!(files, all.len(), "a file of no kind");
    }
}
