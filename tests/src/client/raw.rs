//! A TCP client made by hand, packet by packet: a handshake can stop half-way, a SYN can come twice, a sequence
//! number can be chosen.
//!
//! It speaks from an address that the client's kernel does not own (see
//! [`crate::lab::address::raw_client`]), so the kernel never answers for it with a RST.

use std::{
    io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    fragments,
    lab::{
        Lab,
        address::{Family, raw_client},
    },
};

mod packet;

/// TCP flags, as in the header.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Aborts a connection.
    pub const RST: u8 = 0x04;
    /// Hand the data over now.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// Time after which an unanswered packet is sent again.
const AGAIN: Duration = Duration::from_secs(1);

/// A packet socket on the client's interface.
#[derive(Debug)]
pub struct RawClient {
    socket: OwnedFd,
    source: IpAddr,
}

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub target_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flags, see [`flag`].
    pub flags: u8,
    /// Data.
    pub payload: Vec<u8>,
}

impl RawClient {
    /// Opens a socket in the lab's client namespace for address number `n` (see
    /// [`crate::lab::address::raw_client`]); two clients must not share one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(lab: &Lab, family: Family, n: u8) -> Result<Self> {
        let source = raw_client(family, n);
        lab.netns("client")
            .run(|| open_socket("eth0", source))?
            .map(|socket| Self { socket, source })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.source
    }

    /// A conversation that has not begun: from `source_port` to `target`, with this initial sequence number.
    ///
    /// # Errors
    /// The target is of another family.
    pub fn conversation(
        &self,
        source_port: u16,
        target: SocketAddr,
        initial: u32,
    ) -> Result<Conversation<'_>> {
        let same = Family::of(self.source) == Family::of(target.ip());
        ensure!(same, "{} can not speak to {target}", self.source);
        Ok(Conversation {
            client: self,
            source_port,
            target,
            initial,
            next: initial.wrapping_add(1),
            expected: 0,
            cut: None,
        })
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let n = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        if n < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The next segment of a TCP connection to this client, or `None` at the deadline.
    fn receive(&self, deadline: Instant) -> io::Result<Option<(IpAddr, Segment)>> {
        let mut frame = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let mut poll = libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid pollfd.
            match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
                0 if Instant::now() >= deadline => return Ok(None),
                0 => continue,
                n if n < 0 => return Err(io::Error::last_os_error()),
                _ => {}
            }
            // SAFETY: the buffer is valid for its length.
            let n = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                )
            };
            let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
            if let Some(found) = packet::parse(&frame[..n.min(frame.len())]) {
                return Ok(Some(found));
            }
        }
    }
}

/// One connection made by hand.
#[derive(Debug)]
pub struct Conversation<'a> {
    client: &'a RawClient,
    source_port: u16,
    target: SocketAddr,
    initial: u32,
    /// The next sequence number to send.
    next: u32,
    /// The next one of the other side.
    expected: u32,
    /// Bytes behind the IP header in the first fragment of a packet and in each other.
    cut: Option<(usize, usize)>,
}

/// An HTTP answer to a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawAnswer {
    /// Status code.
    pub status: u16,
    /// `X-Backend`.
    pub backend: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Conversation<'_> {
    /// From now on every packet that is long enough goes in fragments: `first` bytes behind the IP header in the first
    /// one, `rest` in each other, multiples of 8.
    pub fn cut(&mut self, first: usize, rest: usize) {
        self.cut = Some((first, rest));
    }

    /// Sends the SYN; again with every call.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_syn(&self) -> Result<()> {
        Ok(self.send(flag::SYN, self.initial, 0, &[])?)
    }

    /// Waits for the SYN-ACK and returns the server's initial sequence number. The ACK is not sent.
    ///
    /// # Errors
    /// A RST, or nothing within `limit`.
    pub fn await_syn_ack(&mut self, limit: Duration) -> Result<u32> {
        let came = self.syn_ack_until(Instant::now() + limit)?;
        came.context("no SYN-ACK in time")
    }

    fn syn_ack_until(&mut self, deadline: Instant) -> Result<Option<u32>> {
        while let Some(segment) = self.receive(deadline)? {
            ensure!(segment.flags & flag::RST == 0, "a RST instead of a SYN-ACK");
            let both = flag::SYN | flag::ACK;
            if segment.flags & both == both && segment.acknowledgement == self.next {
                self.expected = segment.sequence.wrapping_add(1);
                return Ok(Some(segment.sequence));
            }
        }
        Ok(None)
    }

    /// Sends the ACK that ends the handshake.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_ack(&self) -> Result<()> {
        Ok(self.send(flag::ACK, self.next, self.expected, &[])?)
    }

    /// The whole handshake; a SYN that nobody answers is sent again.
    ///
    /// # Errors
    /// See [`Self::await_syn_ack`].
    pub fn connect(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.send_syn()?;
            let wait = deadline.min(Instant::now() + AGAIN);
            if self.syn_ack_until(wait)?.is_some() {
                return self.send_ack();
            }
            ensure!(Instant::now() < deadline, "no SYN-ACK in time");
        }
    }

    /// `GET path` on the open connection, the answer read to its end and acknowledged.
    ///
    /// # Errors
    /// A RST, an end before the answer's, or no whole answer within `limit`.
    pub fn get(&mut self, path: &str, limit: Duration) -> Result<RawAnswer> {
        let deadline = Instant::now() + limit;
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").into_bytes();
        let after = self.next.wrapping_add(u32::try_from(request.len())?);
        let (mut answered, mut data) = (false, Vec::new());
        let mut again = Instant::now();
        loop {
            if !answered && Instant::now() >= again {
                self.send(flag::PSH | flag::ACK, self.next, self.expected, &request)?;
                again = Instant::now() + AGAIN;
            }
            let wait = if answered {
                deadline
            } else {
                deadline.min(again)
            };
            let Some(segment) = self.receive(wait)? else {
                ensure!(
                    Instant::now() < deadline,
                    "no whole answer in time ({} bytes of it)",
                    data.len()
                );
                continue;
            };
            ensure!(
                segment.flags & flag::RST == 0,
                "a RST after {} bytes of the answer",
                data.len()
            );
            answered |= segment.acknowledgement == after;
            let ends = segment.flags & flag::FIN != 0;
            let is_new = segment.sequence == self.expected && (ends || !segment.payload.is_empty());
            if is_new {
                data.extend_from_slice(&segment.payload);
                let length = u32::try_from(segment.payload.len())?;
                self.expected = self.expected.wrapping_add(length + u32::from(ends));
            }
            if !segment.payload.is_empty() || ends {
                self.send(
                    flag::ACK,
                    if answered { after } else { self.next },
                    self.expected,
                    &[],
                )?;
            }
            if let Some(answer) = http_answer(&data)? {
                self.next = after;
                return Ok(answer);
            }
            ensure!(
                !(is_new && ends),
                "the server ended the connection after {} bytes",
                data.len()
            );
        }
    }

    /// Aborts the connection.
    ///
    /// # Errors
    /// The socket's.
    pub fn reset(self) -> Result<()> {
        Ok(self.send(flag::RST | flag::ACK, self.next, self.expected, &[])?)
    }

    /// Ends the connection in good order: FIN (again when nobody answers), and the server's FIN acknowledged.
    ///
    /// # Errors
    /// A RST, or no FIN within `limit`.
    pub fn close(mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let fin = self.next;
        self.next = self.next.wrapping_add(1);
        let mut again = Instant::now();
        loop {
            if Instant::now() >= again {
                self.send(flag::FIN | flag::ACK, fin, self.expected, &[])?;
                again = Instant::now() + AGAIN;
            }
            let Some(segment) = self.receive(deadline.min(again))? else {
                ensure!(Instant::now() < deadline, "no FIN in time");
                continue;
            };
            ensure!(segment.flags & flag::RST == 0, "a RST instead of a FIN");
            if segment.flags & flag::FIN != 0 && segment.sequence == self.expected {
                self.expected = self.expected.wrapping_add(1);
                return self.send_ack();
            }
        }
    }

    /// The next segment of this connection, whatever it is; `None` after `limit`.
    ///
    /// # Errors
    /// The socket's.
    pub fn next_segment(&self, limit: Duration) -> Result<Option<Segment>> {
        self.receive(Instant::now() + limit)
    }

    /// Sends any segment.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_segment(
        &self,
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: &[u8],
    ) -> Result<()> {
        Ok(self.send(flags, sequence, acknowledgement, payload)?)
    }

    /// The next sequence number to send and the next one expected.
    #[must_use]
    pub fn numbers(&self) -> (u32, u32) {
        (self.next, self.expected)
    }

    fn receive(&self, deadline: Instant) -> Result<Option<Segment>> {
        while let Some((from, segment)) = self.client.receive(deadline)? {
            let ports = (segment.source_port, segment.target_port);
            if from == self.target.ip() && ports == (self.target.port(), self.source_port) {
                return Ok(Some(segment));
            }
        }
        Ok(None)
    }

    fn send(
        &self,
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let segment = Segment {
            source_port: self.source_port,
            target_port: self.target.port(),
            sequence,
            acknowledgement,
            flags,
            payload: payload.to_vec(),
        };
        let frame = packet::frame(self.client.source, self.target.ip(), &segment)?;
        let Some((first, rest)) = self.cut else {
            return self.client.send(&frame);
        };
        static PACKETS: AtomicU32 = AtomicU32::new(1);
        let id = PACKETS.fetch_add(1, Ordering::Relaxed);
        for fragment in fragments::cut(&frame, first, rest, id) {
            self.client.send(&fragment)?;
        }
        Ok(())
    }
}

/// The answer, once all of it is there.
fn http_answer(data: &[u8]) -> Result<Option<RawAnswer>> {
    let Some(end) = data.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&data[..end])?;
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    };
    let length: usize = header("content-length")
        .context("no content-length")?
        .parse()?;
    let body = &data[end + 4..];
    if body.len() < length {
        return Ok(None);
    }
    Ok(Some(RawAnswer {
        status: head.split(' ').nth(1).context("no status")?.parse()?,
        backend: header("x-backend").context("no X-Backend")?.to_owned(),
        body: body[..length].to_vec(),
    }))
}

/// A packet socket on an interface of the calling thread's namespace that sees packets to `address` only.
fn open_socket(interface: &str, address: IpAddr) -> Result<OwnedFd> {
    let protocol = match address {
        IpAddr::V4(_) => libc::ETH_P_IP,
        IpAddr::V6(_) => libc::ETH_P_IPV6,
    };
    let protocol = (protocol as u16).to_be();
    // Bound later: until then protocol 0 keeps other packets out.
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("open a packet socket");
    }
    // SAFETY: the kernel just made this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    filter_by_target(&socket, address).context("filter the packet socket")?;
    // SAFETY: sockaddr_ll is plain data.
    let mut place: libc::sockaddr_ll = unsafe { mem::zeroed() };
    place.sll_family = libc::AF_PACKET as u16;
    place.sll_protocol = protocol;
    place.sll_ifindex = nix::net::if_::if_nametoindex(interface)?.cast_signed();
    let length = mem::size_of_val(&place) as libc::socklen_t;
    // SAFETY: the address is valid for its length.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const place).cast(), length) } != 0 {
        return Err(io::Error::last_os_error()).context("bind a packet socket");
    }
    Ok(socket)
}

/// Classic BPF: keep a frame whose destination is `address`; frames of its family alone come.
fn filter_by_target(socket: &OwnedFd, address: IpAddr) -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let offset = packet::ETHERNET + if address.is_ipv4() { 16 } else { 24 };
    let octets = packet::octets(address);
    let words = octets.chunks_exact(4).map(|word| {
        word.iter()
            .fold(0, |number, &byte| number << 8 | u32::from(byte))
    });
    let mut steps = Vec::new();
    for (n, word) in (0_u32..).zip(words) {
        let at = offset as u32 + 4 * n;
        // To the last step: over the other words' two steps each, and the one that keeps.
        let end = octets.len() as u32 / 2 - 2 * n - 1;
        steps.extend([
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at),
            step(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                0,
                end as u8,
                word,
            ),
        ]);
    }
    steps.extend([0xffff, 0].map(|bytes| step(libc::BPF_RET | libc::BPF_K, 0, 0, bytes)));
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the option's value is a sock_fprog whose steps live through the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            mem::size_of_val(&program) as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_complete_only_with_its_body() {
        let text = b"HTTP/1.1 200 OK\r\nX-Backend: b1\r\nContent-Length: 3\r\n\r\nab";
        assert_eq!(http_answer(text).unwrap(), None);
        let whole = [&text[..], b"c"].concat();
        let answer = http_answer(&whole).unwrap().unwrap();
        assert_eq!(
            (answer.status, answer.backend.as_str(), &answer.body[..]),
            (200, "b1", &b"abc"[..])
        );
    }
}
