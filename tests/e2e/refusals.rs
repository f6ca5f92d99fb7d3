//! Where lifemon cannot or must not work: the exit code, one line that names the remedy, and
//! nothing left in the kernel. And how it ends when it is ended: quietly, and completely.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::{fs, io, thread};

use lifemon_tests::{
    Actor, DEADLINE, HostTracker, Lifemon, Output, Sandbox, actor, handicap, private_lock, proc,
    wait_until,
};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::unistd::gettid;
use serde_json::Value;

const BTF_DIRECTORY: &str = "/sys/kernel/btf";
const CAP_SYS_PTRACE: u64 = 19;

/// Runs a changed command to its end, with nothing of lifemon in the kernel before and after.
fn run(lifemon: &Lifemon, words: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let _host = HostTracker::off();
    let mut command = lifemon.command(words);
    command.env("RUST_BACKTRACE", "1");
    change(&mut command);
    lifemon.start(command).finish(DEADLINE)
}

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
fn assert_target_refused(target: impl ToString, code: i32, words: &[&str]) {
    let output = run(&Lifemon::find(), &["attach", &target.to_string()], |_| {});
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
    let output = run(lifemon, &["attach", &actor.pid().to_string()], change);
    assert_refused(&output, 3, words);
}

/// Where everybody may read it.
fn public_copy(sandbox: &Sandbox) -> PathBuf {
    let copy = sandbox.directory().join("lifemon");
    // By a program of its own: a descriptor of ours that writes to the copy could be inherited by
    // a process that another test forks now, and then the copy could not be executed.
    let copied = Command::new("install").args(["-m", "755"]).arg(Lifemon::find().program()).arg(&copy).status();
    assert!(copied.expect("install").success());
    copy
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
    assert_target_refused(sandbox_pid, 4, &[&sandbox_pid.to_string(), "ps -e"]);
    assert_target_refused(i32::MAX, 4, &["2147483647", "ps -e"]);
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
    assert_target_refused(tid, 4, &["thread", &format!("use {process}")]);
    drop(end);
    thread.join().expect("no panic");
}

#[test]
fn a_kernel_thread_is_no_process() {
    assert_target_refused(2, 4, &["kernel thread"]);
}

#[test]
fn what_is_no_pid_is_a_usage_error() {
    assert_target_refused(0, 2, &["0", "process"]);
    for garbage in ["python3", "12x", "12@", "12@x", "4294967297", "99999999999999999999"] {
        assert_target_refused(garbage, 2, &[garbage, "PID@START_NS"]);
    }
}

#[test]
fn another_start_is_another_process() {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid();
    let words = ["another process now", &format!("{pid}@")];
    assert_target_refused(format!("{pid}@1"), 4, &words);
    assert_target_refused("2147483647@1", 4, &["no process 2147483647@1"]);
}

#[test]
fn a_zombie_is_dead() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "pause");
    actor.send("exit 0");
    wait_until("a zombie", DEADLINE, || {
        proc::stat(actor.pid()).is_some_and(|stat| stat.state == 'Z')
    });
    assert_target_refused(actor.pid(), 4, &["dead already", "reaped by its parent"]);
    actor.wait();
}

#[test]
fn nobody_is_told_to_be_root() {
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::at(public_copy(&sandbox));
    assert_program_refused(&lifemon, handicap::as_nobody, &["sudo", "CAP_BPF"]);
    for action in ["on", "off", "status"] {
        let output = run(&lifemon, &["track", action], handicap::as_nobody);
        assert_refused(&output, 3, &["sudo", "CAP_BPF"]);
    }
}

#[test]
fn root_without_the_capability_is_told_which() {
    let without = |command: &mut Command| handicap::with_one_capability(command, CAP_SYS_PTRACE);
    assert_refused_when(without, &["CAP_BPF", "CAP_PERFMON"]);
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
    assert_refused_when(change, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"]);
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
        assert_refused_when(change, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"]);
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
    let output = run(&Lifemon::find(), &["attach", &pid, "--for", "1ms"], change);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_container_has_other_pids() {
    assert_refused_when(handicap::in_a_pid_namespace, &["pid namespace", "hostPID"]);
}

/// Makes events until lifemon has ended, since only a write shows it that nobody reads.
fn provoke(actor: &mut Actor, mut has_ended: impl FnMut() -> bool) {
    wait_until("the end of lifemon", DEADLINE, || {
        actor.command("spawn-mid");
        has_ended()
    });
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for format in ["json", "text"] {
        let host = HostTracker::off();
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "nested");
        actor.step();
        let lifemon = Lifemon::find();
        let mut command = lifemon.command(["attach", &actor.pid().to_string(), "-o", format]);
        let (reader, writer) = io::pipe().expect("a pipe");
        command.stdout(writer);
        let running = lifemon.start(command);
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        assert!(reader.read_line(&mut line).expect("a line") > 0);
        drop(reader);
        let pid = running.pid();
        provoke(&mut actor, || !proc::is_running(pid));
        let output = running.finish(DEADLINE);
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
        host.before().assert_nothing_since();
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid().to_string();
    let words: [&[&str]; 6] = [
        &["attach", &pid],
        &["attach", &pid, "-o", "json"],
        &["track", "off"],
        &["doctor"],
        &["completions", "bash"],
        &["man"],
    ];
    for words in words {
        let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = run(&Lifemon::find(), words, |command| {
            command.stdout(Stdio::from(full));
        });
        assert_refused(&output, 1, &["standard output", "No space left on device"]);
    }
}

#[test]
fn a_signal_ends_it_with_a_summary() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let host = HostTracker::off();
        let sandbox = Sandbox::new();
        let actor = actor!(sandbox, "pause");
        let words = ["attach", &actor.pid().to_string(), "-o", "json"];
        let mut stream = Lifemon::find().stream(words);
        stream.wait_for("attached", |event| event["event"] == "attached");
        stream.signal(signal);
        let finished = stream.finish();
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
        let last = finished.events.last().expect("a summary");
        assert_eq!(last["event"], "detached", "{last}");
        assert_eq!(last["summary"]["alive"], 1, "{last}");
        host.before().assert_nothing_since();
    }
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    list.take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_help_shows_an_example() {
    let lifemon = Lifemon::find();
    let mut left: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = Vec::new();
    while let Some(words) = left.pop() {
        let help = lifemon.run(words.iter().map(String::as_str).chain(["--help"]));
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""), "{words:?}");
        let has_example = help.stdout.lines().skip_while(|line| !line.starts_with("Example")).any(|line| line.contains("lifemon "));
        assert!(has_example, "{words:?}: {}", help.stdout);
        assert!(help.stdout.contains("Usage: lifemon"), "{words:?}: {}", help.stdout);
        let children = commands(&help.stdout);
        left.extend(children.into_iter().map(|child| [&words[..], &[child]].concat()));
        seen.push(words.join(" "));
    }
    for command in ["attach", "track", "track on", "track off", "track status", "doctor", "completions", "man"] {
        assert!(seen.iter().any(|known| known == command), "no {command} in {seen:?}");
    }
}

#[test]
fn the_version_names_a_commit() {
    let output = Lifemon::find().run(["--version"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let commit = output.stdout.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let (commit, _) = commit.unwrap_or_else(|| panic!("no commit: {output:?}"));
    let hex = commit.strip_suffix("-dirty").unwrap_or(commit);
    let is_hex = hex.len() >= 7 && hex.chars().all(|digit| digit.is_ascii_hexdigit());
    assert!(output.stdout.starts_with("lifemon ") && is_hex, "{output:?}");
}

#[test]
fn completions_and_manual_are_printed() {
    let lifemon = Lifemon::find();
    for words in [&["completions", "bash"][..], &["completions", "zsh"], &["completions", "fish"], &["man"]] {
        let output = lifemon.run(words);
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
        for word in ["lifemon", "attach", "track", "doctor"] {
            assert!(output.stdout.contains(word), "{words:?} lacks {word}");
        }
    }
    let usage = lifemon.run(["completions", "tcsh"]);
    assert_eq!((usage.code, usage.stdout.as_str()), (Some(2), ""));
}

#[test]
fn the_doctor_finds_this_host_well() {
    let output = run(&Lifemon::find(), &["doctor", "-o", "json"], |_| {});
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let report = output.json();
    assert_eq!((&report["schema"], &report["ok"]), (&"lifemon/1".into(), &true.into()));
    let checks = report["checks"].as_array().expect("checks");
    assert!(checks.len() >= 5, "{report}");
    for check in checks {
        let state = check["state"].as_str().unwrap_or_else(|| panic!("no state: {check}"));
        assert!(["ok", "degraded"].contains(&state), "{check}");
        assert!(check["name"].is_string() && check["detail"].is_string(), "{check}");
    }
}

#[test]
fn the_doctor_has_a_remedy_for_nobody() {
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::at(public_copy(&sandbox));
    let output = run(&lifemon, &["doctor", "-o", "json"], handicap::as_nobody);
    assert_eq!((output.code, output.stderr.as_str()), (Some(1), ""));
    let report = output.json();
    assert_eq!(report["ok"], false);
    let checks = report["checks"].as_array().expect("checks").iter();
    let failed: Vec<_> = checks.clone().filter(|check| check["state"] == "failed").collect();
    assert!(failed.iter().any(|check| check["name"] == "privileges"), "{report}");
    let has_remedy = |check: &Value| check["remedy"].as_str().is_some_and(|text| text.len() > 5);
    assert!(checks.filter(|check| check["state"] != "ok").all(has_remedy), "{report}");
    let privileges = failed.iter().find(|check| check["name"] == "privileges");
    assert!(privileges.is_some_and(|check| check["remedy"].as_str().is_some_and(|text| text.contains("sudo"))));
}

/// What `doctor` prints on a terminal.
fn on_a_terminal(change: impl FnOnce(&mut Command)) -> String {
    let lifemon = Lifemon::find();
    let pty = openpty(None, None).expect("a terminal");
    let mut command = lifemon.command(["doctor"]);
    command.stdout(Stdio::from(pty.slave));
    change(&mut command);
    // The command, and with it our end of the slave, is dropped here.
    let running = lifemon.start(command);
    let mut text = Vec::new();
    // Ends with EIO when lifemon, the last that has the slave, has ended.
    _ = fs::File::from(pty.master).read_to_end(&mut text);
    let output = running.finish(DEADLINE);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    String::from_utf8(text).expect("text")
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let _lock = private_lock();
    let has_colour = |text: &str| text.contains('\x1b');
    let coloured = on_a_terminal(|command| _ = command.env_remove("NO_COLOR"));
    assert!(coloured.contains("privileges") && has_colour(&coloured), "{coloured}");
    let plain = on_a_terminal(|command| _ = command.env("NO_COLOR", "1"));
    assert!(plain.contains("privileges") && !has_colour(&plain), "{plain}");
    let piped = Lifemon::find().run(["doctor"]);
    assert!(piped.stdout.contains("privileges") && !has_colour(&piped.stdout), "{piped:?}");
}
