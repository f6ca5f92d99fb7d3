//! Checks of what works on this host, found by trying it. Each check that fails names the remedy.

mod tries;

use serde::{Deserialize, Serialize};

use crate::gpu::nvml::{Answer, Server};
use crate::kernel::pins::{self, Found};
use crate::kernel::{LoadOptions, Refusal, Tracker, preflight};
use crate::loss::Loss;
use crate::sys::runtime::current_thread;
use crate::words::count;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// It works.
    Ok,
    /// It works with less than all features.
    Degraded,
    /// It does not work.
    Failed,
    /// It was not tried, because something before it failed.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Check {
    /// The subject of the check.
    pub name: &'static str,
    /// Its result.
    pub state: State,
    /// The finding, in words.
    pub detail: String,
    /// The remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn with(
        name: &'static str,
        state: State,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            state,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// Makes a check of a refusal, which reads "what is wrong; what to do".
    fn of(name: &'static str, result: Result<(), Refusal>, fine: impl Into<String>) -> Self {
        match result {
            Ok(()) => Self::ok(name, fine),
            Err(refusal) => {
                let text = refusal.to_string();
                let (detail, remedy) = text.split_once("; ").unwrap_or((&text, ""));
                Self::with(name, State::Failed, detail, remedy)
            }
        }
    }
}

/// Runs all checks. Loads a private tracker to see whether it works, and lets it go.
///
/// ```no_run
/// use lifemon::doctor::{State, examine};
///
/// for check in examine().iter().filter(|check| check.state == State::Failed) {
///     let remedy = check.remedy.as_deref().unwrap_or("no remedy is known");
///     eprintln!("{}: {}; {remedy}", check.name, check.detail);
/// }
/// ```
#[must_use]
pub fn examine() -> Vec<Check> {
    let mut checks = vec![
        Check::of(
            "kernel",
            preflight::check_kernel(),
            preflight::kernel_release(),
        ),
        Check::of("types", preflight::check_btf(), preflight::BTF_PATH),
        Check::of(
            "pid namespace",
            preflight::check_pid_namespace(),
            "the initial one",
        ),
        tries::user_namespace(),
        Check::of(
            "privileges",
            preflight::check_privileges(),
            "CAP_BPF and CAP_PERFMON",
        ),
        Check::of(
            "lockdown",
            preflight::check_lockdown(),
            "programs may read kernel memory",
        ),
    ];
    let may_load = checks.iter().all(|check| check.state != State::Failed);
    checks.extend(if may_load { try_tracker() } else { skipped() });
    checks.push(pinned(may_load));
    checks.push(tries::pins());
    checks.push(tries::signals());
    checks.push(tries::processes());
    checks.push(gpu());
    checks
}

/// Asks NVIDIA's management library as `lifemon gpu` does.
fn gpu() -> Check {
    const NAME: &str = "GPU memory";
    let runtime = current_thread();
    let answer = match runtime {
        Ok(runtime) => runtime.block_on(async { Server::of_this_program().ask().await }),
        Err(error) => Answer::Failed(error.to_string()),
    };
    match answer {
        Answer::Gpus(gpus) => {
            let errors: Vec<_> = gpus.iter().flat_map(|gpu| &gpu.errors).collect();
            if let Some(error) = errors.first() {
                let remedy = "see the kernel's log for messages of the driver";
                return Check::with(NAME, State::Degraded, error.as_str(), remedy);
            }
            let detail = match gpus.len() {
                1 => "1 GPU of NVIDIA tells memory by process".to_owned(),
                count => format!("{count} GPUs of NVIDIA tell memory by process"),
            };
            Check::ok(NAME, detail)
        }
        // The normal state of a host without such a GPU.
        Answer::Absent(why) => Check::ok(NAME, format!("{why}: device files only")),
        Answer::NotAsked => Check::ok(NAME, "not asked"),
        Answer::Failed(why) => Check::with(
            NAME,
            State::Degraded,
            why,
            "see the kernel's log for messages of the driver",
        ),
        Answer::Hung(ms) => Check::with(
            NAME,
            State::Degraded,
            format!("the driver has not answered for {ms} ms"),
            "see the kernel's log; a driver that hangs often needs a reboot",
        ),
    }
}

fn skipped() -> Vec<Check> {
    ["programs", "exit event", "lineage", "kill"]
        .into_iter()
        .map(|name| Check {
            name,
            state: State::Skipped,
            detail: "not tried".to_owned(),
            remedy: Some("solve what failed above first".to_owned()),
        })
        .collect()
}

/// Loads, attaches, and reads back this very process.
fn try_tracker() -> Vec<Check> {
    let tracker = match Tracker::load(&LoadOptions::default()) {
        Ok(tracker) => tracker,
        Err(error) => {
            let remedy = "the kernel's message is above; \
                a seccomp profile or a security module may forbid bpf(2)";
            return vec![Check::with(
                "programs",
                State::Failed,
                error.to_string(),
                remedy,
            )];
        }
    };
    let mut checks = vec![Check::ok("programs", "all hooks load and attach")];
    checks.push(if tracker.has_group_dead() {
        Check::ok(
            "exit event",
            "fires before memory is released, once for each process",
        )
    } else {
        Check::with(
            "exit event",
            State::Degraded,
            "fires after memory is released (before Linux 6.16), \
             so a large process is reported later",
            "the fatal signal is reported at once; boot 6.16 or newer for the exit event as well",
        )
    });
    let own = std::process::id();
    checks.push(match tracker.snapshot() {
        Ok(snapshot) if snapshot.live(own).is_some() => {
            let known = count(snapshot.records.len(), "process");
            Check::ok("lineage", format!("{known} learnt, this one among them"))
        }
        Ok(_) => Check::with(
            "lineage",
            State::Failed,
            "this process is not in its own lineage",
            "report this as a defect, with the kernel's version",
        ),
        Err(error) => Check::with(
            "lineage",
            State::Failed,
            error.to_string(),
            "report this as a defect, with the kernel's version",
        ),
    });
    checks.push(tries::kill_of(tracker));
    checks
}

/// Looks at the host-wide tracker.
fn pinned(may_look: bool) -> Check {
    const NAME: &str = "host tracker";
    if !may_look {
        return Check {
            name: NAME,
            state: State::Skipped,
            detail: "not looked for".to_owned(),
            remedy: Some("solve what failed above first".to_owned()),
        };
    }
    match pins::missing_history() {
        Loss::NoHistory => {}
        hidden => {
            let (detail, remedy) = hidden.advice().split_once("; ").unwrap_or_default();
            return Check::with(NAME, State::Degraded, detail, remedy);
        }
    }
    let look = pins::look();
    if let (Found::Nothing, Some(distrust)) = (&look.found, &look.distrusted) {
        return Check::with(
            NAME,
            State::Degraded,
            format!("off; {distrust}"),
            "`lifemon track on` mounts a BPF file system of its own; see who made this",
        );
    }
    match look.found {
        Found::Complete { directory } => Check::ok(NAME, format!("on: {}", directory.display())),
        Found::Nothing => Check::ok(
            NAME,
            "off; `lifemon track on` keeps the lineage from now on, with --at-boot always",
        ),
        Found::Torn { missing } => Check::with(
            NAME,
            State::Failed,
            format!("torn: {missing} is missing"),
            "`lifemon track on` repairs it",
        ),
        Found::Other { names } => Check::with(
            NAME,
            State::Degraded,
            format!("another version is on: {}", names.join(", ")),
            "`lifemon track on` replaces it",
        ),
        Found::Foreign(distrust) => Check::with(
            NAME,
            State::Failed,
            distrust.to_string(),
            "look what it is, and remove it before `lifemon track on`",
        ),
    }
}
