//! The bench's maps.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE},
    btf_maps,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, ProgramArray},
};
use lb_common::hash::HashKey;

use crate::shared::{Config, FLOOR_BACKENDS, LARGE, State, TABLE_SLOTS};

/// What to write.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Where the driver is.
#[map]
pub static STATE: Array<State> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Numbers of the flows, in the order of their turns. Read one after the other, so it costs little.
#[map]
pub static ORDER: Array<u32> = Array::with_max_entries(LARGE, BPF_F_MMAPABLE);

/// The measured program, at 0.
#[map]
pub static MEASURED: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Backend ids: the first [`TABLE_SLOTS`] for small tables, all for large ones.
#[map]
pub static SLOTS: Array<u64> = Array::with_max_entries(LARGE, BPF_F_MMAPABLE);

/// Place of a table in `SLOTS`: first in the upper half, number of slots in the lower.
#[map]
pub static TABLES: Array<u64> = Array::with_max_entries(4, BPF_F_MMAPABLE);

/// Key of the keyed hash.
#[map]
pub static KEY: Array<HashKey> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// MAC addresses of the backends, in the first three of four words.
#[map]
pub static BACKENDS: Array<[u32; 4]> = Array::with_max_entries(FLOOR_BACKENDS, BPF_F_MMAPABLE);

/// The floor's tunnel header without its length: two words of eight bytes, the destination, and the sum of its words.
#[map]
pub static OUTER: Array<[u64; 4]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Every flow's backend in the kernel's hash map: client address (two words), ports.
#[map]
pub static FLOWS: HashMap<[u64; 3], u64> = HashMap::with_max_entries(LARGE, 0);

/// A table of cache lines; the backend in the last word.
#[map]
pub static LINES: Array<[u64; 8]> = Array::with_max_entries(LARGE, BPF_F_MMAPABLE);

/// A table of cache lines, each of four flows: their tags, then their backends.
#[map]
pub static WAYS: Array<[u64; 8]> = Array::with_max_entries(LARGE, BPF_F_MMAPABLE);

/// Tables as maps in a map, all of one size: the verifier inlines the lookup.
#[btf_map]
pub static NESTED_EQUAL: btf_maps::ArrayOfMaps<
    btf_maps::Array<u64, { TABLE_SLOTS as usize }, 0>,
    4,
> = btf_maps::ArrayOfMaps::new();

/// Tables as maps in a map, of any size: every lookup is a call.
#[btf_map]
pub static NESTED_SIZED: btf_maps::ArrayOfMaps<
    btf_maps::Array<u64, { TABLE_SLOTS as usize }, { BPF_F_INNER_MAP as usize }>,
    4,
> = btf_maps::ArrayOfMaps::new();

/// Counters as ebb has them, for the floor that counts.
#[map]
pub static COUNTERS: PerCpuArray<[u64; 8]> = PerCpuArray::with_max_entries(32, 0);

/// What came back in the live test: all frames, those with a backend's MAC address.
#[map]
pub static ARRIVED: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);
