//! Cutting an IP packet into fragments, and putting fragments together again.

use lb_common::checksum::{fold, sum_bytes};

/// Length of an Ethernet header without tags.
const ETHERNET: usize = 14;

/// One fragment's place in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Where the IP header (IPv4) or the fragment header (IPv6) ends, in the frame.
    at: usize,
    /// Where its data belong, in bytes.
    offset: usize,
    /// Whether others follow.
    more: bool,
}

/// The fragments of a frame without tags, options or extension headers: `first` bytes behind the IP header in the first
/// one, `rest` in each other. Both multiples of 8.
pub fn cut(frame: &[u8], first: usize, rest: usize, id: u32) -> Vec<Vec<u8>> {
    assert!(
        first.is_multiple_of(8) && rest.is_multiple_of(8) && rest > 0,
        "{first}, {rest}"
    );
    let header = ETHERNET + if is_v4(frame) { 20 } else { 40 };
    let data = &frame[header..];
    let mut fragments = Vec::new();
    let mut offset = 0;
    while offset < data.len() {
        let length = if offset == 0 { first } else { rest };
        let end = data.len().min(offset + length);
        let more = end < data.len();
        fragments.push(part(&frame[..header], &data[offset..end], offset, more, id));
        offset = end;
    }
    fragments
}

/// One fragment with these data, made of the headers of a whole packet.
pub fn part(headers: &[u8], data: &[u8], offset: usize, more: bool, id: u32) -> Vec<u8> {
    let mut frame = headers.to_vec();
    if is_v4(headers) {
        let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        let length = (20 + data.len()) as u16;
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        frame[18..20].copy_from_slice(&(id as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        sum_v4(&mut frame);
    } else {
        let word = offset as u16 | u16::from(more);
        let length = (8 + data.len()) as u16;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        let protocol = std::mem::replace(&mut frame[20], 44);
        frame.extend([protocol, 0]);
        frame.extend(word.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    frame.extend(data);
    frame
}

/// Identification of a fragment.
///
/// # Panics
/// It ends before that.
pub fn identification(frame: &[u8]) -> u32 {
    let (_, id) = identity(frame);
    id.iter().fold(0, |id, byte| id << 8 | u32::from(*byte))
}

/// The packet that the fragments are of, with the Ethernet header of the first.
///
/// # Errors
/// Says what is missing, or what differs between the fragments.
pub fn join(fragments: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut parts = fragments
        .iter()
        .map(|frame| read(frame).map(|part| (part, frame)))
        .collect::<Result<Vec<_>, String>>()?;
    parts.sort_by_key(|(part, _)| part.offset);
    let (_, first) = *parts.first().ok_or("no fragments")?;
    let mut data = Vec::<u8>::new();
    for (number, (part, frame)) in parts.iter().enumerate() {
        if part.offset != data.len() || part.more != (number + 1 < parts.len()) {
            return Err(format!(
                "fragment {number}: {part:?} after {} bytes",
                data.len()
            ));
        }
        if identity(frame) != identity(first) {
            return Err(format!("fragment {number} is of another packet"));
        }
        data.extend(&frame[part.at..]);
    }
    let mut whole = first[..ETHERNET + if is_v4(first) { 20 } else { 40 }].to_vec();
    if is_v4(first) {
        whole[16..18].copy_from_slice(&((20 + data.len()) as u16).to_be_bytes());
        // As a packet that was never cut.
        whole[20..22].copy_from_slice(&[0x40, 0]);
        whole[18..20].copy_from_slice(&[0x12, 0x34]);
        sum_v4(&mut whole);
    } else {
        whole[18..20].copy_from_slice(&(data.len() as u16).to_be_bytes());
        whole[20] = first[54];
    }
    whole.extend(data);
    Ok(whole)
}

fn is_v4(frame: &[u8]) -> bool {
    frame[12..14] == [0x08, 0x00]
}

fn sum_v4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let check = !fold(sum_bytes(&frame[14..34]));
    frame[24..26].copy_from_slice(&check.to_ne_bytes());
}

fn read(frame: &[u8]) -> Result<Part, String> {
    let half = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if is_v4(frame) {
        if fold(sum_bytes(&frame[14..34])) != 0xffff {
            return Err("wrong IPv4 header checksum".into());
        }
        if usize::from(half(16)) + ETHERNET != frame.len() {
            return Err("wrong total length".into());
        }
        Ok(Part {
            at: 34,
            offset: usize::from(half(20) & 0x1fff) * 8,
            more: half(20) & 0x2000 != 0,
        })
    } else {
        if usize::from(half(18)) + 54 != frame.len() || frame[20] != 44 {
            return Err("wrong payload length, or no fragment header".into());
        }
        Ok(Part {
            at: 62,
            offset: usize::from(half(56) & 0xfff8),
            more: half(56) & 1 != 0,
        })
    }
}

/// Ends and identification.
fn identity(frame: &[u8]) -> (&[u8], &[u8]) {
    if is_v4(frame) {
        (&frame[26..34], &frame[18..20])
    } else {
        (&frame[22..54], &frame[58..62])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::Segment;

    #[test]
    fn what_is_cut_is_joined_again() {
        for (from, to) in [
            ("192.0.2.1:1", "203.0.113.10:80"),
            ("[2001:db8::1]:1", "[2001:db8::10]:80"),
        ] {
            let data: Vec<u8> = (0..3000).map(|n| n as u8).collect();
            let whole = Segment::new(from.parse().unwrap(), to.parse().unwrap(), 0x18)
                .data(&data)
                .build();
            let mut parts = cut(&whole, 48, 1024, 7);
            assert_eq!(parts.len(), 4);
            parts.reverse();
            assert_eq!(join(&parts).unwrap(), whole);
            assert!(join(&parts[1..]).is_err() && join(&parts[..3]).is_err());
        }
    }
}
