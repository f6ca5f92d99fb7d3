//! Arguments of a behaviour: words in order, every number with an upper bound.
//! A wrong argument is a mistake in a test: it ends the actor with 2 before anything happens.

use std::path::PathBuf;

pub(crate) struct Args(std::iter::Skip<std::env::Args>);

impl Args {
    pub(crate) fn from_command_line() -> Self {
        Self(std::env::args().skip(1))
    }

    pub(crate) fn optional(&mut self) -> Option<String> {
        self.0.next()
    }

    pub(crate) fn word(&mut self, name: &str) -> String {
        self.optional()
            .unwrap_or_else(|| usage(&format!("no {name}")))
    }

    pub(crate) fn path(&mut self, name: &str) -> PathBuf {
        self.word(name).into()
    }

    /// Returns a count of at most `max`: nothing here is without a bound.
    pub(crate) fn count(&mut self, name: &str, max: u32) -> u32 {
        let word = self.word(name);
        bounded(&word, name, max)
    }

    pub(crate) fn count_or(&mut self, name: &str, default: u32, max: u32) -> u32 {
        self.optional()
            .map_or(default, |word| bounded(&word, name, max))
    }

    pub(crate) fn exit_code(&mut self) -> i32 {
        self.count("exit code", 255).cast_signed()
    }
}

fn bounded(word: &str, name: &str, max: u32) -> u32 {
    match word.parse() {
        Ok(number) if number <= max => number,
        _ => usage(&format!("{name} must be 0 to {max}, not {word}")),
    }
}

pub(crate) fn usage(problem: &str) -> ! {
    eprintln!("actor: {problem}");
    std::process::exit(2)
}
