//! HTTP over the control socket. One connection a request: a restarted daemon is found again at once.

use std::{
    error::Error as _,
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::api::Refusal;

use super::error::{CliError, io_words};

/// Time within which a daemon answers, if it does at all; it answers most requests in milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot reach the daemon at {}: {}", path.display(), io_words(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection ended before the answer was whole.
    #[error("the daemon at {} gave no answer: {why}", path.display())]
    Cut {
        /// The socket.
        path: PathBuf,
        /// Why, in words.
        why: String,
    },
    /// No answer in time.
    #[error("the daemon at {} gave no answer: {} seconds passed", path.display(), limit.as_secs())]
    Late {
        /// The socket.
        path: PathBuf,
        /// The time it had.
        limit: Duration,
    },
    /// It said no.
    #[error("{refusal}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        refusal: Refusal,
    },
    /// It said no, in no words we know.
    #[error("{request} was refused: HTTP status {status}")]
    Status {
        /// Method and path.
        request: String,
        /// HTTP status.
        status: StatusCode,
    },
    /// The answer is not what this version understands.
    #[error("cannot understand the answer to {request}: {why}")]
    Answer {
        /// Method and path.
        request: String,
        /// Why.
        why: String,
    },
}

impl ClientError {
    /// Whether a daemon that is just restarting could be the cause.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Cut { .. } | Self::Late { .. } => true,
            Self::Refused { status, .. } | Self::Status { status, .. } => {
                *status == StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Answer { .. } => false,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect { source, .. } => connect_hint(source),
            Self::Cut { .. } | Self::Late { .. } => {
                "it is not known whether the command was carried out: see `ebb status`, and the \
                 daemon's log (journalctl -u ebb)"
            }
            Self::Refused { refusal, .. } => return refusal.hint.clone(),
            Self::Status { .. } | Self::Answer { .. } => {
                "is it an ebb daemon of the same version? `ebb version` shows both"
            }
        };
        Some(hint.to_owned())
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let hint = error.hint();
        Self {
            hint,
            ..Self::failed(error.to_string())
        }
    }
}

/// The kernel tells a file that is no socket from one that nobody listens on as little as a path that is too long from
/// any other bad argument.
fn connect_error(error: io::Error, path: &Path) -> io::Error {
    let no_socket = || std::fs::metadata(path).is_ok_and(|file| !file.file_type().is_socket());
    match error.kind() {
        io::ErrorKind::InvalidInput => {
            io::Error::other("the path is too long for a socket (107 bytes are possible)")
        }
        io::ErrorKind::ConnectionRefused if no_socket() => io::Error::other("it is no socket"),
        _ => error,
    }
}

fn connect_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "is `ebb run` running? (systemctl status ebb); --socket or EBB_SOCKET names another \
             socket"
        }
        io::ErrorKind::PermissionDenied => {
            "run it as root, or as a member of the group ebb, which the socket belongs to"
        }
        io::ErrorKind::ConnectionRefused => {
            "the daemon ended and left its socket behind: start it again (ebb run, or systemctl \
             start ebb)"
        }
        _ => "--socket or EBB_SOCKET names the control socket of a running daemon",
    }
}

/// An answer: JSON, status below 400.
#[derive(Debug, Clone)]
pub struct Answer {
    request: String,
    body: Bytes,
}

impl Answer {
    /// As it came.
    ///
    /// # Errors
    ///
    /// It is no text.
    pub fn text(&self) -> Result<&str, ClientError> {
        std::str::from_utf8(&self.body).map_err(|_| self.wrong("it is not UTF-8"))
    }

    /// As one of the API's types.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| self.wrong(&error.to_string()))
    }

    fn wrong(&self, why: &str) -> ClientError {
        ClientError::Answer {
            request: self.request.clone(),
            why: why.to_owned(),
        }
    }
}

/// Talks to the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// To the daemon that listens on `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// `GET path`, answered within `limit`. `path` has its query and is a valid URL path.
    ///
    /// # Errors
    ///
    /// No answer, or a refusal.
    pub async fn get(&self, path: &str, limit: Duration) -> Result<Answer, ClientError> {
        self.ask(Method::GET, path, Bytes::new(), limit).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    ///
    /// No answer, or a refusal.
    pub async fn post<B: Serialize>(&self, path: &str, body: &B) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer {
            request: format!("POST {path}"),
            why: error.to_string(),
        })?;
        self.ask(Method::POST, path, body.into(), PATIENCE).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, ClientError> {
        let name = format!("{method} {path}");
        let exchange = async {
            let response = self.send(method, path, body).await?;
            self.whole(&name, response).await
        };
        let body = self.in_time(limit, exchange).await?;
        Ok(Answer {
            request: name,
            body,
        })
    }

    /// `POST path` with a JSON body, answered by lines of JSON without end.
    ///
    /// # Errors
    ///
    /// No answer, or a refusal.
    pub async fn stream<B: Serialize>(&self, path: &str, body: &B) -> Result<Lines, ClientError> {
        let request = format!("POST {path}");
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer {
            request: request.clone(),
            why: error.to_string(),
        })?;
        let begin = async {
            let response = self.send(Method::POST, path, body.into()).await?;
            if response.status().is_success() {
                return Ok(response.into_body());
            }
            let why = "it is an error without words".to_owned();
            let said = self.whole(&request, response).await;
            Err(said.err().unwrap_or(ClientError::Answer {
                request: request.clone(),
                why,
            }))
        };
        let body = self.in_time(PATIENCE, begin).await?;
        Ok(Lines {
            client: self.clone(),
            request,
            body,
            rest: Vec::new(),
        })
    }

    async fn in_time<T>(
        &self,
        limit: Duration,
        exchange: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let late = |_| ClientError::Late {
            path: self.socket.clone(),
            limit,
        };
        tokio::time::timeout(limit, exchange).await.map_err(late)?
    }

    /// The body of a success, or the refusal.
    async fn whole(&self, name: &str, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| self.cut(&error))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        Err(match serde_json::from_slice(&body) {
            Ok(refusal) => ClientError::Refused { status, refusal },
            Err(_) => ClientError::Status {
                request: name.to_owned(),
                status,
            },
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|error| ClientError::Connect {
                    source: connect_error(error, &self.socket),
                    path: self.socket.clone(),
                })?;
        let cut = |error: hyper::Error| self.cut(&error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(cut)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "ebb")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Cut {
                path: self.socket.clone(),
                why: error.to_string(),
            })?;
        // It ends with the sender, and tells its errors through the answer.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(cut)
    }

    fn cut(&self, error: &hyper::Error) -> ClientError {
        let source = error.source().and_then(|source| source.downcast_ref());
        let why = match source {
            Some(source) => io_words(source),
            None if error.is_parse() => "it does not speak HTTP".to_owned(),
            None if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => {
                "the connection was cut".to_owned()
            }
            None => error.to_string(),
        };
        ClientError::Cut {
            path: self.socket.clone(),
            why,
        }
    }
}

/// An answer that goes on, line by line.
pub struct Lines {
    client: Client,
    request: String,
    body: Incoming,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

impl Lines {
    /// The next lines, as many as come at once; none at the end.
    ///
    /// # Errors
    ///
    /// The connection was cut, or a line is not what this version understands.
    pub async fn lines<T: DeserializeOwned>(&mut self) -> Result<Vec<T>, ClientError> {
        loop {
            let Some(frame) = self.body.frame().await else {
                return Ok(Vec::new());
            };
            let frame = frame.map_err(|error| self.client.cut(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.rest.extend_from_slice(&data);
            let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            let after = self.rest.split_off(end + 1);
            let whole = std::mem::replace(&mut self.rest, after);
            let lines = whole.split(|byte| *byte == b'\n');
            return lines
                .filter(|line| !line.is_empty())
                .map(|line| {
                    serde_json::from_slice(line).map_err(|error| ClientError::Answer {
                        request: self.request.clone(),
                        why: error.to_string(),
                    })
                })
                .collect();
        }
    }
}
