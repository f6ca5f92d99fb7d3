//! The placement of a process: its control group, and the systemd unit or the container that the
//! group's name shows. A label, never a proof.

use lifemon_ebpf::ProcessId;
use serde::{Deserialize, Serialize};

use super::owns_pid;
use crate::sys::text;

/// Digits of a container's id, as every runtime writes them.
const CONTAINER_ID: usize = 64;

/// The control group of a process, with unit and container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Placement {
    /// Path of its control group: of version 2, or of systemd's own hierarchy.
    pub cgroup: String,
    /// The systemd unit: a service or a scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The full id of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// Returns where exactly this process was put; `None` when it is not there any more.
#[must_use]
pub fn placement(id: ProcessId) -> Option<Placement> {
    let placement = placement_of(id.pid)?;
    owns_pid(id).then_some(placement)
}

/// Returns where whoever has this pid now was put. The caller checks who that is.
pub(crate) fn placement_of(pid: u32) -> Option<Placement> {
    let text = text::read(format!("/proc/{pid}/cgroup")).ok()?;
    Some(parse(&text))
}

/// Reads the lines `ID:CONTROLLERS:PATH`.
fn parse(text: &str) -> Placement {
    let path_of = |wanted: &dyn Fn(&str, &str) -> bool| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            wanted(id, controllers).then(|| path.to_owned())
        })
    };
    let unified = path_of(&|id, _| id == "0").filter(|path| path != "/");
    let systemd = || path_of(&|_, controllers| controllers == "name=systemd");
    let cgroup = unified.or_else(systemd).unwrap_or_else(|| "/".to_owned());
    // A container may be named in the hierarchy of a single controller alone.
    let container = text.lines().find_map(container_in);
    let parts = cgroup.split('/');
    let unit = parts.rev().find(|part| {
        [".service", ".scope"]
            .iter()
            .any(|kind| part.ends_with(kind))
    });
    Placement {
        unit: unit.map(str::to_owned),
        container,
        cgroup,
    }
}

/// Returns the first part of a path that has a container's id: `docker-ID.scope`,
/// `cri-containerd-ID.scope`, or the id alone.
pub(super) fn container_in(path: &str) -> Option<String> {
    path.split('/').find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let id = part.rsplit(['-', ':']).next()?;
        let is_id = id.len() == CONTAINER_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_systemd() {
        let placement = parse("0::/system.slice/nginx.service\n");
        assert_eq!(placement.unit.as_deref(), Some("nginx.service"));
        assert_eq!(placement.container, None);
        let user = parse("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope\n");
        assert_eq!(user.unit.as_deref(), Some("a.scope"));
    }

    #[test]
    fn containers_of_several_runtimes() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("0::/system.slice/docker-{id}.scope"),
            format!("0::/kubepods.slice/pod1.slice/cri-containerd-{id}.scope/inner"),
            format!("4:pids:/docker/{id}\n0::/"),
            format!("0::/libpod-{id}.scope"),
        ] {
            assert_eq!(parse(&path).container.as_ref(), Some(&id), "{path}");
        }
        assert_eq!(parse("0::/a-0123").container, None);
    }

    #[test]
    fn without_version_2_systemds_own_hierarchy_tells() {
        let placement = parse("4:pids:/x\n1:name=systemd:/system.slice/a.service\n0::/\n");
        assert_eq!(placement.unit.as_deref(), Some("a.service"));
        assert_eq!(parse("").cgroup, "/");
    }
}
