//! One 128-bit address for both families.

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
///
/// The two words hold the 16 bytes as they are on the wire, loaded in host order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Addr {
    /// Bytes 0 to 7.
    pub high: u64,
    /// Bytes 8 to 15.
    pub low: u64,
}

const MAPPED_PREFIX: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
const MAPPED_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);

impl Addr {
    /// The address whose 16 bytes are given in wire order.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            low: u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        }
    }

    /// The IPv4 address whose four wire bytes were loaded as one host-order word.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        let low = if cfg!(target_endian = "little") {
            ((word as u64) << 32) | MAPPED_PREFIX
        } else {
            (word as u64) | MAPPED_PREFIX
        };
        Self { high: 0, low }
    }

    /// The IPv4 address `a.b.c.d`.
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(octets))
    }

    /// The four wire bytes of an IPv4 address as one host-order word (meaningless for IPv6).
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        if cfg!(target_endian = "little") {
            (self.low >> 32) as u32
        } else {
            self.low as u32
        }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.high == 0 && self.low & MAPPED_MASK == MAPPED_PREFIX
    }

    /// Only the bits that are set in `mask`.
    #[inline(always)]
    pub const fn masked(&self, mask: &Self) -> Self {
        Self {
            high: self.high & mask.high,
            low: self.low & mask.low,
        }
    }

    /// The mask of a prefix of `length` bits, counted in the 128 bits of the address: for IPv4 add 96.
    pub const fn prefix_mask(length: u8) -> Self {
        let bits = if length == 0 {
            0
        } else {
            u128::MAX << (128 - length as u32)
        };
        Self::from_bytes(bits.to_be_bytes())
    }

    /// The 16 bytes in wire order.
    pub const fn bytes(&self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.high.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.low.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::from_bytes(v6.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(address: Addr) -> Self {
        core::net::Ipv6Addr::from(address.bytes()).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn families_survive_the_round_trip() {
        for text in ["192.0.2.1", "255.255.255.255", "2001:db8::1", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(address)), address);
            assert_eq!(Addr::from(address).is_v4(), address.is_ipv4(), "{text}");
        }
    }

    #[test]
    fn v4_word_is_the_wire_bytes() {
        assert_eq!(
            Addr::from_v4([192, 0, 2, 1]).v4_word().to_ne_bytes(),
            [192, 0, 2, 1]
        );
        assert_eq!(Addr::from_v4([1, 2, 3, 4]).bytes()[12..], [1, 2, 3, 4]);
    }
}
