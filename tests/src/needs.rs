//! What a test needs of the host, said in its first line: `needs!(python, private_tracker)`. What
//! is not there skips the test, and says so; what is shared with other tests is held until its end.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

/// Holds what a test needs until the end of the enclosing block, or returns from the test where
/// this host lacks it. In this order, because what comes last is waited for:
///
/// - `python`: a `python3` for the workers; `multiprocessing`: one with that module.
/// - `bash`: this shell, and with it the programs that come with most systems.
/// - `runit`, `s6`: the programs of these supervisors.
/// - `su`: the program of that name, which changes its user when it is executed.
/// - `gpu`: a GPU of NVIDIA that `PyTorch` can use.
/// - `private_tracker`: the host's tracker is off, and lifemon loads one of its own.
/// - `host_tracker`: the host's tracker is on, for this test alone.
/// - `no_tracker`: nothing of lifemon is in the kernel, but what this test puts there.
#[macro_export]
macro_rules! needs {
    ($need:ident, $($more:ident),+) => {
        $crate::needs!($need);
        $crate::needs!($($more),+);
    };
    (python) => {
        if !$crate::has_python_with("json") {
            return;
        }
    };
    (multiprocessing) => {
        if !$crate::has_python_with("multiprocessing, ctypes") {
            return;
        }
    };
    (bash) => {
        if !$crate::has_programs(&["bash"]) {
            return;
        }
    };
    (runit) => {
        if !$crate::has_programs(&["runsv", "sv"]) {
            return;
        }
    };
    (s6) => {
        if !$crate::has_programs(&["s6-supervise", "s6-svc"]) {
            return;
        }
    };
    (su) => {
        if !$crate::has_su() {
            return;
        }
    };
    (gpu) => {
        if !$crate::torch::has_gpu() {
            return;
        }
    };
    (private_tracker) => {
        let _held = $crate::private_lock();
    };
    (host_tracker) => {
        let _held = $crate::HostTracker::on(&[]);
    };
    (no_tracker) => {
        let _held = $crate::HostTracker::off();
    };
}

/// Returns whether this host has a Python with these modules, and says so where it has not.
#[must_use]
pub fn has_python_with(modules: &str) -> bool {
    let mut python = Command::new("python3");
    python.arg("-c").arg(format!("import {modules}"));
    let status = python.stdin(Stdio::null()).stderr(Stdio::null()).status();
    let has = status.is_ok_and(|status| status.success());
    if !has {
        println!("skipped: no python3 with {modules}");
    }
    has
}

/// Returns whether these programs are found, and says which is not.
#[must_use]
pub fn has_programs(names: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_found = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing = names.iter().find(|name| !is_found(name));
    if let Some(name) = missing {
        println!("skipped: no {name}");
    }
    missing.is_none()
}

/// Returns whether this host has a `su` that is set-uid, and says so where it has not.
#[must_use]
pub fn has_su() -> bool {
    const SET_UID: u32 = 0o4000;
    let is_set_uid = |path: &str| {
        std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & SET_UID != 0)
    };
    let has = ["/bin/su", "/usr/bin/su"].into_iter().any(is_set_uid);
    if !has {
        println!("skipped: no su");
    }
    has
}
