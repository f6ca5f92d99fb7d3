//! An HTTP server with workers: `/health`, `/generate`, and `/cleanup` of what dead workers left.
//!
//! `cargo run -p lifemon --example server -- python3 monitor/examples/worker.py`
//!
//! Options, before the worker's command: `--workers N`, `--any` (one dead worker ends the server),
//! `--no-ebpf`, `--shutdown-ms N`, `--kill-ms N`, `--answer-ms N`. It prints where it listens and
//! who works for it, and at the end what was left of them.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use lifemon::manager::{
    Connection, ConnectionError, Health, Options, Policy, ProcessManager, Scope, WorkerCommand,
    run_if_asked,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

struct Server {
    manager: Arc<ProcessManager>,
    next: AtomicUsize,
    /// One request at a time for each worker.
    turns: Vec<Mutex<()>>,
    next_id: AtomicU64,
    /// How long a worker may take for an answer.
    answer_timeout: Duration,
}

/// What was typed.
struct Typed {
    options: Options,
    workers: usize,
    answer_timeout: Duration,
}

#[derive(Deserialize)]
struct Prompt {
    #[serde(default)]
    prompt: String,
    worker: Option<usize>,
}

fn main() -> ExitCode {
    // The guardian is this program, executed anew.
    run_if_asked();
    let typed = match parse() {
        Ok(typed) => typed,
        Err(word) => {
            eprintln!("server: {word} is not understood, or no worker is given");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime.map_err(anyhow::Error::from);
    match served.and_then(|runtime| runtime.block_on(serve(typed))) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(typed: Typed) -> anyhow::Result<u8> {
    let workers = typed.workers;
    let manager = Arc::new(ProcessManager::start(typed.options).await?);
    let engines = tokio::select! {
        engines = engines(&manager, workers) => engines,
        // Somebody has asked for the end already, or nobody is left to wait for.
        _ = manager.stop_asked() => return Ok(manager.shutdown().await.code),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (pids, guardian) = (manager.pids(), manager.guardian());
    println!(
        "{}",
        json!({"port": port, "workers": pids, "engines": engines, "guardian": guardian})
    );
    let lifespan = manager.lifespan();
    let server = Arc::new(Server {
        manager,
        next: AtomicUsize::new(0),
        turns: (0..workers).map(|_| Mutex::default()).collect(),
        next_id: AtomicU64::new(0),
        answer_timeout: typed.answer_timeout,
    });
    let app = Router::new()
        .route("/health", get(health))
        .route("/generate", get(by_query).post(by_body))
        .route("/cleanup", get(cleanup))
        .with_state(server);
    axum::serve(listener, app)
        .with_graceful_shutdown(lifespan.clone().stop_asked())
        .await?;
    let finished = lifespan.finish().await;
    if let Some(rest) = &finished.rest {
        println!("{}", serde_json::to_string(rest)?);
    }
    Ok(finished.code)
}

/// The first message of each worker says that it is ready, and what it has started.
async fn engines(manager: &ProcessManager, workers: usize) -> Vec<Value> {
    let mut engines = Vec::new();
    for worker in 0..workers {
        if let Some(connection) = manager.connection(worker) {
            engines.push(connection.safe_recv().await["engine"].clone());
        }
    }
    engines
}

async fn health(State(server): State<Arc<Server>>) -> (StatusCode, Json<Value>) {
    let health = server.manager.health_status();
    let code = match health.status {
        Health::Ok => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(json!(health)))
}

async fn cleanup(State(server): State<Arc<Server>>) -> (StatusCode, Json<Value>) {
    let patterns = ["VLLM::EngineCore"];
    match server.manager.cleanup_orphans(&patterns, Scope::Own).await {
        Ok(cleaned) => {
            let pids: Vec<_> = cleaned.iter().map(|orphan| orphan.id.pid).collect();
            (StatusCode::OK, Json(json!({ "cleaned": pids })))
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            Json(json!({"error": error.to_string()})),
        ),
    }
}

async fn by_query(
    State(server): State<Arc<Server>>,
    Query(prompt): Query<Prompt>,
) -> (StatusCode, Json<Value>) {
    generate(&server, prompt).await
}

async fn by_body(
    State(server): State<Arc<Server>>,
    Json(prompt): Json<Prompt>,
) -> (StatusCode, Json<Value>) {
    generate(&server, prompt).await
}

async fn generate(server: &Server, prompt: Prompt) -> (StatusCode, Json<Value>) {
    if let Err(died) = server.manager.check_workers_alive() {
        let answer = json!({"error": died.to_string(), "dead": died.dead});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(answer));
    }
    let next = server.next.fetch_add(1, Ordering::Relaxed) % server.turns.len().max(1);
    let worker = prompt.worker.unwrap_or(next);
    let connection = server.manager.connection(worker);
    let (Some(connection), Some(turn)) = (connection, server.turns.get(worker)) else {
        return (
            StatusCode::NOT_FOUND,
            Json(json!({"error": "no such worker"})),
        );
    };
    let id = server.next_id.fetch_add(1, Ordering::Relaxed);
    let request = json!({"type": "generate", "id": id, "prompt": prompt.prompt});
    let asked = async {
        let _turn = turn.lock().await;
        let answer = ask(connection, &request).await;
        answer.unwrap_or_else(|error| error.to_value())
    };
    match tokio::time::timeout(server.answer_timeout, asked).await {
        Ok(answer) if answer.get("error").is_some() => {
            (StatusCode::INTERNAL_SERVER_ERROR, Json(answer))
        }
        Ok(answer) => (StatusCode::OK, Json(answer)),
        Err(_) => (
            StatusCode::GATEWAY_TIMEOUT,
            Json(json!({"error": "no answer"})),
        ),
    }
}

/// The answer to this request. Who has asked before may have gone without waiting for its answer,
/// which comes first then.
async fn ask(connection: &Connection, request: &Value) -> Result<Value, ConnectionError> {
    connection.send(request).await?;
    loop {
        let answer = connection.recv().await?;
        if answer["id"] == request["id"] {
            return Ok(answer);
        }
    }
}

/// What was typed, or the word that is wrong.
fn parse() -> Result<Typed, String> {
    let mut words = std::env::args().skip(1).peekable();
    let mut options = Options::default();
    let mut answer_timeout = Duration::from_secs(30);
    let mut workers = 2;
    while let Some(word) = words.next_if(|word| word.starts_with("--")) {
        let mut number = || {
            let number = words.next().and_then(|number| number.parse().ok());
            number.ok_or_else(|| word.clone())
        };
        let ms = |number: u64| Duration::from_millis(number);
        options = match word.as_str() {
            "--any" => options.policy(Policy::AnyDead),
            "--no-ebpf" => options.use_ebpf(false),
            "--shutdown-ms" => options.shutdown_timeout(ms(number()?)),
            "--kill-ms" => options.kill_timeout(ms(number()?)),
            "--answer-ms" => {
                answer_timeout = ms(number()?);
                options
            }
            "--workers" => {
                workers = usize::try_from(number()?).map_err(|_| word.clone())?;
                options
            }
            _ => return Err(word),
        };
    }
    let program = words.next().ok_or("the worker's command")?;
    let command = words.fold(WorkerCommand::new(program), WorkerCommand::arg);
    for _ in 0..workers {
        options = options.worker(command.clone());
    }
    Ok(Typed {
        options,
        workers,
        answer_timeout,
    })
}
