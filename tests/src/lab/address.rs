//! Who has which address in the lab: IPv4 from the documentation and private ranges, IPv6 likewise. Every host has
//! both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Length of every link's prefix in the lab, bits.
    #[must_use]
    pub const fn link_bits(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// Length of a whole address, bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The destination of a default route, in a way that says its family.
    #[must_use]
    pub const fn everywhere(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
}

/// Address of every IPv4 service in the lab; the router sends it to the balancer.
pub const VIP: IpAddr = vip(Family::V4);
/// The client's own IPv4 address.
pub const CLIENT: IpAddr = client(Family::V4);
/// The client's MAC address: the router must know it for addresses that nobody answers for.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0xeb, 0xb0, 0x00, 0x00, 0x02];
/// The router's MAC address towards the client.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0xeb, 0xb0, 0x00, 0x00, 0x01];
/// Number of [`raw_client`] addresses.
pub const RAW_CLIENTS: u8 = 8;

/// Host `host` of a network: `10.site.net.host`, or `fd00:site:net::host` with the numbers in hexadecimal.
const fn at(family: Family, site: u8, net: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, site, net, host)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(
            0xfd00,
            site as u16,
            net as u16,
            0,
            0,
            0,
            0,
            host as u16,
        )),
    }
}

/// Address of every service in the lab; the router sends it to the balancer.
#[must_use]
pub const fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
    }
}

/// The client's own address.
#[must_use]
pub const fn client(family: Family) -> IpAddr {
    at(family, 1, 0, 2)
}

/// An address on the client's link that nobody has yet: for a client that moves.
#[must_use]
pub const fn client_elsewhere(family: Family) -> IpAddr {
    at(family, 1, 0, 3)
}

/// The router towards the client.
#[must_use]
pub const fn router_client(family: Family) -> IpAddr {
    at(family, 1, 0, 1)
}

/// The router towards the balancer.
#[must_use]
pub const fn router_front(family: Family) -> IpAddr {
    at(family, 2, 0, 1)
}

/// The balancer towards the router.
#[must_use]
pub const fn lb(family: Family) -> IpAddr {
    at(family, 2, 0, 2)
}

/// The second balancer towards the router.
#[must_use]
pub const fn lb2(family: Family) -> IpAddr {
    at(family, 2, 0, 3)
}

/// The client that is on a network of its own with the balancer.
#[must_use]
pub const fn side_client(family: Family) -> IpAddr {
    at(family, 4, 0, 2)
}

/// The balancer towards that client.
#[must_use]
pub const fn side_lb(family: Family) -> IpAddr {
    at(family, 4, 0, 1)
}

/// An address that reaches the client's interface but is not its kernel's, so that the kernel sends no RST; for
/// [`crate::client::raw`]. `n` below [`RAW_CLIENTS`].
#[must_use]
pub const fn raw_client(family: Family, n: u8) -> IpAddr {
    at(family, 1, 0, 200 + n % RAW_CLIENTS)
}

/// Backend `n` on the shared segment. `n` below 200.
#[must_use]
pub const fn one_arm_backend(family: Family, n: u8) -> IpAddr {
    at(family, 2, 0, 11 + n)
}

/// Backend `n` on a link of its own with the balancer. `n` below 200.
#[must_use]
pub const fn two_arm_backend(family: Family, n: u8) -> IpAddr {
    at(family, 3, 1 + n, 2)
}

/// The balancer's end of that link.
#[must_use]
pub const fn two_arm_lb(family: Family, n: u8) -> IpAddr {
    at(family, 3, 1 + n, 1)
}

/// The networks of [`two_arm_backend`], as a route's destination.
#[must_use]
pub const fn two_arm_networks(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.3.0.0/16",
        Family::V6 => "fd00:3::/32",
    }
}

/// The network of [`side_client`], as a route's destination.
#[must_use]
pub const fn side_network(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.4.0.0/24",
        Family::V6 => "fd00:4::/64",
    }
}
