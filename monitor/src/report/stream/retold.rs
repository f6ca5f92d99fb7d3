//! The text of a stream that came as JSON: what the node agent tells is shown as `lifemon attach`
//! shows it.

use serde::Deserialize;
use serde_json::{Error, Value};

use super::text::Text;
use super::{EVENTS, Summary};
use crate::kernel::clock::{self, WallClock};
use crate::loss::{Incomplete, Loss};
use crate::process::{Cause, Death, Died, Process, Sender, Signal, Who};
use crate::report::out::printable;
use crate::session::{Ghost, LostAtStart, Start};
use crate::watch::{Happening, Totals, What};

/// Turns lines of JSON into text.
#[derive(Debug)]
pub struct Retold {
    clock: WallClock,
    text: Text,
}

#[derive(Deserialize)]
struct Attached {
    root: Process,
    members: Vec<Process>,
    ghosts: Vec<Dead>,
    since: String,
    tracker: String,
    #[serde(default)]
    incomplete: Vec<Incomplete>,
    #[serde(default)]
    others: u64,
}

#[derive(Deserialize)]
struct Dead {
    #[serde(flatten)]
    process: Process,
    died: String,
    exit: Death,
}

#[derive(Deserialize)]
struct Happened {
    event: String,
    time: Option<String>,
    process: Process,
    creator: Option<Who>,
    signal: Option<Signalled>,
    exit: Option<Death>,
    #[serde(default)]
    orphans: Vec<Who>,
    #[serde(default)]
    stranded: bool,
    parent: Option<Who>,
    after_us: Option<u64>,
    #[serde(default)]
    resynced: bool,
}

#[derive(Deserialize)]
struct Signalled {
    signal: Signal,
    sender: Option<Sender>,
    #[serde(default)]
    parent_death: bool,
}

#[derive(Deserialize)]
struct Lost {
    time: Option<String>,
    reason: String,
    #[serde(default)]
    count: u64,
    #[serde(default)]
    recovered: bool,
}

#[derive(Deserialize)]
struct Detached {
    summary: Option<Counted>,
    #[serde(default)]
    incomplete: Vec<Incomplete>,
}

#[derive(Deserialize)]
struct Counted {
    seen: u64,
    exits: std::collections::BTreeMap<String, u64>,
    alive: u64,
    orphans: Vec<Who>,
    lost_events: u64,
    resynced: u64,
}

impl Retold {
    /// Begins a stream of lines for people, with or without colour.
    #[must_use]
    pub fn text(colour: bool) -> Self {
        let clock = WallClock::now();
        let text = Text::new(clock, colour);
        Self { clock, text }
    }

    /// Writes one line, or several.
    ///
    /// # Errors
    /// When it is no line of a stream.
    pub fn line(&self, line: &Value) -> Result<String, Error> {
        let event = line["event"].as_str().unwrap_or_default();
        match event {
            "attached" => Attached::deserialize(line).map(|attached| self.attached(&attached)),
            "lost" => Lost::deserialize(line).map(|lost| self.lost(&lost)),
            "extinct" => {
                let at_ns = self.boot_ns(line["time"].as_str());
                Ok(self.text.extinct(at_ns, line["complete"] == true))
            }
            "detached" => Detached::deserialize(line).map(|detached| self.detached(detached)),
            _ if EVENTS.contains(&event) => self.happened(Happened::deserialize(line)?),
            // A later agent tells more.
            _ => Ok(printable(&line.to_string()) + "\n"),
        }
    }

    /// Returns a time in ns since boot; now where there is none.
    fn boot_ns(&self, time: Option<&str>) -> u64 {
        let read = time.and_then(|time| self.clock.boot_ns_of(time));
        read.unwrap_or_else(clock::boot_ns)
    }

    fn attached(&self, attached: &Attached) -> String {
        let ghosts = attached.ghosts.iter().map(|dead| Ghost {
            process: dead.process.clone(),
            died: Died::new(self.boot_ns(Some(&dead.died)), dead.exit.clone()),
        });
        let losses = attached.incomplete.iter().map(|one| LostAtStart {
            loss: one.reason,
            count: one.count.unwrap_or(0),
        });
        let start = Start {
            root: attached.root.clone(),
            members: attached.members.clone(),
            ghosts: ghosts.collect(),
            losses: losses.collect(),
            since_ns: self.boot_ns(Some(&attached.since)),
        };
        let text = self.text.attached(&start, attached.tracker == "host");
        match attached.others {
            0 => text,
            others => format!("{text}not shown: {others} of others\n"),
        }
    }

    fn happened(&self, line: Happened) -> Result<String, Error> {
        let wrong = |why: &str| serde::de::Error::custom(why);
        let what = match line.event.as_str() {
            "fork" => What::Fork,
            "exec" => What::Exec,
            "signal" => {
                let signalled = line.signal.ok_or_else(|| wrong("a signal without one"))?;
                What::Signal {
                    signal: signalled.signal,
                    sender: signalled.sender,
                    parent_death: signalled.parent_death,
                }
            }
            "exit" => What::Exit {
                death: line.exit,
                orphans: line.orphans,
            },
            "gone" => What::Gone {
                after_ns: line.after_us.map(|after| after.saturating_mul(1_000)),
            },
            "orphaned" => What::Orphaned {
                root_alive: !line.stranded,
            },
            _ => return Err(wrong("an event of another kind")),
        };
        let happening = Happening {
            at_ns: line.time.as_deref().map(|time| self.boot_ns(Some(time))),
            process: line.process,
            creator: line.creator,
            what,
            resynced: line.resynced,
        };
        Ok(self.text.happening(&happening, line.parent, None))
    }

    fn lost(&self, lost: &Lost) -> String {
        let at_ns = self.boot_ns(lost.time.as_deref());
        match Loss::deserialize(&Value::from(lost.reason.as_str())) {
            Ok(known) => self.text.lost(at_ns, known, lost.count, lost.recovered),
            Err(_) => self.text.not_told(at_ns, &lost.reason),
        }
    }

    fn detached(&self, detached: Detached) -> String {
        let losses: Vec<_> = detached.incomplete.iter().map(|one| one.reason).collect();
        let Some(counted) = detached.summary else {
            return "watching has ended while events were lost\n".to_owned();
        };
        let count = |cause: Cause| counted.exits.get(cause.word()).copied();
        let causes = [Cause::Exited, Cause::Signal, Cause::Oom, Cause::Unseen];
        let exits = causes.into_iter();
        let exits = exits.filter_map(|cause| Some((cause, count(cause)?)));
        let totals = Totals {
            seen: counted.seen,
            exits: exits.collect(),
            exits_unknown: counted.exits.get("unknown").copied().unwrap_or(0),
            resynced: counted.resynced,
        };
        self.text.detached(&Summary {
            at_ns: 0,
            totals: &totals,
            alive: counted.alive,
            orphans: counted.orphans,
            lost_events: counted.lost_events,
            losses: &losses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::Stream;
    use super::*;
    use crate::ProcessId;

    const AT: u64 = 9_123_456_789;

    fn process(pid: u32) -> Process {
        Process {
            name: Some("worker".into()),
            uid: Some(7),
            ns_pid: Some(3),
            creator: Some(ProcessId::new(1, 2)),
            inferred: true,
            elided: 2,
            ..Process::unknown(ProcessId::new(pid, 5_000_000_000))
        }
    }

    fn both() -> (Stream, Retold) {
        let clock = WallClock::now();
        let text = Text::new(clock, true);
        let stream = Stream::new(clock, ProcessId::new(7, 9));
        (stream, Retold { clock, text })
    }

    fn retold(retold: &Retold, line: &str) -> String {
        retold.line(&serde_json::from_str(line).unwrap()).unwrap()
    }

    #[test]
    fn what_happens_reads_the_same() {
        let (mut stream, again) = both();
        let (who, killed) = (process(8).who(), Death::from_wait_status(9));
        let all = [
            What::Fork,
            What::Exec,
            What::Signal {
                signal: Signal::of_kernel(15),
                sender: Some(Sender::Process(who.clone())),
                parent_death: true,
            },
            What::Exit {
                death: Some(killed),
                orphans: vec![who.clone()],
            },
            What::Exit {
                death: None,
                orphans: Vec::new(),
            },
            What::Gone {
                after_ns: Some(1_234_000),
            },
            What::Gone { after_ns: None },
            What::Orphaned { root_alive: true },
            What::Orphaned { root_alive: false },
        ];
        for (what, at_ns) in all.into_iter().zip([Some(AT), None].into_iter().cycle()) {
            let happening = Happening {
                at_ns,
                process: process(7),
                creator: Some(who.clone()),
                what,
                resynced: at_ns.is_none(),
            };
            let parent = matches!(happening.what, What::Orphaned { .. }).then(|| who.clone());
            let line = stream.happening(&happening, parent.clone(), None);
            let text = again.text.happening(&happening, parent, None);
            assert_eq!(retold(&again, &line), text);
        }
    }

    #[test]
    fn the_beginning_the_end_and_what_was_lost_read_the_same() {
        let (mut stream, again) = both();
        let start = Start {
            root: process(7),
            members: vec![process(7), process(8)],
            ghosts: vec![Ghost {
                process: process(6),
                died: Died::new(AT, Death::from_wait_status(1 << 8)),
            }],
            losses: vec![LostAtStart {
                loss: Loss::MembersFull,
                count: 3,
            }],
            since_ns: AT,
        };
        for is_pinned in [true, false] {
            let line = stream.attached(&start, AT, is_pinned);
            assert_eq!(
                retold(&again, &line),
                again.text.attached(&start, is_pinned)
            );
        }
        let line = stream.lost(AT, Loss::RingFull, 4, false, false);
        let text = again.text.lost(AT, Loss::RingFull, 4, false);
        assert_eq!(retold(&again, &line), text);
        let line = stream.extinct(AT, true);
        assert_eq!(retold(&again, &line), again.text.extinct(AT, true));
        let totals = Totals {
            seen: 9,
            exits: [(Cause::Exited, 1), (Cause::Oom, 2)].into(),
            exits_unknown: 3,
            resynced: 4,
        };
        let summary = Summary {
            at_ns: AT,
            totals: &totals,
            alive: 5,
            orphans: vec![process(8).who()],
            lost_events: 6,
            losses: &[Loss::SwitchedOff],
        };
        let line = stream.detached(&summary);
        assert_eq!(retold(&again, &line), again.text.detached(&summary));
    }

    #[test]
    fn what_the_stream_itself_has_lost_is_shown() {
        let (_, again) = both();
        let line = r#"{"event":"lost","reason":"slow_reader","complete":false}"#;
        assert!(retold(&again, line).contains("slow_reader"));
        let end = r#"{"event":"detached","complete":false}"#;
        assert!(retold(&again, end).contains("lost"));
        let later = r#"{"event":"later","what":"news"}"#;
        assert!(retold(&again, later).contains("news"));
    }
}
