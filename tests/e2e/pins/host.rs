//! A host of its own for a test of pins: where users may do what they like, and what must hold
//! there whatever they have done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lifemon_tests::bpf::Traces;
use lifemon_tests::killing::assert_killed;
use lifemon_tests::reports::{TrackState, TrackSwitch};
use lifemon_tests::{DEADLINE, HostTracker, Lifemon, Output, OwnMounts, Running, Sandbox, actor};

pub(super) const HOME: &str = "/sys/fs/bpf/lifemon";
pub(super) const OWN: &str = "/run/lifemon/tracker/bpf";

/// For everybody: what a BPF file system is without options.
pub(super) const OPEN_TO_ALL: &str = "mode=1777";

/// A host of its own, and what there was of BPF before it.
pub(super) struct Host {
    pub(super) mounts: OwnMounts,
    pub(super) before: Traces,
    /// The binary that is tried.
    program: PathBuf,
    /// What a user wants root to empty.
    victim: PathBuf,
    _sandbox: Sandbox,
    _tracker: HostTracker,
}

impl Host {
    pub(super) fn new(options: Option<&'static str>) -> Self {
        let tracker = HostTracker::off();
        let sandbox = Sandbox::new();
        let victim = sandbox.directory().join("victim");
        fs::create_dir_all(victim.join("maps/deeper")).expect("a directory");
        fs::write(victim.join("maps/file"), "precious").expect("a file");
        Self {
            mounts: OwnMounts::new(options),
            before: Traces::now(),
            program: Lifemon::find().program().to_owned(),
            victim,
            _sandbox: sandbox,
            _tracker: tracker,
        }
    }

    /// Installs the binary where only root can put anything, as the clone that it was built in need
    /// not be.
    pub(super) fn install(&mut self) {
        const INSTALLED: &str = "/opt/lifemon";
        // A small guest has none.
        self.mounts.as_root(&["mkdir", "-p", "/opt"]);
        let mount = ["mount", "-t", "tmpfs", "-o", "mode=0755", "none", "/opt"];
        self.mounts.as_root(&mount);
        let built = self.program.to_str().expect("a path in UTF-8");
        self.mounts.as_root(&["cp", built, INSTALLED]);
        self.program = INSTALLED.into();
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn victim(&self) -> &str {
        self.victim.to_str().expect("a path in UTF-8")
    }

    #[track_caller]
    pub(super) fn assert_nothing_deleted(&self) {
        let file = fs::read(self.victim.join("maps/file")).expect("a file that was kept");
        assert_eq!(file, b"precious");
        assert!(self.victim.join("maps/deeper").is_dir());
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Lifemon::at(self.program.clone()).command(words);
        self.mounts.enter(&mut command);
        command
    }

    #[track_caller]
    pub(super) fn start(&self, words: &[&str]) -> Running {
        Lifemon::find().start(self.command(words))
    }

    #[track_caller]
    pub(super) fn run(&self, words: &[&str]) -> Output {
        self.start(words).finish(DEADLINE)
    }

    #[track_caller]
    pub(super) fn track(&self, word: &str) -> TrackSwitch {
        self.run(&["track", word, "-o", "json"]).success()
    }

    pub(super) fn status(&self) -> TrackState {
        self.run(&["track", "status", "-o", "json"]).report()
    }

    /// Switches on where the host's file system cannot be trusted.
    #[track_caller]
    pub(super) fn assert_on_in_own_place(&self, why: &str) {
        let off = self.status().off();
        assert_says(off.distrusted.as_ref(), why);
        let on = self.track("on");
        assert_eq!((on.changed, on.mounted.as_deref()), (true, Some(OWN)));
        assert_says(on.distrusted.as_ref(), why);
    }

    /// Switches on where the host's file system cannot be trusted, uses that, and switches off.
    #[track_caller]
    pub(super) fn assert_own_place(&self, why: &str) {
        self.assert_on_in_own_place(why);
        let status = self.status().on();
        assert!(status.directory.starts_with(OWN), "{status:?}");
        self.assert_used();
        assert!(!self.track("on").changed);
        let text = self.run(&["track", "status"]).stdout;
        assert!(text.contains(why), "{text}");
        self.assert_switched_off();
    }

    #[track_caller]
    pub(super) fn assert_used(&self) {
        let sandbox = Sandbox::new();
        let actor = actor!(sandbox, "pause");
        let pid = actor.pid().to_string();
        let mut stream = Lifemon::find().stream_of(self.command(&["attach", &pid, "-o", "json"]));
        assert_eq!(stream.attached().tracker, "host");
        drop(stream);
        let killed = self.run(&["kill", &pid, "-o", "json"]);
        assert_eq!(assert_killed(&killed).killed.len(), 1);
    }

    #[track_caller]
    pub(super) fn assert_switched_off(&self) {
        assert!(self.track("off").changed);
        self.before.assert_nothing_since();
        self.assert_nothing_deleted();
        assert!(!self.mounts.path("/run/lifemon").exists());
    }

    /// Claims that neither word changes anything, and that both name the path.
    #[track_caller]
    pub(super) fn assert_refused(&self, path: &str, why: &str) {
        let before = Traces::now();
        for word in ["on", "off"] {
            let output = self.run(&["track", word]);
            assert_eq!((output.code, output.stdout.as_str()), (Some(3), ""));
            assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
            for part in [path, why, "remove it"] {
                assert!(output.stderr.contains(part), "{part}: {output:?}");
            }
        }
        before.assert_nothing_since();
        assert_eq!(Traces::now().since(&before), Traces::default());
        self.assert_nothing_deleted();
    }
}

#[track_caller]
pub(super) fn assert_says(text: Option<&String>, words: &str) {
    let found = text.is_some_and(|text| text.contains(words));
    assert!(found, "no {words:?}: {text:?}");
}
