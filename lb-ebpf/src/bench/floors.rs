//! Floor programs: what a packet costs at least when it is handled in a certain way. Each does one thing more than
//! the one it is compared with, and nothing that a balancer would need besides.
//!
//! `#[inline(always)]`: else the program is a call of a function that does the work, which costs some 7 ns.

use aya_ebpf::{
    EbpfContext as _, bindings::xdp_action, helpers::generated::bpf_xdp_adjust_head, macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    Addr,
    checksum::fold,
    hash::{keyed, reduce},
};

use crate::{
    maps, parse,
    shared::{LARGE, OUTER_LENGTH, TABLE_SLOTS, floor_hash},
    word::{load8, load16, load32, load64},
};

const TCP: u64 = parse::TCP as u64;
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();

/// Destination and source MAC. A frame begins at a multiple of 4, in the test run as on a NIC; as bytes, each would
/// be moved on its own.
type Macs = [u32; 3];

/// What a floor reads of a TCP segment, after the checks that the verifier asks for and no more.
struct Flow {
    ethernet: *mut Macs,
    high: u64,
    low: u64,
    ports: u32,
}

impl Flow {
    #[inline(always)]
    fn parse(ctx: &XdpContext) -> Option<Self> {
        let (start, end) = (ctx.data(), ctx.data_end());
        let frame = start as *const u8;
        let ethernet = start as *mut Macs;
        // SAFETY: every read lies before the `end` that was compared with.
        unsafe {
            if start + 54 > end {
                return None;
            }
            match load16::<12>(frame) as u16 {
                IPV4 if load8::<14>(frame) == 0x45 && load8::<23>(frame) == TCP => Some(Self {
                    ethernet,
                    high: 0,
                    low: load32::<26>(frame),
                    ports: load32::<34>(frame) as u32,
                }),
                IPV6 if load8::<20>(frame) == TCP && start + 74 <= end => Some(Self {
                    ethernet,
                    high: load64::<22>(frame),
                    low: load64::<30>(frame),
                    ports: load32::<54>(frame) as u32,
                }),
                _ => None,
            }
        }
    }

    #[inline(always)]
    fn hash(&self) -> u64 {
        floor_hash(self.high, self.low, self.ports)
    }

    #[inline(always)]
    fn swap(&self) -> u32 {
        // SAFETY: `parse` has checked it.
        unsafe { swap(self.ethernet) }
    }

    /// To a backend: its MAC addresses, from its record.
    #[inline(always)]
    fn send(&self, backend: u64) -> Option<u32> {
        let record = maps::BACKENDS.get(backend as u32)?;
        let [a, b, c, _] = *record;
        // SAFETY: as above.
        unsafe { self.ethernet.write([a, b, c]) };
        Some(xdp_action::XDP_TX)
    }
}

/// An Ethernet header and the IPv4 header of a tunnel, in the words they are stored in.
#[repr(C, packed)]
struct Outer(Macs, u16, [u64; 2], u32);

/// Makes room for a tunnel's header.
#[inline(always)]
fn grow(ctx: &XdpContext) -> bool {
    // SAFETY: the context is the kernel's own.
    unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(OUTER_LENGTH as i32)) == 0 }
}

/// Puts a header in front of the packet, of which all but the length is as it stands in the map.
#[inline(always)]
fn encapsulate(ctx: &XdpContext, backend: u64) -> Option<u32> {
    let length = (ctx.data_end() - ctx.data()) - 14 + OUTER_LENGTH;
    let length = u64::from((length as u16).to_be());
    if !grow(ctx) {
        return None;
    }
    let [a, b, c, _] = *maps::BACKENDS.get(backend as u32)?;
    let outer = maps::OUTER.get(0)?;
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + size_of::<Outer>() > end {
        return None;
    }
    let check = !fold(outer[3] + length);
    let first = outer[0] | (length << 16);
    let second = outer[1] | (u64::from(check) << 16);
    // SAFETY: it lies before the `end` that was compared with.
    unsafe {
        (start as *mut Outer).write_unaligned(Outer(
            [a, b, c],
            IPV4,
            [first, second],
            outer[2] as u32,
        ));
    }
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
unsafe fn swap(ethernet: *mut Macs) -> u32 {
    unsafe {
        let [a, b, c] = ethernet.read();
        ethernet.write([
            (b >> 16) | (c << 16),
            (c >> 16) | (a << 16),
            (a >> 16) | (b << 16),
        ]);
    }
    xdp_action::XDP_TX
}

/// Counts a miss: it makes the row wrong.
#[cold]
fn miss() -> u32 {
    if let Some(state) = maps::STATE.get_ptr_mut(0) {
        // SAFETY: the map's only entry; one CPU alone runs the bench.
        unsafe { (*state).misses += 1 };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn or_miss(verdict: Option<u32>) -> u32 {
    match verdict {
        Some(verdict) => verdict,
        None => miss(),
    }
}

/// A slot of a small table.
#[inline(always)]
fn small(hash: u64) -> Option<u64> {
    maps::SLOTS.get(reduce(hash, TABLE_SLOTS)).copied()
}

/// Nothing. What the driver costs by itself.
#[xdp]
#[inline(always)]
pub fn floor_tx(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Room for a tunnel's header and nothing else: what the driver costs where it gives that room back.
#[xdp]
#[inline(always)]
pub fn floor_grow(ctx: XdpContext) -> u32 {
    or_miss(grow(&ctx).then_some(xdp_action::XDP_TX))
}

/// Parse, MAC swap.
#[xdp]
#[inline(always)]
pub fn floor_swap(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).map(|flow| flow.swap()))
}

/// The same with ebb's own parser, which checks every length.
#[xdp]
#[inline(always)]
pub fn floor_parse(ctx: XdpContext) -> u32 {
    match parse::quick(&ctx) {
        // SAFETY: `parse` has checked it.
        Ok(packet) if packet.flags != 0 => unsafe { swap(packet.link.ethernet.cast()) },
        _ => miss(),
    }
}

/// Parse, hash, one array lookup (65537 slots), MAC swap.
#[xdp]
#[inline(always)]
pub fn floor_array(ctx: XdpContext) -> u32 {
    or_miss(
        Flow::parse(&ctx).and_then(|flow| match small(flow.hash())? {
            0 => None,
            _ => Some(flow.swap()),
        }),
    )
}

/// The same with a million slots.
#[xdp]
#[inline(always)]
pub fn floor_array_1m(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(
        |flow| match *maps::SLOTS.get(reduce(flow.hash(), LARGE))? {
            0 => None,
            _ => Some(flow.swap()),
        },
    ))
}

/// Parse, hash, slot, backend, MAC rewrite: the least that a balancer does.
#[xdp]
#[inline(always)]
pub fn floor_mac(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| flow.send(small(flow.hash())?)))
}

/// Parse, hash, slot, backend, an IPv4 header in front: the least that a tunnel takes.
#[xdp]
#[inline(always)]
pub fn floor_tunnel(ctx: XdpContext) -> u32 {
    or_miss(
        Flow::parse(&ctx)
            .and_then(|flow| small(flow.hash()))
            .and_then(|backend| encapsulate(&ctx, backend)),
    )
}

/// The same with the keyed hash that ebb uses.
#[xdp]
#[inline(always)]
pub fn floor_keyed(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let address = match flow.high {
            0 => Addr::from_v4_word(flow.low as u32),
            high => Addr {
                high,
                low: flow.low,
            },
        };
        let key = maps::KEY.get(0)?;
        flow.send(small(keyed(key, &address, flow.ports))?)
    }))
}

/// The same as `floor_mac` with the two counters that ebb keeps of every packet.
#[xdp]
#[inline(always)]
pub fn floor_count(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let backend = small(flow.hash())?;
        let length = (ctx.data_end() - ctx.data()) as u64;
        let (by_backend, by_outcome) = (
            maps::COUNTERS.get_ptr_mut(backend as u32 & 31)?,
            maps::COUNTERS.get_ptr_mut(31)?,
        );
        // SAFETY: per-CPU values.
        unsafe {
            (*by_backend)[0] += 1;
            (*by_backend)[1] += length;
            (*by_outcome)[0] += 1;
        }
        flow.send(backend)
    }))
}

/// Slots as ebb has them: a table is a part of one flat array, and a record says which.
#[xdp]
#[inline(always)]
pub fn floor_flat(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let table = *maps::TABLES.get(service(&flow))?;
        let place = ((table >> 32) as u32).wrapping_add(reduce(flow.hash(), table as u32));
        flow.send(*maps::SLOTS.get(place)?)
    }))
}

/// A table as a map in a map, all tables of one size.
#[xdp]
#[inline(always)]
pub fn floor_nested(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let place = reduce(flow.hash(), TABLE_SLOTS);
        flow.send(*maps::NESTED_EQUAL.get_value(service(&flow), &place)?)
    }))
}

/// A table as a map in a map, of any size, which a record says.
#[xdp]
#[inline(always)]
pub fn floor_nested_any(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let service = service(&flow);
        let place = reduce(flow.hash(), *maps::TABLES.get(service)? as u32);
        flow.send(*maps::NESTED_SIZED.get_value(service, &place)?)
    }))
}

/// Which of four services: not a constant, or the compiler and the verifier would look it up once and for all.
#[inline(always)]
fn service(flow: &Flow) -> u32 {
    (flow.ports >> 16) & 3
}

/// Parse, one lookup in the kernel's hash map that hits, MAC rewrite.
#[xdp]
#[inline(always)]
pub fn floor_hash_map(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        // SAFETY: nobody deletes from it.
        let backend = *unsafe { maps::FLOWS.get(key(&flow)) }?;
        flow.send(backend)
    }))
}

#[inline(always)]
fn key(flow: &Flow) -> [u64; 3] {
    [flow.high, flow.low, u64::from(flow.ports)]
}

/// Fills the kernel's hash map. Not measured.
#[xdp]
#[inline(always)]
pub fn fill_hash_map(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let backend = small(flow.hash())?;
        maps::FLOWS.insert(key(&flow), backend, 0).ok()?;
        Some(flow.swap())
    }))
}

/// Parse, hash, one cache line of a table of a million, MAC rewrite.
#[xdp]
#[inline(always)]
pub fn floor_line(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let line = maps::LINES.get(reduce(flow.hash(), LARGE))?;
        flow.send(line[7])
    }))
}

/// The same, where a line has four flows and a flow is in one of the four places: what a flow table that needs but one line
/// takes. The few flows that found no place go by a slot.
#[xdp]
#[inline(always)]
pub fn floor_ways(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let hash = flow.hash();
        let place = reduce(hash, LARGE);
        let line = maps::WAYS.get(place)?;
        let mut way = 0;
        while way < 4 {
            if line[way] == hash | 1 {
                return flow.send(line[way + 4]);
            }
            way += 1;
        }
        flow.send(*maps::SLOTS.get(place)?)
    }))
}

/// Fills that table. Not measured.
#[xdp]
#[inline(always)]
pub fn fill_ways(ctx: XdpContext) -> u32 {
    or_miss(Flow::parse(&ctx).and_then(|flow| {
        let hash = flow.hash();
        let place = reduce(hash, LARGE);
        let backend = *maps::SLOTS.get(place)?;
        // SAFETY: one CPU alone runs the bench.
        let line = unsafe { &mut *maps::WAYS.get_ptr_mut(place)? };
        let mut way = 0;
        while way < 4 {
            if line[way] == 0 {
                line[way] = hash | 1;
                line[way + 4] = backend;
                break;
            }
            way += 1;
        }
        Some(flow.swap())
    }))
}
