//! The socket with the kernel's notifications.
//!
//! It is read without the request machinery of rtnetlink, because every way to lose a notification has to be told:
//! the buffer overran, a message was cut off, or it could not be decoded.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::io::unix::AsyncFd;

use super::{decode, table::Change};

const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// Receive buffer, bytes: some thousand notifications. More than that at once costs a full reading of the tables.
pub const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Longest datagram; one link with many virtual functions takes some ten thousand bytes.
const DATAGRAM_BYTES: usize = 1 << 18;
/// Datagrams read before what they say is acted on.
const DATAGRAMS_AT_ONCE: usize = 4096;

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP` (linux/rtnetlink.h), which rtnetlink has no type for.
const NEXTHOP_MESSAGES: [u16; 2] = [104, 105];
/// Alignment of messages in a datagram, bytes (NLMSG_ALIGNTO).
const ALIGNMENT: usize = 4;

/// Subscription to everything a next hop rests on.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Descriptor>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Opens and subscribes, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket or a group.
    pub fn open(receive_buffer_bytes: usize) -> io::Result<Self> {
        let mut socket = Descriptor(Socket::new(NETLINK_ROUTE)?);
        socket.0.set_non_blocking(true)?;
        grow_receive_buffer(&socket, receive_buffer_bytes);
        socket.0.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            match socket.0.add_membership(group as u32) {
                // Next-hop objects came with Linux 5.3; without them there is nothing to be told of.
                Err(error) if group != MulticastGroup::Nexthop => return Err(error),
                _ => {}
            }
        }
        // SAFETY: the descriptor is the socket's own, always the same one, and stays open while the socket lives.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(DATAGRAM_BYTES),
        })
    }

    /// Waits for notifications and reads what there is, oldest first. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// When the socket is of no more use.
    pub async fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            let drained = ready.try_io(|socket| drain(&socket.get_ref().0, buffer, &mut changes));
            match drained {
                Ok(Err(error)) => return Err(error),
                _ if changes.is_empty() => {}
                _ => return Ok(changes),
            }
        }
    }
}

/// Reads until nothing is left (`WouldBlock`, so that the readiness is cleared) or enough for once was read.
fn drain(socket: &Socket, buffer: &mut Vec<u8>, changes: &mut Vec<Change>) -> io::Result<()> {
    for _ in 0..DATAGRAMS_AT_ONCE {
        buffer.clear();
        match socket.recv_from(buffer, 0) {
            Ok(_) => decode_datagram(buffer, changes),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changes.push(Change::Lost),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Appends what a datagram says; what cannot be understood is [`Change::Lost`].
fn decode_datagram(mut rest: &[u8], changes: &mut Vec<Change>) {
    while !rest.is_empty() {
        let Ok(header) = NetlinkBuffer::new_checked(rest) else {
            changes.push(Change::Lost);
            return;
        };
        let length = header.length() as usize;
        let (message, after) = rest.split_at(length.min(rest.len()));
        if NEXTHOP_MESSAGES.contains(&header.message_type()) {
            changes.push(Change::AllRoutes);
        } else {
            decode_message(message, changes);
        }
        let padding = length.next_multiple_of(ALIGNMENT) - length;
        rest = after.get(padding..).unwrap_or_default();
    }
}

fn decode_message(message: &[u8], changes: &mut Vec<Change>) {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|message| message.payload)
    {
        Ok(NetlinkPayload::InnerMessage(message)) => changes.extend(decode::change(&message)),
        Ok(NetlinkPayload::Overrun(_)) => changes.push(Change::Lost),
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(%error, "a notification of the kernel was not understood; reading its tables anew");
            changes.push(Change::Lost);
        }
    }
}

/// rtnetlink's socket with the promise that its descriptor stays open while it lives.
#[derive(Debug)]
struct Descriptor(Socket);

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and closes it when dropped, which this borrow does not outlive.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// As large as allowed: past the system's limit where there is the right to.
fn grow_receive_buffer(socket: &Descriptor, bytes: usize) {
    let forced = setsockopt(socket, sockopt::RcvBufForce, &bytes);
    if forced.is_err() && setsockopt(socket, sockopt::RcvBuf, &bytes).is_err() {
        tracing::debug!("the receive buffer of the netlink socket keeps its default size");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_counts_as_lost() {
        let rows: [(&[u8], &[Change]); 4] = [
            (&[], &[]),
            (&[1, 2, 3], &[Change::Lost]),
            // A neighbour message (28) of 20 bytes: header and a cut-off body.
            (
                &[20, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
                &[Change::Lost],
            ),
            // A length past the end.
            (
                &[64, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[Change::Lost],
            ),
        ];
        for (datagram, expected) in rows {
            let mut changes = Vec::new();
            decode_datagram(datagram, &mut changes);
            assert_eq!(changes, expected, "{datagram:?}");
        }
    }

    #[test]
    fn a_next_hop_object_concerns_all_routes() {
        let mut datagram = vec![
            17, 0, 0, 0, 104, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0,
        ];
        datagram.extend([16, 0, 0, 0, 105, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut changes = Vec::new();
        decode_datagram(&datagram, &mut changes);
        assert_eq!(changes, [Change::AllRoutes, Change::AllRoutes]);
    }
}
