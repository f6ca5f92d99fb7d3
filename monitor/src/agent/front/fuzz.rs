//! Requests of all kinds, thousands of them, through the routes as the front has them: none breaks
//! it, each is answered, and what reaches the core is a call that was meant.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use proptest::prelude::*;
use tokio::sync::mpsc::unbounded_channel;

use super::connection::Connection;
use super::link::Link;
use super::read::body;
use super::routes::router;
use crate::agent::call::{
    Call, EventsQuery, GuardRequest, KillRequest, Message, WaitRequest, WatchRequest,
};
use crate::agent::naming::Name;

/// Sends a request through the routes. A core that answers nothing is behind them, so that what
/// gets as far as that is seen.
fn send(method: &str, path: &str, bytes: Vec<u8>) -> Result<Call, u16> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (out, mut messages) = unbounded_channel();
        let connection = Connection::new(1, Link::with(out));
        let service = TowerToHyperService::new(router());
        let request = Request::builder().method(method).uri(path);
        let Ok(mut request) = request.body(Body::from(bytes)) else {
            return Err(400);
        };
        request.extensions_mut().insert(connection);
        let answering = service.call(request);
        tokio::pin!(answering);
        tokio::select! {
            biased;
            answer = &mut answering => {
                let answer = answer.unwrap();
                let status = answer.status().as_u16();
                let bytes = answer.into_body().collect().await.unwrap().to_bytes();
                assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
                Err(status)
            }
            message = messages.recv() => match message {
                Some(Message::Ask { connection, call, .. }) => {
                    assert_eq!(connection, 1);
                    Ok(*call)
                }
                other => panic!("{other:?}"),
            },
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("no answer"),
        }
    })
}

/// Words that are near to what is meant.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("self".to_owned()),
        "[0-9]{1,12}@[0-9]{1,22}",
        "ns:[0-9]{1,6}",
        "handle:[a-f0-9]{1,70}",
        "[a-z0-9%@:./?=&-]{0,24}",
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..<_>::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = body::<KillRequest>(&bytes);
        let _ = body::<GuardRequest>(&bytes);
        let _ = body::<WaitRequest>(&bytes);
        let _ = body::<WatchRequest>(&bytes);
        let _ = serde_json::from_slice::<Message>(&bytes);
        let _ = serde_json::from_slice::<EventsQuery>(&bytes);
    }

    #[test]
    fn a_name_that_is_read_is_the_same_again(text in word()) {
        if let Ok(name) = text.parse::<Name>() {
            prop_assert_eq!(name.to_string().parse::<Name>(), Ok(name));
        }
    }

    #[test]
    fn any_kill_is_read_as_it_is_written_or_refused(
        process in word(), signal in proptest::option::of(word()), dry_run in any::<bool>(),
        unknown in any::<bool>(),
    ) {
        let mut object = serde_json::json!({"process": process, "dry_run": dry_run});
        if let Some(signal) = &signal {
            object["signal"] = signal.clone().into();
        }
        if unknown {
            object["other"] = 1.into();
        }
        let sent = send("POST", "/v1/kills", object.to_string().into_bytes());
        match sent {
            Ok(Call::Kill { request, .. }) => {
                prop_assert!(!unknown);
                prop_assert_eq!(Ok(request.process), process.parse::<Name>());
                prop_assert_eq!((request.signal, request.dry_run), (signal, dry_run));
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(status) => prop_assert_eq!(status, 400),
        }
    }

    #[test]
    fn any_path_is_answered(
        method in prop_oneof!["GET", "POST", "PUT", "DELETE", "[A-Z]{1,8}"],
        path in "/(v1/)?(tree|orphans|gpu|explain|log|health|kills|guards|wait|watches|events|info|x)?/?[!-~]{0,32}",
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        if let Err(status) = send(&method, &path, bytes) {
            prop_assert!((200..500).contains(&status), "{} {}: {}", method, path, status);
        }
    }
}
