//! The protocol between the two halves, explored: the real code of the kernel half and of
//! userspace runs on a model of the kernel, and a scheduler interleaves their steps.
//!
//! After every step `checks` looks at what must hold at all times: no member is missing from a
//! tree that is labelled, unless a loss is reported; no process is a member that does not belong;
//! the counter of the living never under-counts, so 0 is the proof of extinction; no record has a
//! wrong creator; nobody writes into an element that holds another record by now. Signals hit whom
//! they are meant for, and a living owner keeps its slot. At the end nothing is left.
//!
//! What the model does not know: the order of memory accesses within a step; learning, whose rules
//! are tested in the kernel half; the compaction of rows, likewise; private trackers. A slot that is
//! taken is written in fewer steps than on a host. What finds a defect here prints its schedule,
//! which `shuttle::replay` runs again.

mod checks;
mod commands;
mod desk;
mod elements;
mod hooks;
mod processes;
mod traces;
mod world;

use std::sync::Arc;

use lifemon_ebpf::ProcessId;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

use self::commands::Command;
use self::processes::{Script, Threads, creates, leaf, line};
use self::world::{INIT, Measures, World};

/// Multiplies the runs of every exploration; set by `cargo xtask test --explore`.
const SCALE: &str = "LIFEMON_EXPLORE";

/// As many times more than that without it: optimised, the model is so much faster.
const OPTIMISED: usize = if cfg!(debug_assertions) { 1 } else { 15 };

/// Priority changes of a run of the second scheduler: as many preemptions as most races need.
const DEPTH: usize = 3;

/// One host, with the threads of its processes and commands.
struct Host {
    world: Arc<World>,
    threads: Threads,
}

impl Host {
    fn new(measures: Measures) -> Self {
        Self {
            world: Arc::new(World::new(measures)),
            threads: Threads::default(),
        }
    }

    /// Starts a process that does what the script says.
    fn process(&self, script: Script) -> ProcessId {
        let id = self.world.settle_in(INIT);
        self.threads.live(&self.world, id, script);
        id
    }

    /// Starts a command, which is killed after so many steps, if any.
    fn command(&self, killed_after: Option<u32>, body: impl FnOnce(&mut Command) + Send + 'static) {
        let world = Arc::clone(&self.world);
        let id = world.settle_in(INIT);
        self.threads.spawn(move || {
            let mut command = Command::new(&world, id, killed_after);
            body(&mut command);
            world.exit(id);
        });
    }

    /// Starts a command that watches a tree, and gives it back.
    fn watch(&self, root: ProcessId) {
        self.command(None, move |command| command.watch(root, |_, _| {}));
    }

    /// Starts a command that kills a tree.
    fn kill(&self, root: ProcessId) {
        self.command(None, move |command| command.kill(root));
    }

    /// Waits until all have ended, lets one more command recover what is left, and sees that
    /// nothing is.
    fn finish(self) {
        self.threads.join();
        self.world.peek(|state| state.measures.forgive());
        self.command(None, Command::heal);
        self.threads.join();
        self.world.check_empty();
    }
}

/// Runs a scenario so often with a random scheduler, and as often with one that preempts rarely.
fn explore(runs: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = Arc::new(scenario);
    let random = Arc::clone(&scenario);
    explore_at_random(runs, move || random());
    run(PctScheduler::new(DEPTH, scaled(runs)), move || scenario());
}

/// Does the first half of that: for a scenario of one thread, with chances of its own.
fn explore_at_random(runs: usize, scenario: impl Fn() + Send + Sync + 'static) {
    run(RandomScheduler::new(scaled(runs)), scenario);
}

fn scaled(runs: usize) -> usize {
    let scale = std::env::var(SCALE).ok();
    let scale = scale.and_then(|scale| scale.parse().ok());
    runs * OPTIMISED * scale.unwrap_or(1)
}

/// Explores a scenario, and then runs it in every order of its steps. Without a scale in the first
/// orders alone: all of them take minutes.
fn exhaust(scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = Arc::new(scenario);
    let random = Arc::clone(&scenario);
    explore(2_000, move || random());
    let first = 4_000 * OPTIMISED;
    let limit = std::env::var_os(SCALE).is_none().then_some(first);
    let orders = run(DfsScheduler::new(limit, false), move || scenario());
    println!("{orders} orders");
    assert!(limit.is_some_and(|limit| orders == limit) || orders > first);
}

fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    Runner::new(scheduler, config).run(scenario)
}

#[test]
fn a_tree_that_is_watched_while_it_forks_has_all_its_members() {
    explore(1_000, || {
        let host = Host::new(Measures::SOUND);
        let root = host.process(creates([line(2), leaf()]));
        host.watch(root);
        host.finish();
    });
}

#[test]
fn a_line_whose_members_fork_and_die_at_once_has_all_its_members() {
    explore(1_000, || {
        let host = Host::new(Measures {
            pids: 5,
            births: 10,
            ..Measures::SOUND
        });
        let root = host.process(line(10));
        host.watch(root);
        host.finish();
    });
}

#[test]
fn a_line_that_goes_on_between_any_two_steps_has_its_last_member() {
    for (runs, pids, births) in [(2_000, 5, 12), (40, 20, 40)] {
        explore_at_random(runs, move || line_goes_on(pids, births));
    }
}

fn line_goes_on(pids: u32, births: u32) {
    let host = Host::new(Measures {
        pids,
        births,
        ..Measures::SOUND
    });
    let root = host.world.settle_in(INIT);
    host.world.peek(|state| state.comet = Some(root));
    host.watch(root);
    host.threads.join();
    let last = host.world.peek(|state| state.comet.take());
    host.world.exit(last.expect("it goes on"));
    host.finish();
}

#[test]
fn a_kill_hits_the_tree_and_nobody_else_while_pids_are_used_again() {
    explore(1_000, || {
        let host = Host::new(Measures::SOUND);
        let root = host.process(creates([line(2), leaf()]));
        host.process(creates([leaf(), leaf()]));
        host.kill(root);
        host.finish();
    });
}

#[test]
fn two_trees_that_share_a_layer_do_not_mix() {
    explore(1_000, || {
        let host = Host::new(Measures {
            pids: 9,
            ..Measures::SOUND
        });
        for _ in 0..2 {
            let root = host.process(creates([leaf(), leaf()]));
            let world = Arc::clone(&host.world);
            host.command(None, move |command| {
                command.watch(root, |_, _| (0..60).for_each(|_| world.yield_now()));
            });
        }
        host.finish();
    });
}

#[test]
fn two_kills_and_a_watcher_of_overlapping_trees_agree() {
    explore(500, || {
        let host = Host::new(Measures::SOUND);
        let root = host.process(creates([line(2)]));
        host.kill(root);
        host.kill(root);
        host.watch(root);
        host.finish();
    });
}

#[test]
fn a_command_that_is_killed_at_any_step_leaves_nothing() {
    explore(1_000, || {
        let host = Host::new(Measures::SOUND);
        let root = host.process(creates([leaf()]));
        let steps = thread_rng().gen_range(0..160);
        host.command(Some(steps), move |command| command.kill(root));
        host.watch(root);
        host.finish();
    });
}

#[test]
fn who_is_spared_is_no_member_again_and_is_not_hit() {
    explore(500, || {
        let host = Host::new(Measures::SOUND);
        let root = host.process(creates([creates([leaf()]), leaf()]));
        host.command(None, move |command| command.kill_but_one(root));
        host.finish();
    });
}

#[test]
fn a_map_that_is_full_is_reported() {
    for (records, members) in [(4, 64), (64, 2)] {
        explore(500, move || {
            let host = Host::new(Measures {
                records,
                members,
                ..Measures::SOUND
            });
            let root = host.process(creates([line(3), leaf()]));
            host.kill(root);
            host.finish();
        });
    }
}

#[test]
fn calls_that_the_kernel_refuses_lose_nothing_in_silence() {
    for claims_exits in [false, true] {
        explore(1_000, move || {
            let host = Host::new(Measures {
                refusals: 6,
                claims_exits,
                ..Measures::SOUND
            });
            let root = host.process(creates([line(2), leaf()]));
            host.kill(root);
            host.finish();
        });
    }
}

#[test]
fn hooks_that_the_kernel_skips_lose_nothing_in_silence() {
    explore(1_000, || {
        let host = Host::new(Measures {
            skipped_forks: 1,
            skipped_exits: 1,
            claims_exits: true,
            ..Measures::SOUND
        });
        let root = host.process(creates([line(2), leaf()]));
        host.kill(root);
        host.finish();
    });
}

#[test]
fn a_slot_that_was_taken_away_proves_nothing() {
    explore(1_000, || {
        let host = Host::new(Measures::SOUND);
        let root = host.process(creates([leaf()]));
        let other = host.process(leaf());
        host.command(None, move |command| command.kill_without_right(root));
        host.command(None, move |command| {
            command.steal();
            command.watch(other, |_, _| {});
        });
        host.finish();
    });
}

#[test]
fn what_descends_from_a_creator_that_was_lost_is_not_taken_for_a_stranger() {
    explore(1_000, || {
        let host = Host::new(Measures {
            skipped_forks: 1,
            ..Measures::SOUND
        });
        let root = host.process(creates([line(3), leaf()]));
        host.command(None, move |command| {
            command.forget_misses();
            command.watch(root, |_, _| {});
        });
        host.finish();
    });
}

#[test]
fn every_order_of_a_signal_and_a_death_with_the_next_use_of_the_pid() {
    exhaust(|| {
        let world = Arc::new(World::new(Measures {
            pids: 2,
            ..Measures::SOUND
        }));
        let victim = world.settle_in(INIT);
        let threads = Threads::default();
        let host = Arc::clone(&world);
        threads.spawn(move || {
            host.exit(victim);
            let next = host.fork(INIT).expect("the pid is free");
            assert_eq!(next.pid, victim.pid);
        });
        threads.spawn(move || {
            Command::new(&world, INIT, None).strike(victim).unwrap();
        });
        threads.join();
    });
}

#[test]
fn every_order_of_a_death_and_of_becoming_a_member_from_userspace() {
    exhaust(|| {
        let world = Arc::new(World::new(Measures::SOUND));
        let process = world.settle_in(INIT);
        let threads = Threads::default();
        let command = Command::new(&world, INIT, None);
        let tree = command.take_slot(process);
        let host = Arc::clone(&world);
        threads.spawn(move || host.exit(process));
        threads.spawn(move || command.add(process, tree));
        threads.join();
        world.check_members(tree);
        assert_eq!(world.live(tree), 0, "a dead member is counted");
    });
}
