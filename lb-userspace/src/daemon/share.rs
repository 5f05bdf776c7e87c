//! Flows told to other nodes and heard from them, by UDP. Nothing here waits for a peer, and nothing waits for this: what
//! finds no room is told again in a few seconds.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::UdpSocket, sync::mpsc};

use super::{clock::Clock, core::Handle};
use crate::{
    api::ShareStatus,
    model::{
        share::{BYTES_MAX, FLOWS_MAX, Key, Last, Message, SharedFlow},
        spec::Share,
    },
};

/// Batches of flows that may wait to be sent.
pub const BATCHES_WAITING: usize = 16;

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    told: AtomicU64,
    heard: AtomicU64,
    entered: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Notes a flow that was entered.
    pub fn entered(&self) {
        self.entered.fetch_add(1, Ordering::Relaxed);
    }

    /// For the status.
    pub fn status(&self, settings: &Share) -> ShareStatus {
        ShareStatus {
            listen: settings.listen,
            peers: settings.peers.clone(),
            told: self.told.load(Ordering::Relaxed),
            heard: self.heard.load(Ordering::Relaxed),
            entered: self.entered.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Opens the socket; `outgoing` is what the engine tells, `handle` is where what others tell goes.
///
/// # Errors
/// The socket cannot be opened.
pub async fn start(
    settings: Share,
    key: Key,
    outgoing: mpsc::Receiver<Vec<SharedFlow>>,
    handle: Handle,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(settings.listen).await?);
    let teller = Teller {
        socket: Arc::clone(&socket),
        peers: settings.peers.clone(),
        key,
        run: rand::random(),
        number: 0,
        clock: Arc::clone(&clock),
        counts: Arc::clone(&counts),
    };
    tokio::spawn(teller.run(outgoing));
    let listener = Listener {
        socket,
        last: settings
            .peers
            .iter()
            .map(|peer| (*peer, Last::default()))
            .collect(),
        key,
        clock,
        counts,
    };
    tokio::spawn(listener.run(handle));
    Ok(())
}

struct Teller {
    socket: Arc<UdpSocket>,
    peers: Vec<SocketAddr>,
    key: Key,
    run: u64,
    number: u64,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
}

impl Teller {
    async fn run(mut self, mut outgoing: mpsc::Receiver<Vec<SharedFlow>>) {
        while let Some(flows) = outgoing.recv().await {
            for part in flows.chunks(FLOWS_MAX) {
                self.tell(part).await;
            }
        }
    }

    async fn tell(&mut self, flows: &[SharedFlow]) {
        self.number += 1;
        let message = Message {
            sent_ms: self.clock.now_ms(),
            run: self.run,
            number: self.number,
            flows: flows.to_vec(),
        };
        let datagram = message.encode(&self.key);
        for peer in &self.peers {
            // A peer that is down is no fault of ours: what it needs to know is told again.
            if let Err(error) = self.socket.send_to(&datagram, peer).await {
                tracing::debug!("share: telling {peer}: {error}");
            }
        }
        self.counts
            .told
            .fetch_add(flows.len() as u64, Ordering::Relaxed);
    }
}

struct Listener {
    socket: Arc<UdpSocket>,
    last: BTreeMap<SocketAddr, Last>,
    key: Key,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
}

impl Listener {
    async fn run(mut self, handle: Handle) {
        let mut buffer = [0; BYTES_MAX + 1];
        loop {
            let (length, from) = match self.socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // The answer to an earlier message, such as "port unreachable".
                    tracing::debug!("share: {error}");
                    continue;
                }
            };
            let Some(flows) = self.take(&buffer[..length], from) else {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            self.counts
                .heard
                .fetch_add(flows.len() as u64, Ordering::Relaxed);
            // Waits until the core has time; meanwhile the socket's buffer holds what comes, or drops it.
            if handle
                .call(move |engine, _| engine.hear(&flows))
                .await
                .is_err()
            {
                return;
            }
        }
    }

    /// The flows of a datagram, if it is a peer's newest message.
    fn take(&mut self, datagram: &[u8], from: SocketAddr) -> Option<Vec<SharedFlow>> {
        let Some(last) = self.last.get_mut(&from) else {
            tracing::debug!("share: {from} is none of the peers");
            return None;
        };
        let message = match Message::decode(datagram, &self.key) {
            Ok(message) => message,
            Err(why) => {
                tracing::debug!("share: a datagram from {from}: {why}");
                return None;
            }
        };
        last.accept(&message, self.clock.now_ms())
            .then_some(message.flows)
    }
}
