//! `--watch`: the same question again and again, until Ctrl-C. On a terminal each answer takes the
//! place of the one before; elsewhere they follow one another, JSON one object a line.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::{Code, Interrupts, parse_duration};
use crate::report::out;

/// The shortest time between two answers: each reads all of the lineage.
const SHORTEST: Duration = Duration::from_millis(100);

/// The argument that repeats a question.
#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    /// Ask again every 2s, or as often as given, until Ctrl-C
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
        default_missing_value = "2s", value_parser = parse_duration)]
    watch: Option<Duration>,
}

impl WatchArgs {
    /// Asks once, or again and again where that is meant. An answer of *no* does not end it.
    pub(super) async fn repeat(
        &self,
        mut ask: impl AsyncFnMut() -> anyhow::Result<Code>,
    ) -> anyhow::Result<Code> {
        let Some(period) = self.watch else {
            return ask().await;
        };
        let mut interrupts = Interrupts::listen()?;
        let mut tick = interval(period.max(SHORTEST));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = interrupts.next() => return Ok(Code::Done),
            }
            out::clear()?;
            ask().await?;
        }
    }

    /// Returns whether it repeats.
    pub(super) const fn is_given(&self) -> bool {
        self.watch.is_some()
    }
}
