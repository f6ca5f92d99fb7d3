//! `lifemon run` at a terminal: a pseudo-terminal with a shell that has job control, as a user has
//! it. Every step waits for what the terminal shows.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use lifemon_tests::killing::{alive, assert_nobody};
use lifemon_tests::{DEADLINE, Lifemon, Sandbox, proc, wait_until};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";
const PROMPT: &str = "ready> ";

/// An interactive shell at a terminal of its own.
struct Terminal {
    shell: Child,
    master: File,
    shown: String,
}

/// Both ends, which no other process inherits: the last master that is closed hangs up.
fn pseudo_terminal() -> nix::Result<(File, File)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname_r(&master)?;
    let slave = nix::fcntl::open(path.as_str(), flags, Mode::empty())?;
    Ok((OwnedFd::from(master).into(), slave.into()))
}

impl Terminal {
    fn open(sandbox: &Sandbox) -> Self {
        let (master, slave) = pseudo_terminal().expect("a pseudo-terminal");
        let mut command = Command::new("sh");
        let slave = || Stdio::from(slave.try_clone().expect("a copy"));
        command
            .args(["-i"])
            .env("PS1", PROMPT)
            .env("LIFEMON", Lifemon::find().program())
            .env_remove("ENV")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave());
        sandbox.enter(&mut command);
        // SAFETY: system calls only.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // A job in the background ignores them, and that is inherited: at a terminal nobody
                // does.
                for keyboard in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP] {
                    signal(keyboard, SigHandler::SigDfl)?;
                }
                if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let shell = command.spawn().expect("a shell");
        let mut terminal = Self {
            shell,
            master,
            shown: String::new(),
        };
        terminal.wait_for(PROMPT);
        terminal
    }

    fn enter(&mut self, line: &str) {
        self.press(&format!("{line}\n"));
    }

    fn press(&mut self, keys: &str) {
        self.master
            .write_all(keys.as_bytes())
            .expect("the terminal");
    }

    /// Waits for this text after all that was waited for before.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "no {text:?} in {:?}",
                self.shown
            );
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100_u8)) == Ok(1) {
                let mut bytes = [0; 4096];
                let count = self.master.read(&mut bytes).unwrap_or(0);
                self.shown += &String::from_utf8_lossy(&bytes[..count]);
            }
        }
    }
}

/// Waits until the command sleeps.
#[track_caller]
fn wait_for_sleep(sandbox: &Sandbox) {
    let sleeps = |pid: &i32| {
        let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        name == b"sleep\n" && proc::stat(*pid).is_some_and(|stat| stat.state == 'S')
    };
    wait_until("the sleep", DEADLINE, || sandbox.pids().iter().any(sleeps));
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = self.shell.kill();
        _ = self.shell.wait();
    }
}

#[test]
fn the_command_is_at_the_terminal_and_ctrl_c_is_for_it() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    terminal.enter("$LIFEMON run -- sh -c 'test -t 0 && read a && echo got-$a; sleep 100'");
    terminal.press("word\n");
    terminal.wait_for("got-word");
    // A shell that is just starting a program takes an interrupt for its own, and then waits for
    // the program, which was too young to get it.
    wait_for_sleep(&sandbox);
    terminal.press(CTRL_C);
    terminal.wait_for(PROMPT);
    terminal.enter("echo code-$?");
    terminal.wait_for("code-130");
    terminal.enter("echo the-shell-${0:+has}-it-back");
    terminal.wait_for("the-shell-has-it-back");
}

#[test]
fn ctrl_c_ends_a_loop_and_a_script_as_without_it() {
    for before in ["", "$LIFEMON run -- "] {
        for script in [false, true] {
            let sandbox = Sandbox::new();
            let mut terminal = Terminal::open(&sandbox);
            let line = format!("for i in 1 2 3; do echo round-$((i+10)); {before}sleep 100; done");
            let line = if script {
                format!("sh -c '{line}'")
            } else {
                line
            };
            terminal.enter(&line);
            terminal.wait_for("round-11");
            wait_for_sleep(&sandbox);
            terminal.press(CTRL_C);
            terminal.wait_for(PROMPT);
            terminal.enter("echo code-$?");
            terminal.wait_for("code-130");
            assert!(!terminal.shown.contains("round-12"), "{before} {line}");
            wait_until("the shell alone", DEADLINE, || alive(&sandbox).len() == 1);
        }
    }
}

#[test]
fn a_command_that_stops_itself_gives_the_terminal_back() {
    for stop in ["TSTP", "STOP"] {
        for before in ["", "$LIFEMON run -- "] {
            let sandbox = Sandbox::new();
            let mut terminal = Terminal::open(&sandbox);
            terminal.enter(&format!(
                "{before}sh -c 'kill -{stop} $$; echo on-${{0:+again}}; exit 4'"
            ));
            terminal.wait_for("topped");
            terminal.wait_for(PROMPT);
            terminal.enter("fg");
            terminal.wait_for("on-again");
            terminal.wait_for(PROMPT);
            terminal.enter("echo code-$?");
            terminal.wait_for("code-4");
        }
    }
}

#[test]
fn with_a_group_of_its_own_the_command_is_at_the_terminal_all_the_same() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    terminal
        .enter("$LIFEMON run --group -- sh -c 'echo at-${0:+work}; read a; echo got-$a; exit 4'");
    terminal.wait_for("at-work");
    terminal.press(CTRL_Z);
    terminal.wait_for(PROMPT);
    terminal.enter("fg");
    terminal.press("word\n");
    terminal.wait_for("got-word");
    terminal.wait_for(PROMPT);
    terminal.enter("echo code-$?");
    terminal.wait_for("code-4");
}

#[test]
fn ctrl_z_stops_the_job_and_fg_takes_it_on() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    for _ in 0..3 {
        terminal.enter(
            "$LIFEMON run -- sh -c 'echo at-${0:+work}; read a; echo got-$a; exit 4'; echo code-$?",
        );
        terminal.wait_for("at-work");
        terminal.press(CTRL_Z);
        terminal.wait_for(PROMPT);
        terminal.enter("jobs; echo listed-$?");
        terminal.wait_for("topped");
        terminal.wait_for("listed-0");
        terminal.enter("fg; echo code-$?");
        terminal.press("again\n");
        terminal.wait_for("got-again");
        terminal.wait_for("code-4");
    }
}

#[test]
fn an_interactive_shell_as_the_command_has_its_own_jobs() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    terminal.enter("PS1='inner> ' $LIFEMON run -- sh -i; echo code-$?");
    terminal.wait_for("inner> ");
    terminal.enter("sleep 100");
    terminal.wait_for("sleep 100");
    wait_for_sleep(&sandbox);
    terminal.press(CTRL_Z);
    terminal.wait_for("inner> ");
    terminal.enter("jobs");
    terminal.wait_for("topped");
    // What the inner shell leaves, a stopped job, is killed with a report.
    terminal.enter("kill -CONT %1; exit 6");
    terminal.enter("exit 6");
    terminal.wait_for("code-6");
    wait_until("the outer shell alone", DEADLINE, || {
        alive(&sandbox).len() == 1
    });
}

#[test]
fn a_pager_in_a_pipeline_keeps_the_terminal() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    // The second of the pipe reads from the terminal, as a pager does.
    let pager = "sh -c 'cat; read a </dev/tty; echo got-$a'";
    terminal.enter(&format!(
        "$LIFEMON run -- echo first-${{0:+line}} | {pager}; echo code-$?"
    ));
    terminal.wait_for("first-line");
    terminal.press("key\n");
    terminal.wait_for("got-key");
    terminal.wait_for("code-0");
}

#[test]
fn ctrl_c_in_a_pipeline_reaches_the_command_once() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    let counts = "n=0; trap \"n=\\$((n+1)); echo hit-\\$n\" INT; echo at-${0:+work}; \
                  while [ $n -lt 1 ]; do sleep 0.05; done; sleep 0.5; echo end-$n";
    terminal.enter(&format!(
        "$LIFEMON run -- sh -c '{counts}' | (trap '' INT; cat)"
    ));
    terminal.wait_for("at-work");
    terminal.press(CTRL_C);
    terminal.wait_for("hit-1");
    terminal.wait_for("end-1");
}

#[test]
fn nested_at_a_terminal_both_stop_and_go_on() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    terminal.enter(
        "$LIFEMON run -- $LIFEMON run -- \
         sh -c 'echo at-${0:+work}; read a; echo got-$a; exit 5'; echo code-$?",
    );
    terminal.wait_for("at-work");
    terminal.press(CTRL_Z);
    terminal.wait_for(PROMPT);
    terminal.enter("fg; echo code-$?");
    terminal.press("word\n");
    terminal.wait_for("got-word");
    terminal.wait_for("code-5");
}

#[test]
fn a_terminal_that_hangs_up_ends_the_command() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox);
    terminal.enter("$LIFEMON run --grace 0 -- sh -c 'echo at-${0:+work}; sleep 100'");
    terminal.wait_for("at-work");
    terminal.master = File::open("/dev/null").expect("/dev/null");
    wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
    assert_nobody(&sandbox);
}
