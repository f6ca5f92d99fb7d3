//! `lifemon gpu`: lists for each GPU the memory, the processes that hold it, their lineage, and
//! whether they are orphans.

use std::path::Path;
use std::time::Duration;

use super::devices::DeviceArgs;
use super::ending::{Consent, Question, end};
use super::repeat::WatchArgs;
use super::select::Selectors;
use super::tree::style;
use super::{Code, Output, give_up_rights, load_options, parse_duration};
use crate::forest::Forest;
use crate::gpu::holders::DeviceFiles;
use crate::gpu::nvml::{self, Server};
use crate::gpu::{self, Survey, holders};
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Tracker, clock};
use crate::kill::KillOptions;
use crate::orphan::{self, Known, Orphan};
use crate::proc;
use crate::report::ended::{self, Ended};
use crate::report::gpu::{GpuReport, Holder, describe};
use crate::report::{self, out};
use crate::sys::capabilities::drop_capabilities;
use crate::sys::runtime::current_thread;

/// Arguments of `gpu`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon gpu                 who holds GPUs, and what was left behind
  sudo lifemon gpu --kill-orphans  and the end of what was left behind
  sudo lifemon gpu -o json | jq '.holders[] | select(.orphan) | .pid'

Memory is what NVIDIA's library and DRM drivers tell; a process that has a device open is listed also
when no driver tells memory of it.
A holder that is an orphan, or stands below one, is marked with how that one was left: see
`lifemon orphans --help`. --kill-orphans ends what is leaked; what was left only with --left or
--device or a selector; what is deliberate or older than tracking only with --force. Without --device
or a selector it asks first; a script needs --yes.
Exit codes: 0 done, 1 with --kill-orphans: something that was leaked or left is left.")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of the command line"
)]
pub struct Args {
    /// Kill orphans that hold a GPU, or below which one is held, with everything below them
    #[arg(long, conflicts_with = "watch")]
    kill_orphans: bool,
    #[command(flatten)]
    watch: WatchArgs,
    /// With --kill-orphans: what was left, too
    #[arg(long, requires = "kill_orphans")]
    left: bool,
    /// With --kill-orphans: do not ask
    #[arg(long, requires = "kill_orphans")]
    yes: bool,
    /// With --kill-orphans: deliberate and inferred ones too
    #[arg(long, requires = "kill_orphans")]
    force: bool,
    /// With --kill-orphans: how long to go on killing
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Longest time to wait for the driver's answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    driver_timeout: Duration,
    /// Whole command lines
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    gpus: DeviceArgs,
    #[command(flatten)]
    selectors: Selectors,
}

#[cfg(feature = "agent")]
impl Args {
    /// Returns the request to the agent that stands for this command; `None` where it has options
    /// that the agent does not know.
    pub(super) fn requests(&self) -> Option<Vec<super::asked::Request>> {
        let is_plain = !self.kill_orphans
            && !self.watch.is_given()
            && !self.selectors.are_given()
            && !self.gpus.are_chosen();
        let path = if self.full {
            "/v1/gpu?full=true"
        } else {
            "/v1/gpu"
        };
        is_plain.then(|| vec![super::asked::Request::get(path)])
    }
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    if args.kill_orphans {
        crate::sys::priority::go_first();
    } else {
        crate::sys::limits::raise_descriptor_limit();
    }
    let files = args.gpus.files()?;
    // What is wrong with them is said before anything is loaded.
    args.selectors.prepare()?;
    let is_chosen = args.gpus.are_chosen() || args.selectors.are_given();
    let question = args
        .kill_orphans
        .then(|| Question::new(is_chosen, args.yes, "--kill-orphans"))
        .transpose()?;
    let runtime = current_thread()?;
    let mut tracker = Tracker::open_or_load(&load_options(verbose))?;
    give_up_rights(args.kill_orphans, args.selectors.enter_namespaces());
    if args.watch.is_given() {
        let ask = async || {
            let found = ask(&mut tracker, args, &files).await?;
            found.print(None, output, args.full)?;
            Ok(Code::Done)
        };
        return runtime.block_on(args.watch.repeat(ask));
    }
    let found = runtime.block_on(ask(&mut tracker, args, &files))?;
    let options = KillOptions {
        timeout: args.timeout,
        release: super::devices::release(&files),
        ..KillOptions::default()
    };
    let consent = Consent {
        left: args.left || is_chosen,
        force: args.force,
    };
    let ended = question
        .map(|question| runtime.block_on(end(tracker, &found.orphans, consent, question, &options)))
        .transpose()?;
    found.print(ended.as_ref(), output, args.full)?;
    let is_done = ended.is_none_or(|ended| {
        let mut spared = ended.spared.iter();
        ended.is_done() && !spared.any(|spared| spared.verdict.is_left_behind())
    });
    Ok(if is_done { Code::Done } else { Code::No })
}

/// Everything that was found.
struct Found {
    snapshot: Snapshot,
    forest: Forest,
    survey: Survey,
    orphans: Vec<Orphan>,
    holders: Vec<Holder>,
}

/// Asks the driver, takes the snapshot, and chooses.
async fn ask(tracker: &mut Tracker, args: &Args, files: &DeviceFiles) -> anyhow::Result<Found> {
    let selection = args.selectors.prepare()?;
    let asked_ns = clock::boot_ns();
    let mut server = Server::new(Path::new(proc::OWN_PROGRAM), args.driver_timeout);
    let answer = server.ask().await;
    let snapshot = tracker.snapshot()?;
    let forest = Forest::new(snapshot.records.iter().copied());
    let scan = holders::scan(forest.all_living(), files);
    let survey = gpu::survey(&forest, answer, asked_ns, scan);
    let known = Known {
        forest: &forest,
        subreapers: &tracker.subreapers()?,
        holders: &survey.holders,
    };
    let orphans = selection.orphans(&forest, orphan::with_gpus(&known));
    let mut holders = describe(&forest, &survey);
    if args.selectors.are_given() {
        holders.retain(|holder| {
            let id = holder.process.id;
            let record = forest.record(&id);
            record.is_some_and(|record| selection.means(id, record))
        });
    }
    Ok(Found {
        snapshot,
        forest,
        survey,
        orphans,
        holders,
    })
}

impl Found {
    fn print(&self, ended: Option<&Ended>, output: Output, full: bool) -> anyhow::Result<()> {
        let held = self.survey.holders.keys().copied();
        let report = GpuReport {
            survey: &self.survey,
            holders: &self.holders,
            orphans: &orphan::above(&self.forest, &self.orphans, held),
            ended,
            snapshot: &self.snapshot,
            losses: &[self.snapshot.losses(), self.survey.losses()].concat(),
        };
        let style = style(full || output == Output::Wide);
        let text = match output {
            Output::Name => report::tree::names(self.holders.iter().map(|one| one.process.id)),
            Output::Text | Output::Wide => {
                let mut text = report::gpu::text(&report, style);
                text.extend(ended.map(ended::text));
                text
            }
            Output::Json => report::gpu::json(&report, style)?,
        };
        out::print(&text)?;
        Ok(())
    }
}

/// Answers for the process that started this one, until its questions end. What the driver's
/// library does in this process needs no capability.
pub(super) fn serve() -> anyhow::Result<Code> {
    drop_capabilities()?;
    nvml::serve(std::io::stdin().lock(), std::io::stdout().lock())?;
    Ok(Code::Done)
}
