//! A frame for the program to think about. Never sent.

use std::net::{IpAddr, SocketAddr};

use lb_common::{quic, steer::tcp};

use crate::{datapath::Question, model::spec::Protocol};

/// Ethernet, IP and transport headers of the question's packet, and at most 100 bytes of data of a datagram; checksums are
/// left zero, nobody looks at them. `None` when client and service are of different families.
pub fn packet(question: &Question, data: &[u8]) -> Option<Vec<u8>> {
    let (client, vip) = (&question.client, &question.vip);
    let transport = match question.protocol {
        Protocol::Tcp => tcp_header(client, vip, question.opening).to_vec(),
        Protocol::Udp => [&udp_header(client, vip, data.len() as u8)[..], data].concat(),
    };
    let (protocol, length) = (question.protocol.number(), transport.len() as u8);
    let mut frame = vec![0u8; 12];
    match (client.ip(), vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 20 + length, 0, 0, 0x40, 0]);
            frame.extend([64, protocol, 0, 0]);
            frame.extend(client.octets());
            frame.extend(vip.octets());
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, protocol, 64]);
            frame.extend(client.octets());
            frame.extend(vip.octets());
        }
        _ => return None,
    }
    frame.extend(transport);
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

fn udp_header(client: &SocketAddr, vip: &SocketAddr, length: u8) -> [u8; 8] {
    let mut header = [0u8; 8];
    header[0..2].copy_from_slice(&client.port().to_be_bytes());
    header[2..4].copy_from_slice(&vip.port().to_be_bytes());
    header[5] = 8 + length;
    header
}

/// A QUIC packet (RFC 9000 section 17): an Initial that no connection has been opened with, or one with a short header and
/// this connection id.
pub fn quic(opening: bool, id: &[u8]) -> Vec<u8> {
    let mut bytes = if opening {
        // Version 1, and an id that names nobody.
        vec![0xc0, 0, 0, 0, 1, 8, quic::UNROUTABLE << 5]
    } else {
        [&[0x40], id].concat()
    };
    bytes.resize(bytes.len() + quic::LOOKED_AT, 0);
    bytes
}
