//! The JSON Schemas of everything that lifemon prints, generated from the types that are printed.
//! `docs/schema/` has them as files; a test keeps the two equal.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::{explain, gpu, json::SCHEMA, kill, log, orphans, run, stream, tree, wait};

/// Returns the schema of each kind of object that this module prints.
#[must_use]
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("event", of::<stream::LineJson>("event")),
        ("explain", of::<explain::ExplainJson<'_>>("explain")),
        ("gpu", of::<gpu::ReportJson<'_>>("gpu")),
        ("kill", of::<kill::KilledJson>("kill")),
        ("kills", of::<kill::KillsJson>("kills")),
        ("log", of::<log::LogJson>("log")),
        ("orphans", of::<orphans::ReportJson<'_>>("orphans")),
        ("run", of::<run::RunJson<'_>>("run")),
        ("tree", of::<tree::TreeJson<'_>>("tree")),
        ("wait", of::<wait::WaitJson<'_>>("wait")),
    ]
}

/// Returns the schema of one type, as it is written.
#[must_use]
pub fn of<T: JsonSchema>(kind: &str) -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), format!("{SCHEMA} {kind}").into());
    schema
}
