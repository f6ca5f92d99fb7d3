//! The guardian: the parent of the commands. It starts them, passes signals on, reaps, and when its
//! owner asks for it, or is dead, it has everything below itself killed. It has one thread, its own
//! process group (that of a command also a session, unless the command has a group of its own), and
//! all signals blocked: Ctrl-C and signals to groups do not take it along.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::parent_id;
use std::time::Duration;

use super::launch::Launch;
use super::lend::{self, Lending};
use super::message::{Channel, Notice, Request, Spec};
use super::spawn::{Group, Place, spawn};
use super::stops::Stops;
use crate::ProcessId;
use crate::kill::ending::Ending;
use crate::kill::outcome::{Order, Rest};
use crate::kill::{kill_below, walk};
use crate::proc;
use crate::sys::child::{become_subreaper, lead_group, lead_session, leave_directory, set_name};
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::pidfd;
use crate::sys::poll::wait_for;
use crate::sys::signals::{self, SignalSet, Signals};
use crate::words::count;

/// A command that was started.
struct Worker {
    pid: u32,
    is_alive: bool,
}

/// What only the guardian of one command has.
struct Alone {
    /// Until the command is executed.
    launch: Option<Launch>,
    stops: Stops,
    /// The session of the owner and of the command.
    session: i32,
}

struct Guarding {
    channel: Channel,
    alone: Option<Alone>,
    signals: Signals,
    owner: Option<OwnedFd>,
    workers: Vec<Worker>,
    /// Of the guardian of one command.
    lending: Lending,
    /// The order to end what is left, until nothing is lent any more.
    order: Option<Order>,
    ending: Option<Ending>,
    owner_is_dead: bool,
}

/// Runs the guardian of workers to its end. All signals are blocked, and this process has one
/// thread.
///
/// # Errors
/// When the kernel refuses what it needs.
pub(crate) fn serve(channel: Channel, specs: &[Spec], place: Place) -> io::Result<()> {
    let mut guarding = Guarding::begin(channel)?;
    lead_group()?;
    for (worker, spec) in specs.iter().enumerate() {
        guarding.start(worker, spec, place);
    }
    // After the commands, which have the limits of whoever started this.
    raise_descriptor_limit();
    guarding.run()
}

/// Runs the guardian of one command to its end, as [`serve`] does. It begins in the process group
/// of its owner.
///
/// # Errors
/// As [`serve`].
pub(super) fn serve_command(channel: Channel, spec: &Spec, place: Place) -> io::Result<()> {
    let mut guarding = Guarding::begin(channel)?;
    if guarding.is_to_start()? {
        guarding.launch(spec, place)?;
        leave_directory();
        raise_descriptor_limit();
        guarding.run()
    } else {
        Ok(())
    }
}

impl Guarding {
    fn begin(channel: Channel) -> io::Result<Self> {
        // `comm` has 15 bytes.
        set_name(c"lifemon-guard");
        let parent = parent_id();
        let owner = pidfd::open(parent).ok();
        let is_same = parent_id() == parent;
        become_subreaper()?;
        Ok(Self {
            channel,
            alone: None,
            signals: Signals::open()?,
            owner: owner.filter(|_| is_same),
            workers: Vec::new(),
            lending: Lending::default(),
            order: None,
            ending: None,
            owner_is_dead: false,
        })
    }

    /// Waits until the witness is there; returns whether the owner still is.
    fn is_to_start(&mut self) -> io::Result<bool> {
        loop {
            let (requests, is_open) = self.channel.receive::<Request>()?;
            if requests.contains(&Request::Start) || !is_open {
                return Ok(is_open);
            }
        }
    }

    /// Starts the command, and leaves the process group of the owner. A command that shares this
    /// group is in it before the guardian has left: what the guardian has heard until then it has
    /// heard itself, or gets now, and what comes later it hears. One with a group of its own gets
    /// from the owner what comes to the owner's.
    fn launch(&mut self, spec: &Spec, place: Place) -> io::Result<()> {
        let is_shared = place.group == Group::Shared;
        let session = rustix::process::getsid(None)?.as_raw_nonzero().get();
        if !is_shared {
            lead_group()?;
        }
        let launch = Launch::begin(&spec.words, place);
        if is_shared {
            lead_session()?;
        }
        let heard = SignalSet::of(&self.signals.read()?);
        self.send(&Notice::Ready { heard });
        let mut launch = match launch {
            Ok(launch) => launch,
            Err(error) => {
                self.send(&failed(0, &error));
                return Ok(());
            }
        };
        self.lending = Lending::begin();
        launch.go(if is_shared {
            heard
        } else {
            SignalSet::default()
        });
        self.workers.push(Worker {
            pid: launch.pid,
            is_alive: true,
        });
        self.alone = Some(Alone {
            stops: Stops::new(parent_id(), launch.pid, !is_shared),
            launch: Some(launch),
            session,
        });
        Ok(())
    }

    /// Reports that the command is executed, or that it cannot be.
    fn finish_launch(&mut self) {
        let launch = self.alone.as_mut().and_then(|alone| alone.launch.take());
        let Some(launch) = launch else {
            return;
        };
        // Nobody else can have its pid before it is reaped here.
        let id = proc::identify(launch.pid).unwrap_or(ProcessId::new(launch.pid, 0));
        match launch.finish() {
            Ok(()) => self.send(&Notice::Started { worker: 0, id }),
            Err(error) => {
                self.workers[0].is_alive = false;
                self.send(&failed(0, &error));
            }
        }
    }

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
                // Nobody else can have its pid before it is reaped here.
                let id = proc::identify(pid).unwrap_or(ProcessId::new(pid, 0));
                self.send(&Notice::Started { worker, id });
            }
            Err(error) => {
                self.workers.push(Worker {
                    pid: 0,
                    is_alive: false,
                });
                self.send(&failed(worker, &error));
            }
        }
    }

    /// Sends a notice. An owner that does not take it is dead, which the next wait shows.
    fn send(&mut self, notice: &Notice) {
        let _ = self.channel.send(notice);
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let [
                by_signal,
                by_owner,
                by_death,
                by_killer,
                by_launch,
                by_asker,
            ] = self.wait()?;
            if by_launch {
                self.finish_launch();
            }
            if by_owner {
                self.receive();
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
            self.look_at_owner();
            if by_asker {
                self.lending.accept();
            }
            self.begin_ending();
            if let Some(rest) = self.ending.as_mut().and_then(Ending::step) {
                self.finish(rest);
                return Ok(());
            }
        }
    }

    /// Waits; returns what it was: a signal, a message, the owner's death, the killer, the launch,
    /// somebody who asks for a helper.
    fn wait(&self) -> io::Result<[bool; 6]> {
        let ending = self.ending.as_ref();
        let launch = self.alone.as_ref().and_then(|alone| alone.launch.as_ref());
        let looking = self.alone.as_ref().filter(|_| self.looks());
        let look = looking.map(|alone| alone.stops.pause());
        let look = self.order.as_ref().map(|_| lend::LOOK).or(look);
        let owner = self.owner.as_ref().map(OwnedFd::as_fd);
        let sources = [
            Some(self.signals.fd()),
            Some(self.channel.stream().as_fd()).filter(|_| !self.owner_is_dead),
            owner.filter(|_| !self.owner_is_dead),
            ending.and_then(Ending::killer_fd),
            launch.map(Launch::fd),
            self.lending.fd(),
        ];
        wait_for(sources, ending.map(Ending::wait).or(look))
    }

    /// Returns whether there is a command that stops with its owner.
    fn looks(&self) -> bool {
        let is_alive = self.workers.first().is_some_and(|worker| worker.is_alive);
        self.alone.is_some() && is_alive && !self.owner_is_dead
    }

    fn look_at_owner(&mut self) {
        let looking = self.looks().then_some(self.alone.as_mut()).flatten();
        let Some(owners) = looking.and_then(|alone| alone.stops.look()) else {
            return;
        };
        self.reap();
        if self.looks()
            && let Some(alone) = &mut self.alone
        {
            alone.stops.stop(owners);
        }
    }

    fn receive(&mut self) {
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
                Request::Kill { id } => {
                    let outcome = kill_below(id);
                    self.send(&Notice::Killed { id, outcome });
                }
                Request::Start => {}
                Request::End(order) => self.end(order),
                Request::Hurry => self.hurry(),
            }
        }
        if !is_open {
            self.lose_owner();
        }
    }

    /// Begins to end what is left, unless that has begun.
    fn end(&mut self, order: Order) {
        if self.ending.is_none() {
            self.order.get_or_insert(order);
            self.lending.dismiss();
        }
    }

    /// Ends the rest without a grace.
    fn hurry(&mut self) {
        self.lending.hurry();
        if let Some(order) = &mut self.order {
            order.signal = None;
        }
        if let Some(ending) = &mut self.ending {
            ending.hurry();
        }
    }

    /// Ends what is left, once no helper works on it any more.
    fn begin_ending(&mut self) {
        if self.lending.has_ended()
            && let Some(order) = self.order.take()
        {
            self.tell_of_daemons(&order);
            self.ending = Some(Ending::begin(order));
        }
    }

    /// Reports what is left in a session of its own, before it is ended.
    fn tell_of_daemons(&mut self, order: &Order) {
        let Some(alone) = self.alone.as_ref().filter(|_| !order.keep) else {
            return;
        };
        let left = proc::children(std::process::id()).unwrap_or_default();
        let is_daemon = |pid: u32| {
            let stat = proc::stat(pid).filter(|stat| !stat.is_gone());
            stat.is_some_and(|stat| stat.session.cast_signed() != alone.session)
        };
        if left.into_iter().any(is_daemon) {
            self.send(&Notice::Daemons);
        }
    }

    /// Ends everything at once.
    fn lose_owner(&mut self) {
        if self.owner_is_dead {
            return;
        }
        self.owner_is_dead = true;
        self.end(Order::default());
        self.hurry();
    }

    /// Hands a signal on. An unreaped child keeps its pid, and a process group exists as long as
    /// its leader is not reaped: so both signals hit whom they mean.
    fn signal(&mut self, worker: usize, signal: i32, group: bool) {
        let Some(worker) = self.workers.get(worker).filter(|worker| worker.is_alive) else {
            return;
        };
        if signal == libc::SIGCONT
            && let Some(alone) = &mut self.alone
            && !alone.stops.asked_to_go_on()
        {
            return;
        }
        // One that is dying does not need it.
        let _ = signals::send_to_child(worker.pid, signal, group);
    }

    fn reap(&mut self) {
        while let Some(reaped) = walk::reap() {
            // Until now the pid was that of the worker, if that was alive.
            let worker = self
                .workers
                .iter()
                .position(|worker| worker.is_alive && worker.pid == reaped.id.pid);
            if let Some(signal) = reaped.stopped_by() {
                if let Some(worker) = worker {
                    self.stopped(worker, signal);
                }
                continue;
            }
            if reaped.goes_on() {
                if let (Some(_), Some(alone)) = (worker, &mut self.alone) {
                    alone.stops.goes_on(self.owner.as_ref());
                }
                continue;
            }
            if self.lending.reaped(reaped.id.pid) {
                continue;
            }
            if let (Some(worker), Some(death)) = (worker, reaped.death()) {
                // Its end can be seen before the end of its launch.
                self.finish_launch();
                self.workers[worker].is_alive = false;
                self.send(&Notice::Died { worker, death });
                if let Some(alone) = &self.alone {
                    alone.stops.wake(self.owner.as_ref());
                }
            }
            if let Some(ending) = &mut self.ending {
                ending.reaped(&reaped);
            }
        }
    }

    fn stopped(&mut self, worker: usize, signal: i32) {
        if let Some(alone) = &mut self.alone
            && let Some(after) = alone.stops.stopped()
        {
            self.send(&Notice::Stopped {
                worker,
                signal,
                after,
            });
        }
    }

    /// Sends what became of the rest. Where the owner is dead this process has nobody else to
    /// report to than whoever reads its standard error.
    fn finish(&mut self, rest: Rest) {
        if self.owner_is_dead {
            let (killed, left) = (rest.killed.len(), rest.survivors.len());
            let _ = writeln!(
                io::stderr(),
                "lifemon: its owner is dead: {} killed, {left} left",
                count(killed, "process")
            );
            return;
        }
        let _ = self
            .channel
            .stream()
            .set_write_timeout(Some(Duration::from_mins(1)));
        self.send(&Notice::Ended(rest));
    }
}

/// Returns the notice that a command cannot be started.
fn failed(worker: usize, error: &io::Error) -> Notice {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    Notice::Failed { worker, errno }
}
