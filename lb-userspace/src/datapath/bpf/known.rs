//! Tables whose place in memory the programs know: each is the one value of a map.
//!
//! In the object such a table is a section with room for one record, for which aya makes a map that nobody keeps. Before the
//! kernel sees the programs, the pinned map of the configured size takes the place of that one, under the same descriptor:
//! aya neither sizes nor pins maps of sections, and would overwrite what a pinned one holds.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::atomic::Ordering,
};

use aya::{
    Ebpf,
    maps::{MapData, MapInfo},
};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use lb_common::{
    abi::{BackendRecord, ControlRecord, ServiceRecord},
    index::IndexEntry,
};

use super::{Mapped, array, chain, index_length, map_error};
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
    bytes: usize,
    /// What its size depends on, in the section `capacity` of the configuration.
    pub setting: &'static str,
}

/// The section that stands for a table in the object.
pub(super) fn section(name: &str) -> String {
    format!(".bss.{name}")
}

/// All of them.
pub(super) fn tables(capacity: &Capacity) -> [Table; 4] {
    fn table<T>(name: &'static str, records: u32, setting: &'static str) -> Table {
        Table {
            name,
            records,
            bytes: size_of::<T>(),
            setting,
        }
    }
    let index = index_length(capacity);
    [
        table::<ControlRecord>("CONTROL", 1, "services"),
        table::<IndexEntry>("INDEX", 2 * index, "backends"),
        table::<ServiceRecord>("SERVICES", capacity.services + 1, "services"),
        table::<BackendRecord>("BACKENDS", capacity.backends + 1, "backends"),
    ]
}

impl Table {
    /// The one that is pinned in `pins`, or a new one.
    fn open(&self, pins: &Path) -> Result<MapData> {
        let path = pins.join(self.name);
        if path.exists() {
            return MapData::from_pin(&path).map_err(map_error);
        }
        let map = self.create()?;
        step(Step::Pin);
        map.pin(&path)
            .map_err(|error| Error::Other(format!("pinning {}: {}", self.name, chain(&error))))?;
        Ok(map)
    }

    /// Records that a map has room for.
    pub(super) fn records_of(&self, info: &MapInfo) -> u64 {
        u64::from(info.value_size()) * u64::from(info.max_entries()) / self.bytes as u64
    }

    fn create(&self) -> Result<MapData> {
        let bytes = self.records as usize * self.bytes;
        let too_large = |why: &str| {
            Error::Other(format!(
                "a table of {} records ({bytes} bytes) is too large for this kernel: {why}; make capacity.{} smaller",
                self.records, self.setting
            ))
        };
        let value = u32::try_from(bytes).map_err(|_| too_large("a value has less than 4 GiB"))?;
        let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        let map = aya_obj::Map::new_from_params(array, 4, value, 1, BPF_F_MMAPABLE);
        MapData::create(map, self.name, None).map_err(|error| match errno(&error) {
            // Before Linux 6.? a value is no larger than what `kmalloc` gives (kernel/bpf/arraymap.c).
            Some(libc::E2BIG) => too_large("it keeps at most 4 MiB in a value"),
            _ => Error::Other(format!("making {}: {}", self.name, chain(&error))),
        })
    }
}

fn errno(error: &aya::maps::MapError) -> Option<i32> {
    match error {
        aya::maps::MapError::CreateError { io_error, .. } => io_error.raw_os_error(),
        _ => None,
    }
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

/// Puts the pinned tables, made where there are none yet, in the place of what stands for them in an object whose programs
/// are not loaded yet.
pub(super) fn put(ebpf: &Ebpf, pins: &Path, capacity: &Capacity) -> Result<()> {
    for table in tables(capacity) {
        let map = table.open(pins)?;
        let stands = array(ebpf, table.name)?.fd().as_fd().as_raw_fd();
        // SAFETY: the descriptor stays open and aya's, the instructions that name it are not with the kernel yet, and nobody
        // has used what it was until now.
        if unsafe { libc::dup3(map.fd().as_fd().as_raw_fd(), stands, libc::O_CLOEXEC) } < 0 {
            return Err(Error::Kernel {
                what: format!("putting {} in its place", table.name),
                source: io::Error::last_os_error(),
            });
        }
    }
    Ok(())
}
