//! What is in the datagrams.

use std::str;

use crate::pattern;

/// Bytes of the pattern in each datagram.
const BODY: usize = 64;
/// Flow and number, both big-endian.
const HEAD: usize = 12;

/// A question: flow (8 bytes), number (4 bytes), [`BODY`] bytes that follow from both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Chosen by the client for each flow.
    pub flow: u64,
    /// Counts up from 0.
    pub number: u32,
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
        let mut bytes = Vec::with_capacity(HEAD + BODY);
        bytes.extend(self.flow.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.resize(HEAD + BODY, 0);
        pattern::fill(self.flow, u64::from(self.number), &mut bytes[HEAD..]);
        bytes
    }

    /// Reads one back, and what follows it; `None` where a byte is wrong.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let (body, rest) = rest.split_at_checked(BODY)?;
        let ask = Self {
            flow: u64::from_be_bytes(head[..8].try_into().ok()?),
            number: u32::from_be_bytes(head[8..].try_into().ok()?),
        };
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
        };
        let mut bytes = ask.write();
        bytes.extend(b"b1");
        let answer = Answer {
            ask,
            name: "b1".into(),
        };
        assert_eq!(Answer::read(&bytes), Some(answer));
        for at in 0..HEAD + BODY {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert_eq!(Answer::read(&broken), None, "byte {at}");
        }
    }
}
