//! Echoes datagrams and adds its name.

use std::{io, net::SocketAddr, sync::Arc};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

use super::{Ask, DATAGRAM_MAX};

/// Room for datagrams that wait.
const BUFFER_BYTES: usize = 8 << 20;

/// An echo server bound to its addresses.
#[derive(Debug)]
pub struct EchoServer {
    name: String,
    sockets: Vec<UdpSocket>,
}

impl EchoServer {
    /// Binds `addresses` in the network namespace of the calling thread. Must be called in a runtime.
    ///
    /// # Errors
    /// The socket's own.
    pub fn bind(name: &str, addresses: &[SocketAddr]) -> io::Result<Self> {
        let bind = |address: &SocketAddr| {
            let socket = std::net::UdpSocket::bind(address)?;
            // A machine that is busy elsewhere for a while must not look like a loss on the way.
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES)?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        Ok(Self {
            name: name.to_owned(),
            sockets: addresses.iter().map(bind).collect::<io::Result<_>>()?,
        })
    }

    /// Serves until a socket fails for good. Datagrams that are no questions get no answer.
    ///
    /// # Errors
    /// That failure.
    pub async fn run(self) -> io::Result<()> {
        let name: Arc<[u8]> = self.name.as_bytes().into();
        let mut tasks = tokio::task::JoinSet::new();
        for socket in self.sockets {
            tasks.spawn(echo(socket, Arc::clone(&name)));
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        std::future::pending().await
    }
}

async fn echo(socket: UdpSocket, name: Arc<[u8]>) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An answer could not be delivered; that was its client's affair.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let Some((ask, [])) = Ask::read(&buffer[..length]) else {
            continue;
        };
        let mut answer = ask.write();
        answer.extend_from_slice(&name);
        // A full buffer loses an answer; the client counts it.
        let _ = socket.try_send_to(&answer, client);
    }
}
