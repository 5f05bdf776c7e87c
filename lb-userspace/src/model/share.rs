//! What nodes tell each other: the flows that the tables alone would take to another backend. So one node's flows live on
//! at another, where the router may send them at any moment.
//!
//! A message is one datagram, numbers big-endian:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `ebbflow` and the version |
//! | 8 | when it was sent, Unix milliseconds |
//! | 8 | the sender's run, a random number |
//! | 8 | the message's number in that run, from 1 |
//! | 36 each | flows: client (16, IPv4 as mapped), its port (2), the service's port (2), service (8), backend (8) |
//! | 16 | SipHash-2-4 with 128 bits of all before, with a key that only those have who know the hash seed |
//!
//! Services and backends go by digests of their names, as each node has ids of its own.

use std::{hash::Hasher as _, net::SocketAddr};

use bytes::{Buf as _, BufMut as _};
use lb_common::Addr;
use siphasher::sip128::{Hasher128 as _, SipHasher24};

const MAGIC: [u8; 7] = *b"ebbflow";
/// Version of the format.
const VERSION: u8 = 1;
const HEAD: usize = 32;
const FLOW: usize = 36;
const TAG: usize = 16;

/// Most flows of a message: it fits into any link's MTU of 1500 with tunnels around it.
pub const FLOWS_MAX: usize = 37;

/// Longest message.
pub const BYTES_MAX: usize = HEAD + FLOWS_MAX * FLOW + TAG;

/// The key of the nodes that share a seed.
#[derive(Clone, Copy)]
pub struct Key([u8; 16]);

impl Key {
    /// Of the hash seed, for nothing but these messages.
    #[must_use]
    pub fn of(seed: &[u8; 16]) -> Self {
        let mut hasher = SipHasher24::new_with_key(seed);
        hasher.write(b"ebb: messages between nodes");
        Self(hasher.finish128().as_bytes())
    }

    fn tag(&self, bytes: &[u8]) -> [u8; TAG] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(bytes);
        hasher.finish128().as_bytes()
    }
}

/// A flow on a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedFlow {
    /// The client's address.
    pub client: Addr,
    /// The client's port, network order as loaded.
    pub client_port: u16,
    /// The service's port, network order as loaded.
    pub service_port: u16,
    /// [`service_digest`].
    pub service: u64,
    /// [`backend_digest`].
    pub backend: u64,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// When it was sent, Unix milliseconds.
    pub sent_ms: u64,
    /// The sender's run.
    pub run: u64,
    /// Its number in that run.
    pub number: u64,
    /// At most [`FLOWS_MAX`].
    pub flows: Vec<SharedFlow>,
}

/// Why a datagram is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoMessage {
    /// It was not made by a node with the same seed.
    #[error("its authentication is wrong: do both nodes have the same hash_seed_file?")]
    Forged,
    /// Another version of ebb.
    #[error("its format has another version")]
    Version,
    /// Something else.
    #[error("it is none of ebb's messages")]
    Strange,
}

impl Message {
    /// As a datagram.
    #[must_use]
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BYTES_MAX);
        bytes.put_slice(&MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u64(self.sent_ms);
        bytes.put_u64(self.run);
        bytes.put_u64(self.number);
        for flow in self.flows.iter().take(FLOWS_MAX) {
            bytes.put_slice(&flow.client.bytes());
            bytes.put_slice(&flow.client_port.to_ne_bytes());
            bytes.put_slice(&flow.service_port.to_ne_bytes());
            bytes.put_u64(flow.service);
            bytes.put_u64(flow.backend);
        }
        let tag = key.tag(&bytes);
        bytes.put_slice(&tag);
        bytes
    }

    /// Out of a datagram.
    ///
    /// # Errors
    /// It is no message of a node with this key.
    pub fn decode(datagram: &[u8], key: &Key) -> Result<Self, NoMessage> {
        let length = datagram.len();
        if !(HEAD + TAG..=BYTES_MAX).contains(&length) || datagram[..MAGIC.len()] != MAGIC {
            return Err(NoMessage::Strange);
        }
        if datagram[MAGIC.len()] != VERSION {
            return Err(NoMessage::Version);
        }
        let (mut bytes, tag) = datagram.split_at(length - TAG);
        if !is_same(&key.tag(bytes), tag) {
            return Err(NoMessage::Forged);
        }
        bytes.advance(MAGIC.len() + 1);
        let (sent_ms, run, number) = (bytes.get_u64(), bytes.get_u64(), bytes.get_u64());
        if !bytes.len().is_multiple_of(FLOW) {
            return Err(NoMessage::Strange);
        }
        Ok(Self {
            sent_ms,
            run,
            number,
            flows: bytes.chunks_exact(FLOW).map(flow).collect(),
        })
    }
}

/// Compares in the same time whatever differs.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let pairs = one.iter().zip(other);
    one.len() == other.len() && pairs.fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

fn flow(mut bytes: &[u8]) -> SharedFlow {
    let mut client = [0; 16];
    bytes.copy_to_slice(&mut client);
    let mut port = || {
        let mut port = [0; 2];
        bytes.copy_to_slice(&mut port);
        u16::from_ne_bytes(port)
    };
    let (client_port, service_port) = (port(), port());
    SharedFlow {
        client: Addr::from_bytes(client),
        client_port,
        service_port,
        service: bytes.get_u64(),
        backend: bytes.get_u64(),
    }
}

/// The last message of a peer: what is not newer is a repetition.
#[derive(Debug, Clone, Copy, Default)]
pub struct Last {
    run: u64,
    number: u64,
    sent_ms: u64,
}

impl Last {
    /// Longest time that a message may take, and clocks may differ, milliseconds.
    const AGE_MAX_MS: u64 = 30_000;

    /// Whether a message is newer than all before, and takes it for the last one if so.
    pub fn accept(&mut self, message: &Message, now_ms: u64) -> bool {
        let is_newer = if message.run == self.run {
            message.number > self.number
        } else {
            message.sent_ms > self.sent_ms
        };
        let is_fresh = message.sent_ms.abs_diff(now_ms) <= Self::AGE_MAX_MS;
        if is_newer && is_fresh {
            *self = Self {
                run: message.run,
                number: message.number,
                sent_ms: message.sent_ms,
            };
        }
        is_newer && is_fresh
    }
}

/// What a service is called in messages.
#[must_use]
pub fn service_digest(service: &str) -> u64 {
    digest(&[service.as_bytes()])
}

/// What a backend is called in messages. One of the same name at another address is another one.
#[must_use]
pub fn backend_digest(service: &str, backend: &str, address: SocketAddr) -> u64 {
    let address = address.to_string();
    digest(&[service.as_bytes(), backend.as_bytes(), address.as_bytes()])
}

fn digest(parts: &[&[u8]]) -> u64 {
    let mut hasher = siphasher::sip::SipHasher24::new();
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flows: usize) -> Message {
        let flow = |n: usize| SharedFlow {
            client: Addr::from(std::net::IpAddr::from([10, 0, 0, n as u8])),
            client_port: 40_000_u16.to_be(),
            service_port: 443_u16.to_be(),
            service: service_digest("web"),
            backend: backend_digest("web", "b1", "10.0.0.11:8443".parse().unwrap()),
        };
        Message {
            sent_ms: 1_000_000,
            run: 7,
            number: 3,
            flows: (0..flows).map(flow).collect(),
        }
    }

    #[test]
    fn what_is_sent_arrives() {
        let key = Key::of(&[1; 16]);
        for flows in [0, 1, FLOWS_MAX] {
            let sent = message(flows);
            let bytes = sent.encode(&key);
            assert!(bytes.len() <= BYTES_MAX && BYTES_MAX <= 1400);
            assert_eq!(Message::decode(&bytes, &key), Ok(sent));
        }
        // The client's port stands as it does in a packet.
        assert_eq!(
            message(1).encode(&key)[HEAD + 16..HEAD + 18],
            40_000_u16.to_be_bytes()
        );
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_refused() {
        let key = Key::of(&[1; 16]);
        let bytes = message(2).encode(&key);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::decode(&changed, &key).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(
                Message::decode(&bytes[..length], &key).is_err(),
                "{length} bytes"
            );
        }
        let other = Key::of(&[2; 16]);
        assert_eq!(Message::decode(&bytes, &other), Err(NoMessage::Forged));
    }

    #[test]
    fn a_repetition_is_noticed() {
        let mut last = Last::default();
        let now = 1_000_500;
        let with = |run, number, sent_ms| Message {
            run,
            number,
            sent_ms,
            ..message(0)
        };
        assert!(last.accept(&with(7, 3, 1_000_000), now));
        assert!(!last.accept(&with(7, 3, 1_000_000), now), "the same again");
        assert!(!last.accept(&with(7, 2, 1_000_400), now), "an older one");
        assert!(last.accept(&with(7, 4, 1_000_400), now));
        assert!(
            !last.accept(&with(6, 9, 1_000_300), now),
            "of an earlier run"
        );
        assert!(last.accept(&with(8, 1, 1_000_450), now), "after a restart");
        assert!(
            !last.accept(&with(9, 1, now + 40_000), now),
            "of the future"
        );
        assert!(
            !last.accept(&with(8, 2, 1_000_460), now + 40_000),
            "too late"
        );
    }

    #[test]
    fn names_are_told_apart() {
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        assert_ne!(
            backend_digest("web", "b1", at(80)),
            backend_digest("web", "b1", at(81))
        );
        assert_ne!(
            backend_digest("web", "b1", at(80)),
            backend_digest("we", "bb1", at(80))
        );
    }
}
