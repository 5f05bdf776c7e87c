//! ebb's lab: network namespaces, servers that say who they are, and clients that check every byte.
//!
//! Nothing in here looks at the balancer's own counters to decide whether a connection broke: the client and the
//! servers know that by themselves.

pub mod bench;
pub mod capture;
pub mod client;
pub mod clock;
pub mod config;
pub mod datagram;
pub mod flood;
pub mod fragments;
pub mod fuzz;
pub mod icmp;
pub mod lab;
pub mod outer;
pub mod paced;
pub mod packets;
pub mod pattern;
pub mod rig;
pub mod scenario;
pub mod server;
pub mod soak;
pub mod tagged;
pub mod tunnel_end;
pub mod vm;
pub mod walk;
pub mod wire;
