//! The question that goes through a tunnel with a packet: is its connection here? And the packet that comes back where it
//! is not.
//!
//! Both are generic UDP encapsulation, variant 0 (draft-ietf-intarea-gue section 3), without flags and with eight bytes of
//! private data (section 3.5): three letters and a digit that say what it is, and the id of the backend that is asked,
//! network order. The packet follows. No checksum: those inside cover what is delivered, and whoever is sent a packet back
//! looks at the addresses (RFC 6935 for IPv6).

/// Bytes between the UDP header and the packet.
pub const LENGTH: u16 = 12;

/// Version 0, no control message, two words of four bytes behind the first.
const FIRST: u8 = 2;
const NAME: [u8; 3] = *b"ebb";

/// What is said of the packet.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// If its connection is not at the end of this tunnel, it is to be sent back.
    IsItHere = b'?',
    /// It is not.
    NotHere = b'!',
}

/// The header as it stands in the packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    first: u8,
    protocol: u8,
    flags: [u8; 2],
    name: [u8; 3],
    word: u8,
    backend: [u8; 4],
}

const _: () = assert!(size_of::<Header>() == LENGTH as usize);

impl Header {
    /// In front of a packet of this family, for a tunnel to this backend.
    #[inline(always)]
    pub const fn new(word: Word, inner_is_v4: bool, backend: u32) -> Self {
        Self {
            first: FIRST,
            protocol: if inner_is_v4 {
                super::IPV4_INSIDE
            } else {
                super::IPV6_INSIDE
            },
            flags: [0; 2],
            name: NAME,
            word: word as u8,
            backend: backend.to_be_bytes(),
        }
    }

    /// Whether these are the first bytes of such a header that says `word`, and not a packet itself.
    #[inline(always)]
    pub const fn says(&self, word: Word) -> bool {
        self.first == FIRST
            && (self.protocol == super::IPV4_INSIDE || self.protocol == super::IPV6_INSIDE)
            && u16::from_ne_bytes(self.flags) == 0
            && self.name[0] == NAME[0]
            && self.name[1] == NAME[1]
            && self.name[2] == NAME[2]
            && self.word == word as u8
    }

    /// The answer to this question.
    #[inline(always)]
    pub const fn answered(self) -> Self {
        Self {
            word: Word::NotHere as u8,
            ..self
        }
    }

    /// Whether the packet behind it is IPv4.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.protocol == super::IPV4_INSIDE
    }

    /// The backend that was asked.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        u32::from_be_bytes(self.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_no_answer_and_no_packet() {
        let header = Header::new(Word::IsItHere, true, 0x01_0203);
        assert!(header.says(Word::IsItHere) && !header.says(Word::NotHere));
        assert!(header.is_v4());
        assert_eq!(header.backend(), 0x01_0203);
        // The versions of IP, in the upper half of a packet's first byte, are those of variant 1 of the encapsulation.
        assert_eq!(header.first >> 6, 0);
        assert_eq!(
            usize::from(header.first & 0x1f) * 4 + 4,
            usize::from(LENGTH)
        );
        assert!(!Header::new(Word::NotHere, false, 1).is_v4());
    }

    #[test]
    fn whatever_differs_is_none() {
        let header = Header::new(Word::NotHere, false, 1);
        // SAFETY: twelve plain bytes.
        let bytes: [u8; 12] = unsafe { core::mem::transmute(header) };
        for place in 0..8 {
            let mut other = bytes;
            other[place] ^= 0x40;
            // SAFETY: as above.
            let other: Header = unsafe { core::mem::transmute(other) };
            assert!(!other.says(Word::NotHere), "byte {place}");
        }
    }
}
