//! The question to a backend's agent: one connection, one line.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Failure, connect, failure};
use crate::model::speech::{LINE_MAX, Line, line};

/// Connects, sends `send`, and reads up to the end of the first line, of the connection, or of [`LINE_MAX`] bytes.
pub(super) async fn ask(address: SocketAddr, send: &str) -> Result<Line, Failure> {
    let mut stream = connect(address).await?;
    if !send.is_empty() {
        let sent = stream.write_all(send.as_bytes()).await;
        sent.map_err(|error| failure(&error))?;
    }
    let mut bytes = Vec::with_capacity(64);
    let mut left = stream.take(LINE_MAX as u64);
    loop {
        let read = left.read_buf(&mut bytes).await;
        let count = read.map_err(|error| failure(&error))?;
        if count == 0 || bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return Ok(line(&bytes));
        }
    }
}
