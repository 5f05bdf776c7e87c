//! The little of HTTP/1.1 that server and client need, and the frames of the echo protocol.
//!
//! After `GET /echo` with `Upgrade: ebb-echo` and the answer `101`, both sides speak frames. The client asks with
//! a header and a payload, the server answers with a header that carries its name and another payload. Both
//! payloads follow from the seed of the connection and the number of the frame (see [`crate::pattern`]), so each
//! side checks every byte it gets.

use std::{io, str};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt};

use crate::pattern;

/// Name of the echo protocol in `Upgrade:` headers.
pub const ECHO: &str = "ebb-echo";
/// Longest HTTP head accepted, in bytes.
pub const HEAD_MAX: usize = 8 << 10;
/// Longest payload of an echo frame, in bytes.
pub const PAYLOAD_MAX: usize = 32 << 10;

/// Start line and headers of a request or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// First line, without its end.
    pub start: String,
    /// Names in lower case, values trimmed.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of this (lower-case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Status code of an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.start.split(' ').nth(1)?.parse().ok()
    }

    /// Method and target of a request.
    #[must_use]
    pub fn request(&self) -> Option<(&str, &str)> {
        let mut words = self.start.split(' ');
        Some((words.next()?, words.next()?))
    }
}

/// Reads one head; `None` when the stream ends before its first byte.
///
/// # Errors
/// The stream's own, `UnexpectedEof` inside a head, `InvalidData` for one that is too long or not HTTP.
pub async fn read_head<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Option<Head>> {
    let mut line = Vec::new();
    let mut start: Option<String> = None;
    let mut headers = Vec::new();
    let mut total = 0;
    loop {
        line.clear();
        let room = (HEAD_MAX - total + 1) as u64;
        let n = (&mut *reader)
            .take(room)
            .read_until(b'\n', &mut line)
            .await?;
        total += n;
        if total > HEAD_MAX {
            return Err(invalid("head too long"));
        }
        if n == 0 && start.is_none() {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the stream ended inside a head",
            ));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let text = str::from_utf8(&line).map_err(|_| invalid("head is not text"))?;
        match &start {
            None => start = Some(text.to_owned()),
            Some(_) if text.is_empty() => break,
            Some(_) => {
                let (name, value) = text
                    .split_once(':')
                    .ok_or_else(|| invalid("header without a colon"))?;
                headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
    Ok(start.map(|start| Head { start, headers }))
}

/// `InvalidData` with a reason.
pub fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Which way a frame goes; the payloads of the two ways differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Client to server.
    Ask,
    /// Server to client.
    Answer,
}

/// Seed of a frame's payload.
fn frame_seed(seed: u64, sequence: u32, way: Way) -> u64 {
    let way = match way {
        Way::Ask => 0x0123_4567_89ab_cdef,
        Way::Answer => 0xfedc_ba98_7654_3210,
    };
    seed.rotate_left(17) ^ (u64::from(sequence) << 20) ^ way
}

/// An echo frame's fixed part. On the wire, big-endian: sequence (4 bytes), payload length (2), name length (1),
/// then the name (empty when asking), then the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Counts up from 0 on each connection.
    pub sequence: u32,
    /// Name of the server that answers; empty when asking.
    pub name: String,
    /// Payload length, bytes; at most [`PAYLOAD_MAX`].
    pub length: u16,
}

impl Frame {
    /// Appends the whole frame, payload included, to `out`.
    pub fn write(&self, seed: u64, way: Way, out: &mut Vec<u8>) {
        let name = &self.name.as_bytes()[..self.name.len().min(255)];
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
        let at = out.len();
        out.resize(at + usize::from(self.length), 0);
        pattern::fill(frame_seed(seed, self.sequence, way), 0, &mut out[at..]);
    }

    /// Reads a frame and checks its payload; `None` when the stream ends before its first byte. `scratch` is used
    /// for the payload.
    ///
    /// # Errors
    /// The stream's own, `UnexpectedEof` inside a frame, `InvalidData` for a wrong byte.
    pub async fn read<R: AsyncRead + Unpin>(
        reader: &mut R,
        seed: u64,
        way: Way,
        scratch: &mut Vec<u8>,
    ) -> io::Result<Option<Self>> {
        let mut head = [0; 7];
        if reader.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut head[1..]).await?;
        let sequence = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u16::from_be_bytes([head[4], head[5]]);
        if usize::from(length) > PAYLOAD_MAX {
            return Err(invalid(format!("frame {sequence} claims {length} bytes")));
        }
        scratch.resize(usize::from(head[6]), 0);
        reader.read_exact(scratch).await?;
        let name = String::from_utf8(scratch.clone()).map_err(|_| invalid("name is not text"))?;
        scratch.resize(usize::from(length), 0);
        reader.read_exact(scratch).await?;
        pattern::check(frame_seed(seed, sequence, way), 0, scratch)
            .map_err(|wrong| invalid(format!("frame {sequence}: {wrong}")))?;
        Ok(Some(Self {
            sequence,
            name,
            length,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn head_is_read_and_bounded() {
        let text = b"GET /x HTTP/1.1\r\nHost: a\r\nX-Y:  z \r\n\r\nrest";
        let mut reader = &text[..];
        let head = read_head(&mut reader).await.unwrap().unwrap();
        assert_eq!(head.request(), Some(("GET", "/x")));
        assert_eq!(head.header("x-y"), Some("z"));
        assert_eq!(reader, b"rest");

        let endless = [b'a'; HEAD_MAX * 2];
        assert_eq!(
            read_head(&mut &endless[..]).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let short = b"GET / HTTP/1.1\r\nHo";
        assert_eq!(
            read_head(&mut &short[..]).await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(read_head(&mut &b""[..]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn frame_survives_and_a_wrong_byte_does_not() {
        let frame = Frame {
            sequence: 5,
            name: "b1".into(),
            length: 100,
        };
        let mut bytes = Vec::new();
        frame.write(42, Way::Answer, &mut bytes);
        let mut scratch = Vec::new();
        let read = Frame::read(&mut &bytes[..], 42, Way::Answer, &mut scratch)
            .await
            .unwrap();
        assert_eq!(read, Some(frame));
        // The other direction's payload, another connection's, a flipped bit, a short one: each is an error.
        assert!(
            Frame::read(&mut &bytes[..], 42, Way::Ask, &mut scratch)
                .await
                .is_err()
        );
        assert!(
            Frame::read(&mut &bytes[..], 43, Way::Answer, &mut scratch)
                .await
                .is_err()
        );
        assert!(
            Frame::read(&mut &bytes[..50], 42, Way::Answer, &mut scratch)
                .await
                .is_err()
        );
        *bytes.last_mut().unwrap() ^= 1;
        assert!(
            Frame::read(&mut &bytes[..], 42, Way::Answer, &mut scratch)
                .await
                .is_err()
        );
    }
}
