//! How the commands behave whatever they are asked: how they end, what they print, for whom there
//! is colour, and what the doctor finds.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::{fs, io};

use lifemon_tests::handicap::{self, readable_copy};
use lifemon_tests::reports::{Check, DoctorReport};
use lifemon_tests::{
    Actor, DEADLINE, HostTracker, Lifemon, Sandbox, actor, needs, proc, run_alone, wait_until,
};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;

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
        let full = fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let output = run_alone(&Lifemon::find(), words, |command| {
            command.stdout(Stdio::from(full));
        });
        let lines = output.stderr.lines().count();
        assert_eq!((output.code, lines), (Some(1), 1), "{output:?}");
        for word in ["standard output", "No space left on device"] {
            assert!(output.stderr.contains(word), "{output:?}");
        }
    }
}

#[test]
fn a_signal_ends_it_with_a_summary() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let host = HostTracker::off();
        let sandbox = Sandbox::new();
        let actor = actor!(sandbox, "pause");
        let mut stream = Lifemon::find().attach(&actor.pid(), &[]);
        stream.attached();
        stream.signal(signal);
        let finished = stream.finish();
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
        let last = finished.detached();
        assert_eq!(last.summary.alive, 1, "{last:?}");
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
        assert_eq!(
            (help.code, help.stderr.as_str()),
            (Some(0), ""),
            "{words:?}"
        );
        let has_example = help
            .stdout
            .lines()
            .skip_while(|line| !line.starts_with("Example"))
            .any(|line| line.contains("lifemon "));
        assert!(has_example, "{words:?}: {}", help.stdout);
        assert!(
            help.stdout.contains("Usage: "),
            "{words:?}: {}",
            help.stdout
        );
        let children = commands(&help.stdout);
        left.extend(
            children
                .into_iter()
                .map(|child| [&words[..], &[child]].concat()),
        );
        seen.push(words.join(" "));
    }
    for command in [
        "attach",
        "track",
        "track on",
        "track off",
        "track status",
        "doctor",
        "completions",
        "man",
    ] {
        assert!(
            seen.iter().any(|known| known == command),
            "no {command} in {seen:?}"
        );
    }
}

#[test]
fn the_version_names_a_commit() {
    let output = Lifemon::find().run(["--version"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let commit = output
        .stdout
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'));
    let (commit, _) = commit.unwrap_or_else(|| panic!("no commit: {output:?}"));
    let hex = commit.strip_suffix("-dirty").unwrap_or(commit);
    let is_hex = hex.len() >= 7 && hex.chars().all(|digit| digit.is_ascii_hexdigit());
    assert!(
        output.stdout.starts_with("lifemon ") && is_hex,
        "{output:?}"
    );
}

#[test]
fn completions_and_manual_are_printed() {
    let lifemon = Lifemon::find();
    for words in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
    ] {
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
    let output = run_alone(&Lifemon::find(), &["doctor", "-o", "json"], |_| {});
    let report: DoctorReport = output.success();
    assert_eq!((report.schema.as_str(), report.ok), ("lifemon/2", true));
    assert!(report.checks.len() >= 5, "{report:?}");
    for check in &report.checks {
        let state = check.state.as_str();
        assert!(["ok", "degraded"].contains(&state), "{check:?}");
        assert!(
            !check.name.is_empty() && !check.detail.is_empty(),
            "{check:?}"
        );
    }
}

#[test]
fn the_doctor_has_a_remedy_for_nobody() {
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::at(readable_copy(&sandbox));
    let output = run_alone(&lifemon, &["doctor", "-o", "json"], handicap::as_nobody);
    assert_eq!((output.code, output.stderr.as_str()), (Some(1), ""));
    let report: DoctorReport = output.report();
    assert!(!report.ok, "{report:?}");
    let has_remedy = |check: &Check| check.remedy.as_ref().is_some_and(|text| text.len() > 5);
    let mut lacking = report.checks.iter().filter(|check| check.state != "ok");
    assert!(lacking.all(has_remedy), "{report:?}");
    let privileges = report.check("privileges");
    assert_eq!(privileges.state, "failed", "{report:?}");
    let remedy = privileges.remedy.as_deref().expect("checked");
    assert!(remedy.contains("sudo"), "{remedy}");
}

/// Returns what a command prints on a terminal with so many columns.
fn on_a_terminal<'a>(
    words: impl IntoIterator<Item = &'a str>,
    columns: u16,
    change: impl FnOnce(&mut Command),
) -> String {
    let lifemon = Lifemon::find();
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None).expect("a terminal");
    let mut command = lifemon.command(words);
    command.stdout(Stdio::from(pty.slave));
    // Where CI is set, terminals that are `dumb` have colour too.
    command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .env_remove("CI");
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

#[track_caller]
fn assert_colour(text: &str, expected: bool) {
    assert!(text.contains("privileges"), "{text}");
    assert_eq!(text.contains('\x1b'), expected, "{text}");
}

#[test]
fn colour_is_for_terminals_that_want_it_and_for_those_who_ask() {
    needs!(private_tracker);
    let doctor = |options: &[&'static str], name: &str, value: &str| {
        let words = ["doctor"].into_iter().chain(options.iter().copied());
        on_a_terminal(words, 80, |command| _ = command.env(name, value))
    };
    assert_colour(&doctor(&[], "NOTHING", ""), true);
    assert_colour(&doctor(&[], "NO_COLOR", "1"), false);
    assert_colour(&doctor(&[], "TERM", "dumb"), false);
    assert_colour(&doctor(&["--color", "never"], "NOTHING", ""), false);
    assert_colour(&doctor(&["--color", "always"], "NO_COLOR", "1"), true);
    let lifemon = Lifemon::find();
    assert_colour(&lifemon.run(["doctor"]).stdout, false);
    assert_colour(&lifemon.run(["doctor", "--color", "always"]).stdout, true);
    let mut command = lifemon.command(["doctor"]);
    command.env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
    assert_colour(&lifemon.start(command).finish(DEADLINE).stdout, true);
}

#[test]
fn lines_fit_the_terminal() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 3);
    actor.step();
    let pid = actor.pid().to_string();
    for columns in [40, 60, 100] {
        let text = on_a_terminal(["tree", &pid], columns, |command| {
            _ = command.env("NO_COLOR", "1");
        });
        let widths = text.lines().map(|line| line.trim_end().chars().count());
        assert!(
            widths.clone().max() <= Some(columns.into()),
            "{columns}: {text}"
        );
        assert!(
            text.contains(&pid) && widths.count() >= 2,
            "{columns}: {text}"
        );
    }
    // A pipe has no width.
    let whole = Lifemon::find().run(["tree", &pid]).stdout;
    assert!(
        whole.lines().any(|line| line.chars().count() > 60),
        "{whole}"
    );
}
