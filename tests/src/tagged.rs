//! Whole frames, 802.1Q tags included, on a packet socket: for kernels without VLAN devices.
//!
//! The kernel takes the outer tag off a frame before a packet socket sees it, and says it beside the frame
//! (`PACKET_AUXDATA`, Linux 2.6.27; with its EtherType 3.14); here it is put back.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::lab::Netns;

/// include/uapi/linux/if_packet.h
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
/// Where the tags of a frame begin.
const TAGS: usize = 12;

/// A packet socket on one interface that sees every frame which arrives there.
#[derive(Debug)]
pub struct Frames(OwnedFd);

impl Frames {
    /// Opens one.
    ///
    /// # Errors
    /// No such interface, or the kernel's.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        netns
            .run(|| open(interface))?
            .with_context(|| format!("a packet socket on {interface} of {}", netns.name()))
            .map(Self)
    }

    /// Opens one in this thread's network namespace.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn here(interface: &str) -> Result<Self> {
        open(interface)
            .with_context(|| format!("a packet socket on {interface}"))
            .map(Self)
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The first frame to arrive for which `found` says something.
    ///
    /// # Errors
    /// None within `limit`.
    pub fn find<T>(&self, limit: Duration, found: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid pollfd.
            let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
            anyhow::ensure!(ready > 0, "no such frame within {limit:?}");
            let Some(frame) = self.receive()? else {
                continue;
            };
            if let Some(thing) = found(&frame) {
                return Ok(thing);
            }
        }
    }

    /// A frame that came in, with its tags; `None` for one that goes out.
    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut frame = vec![0_u8; 4096];
        let mut part = libc::iovec {
            iov_base: frame.as_mut_ptr().cast(),
            iov_len: frame.len(),
        };
        let mut control = [0_u64; 16];
        // SAFETY: plain data.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = mem::size_of_val(&from) as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        // SAFETY: everything that the message names lives through the call.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        frame.truncate(length);
        if from.sll_pkttype == libc::PACKET_OUTGOING {
            return Ok(None);
        }
        if let Some(tag) = outer_tag(&message) {
            frame.splice(TAGS..TAGS, tag);
        }
        Ok(Some(frame))
    }
}

/// The tag that the kernel took off: EtherType and control information, as on the wire.
fn outer_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the kernel filled the message in; the macros stay inside its control buffer.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        if header.is_null()
            || ((*header).cmsg_level, (*header).cmsg_type)
                != (libc::SOL_PACKET, libc::PACKET_AUXDATA)
        {
            return None;
        }
        let data = libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned();
        if data.tp_status & TP_STATUS_VLAN_VALID == 0 {
            return None;
        }
        let (a, b) = (
            data.tp_vlan_tpid.to_be_bytes(),
            data.tp_vlan_tci.to_be_bytes(),
        );
        Some([a[0], a[1], b[0], b[1]])
    }
}

fn open(interface: &str) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on = 1_i32;
    // SAFETY: the option's value is an int.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const on).cast(),
            mem::size_of_val(&on) as u32,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sockaddr_ll is plain data.
    let mut place: libc::sockaddr_ll = unsafe { mem::zeroed() };
    place.sll_family = libc::AF_PACKET as u16;
    place.sll_protocol = all;
    place.sll_ifindex = nix::net::if_::if_nametoindex(interface)?.cast_signed();
    let length = mem::size_of_val(&place) as u32;
    // SAFETY: the address is valid for its length.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const place).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
