//! Former owners of slots: a map that has a row only where there are some, by the slot's place among all slots.
//!
//! Rows are written beside a table that no packet sees yet, and removed once no packet sees theirs any more. What a daemon
//! that was killed has left is of slots that no table has, or that say that they have no former owners: nobody reads it.

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use lb_common::former::Formers;

use super::{Pod, map_error, take};
use crate::{
    datapath::Result,
    step::{Step, step},
};

/// Most rows that there is room for; memory is taken as they come.
pub const ROWS_MAX: u32 = 1 << 18;

// SAFETY: plain integers without padding.
unsafe impl aya::Pod for Pod<Formers> {}

/// The map.
pub struct Rows(HashMap<MapData, u32, Pod<Formers>>);

impl Rows {
    /// Takes it out of the loaded object.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        let map = HashMap::try_from(take(ebpf, "FORMERS")?).map_err(map_error)?;
        Ok(Self(map))
    }

    /// Writes the rows of a table whose first slot has this place. Those that there is no room for are left out: of their
    /// slots base and current owner are asked, and nobody else.
    pub fn write(&mut self, first: u32, formers: &[(u32, Formers)]) -> Result<()> {
        for (written, (index, owners)) in formers.iter().enumerate() {
            step(Step::Call);
            match self.0.insert(first + index, Pod(*owners), 0) {
                Err(error) if is_full(&error) => {
                    let left_out = formers.len() - written;
                    tracing::warn!(
                        "former owners of {left_out} slots are not remembered: there are {ROWS_MAX} already"
                    );
                    return Ok(());
                }
                result => result.map_err(map_error)?,
            }
        }
        Ok(())
    }

    /// The row of a slot.
    pub fn read(&self, place: u32) -> Result<Option<Formers>> {
        match self.0.get(&place, 0) {
            Ok(Pod(formers)) => Ok(Some(formers)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_error(error)),
        }
    }

    /// Removes the rows of these slots.
    pub fn remove(&mut self, places: impl IntoIterator<Item = u32>) -> Result<()> {
        for place in places {
            step(Step::Call);
            match self.0.remove(&place) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error(error)),
            }
        }
        Ok(())
    }

    /// The slots that have rows.
    pub fn places(&self) -> Result<Vec<u32>> {
        let places: std::result::Result<_, _> = self.0.keys().collect();
        places.map_err(map_error)
    }
}

/// The kernel says E2BIG where there is no room for another row.
fn is_full(error: &MapError) -> bool {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::E2BIG),
        _ => false,
    }
}
