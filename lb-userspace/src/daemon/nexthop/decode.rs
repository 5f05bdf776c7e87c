//! Netlink messages -> what the table holds.

use std::net::IpAddr;

use lb_common::abi::VlanDevice;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        VlanProtocol,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{
    Reason,
    table::{Change, Link, Mac, Neighbour, NeighbourKey, Prefix, Route, Trust},
};

/// What a notification means; `None` when nothing.
pub fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(message) => {
            link(message).map(|(ifindex, link)| Change::Link(ifindex, Some(link)))
        }
        // Of another family it is a port leaving its bridge, and the link stays.
        RouteNetlinkMessage::DelLink(message)
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            Some(Change::Link(message.header.index, None))
        }
        RouteNetlinkMessage::NewNeighbour(message) => {
            neighbour(message).map(|(key, entry)| Change::Neighbour(key, Some(entry)))
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            neighbour_key(message).map(|key| Change::Neighbour(key, None))
        }
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
            Some(prefix(message).map_or(Change::AllRoutes, Change::Routes))
        }
        // An address makes and removes routes, and not each of those is announced.
        RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_) => Some(Change::AllRoutes),
        _ => None,
    }
}

/// A link with its index; `None` for messages that tell only a part (of a bridge port, or a wireless event).
pub fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut mac = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) if ethernet => mac = Mac::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            _ => {}
        }
    }
    let up = message
        .header
        .flags
        .contains(LinkFlags::Up | LinkFlags::LowerUp);
    let link = Link {
        mac,
        up,
        mtu: mtu?,
        vlan: vlan(message),
    };
    Some((message.header.index, link))
}

/// Of a VLAN device: the interface below it, 0 where that is in another namespace or the tag is not 802.1Q's, and the
/// tag.
fn vlan(message: &LinkMessage) -> Option<VlanDevice> {
    let mut parent = 0;
    let mut is_elsewhere = false;
    let mut data = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(ifindex) => parent = *ifindex,
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                data = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let mut tag = 0;
    for info in data? {
        match info {
            InfoVlan::Id(id) => tag = u32::from(*id),
            InfoVlan::Protocol(protocol) => is_elsewhere |= *protocol != VlanProtocol::Ieee8021Q,
            _ => {}
        }
    }
    let parent = if is_elsewhere { 0 } else { parent };
    Some(VlanDevice { parent, tag })
}

/// An entry of the neighbour table; `None` for what is not one (bridge forwarding entries, proxies).
pub fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let key = neighbour_key(message)?;
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => Mac::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
    let entry = match (message.header.state, mac) {
        (NeighbourState::Failed, _) => Neighbour::Failed,
        (NeighbourState::Stale, Some(mac)) => Neighbour::Known {
            mac,
            trust: Trust::Stale,
        },
        (NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe, Some(mac)) => {
            Neighbour::Known {
                mac,
                trust: Trust::Fresh,
            }
        }
        (NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => Neighbour::Known {
            mac,
            trust: Trust::Fixed,
        },
        _ => Neighbour::Pending { last: None },
    };
    Some((key, entry))
}

fn neighbour_key(message: &NeighbourMessage) -> Option<NeighbourKey> {
    let of_ip = matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    );
    if !of_ip || message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some(IpAddr::V4(*address))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some(IpAddr::V6(*address))
            }
            _ => None,
        })?;
    Some(NeighbourKey {
        ifindex: message.header.ifindex,
        address,
    })
}

/// The addresses a route is for; `None` when the message does not say it in a way known here.
fn prefix(message: &RouteMessage) -> Option<Prefix> {
    let length = message.header.destination_prefix_length;
    let named = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    let address = match (named, length, message.header.address_family) {
        (Some(address), ..) => address,
        (None, 0, AddressFamily::Inet) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        (None, 0, AddressFamily::Inet6) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    Some(Prefix { address, length })
}

/// The answer to the lookup of `destination`.
pub fn route(message: &RouteMessage, destination: IpAddr) -> Route {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Route::None(Reason::Local),
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return Route::None(Reason::NotUnicast);
        }
        _ => return Route::None(Reason::NoRoute),
    }
    let mut ifindex = None;
    let mut gateway = None;
    let mut mtu = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => {
                return Route::None(Reason::Encapsulated);
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(bytes) if *bytes > 0 => Some(*bytes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    ifindex.map_or(Route::None(Reason::NoRoute), |ifindex| Route::Via {
        neighbour: NeighbourKey {
            ifindex,
            address: gateway.unwrap_or(destination),
        },
        mtu,
        source,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;

    use super::*;

    /// `ip link add link #3 name eth0.100 type vlan id 100`, with `more` attributes.
    fn device(protocol: VlanProtocol, more: &[LinkAttribute]) -> Option<VlanDevice> {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes = vec![
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(3),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Protocol(protocol),
                    InfoVlan::Id(100),
                ])),
            ]),
        ];
        message.attributes.extend_from_slice(more);
        let (ifindex, link) = link(&message)?;
        assert_eq!(ifindex, 7);
        link.vlan
    }

    #[test]
    fn vlan_devices_are_known_with_what_is_below_them() {
        let found = |parent| Some(VlanDevice { parent, tag: 100 });
        assert_eq!(device(VlanProtocol::Ieee8021Q, &[]), found(3));
        assert_eq!(device(VlanProtocol::Ieee8021Ad, &[]), found(0));
        let elsewhere = LinkAttribute::LinkNetNsId(1);
        assert_eq!(device(VlanProtocol::Ieee8021Q, &[elsewhere]), found(0));
    }

    #[test]
    fn a_veth_has_an_interface_below_it_and_is_no_vlan_device() {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(3),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        assert_eq!(link(&message).and_then(|(_, link)| link.vlan), None);
    }
}
