//! Kill of trees that fork meanwhile: how many are left after each method, and how long it took.
//! Each bomb burns in a sandbox of its own, where what is left is counted, whoever killed.

use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::killing::alive;
use lifemon_tests::{Actor, Sandbox};

use super::TrackerOn;
use super::kill::{Method, by_lifemon, by_pgrep, by_psutil, cgroup_kill, methods};
use super::stats::Figures;

const BOMBS: [&str; 3] = ["comet", "tree", "respawn"];
const TRIALS: usize = 5;
/// What has SIGKILL pending may die within this time, and counts as dead then.
const SETTLING: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(1);

/// What came of one method with one bomb.
#[derive(Default)]
struct Outcome {
    ms: Figures,
    survivors: Figures,
    survived: usize,
}

/// Makes one trial. The tracker, where it is asked for, is on before the bomb burns: that is what
/// it is for. Where it is off, the actor adopts its orphans, or nobody could know whose they are;
/// for the other methods that would hide what they miss.
fn trial(bomb: &str, method: Method, outcome: &mut Outcome) {
    let tracker = (method == Method::LifemonTracked).then(TrackerOn::new);
    let parents = if method == Method::Lifemon {
        "adopt"
    } else {
        "init"
    };
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("made");
    let program = std::env::current_exe().expect("the path of this program");
    let words = [
        bomb.to_owned(),
        file.display().to_string(),
        parents.to_owned(),
    ];
    let mut actor = Actor::spawn(&program.with_file_name("actor"), &sandbox, &words);
    actor.step();
    let root = actor.pid().cast_unsigned();
    let begun = Instant::now();
    match method {
        Method::Lifemon | Method::LifemonTracked => _ = by_lifemon(root),
        Method::CgroupKill => {
            let file = cgroup_kill(&sandbox).expect("asked before");
            std::fs::write(file, "1").expect("cgroup.kill");
        }
        Method::Psutil | Method::PsutilWithoutWait => _ = by_psutil(root, "1"),
        Method::Pgrep => by_pgrep(&sandbox, root),
    }
    let mut left = alive(&sandbox).len();
    let settled = Instant::now() + SETTLING;
    outcome.ms.push(begun.elapsed().as_secs_f64() * 1e3);
    while left > 0 && Instant::now() < settled {
        thread::sleep(STEP);
        left = alive(&sandbox).len();
    }
    outcome.survived += usize::from(left > 0);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
    outcome.survivors.push(left as f64);
    drop(actor);
    drop(sandbox);
    drop(tracker);
}

pub(super) fn measure() {
    let methods: Vec<_> = methods()
        .into_iter()
        .filter(|method| *method != Method::PsutilWithoutWait)
        .collect();
    for bomb in BOMBS {
        let mut outcomes: Vec<_> = methods.iter().map(|_| Outcome::default()).collect();
        for round in 0..TRIALS {
            for turn in 0..methods.len() {
                let index = (round + turn) % methods.len();
                trial(bomb, methods[index], &mut outcomes[index]);
            }
        }
        for (method, outcome) in methods.iter().zip(&outcomes) {
            println!(
                "kill of a {bomb} bomb, {}: something survived in {} of {TRIALS} trials (at most \
                {} processes); {}",
                method.name(),
                outcome.survived,
                outcome.survivors.at(1.0),
                outcome.ms.line("ms")
            );
        }
    }
}
