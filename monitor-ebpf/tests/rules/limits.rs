//! The limits of the rules, one by one.

use lifemon_ebpf::limits::{GHOSTS_IN_A_ROW, RELEASE_STEPS, SPLICES};
use lifemon_ebpf::{NOT_HELD, ProcessId};

use crate::history::Host;
use crate::model::row_above;
use crate::store::{Records, locked};

#[test]
fn a_chain_of_ten_thousand_generations_keeps_few_ghosts_and_the_oldest() {
    let mut host = Host::default();
    let mut last = host.first();
    for _ in 0..10_000 {
        let next = host.fork(last);
        host.exit(last);
        last = next;
        assert!(host.ghosts() <= GHOSTS_IN_A_ROW as usize + 1);
    }
    host.check();
    let oldest: Vec<_> = locked(&host.store.records)
        .keys()
        .take(8)
        .map(|id| id.pid)
        .collect();
    assert_eq!(oldest, [1, 2, 3, 4, 5, 6, 7, 8]);
    host.all_die();
}

#[test]
fn a_watched_root_in_a_long_chain_stays_at_its_place() {
    let mut host = Host::default();
    let mut last = host.first();
    for generation in 0..1_000 {
        let next = host.fork(last);
        if generation == 500 {
            locked(&host.store.roots).insert(last);
        }
        host.exit_checked(last);
        last = next;
    }
    let root = *host.roots().first().expect("one is watched");
    assert!(host.store.records().contains_key(&root));
    // The oldest, and the root.
    assert_eq!(host.ghosts(), GHOSTS_IN_A_ROW as usize + 1);
    host.check();
    host.check_descendants();
}

#[test]
fn a_line_that_dies_from_its_end_upwards_keeps_few_ghosts() {
    let mut host = Host::default();
    let chain = host.chain(200);
    for id in chain[..199].iter().rev() {
        host.exit_checked(*id);
        assert!(host.ghosts() <= GHOSTS_IN_A_ROW as usize);
    }
    host.check();
    host.all_die();
}

#[test]
fn a_line_whose_branches_die_last_keeps_few_ghosts() {
    let mut host = Host::default();
    let chain = host.chain(100);
    let branches: Vec<_> = chain.iter().map(|id| host.fork(*id)).collect();
    for id in &chain[..99] {
        host.exit_checked(*id);
    }
    assert_eq!(host.ghosts(), 99);
    for (at, id) in branches.iter().enumerate() {
        host.exit_checked(*id);
        // Each that is left keeps the ghost that it branches from.
        assert!(host.ghosts() <= 99_usize.saturating_sub(at) + GHOSTS_IN_A_ROW as usize);
    }
    assert_eq!(host.ghosts(), GHOSTS_IN_A_ROW as usize);
    host.check();
    host.all_die();
}

#[test]
fn a_row_that_could_not_be_spliced_is_finished_by_later_deaths() {
    let mut host = Host::default();
    let chain = host.chain(200);
    let (last, above) = chain.split_last().expect("it is long");
    watched(&mut host, above, |host| {
        for id in above.iter().rev() {
            host.exit_checked(*id);
        }
    });
    assert_eq!(row_above(&host.store.records(), last).len(), 199);
    let mut last = *last;
    for row in (0..199)
        .step_by(SPLICES as usize - 1)
        .skip(1)
        .map(|less| 199 - less)
    {
        let next = host.fork(last);
        host.exit_checked(last);
        last = next;
        assert_eq!(host.ghosts(), row.max(GHOSTS_IN_A_ROW as usize));
    }
    host.check();
}

/// Lets something happen while these are watched, so that none of them is spliced.
fn watched(host: &mut Host, roots: &[ProcessId], happens: impl FnOnce(&mut Host)) {
    locked(&host.store.roots).extend(roots);
    happens(host);
    locked(&host.store.roots).clear();
}

#[test]
fn a_row_ends_where_a_creator_is_not_held() {
    let mut host = Host::default();
    let first = host.first();
    host.fork(first);
    host.exit_checked(first);
    // Learnt when its creator was dead.
    let mut last = host.world.create(first);
    host.store.insert(last, first, NOT_HELD);
    for _ in 0..4 * GHOSTS_IN_A_ROW {
        let next = host.fork(last);
        host.exit_checked(last);
        last = next;
        host.check();
    }
    host.all_die();
}

/// A row of `ghosts` dead creators above one living process, which then dies.
fn release_of(ghosts: usize) -> Host {
    let mut host = Host::default();
    let chain = host.chain(ghosts + 1);
    watched(&mut host, &chain, |host| {
        for id in chain.iter().rev().skip(1) {
            host.exit(*id);
        }
    });
    host.exit(chain[ghosts]);
    host
}

#[test]
fn a_death_may_remove_as_many_records_as_its_limit() {
    let host = release_of(RELEASE_STEPS as usize - 1);
    assert_eq!(*locked(&host.store.overruns), 0);
    assert_eq!(host.store.records(), Records::new());
}

#[test]
fn what_an_overrun_leaves_is_found_by_the_sweep() {
    for ghosts in [RELEASE_STEPS, RELEASE_STEPS + 1, 3 * RELEASE_STEPS, 1_000] {
        let host = release_of(ghosts as usize);
        assert_eq!(*locked(&host.store.overruns), 1);
        let left = ghosts + 1 - RELEASE_STEPS;
        assert_eq!(host.store.records().len(), left as usize);
        let runs = host.store.sweep_all();
        assert!(
            runs <= left.div_ceil(RELEASE_STEPS) as usize,
            "{runs} sweeps"
        );
        assert_eq!(host.store.records(), Records::new(), "{ghosts} ghosts");
    }
}
