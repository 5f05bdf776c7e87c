//! One accepted connection.

use std::{io, sync::atomic::Ordering, time::Duration};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{Kind, Shared};
use crate::{
    pattern,
    wire::{self, Frame, Head, Way},
};

/// Body bytes are made in pieces of this size.
const PIECE: usize = 16 << 10;
/// Longest body, bytes.
const BODY_MAX: u64 = 1 << 30;

type Stream = BufReader<TcpStream>;

/// Whether the connection takes another request.
#[derive(PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

/// Serves the connection until either side ends it. Errors end it: the client is the one who judges.
pub(super) async fn serve(stream: TcpStream, id: u64, shared: &Shared) {
    // Small answers must not wait for the client's delayed ACK.
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::with_capacity(1024, stream);
    while let Ok(Some(head)) = wire::read_head(&mut stream).await {
        let session = Session {
            id,
            shared,
            head: &head,
        };
        match session.answer(&mut stream).await {
            Ok(Next::Keep) => {}
            Ok(Next::Close) | Err(_) => break,
        }
    }
}

struct Session<'a> {
    id: u64,
    shared: &'a Shared,
    head: &'a Head,
}

impl Session<'_> {
    async fn answer(&self, stream: &mut Stream) -> io::Result<Next> {
        let Some((method, target)) = self.head.request() else {
            return self.refuse(stream, 400, "not a request\n").await;
        };
        if method != "GET"
            || self
                .head
                .header("content-length")
                .is_some_and(|length| length != "0")
        {
            return self.refuse(stream, 405, "only GET is served\n").await;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        self.shared.book().request(self.id, kind(path));
        if let Some(length) = path.strip_prefix("/bytes/") {
            return match length.parse() {
                Ok(length) if length <= BODY_MAX => {
                    self.bytes(stream, length, number(query, "seed", 0)).await
                }
                _ => {
                    self.refuse(stream, 400, "the length is a number up to 2^30\n")
                        .await
                }
            };
        }
        match path {
            "/" => {
                self.text(stream, 200, &format!("{}\n", self.shared.name))
                    .await
            }
            "/health/ready" => {
                let status = self.shared.ready_status.load(Ordering::Relaxed);
                let body = if status < 400 {
                    "ready\n"
                } else {
                    "not ready\n"
                };
                let state = self.shared.ready_state().clone();
                let header = match state.as_str() {
                    "" => String::new(),
                    state => format!("Ebb-State: {state}\r\n"),
                };
                self.text_with(stream, status, &header, body).await
            }
            "/control/ready" => {
                let status = u16::try_from(number(query, "status", 200)).unwrap_or(200);
                self.shared.ready_status.store(status, Ordering::Relaxed);
                let state = query.split('&').find_map(|one| one.strip_prefix("state="));
                state
                    .unwrap_or_default()
                    .clone_into(&mut self.shared.ready_state());
                self.text(stream, 200, &format!("{status}\n")).await
            }
            "/stats" => {
                let body = serde_json::to_string(&self.shared.book().stats(&self.shared.name))?;
                self.text(stream, 200, &body).await
            }
            "/stream" => self.stream(stream, query).await,
            "/echo" => self.echo(stream, query).await,
            _ => self.refuse(stream, 404, "no such page\n").await,
        }
    }

    fn wants_close(&self) -> bool {
        self.head
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    fn next(&self) -> Next {
        if self.wants_close() {
            Next::Close
        } else {
            Next::Keep
        }
    }

    /// Start line and headers of an answer; `more` are whole header lines.
    fn answer_head(&self, status: u16, more: &str) -> String {
        let reason = match status {
            101 => "Switching Protocols",
            200 => "OK",
            404 => "Not Found",
            405 => "Method Not Allowed",
            503 => "Service Unavailable",
            _ => "Other",
        };
        let close = if self.wants_close() && status != 101 {
            "Connection: close\r\n"
        } else {
            ""
        };
        let Self {
            id,
            shared: Shared { name, .. },
            ..
        } = self;
        format!(
            "HTTP/1.1 {status} {reason}\r\nX-Backend: {name}\r\nX-Connection: {id}\r\n{close}{more}\r\n"
        )
    }

    async fn text(&self, stream: &mut Stream, status: u16, body: &str) -> io::Result<Next> {
        self.text_with(stream, status, "", body).await
    }

    /// The same with more headers, whole lines.
    async fn text_with(
        &self,
        stream: &mut Stream,
        status: u16,
        headers: &str,
        body: &str,
    ) -> io::Result<Next> {
        let headers = format!("{headers}Content-Length: {}\r\n", body.len());
        let mut answer = self.answer_head(status, &headers);
        answer.push_str(body);
        stream.write_all(answer.as_bytes()).await?;
        Ok(self.next())
    }

    /// Like [`Self::text`], and ends the connection: what follows on it is not understood.
    async fn refuse(&self, stream: &mut Stream, status: u16, body: &str) -> io::Result<Next> {
        self.text(stream, status, body).await?;
        Ok(Next::Close)
    }

    async fn bytes(&self, stream: &mut Stream, length: u64, seed: u64) -> io::Result<Next> {
        let mut out = self
            .answer_head(200, &format!("Content-Length: {length}\r\n"))
            .into_bytes();
        let mut sent = 0;
        // The first piece shares its segment with the head.
        loop {
            let n = (length - sent).min(PIECE as u64);
            let at = out.len();
            out.resize(at + n as usize, 0);
            pattern::fill(seed, sent, &mut out[at..]);
            stream.write_all(&out).await?;
            sent += n;
            if sent == length {
                return Ok(self.next());
            }
            out.clear();
        }
    }

    async fn stream(&self, stream: &mut Stream, query: &str) -> io::Result<Next> {
        let interval = Duration::from_millis(number(query, "interval", 100).max(1));
        let (length, count) = (
            number(query, "bytes", 100).clamp(1, PIECE as u64),
            number(query, "count", u64::MAX),
        );
        let seed = number(query, "seed", 0);
        let head = self.answer_head(200, "Transfer-Encoding: chunked\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut ticks = tokio::time::interval(interval);
        for chunk in 0..count {
            ticks.tick().await;
            let mut out = format!("{length:x}\r\n").into_bytes();
            let at = out.len();
            out.resize(at + length as usize, 0);
            pattern::fill(seed, chunk.wrapping_mul(length), &mut out[at..]);
            out.extend_from_slice(b"\r\n");
            stream.write_all(&out).await?;
        }
        stream.write_all(b"0\r\n\r\n").await?;
        Ok(self.next())
    }

    async fn echo(&self, stream: &mut Stream, query: &str) -> io::Result<Next> {
        if self.head.header("upgrade") != Some(wire::ECHO) {
            return self
                .refuse(stream, 400, "this page wants Upgrade: ebb-echo\n")
                .await;
        }
        let seed = number(query, "seed", 0);
        let head = self.answer_head(101, "Connection: Upgrade\r\nUpgrade: ebb-echo\r\n");
        stream.write_all(head.as_bytes()).await?;
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        let mut wanted = 0;
        loop {
            let asked = match Frame::read(stream, seed, Way::Ask, &mut scratch).await {
                Ok(None) => return Ok(Next::Close),
                Ok(Some(frame)) if frame.sequence == wanted => frame,
                Ok(Some(_)) => {
                    self.shared.book().corrupt();
                    return Ok(Next::Close);
                }
                Err(error) => {
                    if error.kind() == io::ErrorKind::InvalidData {
                        self.shared.book().corrupt();
                    }
                    return Err(error);
                }
            };
            wanted += 1;
            out.clear();
            Frame {
                name: self.shared.name.clone(),
                ..asked
            }
            .write(seed, Way::Answer, &mut out);
            stream.write_all(&out).await?;
            self.shared.book().request(self.id, Kind::Data);
        }
    }
}

fn kind(path: &str) -> Kind {
    match path {
        "/stats" | "/control/ready" => Kind::Stats,
        "/health/ready" => Kind::Health,
        _ => Kind::Data,
    }
}

/// A number from a query string, decimal.
fn number(query: &str, key: &str, default: u64) -> u64 {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(k, _)| *k == key)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(default)
}
