//! A small HTTP/1.1 server that says who it is and keeps a record of every connection it accepted.
//!
//! - `GET /bytes/N?seed=S`: N bytes of the pattern S
//! - `GET /stream?interval=MS&bytes=N&count=C&seed=S`: C chunks of N bytes, one every MS milliseconds
//! - `GET /health/ready`: 200, or what `GET /control/ready?status=503&state=drain` set; a state is told in the header
//!   `Ebb-State`
//! - `GET /echo` with `Upgrade: ebb-echo`: the checked echo protocol of [`crate::wire`]
//! - `GET /stats`: [`Stats`] as JSON
//!
//! Every answer carries `X-Backend: NAME` and `X-Connection: n`, n counting the connections of this server.

mod connection;
mod stats;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::net::{TcpListener, TcpSocket};

pub use stats::{Connection, Kind, Stats};

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    ready_status: AtomicU16,
    ready_state: Mutex<String>,
    book: Mutex<stats::Book>,
}

impl Shared {
    fn ready_state(&self) -> MutexGuard<'_, String> {
        self.ready_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn book(&self) -> MutexGuard<'_, stats::Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server bound to its addresses.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    shared: Arc<Shared>,
}

impl Server {
    /// Binds `addresses` in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket's own.
    pub fn bind(name: &str, addresses: &[SocketAddr]) -> io::Result<Self> {
        let listeners = addresses
            .iter()
            .map(|&address| listen(address))
            .collect::<io::Result<_>>()?;
        let shared = Shared {
            name: name.to_owned(),
            ready_status: AtomicU16::new(200),
            ready_state: Mutex::default(),
            book: Mutex::new(stats::Book::default()),
        };
        Ok(Self {
            listeners,
            shared: Arc::new(shared),
        })
    }

    /// The addresses it is bound to, with the ports the kernel chose.
    ///
    /// # Errors
    /// The socket's own.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves until a listener fails for good.
    ///
    /// # Errors
    /// That failure.
    pub async fn run(self) -> io::Result<()> {
        let mut tasks = tokio::task::JoinSet::new();
        for listener in self.listeners {
            tasks.spawn(accept(listener, Arc::clone(&self.shared)));
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Answers health checks with this status from now on; a handle for servers run inside a test.
    #[must_use]
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.shared))
    }
}

/// Looks into a running server and changes it.
#[derive(Debug, Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Sets the status with which `/health/ready` answers.
    pub fn set_ready(&self, status: u16) {
        self.0.ready_status.store(status, Ordering::Relaxed);
    }

    /// What `GET /stats` answers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.book().stats(&self.0.name)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // IPv4 has a listener of its own: its clients would be recorded under mapped addresses else.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    // Long enough that a burst of thousands of handshakes does not end in SYN retransmissions.
    socket.listen(4096)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let id = shared.book().opened(peer, stream.local_addr().ok());
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    connection::serve(stream, id, &shared).await;
                    shared.book().closed(id);
                });
            }
            Err(error) if is_passing(&error) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

/// Whether `accept` failed for one connection only, or until some are closed.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EMFILE
                | libc::ENFILE
                | libc::EINTR
                | libc::ENOBUFS
                | libc::ENOMEM
        )
    )
}
