//! What is in the datagrams.

use std::str;

use crate::pattern;

/// Bytes of the pattern in a datagram that nobody wants larger.
pub const BODY: u16 = 64;
/// Flow, number and length of the body, all big-endian.
const HEAD: usize = 14;

/// A question: flow (8 bytes), number (4 bytes), length of the body (2 bytes), and that many bytes that follow from flow
/// and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Chosen by the client for each flow.
    pub flow: u64,
    /// Counts up from 0.
    pub number: u32,
    /// Bytes of the pattern.
    pub body: u16,
}

/// An answer: the question, then the server's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What was asked.
    pub ask: Ask,
    /// Name of the server.
    pub name: String,
}

impl Ask {
    /// As bytes.
    #[must_use]
    pub fn write(self) -> Vec<u8> {
        let length = HEAD + usize::from(self.body);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(self.flow.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.body.to_be_bytes());
        bytes.resize(length, 0);
        pattern::fill(self.flow, u64::from(self.number), &mut bytes[HEAD..]);
        bytes
    }

    /// Reads one back, and what follows it; `None` where a byte is wrong.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let ask = Self {
            flow: u64::from_be_bytes(head[..8].try_into().ok()?),
            number: u32::from_be_bytes(head[8..12].try_into().ok()?),
            body: u16::from_be_bytes(head[12..].try_into().ok()?),
        };
        let (body, rest) = rest.split_at_checked(usize::from(ask.body))?;
        pattern::check(ask.flow, u64::from(ask.number), body).ok()?;
        Some((ask, rest))
    }
}

impl Answer {
    /// Reads one; `None` where a byte is wrong.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (ask, name) = Ask::read(bytes)?;
        let name = str::from_utf8(name).ok()?.to_owned();
        (!name.is_empty()).then_some(Self { ask, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_noticed() {
        let ask = Ask {
            flow: 0x1234_5678_9abc,
            number: 7,
            body: BODY,
        };
        let mut bytes = ask.write();
        bytes.extend(b"b1");
        let answer = Answer {
            ask,
            name: "b1".into(),
        };
        assert_eq!(Answer::read(&bytes), Some(answer));
        for at in 0..HEAD + usize::from(BODY) {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert_eq!(Answer::read(&broken), None, "byte {at}");
        }
    }
}
