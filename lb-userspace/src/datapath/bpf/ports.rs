//! The table of ports for `full-nat`, and where these come from.

use std::sync::atomic::Ordering;

use lb_common::full_nat::{PortEntry, Sources};

use super::{BpfDatapath, Mapped};
use crate::{
    datapath::Result,
    step::{Step, step},
};

/// Sets the sources. What was in force before stays findable, so that flows keep the port that they have by it.
///
/// A packet in between gets no new port (its `range` is 0), and finds its old one.
pub(super) fn put_sources(map: &Mapped<Sources>, wanted: &[Sources; 2]) -> Result<()> {
    for (wanted, live) in wanted.iter().zip([0, 2]) {
        let old = map.read(live)?;
        if old == *wanted {
            continue;
        }
        let before = live + 1;
        // Changed back before the old flows are gone: then these two have all there is.
        if old.range != 0 {
            step(Step::Publish);
            map.words(before)?[0].store(0, Ordering::Release);
            map.write_all(before, &old)?;
        }
        step(Step::Publish);
        map.words(live)?[0].store(0, Ordering::Release);
        map.write_all(live, wanted)?;
    }
    Ok(())
}

impl BpfDatapath {
    /// Every port that is given out. Entries may change while they are looked at.
    pub fn ports(&self) -> Result<Vec<PortEntry>> {
        let mut entries = Vec::new();
        let ports = self.ports.part(0..self.ports.len())?;
        for index in 0..ports.len() {
            let tag = ports.words(index)?[0].load(Ordering::Acquire);
            if tag & 1 == 0 {
                continue;
            }
            let entry = ports.read(index)?;
            if entry.tag == tag {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// Forgets every port that is given out, as when the table is lost.
    pub fn lose_ports(&mut self) -> Result<()> {
        let ports = self.ports.part(0..self.ports.len())?;
        for index in 0..ports.len() {
            ports.words(index)?[0].store(0, Ordering::Release);
        }
        Ok(())
    }

    /// Fills every place with a flow that nobody has, of which only an opening was heard, at tick `seen`: as after a flood.
    pub fn flood_ports(&mut self, seen: u32) -> Result<()> {
        let flow = PortEntry {
            tag: 3,
            seen,
            ..PortEntry::default()
        };
        let ports = self.ports.part(0..self.ports.len())?;
        for index in 0..ports.len() {
            ports.write_all(index, &flow)?;
        }
        Ok(())
    }
}
