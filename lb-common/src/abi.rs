//! Layout of the maps. Both sides use these very types; sizes and offsets are asserted below.

use crate::{Addr, hash::HashKey, limits::BACKEND_ID_MAX, mask};

/// One slot of a service's table: who gets new flows (`current`), who owns flows without an entry (`base`).
///
/// Bits 0 to 23 `current`, 24 [`Slot::EXCEPTIONS`], 25 [`Slot::FORMERS`], 32 to 55 `base`. One word, so that it is read and
/// written whole.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot(pub u64);

impl Slot {
    /// Flows may live in this slot whose backend is not `base`: the flow table must be asked.
    pub const EXCEPTIONS: u64 = 1 << 24;

    /// Others than `base` and `current` have been `current` since the base was settled: [`Formers`] names them. Stands only
    /// beside [`Slot::EXCEPTIONS`].
    pub const FORMERS: u64 = 1 << 25;

    /// A slot with these owners. Ids above [`BACKEND_ID_MAX`] are cut off.
    #[inline(always)]
    pub const fn new(current: u32, base: u32, exceptions: bool) -> Self {
        let flag = if exceptions { Self::EXCEPTIONS } else { 0 };
        Self((current & BACKEND_ID_MAX) as u64 | flag | (((base & BACKEND_ID_MAX) as u64) << 32))
    }

    /// Backend of flows that begin now; 0 for none.
    #[inline(always)]
    pub const fn current(self) -> u32 {
        self.0 as u32 & BACKEND_ID_MAX
    }

    /// Backend of flows that have no entry; 0 for none.
    #[inline(always)]
    pub const fn base(self) -> u32 {
        (self.0 >> 32) as u32 & BACKEND_ID_MAX
    }

    /// Whether a change has moved it.
    #[inline(always)]
    pub const fn is_moved(self) -> bool {
        self.current() != self.base()
    }

    /// Whether the exception flag stands.
    #[inline(always)]
    pub const fn has_exceptions(self) -> bool {
        self.0 & Self::EXCEPTIONS != 0
    }

    /// The same with [`Slot::FORMERS`].
    #[must_use]
    pub const fn with_formers(self) -> Self {
        Self(self.0 | Self::EXCEPTIONS | Self::FORMERS)
    }

    /// Whether others have been `current` since the base was settled.
    #[inline(always)]
    pub const fn has_formers(self) -> bool {
        self.0 & Self::FORMERS != 0
    }

    /// Whether a flow in it may be on another backend than its base, by what the slot alone says.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.is_moved() || self.has_formers()
    }

    /// Whether a packet in it needs the flow table: it is moved, or has exceptions. One comparison for both.
    #[inline(always)]
    pub const fn is_tracked(self) -> bool {
        (self.0 ^ (self.0 >> 32)) & (Self::EXCEPTIONS | BACKEND_ID_MAX as u64) != 0
    }
}

/// One service, by service id.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceRecord {
    /// Place of its table among all slots: first slot in the upper half, number of slots in the lower.
    /// One word: storing it publishes a table. 0 slots: the service does not exist.
    pub table: u64,
    /// Key of its flow hash.
    pub key: HashKey,
    /// The virtual address.
    pub vip: Addr,
    /// The virtual port, or the first of several, network order as loaded.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`mode`].
    pub mode: u8,
    /// [`service_flags`].
    pub flags: u32,
    /// Ticks after which an unseen flow has ended.
    pub idle_ticks: u32,
    /// Ticks after which an unseen closing flow has ended.
    pub linger_ticks: u32,
    /// Most flows that a CPU lets begin in a second; 0 for no limit.
    pub flows_per_second: u32,
    /// Last port of a service on several, network order as loaded; 0 for a service on one port. Such a service keeps the
    /// port that the client chose.
    pub last_port: u16,
    /// Kind of the TCP option that names the client to backends ([`mode::FULL_NAT`]); 0 for none.
    pub client_option: u8,
    /// How long its flows' epochs are, in ticks, as a power of two ([`crate::recent::shift`]).
    pub epoch_shift: u8,
    /// With [`service_flags::AFFINITY_CLIENT`]: the bits of a client's address that choose its slot.
    pub affinity_mask: Addr,
    /// UDP port that backends decapsulate at ([`mode::GUE`]), network order as loaded.
    pub tunnel_port: u16,
    /// Configuration that connection ids follow ([`service_flags::QUIC`]): the upper three bits of their first octet.
    pub quic_rotation: u8,
    /// Bytes of the server id in them, at most [`crate::quic::SERVER_ID_MAX`].
    pub quic_length: u8,
    /// Zero.
    pub reserved_more: [u32; 11],
}

impl ServiceRecord {
    /// Whether it is on several ports, and this (network order as loaded) is one of them.
    #[inline(always)]
    pub const fn ranges_over(&self, port: u16) -> bool {
        let port = u16::from_be(port);
        port >= u16::from_be(self.port) && port <= u16::from_be(self.last_port)
    }

    /// Has unseen flows end after so many ticks; what follows from that is set as well.
    pub const fn set_idle(&mut self, ticks: u32) {
        self.idle_ticks = ticks;
        self.epoch_shift = crate::recent::shift(ticks);
    }

    /// The word that names a table.
    pub const fn table_word(first: u32, slots: u32) -> u64 {
        ((first as u64) << 32) | slots as u64
    }
}

/// Forwarding modes ([`ServiceRecord::mode`]).
pub mod mode {
    /// Destination MAC rewritten (DSR).
    pub const L2: u8 = 1;
    /// Destination address and port rewritten; answers come through the node.
    pub const NAT: u8 = 2;
    /// Like `NAT`, and the source is the node's own.
    pub const FULL_NAT: u8 = 3;
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213); backends answer directly.
    pub const IPIP: u8 = 4;
    /// Generic UDP encapsulation, variant 1: the IP packet follows the UDP header (draft-ietf-intarea-gue section 4).
    pub const GUE: u8 = 5;

    /// Whether packets get an outer header.
    #[inline(always)]
    pub const fn is_tunnel(mode: u8) -> bool {
        mode == IPIP || mode == GUE
    }

    /// Whether the node sees the backends' answers.
    #[inline(always)]
    pub const fn is_two_way(mode: u8) -> bool {
        mode == NAT || mode == FULL_NAT
    }
}

/// Bits of [`ServiceRecord::flags`].
pub mod service_flags {
    /// Every flow is listed in the flow table.
    pub const TRACK_ALL: u32 = 1;
    /// Only the client's address (under the service's `affinity_mask`) chooses the slot.
    pub const AFFINITY_CLIENT: u32 = 2;
    /// Its flows have no opening packet: whatever is not known begins a flow. Needs [`TRACK_ALL`].
    pub const DATAGRAM: u32 = 4;
    /// Its datagrams are QUIC.
    pub const QUIC: u32 = 8;
    /// Echo requests to its address are answered, where the address index names it for its address.
    pub const ECHO: u32 = 16;
    /// Its backends take tunnels apart with `ebb decap`, which can be asked to send back what no connection is there for.
    pub const ASKS: u32 = 32;
}

/// Places of the tail-called programs in the map `JUMPS`.
pub mod jump {
    /// Frames with tags, options or extension headers; decides what of them is a fragment.
    pub const THOROUGH: u32 = 0;
    /// ICMP and ICMPv6.
    pub const ICMP: u32 = 1;
    /// Packets that do not fit their tunnel, after [`super::TooBig`] was laid out for it.
    pub const TOO_BIG: u32 = 2;
    /// Fragments, the first of each packet.
    pub const FRAGMENT: u32 = 3;
    /// Later fragments.
    pub const FRAGMENT_LATER: u32 = 4;
    /// QUIC.
    pub const QUIC: u32 = 5;
    /// Services on several ports.
    pub const RANGES: u32 = 6;
    /// What can not be steered at once: openings, closings, flows without an entry in a tracked slot.
    pub const WHOLE: u32 = 7;
    /// Packets to the backends of `full-nat` services, after [`crate::full_nat::Handed`] was laid out for it.
    pub const FULL_NAT: u32 = 8;
    /// Their answers; likewise.
    pub const FULL_NAT_REPLY: u32 = 12;
    /// ICMP errors about their flows; likewise.
    pub const FULL_NAT_ERROR: u32 = 13;
    /// Packets whose backend is asked whether it has their connection, after [`crate::full_nat::Handed`] was laid out for
    /// it.
    pub const ASK: u32 = 14;
    /// Those that were sent back.
    pub const SENT_BACK: u32 = 15;
    /// Of the tracing instance: says what became of a packet.
    pub const REPORT: u32 = 9;
    /// Of the tracing instance: its own balancer.
    pub const DECIDE: u32 = 10;
    /// Of the tracing instance: the balancer of the plain one, for packets that nobody asked for.
    pub const PLAIN: u32 = 11;
    /// First fragments to services on several ports.
    pub const FRAGMENT_RANGES: u32 = 16;
    /// Answers that say, or may say, where a flow is that has lost its entry, after [`crate::full_nat::Handed`] was laid out
    /// for it.
    pub const JUDGE: u32 = 17;
    /// First fragments to the backends of `full-nat` services, after [`crate::full_nat::Handed`] was laid out for it.
    pub const FULL_NAT_FIRST: u32 = 18;
    /// First fragments of their answers; likewise.
    pub const FULL_NAT_FIRST_REPLY: u32 = 19;
    /// Later fragments of either; likewise.
    pub const FULL_NAT_LATER: u32 = 20;
    /// Packets that begin a flow of a `full-nat` service for which no port is free, after [`crate::full_nat::Handed`] and
    /// [`crate::full_nat::Flow`] were laid out for it.
    pub const FULL_NAT_DISPLACE: u32 = 21;
    /// How many places there are.
    pub const PLACES: u32 = 32;
    /// What is loaded into which place.
    pub const PROGRAMS: &[(u32, &str)] = &[
        (THOROUGH, "thorough"),
        (ICMP, "icmp"),
        (TOO_BIG, "too_big"),
        (FRAGMENT, "fragment"),
        (FRAGMENT_LATER, "fragment_later"),
        (FRAGMENT_RANGES, "fragment_ranges"),
        (QUIC, "quic"),
        (RANGES, "ranges"),
        (WHOLE, "whole"),
        (FULL_NAT, "full_nat"),
        (FULL_NAT_REPLY, "full_nat_reply"),
        (FULL_NAT_ERROR, "full_nat_error"),
        (FULL_NAT_FIRST, "full_nat_first"),
        (FULL_NAT_FIRST_REPLY, "full_nat_first_reply"),
        (FULL_NAT_LATER, "full_nat_later"),
        (FULL_NAT_DISPLACE, "full_nat_displace"),
        (ASK, "ask"),
        (SENT_BACK, "sent_back"),
        (JUDGE, "judge"),
    ];
    /// What the tracing instance has besides.
    pub const TRACING: &[(u32, &str)] = &[(REPORT, "report"), (DECIDE, "ebb")];
}

/// One backend, by backend id.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackendRecord {
    /// Its address.
    pub address: Addr,
    /// Destination and source MAC of the frame that reaches it.
    pub ethernet: [u8; 12],
    /// Interface that the frame leaves by.
    pub ifindex: u32,
    /// [`backend_flags`].
    pub flags: u32,
    /// Its port, network order as loaded; 0: the one that the client chose.
    pub port: u16,
    /// Largest packet its next hop takes, in bytes from the IP header on.
    pub mtu: u16,
    /// Flows whose cut position ([`cut_position`]) is below this are cut, when a cut flag is set: 0 none, all ones all.
    pub cut: u32,
    /// What a checksum changes by when the VIP becomes this address ([`crate::checksum::address_delta`]).
    pub to_backend: u32,
    /// The same the other way.
    pub to_client: u32,
    /// Service it belongs to.
    pub service: u32,
    /// 802.1Q tag of the frame that reaches it (host order, 12 bits), with [`backend_flags::TAGGED`].
    pub vlan: u16,
    /// Largest packet that can be sent to it: `mtu` less `outer`.
    pub room: u16,
    /// Bytes that a tunnel puts in front of a packet to it ([`crate::tunnel::overhead`]); 0 without a tunnel. Says which
    /// headers they are, too.
    pub outer: u16,
    /// Zero.
    pub reserved: u16,
    /// Source address of the outer header, in the tunnel modes; in [`mode::FULL_NAT`] the node's own address towards it.
    /// Of the family of `address`.
    pub tunnel_source: Addr,
    /// Sum over what is the same in every outer header to it ([`crate::tunnel::fixed_sum`]).
    pub tunnel_sum: u32,
    /// Zero.
    pub reserved_word: u32,
    /// Zero.
    pub reserved_more: [u64; 5],
}

impl BackendRecord {
    /// Sets what follows from its address, its `mtu` and the [`mode`] of its service: `room` and `outer`.
    pub fn set_room(&mut self, mode: u8) {
        self.outer = if mode::is_tunnel(mode) {
            crate::tunnel::overhead(mode, self.address.is_v4())
        } else {
            0
        };
        self.room = self.mtu.saturating_sub(self.outer);
    }

    /// What steering needs of it.
    #[inline(always)]
    pub const fn standing(&self) -> Standing {
        Standing {
            flags: self.flags,
            cut: self.cut,
        }
    }

    /// Whether the flow with this hash is cut now, as [`Standing::cuts`] says: at no cost for the packets of a backend that cuts none.
    #[inline(always)]
    pub fn cuts(&self, hash: u64) -> bool {
        self.flags & backend_flags::CUTS != 0 && self.standing().cuts(hash) != 0
    }
}

/// Where in `0..2^32` a flow stands in the order in which flows are cut at a deadline.
#[inline(always)]
pub const fn cut_position(hash: u64) -> u32 {
    // Odd multiplier: a bijection of the lower half, so that neighbours in a bucket are not cut together.
    (hash as u32).wrapping_mul(0x9e37_79b1)
}

/// Whether a backend is there, and which of its flows are cut; of one that is not there all zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Its [`backend_flags`].
    pub flags: u32,
    /// [`BackendRecord::cut`].
    pub cut: u32,
}

impl Standing {
    /// All bits where flows of it can go on ([`backend_flags::can_have_flows`]), else none.
    #[inline(always)]
    pub fn is_there(self) -> u64 {
        let both = backend_flags::VALID | backend_flags::ENDED;
        mask::zero((self.flags & both ^ backend_flags::VALID) as u64)
    }

    /// All bits where the flow with this hash is cut now, at the deadline of its drain or because it has died; else none.
    #[inline(always)]
    pub fn cuts(self, hash: u64) -> u64 {
        // The last of all positions is below the last cut, too.
        let below = self.cut as i64 + ((self.cut as i64 + 1) >> 32);
        let is_due = mask::negative(cut_position(hash) as i64 - below);
        mask::any(self.flags as u64, backend_flags::CUTS as u64) & is_due
    }

    /// The same, without those that have died.
    #[inline(always)]
    pub fn is_past_deadline(self, hash: u64) -> bool {
        self.flags & backend_flags::DEAD == 0 && self.cuts(hash) != 0
    }
}

/// Bits of [`BackendRecord::flags`].
pub mod backend_flags {
    /// The record is in use.
    pub const VALID: u32 = 1;
    /// It takes new flows.
    pub const ACCEPTING: u32 = 2;
    /// `ethernet`, `ifindex` and `mtu` are good.
    pub const NEXT_HOP: u32 = 4;
    /// It is gone: flows that would go to it are sent to the current backend, which resets them.
    pub const ENDED: u32 = 8;
    /// Flows below `cut` are answered with a reset.
    pub const CUT_RESET: u32 = 16;
    /// Flows below `cut` are dropped.
    pub const CUT_DROP: u32 = 32;
    /// Its frames carry the tag `vlan`.
    pub const TAGGED: u32 = 64;
    /// With [`CUT_RESET`]: not a deadline cuts its flows, it has died.
    pub const DEAD: u32 = 128;

    /// Either: flows below `cut` are cut.
    pub const CUTS: u32 = CUT_RESET | CUT_DROP;

    /// Whether there is such a backend, and flows of it can go on.
    #[inline(always)]
    pub const fn can_have_flows(flags: u32) -> bool {
        flags & (VALID | ENDED) == VALID
    }

    /// Whether a packet can be sent to it without further questions, and without a tag.
    #[inline(always)]
    pub const fn is_ready(flags: u32) -> bool {
        flags & (VALID | NEXT_HOP | ENDED | CUTS | TAGGED) == VALID | NEXT_HOP
    }
}

/// The node's only control record.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControlRecord {
    /// The live address index, a [`crate::index::Live`].
    pub index: u64,
    /// The node's own part of the index's seed, an odd number.
    pub index_seed: u64,
    /// [`crate::limits::ABI_VERSION`] of whoever made the maps; 0 while they are new.
    pub abi_version: u32,
    /// Ticks of the kernel's clock in a second, as measured.
    pub ticks_per_second: u32,
    /// Most adoptions a CPU makes in one tick.
    pub adoptions_per_tick: u32,
    /// Most handshakes a CPU records in one tick.
    pub openings_per_tick: u32,
    /// Most flows that a CPU lets begin in a second, over all services; 0 for no limit.
    pub flows_per_second: u32,
    /// Which of the two tries of client prefixes is live: 1 or 2, 0 for none.
    pub clients: u32,
    /// [`control_flags`].
    pub flags: u32,
    /// How many VLAN devices the map `VLANS` lists.
    pub vlans: u32,
    /// What the daemon knows of flows that were lost. It lies with what it is about, so that it outlives the daemon, and
    /// ends with the maps.
    pub known: Known,
}

/// [`ControlRecord::known`]: for the daemon alone, no program asks for it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Entries of the flow table that the last look has left in use, plus one; 0 in maps that nobody has looked at.
    pub entries: u32,
    /// When entries were lost last, Unix seconds, rounded up; 0 for never.
    pub lost_s: u32,
    /// Since when openings and closes are counted, where flows may be older than that, Unix seconds, rounded up; 0 where
    /// the counters know all.
    pub counted_since_s: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`ControlRecord::flags`].
pub mod control_flags {
    /// Later fragments to a service whose first one has not been seen are dropped, not passed to the kernel.
    pub const DROP_EARLY_FRAGMENTS: u32 = 1;
    /// There are services with [`service_flags::ASKS`]: packets may be sent back.
    pub const ASKS: u32 = 2;
}

/// A VLAN device (the kernel's `8021q`), by its interface index: frames leave by the interface below it, with its tag.
/// XDP can not send by the device itself.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VlanDevice {
    /// The interface below it; 0 where a tag alone does not say how frames leave (stacked, 802.1ad, of another
    /// namespace).
    pub parent: u32,
    /// VLAN id, host order.
    pub tag: u32,
}

/// A CPU's count of what it did for a backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackendStats {
    /// Packets sent to it.
    pub packets: u64,
    /// Bytes of the frames sent to it, as they arrived.
    pub bytes: u64,
    /// Flows opened on it.
    pub opened: u64,
    /// Flows opened on it that were seen to close, each once.
    pub closed: u64,
    /// Flows entered into the flow table at their first packet in a moved slot.
    pub adopted: u64,
    /// Openings seen again.
    pub retransmits: u64,
    /// Packets it answered with (where ebb sees them).
    pub reply_packets: u64,
    /// Bytes of those.
    pub reply_bytes: u64,
}

/// A CPU's allowance of new entries in the current tick.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowance {
    /// Tick that the counts belong to.
    pub tick: u32,
    /// Adoptions made in it.
    pub adoptions: u32,
    /// Handshakes recorded in it.
    pub openings: u32,
    /// Packets in it that were answered with an error.
    pub answers: u32,
}

/// What the program for packets that do not fit their tunnel is told of one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TooBig {
    /// Its service.
    pub service: u32,
    /// Where in the frame its IP header begins.
    pub network: u32,
    /// Largest packet that would fit, in bytes from the IP header on.
    pub mtu: u32,
    /// Length of the frame.
    pub length: u32,
}

/// Answer of the program `explain`: where a packet would go, without any trace left behind.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Explanation {
    /// An [`crate::outcome::Outcome`].
    pub outcome: u32,
    /// Service, 0 for none.
    pub service: u32,
    /// Slot within the service's table.
    pub slot_index: u32,
    /// Backend, 0 for none.
    pub backend: u32,
    /// The slot as it stands.
    pub slot: u64,
    /// Flow hash.
    pub hash: u64,
}

/// The kernel's clocks, read together by the program `clock`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClockReading {
    /// Ticks (`bpf_jiffies64`).
    pub ticks: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub nanoseconds: u64,
}

macro_rules! layout {
    ($($type:ty: size $size:literal, $($field:ident at $offset:literal),*;)*) => {$(
        const _: () = assert!(size_of::<$type>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)*
    )*};
}

layout! {
    ServiceRecord: size 192, table at 0, key at 8, vip at 88, port at 104, mode at 107, flags at 108, idle_ticks at 112, last_port at 124, affinity_mask at 128, tunnel_port at 144;
    BackendRecord: size 128, address at 0, ethernet at 16, ifindex at 28, flags at 32, port at 36, cut at 40, to_backend at 44, service at 52, vlan at 56, room at 58, outer at 60, tunnel_source at 64, tunnel_sum at 80;
    ControlRecord: size 64, index at 0, index_seed at 8, abi_version at 16, ticks_per_second at 20, known at 48;
    Known: size 16, entries at 0, lost_s at 4, counted_since_s at 8;
    BackendStats: size 64, packets at 0, reply_bytes at 56;
    Allowance: size 16, tick at 0;
    TooBig: size 16, service at 0;
    VlanDevice: size 8, parent at 0, tag at 4;
    Explanation: size 32, outcome at 0, slot at 16;
    ClockReading: size 16, ticks at 0;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slot_keeps_what_it_was_given(
            current in 0..=BACKEND_ID_MAX, base in 0..=BACKEND_ID_MAX, exceptions: bool,
        ) {
            let slot = Slot::new(current, base, exceptions);
            prop_assert_eq!((slot.current(), slot.base(), slot.has_exceptions()), (current, base, exceptions));
            prop_assert_eq!(slot.is_moved(), current != base);
            prop_assert_eq!(slot.is_tracked(), current != base || exceptions);
        }
    }

    #[test]
    fn cut_positions_are_a_bijection_on_a_sample() {
        let mut seen = std::collections::BTreeSet::new();
        for low in 0..10_000u64 {
            assert!(seen.insert(cut_position(low)));
        }
    }
}
