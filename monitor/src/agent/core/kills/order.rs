//! What a caller orders of a kill, read and limited.

use std::sync::Arc;
use std::time::Duration;

use crate::agent::call::KillRequest;
use crate::agent::core::Core;
use crate::agent::core::permits::protected;
use crate::agent::problem::{Code, Problem};
use crate::agent::time::{parse_duration, parse_signal};
use crate::kill::KillOptions;
use crate::kill::envoy::Envoy;
use crate::process::Signal;

/// The longest wait after the first signal.
const GRACE_MAX: Duration = Duration::from_mins(5);
/// The longest time to go on killing.
const TIMEOUT_MAX: Duration = Duration::from_mins(2);

/// What is ordered, read.
pub(super) struct Order {
    signal: Option<Signal>,
    grace: Duration,
    timeout: Duration,
}

impl Order {
    /// Reads the order of a request.
    pub(super) fn read(request: &KillRequest) -> Result<Self, Problem> {
        let wrong =
            |name: &str, why: String| Problem::new(Code::InvalidRequest, format!("{name}: {why}"));
        let limited = |name, text: &Option<String>, most: Duration| {
            let Some(text) = text else { return Ok(None) };
            let time = parse_duration(text).map_err(|why| wrong(name, why))?;
            if time > most {
                return Err(wrong(name, format!("at most {} s", most.as_secs())));
            }
            Ok(Some(time))
        };
        let signal = request.signal.as_deref().map(parse_signal);
        let signal = signal.transpose().map_err(|why| wrong("signal", why))?;
        let grace = limited("grace", &request.grace, GRACE_MAX)?;
        let timeout = limited("timeout", &request.timeout, TIMEOUT_MAX)?;
        let asks = signal.is_some() || grace.is_some();
        if request
            .reason
            .as_ref()
            .is_some_and(|reason| reason.len() > 1_024)
        {
            return Err(wrong("reason", "at most 1024 bytes".to_owned()));
        }
        Ok(Self {
            signal: asks.then(|| signal.unwrap_or(Signal::TERM)),
            grace: grace.unwrap_or(Duration::from_secs(if asks { 10 } else { 0 })),
            timeout: timeout.unwrap_or(Duration::from_secs(30)),
        })
    }

    /// Returns it as the options of a kill.
    pub(super) fn options(
        &self,
        core: &Core,
        envoy: Option<Arc<dyn Envoy>>,
        dry_run: bool,
    ) -> KillOptions {
        KillOptions {
            first_signal: self.signal,
            grace: self.grace,
            timeout: self.timeout,
            dry_run,
            protected: protected(core),
            envoy,
            ..KillOptions::default()
        }
    }
}
