//! What real programs leave behind, each started as people start it: installs those of Debian,
//! `PyPI` and npm beside the host's (`install`), leaves each behind in a sandbox and asks lifemon
//! for the verdict (`row`), as the table says (`table`). Run it with
//! `cargo xtask test --real-programs`.
//!
//! What cannot be installed is named and counted as not tried, never as passed.

mod install;
mod row;
mod table;

use std::process::ExitCode;
use std::thread;

use install::Installed;
use row::Outcome;
use table::ROWS;

fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let is_meant = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part));
    let rows: Vec<_> = ROWS.iter().filter(|row| is_meant(row.name)).collect();
    if rows.is_empty() {
        eprintln!("no row is called so");
        return ExitCode::from(2);
    }
    let installed = match Installed::install(rows.iter().map(|row| row.source)) {
        Ok(installed) => installed,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed, mut not_tried) = (0, 0, 0);
    for row in rows {
        let outcome = thread::scope(|scope| scope.spawn(|| row::attempt(row, &installed)).join());
        let outcome = outcome.unwrap_or_else(|_| Outcome::Failed("it panicked".to_owned()));
        let (word, count, why) = match outcome {
            Outcome::Passed => ("ok", &mut passed, String::new()),
            Outcome::Failed(why) => ("FAILED", &mut failed, format!(": {why}")),
            Outcome::NotTried(why) => ("not tried", &mut not_tried, format!(": {why}")),
        };
        *count += 1;
        println!("{word:<10} {:<10} {}{why}", row.verdict, row.name);
    }
    println!("{passed} passed, {failed} failed, {not_tried} not tried");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
