//! What routers say of packets in tunnels that were too big for them.
//!
//! The node's kernel hears of it, but has no tunnel there and learns nothing: to it the packet that was too big is none
//! of its own. So it is read here, on raw sockets that get a copy of such errors and of nothing else, and kept for as
//! long as the kernel keeps what it learns itself. Packets that do not fit any more are then answered by the data plane
//! as those that do not fit the interface are.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use lb_common::tunnel::{IPV4_INSIDE, IPV6_INSIDE};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use tokio::io::unix::AsyncFd;

/// How long it counts: as long as Linux keeps a path MTU (`net.ipv4.route.mtu_expires`, `net.ipv6.route.mtu_expires`).
const KEPT: Duration = Duration::from_secs(600);

/// No path over IPv4 is believed to be narrower: Linux's own bound (`net.ipv4.route.min_pmtu`), so that a forged error
/// can not make every packet tiny.
const LEAST_V4: u32 = 552;
/// Least MTU of an IPv6 link (RFC 8200 section 5).
const LEAST_V6: u32 = 1280;

/// Longest error that is read: the first 576 bytes hold all that matters (RFC 1812 section 4.3.2.3), and of IPv6's 1232
/// (RFC 4443 section 3.2) the beginning is enough.
const READ: usize = 576;

const UDP: u8 = 17;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_FRAGMENTATION_NEEDED: u8 = 4;
const ICMP6_TOO_BIG: u8 = 2;

/// A router's word: packets to `to` may be `mtu` bytes long at most, from the IP header on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Where the packet was sent that did not fit.
    pub to: IpAddr,
    /// What would have.
    pub mtu: u32,
}

/// The sockets. One that can not be opened is said once, and nothing is heard by it.
#[derive(Debug)]
pub struct Listener {
    v4: Option<AsyncFd<OwnedFd>>,
    v6: Option<AsyncFd<OwnedFd>>,
}

impl Listener {
    /// Opens them, in the network namespace of the calling thread.
    pub fn open() -> Self {
        let said = |result: io::Result<_>| match result {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(
                    "what routers say of packets too big for them is not heard (CAP_NET_RAW): {error}"
                );
                None
            }
        };
        Self {
            v4: said(open(AddressFamily::Inet)),
            v6: said(open(AddressFamily::Inet6)),
        }
    }

    /// Waits for the next. Nothing is lost when the future is dropped.
    pub async fn told(&mut self) -> Told {
        loop {
            let told = tokio::select! {
                told = read(self.v4.as_ref(), parse_v4) => told,
                told = read(self.v6.as_ref(), parse_v6) => told,
            };
            match told {
                Ok(Some(told)) => return told,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!("a socket for ICMP errors failed: {error}");
                    *self = Self::open();
                }
            }
        }
    }
}

/// A raw socket that gets nothing but errors of packets too big.
fn open(family: AddressFamily) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let is_v4 = family == AddressFamily::Inet;
    let protocol = if is_v4 {
        SockProtocol::Icmp
    } else {
        SockProtocol::IcmpV6
    };
    let socket = socket(family, SockType::Raw, flags, protocol)?;
    if is_v4 {
        // linux/icmp.h: a bit for each type that is kept out.
        let kept_out: [u32; 1] = [!(1 << ICMP_UNREACHABLE)];
        const ICMP_FILTER: libc::c_int = 1;
        set(&socket, libc::SOL_RAW, ICMP_FILTER, &kept_out)?;
    } else {
        // RFC 3542 section 3.2; in Linux a set bit keeps out.
        let mut kept_out = [u32::MAX; 8];
        kept_out[0] = !(1 << ICMP6_TOO_BIG);
        const ICMP6_FILTER: libc::c_int = 1;
        set(&socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &kept_out)?;
    }
    // SAFETY: the descriptor is owned, and the same for as long as it lives.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let (pointer, length) = (std::ptr::from_ref(value).cast(), size_of::<T>());
    // SAFETY: so many bytes are read from `value`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, length as u32) };
    nix::errno::Errno::result(result).map(drop)?;
    Ok(())
}

/// The next packet of a socket, as `parse` has it; never anything without one.
async fn read(
    socket: Option<&AsyncFd<OwnedFd>>,
    parse: fn(&[u8]) -> Option<Told>,
) -> io::Result<Option<Told>> {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    loop {
        let mut ready = socket.readable().await?;
        let mut bytes = [0; READ];
        let take = |socket: &AsyncFd<OwnedFd>| {
            let descriptor = socket.get_ref().as_fd().as_raw_fd();
            Ok(recv(descriptor, &mut bytes, MsgFlags::MSG_DONTWAIT)?)
        };
        match ready.try_io(take) {
            Ok(Ok(length)) => return Ok(bytes.get(..length).and_then(parse)),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
}

/// An IPv4 packet with ICMP in it: "fragmentation needed" of a packet that this host has sent into a tunnel.
fn parse_v4(packet: &[u8]) -> Option<Told> {
    let (header, message) = split_v4(packet)?;
    let (icmp, quoted) = message.split_at_checked(8)?;
    if icmp[..2] != [ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED] {
        return None;
    }
    let (inner, _) = split_v4(quoted)?;
    // Who hears of it is who has sent it.
    let is_ours = inner.get(12..16)? == header.get(16..20)?;
    let to: [u8; 4] = inner.get(16..20)?.try_into().ok()?;
    (is_ours && is_tunnel(inner[9])).then(|| Told {
        to: Ipv4Addr::from(to).into(),
        mtu: u32::from(u16::from_be_bytes([icmp[6], icmp[7]])),
    })
}

/// Header and what follows it.
fn split_v4(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = packet.first()?;
    let length = usize::from(first & 15) * 4;
    if first >> 4 != 4 || length < 20 {
        return None;
    }
    packet.split_at_checked(length)
}

/// An ICMPv6 message, as the kernel hands it over: "packet too big" of a packet into a tunnel. The kernel has checked
/// that it was sent to this host.
fn parse_v6(message: &[u8]) -> Option<Told> {
    let (icmp, quoted) = message.split_at_checked(8)?;
    let header = quoted.get(..40)?;
    if icmp[0] != ICMP6_TOO_BIG || header[0] >> 4 != 6 || !is_tunnel(header[6]) {
        return None;
    }
    let to: [u8; 16] = header[24..40].try_into().ok()?;
    Some(Told {
        to: Ipv6Addr::from(to).into(),
        mtu: u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]]),
    })
}

const fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, IPV4_INSIDE | IPV6_INSIDE | UDP)
}

/// What has been learned of ways, by where they lead.
#[derive(Debug, Default)]
pub struct Learned {
    paths: HashMap<IpAddr, (u32, Instant)>,
}

impl Learned {
    /// Takes in a router's word of a way whose packets may be `so_far` bytes long so far. True when it is news.
    pub fn note(&mut self, told: Told, so_far: u32, now: Instant) -> bool {
        let least = if told.to.is_ipv4() {
            LEAST_V4
        } else {
            LEAST_V6
        };
        let mtu = told.mtu.max(least);
        if mtu >= so_far {
            return false;
        }
        self.paths.insert(told.to, (mtu, now + KEPT));
        true
    }

    /// Largest packet that gets to this address, as far as any router has said.
    pub fn mtu(&self, address: IpAddr) -> Option<u32> {
        self.paths.get(&address).map(|(mtu, _)| *mtu)
    }

    /// Forgets what is too old, and all addresses but these.
    pub fn keep(&mut self, watched: &BTreeSet<IpAddr>, now: Instant) {
        self.paths
            .retain(|address, (_, until)| *until > now && watched.contains(address));
    }

    /// When something will be too old.
    pub fn next(&self) -> Option<Instant> {
        self.paths.values().map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11));

    /// A router's error to 10.0.0.1 about a packet of `protocol` from `source` to the backend.
    fn error_v4(kind: [u8; 2], mtu: u16, source: [u8; 4], protocol: u8) -> Vec<u8> {
        let header = |protocol: u8, from: [u8; 4], to: [u8; 4]| {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[9] = protocol;
            header[12..16].copy_from_slice(&from);
            header[16..].copy_from_slice(&to);
            header
        };
        let mut packet = header(1, [10, 9, 9, 9], [10, 0, 0, 1]).to_vec();
        packet.extend(kind);
        packet.extend([0; 4]);
        packet.extend(mtu.to_be_bytes());
        packet.extend(header(protocol, source, [10, 0, 0, 11]));
        packet.extend([0; 8]);
        packet
    }

    fn error_v6(kind: u8, mtu: u32, protocol: u8) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        let mut header = [0; 40];
        header[0] = 0x60;
        header[6] = protocol;
        header[39] = 11;
        message.extend(header);
        message
    }

    #[test]
    fn an_error_about_a_tunnel_is_understood() {
        let ours = [10, 0, 0, 1];
        let told = Some(Told {
            to: BACKEND,
            mtu: 1400,
        });
        for protocol in [4, 41, 17] {
            assert_eq!(parse_v4(&error_v4([3, 4], 1400, ours, protocol)), told);
            let to = Ipv6Addr::from_bits(11).into();
            let told = Some(Told { to, mtu: 1400 });
            assert_eq!(parse_v6(&error_v6(2, 1400, protocol)), told);
        }
        let others = [
            error_v4([3, 1], 1400, ours, 4),
            error_v4([11, 0], 1400, ours, 4),
            error_v4([3, 4], 1400, [10, 0, 0, 2], 4),
            error_v4([3, 4], 1400, ours, 6),
        ];
        for other in others {
            assert_eq!(parse_v4(&other), None, "{other:?}");
        }
        assert_eq!(parse_v6(&error_v6(1, 1400, 4)), None);
        assert_eq!(parse_v6(&error_v6(2, 1400, 6)), None);
    }

    #[test]
    fn what_is_cut_off_says_nothing() {
        // The quoted header is all that is wanted of the packet.
        let (v4, v6) = (
            error_v4([3, 4], 1400, [10, 0, 0, 1], 4),
            error_v6(2, 1400, 4),
        );
        for length in 0..v4.len() {
            assert_eq!(parse_v4(&v4[..length]).is_some(), length >= 48, "{length}");
        }
        for length in 0..v6.len() {
            assert_eq!(parse_v6(&v6[..length]), None, "{length}");
        }
    }

    #[test]
    fn only_what_is_less_is_news_and_nothing_is_too_little() {
        let (mut learned, now) = (Learned::default(), Instant::now());
        let told = |mtu| Told { to: BACKEND, mtu };
        assert!(!learned.note(told(1500), 1500, now));
        assert_eq!(learned.mtu(BACKEND), None);
        assert!(learned.note(told(1400), 1500, now));
        assert_eq!(learned.mtu(BACKEND), Some(1400));
        assert!(learned.note(told(0), 1400, now));
        assert_eq!(learned.mtu(BACKEND), Some(LEAST_V4));
        assert!(!learned.note(told(68), LEAST_V4, now));
        let v6 = Told {
            to: Ipv6Addr::from_bits(11).into(),
            mtu: 68,
        };
        assert!(learned.note(v6, 1500, now));
        assert_eq!(learned.mtu(v6.to), Some(LEAST_V6));
    }

    #[test]
    fn what_is_old_or_not_watched_is_forgotten() {
        let (mut learned, now) = (Learned::default(), Instant::now());
        let told = Told {
            to: BACKEND,
            mtu: 1400,
        };
        learned.note(told, 1500, now);
        assert_eq!(learned.next(), Some(now + KEPT));
        let watched = BTreeSet::from([BACKEND]);
        learned.keep(&watched, now + KEPT / 2);
        assert_eq!(learned.mtu(BACKEND), Some(1400));
        learned.keep(&watched, now + KEPT);
        assert_eq!(learned.mtu(BACKEND), None);
        learned.note(told, 1500, now);
        learned.keep(&BTreeSet::new(), now);
        assert_eq!((learned.mtu(BACKEND), learned.next()), (None, None));
    }
}
