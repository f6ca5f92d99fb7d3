//! Managers in a process of their own, for what a process has only one of: its signals, its limits,
//! its end. The test's program is executed anew, with the name of what to do in a variable.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use lifemon::manager::{Options, ProcessManager, Stop, WorkerCommand};
use lifemon_tests::{DEADLINE, Pidfd, Sandbox};
use nix::sys::signal::Signal;

use super::{GUARDIAN, PATIENCE, run};

const ROLE: &str = "LIFEMON_TEST_ROLE";

/// What plays the role, by the name that libtest knows it by.
const ROLE_TEST: &str = "manager_direct::process::role";

/// Such a process.
pub(crate) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// In the sandbox, as is everything that it starts.
    #[track_caller]
    pub(crate) fn start(sandbox: &Sandbox, role: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["--exact", ROLE_TEST, "--nocapture"]);
        command.env(ROLE, role).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::null());
        sandbox.enter(&mut command);
        let mut child = command.spawn().expect("this program");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// Until it has said this.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, word: &str) {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        assert!(lines.any(|line| line.ends_with(word)), "no {word}");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let process = Pidfd::open(self.child.id().cast_signed());
        let sent = process.expect("a child").signal(signal);
        sent.expect("it lives");
    }

    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "panics" => run(panics()),
        "outlives its workers" => run(outlives_its_workers()),
        "ends by itself" => run(ends_by_itself()),
        "has no descriptors" => run(has_no_descriptors()),
        role => panic!("{role} is not known"),
    }
}

async fn start(script: &str, change: impl FnOnce(Options) -> Options) -> ProcessManager {
    let worker = WorkerCommand::new("sh").arg("-c").arg(script);
    let options = Options::new([worker]).guardian(GUARDIAN).use_ebpf(false);
    let manager = ProcessManager::start(change(options)).await;
    manager.expect("a manager")
}

async fn panics() {
    let _manager = start("setsid sleep 1001 & sleep 1002", |options| options).await;
    println!("started");
    tokio::time::sleep(PATIENCE).await;
    panic!("the server is broken");
}

async fn outlives_its_workers() {
    let manager = start("exit 0", |options| options).await;
    manager.monitor_workers().await;
    println!("over");
    while manager.stop_asked().await != Stop::Graceful {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("asked");
    drop(manager);
    thread::sleep(DEADLINE);
}

async fn ends_by_itself() {
    let stubborn = "trap '' TERM; sleep 1003 & wait; wait";
    let times = |options: Options| {
        options
            .shutdown_timeout(PATIENCE * 5)
            .kill_timeout(PATIENCE * 5)
    };
    let manager = start(stubborn, times).await;
    let mut ending = std::pin::pin!(manager.shutdown());
    let begun = tokio::time::timeout(PATIENCE, &mut ending).await;
    assert!(begun.is_err(), "{begun:?}");
    println!("begun");
    println!("ended with {}", ending.await.code);
}

async fn has_no_descriptors() {
    let looks = |options: Options| options.monitor_interval(Duration::from_millis(5));
    let manager = start("sleep 1004", looks).await;
    let before = limit_descriptors(0);
    tokio::time::sleep(PATIENCE * 3).await;
    limit_descriptors(before);
    assert!(manager.check_workers_alive().is_ok());
    println!("alive");
}

/// The limit before.
fn limit_descriptors(count: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit lives until the call returns.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let before = std::mem::replace(&mut limit.rlim_cur, count);
    // SAFETY: the limit lives until the call returns.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!((got, set), (0, 0));
    before
}
