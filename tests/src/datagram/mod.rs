//! Datagrams that are echoed by a server that says its name, and a client with many flows that checks every answer.

mod client;
mod frame;
mod message;
mod server;

pub use client::{Client, Flow, Move};
pub use frame::Datagram;
pub use message::{Answer, Ask};
pub use server::EchoServer;
