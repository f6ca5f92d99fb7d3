//! The tracker of another version: what replaces it says what is lost, and who watches it is told.

use lifemon_tests::reports::Lost;
use lifemon_tests::{Lifemon, Sandbox, actor};

use super::host::{HOME, Host, OPEN_TO_ALL};

#[test]
fn who_watches_a_tracker_of_another_version_is_told_when_it_is_replaced() {
    let host = Host::new(Some(OPEN_TO_ALL));
    let since = host.track("on").since.expect("a time");
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid().to_string();
    let command = host.command(&["attach", &pid, "-o", "json"]);
    let mut stream = Lifemon::find().stream_of(command);
    assert_eq!(stream.attached().tracker, "host");

    let other = format!("{HOME}/v99");
    let directory = host.status().on().directory;
    host.mounts.as_root(&["mv", &directory, &other]);
    // It goes on while nobody replaces it: an update of the program alone does not.
    assert!(host.status().off().problem.is_some());
    let on = host.track("on");
    assert_eq!(on.removed, ["v99"], "{on:?}");
    // A clock that is set meanwhile moves both times: seconds are enough.
    let lost_since = on.lost_since.expect("what is lost");
    assert_eq!(lost_since[..16], since[..16], "{lost_since} {since}");

    stream.wait_for_line::<Lost>("the end of its tracker", |lost| {
        lost.reason == "switched_off"
    });
    let finished = stream.finish();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    host.assert_used();
    host.assert_switched_off();
}

#[test]
fn what_replaces_it_says_so_in_words() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.track("on");
    let directory = host.status().on().directory;
    host.mounts
        .as_root(&["mv", &directory, &format!("{HOME}/v99")]);
    let text = host.run(&["track", "on"]).stdout;
    assert!(text.contains("left: v99"), "{text}");
    assert!(text.contains("is lost with it"), "{text}");
    host.assert_switched_off();
}
