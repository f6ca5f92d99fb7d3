//! What is answered at once: the lineage, the orphans, the holders of GPUs, and the agent itself,
//! each as the caller may see it.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::forest::Forest;
use crate::gpu::holders::{self, DeviceFiles};
use crate::gpu::nvml::{self, Server};
use crate::gpu::{self, Survey};
use crate::kernel::clock::{self, WallClock};
use crate::kernel::snapshot::Snapshot;
use crate::orphan::{self, Known, Orphan, Verdict};
use crate::process::Who;
use crate::report;
use crate::report::gpu::{GpuReport, describe};
use crate::report::orphans::OrphansReport;
use crate::report::tree::Style;
use crate::tree::{gather_where, zombies_of};

use super::Core;
use crate::agent::call::{Answer, Form, OrphansQuery};
use crate::agent::naming::Name;
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::rights::Reach;
use crate::agent::view::View;

type Answered = Result<Answer, Problem>;

/// Answers with the lineage.
pub(super) fn tree(core: &Core, peer: &Peer, process: Option<&Name>, form: Form) -> Answered {
    let snapshot = core.snapshot()?;
    let view = View::new(&snapshot, peer);
    let root = process.map(|name| view.find(name, core.handles()));
    let root = root.transpose()?;
    let (entries, others) = gather_where(&snapshot, root, |id, record| view.shows(id, record));
    let style = style(form);
    let zombies = zombies_of(&entries, root.is_none() && view.is_all());
    if form.is_text {
        let mut text = report::tree::text(&entries, &zombies, &snapshot, style);
        if others > 0 {
            text.push_str(&format!("not shown: {others} of others\n"));
        }
        return Ok(Answer::text(text));
    }
    let json = report::tree::json(&entries, &zombies, &snapshot, root, style);
    finish(json, &view, others)
}

/// Answers with what was left behind.
pub(super) async fn orphans(
    core: &Core,
    peer: &Peer,
    query: &OrphansQuery,
    form: Form,
) -> Answered {
    let (mut snapshot, mut subreapers) = core.snapshot_with_subreapers()?;
    let files = DeviceFiles::default();
    let mut answer = nvml::Answer::NotAsked;
    let asked_ns = clock::boot_ns();
    let (mut scan, mut forest) = look(&snapshot, query, &files);
    if query.gpu || !scan.holders.is_empty() {
        answer = Server::of_this_program().ask().await;
        (snapshot, subreapers) = core.snapshot_with_subreapers()?;
        (scan, forest) = look(&snapshot, query, &files);
    }
    let view = View::new(&snapshot, peer);
    let tree = query.tree.as_ref();
    let tree = tree.map(|name| view.find(name, core.handles()));
    let tree = tree.transpose()?;
    let survey = gpu::survey(&forest, answer, asked_ns, scan);
    let known = Known {
        forest: &forest,
        subreapers: &subreapers,
        holders: &survey.holders,
    };
    let mut orphans = orphan::find(&known, tree);
    let all = orphans.len();
    orphans.retain(|orphan| view.shows_id(&orphan.process.id));
    let others = all - orphans.len();
    orphans.retain(|orphan| !query.gpu || !orphan.subtree.gpu.is_empty());
    let not_shown = orphan::leave_out(&mut orphans, |orphan| {
        query.all || orphan.verdict.is_left_behind() || orphan.was_seen_left()
    });
    orphan::measure(&forest, &mut orphans);
    for orphan in &mut orphans {
        hide(orphan, &view);
    }
    let losses = [snapshot.losses(), survey.losses()].concat();
    let report = OrphansReport {
        orphans: &orphans,
        not_shown: &not_shown,
        ended: None,
        snapshot: &snapshot,
        zombies: None,
        losses: &losses,
    };
    if form.is_text {
        return Ok(Answer::text(report::orphans::text(&report, style(form))));
    }
    finish(report::orphans::json(&report, style(form)), &view, others)
}

/// Scans for holders of GPUs where orphans can be.
fn look(snapshot: &Snapshot, query: &OrphansQuery, files: &DeviceFiles) -> (holders::Scan, Forest) {
    let forest = Forest::new(snapshot.records.iter().copied());
    let held = holders::scan_below_orphans(&forest, query.all || query.gpu, files);
    (held, forest)
}

/// Takes out of what is said of an orphan whom the caller does not see.
fn hide(orphan: &mut Orphan, view: &View<'_>) {
    if view.is_all() {
        return;
    }
    for who in [&mut orphan.creator, &mut orphan.root, &mut orphan.parent] {
        let is_hidden = |who: &Who| !view.shows_id(&who.id);
        if who.as_ref().is_some_and(is_hidden) {
            *who = None;
        }
    }
}

/// Answers with the holders of GPUs.
pub(super) async fn gpu(core: &Core, peer: &Peer, form: Form) -> Answered {
    let asked_ns = clock::boot_ns();
    let answer = Server::of_this_program().ask().await;
    let (snapshot, subreapers) = core.snapshot_with_subreapers()?;
    let forest = Forest::new(snapshot.records.iter().copied());
    let scan = holders::scan(forest.all_living(), &DeviceFiles::default());
    let mut survey = gpu::survey(&forest, answer, asked_ns, scan);
    let known = Known {
        forest: &forest,
        subreapers: &subreapers,
        holders: &survey.holders,
    };
    let view = View::new(&snapshot, peer);
    let mut orphans = orphan::with_gpus(&known);
    orphans.retain(|orphan| view.shows_id(&orphan.process.id));
    for orphan in &mut orphans {
        hide(orphan, &view);
    }
    let others = leave_own(&mut survey, &view);
    let above = orphan::above(&forest, &orphans, survey.holders.keys().copied());
    let mut holders = describe(&forest, &survey);
    for holder in &mut holders {
        holder.lineage.retain(|who| view.shows_id(&who.who.id));
    }
    let losses = [snapshot.losses(), survey.losses()].concat();
    let report = GpuReport {
        survey: &survey,
        holders: &holders,
        orphans: &above,
        ended: None,
        snapshot: &snapshot,
        losses: &losses,
    };
    if form.is_text {
        return Ok(Answer::text(report::gpu::text(&report, style(form))));
    }
    finish(report::gpu::json(&report, style(form)), &view, others)
}

/// Leaves in a survey what the caller sees; returns how many holders it does not.
fn leave_own(survey: &mut Survey, view: &View<'_>) -> usize {
    if view.is_all() {
        return 0;
    }
    let all = survey.holders.len();
    survey.holders.retain(|id, _| view.shows_id(id));
    survey.strangers.clear();
    let own: HashSet<u32> = survey.holders.keys().map(|id| id.pid).collect();
    if let nvml::Answer::Gpus(gpus) = &mut survey.nvml {
        for gpu in gpus {
            gpu.processes.retain(|process| own.contains(&process.pid));
        }
    }
    all - survey.holders.len()
}

/// Answers whether a process lives and nothing of its tree was leaked.
pub(super) fn health(core: &Core, peer: &Peer, process: &Name) -> Answered {
    let (snapshot, subreapers) = core.snapshot_with_subreapers()?;
    let view = View::new(&snapshot, peer);
    let root = view.find(process, core.handles())?;
    let forest = Forest::new(snapshot.records.iter().copied());
    let holders = HashMap::new();
    let known = Known {
        forest: &forest,
        subreapers: &subreapers,
        holders: &holders,
    };
    let mut causes = Vec::new();
    if !forest.is_live(&root) {
        causes.push(json!({"cause": "dead"}));
    }
    let mut leaked = orphan::find(&known, Some(root));
    leaked.retain(|orphan| orphan.verdict == Verdict::Leaked && view.shows_id(&orphan.process.id));
    if !leaked.is_empty() {
        let ids = leaked.iter().map(|orphan| {
            let id = orphan.process.id;
            json!({"pid": id.pid, "start_ns": id.start_ns})
        });
        let orphans: Vec<_> = ids.collect();
        causes.push(json!({"cause": "leaked_orphans", "orphans": orphans}));
    }
    let losses = snapshot.losses();
    let status = if causes.is_empty() { 200 } else { 503 };
    let body = json!({
        "schema": report::json::SCHEMA,
        "process": {"pid": root.pid, "start_ns": root.start_ns},
        "healthy": causes.is_empty(),
        "causes": causes,
        "complete": losses.is_empty(),
    });
    Ok(Answer::object(status, &body))
}

/// Answers what the agent is, and what the caller may.
pub(super) fn info(core: &Core, peer: &Peer) -> Answered {
    let snapshot = core.snapshot()?;
    let view = View::new(&snapshot, peer);
    let own = view.find(&Name::Oneself, core.handles()).ok();
    let own = own.unwrap_or(peer.process);
    let record = snapshot.records.iter().find(|(id, _)| *id == own);
    let losses = snapshot.losses();
    let body = json!({
        "schema": report::json::SCHEMA,
        "agent": {
            "version": env!("CARGO_PKG_VERSION"),
            "api": "v1",
            "epoch": core.epoch(),
            "since": WallClock::now().rfc3339(snapshot.since_ns),
            "tracker": if snapshot.is_pinned { "host" } else { "private" },
            "complete": losses.is_empty(),
        },
        "caller": {
            "pid": own.pid,
            "start_ns": own.start_ns,
            "ns_pid": record.map(|(_, record)| record.ns_pid),
            "uid": peer.uid,
            "sees": reach(peer.rights.sees),
            "ends": reach(peer.rights.ends),
        },
    });
    Ok(Answer::object(200, &body))
}

fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::All => "all",
        Reach::Container => "container",
        Reach::Namespaces => "uid_in_namespaces",
        Reach::User => "uid",
    }
}

fn style(form: Form) -> Style {
    Style {
        clock: WallClock::now(),
        now_ns: clock::boot_ns(),
        colour: form.colour,
        full: form.full,
        columns: None,
    }
}

/// Adds how many of others there are, for who does not see everything.
fn finish(json: serde_json::Result<String>, view: &View<'_>, others: usize) -> Answered {
    let mut json = json.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    if !view.is_all() {
        let body = json.trim_end().strip_suffix('}').unwrap_or_default();
        json = format!("{body},\"others\":{}}}\n", Value::from(others));
    }
    Ok(Answer::json(200, json))
}
