//! The helper: this program beside a server that has started its workers by itself, as servers in
//! Python do. It tells the server what happens to the trees of the workers, ends them on request,
//! and ends them when the server is dead, however it died.
//!
//! The workers are not its children: with eBPF it watches their trees, without it knows what
//! snapshots of `/proc` have shown ([`seen`]). It does not outlive the server by more than the kill
//! takes. Server and helper speak in frames of JSON over one socket, which is the helper's standard
//! input. A server that closes it without letting go first is taken for dead.
//!
//! Below `lifemon run` the guardian lends one to each server that asks: then it is a child of the
//! guardian, and knows the trees by [`marks`] where there is no eBPF.

mod marks;
mod message;
mod seen;
mod watched;

use std::collections::VecDeque;
use std::future::pending;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::time::Duration;

use tokio::time::interval;

use super::orphans::Survivors;
use crate::ProcessId;
use crate::kernel;
use crate::kernel::clock::{WallClock, boot_ns};
use crate::kill::{Survivor, kill_on_a_thread, kill_watched};
use crate::loss::{Incomplete, Loss};
use crate::proc;
use crate::session::{Session, Update};
use crate::supervise::frame::Frames;
use crate::supervise::message::encode;
use crate::sys::child::{leave_directory, set_name};
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::pidfd;
use crate::sys::runtime::current_thread;
use crate::sys::signals::Signals;
use crate::watch::What;
use crate::words::count;
use marks::Marks;
use message::{Notice, Received, Request, State, receive};
use seen::Seen;
use watched::{begin, below, have_reaped, next};

/// Longest time to go on killing.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval of the snapshots, where there is no eBPF.
const LOOK: Duration = Duration::from_millis(250);

/// Trees that are watched apart from each other: each takes a slot of the kernel half.
const SESSIONS_MAX: usize = 16;

/// Limit on the workers of a server below `lifemon run`.
const WORKERS_MAX: usize = 4_096;

/// The server that a helper below `lifemon run` is for.
#[derive(Debug)]
pub(crate) struct Asker {
    /// Its process.
    pub(crate) pid: u32,
    /// A descriptor of it.
    pub(crate) pidfd: OwnedFd,
}

struct Helper {
    use_ebpf: bool,
    workers: Vec<ProcessId>,
    sessions: Vec<Session>,
    /// Trees that are known by snapshots.
    seen: Seen,
    /// Why not all of them are watched with eBPF.
    why_not_ebpf: Option<String>,
    /// Set where something may have left a tree before it was watched.
    misses_history: bool,
    clock: WallClock,
    told: Option<State>,
    outbox: VecDeque<Vec<u8>>,
}

/// Runs the helper on this socket, until the server lets go of it, or is dead.
///
/// # Errors
/// When the kernel refuses what it needs.
#[doc(hidden)]
pub fn serve_helper(socket: UnixStream, use_ebpf: bool) -> io::Result<()> {
    set_name(c"lifemon-helper");
    // What ends a whole service, or the job at a terminal, is for the server: the helper ends with
    // that one, and not before.
    let _signals = Signals::block()?;
    leave_directory();
    raise_descriptor_limit();
    let server = parent_id();
    let owner = pidfd::open(server)?;
    let owner = (parent_id() == server).then_some(owner);
    let helper = Helper::new(use_ebpf, Seen::default());
    current_thread()?.block_on(helper.run(socket, owner, pending()))
}

/// Runs the helper in a child of the guardian of `lifemon run`, for a server below that, until the
/// server lets go of it, or is dead. When the guardian asks by SIGTERM, or is dead, it ends what a
/// dead server has left, and exits. All signals are blocked, and this process has one thread.
///
/// # Errors
/// As [`serve_helper`].
pub(crate) fn serve_lent(socket: UnixStream, asker: Asker, guardian: u32) -> io::Result<()> {
    set_name(c"lifemon-helper");
    let signals = Signals::open()?;
    let above = pidfd::open(guardian)?;
    let above = (parent_id() == guardian).then_some(above);
    let helper = Helper::new(true, Seen::below(Marks::new(guardian, asker.pid)));
    let owner = Some(asker.pidfd);
    current_thread()?.block_on(async {
        let signalled = signals.wait_for(libc::SIGTERM)?;
        let dismissed = async {
            tokio::select! {
                () = signalled => {}
                () = wait_for_end(above) => {}
            }
        };
        helper.run(socket, owner, dismissed).await
    })
}

impl Helper {
    fn new(use_ebpf: bool, seen: Seen) -> Self {
        Self {
            use_ebpf,
            workers: Vec::new(),
            sessions: Vec::new(),
            seen,
            why_not_ebpf: None,
            misses_history: false,
            clock: WallClock::now(),
            told: None,
            outbox: VecDeque::new(),
        }
    }

    async fn run(
        mut self,
        socket: UnixStream,
        owner: Option<OwnedFd>,
        dismissed: impl Future<Output = ()>,
    ) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(socket)?;
        let mut frames = Frames::default();
        let mut tick = interval(LOOK);
        let again = owner.as_ref().map(OwnedFd::try_clone).transpose()?;
        let gone = wait_for_end(again);
        tokio::pin!(gone, dismissed);
        loop {
            self.tell_state();
            self.flush(&socket);
            tokio::select! {
                biased;
                () = &mut gone => break,
                // The death of the server can be the reason for it.
                () = &mut dismissed => {
                    if matches!(owner.as_ref().map(pidfd::is_gone), Some(Ok(true))) {
                        break;
                    }
                    self.seen.release();
                    return Ok(());
                }
                updates = next(&mut self.sessions) => self.take_updates(updates),
                // Who does not read answers is not asked for more.
                ready = socket.readable(), if self.outbox.is_empty() => {
                    ready?;
                    match receive(&socket, &mut frames)? {
                        Received::Nothing => {}
                        Received::Closed => break,
                        Received::Requests(requests) => for request in requests {
                            if !self.take_request(request).await {
                                self.seen.release();
                                return Ok(());
                            }
                        },
                    }
                }
                ready = socket.writable(), if !self.outbox.is_empty() => ready?,
                _ = tick.tick(), if !self.seen.is_empty() => self.seen.look(),
            }
        }
        self.end_for_owner().await;
        Ok(())
    }

    /// Ends everything that the server has left.
    async fn end_for_owner(&mut self) {
        let (killed, left) = self.end().await;
        // It may have been said by whoever reads standard error, who can be dead as well.
        let mut out = io::stderr();
        let _ = match (killed.len(), left.is_empty()) {
            (0, true) => Ok(()),
            (killed, true) => {
                let killed = count(killed, "process");
                writeln!(
                    out,
                    "lifemon: the server is dead: {killed} of its workers' trees killed"
                )
            }
            (_, false) => {
                let left = Survivors(&left);
                writeln!(
                    out,
                    "lifemon: the server is dead, and these are left: {left}"
                )
            }
        };
    }

    /// Does what the server asks; returns whether it goes on. It does not for a server that lets
    /// go, or asks for what is none of its own.
    async fn take_request(&mut self, request: Request) -> bool {
        let (killed, survivors) = match request {
            Request::Watch(workers) => return self.watch(&workers),
            Request::Kill(id) => self.kill(id).await,
            Request::End => self.end().await,
            Request::Release => return false,
        };
        self.tell(&Notice::Ended { killed, survivors });
        true
    }

    fn watch(&mut self, workers: &[ProcessId]) -> bool {
        let is_too_many = self.workers.len() + workers.len() > WORKERS_MAX;
        if is_too_many || !workers.iter().all(|worker| self.seen.may_watch(*worker)) {
            return false;
        }
        self.workers.extend(workers);
        self.told = None;
        if self.use_ebpf && self.sessions.len() < SESSIONS_MAX {
            match begin(workers) {
                Ok((session, roots)) => {
                    self.workers.extend(roots);
                    self.misses_history |= self.has_lost(&session);
                    self.sessions.push(session);
                    return true;
                }
                Err(error) => self.why_not_ebpf = Some(error.to_string()),
            }
        }
        self.seen.watch(workers);
        true
    }

    /// Returns whether something may have left the trees of a session before it began.
    fn has_lost(&self, session: &Session) -> bool {
        let is_missing = |loss: &Loss| loss.is_missing_history();
        if !session.standing_losses().iter().any(is_missing) {
            return false;
        }
        let members = session.watcher().live_members().unwrap_or_default();
        have_reaped(&members) && self.seen.may_have_lost(&members)
    }

    fn take_updates(&mut self, (index, updates): (usize, Result<Vec<Update>, kernel::Error>)) {
        let updates = updates.unwrap_or_else(|error| {
            self.why_not_ebpf = Some(error.to_string());
            vec![Update::End]
        });
        for update in updates {
            match update {
                Update::Happening(happening) => {
                    if let What::Exit { death, .. } = happening.what
                        && self.workers.contains(&happening.process.id)
                    {
                        let known = death.as_ref().map(ToString::to_string);
                        let at_ns = happening.at_ns.unwrap_or_else(boot_ns);
                        self.tell(&Notice::Died {
                            id: happening.process.id,
                            cause: known.unwrap_or_else(|| "not known".to_owned()),
                            exit: death,
                            since: self.clock.rfc3339(at_ns),
                        });
                    }
                }
                Update::End => return self.go_on_after(index),
                Update::Lost { .. } | Update::Extinct => {}
            }
        }
    }

    /// Goes on when a session has ended: with another one, where somebody is left. The tracker was
    /// switched off then, or its maps could not be read.
    fn go_on_after(&mut self, index: usize) {
        let session = self.sessions.swap_remove(index);
        let members = session.watcher().live_members().unwrap_or_default();
        let left: Vec<_> = members
            .into_iter()
            .filter(|id| proc::is_live(*id))
            .collect();
        drop(session);
        if left.is_empty() {
            return;
        }
        // What was created, and has lost its parent, between the two is missed.
        self.misses_history = true;
        match begin(&left) {
            Ok((session, _)) => self.sessions.push(session),
            Err(error) => {
                self.why_not_ebpf = Some(error.to_string());
                self.seen.watch(&left);
            }
        }
    }

    async fn end(&mut self) -> (Vec<ProcessId>, Vec<Survivor>) {
        let (mut killed, mut left) = self.seen.end();
        for session in &mut self.sessions {
            let members = session.watcher().live_members().unwrap_or_default();
            match kill_watched(session, KILL_TIMEOUT).await {
                Ok(survivors) => {
                    let is_left =
                        |id: &ProcessId| survivors.iter().any(|one| one.process.id == *id);
                    killed.extend(members.into_iter().filter(|id| !is_left(id)));
                    left.extend(survivors);
                }
                Err(error) => {
                    log::warn!("killing without eBPF: {error}");
                    let (more, survivors) = seen::kill(&members, Vec::new);
                    killed.extend(more);
                    left.extend(survivors);
                }
            }
        }
        (killed, left)
    }

    /// Kills a part of the trees. Who is no part of them is left alone.
    async fn kill(&mut self, id: ProcessId) -> (Vec<ProcessId>, Vec<Survivor>) {
        if let Some(lost) = self.sessions.iter().find_map(|session| below(session, id)) {
            return match kill_on_a_thread(id, lost).await {
                Ok(report) => {
                    let killed = report.outcome.killed.iter();
                    (
                        killed.map(|killed| killed.process.id).collect(),
                        report.outcome.survivors,
                    )
                }
                Err(error) => {
                    log::warn!("{} was not killed: {error}", id.pid);
                    (Vec::new(), Vec::new())
                }
            };
        }
        self.seen.kill(id)
    }

    /// Sends the state, if it is another than the server knows, and there is room for it.
    fn tell_state(&mut self) {
        if self.told.is_none() && self.workers.is_empty() || !self.outbox.is_empty() {
            return;
        }
        let state = self.state();
        if self.told.as_ref() != Some(&state) {
            self.tell(&Notice::State(state.clone()));
            self.told = Some(state);
        }
    }

    fn state(&self) -> State {
        let mut orphans = self.seen.orphans();
        let mut incomplete = Vec::new();
        for session in &self.sessions {
            // Of trees that are watched as one, only one root is known as a root.
            let found = session.watch().orphans().into_iter();
            orphans.extend(found.filter(|orphan| !self.workers.contains(&orphan.id)));
            let losses = session.standing_losses().iter().copied();
            incomplete.extend(losses.filter(|loss| !loss.is_missing_history()));
        }
        if self.misses_history {
            incomplete.push(Loss::NoHistory);
        }
        incomplete.dedup();
        let mut incomplete = Incomplete::all(&incomplete);
        let why = self.why_not_ebpf.as_deref().unwrap_or("eBPF is not wanted");
        incomplete.extend(self.seen.incomplete(why));
        State {
            ebpf: self.seen.is_empty(),
            orphans,
            incomplete,
        }
    }

    fn tell(&mut self, notice: &Notice) {
        match encode(notice) {
            Ok(bytes) => self.outbox.push_back(bytes),
            Err(error) => log::warn!("the server was not told: {error}"),
        }
    }

    /// Writes what there is room for. A server that does not read keeps nobody from watching it.
    fn flush(&mut self, socket: &tokio::net::UnixStream) {
        while let Some(bytes) = self.outbox.front_mut() {
            match socket.try_write(bytes) {
                Ok(written) if written == bytes.len() => drop(self.outbox.pop_front()),
                Ok(written) => drop(bytes.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A server that is dead is noticed by its descriptor, and by the end of the socket.
                Err(_) => self.outbox.clear(),
            }
        }
    }
}

/// Waits until the server is gone; for ever where that cannot be waited for.
async fn wait_for_end(owner: Option<OwnedFd>) {
    // Without a descriptor the server was dead before it could be watched.
    let Some(owner) = owner else { return };
    if !pidfd::wait_until_gone(owner).await {
        std::future::pending::<()>().await;
    }
}
