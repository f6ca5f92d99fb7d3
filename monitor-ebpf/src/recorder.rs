//! The rules of the flight recorder: where the next entry of a user goes. Pure, tested on the host.
//!
//! The buffer is cut into shards. A user has a shard of its own from its first entry on, and gets
//! further ones while there are any; then its newest entry takes the place of its oldest. So a
//! storm of deaths of one user washes out nothing of another who was there before. Who comes when
//! all first shards are given away shares the last one with others like that.

use crate::limits::{LOG_ENTRIES, LOG_GROWTHS, LOG_SHARD, LOG_SHARDS_TO_GROW};

/// Shards of the buffer.
pub const SHARDS: u64 = (LOG_ENTRIES / LOG_SHARD) as u64;

/// The shard of root: the first of the first ones.
const ROOTS: u64 = LOG_SHARDS_TO_GROW as u64;

/// The shard that later users share.
const SHARED: u64 = SHARDS - 1;

const SIZE: u64 = LOG_SHARD as u64;

const _: () = {
    assert!(LOG_ENTRIES.is_multiple_of(LOG_SHARD));
    assert!(ROOTS + 1 < SHARED && SHARDS <= 0xff);
    // A byte for each shard of a user.
    assert!(LOG_GROWTHS < 8);
};

/// Returns the first shard of a user; `users` is how many came before, root not counted. `None` for
/// those who share the last one.
#[must_use]
#[inline(always)]
pub const fn first_shard(uid: u32, users: u64) -> Option<u64> {
    if uid == 0 {
        return Some(ROOTS);
    }
    if users < SHARED - ROOTS - 1 {
        Some(ROOTS + 1 + users)
    } else {
        None
    }
}

/// Returns the shard that the `growths`-th request for a further one gets.
#[must_use]
#[inline(always)]
pub const fn further_shard(growths: u64) -> Option<u64> {
    if growths < ROOTS { Some(growths) } else { None }
}

/// Returns whether this entry of a user is the one to ask for a further shard with: the first that
/// does not fit into those that it has.
#[must_use]
#[inline(always)]
pub const fn asks_for_more(position: u64, count: u64, is_closed: u64) -> bool {
    position == count * SIZE && count <= LOG_GROWTHS as u64 && is_closed == 0
}

/// Returns the index of an entry of a user that has these shards.
#[must_use]
#[inline(always)]
pub const fn index(position: u64, shards: u64, count: u64) -> u32 {
    // A user has at least one; where that cannot be read, the first entry of shard 0 will do.
    let at = match position.checked_rem(count.wrapping_mul(SIZE)) {
        Some(at) => at,
        None => 0,
    };
    let shard = (shards >> ((8 * (at / SIZE)) & 63)) & 0xff;
    (shard * SIZE + at % SIZE) as u32
}

/// Returns the index of an entry in the shard that later users share.
#[must_use]
#[inline(always)]
pub const fn shared_index(position: u64) -> u32 {
    (SHARED * SIZE + position % SIZE) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn first_shards_are_of_one_user_each() {
        let mut seen: HashSet<u64> = (0..ROOTS).filter_map(further_shard).collect();
        assert_eq!(seen.len() as u64, ROOTS);
        assert!(seen.insert(first_shard(0, 99).unwrap()));
        let users: Vec<_> = (0..20)
            .filter_map(|users| first_shard(1_000, users))
            .collect();
        assert!(users.iter().all(|shard| seen.insert(*shard)));
        assert!(seen.insert(SHARED));
        assert_eq!(seen.len() as u64, SHARDS);
        assert_eq!(further_shard(ROOTS), None);
    }

    #[test]
    fn a_user_that_grows_loses_nothing_and_then_its_own_oldest() {
        let (mut shards, mut count) = (first_shard(0, 0).unwrap(), 1);
        let mut seen = HashSet::new();
        let most = u64::from(LOG_GROWTHS) + 1;
        for position in 0..most * SIZE {
            if asks_for_more(position, count, 0) {
                let more = further_shard(count - 1).unwrap();
                shards |= more << (8 * count);
                count += 1;
            }
            let index = index(position, shards, count);
            assert!(index < LOG_ENTRIES && seen.insert(index), "{position}");
        }
        assert_eq!(count, most);
        assert!(!asks_for_more(most * SIZE, count, 0));
        assert_eq!(index(most * SIZE, shards, count), index(0, shards, count));
    }

    #[test]
    fn who_gets_no_more_goes_round() {
        assert!(asks_for_more(SIZE, 1, 0) && !asks_for_more(SIZE, 1, 1));
        assert!(!asks_for_more(SIZE + 1, 1, 0));
        assert_eq!(index(SIZE, 9, 1), index(0, 9, 1));
        assert_eq!(shared_index(0), LOG_ENTRIES - LOG_SHARD);
        assert_eq!(shared_index(SIZE), shared_index(0));
    }
}
