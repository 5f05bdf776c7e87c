//! Pseudo-random bytes that both ends can compute: the body of every answer, checked byte by byte.

use std::fmt;

/// A byte that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Its position in the whole stream of this seed.
    pub offset: u64,
    /// What should be there.
    pub want: u8,
    /// What is there.
    pub got: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "byte {} is {:#04x}, should be {:#04x}",
            self.offset, self.got, self.want
        )
    }
}

/// Eight bytes of the stream `seed`, little-endian, block number `block`.
fn block(seed: u64, block: u64) -> [u8; 8] {
    // SplitMix64's finaliser: every bit of seed and position reaches every bit of the result.
    let mut z = seed ^ block.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Writes bytes `offset..offset + out.len()` of the stream `seed`.
pub fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let mut position = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let skip = (position % 8) as usize;
        let bytes = block(seed, position / 8);
        let n = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&bytes[skip..skip + n]);
        position += n as u64;
        rest = later;
    }
}

/// Checks that `data` is bytes `offset..offset + data.len()` of the stream `seed`.
///
/// # Errors
/// The first byte that differs.
pub fn check(seed: u64, offset: u64, data: &[u8]) -> Result<(), Mismatch> {
    let mut position = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let skip = (position % 8) as usize;
        let bytes = block(seed, position / 8);
        let n = rest.len().min(8 - skip);
        let (now, later) = rest.split_at(n);
        for (i, (&got, &want)) in now.iter().zip(&bytes[skip..]).enumerate() {
            if got != want {
                return Err(Mismatch {
                    offset: position + i as u64,
                    want,
                    got,
                });
            }
        }
        position += n as u64;
        rest = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_agree_with_the_whole() {
        let mut whole = [0; 100];
        fill(7, 3, &mut whole);
        let mut pieces = [0; 100];
        fill(7, 3, &mut pieces[..41]);
        fill(7, 44, &mut pieces[41..]);
        assert_eq!(whole, pieces);
        assert_eq!(check(7, 3, &whole), Ok(()));
        assert_eq!(check(7, 44, &whole[41..]), Ok(()));
    }

    #[test]
    fn one_wrong_bit_is_found() {
        let mut data = [0; 64];
        fill(9, 1000, &mut data);
        data[37] ^= 4;
        let found = check(9, 1000, &data).unwrap_err();
        assert_eq!((found.offset, found.got), (1037, found.want ^ 4));
    }

    #[test]
    fn other_seeds_and_shifts_differ() {
        let mut data = [0; 64];
        fill(9, 0, &mut data);
        assert!(check(10, 0, &data).is_err());
        assert!(check(9, 1, &data).is_err());
    }
}
