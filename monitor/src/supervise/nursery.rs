//! The nursery: the parent of the commands. It starts them, passes signals on, reaps, and when its
//! owner asks for it, or is dead, it ends everything below itself. It has one thread, its own
//! process group, and all signals blocked: Ctrl-C and signals to groups do not take it along.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::descendants;
use super::ending::{Ending, Rest};
use super::message::{Channel, Notice, Order, Request, Spec};
use super::spawn::{Group, Place, spawn};
use crate::ProcessId;
use crate::proc;
use crate::sys::child::{self, become_subreaper, lead_group, set_name};
use crate::sys::descriptor::keep_on_exec;
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::pidfd;
use crate::sys::poll::wait_for;
use crate::sys::signals::{self, Signals};

/// By this first argument the program is asked to be a nursery.
const ASKED: &str = "lifemon-nursery";

/// How often the walk of one kill is repeated: each round takes what the round before has orphaned.
const KILL_ROUNDS: usize = 1_000;

/// What an executed nursery is told first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Brief {
    /// The commands.
    pub(crate) specs: Vec<Spec>,
}

/// The words that make this program a nursery on this descriptor.
pub(crate) fn words(channel: i32) -> (&'static str, String) {
    (ASKED, channel.to_string())
}

/// Does not return if this process was started to be a nursery. The first line of `main` of every
/// program that uses [`crate::manager::ProcessManager`]: the nursery is the same program, executed
/// anew, so that no copy of a threaded program runs on.
pub fn run_if_asked() {
    let mut words = std::env::args_os();
    if words.next().is_none_or(|word| word != ASKED) {
        return;
    }
    let fd = words.next().and_then(|word| word.to_str()?.parse().ok());
    let code = match fd.map(executed) {
        Some(Ok(())) => 0,
        Some(Err(error)) => {
            eprintln!("lifemon nursery: {error}");
            1
        }
        None => 2,
    };
    std::process::exit(code);
}

fn executed(fd: i32) -> io::Result<()> {
    keep_on_exec(fd, false)?;
    // SAFETY: the parent has made this descriptor for us, and nobody else here uses it.
    let mut channel = Channel::new(UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    let (_, before) = Signals::block()?;
    let brief = loop {
        let (mut briefs, is_open) = channel.receive::<Brief>()?;
        match briefs.pop() {
            Some(brief) => break brief,
            None if is_open => {}
            None => return Ok(()),
        }
    };
    for fd in brief.specs.iter().filter_map(|spec| spec.inherited) {
        keep_on_exec(fd, false)?;
    }
    let place = Place {
        group: Group::Own,
        before,
    };
    serve(channel, &brief.specs, place)
}

/// A command that was started.
struct Worker {
    pid: u32,
    is_alive: bool,
}

struct Nursery {
    channel: Channel,
    signals: Signals,
    owner: Option<OwnedFd>,
    workers: Vec<Worker>,
    ending: Option<Ending>,
    owner_is_dead: bool,
}

/// Runs the nursery to its end. All signals are blocked, and this process has one thread.
///
/// # Errors
/// When the kernel refuses what it needs.
pub(crate) fn serve(channel: Channel, specs: &[Spec], place: Place) -> io::Result<()> {
    set_name(c"lifemon-nursery");
    let parent = parent_id();
    let owner = pidfd::open(parent).ok();
    let is_same = parent_id() == parent;
    lead_group()?;
    become_subreaper()?;
    let mut nursery = Nursery {
        channel,
        signals: Signals::open()?,
        owner: owner.filter(|_| is_same),
        workers: Vec::new(),
        ending: None,
        owner_is_dead: false,
    };
    for (worker, spec) in specs.iter().enumerate() {
        nursery.start(worker, spec, place);
    }
    // After the commands, which have the limits of whoever started this.
    raise_descriptor_limit();
    nursery.run()
}

impl Nursery {
    fn start(&mut self, worker: usize, spec: &Spec, place: Place) {
        let started = spawn(spec, place);
        if let Some(fd) = spec.inherited {
            // SAFETY: it was opened for this worker alone, which has its own copy by now.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        match started {
            Ok(pid) => {
                self.workers.push(Worker {
                    pid,
                    is_alive: true,
                });
                let start_ns = proc::identify(pid).map_or(0, |id| id.start_ns);
                self.say(&Notice::Started {
                    worker,
                    pid,
                    start_ns,
                });
            }
            Err(error) => {
                self.workers.push(Worker {
                    pid: 0,
                    is_alive: false,
                });
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.say(&Notice::Failed { worker, errno });
            }
        }
    }

    /// An owner that does not hear is dead, which the next wait tells.
    fn say(&mut self, notice: &Notice) {
        let _ = self.channel.send(notice);
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let [by_signal, by_owner, by_death, by_killer] = self.wait()?;
            if by_owner {
                self.hear();
            }
            if by_death {
                self.lose_owner();
            }
            if by_killer && let Some(ending) = &mut self.ending {
                ending.read_killer();
            }
            if by_signal {
                self.signals.read()?;
            }
            // Also without a signal: a SIGCHLD that was pending counts for many.
            self.reap();
            if let Some(rest) = self.ending.as_mut().and_then(Ending::step) {
                self.finish(rest);
                return Ok(());
            }
        }
    }

    /// Which of these it was: a signal, a message, the owner's death, the killer.
    fn wait(&self) -> io::Result<[bool; 4]> {
        let ending = self.ending.as_ref();
        let owner = self.owner.as_ref().map(OwnedFd::as_fd);
        let sources = [
            Some(self.signals.fd()),
            Some(self.channel.stream().as_fd()).filter(|_| !self.owner_is_dead),
            owner.filter(|_| !self.owner_is_dead),
            ending.and_then(Ending::killer_fd),
        ];
        wait_for(sources, ending.map(Ending::wait))
    }

    fn hear(&mut self) {
        let Ok((requests, is_open)) = self.channel.receive::<Request>() else {
            return self.lose_owner();
        };
        for request in requests {
            match request {
                Request::Signal {
                    worker,
                    signal,
                    group,
                } => self.signal(worker, signal, group),
                Request::Kill { pid, start_ns } => self.kill(ProcessId::new(pid, start_ns)),
                Request::End(order) => {
                    self.ending.get_or_insert_with(|| Ending::begin(order));
                }
                Request::Hurry => {
                    if let Some(ending) = &mut self.ending {
                        ending.hurry();
                    }
                }
            }
        }
        if !is_open {
            self.lose_owner();
        }
    }

    /// Everything ends at once.
    fn lose_owner(&mut self) {
        if self.owner_is_dead {
            return;
        }
        self.owner_is_dead = true;
        self.ending
            .get_or_insert_with(|| Ending::begin(Order::default()))
            .hurry();
    }

    /// An unreaped child keeps its pid, and a process group exists as long as its leader is not
    /// reaped: so both signals hit whom they mean.
    fn signal(&self, worker: usize, signal: i32, group: bool) {
        let Some(worker) = self.workers.get(worker).filter(|worker| worker.is_alive) else {
            return;
        };
        // One that is dying does not need it.
        let _ = signals::send_to_child(worker.pid, signal, group);
    }

    /// Kills one process below this one, and what is below it. First all of it is stopped, so that
    /// what has a parent keeps it, and none is missed; then all of it is killed, through the descriptors
    /// by which it was stopped.
    fn kill(&mut self, root: ProcessId) {
        let pid = root.pid;
        let is_meant = |id: ProcessId| id.pid == pid && proc::owns_pid(root);
        let mut hit = HashMap::new();
        for _ in 0..KILL_ROUNDS {
            let mut below = HashSet::new();
            let mut found_new = false;
            for descendant in descendants::of_this_process(None) {
                let id = descendant.id;
                let parent = proc::parent(id);
                if !is_meant(id) && !parent.is_some_and(|parent| below.contains(&parent)) {
                    continue;
                }
                below.insert(id.pid);
                if let Entry::Vacant(place) = hit.entry(id) {
                    found_new |= descendant.signal(libc::SIGSTOP).is_ok();
                    place.insert(descendant);
                }
            }
            if !found_new {
                break;
            }
        }
        let killed = hit.values().map(|hit| hit.signal(libc::SIGKILL));
        let count = killed.filter(|killed| matches!(killed, Ok(true))).count();
        self.say(&Notice::Killed { pid, count });
    }

    fn reap(&mut self) {
        while let Some((pid, status)) = child::wait_any() {
            let worker = self
                .workers
                .iter()
                .position(|worker| worker.is_alive && worker.pid == pid);
            if libc::WIFSTOPPED(status) {
                if let Some(worker) = worker {
                    let signal = libc::WSTOPSIG(status);
                    self.say(&Notice::Stopped { worker, signal });
                }
                continue;
            }
            if let Some(worker) = worker {
                self.workers[worker].is_alive = false;
                self.say(&Notice::Died { worker, status });
            }
            if let Some(ending) = &mut self.ending {
                ending.reaped(pid, status);
            }
        }
    }

    fn finish(&mut self, rest: Rest) {
        if self.owner_is_dead {
            let (killed, left) = (rest.killed.len(), rest.survivors.len());
            let _ = writeln!(
                io::stderr(),
                "lifemon: its owner is dead: {killed} processes killed, {left} left"
            );
            return;
        }
        let _ = self
            .channel
            .stream()
            .set_write_timeout(Some(Duration::from_mins(1)));
        self.say(&Notice::Ended(rest));
    }
}

/// A nursery that is forked: for a process with one thread and all signals blocked.
pub(super) fn fork_nursery(spec: &Spec, place: Place) -> io::Result<(u32, Channel)> {
    let (ours, its) = UnixStream::pair()?;
    if let Some(pid) = child::fork()? {
        return Ok((pid, Channel::new(ours)));
    }
    drop(ours);
    let result = serve(Channel::new(its), std::slice::from_ref(spec), place);
    if let Err(error) = &result {
        let _ = writeln!(io::stderr(), "lifemon nursery: {error}");
    }
    child::exit(i32::from(result.is_err()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_no_nursery() {
        run_if_asked();
        assert_eq!(words(7), (ASKED, "7".to_owned()));
    }
}
