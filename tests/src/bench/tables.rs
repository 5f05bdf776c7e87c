//! What a change of a large service costs: its table built, and published whole.

use std::time::Instant;

use anyhow::Result;
use lb_common::abi::{ServiceRecord, Slot};
use lb_userspace::{
    datapath::Datapath as _,
    model::table::{self, Member},
};
use serde::Serialize;

use super::{report::median, report::rounded, services::Node};

/// Backends of the service.
const BACKENDS: u32 = 1000;

/// Its id, which no measured service has.
const SERVICE: u32 = 15;

/// A table's cost; medians, milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct TableCost {
    /// Backends, of equal weight.
    pub backends: u32,
    /// Slots for that many.
    pub slots: u32,
    /// Working the table out.
    pub build_ms: f64,
    /// Writing it beside the old one, the switch, and the wait until no program sees the old one any more.
    pub publish_ms: f64,
    /// Slots of the backend that has most, as a share of the mean.
    pub heaviest: f64,
}

/// Measures as often as there are rounds, each time with one other backend missing.
pub fn measure(node: &mut Node, rounds: usize) -> Result<TableCost> {
    let slots = table::choose_slots(BACKENDS as usize);
    let keys: Vec<String> = (0..=BACKENDS)
        .map(|number| format!("backend-{number}"))
        .collect();
    let (mut built, mut published, mut heaviest) = (Vec::new(), Vec::new(), 0.0_f64);
    let datapath = &mut node.rig.datapath;
    datapath.put_service(SERVICE, &ServiceRecord::default())?;
    for round in 0..rounds {
        let members: Vec<Member> = (1..)
            .zip(&keys)
            .filter(|(id, _)| *id != round as u32 % BACKENDS + 1)
            .map(|(id, key)| Member {
                key,
                id,
                weight: 100,
            })
            .collect();
        let start = Instant::now();
        let owners = table::build(&[7; 16], slots, &members);
        built.push(start.elapsed().as_secs_f64() * 1e3);
        heaviest = heaviest.max(heaviest_of(&owners));
        let start = Instant::now();
        let table: Vec<Slot> = owners
            .iter()
            .map(|owner| Slot::new(*owner, *owner, false))
            .collect();
        datapath.publish_table(SERVICE, &table, &[])?;
        published.push(start.elapsed().as_secs_f64() * 1e3);
    }
    datapath.remove_service(SERVICE)?;
    Ok(TableCost {
        backends: BACKENDS,
        slots,
        build_ms: rounded(median(&built)),
        publish_ms: rounded(median(&published)),
        heaviest,
    })
}

fn heaviest_of(owners: &[u32]) -> f64 {
    let mut counts = vec![0_u32; BACKENDS as usize + 2];
    for owner in owners {
        counts[*owner as usize] += 1;
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    f64::from(most) * f64::from(BACKENDS) / owners.len() as f64
}

impl std::fmt::Display for TableCost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "a table for {} backends ({} slots, the heaviest has {:.3} of the mean): built in {:.1} ms, published whole in {:.1} ms",
            self.backends, self.slots, self.heaviest, self.build_ms, self.publish_ms
        )
    }
}
