//! The fronts as the core has them: one for the callers that have all rights, one for all others,
//! so that whoever takes over the one never asks in the name of the other's callers. A front that
//! ends is replaced.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::sys::child::BeforeExec;

use super::{Core, lock};
use crate::agent::call::{Answer, Kind, Message, Part};
use crate::agent::front;
use crate::agent::peer::Peer;
use crate::agent::wire;

/// The pause before a front is replaced that has ended at once.
const PAUSE: Duration = Duration::from_millis(100);
/// Lets glibc keep no freed blocks for each thread: scattered among what is in use, they keep the
/// pages around them, and a front has one thread. The unit of the agent says the same of the core.
const WITHOUT_CACHE: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");
/// Bytes of a body that a front may send: none.
const BODY_MAX: u32 = 0;

/// The fronts.
#[derive(Debug)]
pub(super) struct Fronts {
    /// What is started as the front.
    program: PathBuf,
    generations: AtomicU64,
    /// For the operator, and for all others.
    now: [Mutex<Option<Arc<Front>>>; 2],
}

/// A front.
#[derive(Debug)]
pub(super) struct Front {
    generation: u64,
    pid: u32,
    /// Where connections go.
    connections: OwnedFd,
    /// Where answers go.
    out: UnboundedSender<(Part, Vec<u8>)>,
    /// Bytes of each stream that were sent and not passed on yet.
    streams: Mutex<HashMap<u64, Flow>>,
}

/// What of a stream is under way.
#[derive(Debug, Clone, Default)]
struct Flow {
    bytes: u64,
    changed: Arc<Notify>,
}

impl Fronts {
    /// Prepares to start this program.
    pub(super) fn of_program(program: PathBuf) -> Self {
        Self {
            program,
            generations: AtomicU64::new(0),
            now: Default::default(),
        }
    }

    /// Starts them.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(super) fn start(&self, core: &Arc<Core>) -> io::Result<()> {
        for index in 0..self.now.len() {
            self.replace(core, index)?;
        }
        Ok(())
    }

    /// Returns the front for a caller.
    pub(super) fn of(&self, peer: &Peer) -> io::Result<Arc<Front>> {
        let index = usize::from(!peer.is_operator());
        let front = lock(&self.now[index]).clone();
        front.ok_or_else(|| io::Error::other("the front is being replaced"))
    }

    /// Returns their pids: nobody ends them.
    pub(super) fn pids(&self) -> Vec<u32> {
        let fronts = self.now.iter();
        fronts
            .filter_map(|front| lock(front).as_ref().map(|front| front.pid))
            .collect()
    }

    fn replace(&self, core: &Arc<Core>, index: usize) -> io::Result<()> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let (calls, its_calls) = StdStream::pair()?;
        let (connections, its_connections) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let numbers = [its_calls.as_raw_fd(), its_connections.as_raw_fd()];
        let mut command = Command::new(&self.program);
        command
            .arg(front::COMMAND)
            .args(numbers.map(|number| number.to_string()))
            .env_clear()
            .envs([WITHOUT_CACHE])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let prepared = BeforeExec {
            keeps: numbers.to_vec(),
            ..BeforeExec::default()
        };
        prepared.set(&mut command);
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        drop((its_calls, its_connections));
        calls.set_nonblocking(true)?;
        let (mut from, mut to) = UnixStream::from_std(calls)?.into_split();
        let (out, mut parts) = unbounded_channel::<(Part, Vec<u8>)>();
        let front = Arc::new(Front {
            generation,
            pid: child.id().unwrap_or_default(),
            connections,
            out,
            streams: Mutex::default(),
        });
        *lock(&self.now[index]) = Some(Arc::clone(&front));
        tokio::spawn(async move {
            while let Some((part, body)) = parts.recv().await {
                if wire::write(&mut to, &part, &body).await.is_err() {
                    return;
                }
            }
        });
        let core = Arc::clone(core);
        tokio::spawn(async move {
            loop {
                match wire::read::<Message>(&mut from, BODY_MAX).await {
                    Ok(Some((message, _))) => core.hear(&front, message),
                    Ok(None) => break,
                    Err(error) => {
                        log::warn!("the front does not keep to its words: {error}");
                        break;
                    }
                }
            }
            let _ = child.kill().await;
            *lock(&core.fronts().now[index]) = None;
            core.front_ended(generation);
            while let Err(error) = core.fronts().replace(&core, index) {
                log::warn!("the front cannot be replaced: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(())
    }
}

impl Front {
    /// Returns which one it is: no other has this number.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Gives it a connection.
    pub(super) fn take(&self, number: u64, socket: BorrowedFd<'_>) -> io::Result<()> {
        wire::send_descriptor(&self.connections, number, socket)
    }

    /// Answers a question.
    pub(super) fn answer(&self, number: u64, answer: Answer) {
        let part = Part {
            number,
            status: answer.status,
            kind: answer.kind,
            is_last: true,
        };
        let _ = self.out.send((part, answer.body.into_bytes()));
    }

    /// Sends a part of a stream; returns false where the front has ended.
    pub(super) fn stream(&self, number: u64, body: Vec<u8>) -> bool {
        lock(&self.streams).entry(number).or_default().bytes += body.len() as u64;
        let part = Part {
            number,
            status: 200,
            kind: Kind::Lines,
            is_last: false,
        };
        self.out.send((part, body)).is_ok()
    }

    /// Ends a stream, without a word where the front has forgotten it.
    pub(super) fn end_stream(&self, number: u64) {
        lock(&self.streams).remove(&number);
        let part = Part {
            number,
            status: 200,
            kind: Kind::Lines,
            is_last: true,
        };
        let _ = self.out.send((part, Vec::new()));
    }

    /// Notes that so many bytes of a stream were passed on.
    pub(super) fn passed(&self, number: u64, bytes: u64) {
        if let Some(flow) = lock(&self.streams).get_mut(&number) {
            flow.bytes = flow.bytes.saturating_sub(bytes);
            flow.changed.notify_one();
        }
    }

    /// Waits until less than `limit` bytes of a stream are under way.
    pub(super) async fn has_room(&self, number: u64, limit: u64) {
        loop {
            let flow = lock(&self.streams).entry(number).or_default().clone();
            if flow.bytes < limit {
                return;
            }
            flow.changed.notified().await;
        }
    }
}
