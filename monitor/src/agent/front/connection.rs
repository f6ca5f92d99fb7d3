//! One connection: requests are read within their limits, answered by the routes, and the core is
//! told when it is over.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::response::IntoResponse as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::net::Shutdown;
use tokio::net::UnixStream;

use super::super::call::{Call, Kind};
use super::super::problem::{Code, Problem};
use super::link::Link;
use super::pace::{Pace, Paced};
use super::respond::respond;

/// Bytes of the head of a request at most.
pub(super) const HEAD_BYTES_MAX: usize = 16 << 10;
/// Header lines at most.
const HEADERS_MAX: usize = 64;
/// Bytes of the body of a request at most.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 10;

/// A connection as the routes see it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    number: u64,
    link: Link,
    pace: Arc<Pace>,
}

impl Connection {
    /// Makes one.
    pub(super) fn new(number: u64, link: Link) -> Self {
        let pace = Arc::default();
        Self { number, link, pace }
    }

    /// Asks the core, and turns what it answers into a response.
    pub(super) async fn ask(&self, call: Call) -> Response<Body> {
        let mut asked = self.link.ask(self.number, call);
        let Some((part, body)) = asked.next().await else {
            let ended = Problem::new(Code::Unavailable, "the agent is ending; try again");
            return ended.into_response();
        };
        let is_stream = !part.is_last;
        self.pace.answers_with_stream(is_stream);
        let body = if is_stream {
            Body::from_stream(asked.beginning_with(body))
        } else {
            Body::from(body)
        };
        respond(part.status, part.kind, body)
    }
}

/// Serves a connection in a task of its own.
pub(super) fn start(number: u64, socket: OwnedFd, link: Link, router: Router) {
    tokio::spawn(async move {
        let served = serve(number, socket, &link, router).await;
        if let Err(error) = served {
            log::debug!("connection {number}: {error}");
        }
        link.done(number);
    });
}

async fn serve(number: u64, socket: OwnedFd, link: &Link, router: Router) -> io::Result<()> {
    // The core keeps a descriptor of its own: closing this one alone would tell the caller nothing.
    let again = socket.try_clone()?;
    let stream = StdStream::from(socket);
    stream.set_nonblocking(true)?;
    let connection = Connection::new(number, link.clone());
    let pace = Arc::clone(&connection.pace);
    let stream = Paced::new(UnixStream::from_std(stream)?, Arc::clone(&pace));
    let service = TowerToHyperService::new(router);
    let answer = service_fn(move |request: Request<Incoming>| {
        let (service, connection) = (service.clone(), connection.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return Ok::<_, Infallible>(refuse_body(&*error)),
            };
            connection.pace.has_arrived();
            connection.pace.answers_with_stream(false);
            parts.extensions.insert(connection);
            service
                .call(Request::from_parts(parts, Body::from(body)))
                .await
        }
    });
    let ended = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    let _ = rustix::net::shutdown(&again, Shutdown::Both);
    ended.map_err(io::Error::other)
}

fn refuse_body(error: &(dyn std::error::Error + 'static)) -> Response<Body> {
    let problem = if error.is::<LengthLimitError>() {
        let detail = format!("a body may have {BODY_BYTES_MAX} bytes");
        Problem::new(Code::BodyTooLarge, detail)
    } else {
        Problem::new(Code::InvalidRequest, "the body does not arrive whole")
    };
    let mut response = respond(problem.status, Kind::Problem, Body::from(problem.to_json()));
    let close = axum::http::HeaderValue::from_static("close");
    let headers = response.headers_mut();
    headers.insert(axum::http::header::CONNECTION, close);
    response
}
