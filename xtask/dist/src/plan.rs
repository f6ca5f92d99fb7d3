//! What is made and where: all of it for users, or as little as a test of every change can wait
//! for.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::processor::Processor;

/// What a run of this program makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Everything, for every processor, linked for an old glibc.
    Whole,
    /// The archive and the wheel of the binary that the tests have built, for this machine.
    Quick,
}

impl Plan {
    /// Returns the directory of the artefacts.
    pub(crate) fn directory(self) -> &'static Path {
        Path::new(match self {
            Self::Whole => "target/dist",
            Self::Quick => "target/dist-quick",
        })
    }

    /// Returns the path of an artefact.
    pub(crate) fn artefact(self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Returns where cargo leaves the binary.
    pub(crate) fn binary(self, processor: Processor) -> PathBuf {
        let target = Path::new("target");
        match self {
            Self::Whole => target.join(processor.target()).join("release/lifemon"),
            Self::Quick => target.join("release/lifemon"),
        }
    }

    /// Returns the processors that it makes something for.
    pub(crate) fn processors(self) -> Result<Vec<Processor>> {
        Ok(match self {
            Self::Whole => Processor::ALL.to_vec(),
            Self::Quick => vec![here()?],
        })
    }
}

/// Returns the processor of this machine.
pub(crate) fn here() -> Result<Processor> {
    Processor::here().context("lifemon is built on x86-64 and arm64")
}
