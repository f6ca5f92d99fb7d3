//! Deaths by signal that leave something: `core-dump DIR`. The child aborts in DIR, so a plain
//! `core` pattern puts the file where the test removes it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::chdir;

use crate::args::Args;
use crate::process::{exit_now, spawn};
use crate::talk::{begin, commands, reap, report};

/// Role `worker`: dies by SIGABRT and dumps core. It exits with 3 where it could not prepare.
pub(crate) fn core_dump(args: &mut Args) -> i32 {
    let directory = args.path("directory");
    begin();
    let worker = spawn(|| {
        let unlimited = getrlimit(Resource::RLIMIT_CORE)
            .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_CORE, hard, hard));
        if unlimited.is_err() || chdir(&directory).is_err() {
            exit_now(3);
        }
        std::process::abort()
    });
    report(worker, "worker");
    reap(worker);
    commands()
}
