//! What the fronts ask in the name of their connections, and who answers it.

use std::sync::Arc;

use serde_json::json;
use tokio::task::{JoinError, spawn_blocking};

use crate::sys::runtime::current_thread;

use super::connections::Connection;
use super::events::{self, Events};
use super::fronts::Front;
use super::guards::{self, Guards};
use super::kills::Kills;
use super::{Core, answers, lock, waits};
use crate::agent::call::{Answer, Call, GuardRequest, Message};
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};

/// Questions of one connection that may be open at once: HTTP/1.1 asks one after the other.
const ASKS_MAX: usize = 4;

impl Core {
    /// Does what a front says, as far as it may.
    pub(super) fn hear(self: &Arc<Self>, front: &Arc<Front>, message: Message) {
        match message {
            Message::Ask {
                connection,
                number,
                call,
            } => self.ask(front, connection, number, *call),
            Message::Forget { number } => {
                for connection in self.connections_of(front) {
                    if let Some(Some(abort)) = lock(&connection.asks).remove(&number) {
                        abort.abort();
                    }
                }
            }
            Message::Passed { number, bytes } => front.passed(number, bytes),
            Message::Done { connection } => {
                if let Some(connection) = self.connection(front, connection) {
                    let by_caller = connection.is_closed();
                    self.end(&connection, by_caller);
                }
            }
        }
    }

    /// Begins to answer a question of a connection, in a task of its own.
    fn ask(self: &Arc<Self>, front: &Arc<Front>, connection: u64, number: u64, call: Call) {
        let Some(connection) = self.connection(front, connection) else {
            let problem = Problem::new(Code::Forbidden, "there is no such connection");
            front.answer(number, problem.into());
            return;
        };
        let mut asks = lock(&connection.asks);
        if asks.len() >= ASKS_MAX || asks.contains_key(&number) {
            let problem = Problem::new(Code::LimitReached, "one question after the other");
            front.answer(number, problem.into());
            return;
        }
        asks.insert(number, None);
        drop(asks);
        let (core, front, of) = (Arc::clone(self), Arc::clone(front), Arc::clone(&connection));
        let task = tokio::spawn(async move {
            if let Some(answer) = core.answer(&of, &front, number, call).await {
                front.answer(number, answer);
            }
            lock(&of.asks).remove(&number);
            guards::attend(&core);
            core.trim.note();
        });
        if let Some(ask) = lock(&connection.asks).get_mut(&number) {
            *ask = Some(task.abort_handle());
        }
    }

    /// Answers a call; `None` where the answer is a stream, which has ended.
    async fn answer(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        front: &Arc<Front>,
        number: u64,
        call: Call,
    ) -> Option<Answer> {
        let answered = self.answered(connection, front, number, call).await?;
        if let Err(problem) = &answered
            && problem.code.is_refusal()
        {
            let fields = json!({"code": problem.code, "detail": problem.detail});
            self.audit.write("refused", Some(&connection.peer), fields);
        }
        Some(answered.into())
    }

    /// Does what a call asks for; `None` as [`Core::answer`].
    async fn answered(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        front: &Arc<Front>,
        number: u64,
        call: Call,
    ) -> Option<Result<Answer, Problem>> {
        let peer = Arc::clone(&connection.peer);
        let answered = match call {
            Call::Tree { process, form } => {
                self.at_work(&peer.clone(), move |core| {
                    answers::tree(core, &peer, process.as_ref(), form)
                })
                .await
            }
            Call::Orphans { query, form } => {
                self.at_work(&peer.clone(), move |core| {
                    block_on(answers::orphans(core, &peer, &query, form))?
                })
                .await
            }
            Call::Gpu { form } => {
                self.at_work(&peer.clone(), move |core| {
                    block_on(answers::gpu(core, &peer, form))?
                })
                .await
            }
            Call::Explain { process, form } => {
                self.at_work(&peer.clone(), move |core| {
                    block_on(answers::explain(core, &peer, &process, form))?
                })
                .await
            }
            Call::Log { query, form } => {
                self.at_work(&peer.clone(), move |core| {
                    answers::log(core, &peer, &query, form)
                })
                .await
            }
            Call::Health { process } => {
                self.at_work(&peer.clone(), move |core| {
                    answers::health(core, &peer, &process)
                })
                .await
            }
            Call::Info => {
                self.at_work(&peer.clone(), move |core| answers::info(core, &peer))
                    .await
            }
            Call::Ready => self.at_work(&peer, |core| answers::ready(core)).await,
            Call::Kill { request, key } => Kills::kill(self, &peer, request, key).await,
            Call::KillState { id, form } => self.kills.state(&peer, &id, form),
            Call::Guard { request } => self.guard(connection, request).await,
            Call::Guards => Ok(self.guards.list(&peer)),
            Call::TakeUp { id } => Guards::take_up(self, connection, &id),
            Call::Release { id } => Guards::release(self, &peer, &id),
            Call::Wait { request } => waits::wait(self, &peer, request).await,
            Call::Watch { request } => Events::watch(self, connection, request).await,
            Call::Watches => Ok(self.events.list(&peer)),
            Call::Unwatch { id } => self.events.unwatch(&peer, &id),
            Call::Events { query } => {
                let streamed = events::stream(self, &peer, front, number, query).await;
                Err(streamed.err()?)
            }
        };
        Some(answered)
    }

    /// Makes a guard, in a task of its own: a caller that goes meanwhile does not leave half of one.
    async fn guard(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        request: GuardRequest,
    ) -> Result<Answer, Problem> {
        let (core, connection) = (Arc::clone(self), Arc::clone(connection));
        let making = tokio::spawn(async move { Guards::make(&core, &connection, request).await });
        let failed = |error: JoinError| Problem::new(Code::Internal, error.to_string());
        making.await.map_err(failed)?
    }

    /// Does work that takes a while on a thread of its own. Who is not the operator waits for the
    /// others who are not.
    pub(in crate::agent) async fn at_work<T: Send + 'static>(
        self: &Arc<Self>,
        peer: &Peer,
        work: impl FnOnce(&Arc<Self>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let failed =
            |error: &dyn std::fmt::Display| Problem::new(Code::Internal, error.to_string());
        let _permit = if peer.is_operator() {
            None
        } else {
            let permit = self.answering.acquire().await;
            Some(permit.map_err(|error| failed(&error))?)
        };
        let core = Arc::clone(self);
        let done = spawn_blocking(move || work(&core)).await;
        done.map_err(|error| failed(&error))?
    }
}

/// Runs what asks a driver, on a thread that does nothing else.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Problem> {
    let runtime = current_thread();
    let runtime = runtime.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(runtime.block_on(work))
}
