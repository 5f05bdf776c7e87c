//! Datagrams that are echoed by a server that says its name, and a client with many flows that checks every answer.

/// Room for any datagram.
const DATAGRAM_MAX: usize = 1 << 16;

mod client;
mod frame;
mod message;
mod server;

pub use client::{Client, Flow, Move};
pub use frame::Datagram;
pub use message::{Answer, Ask, BODY};
pub use server::EchoServer;
