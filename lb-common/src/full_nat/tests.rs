use std::{
    boxed::Box,
    cell::UnsafeCell,
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
    vec::Vec,
};

use proptest::prelude::*;

use super::*;

/// A table in memory. Several threads may use it, as CPUs do.
struct Memory(Box<[UnsafeCell<PortEntry>]>);

// SAFETY: tags are only touched as atomics by `compare_exchange` and volatile reads; the rest by who holds the place.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(places: usize) -> Self {
        Self((0..places).map(|_| UnsafeCell::default()).collect())
    }

    fn entries(&self) -> Vec<PortEntry> {
        // SAFETY: nobody else is at it.
        self.0
            .iter()
            .map(|place| unsafe { *place.get() })
            .filter(|entry| entry.tag & 1 != 0)
            .collect()
    }
}

impl PortTable for Memory {
    fn mask(&self) -> u32 {
        self.0.len() as u32 - 1
    }

    fn entry(&self, index: u32) -> Option<NonNull<PortEntry>> {
        self.0
            .get(index as usize)
            .and_then(|place| NonNull::new(place.get()))
    }

    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        let word = unsafe { AtomicU64::from_ptr(word) };
        match word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(found) | Err(found) => found,
        }
    }
}

const HZ: u32 = 100;
const IDLE: u32 = 300 * HZ;
const SEED: u64 = 77;
const OWN: [u8; 4] = [10, 0, 0, 254];

fn flow(client: u32, backend: u32) -> Flow {
    let client_address = Addr::from_v4_word(client.wrapping_mul(0x0101_0101));
    let key = SipKey { k0: 5, k1: 6 };
    let client_port = (client as u16).wrapping_mul(7);
    Flow {
        hash: sip13(&key, &client_address, client),
        client: client_address,
        client_port,
        service: 1,
        backend,
        backend_port: 80_u16.to_be(),
        far_end: far_end(SEED, &address_of(backend), 80_u16.to_be(), 6),
        own: Addr::from_v4(OWN),
        idle_ticks: IDLE,
    }
}

fn address_of(backend: u32) -> Addr {
    Addr::from_v4([10, 0, 1, backend as u8])
}

fn sources(first: u16, last: u16, nodes: &[[u8; 4]]) -> Sources {
    let mut sources = Sources {
        range: Sources::range(first, last, nodes.len()),
        ..Sources::default()
    };
    for (place, node) in sources.addresses.iter_mut().zip(nodes) {
        *place = Addr::from_v4(*node);
    }
    sources
}

/// What a packet of the flow does, which does not begin it.
fn get(table: &Memory, sources: &Sources, flow: &Flow, now: u32) -> Option<(Addr, u16)> {
    let entry = find(table, sources, flow).or_else(|| claim(table, sources, flow, now, HZ))?;
    // SAFETY: nobody else is at it, or it is this flow's alone.
    let entry = unsafe { *entry.as_ptr() };
    Some((entry.node, u16::from_be(entry.node_port)))
}

#[test]
fn only_whole_blocks_of_ports_count() {
    let ports = |first, last| Sources::ports(Sources::range(first, last, 1));
    assert_eq!(ports(1024, 32767), 31744);
    assert_eq!(ports(1, 65535), 65536 - BLOCK);
    assert_eq!(ports(1025, 1031), BLOCK);
    assert_eq!(ports(1025, 1030), 0);
    assert_eq!(ports(1025, 1027), 0);
    assert_eq!(ports(65532, 65535), BLOCK);
}

#[test]
fn no_two_flows_have_one_port() {
    let table = Memory::new(1 << 16);
    let sources = sources(1024, 32767, &[]);
    let mut taken = BTreeMap::new();
    for client in 0..20_000 {
        let flow = flow(client, client % 3);
        let (node, port) = get(&table, &sources, &flow, 1).expect("there is room");
        assert_eq!(node, Addr::from_v4(OWN));
        assert!((1024..32768).contains(&port), "{port}");
        let before = taken.insert((client % 3, port), client);
        assert_eq!(before, None, "port {port} of client {client}");
    }
    // And each finds its own again, by itself and from the backend's answer.
    for ((backend, port), client) in taken {
        let flow = flow(client, backend);
        let found = get(&table, &sources, &flow, 2).expect("it has one");
        assert_eq!(found.1, port);
        let reply = Reply {
            far_end: far_end(SEED, &address_of(backend), 80_u16.to_be(), 6),
            backend_port: 80_u16.to_be(),
            node: Addr::from_v4(OWN),
            node_port: port.to_be(),
        };
        let owner = owner(&table, &reply).expect("known");
        // SAFETY: nobody else is at it.
        let owner = unsafe { *owner.as_ptr() };
        assert_eq!(
            (owner.client, owner.client_port),
            (flow.client, flow.client_port)
        );
    }
}

#[test]
fn a_lost_table_gives_the_same_ports_again() {
    let (first, second) = (Memory::new(1 << 16), Memory::new(1 << 16));
    let sources = sources(1024, 32767, &[[10, 0, 0, 1], [10, 0, 0, 2]]);
    let mut same = 0;
    let mut nodes = BTreeSet::new();
    for client in 0..1000 {
        let flow = flow(client, 1);
        let one = get(&first, &sources, &flow, 1);
        nodes.insert(one.expect("there is room").0.bytes());
        same += u32::from(one == get(&second, &sources, &flow, 1));
    }
    assert_eq!((same, nodes.len()), (1000, 2));
    // In another order all but those that share a candidate.
    let third = Memory::new(1 << 16);
    let again = (0..1000)
        .rev()
        .filter(|client| {
            let flow = flow(*client, 1);
            get(&third, &sources, &flow, 1) == get(&first, &sources, &flow, 1)
        })
        .count();
    assert!(again > 950, "{again}");
}

/// How full the ports towards one backend are when the first flow goes without one, and when nearly all do. The
/// documentation has these figures.
#[test]
fn most_ports_are_in_use_before_the_first_flow_goes_without() {
    // Places, then the percentages.
    for (bits, first_percent, most_percent) in [(16, 45, 75), (17, 58, 86), (20, 70, 95)] {
        let table = Memory::new(1 << bits);
        let sources = sources(1024, 32767, &[]);
        let first = (0..40_000_u32)
            .find(|client| get(&table, &sources, &flow(*client, 1), 1).is_none())
            .expect("there are only 31744");
        // Nobody who has one loses it.
        for client in 0..first {
            assert!(find(&table, &sources, &flow(client, 1)).is_some());
        }
        let got = (first..200_000)
            .filter(|client| get(&table, &sources, &flow(*client, 1), 1).is_some())
            .count();
        let all = got + first as usize;
        assert_eq!(table.entries().len(), all);
        let percent = [first as usize, all].map(|count| count * 100 / 31744);
        std::println!(
            "{} places: first missed at {first}, {all} of 31744 in the end: {percent:?} %",
            1 << bits
        );
        assert!(
            percent[0] >= first_percent && percent[1] >= most_percent,
            "{bits}: {percent:?}"
        );
    }
}

#[test]
fn a_full_block_is_exhausted_and_a_lease_ends() {
    let table = Memory::new(1 << 10);
    let sources = sources(4096, 4095 + BLOCK as u16, &[]);
    let now = 5000 * HZ;
    for client in 0..BLOCK {
        assert!(get(&table, &sources, &flow(client, 1), now).is_some());
    }
    let late = flow(99, 1);
    assert_eq!(get(&table, &sources, &late, now), None);
    // Another backend has all its ports still.
    assert!(get(&table, &sources, &flow(99, 2), now).is_some());
    let unconfirmed = UNCONFIRMED_SECONDS * HZ;
    assert_eq!(get(&table, &sources, &late, now + unconfirmed), None);
    // All but one of them are confirmed.
    for client in 1..BLOCK {
        let entry = find(&table, &sources, &flow(client, 1)).expect("it has one");
        // SAFETY: nobody else is at it.
        unsafe {
            (*entry.as_ptr()).from_client = seen::ALIVE;
            (*entry.as_ptr()).from_server = seen::ALIVE;
        }
    }
    assert!(get(&table, &sources, &late, now + unconfirmed + 1).is_some());
    assert!(find(&table, &sources, &flow(0, 1)).is_none());
    assert_eq!(
        get(&table, &sources, &flow(0, 1), now + unconfirmed + 1),
        None
    );
}

/// An opening: its port, and whether another flow has lost it.
fn open(table: &Memory, sources: &Sources, flow: &Flow, now: u32) -> Option<(u16, bool)> {
    let had = find(table, sources, flow).or_else(|| claim(table, sources, flow, now, HZ));
    let entry = had.or_else(|| displace(table, sources, flow, now))?;
    // SAFETY: nobody else is at it.
    Some((unsafe { (*entry.as_ptr()).node_port }, had.is_none()))
}

/// Both sides of a flow have been heard of.
fn confirm(table: &Memory, sources: &Sources, flow: &Flow) {
    let entry = find(table, sources, flow).expect("it has one");
    // SAFETY: nobody else is at it.
    unsafe {
        (*entry.as_ptr()).from_client = seen::ALIVE;
        (*entry.as_ptr()).from_server = seen::ALIVE;
    }
}

#[test]
fn openings_displace_who_has_waited_longest() {
    let table = Memory::new(1 << 10);
    let sources = sources(4096, 4095 + BLOCK as u16, &[]);
    let flows: Vec<Flow> = (0..20).map(|client| flow(client, 1)).collect();
    let open = |client: usize, now| open(&table, &sources, &flows[client], now);
    let has = |client: usize| find(&table, &sources, &flows[client]).is_some();
    for client in 0..4 {
        // The second is the first to come.
        let now = 5000 * HZ + (client as u32 + 3) % 4;
        assert!(matches!(open(client, now), Some((_, false))), "{client}");
    }
    let now = 5001 * HZ;
    // Whoever does not begin gets none.
    assert_eq!(get(&table, &sources, &flows[4], now), None);
    let ports: Vec<_> = (1..4).map(|client| open(client, now)).collect();
    assert_eq!(open(4, now), Some((ports[0].expect("one").0, true)));
    assert_eq!([0, 1, 2, 3, 4].map(has), [true, false, true, true, true]);
    // Who is confirmed keeps it.
    confirm(&table, &sources, &flows[2]);
    assert_eq!(open(5, now), Some((ports[2].expect("one").0, true)));
    assert_eq!(open(6, now).map(|(_, displaced)| displaced), Some(true));
    assert_eq!(
        [0, 2, 3, 4, 5, 6].map(has),
        [false, true, false, true, true, true]
    );
    for client in [4, 5, 6] {
        confirm(&table, &sources, &flows[client]);
    }
    assert_eq!(open(7, now), None);
}

#[test]
fn only_what_begins_a_flow_displaces() {
    let (syn, ack, rst) = (tcp::SYN, tcp::ACK, tcp::RST);
    let rows = [
        (Some(syn), true),
        (Some(syn | ack), false),
        (Some(ack), false),
        (Some(rst), false),
        (Some(0), false),
        (None, true),
    ];
    for (flags, expected) in rows {
        assert_eq!(may_displace(flags), expected, "{flags:?}");
    }
}

/// A flood of openings to one backend, a hundred times what there are ports for: whoever then has a few ticks for his handshake
/// gets through.
#[test]
fn a_flood_of_openings_leaves_handshakes_their_time() {
    let table = Memory::new(1 << 16);
    let sources = sources(1024, 32767, &[]);
    let per_tick = 2000;
    let ticks = 300_u32;
    let mut lost = 0;
    for tick in 0..ticks {
        let now = 5000 * HZ + tick;
        for forged in 0..per_tick {
            open(
                &table,
                &sources,
                &flow(1_000_000 + tick * per_tick + forged, 1),
                now,
            );
        }
        assert!(
            open(&table, &sources, &flow(tick, 1), now).is_some(),
            "{tick}"
        );
        // Its handshake takes five ticks.
        if let Some(client) = tick.checked_sub(5) {
            match find(&table, &sources, &flow(client, 1)) {
                Some(_) => confirm(&table, &sources, &flow(client, 1)),
                None => lost += 1,
            }
        }
    }
    std::println!("{lost} of {ticks} handshakes lost their port");
    assert!(lost < 10, "{lost}");
    // Once confirmed, none is lost.
    let kept = (0..290).filter(|client| find(&table, &sources, &flow(*client, 1)).is_some());
    assert!(kept.count() >= 280);
}

#[test]
fn leases_follow_what_was_sent() {
    let syn = tcp::SYN;
    let (ack, fin, rst) = (tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST | tcp::ACK);
    let (idle, wait, short) = (IDLE, TIME_WAIT_SECONDS * HZ, UNCONFIRMED_SECONDS * HZ);
    #[rustfmt::skip]
    let rows: [(&str, &[u8], &[u8], u32); 11] = [
        ("an opening", &[syn], &[], short),
        ("answered", &[syn], &[syn | ack], short),
        ("a handshake", &[syn, ack], &[syn | ack], idle),
        ("packets that nobody answers", &[ack, ack], &[], short),
        ("packets to nothing", &[ack], &[rst], short),
        ("half closed", &[syn, ack, fin], &[syn | ack, ack], idle),
        ("closed by the other half", &[syn, ack], &[syn | ack, fin], idle),
        ("closed", &[syn, ack, fin], &[syn | ack, fin], wait),
        ("reset by the backend", &[syn, ack], &[syn | ack, rst], short),
        ("a forged reset", &[syn, ack, rst, ack], &[syn | ack, ack], idle),
        ("datagrams both ways", &[0], &[0], idle),
    ];
    for (what, from_client, from_server, expected) in rows {
        let entry = PortEntry {
            from_client: from_client
                .iter()
                .fold(0, |old, flags| after_client(old, *flags)),
            from_server: from_server
                .iter()
                .fold(0, |old, flags| after_server(old, *flags)),
            idle_ticks: idle,
            ..PortEntry::default()
        };
        assert_eq!(lease(&entry, HZ), expected, "{what}");
    }
}

#[test]
fn cpus_at_once_never_share_a_port() {
    const CPUS: u32 = 4;
    let table = Memory::new(1 << 10);
    let sources = sources(4096, 4096 + 511, &[]);
    let got: Vec<Vec<(u16, u32)>> = std::thread::scope(|scope| {
        let run = |cpu: u32| {
            let (table, sources) = (&table, &sources);
            move || {
                (0..400)
                    .filter_map(|number| {
                        let client = number * CPUS + cpu;
                        let (_, port) = get(table, sources, &flow(client, 1), 1)?;
                        Some((port, client))
                    })
                    .collect()
            }
        };
        let threads: Vec<_> = (0..CPUS).map(|cpu| scope.spawn(run(cpu))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let mut taken = BTreeMap::new();
    for (port, client) in got.into_iter().flatten() {
        assert_eq!(taken.insert(port, client), None, "port {port}");
    }
    assert!(taken.len() > 300, "{}", taken.len());
    assert_eq!(taken.len(), table.entries().len());
}

proptest! {
    #[test]
    fn candidates_are_in_the_range_and_of_the_list(
        hash: u64, first in 1_u16.., length in 4_u16.., nodes in 0..=ADDRESSES_MAX, number in 0..ROUNDS, step in 0..BLOCK,
    ) {
        let last = first.saturating_add(length);
        let list: Vec<[u8; 4]> = (0..nodes as u8).map(|n| [10, 0, 0, n]).collect();
        let sources = sources(first, last, &list);
        let flow = Flow { hash, ..flow(1, 1) };
        let Some(round) = round(&sources, &flow, number) else {
            prop_assert_eq!(Sources::ports(sources.range), 0);
            return Ok(());
        };
        let port = u16::from_be(round.port(step));
        prop_assert!((first..=last).contains(&port));
        let of_the_list = list.iter().any(|node| Addr::from_v4(*node) == round.node);
        prop_assert!(of_the_list || nodes == 0 && round.node == flow.own);
        // The place is the one that the answer's port leads to.
        let table = Memory::new(1 << 8);
        let far_end = flow.far_end;
        let there = group(&far_end, &round.node, u32::from(port) / BLOCK) | u32::from(port) & (BLOCK - 1);
        prop_assert_eq!(round.place(step, table.mask()), there & table.mask());
    }
}
