//! A frame for the program to think about. Never sent.

use std::net::{IpAddr, SocketAddr};

use lb_common::steer::tcp;

use crate::datapath::Question;

/// Ethernet, IP and TCP headers of the question's packet; checksums are left zero, nobody looks at them. `None` when
/// client and service are of different families.
pub fn segment(question: &Question) -> Option<Vec<u8>> {
    let mut frame = vec![0u8; 12];
    match (question.client.ip(), question.vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(client.octets());
            frame.extend(vip.octets());
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(client.octets());
            frame.extend(vip.octets());
        }
        _ => return None,
    }
    frame.extend(tcp_header(
        &question.client,
        &question.vip,
        question.opening,
    ));
    Some(frame)
}

fn tcp_header(client: &SocketAddr, vip: &SocketAddr, opening: bool) -> [u8; 20] {
    let mut header = [0u8; 20];
    header[0..2].copy_from_slice(&client.port().to_be_bytes());
    header[2..4].copy_from_slice(&vip.port().to_be_bytes());
    header[12] = 0x50;
    header[13] = if opening { tcp::SYN } else { tcp::ACK };
    header
}
