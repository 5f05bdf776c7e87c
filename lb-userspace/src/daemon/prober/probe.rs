//! One probe: a TCP handshake, or a GET.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::model::{
    health::{FailureKind, Observation},
    spec::{DrainSigns, ProbeKind},
    speech::{Line, Wish},
};

mod agent;
mod speech;

/// Time and bytes given to the rest of an answer after its status was read, so that a backend sees its small answer
/// taken rather than its connection cut. They change nothing about the observation.
const COURTESY: Duration = Duration::from_millis(50);
const COURTESY_BYTES: usize = 1 << 16;

/// How a probe can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// This says something about the backend.
    Seen(FailureKind),
    /// This node could not make the probe: out of sockets, ports or memory.
    NotMade,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it says of the backend's health.
    pub observation: Observation,
    /// What the backend said for itself; `None` when it did not.
    pub says: Option<Says>,
}

/// What a backend says for itself in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// What it asks for, in the answer to an HTTP check.
    Wish(Wish),
    /// An agent's line.
    Line(Line),
}

impl Found {
    const fn silent(observation: Observation) -> Self {
        Self {
            observation,
            says: None,
        }
    }
}

/// Makes a probe and says what came of it within `patience`.
///
/// `None` when this node could not make it: its own shortage must not take every backend down at once.
pub async fn observe(kind: &ProbeKind, address: SocketAddr, patience: Duration) -> Option<Found> {
    let result = match kind {
        ProbeKind::Tcp => timeout(patience, connect(address))
            .await
            .map(|connected| connected.map(|_| Found::silent(Observation::Success))),
        ProbeKind::Http { path, host, drain } => {
            get(address, path, host.as_deref(), drain, patience).await
        }
        ProbeKind::Agent { send } => {
            timeout(patience, agent::ask(address, send))
                .await
                .map(|line| {
                    line.map(|line| Found {
                        observation: Observation::Success,
                        says: Some(Says::Line(line)),
                    })
                })
        }
    };
    match result {
        Ok(Ok(found)) => Some(found),
        Ok(Err(Failure::Seen(kind))) => Some(Found::silent(Observation::Failure(kind))),
        Ok(Err(Failure::NotMade)) => None,
        Err(_) => Some(Found::silent(Observation::Failure(FailureKind::Timeout))),
    }
}

/// A connection that is reset, not closed, when dropped: thousands of probes leave no TIME_WAIT behind.
async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).await.map_err(|error| {
        let failure = failure(&error);
        if failure == Failure::NotMade {
            tracing::warn!(%address, %error, "a health check could not be made");
        }
        failure
    })?;
    // Without it the probe is as true, only less tidy.
    let _ = stream.set_zero_linger();
    Ok(stream)
}

type Outcome = Result<Result<Found, Failure>, tokio::time::error::Elapsed>;

/// Everything up to the status counts against `patience`. The body matters where it may ask for a drain: then as much of
/// it as has come by the end of that time.
///
/// An answer that asks for a drain is a good one, whatever its status: who says so is alive, and that he wants no new
/// flows is what the drain is for. Without that, one that says 503 as well would be taken to have died at the deadline.
async fn get(
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
    signs: &DrainSigns,
    patience: Duration,
) -> Outcome {
    let end = Instant::now() + patience;
    let Ok(request) = request(address, path, host) else {
        tracing::warn!(%address, path, host, "not a request that can be made; its health check fails");
        return Ok(Err(Failure::Seen(FailureKind::Other)));
    };
    let exchange = async {
        let stream = connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| http_failure(&error))?;
        let mut connection = Box::pin(connection);
        let mut answer = pin!(sender.send_request(request));
        // A connection that ends first has still answered when the answer is whole.
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        };
        let response = answer.map_err(|error| http_failure(&error))?;
        Ok((response, connection))
    };
    let (response, connection) = match timeout(patience, exchange).await? {
        Ok(exchanged) => exchanged,
        Err(kind) => return Ok(Err(kind)),
    };
    let status = response.status().as_u16();
    let mut asks = signs
        .header
        .as_ref()
        .is_some_and(|sign| speech::has(response.headers(), sign));
    let rest = async {
        match signs.body.as_deref().filter(|_| !asks) {
            None => {
                read_out(response).await;
                false
            }
            Some(text) => speech::contains(response, text.as_bytes()).await,
        }
    };
    let time = if signs.body.is_some() && !asks {
        end.saturating_duration_since(Instant::now()).max(COURTESY)
    } else {
        COURTESY
    };
    asks |= timeout(time, drive(rest, connection))
        .await
        .unwrap_or(false);
    let good = asks || (200..400).contains(&status);
    if !good {
        return Ok(Err(Failure::Seen(FailureKind::Status(status))));
    }
    let is_heard = signs.header.is_some() || signs.body.is_some();
    let wish = if asks { Wish::Drain } else { Wish::Ready };
    Ok(Ok(Found {
        observation: Observation::Success,
        says: is_heard.then_some(Says::Wish(wish)),
    }))
}

/// Reads from a connection while it is there; what has come by its end is read still.
async fn drive<T>(reading: impl Future<Output = T>, connection: impl Future) -> T {
    let mut reading = pin!(reading);
    tokio::select! {
        biased;
        read = &mut reading => read,
        _ = connection => reading.await,
    }
}

fn request(
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = host.map_or_else(|| address.to_string(), str::to_owned);
    Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("ebb/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::new())
}

async fn read_out(response: Response<Incoming>) {
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > COURTESY_BYTES {
            return;
        }
    }
}

fn failure(error: &io::Error) -> Failure {
    if let Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EADDRNOTAVAIL) =
        error.raw_os_error()
    {
        return Failure::NotMade;
    }
    Failure::Seen(match error.kind() {
        io::ErrorKind::ConnectionRefused => FailureKind::Refused,
        io::ErrorKind::TimedOut => FailureKind::Timeout,
        // Not NetworkUnreachable: that this node has no route does not say that the backend is dead.
        io::ErrorKind::HostUnreachable => FailureKind::Unreachable,
        _ => FailureKind::Other,
    })
}

fn http_failure(error: &hyper::Error) -> Failure {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.map_or(Failure::Seen(FailureKind::Other), failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_backend_or_the_way_to_it_did_counts() {
        let rows = [
            (libc::ECONNREFUSED, Failure::Seen(FailureKind::Refused)),
            (libc::ETIMEDOUT, Failure::Seen(FailureKind::Timeout)),
            (libc::EHOSTUNREACH, Failure::Seen(FailureKind::Unreachable)),
            (libc::ENETUNREACH, Failure::Seen(FailureKind::Other)),
            (libc::ECONNRESET, Failure::Seen(FailureKind::Other)),
            (libc::EMFILE, Failure::NotMade),
            (libc::EADDRNOTAVAIL, Failure::NotMade),
        ];
        for (number, expected) in rows {
            assert_eq!(
                failure(&io::Error::from_raw_os_error(number)),
                expected,
                "{number}"
            );
        }
    }
}
