//! Maps that an ebb before this one has left.

use std::{fs, io, path::Path};

use aya::maps::{MapData, MapInfo};
use lb_common::{
    abi::{ControlRecord, Known},
    limits::ABI_VERSION,
};

use super::{Mapped, map_error};
use crate::{
    datapath::{Error, Result},
    step::{Step, step},
};

/// The map whose record says by which layout all of them were made.
const CONTROL: &str = "CONTROL";

/// A pinned map, where there is one.
pub(super) fn map(pins: &Path, name: &str) -> Result<Option<MapData>> {
    let path = pins.join(name);
    if !path.exists() {
        return Ok(None);
    }
    MapData::from_pin(&path).map(Some).map_err(map_error)
}

/// What the kernel says of a map.
pub(super) fn about(name: &str, map: &MapData) -> Result<MapInfo> {
    map.info()
        .map_err(|error| Error::Other(format!("asking about {name}: {error}")))
}

/// What it says of a pinned one, where there is one.
pub(super) fn info(pins: &Path, name: &str) -> Result<Option<MapInfo>> {
    map(pins, name)?.map(|map| about(name, &map)).transpose()
}

/// Refuses maps of another layout, before anything is changed that the running program uses.
pub(super) fn check_layout(pins: &Path) -> Result<()> {
    let Some(map) = map(pins, CONTROL)? else {
        return Ok(());
    };
    let found = Mapped::<ControlRecord>::new(CONTROL, &map)?
        .read(0)?
        .abi_version;
    // Zero: whoever made it has died before it said so.
    if found == 0 || found == ABI_VERSION {
        return Ok(());
    }
    Err(Error::Layout {
        found,
        expected: ABI_VERSION,
    })
}

/// Takes back what was noted of flows ([`ControlRecord::known`]). Whoever finds some of these maps and others made anew,
/// because a daemon died while it forgot them, must not go by what was known of all.
pub(super) fn forget_known(pins: &Path) {
    let Ok(map) = MapData::from_pin(pins.join(CONTROL)) else {
        return;
    };
    // Maps of another layout are nobody's to go by.
    let Ok(control) = Mapped::<ControlRecord>::new(CONTROL, &map) else {
        return;
    };
    if let Ok(record) = control.read(0)
        && record.abi_version == ABI_VERSION
    {
        let unknown = ControlRecord {
            known: Known::default(),
            ..record
        };
        let first = std::mem::offset_of!(ControlRecord, known) / 8;
        // What can be read can be written: both are memory.
        let _ = control.note(0, &unknown, first);
    }
}

/// Forgets the maps, and with them all flows. The links stay: the program that runs keeps its maps and forwards until it is
/// replaced.
///
/// # Errors
/// A pin can not be removed.
pub fn forget(pins: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(pins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    forget_known(pins);
    for entry in entries {
        let path = entry?.path();
        let is_link = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("link-"));
        if !is_link {
            step(Step::Pin);
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
