//! What is known of the kernel's links, neighbours and routes, and what follows from it. Pure.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use lb_common::abi::VlanDevice;

use super::{NextHop, Reason, Resolution, path_mtu::Learned};
use crate::model::observed::Vlans;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What matters of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its own address; `None` when it is not Ethernet.
    pub mac: Option<Mac>,
    /// Administratively up and with carrier.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// A VLAN device's, as the kernel says it.
    pub vlan: Option<VlanDevice>,
}

/// A neighbour: interface and address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    /// Interface index.
    pub ifindex: u32,
    /// The neighbour's address.
    pub address: IpAddr,
}

/// State of a neighbour, as far as it makes a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// Its MAC address is known.
    Known { mac: Mac, trust: Trust },
    /// The kernel is resolving it, or has yet to be asked to. `last`: the address it had before its entry
    /// was collected for want of use; frames keep going there until the kernel has an answer.
    Pending { last: Option<Mac> },
    /// It did not answer.
    Failed,
}

/// How much a known MAC address is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Confirmed lately, or being confirmed.
    Fresh,
    /// Not confirmed lately.
    Stale,
    /// Set by hand, or true by the nature of the link: nothing to confirm, and not to be touched.
    Fixed,
}

/// What the kernel answered to the lookup of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To a neighbour: the gateway, or the address itself.
    Via {
        neighbour: NeighbourKey,
        mtu: Option<u32>,
        source: Option<IpAddr>,
    },
    /// Nowhere, for this reason.
    None(Reason),
}

/// A set of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Any address in it.
    pub address: IpAddr,
    /// Bits that count.
    pub length: u8,
}

impl Prefix {
    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (difference, width) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits() ^ b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits(), 128),
            _ => return false,
        };
        let ignored = u32::saturating_sub(width, u32::from(self.length));
        difference.checked_shr(ignored).unwrap_or(0) == 0
    }
}

/// One change in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A link was made, altered, or removed (`None`).
    Link(u32, Option<Link>),
    /// The kernel's entry of a neighbour was made, altered, or removed (`None`).
    Neighbour(NeighbourKey, Option<Neighbour>),
    /// Lookups of addresses in this prefix may have another answer.
    Routes(Prefix),
    /// Every lookup may.
    AllRoutes,
    /// Notifications were lost or not understood: nothing known is certain.
    Lost,
}

/// The answer for one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What is told.
    pub resolution: Resolution,
    /// The neighbour it rests on; `None` when the way ends before.
    pub neighbour: Option<NeighbourKey>,
    /// The kernel has to be asked to resolve or confirm that neighbour.
    pub wanting: bool,
    /// The kernel could be asked to check it once more.
    pub verifiable: bool,
}

/// Everything known.
#[derive(Debug, Default)]
pub struct Table {
    links: HashMap<u32, Link>,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    /// Neighbours in `neighbours` of which the kernel has no entry.
    remembered: HashSet<NeighbourKey>,
    routes: HashMap<IpAddr, Route>,
    /// What routers on the way have said.
    pub learned: Learned,
}

impl Table {
    /// Takes over a change of a link; true when it makes a difference.
    pub fn set_link(&mut self, ifindex: u32, link: Option<Link>) -> bool {
        let before = match link {
            Some(link) => self.links.insert(ifindex, link),
            None => self.links.remove(&ifindex),
        };
        before != link
    }

    /// Takes over the kernel's entry of a neighbour, or its removal.
    pub fn set_neighbour(&mut self, key: NeighbourKey, entry: Option<Neighbour>) {
        let before = self.neighbours.get(&key).copied();
        match entry {
            Some(_) => self.remembered.remove(&key),
            None => self.remembered.insert(key),
        };
        if let Some(after) = merged(before, entry) {
            self.neighbours.insert(key, after);
        } else {
            self.neighbours.remove(&key);
            self.remembered.remove(&key);
        }
    }

    /// Records that repeated requests to resolve a neighbour brought nothing.
    pub fn give_up(&mut self, key: NeighbourKey) {
        if matches!(
            self.neighbours.get(&key),
            None | Some(Neighbour::Pending { .. })
        ) {
            if !self.neighbours.contains_key(&key) {
                self.remembered.insert(key);
            }
            self.neighbours.insert(key, Neighbour::Failed);
        }
    }

    /// Replaces all links by a dump; true when it makes a difference.
    pub fn replace_links(&mut self, links: HashMap<u32, Link>) -> bool {
        let differs = self.links != links;
        self.links = links;
        differs
    }

    /// VLAN devices by interface index.
    pub fn vlans(&self) -> Vlans {
        let devices = self.links.iter();
        devices
            .filter_map(|(ifindex, link)| Some((*ifindex, self.below(link.vlan?))))
            .collect()
    }

    /// A VLAN device; one on top of another is none that a single tag stands for.
    fn below(&self, device: VlanDevice) -> VlanDevice {
        match self.links.get(&device.parent) {
            Some(Link { vlan: None, .. }) => device,
            _ => VlanDevice {
                parent: 0,
                ..device
            },
        }
    }

    /// Replaces all neighbours by a dump. What is not in it counts as removed.
    pub fn replace_neighbours(&mut self, dump: &HashMap<NeighbourKey, Neighbour>) {
        let gone: Vec<_> = self
            .neighbours
            .keys()
            .filter(|key| !dump.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            self.set_neighbour(key, None);
        }
        for (key, entry) in dump {
            self.set_neighbour(*key, Some(*entry));
        }
    }

    /// Records the answer to a lookup.
    pub fn set_route(&mut self, address: IpAddr, route: Route) {
        self.routes.insert(address, route);
    }

    /// Forgets all but these addresses.
    pub fn keep_routes(&mut self, watched: &BTreeSet<IpAddr>) {
        self.routes.retain(|address, _| watched.contains(address));
    }

    /// Forgets what is only remembered and rests under none of these neighbours.
    pub fn keep_remembered(&mut self, used: &BTreeSet<NeighbourKey>) {
        let neighbours = &mut self.neighbours;
        self.remembered.retain(|key| {
            let keep = used.contains(key);
            if !keep {
                neighbours.remove(key);
            }
            keep
        });
    }

    /// What is known of the way to `address`; `None` while its route was not looked up.
    pub fn resolve(&self, address: IpAddr) -> Option<Answer> {
        let ends = |reason| Answer {
            resolution: Resolution::Unresolved(reason),
            neighbour: None,
            wanting: false,
            verifiable: false,
        };
        let (key, route_mtu, source) = match self.routes.get(&address)? {
            Route::Via {
                neighbour,
                mtu,
                source,
            } => (*neighbour, *mtu, *source),
            Route::None(reason) => return Some(ends(*reason)),
        };
        let Some(link) = self.links.get(&key.ifindex).filter(|link| link.up) else {
            return Some(ends(Reason::LinkDown));
        };
        let Some(source_mac) = link.mac else {
            return Some(ends(Reason::NotEthernet));
        };
        let (ifindex, vlan) = match link.vlan.map(|device| self.below(device)) {
            None => (key.ifindex, 0),
            Some(VlanDevice { parent: 0, .. }) => return Some(ends(Reason::StackedVlan)),
            Some(VlanDevice { parent, tag }) => (parent, tag as u16),
        };
        let mtus = [route_mtu, self.learned.mtu(address)];
        let mtu = mtus.into_iter().flatten().fold(link.mtu, u32::min);
        let towards = |destination_mac| {
            Resolution::Resolved(NextHop {
                ifindex,
                source_mac,
                destination_mac,
                mtu,
                source,
                vlan,
            })
        };
        let neighbour = self.neighbours.get(&key);
        let (resolution, wanting) = match neighbour {
            Some(Neighbour::Known { mac, trust }) => (towards(*mac), *trust == Trust::Stale),
            Some(Neighbour::Pending { last: Some(mac) }) => (towards(*mac), true),
            Some(Neighbour::Pending { last: None }) | None => {
                (Resolution::Unresolved(Reason::Resolving), true)
            }
            Some(Neighbour::Failed) => (Resolution::Unresolved(Reason::NoNeighbour), true),
        };
        Some(Answer {
            resolution,
            neighbour: Some(key),
            wanting,
            verifiable: matches!(
                neighbour,
                Some(Neighbour::Known {
                    trust: Trust::Fresh | Trust::Stale,
                    ..
                })
            ),
        })
    }
}

/// What is known of a neighbour after the kernel's entry became `entry`.
///
/// A failure is remembered while the kernel tries again, so that a dead neighbour is not "being resolved" every few
/// seconds; a MAC address is remembered when the kernel drops an entry for want of use, which XDP traffic does not count as.
fn merged(before: Option<Neighbour>, entry: Option<Neighbour>) -> Option<Neighbour> {
    match (before, entry) {
        (_, Some(known @ Neighbour::Known { .. })) => Some(known),
        (_, Some(Neighbour::Failed)) => Some(Neighbour::Failed),
        (Some(Neighbour::Failed), Some(Neighbour::Pending { .. }) | None) => {
            Some(Neighbour::Failed)
        }
        (Some(Neighbour::Known { mac, .. }), Some(Neighbour::Pending { .. }) | None) => {
            Some(Neighbour::Pending { last: Some(mac) })
        }
        (Some(pending @ Neighbour::Pending { .. }), Some(Neighbour::Pending { .. }) | None) => {
            Some(pending)
        }
        (None, entry) => entry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const PEER: Mac = [2, 0, 0, 0, 0, 2];
    const OTHER: Mac = [2, 0, 0, 0, 0, 3];
    const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11));
    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const KEY: NeighbourKey = NeighbourKey {
        ifindex: 7,
        address: BACKEND,
    };
    const LINK: Link = Link {
        mac: Some(OWN),
        up: true,
        mtu: 1500,
        vlan: None,
    };

    fn table() -> Table {
        let mut table = Table::default();
        table.set_link(7, Some(LINK));
        table.set_route(
            BACKEND,
            Route::Via {
                neighbour: KEY,
                mtu: None,
                source: Some(SOURCE),
            },
        );
        table
    }

    fn resolution(table: &Table) -> Resolution {
        table.resolve(BACKEND).unwrap().resolution
    }

    fn resolved(destination_mac: Mac, mtu: u32) -> Resolution {
        Resolution::Resolved(NextHop {
            ifindex: 7,
            source_mac: OWN,
            destination_mac,
            mtu,
            source: Some(SOURCE),
            vlan: 0,
        })
    }

    const FRESH: Neighbour = Neighbour::Known {
        mac: PEER,
        trust: Trust::Fresh,
    };
    const PENDING: Neighbour = Neighbour::Pending { last: None };

    #[test]
    fn nothing_is_said_before_the_route_is_looked_up() {
        assert_eq!(Table::default().resolve(BACKEND), None);
    }

    #[test]
    fn a_known_neighbour_resolves_and_only_a_stale_one_wants_the_kernel() {
        let mut table = table();
        table.set_neighbour(KEY, Some(FRESH));
        let answer = table.resolve(BACKEND).unwrap();
        assert_eq!(
            (answer.resolution, answer.wanting),
            (resolved(PEER, 1500), false)
        );
        table.set_neighbour(
            KEY,
            Some(Neighbour::Known {
                mac: PEER,
                trust: Trust::Stale,
            }),
        );
        let answer = table.resolve(BACKEND).unwrap();
        assert_eq!(
            (answer.resolution, answer.wanting),
            (resolved(PEER, 1500), true)
        );
        assert!(answer.verifiable);
        table.set_neighbour(
            KEY,
            Some(Neighbour::Known {
                mac: PEER,
                trust: Trust::Fixed,
            }),
        );
        let answer = table.resolve(BACKEND).unwrap();
        assert_eq!(
            (answer.resolution, answer.wanting),
            (resolved(PEER, 1500), false)
        );
        assert!(!answer.verifiable);
        table.set_neighbour(
            KEY,
            Some(Neighbour::Known {
                mac: OTHER,
                trust: Trust::Fresh,
            }),
        );
        assert_eq!(resolution(&table), resolved(OTHER, 1500));
    }

    #[test]
    fn the_smaller_mtu_counts() {
        let mut table = table();
        table.set_neighbour(KEY, Some(FRESH));
        for (route_mtu, mtu) in [(Some(1400), 1400), (Some(9000), 1500), (None, 1500)] {
            table.set_route(
                BACKEND,
                Route::Via {
                    neighbour: KEY,
                    mtu: route_mtu,
                    source: Some(SOURCE),
                },
            );
            assert_eq!(resolution(&table), resolved(PEER, mtu));
        }
    }

    #[test]
    fn a_vlan_device_is_the_interface_below_it_with_its_tag() {
        let mut table = table();
        table.set_neighbour(KEY, Some(FRESH));
        let device = |parent, tag| Link {
            vlan: Some(VlanDevice { parent, tag }),
            ..LINK
        };
        table.set_link(3, Some(LINK));
        table.set_link(7, Some(device(3, 100)));
        let Resolution::Resolved(hop) = resolution(&table) else {
            panic!("{:?}", resolution(&table));
        };
        assert_eq!((hop.ifindex, hop.vlan, hop.source_mac), (3, 100, OWN));
        let expected = VlanDevice {
            parent: 3,
            tag: 100,
        };
        assert_eq!(table.vlans(), Vlans::from([(7, expected)]));
        // On another VLAN device, on one that is not known, or where the decoder found it of no use.
        table.set_link(4, Some(device(3, 200)));
        for parent in [4, 5, 0] {
            table.set_link(7, Some(device(parent, 100)));
            assert_eq!(
                resolution(&table),
                Resolution::Unresolved(Reason::StackedVlan)
            );
            assert_eq!(table.vlans()[&7].parent, 0, "on {parent}");
        }
    }

    #[test]
    fn the_way_ends_where_it_ends() {
        let mut table = table();
        table.set_neighbour(KEY, Some(FRESH));
        let rows = [
            (Some(Link { up: false, ..LINK }), Reason::LinkDown),
            (Some(Link { mac: None, ..LINK }), Reason::NotEthernet),
            (None, Reason::LinkDown),
        ];
        for (link, reason) in rows {
            assert!(table.set_link(7, link));
            let answer = table.resolve(BACKEND).unwrap();
            assert_eq!(answer.resolution, Resolution::Unresolved(reason));
            assert!(!answer.wanting, "{reason}: nothing to ask the kernel for");
        }
        for reason in [Reason::NoRoute, Reason::Local] {
            table.set_route(BACKEND, Route::None(reason));
            assert_eq!(resolution(&table), Resolution::Unresolved(reason));
        }
    }

    #[test]
    fn a_neighbour_that_failed_has_failed_until_it_answers() {
        let mut table = table();
        assert_eq!(
            resolution(&table),
            Resolution::Unresolved(Reason::Resolving)
        );
        table.set_neighbour(KEY, Some(PENDING));
        assert_eq!(
            resolution(&table),
            Resolution::Unresolved(Reason::Resolving)
        );
        for entry in [Some(Neighbour::Failed), Some(PENDING), None, Some(PENDING)] {
            table.set_neighbour(KEY, entry);
            assert_eq!(
                resolution(&table),
                Resolution::Unresolved(Reason::NoNeighbour),
                "{entry:?}"
            );
        }
        table.set_neighbour(KEY, Some(FRESH));
        assert_eq!(resolution(&table), resolved(PEER, 1500));
    }

    #[test]
    fn an_entry_collected_by_the_kernel_keeps_its_address_until_the_kernel_answers() {
        let mut table = table();
        table.set_neighbour(KEY, Some(FRESH));
        for entry in [None, Some(PENDING)] {
            table.set_neighbour(KEY, entry);
            let answer = table.resolve(BACKEND).unwrap();
            assert_eq!(
                (answer.resolution, answer.wanting),
                (resolved(PEER, 1500), true)
            );
        }
        let mut answered = Neighbour::Known {
            mac: OTHER,
            trust: Trust::Fresh,
        };
        table.set_neighbour(KEY, Some(answered));
        assert_eq!(resolution(&table), resolved(OTHER, 1500));
        answered = Neighbour::Failed;
        table.set_neighbour(KEY, Some(answered));
        assert_eq!(
            resolution(&table),
            Resolution::Unresolved(Reason::NoNeighbour)
        );
    }

    #[test]
    fn a_dump_replaces_and_giving_up_ends_the_wait() {
        let mut table = table();
        table.set_neighbour(KEY, Some(FRESH));
        table.replace_neighbours(&HashMap::new());
        assert_eq!(
            resolution(&table),
            resolved(PEER, 1500),
            "gone: as collected"
        );
        table.give_up(KEY);
        assert_eq!(
            resolution(&table),
            Resolution::Unresolved(Reason::NoNeighbour)
        );
        table.replace_neighbours(&HashMap::from([(KEY, FRESH)]));
        assert_eq!(resolution(&table), resolved(PEER, 1500));
        table.give_up(KEY);
        assert_eq!(
            resolution(&table),
            resolved(PEER, 1500),
            "nothing to give up"
        );
    }

    #[test]
    fn what_is_only_remembered_goes_when_nobody_uses_it() {
        let mut table = table();
        table.set_neighbour(KEY, Some(FRESH));
        table.set_neighbour(KEY, None);
        table.keep_remembered(&BTreeSet::from([KEY]));
        assert_eq!(resolution(&table), resolved(PEER, 1500));
        table.keep_remembered(&BTreeSet::new());
        assert_eq!(
            resolution(&table),
            Resolution::Unresolved(Reason::Resolving)
        );
        table.set_neighbour(KEY, Some(FRESH));
        table.keep_remembered(&BTreeSet::new());
        assert_eq!(
            resolution(&table),
            resolved(PEER, 1500),
            "the kernel has it"
        );
    }

    #[test]
    fn prefixes() {
        let rows = [
            ("10.0.0.0", 24, "10.0.0.11", true),
            ("10.0.0.0", 24, "10.0.1.11", false),
            ("0.0.0.0", 0, "10.0.1.11", true),
            ("10.0.0.11", 32, "10.0.0.11", true),
            ("10.0.0.10", 32, "10.0.0.11", false),
            ("10.0.0.11", 200, "10.0.0.10", false),
            ("::", 0, "10.0.0.11", false),
            ("::", 0, "2001:db8::1", true),
            ("2001:db8::", 32, "2001:db8::1", true),
            ("2001:db8::", 128, "2001:db8::1", false),
            ("0.0.0.0", 0, "2001:db8::1", false),
        ];
        for (prefix, length, address, inside) in rows {
            let prefix = Prefix {
                address: prefix.parse().unwrap(),
                length,
            };
            assert_eq!(
                prefix.contains(address.parse().unwrap()),
                inside,
                "{prefix:?} {address}"
            );
        }
    }
}
