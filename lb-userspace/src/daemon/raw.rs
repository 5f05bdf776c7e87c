//! Sends segments made by hand, from addresses that are not the node's own: on a thread of its own, by raw sockets.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

use crate::datapath::segment::Segment;

/// Segments that are sent in a row, and the pause after them: the answers to more would come faster than a core tells
/// of them ([`lb_common::alert::CUTS_PER_TICK`]), and 8000 clients a second are enough.
const AT_ONCE: usize = 8;
/// See there.
const PAUSE: Duration = Duration::from_millis(1);

/// Starts the thread; it ends with the sender.
///
/// # Errors
/// No thread can be made.
pub fn start() -> std::io::Result<Sender<Vec<Segment>>> {
    let (sender, segments) = channel();
    thread::Builder::new()
        .name("raw".to_owned())
        .spawn(move || run(&segments))?;
    Ok(sender)
}

fn run(segments: &Receiver<Vec<Segment>>) {
    let mut sockets = [None, None];
    while let Ok(batch) = segments.recv() {
        let mut failed = None;
        for few in batch.chunks(AT_ONCE) {
            let errors = few
                .iter()
                .filter_map(|segment| send(&mut sockets, segment).err());
            // One of them says it all.
            failed = errors.last().or(failed);
            thread::sleep(PAUSE);
        }
        if let Some(error) = failed {
            tracing::warn!("segments could not be sent: {error}");
        }
    }
}

/// Sends one; opens the socket of its family when it is the first.
fn send(sockets: &mut [Option<OwnedFd>; 2], segment: &Segment) -> nix::Result<()> {
    let Some(packet) = segment.packet() else {
        return Ok(());
    };
    let (place, family) = if segment.to.is_ipv4() {
        (&mut sockets[0], AddressFamily::Inet)
    } else {
        (&mut sockets[1], AddressFamily::Inet6)
    };
    let open = match place {
        Some(open) => open,
        // IPPROTO_RAW: what is sent begins with its IP header (raw(7)).
        None => place.insert(socket(
            family,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )?),
    };
    let flags = MsgFlags::MSG_DONTWAIT;
    match segment.to {
        SocketAddr::V4(mut to) => {
            to.set_port(0);
            sendto(open.as_raw_fd(), &packet, &SockaddrIn::from(to), flags)
        }
        SocketAddr::V6(mut to) => {
            to.set_port(0);
            sendto(open.as_raw_fd(), &packet, &SockaddrIn6::from(to), flags)
        }
    }
    .map(drop)
}
