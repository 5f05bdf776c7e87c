//! Identifications that packets in fragments have been seen to leave `full-nat` services with.
//!
//! Kept over all cases: first fragments are remembered by the program that long, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    oracle::Broken,
    view::{Family, View},
};

/// What a packet in fragments is known by: source, destination, protocol (of IPv6, where it does not count, 0),
/// identification.
type Packet = (IpAddr, IpAddr, u8, u32);

/// How a packet went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Onward {
    /// Its new ends.
    pub from: SocketAddr,
    /// As above.
    pub to: SocketAddr,
    /// Its new identification.
    pub id: u32,
}

/// All that were seen.
#[derive(Debug, Clone, Default)]
pub struct Numbered {
    /// How the first fragment of each went on last.
    last: BTreeMap<Packet, Onward>,
    /// Those of them that did so in this case.
    now: BTreeSet<Packet>,
    /// Whom an identification was given to, as it left.
    owners: BTreeMap<Packet, Packet>,
}

impl Numbered {
    /// A new case begins: its flows are others.
    pub fn begin(&mut self) {
        self.now.clear();
    }

    /// How the packet that a fragment is of went on last.
    pub fn last(&self, view: &View) -> Option<Onward> {
        self.last.get(&packet(view)).copied()
    }

    /// Notes that a first fragment went on like this.
    ///
    /// # Errors
    /// Another packet has this identification, or this one had another a moment ago.
    pub fn note(&mut self, view: &View, onward: Onward) -> Result<(), Broken> {
        let packet = packet(view);
        let known = self.last.insert(packet, onward);
        let same = |known: &Onward| (known.from, known.to) == (onward.from, onward.to);
        if self.now.replace(packet).is_some()
            && let Some(known) = known.filter(same)
            && known.id != onward.id
        {
            return Err(Broken(format!(
                "{packet:?} left as {known:?}, now as {onward:?}"
            )));
        }
        let (_, _, protocol, _) = packet;
        let left = (onward.from.ip(), onward.to.ip(), protocol, onward.id);
        match self.owners.insert(left, packet) {
            Some(other) if other != packet => Err(Broken(format!(
                "{packet:?} and {other:?} both left as {left:?}"
            ))),
            _ => Ok(()),
        }
    }
}

fn packet(view: &View) -> Packet {
    let protocol = match view.family {
        Family::V4 => view.protocol,
        Family::V6 => 0,
    };
    (view.from, view.to, protocol, view.id)
}
