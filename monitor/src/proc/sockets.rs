//! Finds sockets by their local port, in every network namespace: those that a living process is
//! in, and those that are only mounted (`ip netns`). A socket is known by the number of its inode,
//! which is the same in all of them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::pids;
use crate::sys::text;

/// The tables of sockets that have a local port.
const TABLES: [&str; 6] = ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6"];

/// Returns the inodes of all sockets with this local port, listening or connected.
pub(crate) fn sockets_on(port: u16) -> HashSet<u64> {
    let mut found = HashSet::new();
    let mut seen = HashSet::new();
    for pid in pids().unwrap_or_default() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        // A process that has died meanwhile shows nothing: the next one of its namespace does.
        if collect(&PathBuf::from(format!("/proc/{pid}/net")), port, &mut found) {
            seen.insert(namespace);
        }
    }
    for (namespace, mount) in mounted_namespaces() {
        if seen.insert(namespace) {
            found.extend(in_namespace(&mount, port));
        }
    }
    found
}

/// A socket that takes connections, or messages from anybody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket {
    /// `tcp`, `udp`, `udplite`.
    pub protocol: &'static str,
    /// Its local port.
    pub port: u16,
}

/// Returns, by inode, the sockets on which these processes can be reached: those of the network
/// namespaces that they are in.
#[must_use]
pub fn listening(pids: impl IntoIterator<Item = u32>) -> HashMap<u64, Socket> {
    let mut found = HashMap::new();
    let mut seen = HashSet::new();
    for pid in pids {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/net"));
        if namespace.is_ok_and(|namespace| seen.insert(namespace)) {
            let directory = PathBuf::from(format!("/proc/{pid}/net"));
            for table in TABLES {
                let protocol = table.strip_suffix('6').unwrap_or(table);
                let Ok(file) = File::open(directory.join(table)) else {
                    continue;
                };
                let lines = BufReader::new(file).lines().map_while(Result::ok);
                found.extend(lines.filter_map(|line| reachable(&line, protocol)));
            }
        }
    }
    found
}

/// Returns whether somebody listens on a socket of this path, in the network namespace of this
/// process or in ours. The lines of the table end with the path; that is taken as it was bound.
pub(crate) fn listens_on(pid: u32, path: &str) -> bool {
    /// `__SO_ACCEPTCON`: it takes connections.
    const LISTENS: u32 = 1 << 16;
    let is_it = |line: &str| {
        // `Num RefCount Protocol Flags Type St Inode Path`.
        let mut fields = line.splitn(8, ' ').filter(|field| !field.is_empty());
        let flags = fields
            .nth(3)
            .and_then(|flags| u32::from_str_radix(flags, 16).ok());
        flags.is_some_and(|flags| flags & LISTENS != 0) && line.ends_with(&format!(" {path}"))
    };
    [format!("/proc/{pid}/net/unix"), "/proc/net/unix".to_owned()]
        .iter()
        .filter_map(|table| File::open(table).ok())
        .any(|table| {
            let lines = BufReader::new(table).lines().map_while(Result::ok);
            lines.into_iter().any(|line| is_it(&line))
        })
}

/// Returns the socket in a line of a table, if it is connected to nobody: a TCP socket that
/// listens (state 0A), any other that is bound (07).
fn reachable(line: &str, protocol: &'static str) -> Option<(u64, Socket)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?.rsplit(':').next()?;
    let port = u16::from_str_radix(local, 16).ok()?;
    let state = fields.nth(1)?;
    let wanted = if protocol == "tcp" { "0A" } else { "07" };
    let inode = fields.nth(5)?.parse().ok().filter(|inode| *inode != 0)?;
    (state == wanted).then_some((inode, Socket { protocol, port }))
}

/// Returns the network namespaces that are mounted somewhere, by name and place.
fn mounted_namespaces() -> Vec<(PathBuf, PathBuf)> {
    let text = text::read("/proc/self/mountinfo").unwrap_or_default();
    let of_line = |line: &str| {
        // Fields: 4 is the root of the mount in its file system, 5 where it is mounted.
        let mut fields = line.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        root.starts_with("net:[")
            .then(|| (root.into(), place.into()))
    };
    text.lines().filter_map(of_line).collect()
}

/// Returns the sockets of a namespace that no process is in, from a thread that enters it.
fn in_namespace(mount: &Path, port: u16) -> HashSet<u64> {
    let Ok(file) = File::open(mount) else {
        return HashSet::new();
    };
    let look = move || {
        let mut found = HashSet::new();
        if setns(&file, CloneFlags::CLONE_NEWNET).is_ok() {
            collect(Path::new("/proc/thread-self/net"), port, &mut found);
        }
        found
    };
    thread::spawn(look).join().unwrap_or_default()
}

/// Adds what the tables of one namespace have; returns whether there was any table.
fn collect(directory: &Path, port: u16, found: &mut HashSet<u64>) -> bool {
    let mut was_read = false;
    for table in TABLES {
        let Ok(file) = File::open(directory.join(table)) else {
            continue;
        };
        was_read = true;
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        found.extend(lines.filter_map(|line| inode(&line, port)));
    }
    was_read
}

/// Returns the inode of the socket in a line of a table, if that has this local port and somebody
/// holds it: `sl local_address rem_address st queues tr:when retrnsmt uid timeout inode`.
fn inode(line: &str, port: u16) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?.rsplit(':').next()?;
    if u16::from_str_radix(local, 16) != Ok(port) {
        return None;
    }
    fields.nth(7)?.parse().ok().filter(|inode| *inode != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_table_names_port_and_inode() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     \
                    0        0 98765 1 0000000000000000 100 0 0 10 0";
        assert_eq!(inode(line, 8080), Some(98_765));
        assert_eq!(inode(line, 8081), None);
        assert_eq!(inode("  sl  local_address rem_address", 0), None);
        let closing = "1: 0100007F:1F90 0100007F:9000 06 0:0 03:0 0 0 0 0 3 0000";
        assert_eq!(inode(closing, 8080), None);
    }

    #[test]
    fn a_listener_is_found_by_its_path() {
        let own = std::process::id();
        let path = std::env::temp_dir().join(format!("listener-{own}"));
        let text = path.to_str().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(listens_on(own, text) && !listens_on(own, &text[1..]));
        drop(listener);
        assert!(!listens_on(own, text));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_socket_of_this_process_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = Socket {
            protocol: "tcp",
            port,
        };
        let own = std::process::id();
        assert!(listening([own]).values().any(|found| *found == socket));
        assert!(!sockets_on(port).is_empty());
    }
}
