//! The routes: a path and a body become a call. The description of the API is made of the same
//! lines ([`openapi`]).

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path};
use axum::http::{HeaderMap, Response, Uri};
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::call::{
    Call, EventsQuery, GuardRequest, KillRequest, Kind, LogQuery, OrphansQuery, WaitRequest,
    WatchRequest,
};
use super::super::problem::{Code, Problem};
use super::connection::Connection;
use super::read::{FormQuery, body, key, name, query, query_with_form};
use super::respond::respond;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "lifemon agent",
        description = "The node agent of lifemon, over a Unix socket. A process is named `self`, \
            `PID@START_NS`, `ns:PID` or `handle:TOKEN`. Who the caller is, the kernel says. \
            Errors are problem documents (RFC 9457) with a stable `code`.",
        license(name = "MIT OR Apache-2.0"),
    ),
    components(schemas(Problem))
)]
struct Description;

type Answered = Result<Response<Body>, Problem>;
type Caller = Extension<Connection>;

/// Returns the routes, each with its description.
fn all() -> OpenApiRouter {
    let versioned = OpenApiRouter::new()
        .routes(routes!(whole_tree))
        .routes(routes!(tree))
        .routes(routes!(orphans))
        .routes(routes!(gpu))
        .routes(routes!(explain))
        .routes(routes!(log))
        .routes(routes!(health))
        .routes(routes!(info))
        .routes(routes!(kill))
        .routes(routes!(kill_state))
        .routes(routes!(guard, guards))
        .routes(routes!(take_up, release))
        .routes(routes!(wait))
        .routes(routes!(watch, watches))
        .routes(routes!(unwatch))
        .routes(routes!(events));
    OpenApiRouter::with_openapi(Description::openapi())
        .nest("/v1", versioned)
        .routes(routes!(livez))
        .routes(routes!(readyz))
}

/// Returns the description of the API, as JSON.
pub(crate) fn openapi() -> String {
    let (_, description) = all().split_for_parts();
    description.to_pretty_json().unwrap_or_default() + "\n"
}

/// Returns the routes.
pub(super) fn router() -> Router {
    let (router, description) = all().split_for_parts();
    let description = Bytes::from(description.to_pretty_json().unwrap_or_default() + "\n");
    let describe = move || {
        let body = Body::from(description.clone());
        async move { respond(200, Kind::Json, body) }
    };
    router
        .route("/v1/openapi.json", get(describe.clone()))
        .route("/openapi.json", get(describe))
        .route("/v1/livez", get(livez))
        .route("/v1/readyz", get(readyz))
        .fallback(async |uri: Uri| {
            Problem::new(Code::NotFound, format!("nothing is at {}", uri.path()))
        })
        .method_not_allowed_fallback(async || {
            Problem::new(Code::MethodNotAllowed, "see /v1/openapi.json")
        })
}

/// Returns the lineage of everything that the caller may see.
#[utoipa::path(get, path = "/tree", params(FormQuery),
    responses((status = 200, description = "as `lifemon tree -o json` prints it")))]
async fn whole_tree(caller: Caller, uri: Uri, headers: HeaderMap) -> Answered {
    let form = query::<FormQuery>(&uri)?.form(&headers);
    let process = None;
    Ok(caller.ask(Call::Tree { process, form }).await)
}

/// Returns the lineage of a tree. Members that the caller may not see are counted in `others`.
#[utoipa::path(get, path = "/tree/{process}",
    params(("process" = String, Path, description = "the root, dead or alive"), FormQuery),
    responses((status = 200, description = "as `lifemon tree -o json PID` prints it"),
        (status = 403, body = Problem), (status = 404, body = Problem)))]
async fn tree(
    caller: Caller,
    Path(process): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Answered {
    let form = query::<FormQuery>(&uri)?.form(&headers);
    let process = Some(name(&process)?);
    Ok(caller.ask(Call::Tree { process, form }).await)
}

/// Lists what was left behind, of what the caller may see.
#[utoipa::path(get, path = "/orphans", params(OrphansQuery, FormQuery),
    responses((status = 200, description = "as `lifemon orphans -o json` prints it"),
        (status = 400, body = Problem)))]
async fn orphans(caller: Caller, uri: Uri, headers: HeaderMap) -> Answered {
    let (query, form) = query_with_form(&uri, &headers)?;
    Ok(caller.ask(Call::Orphans { query, form }).await)
}

/// Lists who holds GPUs, of what the caller may see.
#[utoipa::path(get, path = "/gpu", params(FormQuery),
    responses((status = 200, description = "as `lifemon gpu -o json` prints it")))]
async fn gpu(caller: Caller, uri: Uri, headers: HeaderMap) -> Answered {
    let form = query::<FormQuery>(&uri)?.form(&headers);
    Ok(caller.ask(Call::Gpu { form }).await)
}

/// Explains one process: who created it, how it was left, what it holds, what a kill would do.
#[utoipa::path(get, path = "/explain/{process}",
    params(("process" = String, Path, description = "the process, dead or alive"), FormQuery),
    responses((status = 200, description = "as `lifemon explain -o json PID` prints it"),
        (status = 403, body = Problem), (status = 404, body = Problem)))]
async fn explain(
    caller: Caller,
    Path(process): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Answered {
    let form = query::<FormQuery>(&uri)?.form(&headers);
    let process = name(&process)?;
    Ok(caller.ask(Call::Explain { process, form }).await)
}

/// Lists who died on this host, although nobody watched, and of what, as far as the caller may see.
#[utoipa::path(get, path = "/log", params(LogQuery, FormQuery),
    responses((status = 200, description = "as `lifemon log -o json` prints it"),
        (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, body = Problem)))]
async fn log(caller: Caller, uri: Uri, headers: HeaderMap) -> Answered {
    let (query, form) = query_with_form(&uri, &headers)?;
    Ok(caller.ask(Call::Log { query, form }).await)
}

/// Says whether a process lives and its tree has no leaked orphans.
#[utoipa::path(get, path = "/health/{process}",
    params(("process" = String, Path, description = "the process")),
    responses((status = 200, description = "it is well"),
        (status = 503, description = "it is not: `causes` says why"),
        (status = 404, body = Problem)))]
async fn health(caller: Caller, Path(process): Path<String>) -> Answered {
    let process = name(&process)?;
    Ok(caller.ask(Call::Health { process }).await)
}

/// Says what the agent is, who the caller is, and what it may.
#[utoipa::path(get, path = "/info", responses((status = 200, description = "an object")))]
async fn info(caller: Caller) -> Answered {
    Ok(caller.ask(Call::Info).await)
}

/// Ends a tree with the rights of the caller.
#[utoipa::path(post, path = "/kills", request_body = KillRequest,
    params(("Idempotency-Key" = Option<String>, Header,
        description = "a repetition with the same key ends nothing again")),
    responses((status = 200, description = "as `lifemon kill -o json` prints it, with its `id`"),
        (status = 202, description = "it is under way: `wait` was false"),
        (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 429, body = Problem)))]
async fn kill(caller: Caller, headers: HeaderMap, bytes: Bytes) -> Answered {
    let key = match headers.get("idempotency-key") {
        Some(value) => {
            let text = value.to_str().unwrap_or_default();
            Some(key(text.to_owned())?)
        }
        None => None,
    };
    let request = body(&bytes)?;
    Ok(caller.ask(Call::Kill { request, key }).await)
}

/// Returns what became of a kill.
#[utoipa::path(get, path = "/kills/{id}",
    params(("id" = String, Path, description = "as the kill's answer has it"), FormQuery),
    responses((status = 200, description = "`state` is running, done, failed or interrupted"),
        (status = 404, body = Problem)))]
async fn kill_state(
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Answered {
    let form = query::<FormQuery>(&uri)?.form(&headers);
    let id = key(id)?;
    Ok(caller.ask(Call::KillState { id, form }).await)
}

/// Guards trees of the caller's: when the owner dies, or the caller disconnects, they end.
#[utoipa::path(post, path = "/guards", request_body = GuardRequest,
    responses((status = 201, description = "the guard, with its `id`"),
        (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 429, body = Problem)))]
async fn guard(caller: Caller, bytes: Bytes) -> Answered {
    let request = body(&bytes)?;
    Ok(caller.ask(Call::Guard { request }).await)
}

/// Lists the guards of the caller's user.
#[utoipa::path(get, path = "/guards", responses((status = 200, description = "a list")))]
async fn guards(caller: Caller) -> Answered {
    Ok(caller.ask(Call::Guards).await)
}

/// Takes a guard up on this connection, after a restart of the agent: now this one's end fires it.
#[utoipa::path(put, path = "/guards/{id}",
    params(("id" = String, Path, description = "as the guard's answer has it")),
    responses((status = 200, description = "the guard"), (status = 404, body = Problem)))]
async fn take_up(caller: Caller, Path(id): Path<String>) -> Answered {
    let id = key(id)?;
    Ok(caller.ask(Call::TakeUp { id }).await)
}

/// Ends a guard; its trees live on.
#[utoipa::path(delete, path = "/guards/{id}",
    params(("id" = String, Path, description = "as the guard's answer has it")),
    responses((status = 200, description = "it guards no more"), (status = 404, body = Problem)))]
async fn release(caller: Caller, Path(id): Path<String>) -> Answered {
    let id = key(id)?;
    Ok(caller.ask(Call::Release { id }).await)
}

/// Waits until a condition holds.
#[utoipa::path(post, path = "/wait", request_body = WaitRequest,
    responses((status = 200, description = "as `lifemon wait -o json` prints it: `holds` says whether \
        it does, or the time was over"),
        (status = 403, body = Problem), (status = 404, body = Problem)))]
async fn wait(caller: Caller, bytes: Bytes) -> Answered {
    let request = body(&bytes)?;
    Ok(caller.ask(Call::Wait { request }).await)
}

/// Watches a tree: its events are kept for `/events`.
#[utoipa::path(post, path = "/watches", request_body = WatchRequest,
    responses((status = 201, description = "the watch, with its `id`; `after` is where its events \
        begin"),
        (status = 404, body = Problem), (status = 429, body = Problem)))]
async fn watch(caller: Caller, bytes: Bytes) -> Answered {
    let request = body(&bytes)?;
    Ok(caller.ask(Call::Watch { request }).await)
}

/// Lists the watches of the caller's user.
#[utoipa::path(get, path = "/watches", responses((status = 200, description = "a list")))]
async fn watches(caller: Caller) -> Answered {
    Ok(caller.ask(Call::Watches).await)
}

/// Ends a watch.
#[utoipa::path(delete, path = "/watches/{id}",
    params(("id" = String, Path, description = "as the watch's answer has it")),
    responses((status = 200, description = "it watches no more"), (status = 404, body = Problem)))]
async fn unwatch(caller: Caller, Path(id): Path<String>) -> Answered {
    let id = key(id)?;
    Ok(caller.ask(Call::Unwatch { id }).await)
}

/// Streams the events of the caller's watches, one object a line. `id` is `EPOCH:SEQ`.
#[utoipa::path(get, path = "/events", params(EventsQuery),
    responses((status = 200, description = "lines, until the caller goes, or the one `watch` ends",
        content_type = "application/x-ndjson"), (status = 404, body = Problem), (status = 429, body = Problem)))]
async fn events(caller: Caller, uri: Uri) -> Answered {
    let query = query(&uri)?;
    Ok(caller.ask(Call::Events { query }).await)
}

/// Says that the agent lives.
#[utoipa::path(get, path = "/livez", responses((status = 200, description = "it lives")))]
async fn livez() -> Response<Body> {
    respond(200, Kind::Json, Body::from("{\"live\":true}\n"))
}

/// Says whether the agent can answer: its tracker is on.
#[utoipa::path(get, path = "/readyz", responses((status = 200, description = "it can"),
    (status = 503, body = Problem)))]
async fn readyz(caller: Caller) -> Answered {
    Ok(caller.ask(Call::Ready).await)
}
