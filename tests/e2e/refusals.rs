//! Where lifemon cannot or must not work: the exit code, one line that names the remedy, and
//! nothing left in the kernel. What a host lacks is taken away from the one process.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::{fs, thread};

use lifemon_tests::handicap::{self, readable_copy};
use lifemon_tests::{
    DEADLINE, Lifemon, Output, Sandbox, actor, can_preempt_tracepoints, proc, run_alone, wait_until,
};
use nix::unistd::gettid;

const BTF_DIRECTORY: &str = "/sys/kernel/btf";
const CAP_SYS_PTRACE: u64 = 19;
const CAP_PERFMON: u64 = 38;
const CAP_BPF: u64 = 39;

/// Claims this exit code and one line on stderr with all of these words, and nothing else.
#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    assert_eq!(output.stdout, "", "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "no {word:?}: {output:?}");
    }
    for word in ["panicked", "backtrace", "RUST_"] {
        assert!(!output.stderr.contains(word), "{output:?}");
    }
}

#[track_caller]
fn assert_target_refused(target: &impl ToString, code: i32, words: &[&str]) {
    let output = run_alone(&Lifemon::find(), &["attach", &target.to_string()], |_| {});
    assert_refused(&output, code, words);
}

/// Attaches to a living process, which only what `change` does can make impossible.
#[track_caller]
fn assert_refused_when(change: impl FnOnce(&mut Command), words: &[&str]) {
    assert_program_refused(&Lifemon::find(), change, words);
}

#[track_caller]
fn assert_program_refused(lifemon: &Lifemon, change: impl FnOnce(&mut Command), words: &[&str]) {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let output = run_alone(lifemon, &["attach", &actor.pid().to_string()], change);
    assert_refused(&output, 3, words);
}

#[test]
fn no_such_process() {
    let mut sandbox_pid = {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "pause");
        actor.kill();
        actor.pid()
    };
    // Free for long enough only if it is not the next to be given.
    if proc::stat(sandbox_pid).is_some() {
        sandbox_pid = i32::MAX;
    }
    assert_target_refused(&sandbox_pid, 4, &[&sandbox_pid.to_string(), "ps -e"]);
    assert_target_refused(&i32::MAX, 4, &["2147483647", "ps -e"]);
}

#[test]
fn a_thread_is_told_from_its_process() {
    let (say, tid) = channel();
    let (end, wait) = channel::<()>();
    let thread = thread::spawn(move || {
        say.send(gettid()).expect("a listener");
        _ = wait.recv();
    });
    let tid = tid.recv().expect("a thread");
    let process = std::process::id().to_string();
    assert_target_refused(&tid, 4, &["thread", &format!("use {process}")]);
    drop(end);
    thread.join().expect("no panic");
}

#[test]
fn a_kernel_thread_is_no_process() {
    assert_target_refused(&2, 4, &["kernel thread"]);
}

#[test]
fn what_is_no_pid_is_a_usage_error() {
    assert_target_refused(&0, 2, &["0", "process"]);
    for garbage in [
        "python3",
        "12x",
        "12@",
        "12@x",
        "4294967297",
        "99999999999999999999",
    ] {
        assert_target_refused(&garbage, 2, &[garbage, "PID@START_NS"]);
    }
}

#[test]
fn another_start_is_another_process() {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid();
    let words = ["another process now", &format!("{pid}@")];
    assert_target_refused(&format!("{pid}@1"), 4, &words);
    assert_target_refused(&"2147483647@1", 4, &["no process 2147483647@1"]);
}

#[test]
fn a_zombie_is_dead() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "pause");
    actor.send("exit 0");
    wait_until("a zombie", DEADLINE, || {
        proc::stat(actor.pid()).is_some_and(|stat| stat.state == 'Z')
    });
    assert_target_refused(&actor.pid(), 4, &["dead already", "reaped by its parent"]);
    actor.wait();
}

#[test]
fn nobody_is_told_to_be_root() {
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::at(readable_copy(&sandbox));
    assert_program_refused(&lifemon, handicap::as_nobody, &["sudo", "CAP_BPF"]);
    for action in ["on", "off", "status"] {
        let output = run_alone(&lifemon, &["track", action], handicap::as_nobody);
        assert_refused(&output, 3, &["sudo", "CAP_BPF"]);
    }
}

#[test]
fn root_without_the_capability_is_told_which() {
    let with = |kept: &'static [u64]| {
        move |command: &mut Command| handicap::with_capabilities(command, kept)
    };
    assert_refused_when(
        with(&[CAP_SYS_PTRACE]),
        &["CAP_BPF and CAP_PERFMON are missing", "sudo"],
    );
    assert_refused_when(with(&[CAP_PERFMON]), &["CAP_BPF is missing"]);
    assert_refused_when(with(&[CAP_BPF]), &["CAP_PERFMON is missing"]);

    // The two that it asks for are enough.
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let words = ["attach", &actor.pid().to_string(), "--for", "1ms"];
    let output = run_alone(&Lifemon::find(), &words, with(&[CAP_BPF, CAP_PERFMON]));
    if can_preempt_tracepoints() && paranoia() > 2 {
        println!("skipped: this kernel is set to let administrators alone open tracepoints");
        assert_refused(&output, 3, &["CAP_SYS_ADMIN", "kernel.perf_event_paranoid"]);
        return;
    }
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
}

/// What users may measure: above 2 (of some distributions' kernels) not even what `CAP_PERFMON`
/// allows.
fn paranoia() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// With a directory that holds these files in the place of another.
fn with_files_over(
    sandbox: &Sandbox,
    over: &'static str,
    files: &[(&str, &[u8])],
) -> impl FnOnce(&mut Command) + use<> {
    let directory = sandbox.directory().join("over");
    fs::create_dir(&directory).expect("a directory");
    for (name, content) in files {
        fs::write(directory.join(name), content).expect("a file");
    }
    move |command| handicap::with_directory_over(command, &directory, over)
}

#[test]
fn a_kernel_without_types() {
    let sandbox = Sandbox::new();
    let change = with_files_over(&sandbox, BTF_DIRECTORY, &[]);
    assert_refused_when(
        change,
        &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"],
    );
}

#[test]
fn types_that_are_garbage() {
    let real = fs::read(Path::new(BTF_DIRECTORY).join("vmlinux")).expect("the kernel's types");
    // An honest header before nonsense, as well.
    let half_honest: Vec<_> = real[..24].iter().copied().chain([0xff; 4096]).collect();
    let garbage: [&[u8]; 7] = [
        b"",
        b"nonsense",
        &[0xff; 4096],
        &half_honest,
        &real[..24],
        &real[..real.len() / 2],
        &real[..real.len() - 1],
    ];
    for content in garbage {
        let sandbox = Sandbox::new();
        let change = with_files_over(&sandbox, BTF_DIRECTORY, &[("vmlinux", content)]);
        assert_refused_when(
            change,
            &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"],
        );
    }
}

#[test]
fn a_kernel_that_is_too_old() {
    assert_refused_when(handicap::on_an_old_kernel, &["2.6", "5.15", "newer kernel"]);
}

#[test]
fn a_kernel_that_is_locked_down() {
    let sandbox = Sandbox::new();
    let modes = [("lockdown", &b"none integrity [confidentiality]\n"[..])];
    let change = with_files_over(&sandbox, "/sys/kernel/security", &modes);
    assert_refused_when(change, &["lockdown=integrity"]);

    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let modes = [("lockdown", &b"none [integrity] confidentiality\n"[..])];
    let change = with_files_over(&sandbox, "/sys/kernel/security", &modes);
    let pid = actor.pid().to_string();
    let output = run_alone(&Lifemon::find(), &["attach", &pid, "--for", "1ms"], change);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_container_has_other_pids() {
    assert_refused_when(handicap::in_a_pid_namespace, &["pid namespace", "hostPID"]);
}
