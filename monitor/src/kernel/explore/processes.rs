//! The processes of the model: each is a thread that forks what its script says, and dies when it
//! is done or killed.

use std::sync::{Arc, Mutex, PoisonError};

use lifemon_ebpf::ProcessId;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::thread::{self, JoinHandle};

use super::hooks::Hook;
use super::world::{Life, Lost, Measures, State, World};

/// What a process creates, in order, and what each of those creates.
#[derive(Clone, Debug, Default)]
pub(super) struct Script(pub(super) Vec<Script>);

/// Returns the script of a process that creates nothing.
pub(super) fn leaf() -> Script {
    Script::default()
}

/// Returns that of one that creates these.
pub(super) fn creates(children: impl IntoIterator<Item = Script>) -> Script {
    Script(children.into_iter().collect())
}

/// Returns that of a line: each creates the next and dies.
pub(super) fn line(length: usize) -> Script {
    (1..length).fold(leaf(), |below, _| creates([below]))
}

/// The threads of a model, to wait for.
#[derive(Clone, Default)]
pub(super) struct Threads(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl Threads {
    pub(super) fn spawn(&self, body: impl FnOnce() + Send + 'static) {
        let thread = thread::spawn(body);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
    }

    /// Waits for all, and for those that they have started.
    pub(super) fn join(&self) {
        loop {
            let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(thread) = next else { return };
            thread.join().unwrap();
        }
    }

    /// Lets a process live, from its first return to user code on.
    pub(super) fn live(&self, world: &Arc<World>, process: ProcessId, script: Script) {
        let (threads, world) = (self.clone(), Arc::clone(world));
        self.spawn(move || {
            let mut goes_on = world.returns(process);
            for child in script.0 {
                if !goes_on {
                    break;
                }
                if let Some(id) = world.fork(process) {
                    threads.live(&world, id, child);
                }
                goes_on = world.returns(process);
            }
            world.exit(process);
        });
    }
}

impl World {
    /// Forks; nothing where no more processes may be created.
    pub(super) fn fork(&self, creator: ProcessId) -> Option<ProcessId> {
        let child = self.step(State::take_pid)?;
        self.step(|state| state.list(child, creator));
        let is_skipped = self.is_skipped(
            |measures| &mut measures.skipped_forks,
            |state| &mut state.missed_forks,
        );
        if is_skipped {
            self.peek(|state| state.lost.insert((child, Lost::Record)));
        } else {
            Hook::begin(self).forked(creator, child);
        }
        self.step(|state| {
            if let Some(task) = state.task(child) {
                task.life = Life::Running;
            }
        });
        Some(child)
    }

    /// Ends a process: it dies, and is gone.
    pub(super) fn exit(&self, process: ProcessId) {
        self.step(|state| {
            if let Some(task) = state.task(process) {
                task.life = Life::Dying;
            }
        });
        let is_skipped = self.is_skipped(
            |measures| &mut measures.skipped_exits,
            |state| &mut state.missed_exits,
        );
        if !is_skipped {
            Hook::begin(self).exited(process);
        }
        self.step(|state| state.tasks.remove(&process.pid));
    }

    /// Returns whether the process goes on: it has come from a system call, where the closer
    /// stands.
    fn returns(&self, process: ProcessId) -> bool {
        if self.step(|state| state.is_closed) && Hook::begin(self).closes(process) {
            self.step(|state| {
                if let Some(task) = state.task(process) {
                    task.is_killed = true;
                }
            });
        }
        self.step(|state| state.task(process).is_some_and(|task| !task.is_killed))
    }

    /// Returns whether the kernel skips a hook now, and counts it.
    fn is_skipped(
        &self,
        left: impl FnOnce(&mut Measures) -> &mut u32,
        missed: impl FnOnce(&mut State) -> &mut u64,
    ) -> bool {
        self.peek(|state| {
            let left = left(&mut state.measures);
            let is_skipped = *left > 0 && thread_rng().gen_range(0..2) == 0;
            *left -= u32::from(is_skipped);
            *missed(state) += u64::from(is_skipped);
            is_skipped
        })
    }
}
