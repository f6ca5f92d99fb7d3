//! The lineage as a tree: for people with equal siblings folded, as JSON complete.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::Serialize;

use super::json::{Id, MemberJson, SCHEMA};
use super::out::{fit, printable};
use super::text::{self, Tone, duration_ms, paint};
use super::zombies::{self, ZombieJson};
use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::clock::WallClock;
use crate::kernel::snapshot::Snapshot;
use crate::loss::{Incomplete, Loss};
use crate::proc::{CommandLine, Placement, Zombie};
use crate::process::json::ExitJson;
use crate::process::{Process, Who};
use crate::tree::{Entry, Live};

/// Characters of a command line that are shown unless all is asked for.
const COMMAND_CHARS: usize = 100;

/// Style of a tree.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Turns times since boot into dates.
    pub clock: WallClock,
    /// Now, ns since boot.
    pub now_ns: u64,
    /// True if colour is wanted.
    pub colour: bool,
    /// Every process, and whole command lines.
    pub full: bool,
    /// Columns of the terminal that it is for; `None` where it is for none.
    pub columns: Option<usize>,
}

impl Style {
    /// Returns the time of the answer.
    pub(super) const fn moment(self) -> zombies::Moment {
        zombies::Moment {
            clock: self.clock,
            now_ns: self.now_ns,
        }
    }
}

/// Returns the processes of a list by their exact names, one a line.
#[must_use]
pub fn names(ids: impl IntoIterator<Item = ProcessId>) -> String {
    let name = |id: ProcessId| format!("{}@{}\n", id.pid, id.start_ns);
    ids.into_iter().map(name).collect()
}

/// Returns the tree as text.
#[must_use]
pub fn text(entries: &[Entry], zombies: &[Zombie], snapshot: &Snapshot, style: Style) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < entries.len() {
        let (count, length) = if style.full {
            (1, 1)
        } else {
            fold(&entries[at..])
        };
        let entry = &entries[at];
        let chain = &entries[at..at + length];
        let mut line = line(entry, style);
        if count > 1 && length > 1 {
            line = chain_line(chain, style);
        }
        if count > 1 {
            let last = entries[at + (count - 1) * length].process.id.pid;
            let more = format!("  (and {} more like it, up to {last})", count - 1);
            line.push_str(&paint(style.colour, Tone::Faint, &more));
        }
        text::line(&mut text, entry.depth, &line);
        at += if count > 1 { count * length } else { 1 };
    }
    if !zombies.is_empty() {
        let forest = Forest::new(snapshot.records.iter().copied());
        let lineage = zombies::Lineage::new(&forest);
        for zombie in zombies {
            text.push_str(&zombies::line(zombie, &lineage, style.moment()));
        }
    }
    let mut text = fit(&text, style.columns);
    text::incomplete(&mut text, style.colour, &snapshot.losses());
    text
}

/// Counts the equal chains that begin here: siblings, each with everything below it in one line of
/// creators. Also returns how many entries each has.
fn fold(entries: &[Entry]) -> (usize, usize) {
    let length = chain_length(entries);
    let is_like = |chain: &&[Entry]| {
        chain_length(chain) == length
            && chain[0].process.creator == entries[0].process.creator
            && chain
                .iter()
                .zip(entries)
                .all(|(one, other)| is_alike(one, other))
    };
    let alike = entries[length..]
        .chunks(length.max(1))
        .take_while(|chain| chain.len() == length);
    (1 + alike.take_while(is_like).count(), length)
}

/// Returns how many entries the chain has that begins here; 1 where what stands below branches.
fn chain_length(entries: &[Entry]) -> usize {
    let below = entries.iter().skip(1).zip(entries);
    let chain = 1 + below
        .take_while(|(next, entry)| next.depth == entry.depth + 1)
        .count();
    let ends = entries[..chain].iter().all(|entry| entry.children <= 1)
        && entries
            .get(chain)
            .is_none_or(|next| next.depth <= entries[0].depth);
    if ends { chain } else { 1 }
}

/// Returns whether two entries differ in nothing but who they are.
fn is_alike(one: &Entry, other: &Entry) -> bool {
    one.children == other.children
        && one.depth == other.depth
        && one.process.name == other.process.name
        && one.process.uid == other.process.uid
        && one.live.is_some()
        && one.is_reparented() == other.is_reparented()
        && what(one) == what(other)
}

/// Returns the line of a chain: the names from its top on, and what is said of its last process.
fn chain_line(chain: &[Entry], style: Style) -> String {
    let (last, above) = chain.split_last().expect("a chain has entries");
    let names = above.iter().map(|entry| text::process(&entry.process));
    names.map(|name| name + " -> ").collect::<String>() + &line(last, style)
}

fn what(entry: &Entry) -> Option<(&CommandLine, &Placement)> {
    entry
        .live
        .as_ref()
        .map(|live| (&live.command, &live.placement))
}

fn line(entry: &Entry, style: Style) -> String {
    let mark = if entry.process.inferred { "~ " } else { "" };
    let who = text::process(&entry.process);
    let elided = text::elided(&entry.process);
    if let Some(died) = &entry.died {
        let since = duration_ms(style.now_ns.saturating_sub(died.at_ns) / 1_000_000);
        let how = text::how(&died.death);
        let line = format!("\u{2020} {mark}{who}  {how}, {since} ago");
        return paint(style.colour, Tone::Faint, &line) + &elided;
    }
    let Some(live) = &entry.live else {
        let line = format!("{mark}{who}  dying");
        return paint(style.colour, Tone::Faint, &line);
    };
    let mut text = format!("{mark}{who}");
    let command = command(&live.command, style);
    if !command.is_empty() {
        let _ = write!(text, "  {command}");
    }
    let details = details(entry, live, style.now_ns);
    text.push_str(&paint(style.colour, Tone::Faint, &format!("  [{details}]")));
    if entry.is_reparented() {
        let parent = format!("  parent is {}", live.parent);
        text.push_str(&paint(style.colour, Tone::Warn, &parent));
    }
    text + &elided
}

fn details(entry: &Entry, live: &Live, now_ns: u64) -> String {
    let age = duration_ms(now_ns.saturating_sub(entry.process.id.start_ns) / 1_000_000);
    let mut details = format!("{age}, {}", live.state);
    if let Some(uid) = entry.process.uid {
        let _ = write!(details, ", uid {uid}");
    }
    details + &placed(&live.placement)
}

/// Returns `, foo.service, container 0123456789ab`.
pub(super) fn placed(placement: &Placement) -> String {
    let mut text = String::new();
    match (&placement.container, &placement.unit) {
        (Some(container), _) => {
            let short = container.get(..12).unwrap_or(container);
            let _ = write!(text, ", container {short}");
        }
        (None, Some(unit)) => {
            let _ = write!(text, ", {}", printable(unit));
        }
        (None, None) => {}
    }
    text
}

/// Options whose values tell a process from others that run the same program.
const TELLING: [&str; 8] = [
    "--model",
    "--served-model-name",
    "--port",
    "--name",
    "--rank",
    "--local-rank",
    "--config",
    "-m",
];

/// Puts first what tells a process from others: the program without its directory, then options
/// that name a model, a port and the like with their values, then the rest.
fn telling_first(words: &[String]) -> Vec<String> {
    let Some((program, rest)) = words.split_first() else {
        return Vec::new();
    };
    let name = program.rsplit('/').next().unwrap_or(program);
    // A title that the process has given itself is no path.
    let is_path = program.starts_with('/') && !program.contains(' ') && !name.is_empty();
    let mut first = vec![if is_path { name } else { program }.to_owned()];
    let mut others = Vec::new();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        if TELLING.contains(&word.as_str()) {
            first.push(word.clone());
            first.extend(rest.next().cloned());
        } else if TELLING.iter().any(|option| {
            let value = word.strip_prefix(option);
            value.is_some_and(|value| value.starts_with('='))
        }) {
            first.push(word.clone());
        } else {
            others.push(word.clone());
        }
    }
    first.append(&mut others);
    first
}

/// Returns a command line in one line, safe for a terminal; cut unless all is wanted. On a terminal
/// what tells it from others comes first.
pub(super) fn command(command: &CommandLine, style: Style) -> String {
    let full = style.full;
    let mut words = command.to_strings();
    if !full && style.columns.is_some() {
        words = telling_first(&words);
    }
    let text = printable(&words.join(" "));
    if full || text.chars().count() <= COMMAND_CHARS {
        return text;
    }
    text.chars().take(COMMAND_CHARS).collect::<String>() + "\u{2026}"
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct TreeJson<'a> {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "tree"))]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tree: Option<Id>,
    processes: Vec<EntryJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zombies: Vec<ZombieJson>,
    #[serde(flatten)]
    known: KnownJson,
}

/// Since when the lineage is known, and what of it is not.
#[derive(Serialize, JsonSchema)]
pub(super) struct KnownJson {
    since: String,
    tracker: &'static str,
    complete: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<Incomplete>,
}

impl KnownJson {
    pub(super) fn new(snapshot: &Snapshot, losses: &[Loss], clock: WallClock) -> Self {
        Self {
            since: clock.rfc3339(snapshot.since_ns),
            tracker: if snapshot.is_pinned {
                "host"
            } else {
                "private"
            },
            complete: losses.is_empty(),
            incomplete: Incomplete::all(losses),
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct EntryJson<'a> {
    #[serde(flatten)]
    pub(super) member: MemberJson,
    pub(super) alive: bool,
    pub(super) age_ms: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) live: Option<LiveJson<'a>>,
}

/// The facts that `/proc` adds.
#[derive(Serialize, JsonSchema)]
pub(super) struct LiveJson<'a> {
    state: char,
    /// Its present parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Who>,
    reparented: bool,
    #[serde(flatten)]
    start: StartJson<'a>,
}

/// Command line and placement of a process.
#[derive(Serialize, JsonSchema)]
pub(super) struct StartJson<'a> {
    command: Vec<String>,
    /// All of it in base64, with a zero byte behind each word, where it is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
    /// There is more of the command line.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    cgroup: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a str>,
}

impl<'a> StartJson<'a> {
    pub(super) fn new(command: &CommandLine, placement: &'a Placement) -> Self {
        Self {
            command: command.to_strings(),
            bytes: command
                .bytes_unless_text()
                .map(|bytes| BASE64_STANDARD.encode(bytes)),
            truncated: command.truncated,
            cgroup: &placement.cgroup,
            unit: placement.unit.as_deref(),
            container: placement.container.as_deref(),
        }
    }
}

/// Returns the tree as one JSON object and a newline.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(
    entries: &[Entry],
    zombies: &[Zombie],
    snapshot: &Snapshot,
    root: Option<ProcessId>,
    style: Style,
) -> Result<String, serde_json::Error> {
    let forest = Forest::new(snapshot.records.iter().copied());
    let processes = entries
        .iter()
        .map(|entry| entry_json(entry, &forest, style));
    let lineage = zombies::Lineage::new(&forest);
    let zombie = |zombie| ZombieJson::new(zombie, &lineage, style.moment());
    let json = TreeJson {
        schema: SCHEMA,
        kind: "tree",
        tree: root.map(Into::into),
        processes: processes.collect(),
        zombies: zombies.iter().map(zombie).collect(),
        known: KnownJson::new(snapshot, &snapshot.losses(), style.clock),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

fn entry_json<'a>(entry: &'a Entry, forest: &Forest, style: Style) -> EntryJson<'a> {
    let mut member = MemberJson::from(&entry.process);
    let mut end_ns = style.now_ns;
    if let Some(died) = &entry.died {
        end_ns = died.at_ns;
        member.set_death(style.clock.rfc3339(end_ns), ExitJson::from(&died.death));
    }
    EntryJson {
        member,
        alive: entry.died.is_none(),
        age_ms: end_ns.saturating_sub(entry.process.id.start_ns) / 1_000_000,
        live: entry
            .live
            .as_ref()
            .map(|live| live_json(live, entry.is_reparented(), forest)),
    }
}

/// Returns what `/proc` adds to a living process.
pub(super) fn live_json<'a>(live: &'a Live, reparented: bool, forest: &Forest) -> LiveJson<'a> {
    let parent = forest.live(live.parent);
    let of_record = |id| Some(Process::of_record(id, forest.record(&id)?).who());
    LiveJson {
        state: live.state,
        parent: parent.and_then(of_record),
        reparented,
        start: StartJson::new(&live.command, &live.placement),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(pid: u32, name: &str) -> Entry {
        Entry {
            process: Process {
                name: Some(name.into()),
                ..Process::unknown(ProcessId::new(pid, 1))
            },
            depth: 1,
            live: Some(Live {
                state: 'S',
                parent: 1,
                command: CommandLine::default(),
                placement: Placement::default(),
            }),
            died: None,
            children: 0,
        }
    }

    #[test]
    fn equal_siblings_without_children_fold() {
        let mut entries = vec![worker(1, "a"), worker(2, "a"), worker(3, "b")];
        assert_eq!(fold(&entries), (2, 1));
        entries[1].children = 1;
        assert_eq!(fold(&entries), (1, 1));
        entries[1] = worker(2, "a");
        entries[1].depth = 2;
        assert_eq!(fold(&entries).0, 1);
    }

    #[test]
    fn what_tells_a_process_from_others_comes_first() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            telling_first(&words(
                "/usr/bin/python3 ./serve -v --model m --x y --port=80"
            )),
            words("python3 --model m --port=80 ./serve -v --x y")
        );
        let title = vec!["nginx: worker process".to_owned()];
        assert_eq!(telling_first(&title), title);
        assert_eq!(telling_first(&[]), Vec::<String>::new());
    }

    #[test]
    fn equal_chains_fold() {
        let chain = |pid: u32, last: &str| {
            let mut chain = vec![
                worker(pid, "npm"),
                worker(pid + 1, "sh"),
                worker(pid + 2, last),
            ];
            for (depth, entry) in chain.iter_mut().enumerate() {
                entry.depth = depth + 1;
                entry.children = usize::from(depth < 2);
            }
            chain
        };
        let mut entries = [chain(10, "node"), chain(20, "node"), chain(30, "deno")].concat();
        assert_eq!(fold(&entries), (2, 3));
        entries[5].children = 1;
        assert_eq!(fold(&entries), (1, 3));
        entries[2].children = 2;
        entries.insert(3, worker(13, "x"));
        entries[3].depth = 4;
        entries.insert(4, worker(14, "x"));
        entries[4].depth = 4;
        assert_eq!(fold(&entries), (1, 1));
    }
}
