//! A daemon of canned answers on a Unix socket, and the binary that asks it.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::UnixListener, process::Command, sync::mpsc, task::JoinHandle};

const LIMIT: Duration = Duration::from_secs(20);

/// A request that arrived.
#[derive(Debug)]
pub struct Seen {
    /// Query of its URL.
    pub query: String,
    /// Its body; null when it had none.
    pub body: Value,
}

type Script = HashMap<(String, String), VecDeque<(StatusCode, String)>>;

struct Shared {
    script: Mutex<Script>,
    seen: mpsc::UnboundedSender<Seen>,
}

/// The daemon. It ends when dropped.
pub struct Fake {
    directory: TempDir,
    shared: Arc<Shared>,
    seen: mpsc::UnboundedReceiver<Seen>,
    server: JoinHandle<()>,
}

impl Fake {
    /// Starts one that answers 404 to everything.
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"))
    }

    fn start_in(directory: TempDir) -> Self {
        let (sender, seen) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            script: Mutex::default(),
            seen: sender,
        });
        let listener = UnixListener::bind(directory.path().join("s")).expect("a socket");
        let app = Router::new().fallback(reply).with_state(shared.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("it serves");
        });
        Self {
            directory,
            shared,
            seen,
            server,
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Answers a path with these bodies, one a request, the last one from then on.
    pub fn answer(self, method: &str, path: &str, bodies: Vec<Value>) -> Self {
        let answers = bodies.iter().map(|body| (StatusCode::OK, body.to_string()));
        self.script(method, path, answers.collect())
    }

    /// Refuses a path.
    pub fn refuse(self, method: &str, path: &str, status: StatusCode, refusal: &Value) -> Self {
        self.script(
            method,
            path,
            VecDeque::from([(status, refusal.to_string())]),
        )
    }

    fn script(self, method: &str, path: &str, answers: VecDeque<(StatusCode, String)>) -> Self {
        let key = (method.to_owned(), path.to_owned());
        self.shared
            .script
            .lock()
            .expect("unpoisoned")
            .insert(key, answers);
        self
    }

    /// The next request, once it has arrived.
    pub async fn next_request(&mut self) -> Seen {
        let next = tokio::time::timeout(LIMIT, self.seen.recv()).await;
        next.expect("a request in time").expect("a daemon")
    }

    /// Ends it; the socket goes with it.
    pub async fn stop(self) -> Stopped {
        std::fs::remove_file(self.socket()).expect("removed");
        self.server.abort();
        let _ = self.server.await;
        Stopped(self.directory)
    }
}

/// A daemon that has ended.
pub struct Stopped(TempDir);

impl Stopped {
    /// Another one at the same place.
    pub fn restart(self) -> Fake {
        Fake::start_in(self.0)
    }
}

async fn reply(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let key = (method.to_string(), uri.path().to_owned());
    let answer = {
        let mut script = shared.script.lock().expect("unpoisoned");
        script.get_mut(&key).and_then(|answers| {
            if answers.len() > 1 {
                answers.pop_front()
            } else {
                answers.front().cloned()
            }
        })
    };
    // Nobody listens any more when the test is at its end.
    let _ = shared.seen.send(Seen {
        query: uri.query().unwrap_or_default().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    match answer {
        Some((status, text)) => {
            (status, [(CONTENT_TYPE, "application/json")], text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// What a run of the binary came to.
#[derive(Debug)]
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// stdout.
    pub out: String,
    /// stderr.
    pub err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("not killed by a signal"),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

impl Run {
    /// Runs `ebb LINE` to its end.
    pub async fn of(socket: &Path, line: &str) -> Self {
        let output = tokio::time::timeout(LIMIT, command(socket, line).output()).await;
        output.expect("it ends").expect("it ran").into()
    }

    /// stdout as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).expect("JSON alone")
    }
}

/// `ebb LINE`, words separated by spaces, for the daemon at `socket`.
pub fn command(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebb"));
    command
        .args(line.split(' '))
        .env("EBB_SOCKET", socket)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs `ebb LINE` against a daemon to its end.
pub async fn ebb(fake: &Fake, line: &str) -> Run {
    Run::of(&fake.socket(), line).await
}
