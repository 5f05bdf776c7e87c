//! What `ebb trace` and the tracing programs tell each other: which packets are wanted, and what became of each.

use crate::{Addr, outcome::Outcome};

/// Most bytes of a frame that a record holds, each of as it came and as it left. A frame that the kernel hands to XDP
/// lies in one page.
pub const FRAME_MAX: usize = 4096;

/// Who looks on: the object's constant `TRACE`. Its code for the others is none that the verifier keeps.
pub mod look {
    /// Nobody.
    pub const NOBODY: u32 = 0;
    /// `ebb trace`.
    pub const TRACE: u32 = 1;
    /// The daemon's log (`ebb run --log-packets`).
    pub const LOG: u32 = 2;
}

/// Bits of [`TraceFilter::flags`].
pub mod filter_flags {
    /// Only packets that belong to a service.
    pub const SERVED: u32 = 1;
    /// The prefix is one of IPv6 addresses, as whose part the IPv4 ones are written.
    pub const PREFIX_V6: u32 = 2;
}

/// Which packets a trace shows. Zero in a field leaves it open, but in `outcomes`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TraceFilter {
    /// Outcomes, a bit each (`1 << outcome`).
    pub outcomes: u64,
    /// Source or destination lies in this prefix: its address.
    pub prefix: Addr,
    /// And its mask.
    pub mask: Addr,
    /// Service.
    pub service: u32,
    /// Backend.
    pub backend: u32,
    /// [`filter_flags`].
    pub flags: u32,
    /// Bytes to keep of each frame as it came.
    pub snap_came: u32,
    /// Bytes to keep of each frame as it left.
    pub snap_left: u32,
    /// Source or destination port, network order as loaded.
    pub port: u16,
    /// IP protocol number; that of ICMP stands for ICMPv6 as well.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

impl TraceFilter {
    /// Everything, and no bytes of it.
    pub const ALL: Self = Self {
        outcomes: u64::MAX,
        prefix: Addr { high: 0, low: 0 },
        mask: Addr { high: 0, low: 0 },
        service: 0,
        backend: 0,
        flags: 0,
        snap_came: 0,
        snap_left: 0,
        port: 0,
        protocol: 0,
        reserved: 0,
    };

    /// Whether a packet may be wanted, as far as its headers tell.
    #[inline(always)]
    pub fn admits(&self, packet: &TraceEvent) -> bool {
        if self.protocol != 0 && self.protocol != common_protocol(packet.protocol) {
            return false;
        }
        if self.port != 0 && self.port != packet.source_port && self.port != packet.destination_port
        {
            return false;
        }
        let is_any =
            self.mask.high | self.mask.low == 0 && self.flags & filter_flags::PREFIX_V6 == 0;
        is_any || self.covers(packet, &packet.source) || self.covers(packet, &packet.destination)
    }

    #[inline(always)]
    fn covers(&self, packet: &TraceEvent, address: &Addr) -> bool {
        packet.known & known::NETWORK != 0
            && (self.flags & filter_flags::PREFIX_V6 == 0 || !address.is_v4())
            && (address.high & self.mask.high) ^ self.prefix.high == 0
            && (address.low & self.mask.low) ^ self.prefix.low == 0
    }

    /// Whether it is wanted, what became of it being known.
    #[inline(always)]
    pub fn wants(&self, decided: &TraceEvent) -> bool {
        (self.outcomes >> (decided.outcome & 63)) & 1 != 0
            && (self.service == 0 || self.service == decided.service)
            && (self.backend == 0 || self.backend == decided.backend)
            && (self.flags & filter_flags::SERVED == 0 || decided.service != 0)
    }
}

const _: () = assert!(Outcome::COUNT <= 64);

/// ICMPv6 by the number of ICMP.
#[inline(always)]
const fn common_protocol(protocol: u8) -> u8 {
    if protocol == 58 { 1 } else { protocol }
}

/// Bits of [`TraceEvent::known`].
pub mod known {
    /// Addresses and protocol: it is an IP packet whose header could be read.
    pub const NETWORK: u32 = 1;
    /// Ports (of ICMP: type and code).
    pub const TRANSPORT: u32 = 2;
    /// It is a fragment.
    pub const FRAGMENT: u32 = 4;
}

/// What became of one packet. In the ring the frame's bytes follow: `captured_came` as it came, then `captured_left` as
/// it left.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TraceEvent {
    /// When it came, nanoseconds of CLOCK_MONOTONIC.
    pub came: u64,
    /// When the program was done with it.
    pub left: u64,
    /// Source address, as it came.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Service, 0 for none.
    pub service: u32,
    /// An [`Outcome`].
    pub outcome: u32,
    /// Backend, 0 for none.
    pub backend: u32,
    /// XDP_DROP (1), XDP_PASS (2), XDP_TX (3) or XDP_REDIRECT (4).
    pub verdict: u32,
    /// Interface that it came by.
    pub ifindex: u32,
    /// Interface that it was sent out by; 0 where it was not.
    pub exit: u32,
    /// Length of the frame as it came.
    pub length: u32,
    /// Length of the frame as it left; 0 where it did not.
    pub length_left: u32,
    /// Bytes kept of it as it came.
    pub captured_came: u32,
    /// Bytes kept of it as it left.
    pub captured_left: u32,
    /// [`known`].
    pub known: u32,
    /// Source port, network order as loaded; of ICMP the type, in the same form.
    pub source_port: u16,
    /// Destination port, network order as loaded; of ICMP the code.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags.
    pub flags: u8,
    /// Zero.
    pub reserved: [u16; 3],
}

/// A CPU's counts of a trace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TraceCounts {
    /// Records handed over.
    pub shown: u64,
    /// Records that found no room.
    pub lost: u64,
}

const _: () = assert!(size_of::<TraceFilter>() == 64);
const _: () = assert!(size_of::<TraceEvent>() == 104);
const _: () = assert!(core::mem::offset_of!(TraceEvent, service) == 48);
const _: () = assert!(size_of::<TraceCounts>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> TraceEvent {
        TraceEvent {
            source: Addr::from_v4([192, 0, 2, 7]),
            destination: Addr::from_v4([203, 0, 113, 10]),
            source_port: 40_000_u16.to_be(),
            destination_port: 80_u16.to_be(),
            protocol: 6,
            known: known::NETWORK | known::TRANSPORT,
            ..TraceEvent::default()
        }
    }

    #[test]
    fn an_open_filter_admits_everything() {
        assert!(TraceFilter::ALL.admits(&packet()));
        assert!(TraceFilter::ALL.admits(&TraceEvent::default()));
    }

    #[test]
    fn either_end_may_lie_in_the_prefix() {
        let within = |address, bits: u8| TraceFilter {
            prefix: Addr::from_v4(address),
            mask: Addr::prefix_mask(96 + bits),
            ..TraceFilter::ALL
        };
        assert!(within([192, 0, 2, 0], 24).admits(&packet()));
        assert!(within([203, 0, 113, 10], 32).admits(&packet()));
        assert!(!within([203, 0, 113, 11], 32).admits(&packet()));
        assert!(within([0; 4], 0).admits(&packet()));
        let v6 = TraceEvent {
            source: Addr::from_bytes([0x20; 16]),
            destination: Addr::from_bytes([0x20; 16]),
            ..packet()
        };
        assert!(!within([0; 4], 0).admits(&v6));
        let all_v6 = TraceFilter {
            flags: filter_flags::PREFIX_V6,
            ..TraceFilter::ALL
        };
        assert!(all_v6.admits(&v6));
        assert!(!all_v6.admits(&packet()));
        // What is no IP packet lies in no prefix, not even where its address would be zero.
        assert!(!within([0; 4], 0).admits(&TraceEvent::default()));
    }

    #[test]
    fn either_port_and_one_name_for_icmp() {
        let port = |port: u16| TraceFilter {
            port: port.to_be(),
            ..TraceFilter::ALL
        };
        assert!(port(80).admits(&packet()));
        assert!(port(40_000).admits(&packet()));
        assert!(!port(81).admits(&packet()));
        let icmp = TraceFilter {
            protocol: 1,
            ..TraceFilter::ALL
        };
        let of = |protocol| TraceEvent {
            protocol,
            ..packet()
        };
        assert!(icmp.admits(&of(1)) && icmp.admits(&of(58)) && !icmp.admits(&of(6)));
    }

    #[test]
    fn what_became_of_it_decides_at_last() {
        let decided = TraceEvent {
            service: 3,
            backend: 7,
            outcome: Outcome::ForwardFlow as u32,
            ..packet()
        };
        let filter = TraceFilter {
            outcomes: 1 << Outcome::ForwardFlow as u32,
            service: 3,
            backend: 7,
            flags: filter_flags::SERVED,
            ..TraceFilter::ALL
        };
        assert!(filter.wants(&decided));
        for other in [
            TraceFilter {
                service: 4,
                ..filter
            },
            TraceFilter {
                backend: 8,
                ..filter
            },
            TraceFilter {
                outcomes: !filter.outcomes,
                ..filter
            },
        ] {
            assert!(!other.wants(&decided), "{other:?}");
        }
        let unserved = TraceEvent {
            service: 0,
            ..decided
        };
        let served = TraceFilter {
            flags: filter_flags::SERVED,
            ..TraceFilter::ALL
        };
        assert!(!served.wants(&unserved) && TraceFilter::ALL.wants(&unserved));
    }
}
