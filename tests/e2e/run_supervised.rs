//! `lifemon run` as a service of runit and of s6, which signal it alone: it is asked to end, to
//! pause and to go on as the service itself is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lifemon_tests::{DEADLINE, Lifemon, Pidfd, Sandbox, needs, proc, wait_until};
use nix::sys::signal::Signal;

/// A supervisor: how it is started on a directory, and how it is told what to do.
struct Kind {
    start: &'static [&'static str],
    /// Words that pause, continue, and end the service for good; the directory comes after them.
    pause: &'static [&'static str],
    go_on: &'static [&'static str],
    down: &'static [&'static str],
}

const RUNIT: Kind = Kind {
    start: &["runsv"],
    pause: &["sv", "pause"],
    go_on: &["sv", "cont"],
    down: &["sv", "down"],
};

const S6: Kind = Kind {
    start: &["s6-supervise"],
    pause: &["s6-svc", "-p"],
    go_on: &["s6-svc", "-c"],
    down: &["s6-svc", "-d"],
};

/// A service under its supervisor.
struct Service {
    directory: PathBuf,
    supervisor: Child,
}

impl Service {
    fn start(sandbox: &Sandbox, kind: &'static Kind, script: &str) -> Self {
        let directory = sandbox.directory().join("service");
        fs::create_dir(&directory).expect("a directory");
        let run = directory.join("run");
        fs::write(&run, format!("#!/bin/sh\n{script}\n")).expect("a file");
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).expect("its mode");
        let mut command = Command::new(kind.start[0]);
        command.arg(&directory).stdin(Stdio::null());
        command.stdout(Stdio::null()).process_group(0);
        sandbox.enter(&mut command);
        let supervisor = command.spawn().expect("the supervisor");
        Self {
            directory,
            supervisor,
        }
    }

    fn tell(&self, words: &[&str]) {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&self.directory);
        let output = command.output().expect("the supervisor's program");
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        _ = Pidfd::open(self.supervisor.id().cast_signed())
            .map(|supervisor| supervisor.signal(Signal::SIGTERM));
        _ = self.supervisor.wait();
    }
}

fn state(pid: i32) -> Option<char> {
    proc::stat(pid).map(|stat| stat.state)
}

/// The process that says by its pid in this file that it is ready.
fn ready(file: &Path) -> i32 {
    let read = || fs::read_to_string(file).ok()?.trim().parse().ok();
    wait_until("the service", DEADLINE, || read().is_some());
    read().expect("waited for")
}

#[track_caller]
fn check(kind: &'static Kind) {
    for before in ["", "$LIFEMON run --grace 0 -- "] {
        let sandbox = Sandbox::new();
        let file = sandbox.directory().join("pid");
        let ended = sandbox.directory().join("ended");
        let script = format!(
            "exec {before}sh -c 'trap \"echo x >>{}; exit 0\" TERM; echo $$ >{}; \
             while :; do sleep 0.02; done'",
            ended.display(),
            file.display()
        );
        let lifemon = Lifemon::find();
        let script = script.replace("$LIFEMON", &lifemon.program().display().to_string());
        let service = Service::start(&sandbox, kind, &script);
        let command = ready(&file);
        for _ in 0..2 {
            service.tell(kind.pause);
            wait_until("it stands still", DEADLINE, || state(command) == Some('T'));
            service.tell(kind.go_on);
            wait_until("it goes on", DEADLINE, || state(command) != Some('T'));
        }
        service.tell(kind.down);
        wait_until("its end", DEADLINE, || !proc::is_running(command));
        let said = fs::read_to_string(&ended).expect("it has heard SIGTERM");
        assert_eq!(said, "x\n", "{before:?}");
        drop(service);
        wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
    }
}

#[test]
fn a_service_of_runit_pauses_goes_on_and_ends() {
    needs!(runit);
    check(&RUNIT);
}

#[test]
fn a_service_of_s6_pauses_goes_on_and_ends() {
    needs!(s6);
    check(&S6);
}
