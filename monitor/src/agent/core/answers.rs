//! What is answered at once: the lineage, the orphans, the holders of GPUs, one process, the
//! deaths, and the agent itself, each as the caller may see it.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::deaths::{self, Choice};
use crate::explain::{self, Asker};
use crate::forest::Forest;
use crate::gpu::holders::{self, DeviceFiles};
use crate::gpu::nvml::{self, Server};
use crate::gpu::{self, Survey};
use crate::kernel::clock::{self, WallClock};
use crate::kernel::snapshot::Snapshot;
use crate::orphan::{self, Known};
use crate::report;
use crate::report::gpu::{GpuReport, describe};
use crate::report::orphans::OrphansReport;
use crate::report::tree::Style;
use crate::tree::{gather_where, zombies_of};

use super::Core;
use crate::agent::call::{Answer, Form, LogQuery, OrphansQuery};
use crate::agent::naming::Name;
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::rights::Reach;
use crate::agent::time::parse_duration;
use crate::agent::view::View;

type Answered = Result<Answer, Problem>;

/// Answers that the lineage can be read.
pub(super) fn ready(core: &Core) -> Answered {
    core.snapshot()?;
    Ok(Answer::object(200, &json!({"ready": true})))
}

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
        let text = report::tree::text(&entries, &zombies, &snapshot, style);
        return Ok(with_others(text, others));
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
        orphan.hide(|id| view.shows_id(&id));
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

/// Answers with the holders of GPUs.
pub(super) async fn gpu(core: &Core, peer: &Peer, form: Form) -> Answered {
    let asked_ns = clock::boot_ns();
    // It lives until the scan is over, and is left out of it.
    let mut server = Server::of_this_program();
    let answer = server.ask().await;
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
        orphan.hide(|id| view.shows_id(&id));
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
    let mut leaked = orphan::leaked(&known, root);
    leaked.retain(|id| view.shows_id(id));
    if !leaked.is_empty() {
        let ids = leaked.iter();
        let ids = ids.map(|id| json!({"pid": id.pid, "start_ns": id.start_ns}));
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

/// Answers with one process, explained.
pub(super) async fn explain(core: &Core, peer: &Peer, process: &Name, form: Form) -> Answered {
    let (snapshot, subreapers) = core.snapshot_with_subreapers()?;
    let view = View::new(&snapshot, peer);
    let found = match view.find(process, core.handles()) {
        Ok(id) => Ok(id),
        Err(problem) => Err(view.find_zombie(process).ok_or(problem)?),
    };
    let forest = Forest::new(snapshot.records.iter().copied());
    let (id, files) = (found.as_ref().ok().copied(), DeviceFiles::default());
    let survey = explain::survey(&forest, id, &files).await;
    let known = Known {
        forest: &forest,
        subreapers: &subreapers,
        holders: &survey.holders,
    };
    let (sees, ends) = (peer.scope(peer.rights.sees), peer.scope(peer.rights.ends));
    let asker = Asker {
        sees: &|id| view.shows_id(&id),
        looks_into: &|id| sees.looks_into(id),
        ends: &|id| ends.has(id),
    };
    let explanation = match found {
        Ok(id) => explain::of_process(&known, &snapshot, id, asker),
        Err(zombie) => Some(explain::of_zombie(&known, &snapshot, zombie, asker)),
    };
    let died = || Problem::new(Code::NoSuchProcess, "it has died at this moment");
    let explanation = explanation.ok_or_else(died)?;
    let report = report::explain::Report {
        explanation: &explanation,
        forest: &view.forest(),
        snapshot: &snapshot,
        losses: &[snapshot.losses(), survey.losses()].concat(),
    };
    let (style, others) = (style(form), explanation.others);
    if form.is_text {
        return Ok(with_others(report::explain::text(&report, style), others));
    }
    finish(report::explain::json(&report, style), &view, others)
}

/// Answers with the deaths that the flight recorder has.
pub(super) fn log(core: &Core, peer: &Peer, query: &LogQuery, form: Form) -> Answered {
    let now_ns = clock::boot_ns();
    let since = query.since.as_deref().map(parse_duration).transpose();
    let since = since.map_err(|why| Problem::new(Code::InvalidRequest, format!("since: {why}")))?;
    let (mut log, snapshot) = core.log()?;
    let view = View::new(&snapshot, peer);
    let all = Forest::new(snapshot.records.iter().copied());
    let tree = query.tree.as_ref().map(|name| {
        let found = view.find(name, core.handles());
        let root = found.or_else(|problem| view.find_death(name, &log).ok_or(problem))?;
        Ok::<_, Problem>(deaths::tree(root, &log, &all))
    });
    let choice = Choice {
        since_ns: since.map(|since| clock::before(now_ns, since)),
        user: query.user,
        tree: tree.transpose()?,
    };
    let chosen = log.entries.iter().filter(|entry| choice.means(entry));
    let chosen = chosen.count();
    // Names are taken from other deaths too: of these as well it knows its own alone.
    log.entries.retain(|entry| view.shows_death(entry));
    log.entries
        .iter_mut()
        .for_each(|entry| view.hide_sender(entry));
    let mut entries = log.entries.clone();
    entries.retain(|entry| choice.means(entry));
    let report = report::log::Report {
        entries: &entries,
        log: &log,
        forest: &view.forest(),
        snapshot: &snapshot,
        losses: &choice.losses(query.user.or(view.uid()), &log, &snapshot),
    };
    let (style, others) = (style(form), chosen - entries.len());
    if form.is_text {
        return Ok(with_others(report::log::text(&report, style), others));
    }
    finish(report::log::json(&report, style), &view, others)
}

/// Answers with text, and says how many of others there are.
fn with_others(mut text: String, others: usize) -> Answer {
    if others > 0 {
        text.push_str(&format!("not shown: {others} of others\n"));
    }
    Answer::text(text)
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
