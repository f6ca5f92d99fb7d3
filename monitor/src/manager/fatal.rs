//! Recognises the errors that mean that a worker's engine is dead and the server must end. Pure.

use std::any::type_name_of_val;
use std::error::Error;

/// Causes that are followed: a chain that is longer is a circle.
const CHAIN_MAX: usize = 64;

/// Rules that make an error fatal. [`FatalRules::default`] has the rules of the Python module.
///
/// ```
/// use std::io;
///
/// use lifemon::manager::FatalRules;
///
/// let rules = FatalRules::default().message("NCCL timeout");
/// assert!(rules.is_fatal(&io::Error::other("NCCL timeout on rank 3")));
/// ```
#[derive(Debug, Clone)]
pub struct FatalRules {
    /// Parts of a message.
    messages: Vec<String>,
    /// Parts of the name of a type. Of a cause the type is known by its `Debug` text alone.
    types: Vec<String>,
    /// Words that must all be in the message, in any case.
    all_of: Vec<Vec<String>>,
}

impl Default for FatalRules {
    fn default() -> Self {
        Self {
            messages: vec!["EngineCore".to_owned()],
            types: vec!["EngineDeadError".to_owned()],
            all_of: vec![vec!["engine".to_owned(), "died".to_owned()]],
        }
    }
}

impl FatalRules {
    /// Adds a part of a message.
    #[must_use]
    pub fn message(mut self, part: impl Into<String>) -> Self {
        self.messages.push(part.into());
        self
    }

    /// Adds a part of the name of a type.
    #[must_use]
    pub fn type_name(mut self, part: impl Into<String>) -> Self {
        self.types.push(part.into());
        self
    }

    /// Adds words that must all be in the message, in any case.
    #[must_use]
    pub fn all_of(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let words = words.into_iter().map(|word| word.into().to_lowercase());
        self.all_of.push(words.collect());
        self
    }

    /// Returns whether an error, or any cause of it, is fatal. The module that this replaces looks
    /// at the outermost error alone.
    pub fn is_fatal<E: Error>(&self, error: &E) -> bool {
        let type_name = type_name_of_val(error);
        if self
            .types
            .iter()
            .any(|part| type_name.contains(part.as_str()))
        {
            return true;
        }
        let mut at: Option<&dyn Error> = Some(error);
        for _ in 0..CHAIN_MAX {
            let Some(error) = at else { return false };
            if self.is_fatal_text(&error.to_string(), &format!("{error:?}")) {
                return true;
            }
            at = error.source();
        }
        false
    }

    fn is_fatal_text(&self, message: &str, debug: &str) -> bool {
        // The derived Debug begins with the name of the type or of its variant.
        let end = debug.find(|c: char| !c.is_alphanumeric() && c != '_');
        let type_name = &debug[..end.unwrap_or(debug.len())];
        let lower = message.to_lowercase();
        self.messages
            .iter()
            .any(|part| message.contains(part.as_str()))
            || self
                .types
                .iter()
                .any(|part| type_name.contains(part.as_str()))
            || self
                .all_of
                .iter()
                .any(|words| words.iter().all(|word| lower.contains(word.as_str())))
    }
}

/// Returns whether an error means that a worker's engine is dead, by the rules of the Python
/// module.
pub fn is_fatal_worker_error<E: Error>(error: &E) -> bool {
    FatalRules::default().is_fatal(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Plain(String);

    #[derive(Debug, thiserror::Error)]
    #[error("gone")]
    struct EngineDeadError;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Box<dyn Error + 'static>);

    #[test]
    fn the_rules_of_the_module_that_this_replaces() {
        let is_fatal = |text: &str| is_fatal_worker_error(&Plain(text.to_owned()));
        assert!(is_fatal("EngineCore encountered an issue"));
        assert!(is_fatal("the ENGINE has Died"));
        assert!(!is_fatal("the engine is well"));
        assert!(!is_fatal("somebody died"));
        assert!(!is_fatal("enginecore in lower case"));
        assert!(is_fatal_worker_error(&EngineDeadError));
    }

    #[test]
    fn a_cause_counts_as_well() {
        let inner = Outer(Box::new(EngineDeadError));
        assert!(is_fatal_worker_error(&Outer(Box::new(inner))));
        let inner = Outer(Box::new(Plain("well".to_owned())));
        assert!(!is_fatal_worker_error(&inner));
    }

    #[test]
    fn rules_can_be_added() {
        let error = Plain("NCCL timeout".to_owned());
        assert!(!FatalRules::default().is_fatal(&error));
        assert!(FatalRules::default().message("NCCL").is_fatal(&error));
        let rules = FatalRules::default().all_of(["nccl", "Timeout"]);
        assert!(rules.is_fatal(&error));
        assert!(FatalRules::default().type_name("Plain").is_fatal(&error));
    }
}
