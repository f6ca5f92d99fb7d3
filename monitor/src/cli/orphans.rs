//! `lifemon orphans`: lists what was left behind, and kills it on request.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::devices::DeviceArgs;
use super::ending::{Consent, Question, end};
use super::repeat::WatchArgs;
use super::select::{Selection, Selectors};
use super::target::Target;
use super::tree::style;
use super::{Code, Output, give_up_rights, load_options, parse_duration};
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::holders::{self, DeviceFiles};
use crate::gpu::nvml::{Answer, Server};
use crate::gpu::{self, Survey};
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Tracker, clock};
use crate::kill::KillOptions;
use crate::orphan::{self, Known, Orphan, Verdict};
use crate::proc::{self, Zombie};
use crate::report::ended::{self, Ended};
use crate::report::orphans::OrphansReport;
use crate::report::{self, out};
use crate::sys::runtime::current_thread;

/// Arguments of `orphans`.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of the command line"
)]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon orphans                          what was left behind on this host
  sudo lifemon orphans --gpu --match EngineCore  those that hold a GPU and whose command line matches
  sudo lifemon orphans --tree 4200 --kill       what the tree of 4200 left behind, and its end
  sudo lifemon orphans --port 8000              who of them still has the port of a server
  sudo lifemon orphans --check && echo clean    for scripts

An orphan is a living process whose creator is dead. How it was left:
  leaked      its creator, or the root of its tree, was killed or has failed
  left        what created it exited with 0, and nothing says that it was to stay
  deliberate  it was to stay: a daemon, nohup, a unit of its own
  inferred    it is older than tracking
The last two are counted, and shown with --all. Memory, time and GPUs are those of the orphan with
everything below it, and --gpu, --match, --holds, --port and --device look at all of that.
--kill ends what is leaked; what was left only with --left or a selector (--tree, --device, and those
listed as such); the others only with --force. Without a selector it asks first; a script needs --yes.
Exit codes: 0 done, 1 with --check: something is leaked or left; with --kill: something is left.")]
pub struct Args {
    /// Only those that hold a GPU
    #[arg(long)]
    gpu: bool,
    /// Only those of the tree of this process, dead or alive
    #[arg(long, value_name = "PID")]
    tree: Option<Target>,
    /// Only those that were left so: leaked, left, deliberate, inferred; separated by commas
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = parse_verdict)]
    verdict: Vec<Verdict>,
    /// Also what is deliberate, and what is older than tracking
    #[arg(long, conflicts_with = "verdict")]
    all: bool,
    /// Also the zombies: how they died, since when, and who does not reap them
    #[arg(long)]
    zombies: bool,
    /// Exit with 1 if any is leaked or left
    #[arg(long)]
    check: bool,
    /// Kill what is shown, with everything below it
    #[arg(long, conflicts_with_all = ["check", "watch"])]
    kill: bool,
    #[command(flatten)]
    watch: WatchArgs,
    /// With --kill: what was left, too
    #[arg(long, requires = "kill")]
    left: bool,
    /// With --kill: deliberate and inferred ones too
    #[arg(long, requires = "kill")]
    force: bool,
    /// With --kill: do not ask
    #[arg(long, requires = "kill")]
    yes: bool,
    /// With --kill: how long to go on killing
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Whole command lines
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    gpus: DeviceArgs,
    #[command(flatten)]
    selectors: Selectors,
}

impl Args {
    /// Returns whether it says which orphans are meant. `--gpu` does not: it says what they do.
    fn has_selector(&self) -> bool {
        self.selectors.are_given() || self.gpus.are_chosen() || self.tree.is_some()
    }

    /// Returns the request to the agent that stands for this command; `None` where it has options
    /// that the agent does not know.
    #[cfg(feature = "agent")]
    pub(super) fn requests(&self) -> Option<Vec<super::asked::Request>> {
        let is_plain = !self.selectors.are_given()
            && !self.watch.is_given()
            && !self.zombies
            && self.verdict.is_empty()
            && !self.check
            && !self.kill
            && !self.gpus.are_chosen();
        if !is_plain {
            return None;
        }
        let mut path = format!("/v1/orphans?all={}&gpu={}", self.all, self.gpu);
        if let Some(tree) = self.tree {
            path = format!("{path}&tree={}", tree.for_agent()?);
        }
        if self.full {
            path.push_str("&full=true");
        }
        Some(vec![super::asked::Request::get(path)])
    }

    /// Returns whether orphans of this kind are shown.
    fn shows(&self, verdict: Verdict) -> bool {
        if self.verdict.is_empty() {
            self.all || verdict.is_left_behind()
        } else {
            self.verdict.contains(&verdict)
        }
    }
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    if args.kill {
        crate::sys::priority::go_first();
    } else {
        crate::sys::limits::raise_descriptor_limit();
    }
    let files = args.gpus.files()?;
    // What is wrong with them is said before anything is loaded.
    args.selectors.prepare()?;
    let question = args
        .kill
        .then(|| Question::new(args.has_selector(), args.yes, "--kill"));
    let question = question.transpose()?;
    let load = load_options(verbose);
    let runtime = current_thread()?;
    let mut tracker = Tracker::open_or_load(&load)?;
    give_up_rights(args.kill, args.selectors.enter_namespaces());
    if args.watch.is_given() {
        let ask = async || {
            let found = ask(&mut tracker, args, &files).await?;
            found.print(None, args, output)?;
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
        left: args.left || args.has_selector() || args.verdict.contains(&Verdict::Left),
        force: args.force,
    };
    let ended = question
        .map(|question| runtime.block_on(end(tracker, &found.shown, consent, question, &options)))
        .transpose()?;
    found.print(ended.as_ref(), args, output)?;
    let is_no = if let Some(ended) = &ended {
        !ended.is_done() || !ended.spared.is_empty()
    } else {
        let mut shown = found.shown.iter();
        args.check && shown.any(|orphan| orphan.verdict.is_left_behind())
    };
    Ok(if is_no { Code::No } else { Code::Done })
}

/// Looks, and chooses.
async fn ask(tracker: &mut Tracker, args: &Args, files: &DeviceFiles) -> anyhow::Result<Found> {
    // Before the snapshot: whoever has a socket by then is in it.
    let selection = args.selectors.prepare()?;
    let mut found = look(tracker, args, files).await?;
    found.choose(args, &selection);
    orphan::measure(&found.forest, &mut found.shown);
    Ok(found)
}

/// Returns the zombies, where they are asked for: of the tree, if one is meant those that a process
/// of it does not reap, and those that were of it.
fn zombies(args: &Args, found: &Found) -> Option<Vec<Zombie>> {
    if !args.zombies {
        return None;
    }
    let mut zombies = proc::zombies();
    if let Some(tree) = found.tree {
        let members: HashSet<_> = found.forest.tree(tree).into_iter().collect();
        zombies.retain(|zombie| {
            let parent = found.forest.live(zombie.parent);
            parent.is_some_and(|parent| members.contains(&parent))
                || members.iter().any(|id| id.pid == zombie.id.pid)
        });
    }
    if let Some(user) = args.selectors.user() {
        zombies.retain(|zombie| zombie.uid == Some(user));
    }
    Some(zombies)
}

/// Everything that was found.
struct Found {
    tree: Option<ProcessId>,
    snapshot: Snapshot,
    forest: Forest,
    survey: Survey,
    /// The orphans that are shown.
    shown: Vec<Orphan>,
    /// The number of those that are meant as well and not shown.
    not_shown: BTreeMap<Verdict, usize>,
}

impl Found {
    /// Leaves out the orphans that are not meant, and those that are meant and not shown.
    fn choose(&mut self, args: &Args, selection: &Selection<'_>) {
        let mut orphans = std::mem::take(&mut self.shown);
        let wants_gpu = args.gpu || args.gpus.are_chosen();
        orphans.retain(|orphan| !wants_gpu || !orphan.subtree.gpu.is_empty());
        self.shown = selection.orphans(&self.forest, orphans);
        self.not_shown = orphan::leave_out(&mut self.shown, |orphan| {
            // Its creator was seen to die, by somebody who did not stay.
            let was_seen = args.verdict.is_empty() && orphan.was_seen_left();
            was_seen || args.shows(orphan.verdict)
        });
    }

    fn print(&self, ended: Option<&Ended>, args: &Args, output: Output) -> anyhow::Result<()> {
        let zombies = zombies(args, self);
        let report = OrphansReport {
            orphans: &self.shown,
            not_shown: &self.not_shown,
            ended,
            snapshot: &self.snapshot,
            zombies: zombies.as_deref(),
            losses: &[self.snapshot.losses(), self.survey.losses()].concat(),
        };
        let style = style(args.full || output == Output::Wide);
        let text = match output {
            Output::Name => report::tree::names(self.shown.iter().map(|orphan| orphan.process.id)),
            Output::Text | Output::Wide => {
                let mut text = report::orphans::text(&report, style);
                text.extend(ended.map(ended::text));
                text
            }
            Output::Json => report::orphans::json(&report, style)?,
        };
        out::print(&text)?;
        Ok(())
    }
}

/// Reads `leaked` and the like.
fn parse_verdict(text: &str) -> Result<Verdict, String> {
    let mut all = Verdict::ALL.into_iter();
    all.find(|verdict| verdict.word() == text)
        .ok_or_else(|| "expected leaked, left, deliberate or inferred".to_owned())
}

/// Takes the snapshot, and asks the driver of GPUs only when something that was left behind has a
/// device open, or when GPUs are asked for: a driver can take seconds.
async fn look(tracker: &mut Tracker, args: &Args, files: &DeviceFiles) -> anyhow::Result<Found> {
    let mut snapshot = tracker.snapshot()?;
    let tree = args.tree.map(|target| target.find(&snapshot)).transpose()?;
    let wants_gpu = args.gpu || args.gpus.are_chosen();
    let scan = |snapshot: &Snapshot| {
        let forest = Forest::new(snapshot.records.iter().copied());
        let held = holders::scan_below_orphans(&forest, args.all || wants_gpu, files);
        (held, forest)
    };
    let (mut held, mut forest) = scan(&snapshot);
    let mut answer = Answer::NotAsked;
    let mut server = Server::of_this_program();
    let asked_ns = clock::boot_ns();
    if wants_gpu || !held.holders.is_empty() {
        answer = server.ask().await;
        snapshot = tracker.snapshot()?;
        (held, forest) = scan(&snapshot);
    }
    let subreapers = tracker.subreapers()?;
    let survey = gpu::survey(&forest, answer, asked_ns, held);
    let known = Known {
        forest: &forest,
        subreapers: &subreapers,
        holders: &survey.holders,
    };
    let shown = orphan::find(&known, tree);
    Ok(Found {
        tree,
        snapshot,
        forest,
        survey,
        shown,
        not_shown: BTreeMap::new(),
    })
}
