//! A stream of numbered datagrams at a steady rate, one way, and whoever counts them at its end: none may be missing.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::Netns;

/// Time between two bursts.
const EVERY: Duration = Duration::from_millis(2);

/// Room for what waits to be counted, bytes.
const WAITING: usize = 64 << 20;

/// Who counts.
#[derive(Debug)]
pub struct Counter {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Counter {
    /// Counts what comes to a port in a network namespace.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(netns: &Netns, at: SocketAddr) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind(at))??;
        setsockopt(&socket, sockopt::RcvBufForce, &WAITING)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (stop, received) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&received));
        let thread = thread::spawn(move || {
            let mut bytes = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                while socket.recv(&mut bytes).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self {
            stop,
            received,
            thread,
        })
    }

    /// So far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends.
    ///
    /// # Errors
    /// Its thread panicked.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the counter panicked"))
    }
}

/// Who sends.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Sender {
    /// Sends `rate` datagrams a second from `flows` ports in a network namespace, in bursts of a few.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(netns: &Netns, target: SocketAddr, flows: usize, rate: u64) -> Result<Self> {
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let open = || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind(any)?;
            socket.connect(target)?;
            Ok(socket)
        };
        let sockets: Vec<UdpSocket> =
            netns.run(|| (0..flows).map(|_| open()).collect::<std::io::Result<_>>())??;
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || send(&sockets, rate, &stopped, &count));
        Ok(Self { stop, sent, thread })
    }

    /// So far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends; how many it has sent.
    ///
    /// # Errors
    /// Its thread panicked.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.map_err(|_| anyhow!("the sender panicked"))?;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

fn send(sockets: &[UdpSocket], rate: u64, stopped: &AtomicBool, count: &AtomicU64) {
    let began = Instant::now();
    let mut sent = 0;
    // A burst that is late is not made good at once: rings between the namespaces have room for 256 packets.
    let most = 2 * rate * EVERY.as_millis() as u64 / 1000 + 1;
    while !stopped.load(Ordering::Relaxed) {
        let due = rate * began.elapsed().as_millis() as u64 / 1000;
        for _ in 0..due.saturating_sub(sent).min(most) {
            let socket = &sockets[sent as usize % sockets.len()];
            // Refused: the socket has been told that a packet met nobody. Only what has left counts.
            if matches!(socket.send(&sent.to_be_bytes()), Ok(8)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            sent += 1;
        }
        thread::sleep(EVERY);
    }
    // Kept to here, whatever came back.
    let _ = sockets.first().map(|socket| socket.as_raw_fd());
}
