//! One TCP connection of the client, with every answer checked.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    pattern,
    wire::{self, Frame, Head, Way},
};

/// What broke a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The handshake was refused or no route led there.
    Connect,
    /// A RST came.
    Reset,
    /// The other side ended it where an answer was due.
    Closed,
    /// It ended inside an answer.
    ShortRead,
    /// No answer in time.
    Timeout,
    /// A byte was not what it should be.
    WrongBytes,
    /// Another backend answered than the first time.
    WrongBackend,
    /// The answer was not the one asked for (status, headers, order).
    WrongAnswer,
    /// Anything else; see the detail.
    Other,
}

/// A failure on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its class.
    pub reason: Reason,
    /// What was seen, for people.
    pub detail: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }

    fn of(error: &io::Error) -> Self {
        use io::ErrorKind as K;
        let reason = match error.kind() {
            K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted => Reason::Reset,
            K::UnexpectedEof => Reason::ShortRead,
            K::InvalidData => Reason::WrongBytes,
            K::TimedOut => Reason::Timeout,
            K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable => Reason::Connect,
            _ => Reason::Other,
        };
        Self::new(reason, error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.reason, self.detail)
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::of(&error)
    }
}

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The backend's name, from `X-Backend`.
    pub backend: Arc<str>,
    /// The backend's number of this connection, from `X-Connection`.
    pub connection: u64,
    /// HTTP status.
    pub status: u16,
}

/// A connection on which every answer must come from one backend.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    limit: Duration,
    target: SocketAddr,
    local: SocketAddr,
    first: Option<Answer>,
    scratch: Vec<u8>,
    echo: Option<Echo>,
}

#[derive(Debug)]
struct Echo {
    seed: u64,
    next: u32,
}

impl Connection {
    /// Connects from `source` (any free port and address when `None`; a port may be one that was just used).
    /// `limit` bounds this and each later exchange.
    ///
    /// # Errors
    /// `Connect` with the reason, `Timeout`, or `Other` when the source cannot be bound.
    pub async fn open(
        source: Option<SocketAddr>,
        target: SocketAddr,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let socket = if target.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        if let Some(source) = source {
            socket.set_reuseaddr(true)?;
            socket.bind(source)?;
        }
        let stream = timeout(limit, socket.connect(target))
            .await
            .map_err(|_| Failure::new(Reason::Timeout, "no answer to the handshake"))?
            .map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut => Failure::of(&error),
                _ => Failure::new(Reason::Connect, error.to_string()),
            })?;
        stream.set_nodelay(true)?;
        Ok(Self {
            local: stream.local_addr()?,
            stream: BufReader::with_capacity(2048, stream),
            limit,
            target,
            first: None,
            scratch: Vec::new(),
            echo: None,
        })
    }

    /// The client's own address and port.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The first answer on this connection.
    #[must_use]
    pub fn first(&self) -> Option<&Answer> {
        self.first.as_ref()
    }

    /// `GET /bytes/N?seed=S`, every byte checked. `last` asks the server to close afterwards.
    ///
    /// # Errors
    /// What broke the connection.
    pub async fn get_bytes(
        &mut self,
        length: u64,
        seed: u64,
        last: bool,
    ) -> Result<Answer, Failure> {
        let limit = self.limit;
        timeout(limit, self.get_bytes_inner(length, seed, last))
            .await
            .map_err(|_| late(limit))?
    }

    async fn get_bytes_inner(
        &mut self,
        length: u64,
        seed: u64,
        last: bool,
    ) -> Result<Answer, Failure> {
        let close = if last { "Connection: close\r\n" } else { "" };
        self.ask(&format!("/bytes/{length}?seed={seed}"), close)
            .await?;
        let (answer, head) = self.head(200).await?;
        let promised = head.header("content-length").and_then(|n| n.parse().ok());
        if promised != Some(length) {
            return Err(Failure::new(
                Reason::WrongAnswer,
                format!("asked for {length} bytes, promised {promised:?}"),
            ));
        }
        let mut position = 0;
        while position < length {
            let data = self.stream.fill_buf().await?;
            if data.is_empty() {
                let detail = format!("the body ended after {position} of {length} bytes");
                return Err(Failure::new(Reason::ShortRead, detail));
            }
            let n = data
                .len()
                .min(usize::try_from(length - position).unwrap_or(usize::MAX));
            pattern::check(seed, position, &data[..n])
                .map_err(|wrong| Failure::new(Reason::WrongBytes, wrong.to_string()))?;
            self.stream.consume(n);
            position += n as u64;
        }
        Ok(answer)
    }

    /// `GET path`, the whole body as text (bounded at 256 MiB); for `/stats` and the like.
    ///
    /// # Errors
    /// What broke the connection.
    pub async fn get_text(&mut self, path: &str) -> Result<(Answer, String), Failure> {
        let limit = self.limit;
        timeout(limit, self.get_text_inner(path))
            .await
            .map_err(|_| late(limit))?
    }

    async fn get_text_inner(&mut self, path: &str) -> Result<(Answer, String), Failure> {
        self.ask(path, "").await?;
        let head = self.any_head().await?;
        let answer = self.judge(&head)?;
        let length: usize = head
            .header("content-length")
            .and_then(|n| n.parse().ok())
            .filter(|&n| n <= 256 << 20)
            .ok_or_else(|| Failure::new(Reason::WrongAnswer, "no usable content-length"))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        let text =
            String::from_utf8(body).map_err(|_| Failure::new(Reason::WrongBytes, "not text"))?;
        Ok((answer, text))
    }

    /// Turns the connection to the echo protocol.
    ///
    /// # Errors
    /// What broke the connection.
    pub async fn upgrade(&mut self, seed: u64) -> Result<Answer, Failure> {
        let limit = self.limit;
        timeout(limit, async {
            self.ask(
                &format!("/echo?seed={seed}"),
                "Connection: Upgrade\r\nUpgrade: ebb-echo\r\n",
            )
            .await?;
            let (answer, _) = self.head(101).await?;
            self.echo = Some(Echo { seed, next: 0 });
            Ok(answer)
        })
        .await
        .map_err(|_| late(limit))?
    }

    /// Sends an echo frame of `length` bytes, at most [`wire::PAYLOAD_MAX`], and checks its answer. After
    /// [`Self::upgrade`] only.
    ///
    /// # Errors
    /// What broke the connection, or a frame that the server would not take.
    pub async fn echo(&mut self, length: u16) -> Result<(), Failure> {
        let limit = self.limit;
        timeout(limit, self.echo_inner(length))
            .await
            .map_err(|_| late(limit))?
    }

    async fn echo_inner(&mut self, length: u16) -> Result<(), Failure> {
        let Some(echo) = &mut self.echo else {
            return Err(Failure::new(
                Reason::Other,
                "the connection does not speak the echo protocol",
            ));
        };
        // The server resets the connection over a longer one, which looks like a fault of the way.
        if usize::from(length) > wire::PAYLOAD_MAX {
            let detail = format!(
                "a frame has at most {} bytes, not {length}",
                wire::PAYLOAD_MAX
            );
            return Err(Failure::new(Reason::Other, detail));
        }
        let (seed, sequence) = (echo.seed, echo.next);
        echo.next += 1;
        self.scratch.clear();
        let asked = Frame {
            sequence,
            name: String::new(),
            length,
        };
        asked.write(seed, Way::Ask, &mut self.scratch);
        self.stream.get_mut().write_all(&self.scratch).await?;
        let answer = Frame::read(&mut self.stream, seed, Way::Answer, &mut self.scratch)
            .await?
            .ok_or_else(|| {
                Failure::new(Reason::Closed, format!("no answer to frame {sequence}"))
            })?;
        if (answer.sequence, answer.length) != (sequence, length) {
            let detail = format!("asked frame {sequence} ({length} bytes), got {answer:?}");
            return Err(Failure::new(Reason::WrongAnswer, detail));
        }
        self.same_backend(&answer.name, None)
    }

    /// Waits for the server to say something unasked, which always is a failure. Cancel safe.
    pub async fn unasked(&mut self) -> Failure {
        match self.stream.fill_buf().await {
            Ok([]) => Failure::new(Reason::Closed, "the server ended an idle connection"),
            Ok(data) => Failure::new(
                Reason::WrongAnswer,
                format!("{} bytes came unasked", data.len()),
            ),
            Err(error) => Failure::of(&error),
        }
    }

    /// Ends the connection in good order: FIN, then everything until the server's FIN.
    ///
    /// # Errors
    /// A reset, data after the last answer, or no FIN in time.
    pub async fn close(mut self) -> Result<(), Failure> {
        let limit = self.limit;
        timeout(limit, async {
            self.stream.get_mut().shutdown().await?;
            match self.stream.read(&mut [0; 1]).await? {
                0 => Ok(()),
                _ => Err(Failure::new(
                    Reason::WrongAnswer,
                    "data after the last answer",
                )),
            }
        })
        .await
        .map_err(|_| Failure::new(Reason::Timeout, format!("no FIN within {limit:?}")))?
    }

    /// Ends the connection with a RST, so that its port is free at once and nothing of it waits in the kernel.
    ///
    /// # Errors
    /// The socket's own.
    pub fn reset(self) -> io::Result<()> {
        self.stream.get_ref().set_zero_linger()
    }

    async fn ask(&mut self, path: &str, headers: &str) -> Result<(), Failure> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n",
            self.target
        );
        Ok(self.stream.get_mut().write_all(request.as_bytes()).await?)
    }

    async fn any_head(&mut self) -> Result<Head, Failure> {
        wire::read_head(&mut self.stream)
            .await?
            .ok_or_else(|| Failure::new(Reason::Closed, "closed instead of an answer"))
    }

    async fn head(&mut self, status: u16) -> Result<(Answer, Head), Failure> {
        let head = self.any_head().await?;
        let answer = self.judge(&head)?;
        if answer.status != status {
            return Err(Failure::new(
                Reason::WrongAnswer,
                format!("status {} for {status}", answer.status),
            ));
        }
        Ok((answer, head))
    }

    /// Who answered, and whether it is who answered before.
    fn judge(&mut self, head: &Head) -> Result<Answer, Failure> {
        let missing = |what: &str| {
            Failure::new(
                Reason::WrongAnswer,
                format!("{what} missing in {:?}", head.start),
            )
        };
        let answer = Answer {
            backend: head
                .header("x-backend")
                .ok_or_else(|| missing("X-Backend"))?
                .into(),
            connection: head
                .header("x-connection")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| missing("X-Connection"))?,
            status: head.status().ok_or_else(|| missing("status"))?,
        };
        self.same_backend(&answer.backend, Some(answer.connection))?;
        self.first.get_or_insert_with(|| answer.clone());
        Ok(answer)
    }

    fn same_backend(&self, name: &str, connection: Option<u64>) -> Result<(), Failure> {
        match &self.first {
            Some(first)
                if &*first.backend != name || connection.is_some_and(|n| n != first.connection) =>
            {
                let detail = format!(
                    "first {} #{}, now {name} {connection:?}",
                    first.backend, first.connection
                );
                Err(Failure::new(Reason::WrongBackend, detail))
            }
            _ => Ok(()),
        }
    }
}

fn late(limit: Duration) -> Failure {
    Failure::new(Reason::Timeout, format!("no answer within {limit:?}"))
}

/// One request on a connection of its own, from any address in `source`.
///
/// # Errors
/// What broke it.
pub async fn request_once(
    source: Option<IpAddr>,
    target: SocketAddr,
    length: u64,
    limit: Duration,
) -> Result<Answer, Failure> {
    let source = source.map(|address| SocketAddr::new(address, 0));
    let mut connection = Connection::open(source, target, limit).await?;
    let answer = connection
        .get_bytes(length, u64::from(connection.local().port()), true)
        .await?;
    connection.close().await?;
    Ok(answer)
}
