//! Holders in containers: in a pid namespace of their own, and below a root of their own. The
//! driver, lifemon and the test must mean the same processes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use lifemon_tests::killing::{assert_killed, kill};
use lifemon_tests::left_behind::ask;
use lifemon_tests::reports::{Holder, Identified as _};
use lifemon_tests::torch::{BYTES, TorchServer, compute_apps, used_mib, wait_until_free};
use lifemon_tests::{Process, Sandbox, has_programs, needs, proc};
use serde_json::Value;

use crate::held::gpu;
use crate::left_behind::assert_released;

/// Returns the process of the sandbox that has this pid in its own namespace.
#[track_caller]
fn outside(sandbox: &Sandbox, inside: i32) -> Process {
    let is_it = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let mut pids = pids.unwrap_or_default().split_whitespace();
        let outside = pids.next();
        outside.is_some() && pids.next_back() == Some(&inside.to_string())
    };
    let pid = sandbox
        .pids()
        .into_iter()
        .find(is_it)
        .expect("a process of the namespace");
    let stat = proc::stat(pid).expect("it lives");
    Process {
        pid,
        start_ticks: stat.start_ticks,
    }
}

#[track_caller]
fn holder_of(process: Process) -> Holder {
    let report = gpu();
    println!("measured: smi {:?}", compute_apps());
    assert_eq!(report.strangers, [], "{report:?}");
    let mut holders = report.holders.into_iter();
    let found = holders.find(|holder| holder.process() == process);
    found.unwrap_or_else(|| panic!("no {process:?}: {:?}", report.gpus))
}

#[test]
fn a_holder_in_a_pid_namespace_is_known_by_its_pid_here() {
    needs!(gpu, host_tracker);
    if !has_programs(&["unshare"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let below = ["unshare", "--pid", "--fork", "--mount-proc", "python3"];
    let mut server = TorchServer::start_below(&sandbox, &below);
    let inside = server.hold(BYTES);
    let worker = outside(&sandbox, inside.pid);
    assert_ne!(worker.pid, inside.pid);
    let holder = holder_of(worker);
    assert_eq!(holder.ns_pid, Some(inside.pid), "{holder:?}");
    assert!(
        holder.memory_bytes.is_some_and(|bytes| bytes >= BYTES),
        "{holder:?}"
    );
    let bytes = holder.memory_bytes.map(|bytes| bytes >> 20);
    assert_eq!(compute_apps().get(&worker.pid).copied().flatten(), bytes);
    let namespace = fs::metadata(format!("/proc/{}/ns/pid", worker.pid)).expect("a namespace");
    let named = format!("{}:{}", namespace.ino(), inside.pid);
    let it: Value = ask("explain", &[&named]).success();
    assert_eq!(it["process"]["pid"], worker.pid, "{it}");
    assert_eq!(
        it["holds"]["gpu"]["memory_bytes"].as_u64(),
        holder.memory_bytes,
        "{it}"
    );
    let report = assert_killed(&kill(&worker.pid, &[]));
    assert_released(&report, &[worker]);
    wait_until_free(before_mib);
}

/// As a container has it: a root with device nodes of its own.
const BELOW_A_ROOT: &str = r#"
set -e
mkdir "$0/root"
mount --make-rprivate /
mount --rbind / "$0/root"
mount -t tmpfs none "$0/root/dev"
mkdir "$0/root/dev/shm"
for name in nvidiactl nvidia0 nvidia-uvm nvidia-uvm-tools null zero urandom; do
    test -e "/dev/$name" || continue
    numbers=$(stat -c '0x%t 0x%T' "/dev/$name")
    mknod -m 666 "$0/root/dev/$name" c $numbers
done
exec chroot "$0/root" python3 "$1"
"#;

#[test]
fn a_holder_below_another_root_is_known_by_the_numbers_of_its_devices() {
    needs!(gpu, host_tracker);
    if !has_programs(&["unshare", "chroot"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let before_mib = used_mib();
    let directory = sandbox.directory().display().to_string();
    let below = ["unshare", "--mount", "sh", "-c", BELOW_A_ROOT, &directory];
    let mut server = TorchServer::start_below(&sandbox, &below);
    let worker = server.hold(BYTES);
    let holder = holder_of(worker);
    assert!(
        holder.memory_bytes.is_some_and(|bytes| bytes >= BYTES),
        "{holder:?}"
    );
    for device in ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm"] {
        assert!(
            holder.devices.iter().any(|path| path == device),
            "{holder:?}"
        );
    }
    let report = assert_killed(&kill(&server.0.pid(), &[]));
    assert_released(&report, &[worker]);
    wait_until_free(before_mib);
}
