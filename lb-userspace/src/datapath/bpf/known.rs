//! Tables whose place in memory the programs know: each is the one value of a map.
//!
//! In the object there is, beside such a map, a section with room for one record, for which aya makes a map that nobody
//! keeps. Before the kernel sees the programs, the pinned map takes the place of that one, under the same descriptor: aya
//! neither sizes nor pins maps of sections, and would overwrite what a pinned one holds.
//!
//! Where the kernel keeps no value of that size (long, none above `KMALLOC_MAX_SIZE`, 4 MiB: `array_map_alloc_check` in
//! kernel/bpf/arraymap.c), the map is an array of records as any other, and the programs, which are told so, look them up.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::atomic::Ordering,
};

use aya::{
    Ebpf,
    maps::{MapData, MapError, MapInfo},
};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use lb_common::{
    abi::{BackendRecord, ControlRecord, ServiceRecord, Slot},
    index::IndexEntry,
    limits::WAYS,
    recent,
};

use super::{Mapped, Options, Parts, array, chain, index_length, map_error, pinned, slots::Region};
use crate::{
    datapath::{Error, Result},
    model::spec::Capacity,
    step::{Step, step},
};

/// Such a table.
pub(super) struct Table {
    /// Its name, under which it is pinned.
    pub name: &'static str,
    /// Number of records.
    pub records: u32,
    /// Bytes of each.
    bytes: u32,
    /// What its size depends on, in the section `capacity` of the configuration.
    pub setting: &'static str,
}

/// All of them.
pub(super) fn tables(capacity: &Capacity) -> [Table; 6] {
    fn table<T>(name: &'static str, records: u32, setting: &'static str) -> Table {
        Table {
            name,
            records,
            bytes: size_of::<T>() as u32,
            setting,
        }
    }
    let index = index_length(capacity);
    [
        table::<ControlRecord>("CONTROL", 1, "services"),
        table::<IndexEntry>("INDEX", 2 * index, "backends"),
        table::<ServiceRecord>("SERVICES", capacity.services + 1, "services"),
        table::<BackendRecord>("BACKENDS", capacity.backends + 1, "backends"),
        table::<Slot>("SLOTS", capacity.slots, "slots"),
        table::<recent::Group>("RECENT", capacity.flows / WAYS, "flows"),
    ]
}

/// One that is there.
pub(super) struct Opened {
    table: Table,
    map: MapData,
    /// It is one value.
    is_known: bool,
}

impl Table {
    /// The one that is pinned in `pins`, or a new one: of one value if that has at most `value_max` bytes and the kernel
    /// takes it.
    fn open(self, pins: &Path, value_max: u32) -> Result<Opened> {
        let map = match pinned::map(pins, self.name)? {
            Some(map) => map,
            None => self.pin_new(pins, value_max)?,
        };
        let info = pinned::about(self.name, &map)?;
        Ok(Opened {
            is_known: info.max_entries() == 1,
            table: self,
            map,
        })
    }

    fn pin_new(&self, pins: &Path, value_max: u32) -> Result<MapData> {
        let map = self.create(value_max)?;
        step(Step::Pin);
        map.pin(pins.join(self.name))
            .map_err(|error| Error::Other(format!("pinning {}: {}", self.name, chain(&error))))?;
        Ok(map)
    }

    /// Records of the one value: programs mask an index.
    fn places(&self) -> u32 {
        self.records.next_power_of_two()
    }

    /// How many records a map has room for, if that is not what is wanted.
    pub(super) fn other_records(&self, info: &MapInfo) -> Option<u64> {
        let bytes = u64::from(info.value_size()) * u64::from(info.max_entries());
        let found = bytes / u64::from(self.bytes);
        let wanted = if info.max_entries() == 1 {
            self.places()
        } else {
            self.records
        };
        (found != u64::from(wanted)).then_some(found)
    }

    fn create(&self, value_max: u32) -> Result<MapData> {
        let all = self.places().checked_mul(self.bytes);
        if let Some(all) = all.filter(|all| self.records == 1 || *all <= value_max) {
            match self.array(all, 1) {
                Err(error) if is_too_large(&error) => {}
                made => return made.map_err(|error| self.failed(&error)),
            }
        }
        self.array(self.bytes, self.records)
            .map_err(|error| self.failed(&error))
    }

    fn array(&self, value: u32, entries: u32) -> std::result::Result<MapData, MapError> {
        let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        let map = aya_obj::Map::new_from_params(array, 4, value, entries, BPF_F_MMAPABLE);
        MapData::create(map, self.name, None)
    }

    fn failed(&self, error: &MapError) -> Error {
        let (name, records) = (self.name, self.records);
        Error::Other(format!(
            "making {name} for {records} records (capacity.{}): {}",
            self.setting,
            chain(error)
        ))
    }
}

fn is_too_large(error: &MapError) -> bool {
    matches!(error, MapError::CreateError { io_error, .. } if io_error.raw_os_error() == Some(libc::E2BIG))
}

impl Opened {
    /// The global that says how many records the value has, less one, and what it is: 0 for an array. A single record is
    /// always one value, and has none.
    pub(super) fn mask(&self) -> Option<(String, u32)> {
        let mask = if self.is_known {
            self.table.places() - 1
        } else {
            0
        };
        (self.table.records > 1).then(|| (format!("{}_PLACES", self.table.name), mask))
    }

    /// Takes the place of what stands for it in an object whose programs are not loaded yet.
    pub(super) fn put(&self, ebpf: &Ebpf) -> Result<()> {
        if !self.is_known {
            return Ok(());
        }
        let name = self.table.name;
        let stands = array(ebpf, &format!(".bss.{name}"))?;
        let (from, to) = (self.map.fd().as_fd(), stands.fd().as_fd());
        // SAFETY: the descriptor stays open and aya's, the instructions that name it are not with the kernel yet, and nobody
        // has used what it was until now.
        let put = unsafe { libc::dup3(from.as_raw_fd(), to.as_raw_fd(), libc::O_CLOEXEC) };
        if put < 0 {
            return Err(Error::Kernel {
                what: format!("putting {name} in its place"),
                source: io::Error::last_os_error(),
            });
        }
        Ok(())
    }
}

/// Opens all of them, and makes those that are missing.
pub(super) fn open(options: &Options) -> Result<Vec<Opened>> {
    let tables = tables(&options.capacity).into_iter();
    tables
        .map(|table| table.open(&options.pins, options.value_max))
        .collect()
}

/// The words that name the services' tables ([`ServiceRecord::table`]), by service id, from the maps that are pinned there.
///
/// # Errors
/// No such map, or another layout.
pub fn service_tables(pins: &Path) -> Result<Vec<u64>> {
    let map = MapData::from_pin(pins.join("SERVICES")).map_err(map_error)?;
    let services = Mapped::<ServiceRecord>::new("SERVICES", &map)?;
    let word = |id| Ok(services.words(id)?[0].load(Ordering::Acquire));
    (0..services.len()).map(word).collect()
}

/// The slots of a table with this word ([`service_tables`]), from the maps that are pinned there.
///
/// # Errors
/// As of [`service_tables`].
pub fn slots_of(pins: &Path, table: u64) -> Result<Vec<Slot>> {
    let map = MapData::from_pin(pins.join("SLOTS")).map_err(map_error)?;
    let slots = Parts::<Slot>::new("SLOTS", &map)?;
    Region::from_word(table).map_or_else(|| Ok(Vec::new()), |region| region.read(&slots))
}
