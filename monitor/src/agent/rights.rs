//! What a caller may: decided from facts that the kernel has given, without looking at anything.
//! Uid 0 alone proves nothing: uid 0 in a container without a user namespace has the peer uid 0 and
//! the initial user namespace.
//!
//! | caller | sees | ends |
//! |---|---|---|
//! | uid 0, pid and user namespace of the host, with `CAP_SYS_PTRACE` / `CAP_KILL` | all | all but protected |
//! | any other in a container | the container's control groups | of these, what the kernel lets its uid signal |
//! | any other of other namespaces, and uid 0 without the capabilities | its uid in its namespaces | of these, what the kernel lets its uid signal |
//! | a user of the host | its uid | what the kernel lets its uid signal |
//! | the same, in `lifemon-read` | all | as before |
//! | the same, in `lifemon-kill` | all | all but protected |

use serde::{Deserialize, Serialize};

/// The bits of capabilities.
const CAP_KILL: u64 = 1 << 5;
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// The facts about a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and every combination happens"
)]
pub(super) struct Facts {
    /// Its effective uid when it connected.
    pub(super) uid: u32,
    /// Its pid namespace is the host's.
    pub(super) has_host_pids: bool,
    /// Its user namespace is the host's.
    pub(super) has_host_users: bool,
    /// It is in a container that is not the agent's own.
    pub(super) is_in_container: bool,
    /// Its effective capabilities.
    pub(super) capabilities: u64,
    /// It is in the group that may see.
    pub(super) is_reader: bool,
    /// It is in the group that may end.
    pub(super) is_killer: bool,
}

/// A set of processes that a caller has rights on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reach {
    /// All of the host.
    All,
    /// Those of its container.
    Container,
    /// Those of its uid in its own namespaces.
    Namespaces,
    /// Those of its uid.
    User,
}

/// What a caller may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    /// Whom it sees.
    pub(super) sees: Reach,
    /// Whom it ends: with [`Reach::All`] by the agent's power, otherwise by its own.
    pub(super) ends: Reach,
}

/// Decides.
pub(super) fn decide(facts: &Facts) -> Rights {
    let is_host = facts.has_host_pids && facts.has_host_users;
    let base = if facts.is_in_container {
        Reach::Container
    } else if is_host && facts.uid != 0 {
        Reach::User
    } else {
        Reach::Namespaces
    };
    // A group can be had in a container by whoever starts it, and by uid 0 at will.
    let is_user = base == Reach::User;
    let has = |capability| facts.capabilities & capability != 0;
    let is_root = |capability| is_host && facts.uid == 0 && has(capability);
    let all_or_base = |is_all| if is_all { Reach::All } else { base };
    let ends = all_or_base(is_root(CAP_KILL) || (is_user && facts.is_killer));
    let sees_all = is_root(CAP_SYS_PTRACE) || (is_user && (facts.is_reader || facts.is_killer));
    Rights {
        sees: all_or_base(sees_all),
        ends,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Facts = Facts {
        uid: 1000,
        has_host_pids: true,
        has_host_users: true,
        is_in_container: false,
        capabilities: 0,
        is_reader: false,
        is_killer: false,
    };
    const ROOT: Facts = Facts {
        uid: 0,
        capabilities: CAP_KILL | CAP_SYS_PTRACE,
        ..USER
    };

    fn decided(facts: Facts) -> (Reach, Reach) {
        let rights = decide(&facts);
        (rights.sees, rights.ends)
    }

    #[test]
    fn root_of_the_host_by_what_it_is_able_to() {
        assert_eq!(decided(ROOT), (Reach::All, Reach::All));
        let capabilities = CAP_SYS_PTRACE;
        let sees = Facts {
            capabilities,
            ..ROOT
        };
        assert_eq!(decided(sees), (Reach::All, Reach::Namespaces));
        let capabilities = CAP_KILL;
        let ends = Facts {
            capabilities,
            ..ROOT
        };
        assert_eq!(decided(ends), (Reach::Namespaces, Reach::All));
        let none = Facts {
            capabilities: 0,
            ..ROOT
        };
        assert_eq!(decided(none), (Reach::Namespaces, Reach::Namespaces));
    }

    #[test]
    fn uid_0_elsewhere_is_not_root() {
        for (has_host_pids, has_host_users) in [(false, true), (true, false), (false, false)] {
            let elsewhere = Facts {
                has_host_pids,
                has_host_users,
                is_reader: true,
                is_killer: true,
                ..ROOT
            };
            let own = (Reach::Namespaces, Reach::Namespaces);
            assert_eq!(decided(elsewhere), own);
            let is_in_container = true;
            let contained = Facts {
                is_in_container,
                ..elsewhere
            };
            assert_eq!(decided(contained), (Reach::Container, Reach::Container));
        }
        // It shares the pids of the host, and has not the capabilities.
        let host_pids = Facts {
            is_in_container: true,
            capabilities: 0,
            ..ROOT
        };
        assert_eq!(decided(host_pids), (Reach::Container, Reach::Container));
        // With them it could do everything by itself.
        let privileged = Facts {
            is_in_container: true,
            ..ROOT
        };
        assert_eq!(decided(privileged), (Reach::All, Reach::All));
    }

    #[test]
    fn a_user_and_its_groups() {
        assert_eq!(decided(USER), (Reach::User, Reach::User));
        let reader = Facts {
            is_reader: true,
            ..USER
        };
        assert_eq!(decided(reader), (Reach::All, Reach::User));
        let killer = Facts {
            is_killer: true,
            ..USER
        };
        assert_eq!(decided(killer), (Reach::All, Reach::All));
        // Capabilities without uid 0 are not asked for here.
        let able = Facts {
            capabilities: u64::MAX,
            ..USER
        };
        assert_eq!(decided(able), (Reach::User, Reach::User));
        for base in [reader, killer] {
            let contained = Facts {
                is_in_container: true,
                ..base
            };
            assert_eq!(decided(contained), (Reach::Container, Reach::Container));
            let elsewhere = Facts {
                has_host_users: false,
                ..base
            };
            assert_eq!(decided(elsewhere), (Reach::Namespaces, Reach::Namespaces));
        }
    }
}
