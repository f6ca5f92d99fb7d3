//! The stand-in for NVIDIA's management library in one sandbox: where lifemon finds it, and what it
//! answers from now on. Built as an example of this package, beside the tests.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::{DEADLINE, Sandbox, wait_until};

/// A directory with the library, and the file that says what it answers.
#[derive(Debug)]
pub struct NvmlDouble {
    directory: PathBuf,
    answers: PathBuf,
}

impl NvmlDouble {
    /// Puts the library into the sandbox. It knows one GPU without processes.
    ///
    /// # Panics
    /// When it was not built.
    #[must_use]
    #[track_caller]
    pub fn new(sandbox: &Sandbox) -> Self {
        let test = std::env::current_exe().expect("path of this test");
        let profile = test
            .ancestors()
            .nth(2)
            .expect("the directory of the profile");
        let built = profile.join("examples/libnvml_double.so");
        let directory = sandbox.directory().join("nvml");
        fs::create_dir(&directory).expect("one double a sandbox");
        let library = directory.join("libnvidia-ml.so.1");
        fs::copy(&built, &library)
            .unwrap_or_else(|error| panic!("{}: {error}; build the examples", built.display()));
        let answers = directory.join("answers");
        fs::write(&answers, "").expect("a file in the sandbox");
        Self { directory, answers }
    }

    /// Sets what it answers from now on.
    ///
    /// # Panics
    /// When that cannot be written.
    pub fn answer(&self, lines: &str) {
        // By a rename: it is never read half.
        let new = self.directory.join("new");
        fs::write(&new, lines).expect("a file in the sandbox");
        fs::rename(new, &self.answers).expect("in the same directory");
    }

    /// Returns what `/proc/PID/status` was of the process that has loaded it last.
    #[must_use]
    pub fn loaded_by(&self) -> String {
        fs::read_to_string(self.answers.with_extension("status")).unwrap_or_default()
    }

    /// Waits until somebody was told who computes: from then on lifemon knows who holds memory.
    ///
    /// # Panics
    /// When nobody asks.
    #[track_caller]
    pub fn wait_until_asked(&self) {
        let asked = self.answers.with_extension("asked");
        wait_until("a question", DEADLINE, || asked.exists());
    }

    /// Makes lifemon find it.
    pub fn offer_to(&self, command: &mut Command) {
        command.env("LD_LIBRARY_PATH", &self.directory);
        command.env("NVML_DOUBLE", &self.answers);
    }
}
