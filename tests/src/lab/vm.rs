//! A backend with a kernel of its own: a virtual machine on the lab's shared segment.
//!
//! ```text
//!   client --- router[br0] --- lb
//!                 |--- b1
//!                 `--- tap ~~~ eth0 of the machine
//! ```
//!
//! Its kernel is Debian's, with the real tunnel devices that the machine underneath may lack (ipip, sit, ip6_tunnel,
//! fou), and it has the VIPs on its loopback.

use std::{fs, net::IpAddr, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};

use super::{
    Lab, Topology,
    address::{self, Family},
    find_binary, kernel,
};
use crate::vm::{Image, Joint, Kernel, Machine, Release};

/// What a backend behind a tunnel needs, and what QEMU's network card does.
const MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_net",
    "ipip",
    "sit",
    "ip6_tunnel",
    "fou",
    "fou6",
];

/// Which machine is wanted.
#[derive(Debug, Clone)]
pub struct VmOptions {
    /// Its name, as a backend's, and that of its tap device.
    pub name: String,
    /// Its number on the shared segment; the lab's own backends have 0 and up.
    pub number: u8,
    /// The kernel.
    pub release: Release,
    /// Largest packet on its link, bytes.
    pub mtu: u16,
}

impl VmOptions {
    /// A machine on a link like those of the lab's other backends, with Linux 6.1: what most have.
    #[must_use]
    pub fn new(name: &str, number: u8) -> Self {
        Self {
            name: name.to_owned(),
            number,
            release: Release::V6_1,
            mtu: 1500,
        }
    }
}

/// A running machine; switched off on drop, which also takes its tap device away. Drop it before its lab.
#[derive(Debug)]
pub struct VmBackend {
    machine: Machine,
    options: VmOptions,
    router: String,
}

impl VmBackend {
    /// Boots a machine on the segment of a one-armed lab: its addresses and those of the VIPs are set, its default
    /// routes lead to the router. Takes 3 s on an idle machine.
    ///
    /// # Errors
    /// The lab has two arms, the kernel cannot be fetched, QEMU is missing, or the machine does not boot.
    pub fn boot(lab: &Lab, options: VmOptions) -> Result<Self> {
        ensure!(
            lab.topology() == Topology::OneArm,
            "a machine can only be joined to a one-armed lab"
        );
        let kernel = Kernel::get(options.release)?;
        let directory = lab.directory().join(format!("vm-{}", options.name));
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let mut image = Image::new(&directory.join("image.cpio"), &kernel, &MODULES)?;
        image.program(&find_binary("ebb-lab", "EBB_LAB_BIN")?.to_string_lossy())?;
        let image = image.finish()?;
        let router = lab.netns("router").clone();
        let (tap, mtu) = (&options.name, options.mtu);
        let script = format!(
            "tuntap add dev {tap} mode tap\nlink set {tap} mtu {mtu} master br0\nlink set {tap} up\n"
        );
        kernel::ip_batch(Some(router.name()), &script)?;
        let joint = Joint {
            tap: tap.clone(),
            mac: [0x02, 0xeb, 0xb0, 0x00, 0x01, options.number],
            mtu,
            netns: router.clone(),
        };
        let mut backend = Self {
            machine: Machine::boot(&kernel, &image, &directory, Some(&joint))?,
            options,
            router: router.name().to_owned(),
        };
        backend.set_up()?;
        Ok(backend)
    }

    fn set_up(&mut self) -> Result<()> {
        for (name, value) in [
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // It must not tell the segment about its VIPs.
            ("ipv4/conf/all/arp_ignore", "1"),
            ("ipv4/conf/all/arp_announce", "2"),
        ] {
            self.set(name, value)?;
        }
        let mut script = String::from("link set eth0 up\n");
        for family in Family::BOTH {
            let (own, vip) = (self.address(family), address::vip(family));
            let (bits, link_bits) = (family.bits(), family.link_bits());
            let gateway = address::router_front(family);
            // IPv4 knows no duplicate address detection, and `ip` ignores the word there.
            script += &format!("addr add {own}/{link_bits} dev eth0 nodad\n");
            script += &format!("addr add {vip}/{bits} dev lo nodad\n");
            script += &format!("route add {} via {gateway}\n", family.everywhere());
        }
        self.ip(&script)
    }

    /// Its own address.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        address::one_arm_backend(family, self.options.number)
    }

    /// The machine, to run other programs in it.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Runs a script for `ip -batch` inside: tunnel devices, addresses, routes.
    ///
    /// # Errors
    /// A line of it fails.
    pub fn ip(&mut self, script: &str) -> Result<()> {
        self.machine
            .output(&["ip", "-batch", "-"], script)
            .map(drop)
    }

    /// Writes a setting below /proc/sys/net inside.
    ///
    /// # Errors
    /// It does not exist, or not with this value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        self.machine.write(&format!("/proc/sys/net/{name}"), value)
    }

    /// Starts the lab's own server inside and waits until it listens. It answers with the machine's name.
    ///
    /// # Errors
    /// It does not start.
    pub fn serve(&mut self, listen: &[SocketAddr]) -> Result<()> {
        let name = self.options.name.clone();
        let mut argv = vec!["ebb-lab", "serve", "--name", &name];
        let listen: Vec<String> = listen.iter().map(SocketAddr::to_string).collect();
        for address in &listen {
            argv.extend(["--listen", address]);
        }
        self.machine.start(&argv, "listening ")
    }
}

impl Drop for VmBackend {
    fn drop(&mut self) {
        let script = format!("link del {}\n", self.options.name);
        // The lab's end takes it along otherwise.
        let _ = kernel::ip_batch(Some(&self.router), &script);
    }
}
