//! The floor programs: names, tables, what their frames must look like.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ArrayOfMaps, MapData};
use lb_common::{
    Addr,
    checksum::sum_bytes,
    hash::{HashKey, keyed, reduce},
    steer::tcp::ACK,
};

use super::{
    Family, LINE_REFERENCE, REFERENCE, TUNNEL_REFERENCE,
    driver::Driver,
    frames::Frames,
    memory::Memory,
    rows::{Row, Tables, What},
    shared::{FLOOR_BACKENDS, LARGE, TABLE_SLOTS, floor_backend, floor_hash},
};
use crate::{packets::Segment, rig::Verdict, rig::at};

/// `BPF_F_INNER_MAP`: an inner map whose size the outer one does not fix.
const INNER_MAP: u32 = 1 << 12;

#[derive(Clone, Copy)]
enum Out {
    /// Untouched.
    Same,
    /// MAC addresses swapped.
    Swapped,
    /// To the backend that a table of this many entries names.
    Backend(u32),
    /// The same, by the keyed hash.
    BackendByKeyed,
    /// To the backend, in a tunnel.
    Tunnelled,
}

/// Name, program, what comes out, whether it is also run with IPv6.
const FLOORS: [(&str, &str, Out, bool); 15] = [
    ("XDP_TX only", "floor_tx", Out::Same, true),
    ("parse + MAC swap", "floor_swap", Out::Swapped, true),
    (
        "parse with all checks + MAC swap",
        "floor_parse",
        Out::Swapped,
        true,
    ),
    (
        "hash + array 65537 + MAC swap",
        "floor_array",
        Out::Swapped,
        false,
    ),
    (
        "hash + array 1M + MAC swap",
        "floor_array_1m",
        Out::Swapped,
        false,
    ),
    (REFERENCE, "floor_mac", Out::Backend(TABLE_SLOTS), true),
    (TUNNEL_REFERENCE, "floor_tunnel", Out::Tunnelled, true),
    (
        "keyed hash + array + MAC rewrite",
        "floor_keyed",
        Out::BackendByKeyed,
        true,
    ),
    (
        "hash + array + 2 counters + MAC rewrite",
        "floor_count",
        Out::Backend(TABLE_SLOTS),
        false,
    ),
    (
        "table in a flat array + MAC rewrite",
        "floor_flat",
        Out::Backend(TABLE_SLOTS),
        false,
    ),
    (
        "table in a map in a map (one size) + MAC rewrite",
        "floor_nested",
        Out::Backend(TABLE_SLOTS),
        false,
    ),
    (
        "table in a map in a map (any size) + MAC rewrite",
        "floor_nested_any",
        Out::Backend(TABLE_SLOTS),
        false,
    ),
    (
        "cache line of a 1M table + MAC rewrite",
        "floor_line",
        Out::Backend(LARGE),
        true,
    ),
    (LINE_REFERENCE, WAYS, Out::Backend(LARGE), true),
    (
        "hash map hit + MAC rewrite",
        "floor_hash_map",
        Out::Backend(TABLE_SLOTS),
        false,
    ),
];

/// Number of the floors' hash key.
const KEY: u64 = 1;

const HASH_MAP: &str = "floor_hash_map";
const WAYS: &str = "floor_ways";

/// Where the floors' frames go.
fn server(family: Family) -> SocketAddr {
    match family {
        Family::V4 => at("203.0.113.200", 80),
        Family::V6 => at("2001:db8:f::200", 80),
    }
}

/// The floors of a family with this many flows.
pub fn rows(family: Family, flows: u32) -> Vec<Row> {
    FLOORS
        .into_iter()
        .filter(|(_, _, _, both)| *both || family == Family::V4)
        .map(|(name, program, out, _)| Row {
            what: What::Floor(name),
            program: Some(program),
            frames: Frames::to(server(family), ACK),
            service: None,
            flows,
            tables: Tables::Any,
            fill: None,
            is_tunnelled: matches!(out, Out::Tunnelled),
            verdict: Verdict::Tx,
            expect: Box::new(move |_, _, segment| Ok(expected(out, segment))),
        })
        .collect()
}

fn expected(out: Out, mut segment: Segment) -> Segment {
    let client = match segment.from {
        // The floors take an IPv4 address as its four bytes.
        SocketAddr::V4(v4) => Addr {
            high: 0,
            low: u64::from(u32::from_ne_bytes(v4.ip().octets())),
        },
        SocketAddr::V6(_) => Addr::from(segment.from.ip()),
    };
    let [a, b] = segment.from.port().to_be_bytes();
    let [c, d] = segment.to.port().to_be_bytes();
    let ports = u32::from_ne_bytes([a, b, c, d]);
    let hash = match out {
        Out::BackendByKeyed => keyed(
            &HashKey::from_number(KEY),
            &Addr::from(segment.from.ip()),
            ports,
        ),
        _ => floor_hash(client.high, client.low, ports),
    };
    let to = |segment: &mut Segment, slots| {
        let (to, from) = macs(floor_backend(reduce(hash, slots)));
        (segment.to_mac, segment.from_mac) = (to, from);
    };
    match out {
        Out::Same => {}
        Out::Swapped => std::mem::swap(&mut segment.to_mac, &mut segment.from_mac),
        Out::Backend(slots) => to(&mut segment, slots),
        Out::BackendByKeyed | Out::Tunnelled => to(&mut segment, TABLE_SLOTS),
    }
    segment
}

fn macs(backend: u32) -> ([u8; 6], [u8; 6]) {
    crate::rig::backend_macs(backend)
}

/// Fills the floors' tables as far as these rows need them.
pub fn prepare(driver: &mut Driver, rows: &[Row]) -> Result<()> {
    let mut slots: Memory<u64> = Memory::new(&driver.ebpf, "SLOTS")?;
    for index in 0..slots.len() {
        slots.set(index, u64::from(floor_backend(index as u32)));
    }
    let mut tables: Memory<u64> = Memory::new(&driver.ebpf, "TABLES")?;
    tables.set(0, u64::from(TABLE_SLOTS));
    let mut key: Memory<HashKey> = Memory::new(&driver.ebpf, "KEY")?;
    key.set(0, HashKey::from_number(KEY));
    let mut backends: Memory<[u8; 16]> = Memory::new(&driver.ebpf, "BACKENDS")?;
    for backend in 1..FLOOR_BACKENDS {
        let (to, from) = macs(backend);
        let mut record = [0; 16];
        record[..6].copy_from_slice(&to);
        record[6..12].copy_from_slice(&from);
        backends.set(backend as usize, record);
    }
    let mut outer: Memory<[u64; 4]> = Memory::new(&driver.ebpf, "OUTER")?;
    outer.set(0, outer_header());
    let mut lines: Memory<[u64; 8]> = Memory::new(&driver.ebpf, "LINES")?;
    for index in 0..lines.len() {
        let backend = u64::from(floor_backend(index as u32));
        lines.set(index, [0, 0, 0, 0, 0, 0, 0, backend]);
    }
    nested(driver, "NESTED_EQUAL", 0)?;
    nested(driver, "NESTED_SIZED", INNER_MAP)?;
    for (program, fill) in [(HASH_MAP, "fill_hash_map"), (WAYS, "fill_ways")] {
        fill_up(driver, rows, program, fill)?;
    }
    Ok(())
}

/// The tunnel's header in words, with neither length nor checksum, and the sum of its 16-bit words.
fn outer_header() -> [u64; 4] {
    let mut header = [0; 24];
    header[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0]);
    header[12..20].copy_from_slice(&[192, 0, 2, 2, 10, 0, 0, 1]);
    let word = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    [word(0), word(8), word(16), sum_bytes(&header)]
}

fn nested(driver: &mut Driver, name: &str, flags: u32) -> Result<()> {
    let mut inner: Array<MapData, u64> =
        Array::create(TABLE_SLOTS, flags).context("making an inner map")?;
    for index in 0..TABLE_SLOTS {
        inner.set(index, u64::from(floor_backend(index)), 0)?;
    }
    let map = driver
        .ebpf
        .map_mut(name)
        .with_context(|| format!("the bench's object has no map {name}"))?;
    let mut outer: ArrayOfMaps<_, Array<MapData, u64>> = ArrayOfMaps::try_from(map)?;
    Ok(outer.set(0, &inner, 0)?)
}

/// Every flow of a floor's rows into its table, by a program.
fn fill_up(driver: &mut Driver, rows: &[Row], program: &str, fill: &'static str) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let frames = Frames::to(server(family), ACK);
        let of = |row: &&Row| row.program == Some(program) && row.frames.server == frames.server;
        let Some(flows) = rows.iter().filter(of).map(|row| row.flows).max() else {
            continue;
        };
        let order = std::rc::Rc::new((0..flows).collect());
        driver.set_up(frames.config(flows, 0), &order)?;
        driver.select_own(fill)?;
        driver.run(flows)?;
        ensure!(
            driver.misses() == 0,
            "{fill}: {} of {flows} flows found no place",
            driver.misses()
        );
    }
    Ok(())
}
