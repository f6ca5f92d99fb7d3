//! `lifemon attach -o json` on an actor, from its `attached` line to its end, with a tracker of
//! its own. What it has said by then becomes a `Story`.

use std::time::Duration;

use nix::sys::utsname::uname;

use crate::reports::{About, Attached, Extinct, Identified as _};
use crate::{Actor, HostLock, Lifemon, Process, Story, Stream, private_lock, scaled};

/// Since then the exit event has an argument that is true for exactly one thread.
const SAYS_WHO_IS_LAST: (u32, u32) = (6, 16);

/// A running attach. The tracker of the host stays off meanwhile.
#[derive(Debug)]
pub struct Watching {
    // Before the lock: lifemon ends before another test may switch the host's tracker on.
    stream: Stream,
    attached: Attached,
    _lock: HostLock,
}

/// Makes three tests of each function: with the exit hook as it is since Linux 6.16, with what
/// older kernels get, which do not say which thread is the last, and with the hooks of kernels
/// whose tracepoints can be preempted.
#[macro_export]
macro_rules! on_every_path {
    ($($name:ident),+ $(,)?) => {
        mod with_group_dead {
            $(#[test] fn $name() {
                if $crate::says_who_is_last() {
                    super::$name(&[]);
                }
            })+
        }
        mod without_group_dead {
            $(#[test] fn $name() { super::$name(&["--without-group-dead"]); })+
        }
        mod preemptible {
            $(#[test] fn $name() {
                if $crate::has_other_hooks() {
                    super::$name(&["--preemptible"]);
                }
            })+
        }
    };
}

/// Returns whether the exit event of this kernel says which thread is the last. Where it does not,
/// both paths are one, and the reason why the first is left out is printed.
///
/// # Panics
/// When the kernel does not tell its release.
#[must_use]
pub fn says_who_is_last() -> bool {
    let says = release() >= SAYS_WHO_IS_LAST;
    if !says {
        println!("skipped: before Linux 6.16 the exit event does not say which thread is the last");
    }
    says
}

/// Returns whether the hooks for preemptible tracepoints are others than this kernel's own, and the
/// machine is fast enough to run every test with them as well. Where not, the reason is printed.
#[must_use]
pub fn has_other_hooks() -> bool {
    let reason = if can_preempt_tracepoints() {
        "the hooks of this kernel are these"
    } else if scaled(2) == 1 {
        "on a slow machine these hooks are tested on kernels that need them"
    } else {
        return true;
    };
    println!("skipped: {reason}");
    false
}

/// Returns whether tracepoints can be preempted on this kernel.
///
/// # Panics
/// When the kernel does not tell its release.
#[must_use]
pub fn can_preempt_tracepoints() -> bool {
    release() >= (7, 0)
}

/// Returns the first two numbers of this kernel's release.
fn release() -> (u32, u32) {
    let kernel = uname().expect("the kernel's names");
    release_of(&kernel.release().to_string_lossy()).expect("two numbers")
}

/// Returns the first two numbers of a kernel's release.
fn release_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|end: char| !end.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

impl Watching {
    /// Attaches to the actor's tree.
    ///
    /// # Panics
    /// When lifemon does not say that it has.
    #[must_use]
    #[track_caller]
    pub fn of(actor: &Actor) -> Self {
        Self::with(actor, &[])
    }

    /// Does the same with more options.
    ///
    /// # Panics
    /// As [`Watching::of`].
    #[must_use]
    #[track_caller]
    pub fn with(actor: &Actor, options: &[&str]) -> Self {
        let lock = private_lock();
        let pid = actor.pid().to_string();
        let words = ["attach", &pid, "-o", "json"];
        let mut stream = Lifemon::find().stream(words.iter().chain(options));
        let attached = stream.attached();
        assert_eq!(attached.tree.process(), actor.process(), "{attached:?}");
        Self {
            stream,
            attached,
            _lock: lock,
        }
    }

    /// Returns the first line: the tree as it was.
    #[must_use]
    pub fn attached(&self) -> &Attached {
        &self.attached
    }

    /// Returns the first line of this kind about this process, seen already or still to come.
    ///
    /// # Panics
    /// When none comes within the default deadline.
    #[track_caller]
    pub fn wait_for<K: About>(&mut self, process: Process) -> K {
        self.stream.wait_for_event(process)
    }

    /// Claims that lifemon has nothing to say for longer than it ever keeps an event back.
    ///
    /// # Panics
    /// When it says something.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        let event = self.stream.next_event(Duration::from_millis(200));
        assert_eq!(event, None, "an event of nothing");
    }

    /// Lets the actor exit with 0 and waits for lifemon's own end, as [`Watching::until_extinct`].
    ///
    /// # Panics
    /// When the actor ends otherwise, and as there.
    #[must_use]
    #[track_caller]
    pub fn end_of(self, mut actor: Actor) -> Story {
        actor.close();
        assert_eq!(actor.wait().code(), Some(0));
        self.until_extinct()
    }

    /// Waits for the end that comes by itself when the tree is extinct.
    ///
    /// # Panics
    /// When it does not come, when it is no success, or when the stream contradicts itself.
    #[must_use]
    #[track_caller]
    pub fn until_extinct(self) -> Story {
        let story = Story::check(self.stream.finish());
        assert_eq!(story.count::<Extinct>(), 1);
        story
    }

    /// Ends it by SIGINT.
    ///
    /// # Panics
    /// When it does not end well, or when the stream contradicts itself.
    #[must_use]
    #[track_caller]
    pub fn interrupt(mut self) -> Story {
        self.stream.interrupt();
        Story::check(self.stream.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(release_of("6.1.0-50-cloud-amd64"), Some((6, 1)));
        assert_eq!(release_of("7.3-rc1"), Some((7, 3)));
        assert_eq!(release_of("six"), None);
        assert!(release_of("6.9.1").is_some_and(|it| it < SAYS_WHO_IS_LAST));
    }
}
