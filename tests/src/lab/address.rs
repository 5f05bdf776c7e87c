//! Who has which address in the lab. IPv4 from the documentation and private ranges.

use std::net::{IpAddr, Ipv4Addr};

/// Address of every service in the lab; the router sends it to the balancer.
pub const VIP: IpAddr = v4(203, 0, 113, 10);
/// The client's own address.
pub const CLIENT: IpAddr = v4(10, 1, 0, 2);
/// The router towards the client.
pub const ROUTER_CLIENT: IpAddr = v4(10, 1, 0, 1);
/// The router towards the balancer.
pub const ROUTER_FRONT: IpAddr = v4(10, 2, 0, 1);
/// The balancer towards the router.
pub const LB: IpAddr = v4(10, 2, 0, 2);
/// The client's MAC address: the router must know it for addresses that nobody answers for.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0xeb, 0xb0, 0x00, 0x00, 0x02];
/// The router's MAC address towards the client.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0xeb, 0xb0, 0x00, 0x00, 0x01];
/// Number of [`raw_client`] addresses.
pub const RAW_CLIENTS: u8 = 8;

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// An address that reaches the client's interface but is not its kernel's, so that the kernel sends no RST; for
/// [`crate::client::raw`]. `n` below [`RAW_CLIENTS`].
#[must_use]
pub const fn raw_client(n: u8) -> IpAddr {
    v4(10, 1, 0, 200 + n % RAW_CLIENTS)
}

/// Backend `n` on the shared segment. `n` below 200.
#[must_use]
pub const fn one_arm_backend(n: u8) -> IpAddr {
    v4(10, 2, 0, 11 + n)
}

/// Backend `n` on a link of its own with the balancer. `n` below 200.
#[must_use]
pub const fn two_arm_backend(n: u8) -> IpAddr {
    v4(10, 3, 1 + n, 2)
}

/// The balancer's end of that link.
#[must_use]
pub const fn two_arm_lb(n: u8) -> IpAddr {
    v4(10, 3, 1 + n, 1)
}
