//! Processes with memory: one that is killed for it (`oom DIR [MIB]`) and one that keeps it
//! (`worker-memory MIB`), so that its release takes time when it dies.

use std::path::Path;

use serde_json::json;

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{exit_now, hold, spawn};
use crate::talk::{begin, commands, commands_and, reap, report, say};

const MIB: usize = 1024 * 1024;
const OOM_MIB_MAX: u32 = 512;
const WORKER_MIB_MAX: u32 = 4096;

/// Makes role `worker`, which joins the control group in DIR, and takes memory until it is killed.
/// It exits with 3 where it cannot join, with 4 when it has MIB (512) and lives. The line `again`
/// makes the next one.
pub(crate) fn oom(args: &mut Args) -> i32 {
    let directory = args.path("control group");
    let mib = args.count_or("MiB", OOM_MIB_MAX, OOM_MIB_MAX);
    begin();
    let one = || {
        let worker = spawn(|| take(&directory, mib));
        report(worker, "worker");
        reap(worker);
    };
    one();
    commands_and(|line| {
        let known = line == "again";
        if known {
            one();
        }
        known
    })
}

fn take(directory: &Path, mib: u32) -> i32 {
    if std::fs::write(directory.join("cgroup.procs"), "0").is_err() {
        exit_now(3);
    }
    let taken: Vec<_> = (0..mib).map(|_| touched(1)).collect();
    drop(std::hint::black_box(taken));
    4
}

/// Makes role `worker`, which has MIB of memory resident and stays.
pub(crate) fn worker_memory(args: &mut Args) -> i32 {
    let mib = args.count("MiB", WORKER_MIB_MAX) as usize;
    begin();
    let up = Pipe::new();
    let worker = spawn(|| {
        let _kept = touched(mib);
        up.send(0);
        hold()
    });
    up.receive();
    report(worker, "worker");
    say(&json!({"resident_bytes": mib * MIB}));
    commands()
}

/// Returns memory that is written through, so every page is there.
fn touched(mib: usize) -> Vec<u8> {
    std::hint::black_box(vec![1; mib * MIB])
}
