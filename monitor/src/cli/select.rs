//! Selectors: which processes are meant, in the same words for `orphans`, `tree`, `gpu` and `kill
//! --dry-run`. Several selectors together mean the processes that all of them mean; one that is
//! repeated means any of its values.
//!
//! What a process is (user, age, unit, container, pod, job) is asked of the process itself. What it
//! holds or runs (`--holds`, `--port`, `--match`) is asked, of an orphan, of everything below it
//! too: all of that ends with it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifemon_ebpf::Record;
use regex::bytes::RegexSet;

use super::{Usage, parse_duration};
use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::clock;
use crate::kernel::snapshot::Snapshot;
use crate::orphan::{self, Orphan};
use crate::proc::{self, Held, Placement};
use crate::process::Process;
use crate::tree::{self, Entry};

/// Where a kubelet keeps a directory for each pod, named `NAMESPACE_NAME_UID`.
const POD_LOGS: &str = "/var/log/pods";

/// Where a kubelet keeps its state.
const KUBELET: &str = "/var/lib/kubelet/pods";

/// Hexadecimal digits of a container's id that are enough to name it.
const CONTAINER_DIGITS_MIN: usize = 4;

/// Arguments that choose processes.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Selectors")]
pub(super) struct Selectors {
    /// Only those where a whole command line or a name matches; repeatable: any of them
    #[arg(long = "match", value_name = "REGEX")]
    patterns: Vec<String>,
    /// Only those that have run for longer: 10m, 1.5s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    older_than: Option<Duration>,
    /// Only those that hold this file, or a file in this directory: open, mapped, as program or as
    /// working directory; repeatable
    #[arg(long, value_name = "PATH")]
    holds: Vec<PathBuf>,
    /// Only those with a socket on this local port, in any network namespace; repeatable
    #[arg(long = "port", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// Only those of this user, by name or number
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    user: Option<u32>,
    /// Only those of this systemd unit, or of a unit in it; `.service` may be left out
    #[arg(long = "unit", value_name = "UNIT")]
    units: Vec<String>,
    /// Only those of the container with this id, or with an id that begins so
    #[arg(long = "container", value_name = "ID", value_parser = parse_container)]
    containers: Vec<String>,
    /// Only those of this Kubernetes pod, by NAME, NAMESPACE/NAME or uid
    #[arg(long = "pod", value_name = "POD")]
    pods: Vec<String>,
    /// Only those of this job of a scheduler, by its id or as VARIABLE=ID
    #[arg(long = "job", value_name = "ID")]
    jobs: Vec<String>,
}

/// `--pod` where nothing says which pods there are: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error(
    "no kubelet runs on this host: neither {POD_LOGS} nor {KUBELET} is there, and no process is in \
     the control group of a pod; run this on the pod's node, or use --container"
)]
pub struct NoKubelet;

/// The selectors, ready to be asked.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    args: &'a Selectors,
    patterns: RegexSet,
    held: Vec<Held>,
    /// Inodes of the sockets with one of the ports.
    sockets: HashSet<u64>,
    /// Uids of pods, as control groups of any driver have them without their punctuation.
    pods: Vec<String>,
    now_ns: u64,
}

impl Selectors {
    /// Returns whether looking them up enters the namespaces of others.
    pub(super) fn enter_namespaces(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Returns whether any of them was given.
    pub(super) fn are_given(&self) -> bool {
        let texts = [&self.patterns, &self.units, &self.containers];
        texts.into_iter().any(|list| !list.is_empty())
            || !(self.pods.is_empty() && self.jobs.is_empty())
            || !(self.holds.is_empty() && self.ports.is_empty())
            || self.older_than.is_some()
            || self.user.is_some()
    }

    /// Returns the user whose processes are meant.
    pub(super) const fn user(&self) -> Option<u32> {
        self.user
    }

    /// Looks up what they name: sockets, files, pods.
    ///
    /// # Errors
    /// [`Usage`] where a pattern is wrong or there is no such pod, [`NoKubelet`].
    pub(super) fn prepare(&self) -> anyhow::Result<Selection<'_>> {
        let patterns = RegexSet::new(&self.patterns).map_err(|error| Usage(regex_error(&error)))?;
        let sockets = self.ports.iter().map(|port| proc::sockets_on(*port));
        Ok(Selection {
            args: self,
            patterns,
            held: self.holds.iter().map(|path| Held::new(path)).collect(),
            sockets: sockets.flatten().collect(),
            pods: pods(&self.pods)?,
            now_ns: clock::boot_ns(),
        })
    }
}

impl Selection<'_> {
    /// Returns whether this living process is meant.
    pub(super) fn means(&self, id: ProcessId, record: &Record) -> bool {
        self.means_what_it_is(id, record) && self.means_what_it_does(id, record)
    }

    /// Returns those entries of a tree that are meant, and the dead above them.
    pub(super) fn entries(&self, snapshot: &Snapshot, mut entries: Vec<Entry>) -> Vec<Entry> {
        if !self.args.are_given() {
            return entries;
        }
        let forest = Forest::new(snapshot.records.iter().copied());
        tree::keep(&mut entries, |entry| {
            let id = entry.process.id;
            let record = forest.record(&id).filter(|_| entry.live.is_some());
            record.is_some_and(|record| self.means(id, record))
        });
        entries
    }

    /// Returns the topmost living processes that are meant and that `may` be named.
    pub(super) fn roots(
        &self,
        snapshot: &Snapshot,
        may: impl Fn(ProcessId) -> bool,
    ) -> Vec<ProcessId> {
        let forest = Forest::new(snapshot.records.iter().copied());
        let meant: HashSet<ProcessId> = forest
            .all_living()
            .filter(|id| {
                let record = forest.record(id);
                record.is_some_and(|record| self.means(*id, record)) && may(*id)
            })
            .collect();
        let is_below = |id: &ProcessId| forest.ancestors(id).iter().any(|id| meant.contains(id));
        let mut roots: Vec<_> = meant.iter().copied().filter(|id| !is_below(id)).collect();
        roots.sort_unstable();
        roots
    }

    /// Returns those of these orphans that are meant: by what they are, and by what they or
    /// anything below them do.
    pub(super) fn orphans(&self, forest: &Forest, mut orphans: Vec<Orphan>) -> Vec<Orphan> {
        if !self.args.are_given() {
            return orphans;
        }
        orphans.retain(|orphan| {
            let id = orphan.process.id;
            let record = forest.record(&id);
            record.is_some_and(|record| self.means_what_it_is(id, record))
        });
        if self.asks_what_it_does() {
            let matching = orphan::with_any(forest, &orphans, |id, record| {
                self.means_what_it_does(id, record)
            });
            orphans.retain(|orphan| matching.contains(&orphan.process.id));
        }
        orphans
    }

    fn means_what_it_is(&self, id: ProcessId, record: &Record) -> bool {
        let args = self.args;
        let age = Duration::from_nanos(self.now_ns.saturating_sub(id.start_ns));
        args.older_than.is_none_or(|least| age > least)
            && args.user.is_none_or(|user| record.uid == user)
            && self.means_place(id)
            && self.means_job(id)
    }

    /// Returns whether it is in one of the units, containers and pods.
    fn means_place(&self, id: ProcessId) -> bool {
        let args = self.args;
        if args.units.is_empty() && args.containers.is_empty() && args.pods.is_empty() {
            return true;
        }
        let Some(place) = proc::placement(id) else {
            return false;
        };
        let any = |list: &[String], is_it: &dyn Fn(&str) -> bool| {
            list.is_empty() || list.iter().any(|name| is_it(name))
        };
        any(&args.units, &|unit| is_in_unit(&place, unit))
            && any(&args.containers, &|wanted| {
                let id = place.container.as_ref();
                id.is_some_and(|id| id.starts_with(wanted))
            })
            && (args.pods.is_empty() || is_in_pod(&place.cgroup, &self.pods))
    }

    fn means_job(&self, id: ProcessId) -> bool {
        let jobs = &self.args.jobs;
        if jobs.is_empty() {
            return true;
        }
        let markers = proc::job_markers(id);
        let mut markers = markers.iter().filter(|marker| proc::is_of_job(marker));
        let is_meant = |marker: &String| {
            let value = marker.split_once('=').map(|(_, value)| value);
            jobs.iter()
                .any(|job| marker == job || value == Some(job.as_str()))
        };
        markers.any(is_meant) || proc::placement(id).is_some_and(|place| is_of_slurm(&place, jobs))
    }

    fn asks_what_it_does(&self) -> bool {
        let args = self.args;
        !(args.patterns.is_empty() && args.holds.is_empty() && args.ports.is_empty())
    }

    fn means_what_it_does(&self, id: ProcessId, record: &Record) -> bool {
        let args = self.args;
        (args.patterns.is_empty() || self.matches(id, record))
            && (args.holds.is_empty() || self.held.iter().any(|held| held.is_held_by(id.pid)))
            && (args.ports.is_empty() || self.has_socket(id.pid))
            && proc::owns_pid(id)
    }

    fn matches(&self, id: ProcessId, record: &Record) -> bool {
        let name = Process::of_record(id, record).name.unwrap_or_default();
        let command = proc::command_line(id).unwrap_or_default();
        self.patterns.is_match(name.as_bytes()) || self.patterns.is_match(&command.joined())
    }

    fn has_socket(&self, pid: u32) -> bool {
        let is_it = |file: &proc::OpenFile| {
            let inode = file.target.to_str().and_then(|target| {
                let number = target.strip_prefix("socket:[")?.strip_suffix(']')?;
                number.parse::<u64>().ok()
            });
            inode.is_some_and(|inode| self.sockets.contains(&inode))
        };
        !self.sockets.is_empty()
            && proc::open_files(pid, is_it).is_ok_and(|found| !found.is_empty())
    }
}

/// Returns whether a process is in a unit of this name, or in one below it.
fn is_in_unit(place: &Placement, unit: &str) -> bool {
    place.cgroup.split('/').any(|part| {
        let kind = part.strip_prefix(unit).filter(|_| !unit.is_empty());
        matches!(kind, Some("" | ".service" | ".scope" | ".slice"))
    })
}

/// Returns whether the control group is that of a pod with one of these uids.
fn is_in_pod(cgroup: &str, uids: &[String]) -> bool {
    cgroup.split('/').any(|part| {
        let uid = pod_uid(part);
        uid.is_some_and(|uid| uids.contains(&uid))
    })
}

/// Returns the uid of the pod that a part of a path names, without punctuation: `podUID`, or
/// `kubepods-burstable-podUID.slice` with `_` for `-`.
fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let at = part.rfind("pod").filter(|at| {
        // `kubepods` itself is no pod.
        *at == 0 || part[..*at].ends_with('-')
    })?;
    let uid = plain(&part[at + "pod".len()..]);
    (!uid.is_empty()).then_some(uid)
}

fn plain(uid: &str) -> String {
    uid.chars().filter(|c| !matches!(c, '-' | '_')).collect()
}

/// Returns whether Slurm has put it into the control group of one of these jobs.
fn is_of_slurm(place: &Placement, jobs: &[String]) -> bool {
    let mut parts = place.cgroup.split('/');
    parts.any(|part| {
        part.strip_prefix("job_")
            .is_some_and(|id| jobs.iter().any(|job| job == id))
    })
}

/// Returns the uids of the pods that these names mean.
fn pods(names: &[String]) -> anyhow::Result<Vec<String>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let has_kubelet = [POD_LOGS, KUBELET]
        .iter()
        .any(|path| Path::new(path).is_dir());
    if !has_kubelet && !any_process_is_in_a_pod() {
        return Err(NoKubelet.into());
    }
    let mut known = Vec::new();
    for entry in fs::read_dir(POD_LOGS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let parts: Vec<_> = name.splitn(3, '_').map(str::to_owned).collect();
        if let Ok([namespace, pod, uid]) = <[String; 3]>::try_from(parts) {
            known.push((format!("{namespace}/{pod}"), pod, plain(&uid)));
        }
    }
    let mut uids = Vec::new();
    for name in names {
        let is_it = |pod: &&(String, String, String)| *name == pod.0 || *name == pod.1;
        let found = known.iter().filter(is_it).map(|(_, _, uid)| uid.clone());
        let before = uids.len();
        uids.extend(found);
        if is_uid(name) {
            uids.push(plain(name));
        }
        if uids.len() == before {
            return Err(Usage(format!(
                "--pod: no pod {name} has been on this node; `ls {POD_LOGS}` lists those that have"
            ))
            .into());
        }
    }
    Ok(uids)
}

/// Returns whether a name is the uid of a pod: 32 hexadecimal digits, with or without dashes.
fn is_uid(name: &str) -> bool {
    let digits = plain(name);
    digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn any_process_is_in_a_pod() -> bool {
    let pids = proc::pids().unwrap_or_default().into_iter();
    let mut places = pids.filter_map(proc::placement_of);
    places.any(|place| place.cgroup.split('/').any(|part| pod_uid(part).is_some()))
}

/// Returns what is wrong with a pattern: the first line says where, the last one what.
fn regex_error(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!("--match: {}", last.trim_start_matches("error: "))
}

/// Reads a user's name or number.
pub(super) fn parse_user(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let user = nix::unistd::User::from_name(text).map_err(|errno| errno.to_string())?;
    let user = user.ok_or_else(|| "no such user; `getent passwd` lists them".to_owned())?;
    Ok(user.uid.as_raw())
}

/// Reads the beginning of a container's id.
fn parse_container(text: &str) -> Result<String, String> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && (CONTAINER_DIGITS_MIN..=64).contains(&text.len()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!(
        "expected a container's id, or at least its first {CONTAINER_DIGITS_MIN} digits; `docker ps` \
         and `crictl ps` show it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(cgroup: &str) -> Placement {
        let mut place = Placement::default();
        cgroup.clone_into(&mut place.cgroup);
        place
    }

    #[test]
    fn a_unit_is_named_with_or_without_its_kind() {
        let user = place("/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope");
        for unit in ["a.scope", "a", "user@1000", "user-1000.slice", "app"] {
            assert!(is_in_unit(&user, unit), "{unit}");
        }
        for other in ["", "b", "user-100", ".scope"] {
            assert!(!is_in_unit(&user, other), "{other}");
        }
    }

    #[test]
    fn a_pod_is_found_in_the_groups_of_both_drivers() {
        let uid = "0123abcd-0123-0123-0123-0123456789ab";
        let wanted = [plain(uid)];
        for group in [
            format!("/kubepods/burstable/pod{uid}/0123"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/x",
                uid.replace('-', "_")
            ),
        ] {
            assert!(is_in_pod(&group, &wanted), "{group}");
        }
        assert!(!is_in_pod(
            "/kubepods.slice/kubepods-besteffort.slice",
            &wanted
        ));
        assert_eq!(pod_uid("kubepods"), None);
        assert!(is_uid(uid) && !is_uid("web-0"));
    }

    #[test]
    fn a_container_is_named_by_the_beginning_of_its_id() {
        assert_eq!(parse_container("0123ABCD").unwrap(), "0123abcd");
        for wrong in ["", "abc", "web", &"0".repeat(65)] {
            assert!(parse_container(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_job_of_slurm_is_in_its_own_group() {
        let job = place("/system.slice/slurmstepd.scope/job_77/step_0/user/task_0");
        assert!(is_of_slurm(&job, &["77".to_owned()]));
        assert!(!is_of_slurm(&job, &["7".to_owned()]));
    }
}
