//! Which flows take turns, and in which order.

use lb_common::{Addr, abi::ServiceRecord, entry::FlowKey, limits::WAYS, steer::flow_hash};
use rand::{SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};

use super::{Family, frames::Frames};

/// Numbers of flows in a random order: in the order of insertion, a table's entries would be met as the memory
/// has them, and cost half.
pub fn plain(flows: u32) -> Vec<u32> {
    shuffled((0..flows).collect())
}

/// The same, but only flows that all find room in a table of `entries` at once. Where more flows than a bucket has
/// places meet, they replace each other, and a row would measure a mixture of hits and insertions.
pub fn fitting(
    service: (u32, &ServiceRecord),
    family: Family,
    flows: u32,
    entries: u32,
) -> Vec<u32> {
    let mut taken = vec![0u8; (entries / WAYS) as usize];
    let (id, record) = service;
    let fits = |number: &u32| {
        let client = Frames::client(family, *number);
        let key = FlowKey {
            client: Addr::from(client.ip()),
            ports: FlowKey::pack(client.port().to_be(), record.port, id),
        };
        let bucket = (flow_hash(record, &key) as u32 & (entries - 1)) / WAYS;
        let count = &mut taken[bucket as usize];
        let room = u32::from(*count) < WAYS;
        *count += u8::from(room);
        room
    };
    shuffled((0..u32::MAX).filter(fits).take(flows as usize).collect())
}

fn shuffled(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.shuffle(&mut SmallRng::seed_from_u64(2));
    numbers
}
