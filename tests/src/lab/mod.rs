//! A small internet of network namespaces: client, router, balancer, backends.
//!
//! ```text
//!   OneArm                                       TwoArm
//!   client --- router[br0] --- lb                client --- router --- lb --- b1
//!                 |--- b1                                              |--- b2
//!                 |--- b2                                              `--- ...
//! ```
//!
//! On request a second client, `side`, is on a network of its own with the balancer. Everything has IPv4 and IPv6
//! addresses ([`address`]).
//!
//! Several labs run side by side; each goes with its [`Lab`], and what a killed process left goes with the next
//! one that is made.

pub mod address;
mod child;
mod ebb;
mod kernel;
mod memory;
mod mortal;
mod netns;
mod place;
mod plan;
mod systemd;
mod vm;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lb_userspace::datapath::pass;

use address::Family;
pub use child::{Guard, Lifetime};
pub use ebb::{Cli, Ebb, Reach, find_binary};
pub use memory::Memory;
pub use mortal::{Fate, live};
pub use netns::Netns;
use place::Place;
pub use plan::{Answers, LabOptions, Topology};
pub use systemd::Machine;
pub use vm::{VmBackend, VmOptions};

use crate::{client, server};

/// Time in which a server of the lab must answer, on a machine that has other things to do.
const LIMIT: Duration = Duration::from_secs(20);

/// The fixed name of the lab to play in; its namespaces are `ebb-client`, `ebb-lb` and so on.
pub const PLAYGROUND: &str = "ebb";

/// A lab; all of it goes on drop unless [`Lab::keep`] is called.
///
/// Declare what runs in it after it, so that it ends before.
#[derive(Debug)]
pub struct Lab {
    name: String,
    options: LabOptions,
    netns: BTreeMap<String, Netns>,
    /// Links of the pass programs, which stay attached as long as these are open (or pinned).
    _links: Vec<OwnedFd>,
    place: Place,
    lifetime: Lifetime,
}

impl Lab {
    /// Makes a lab. Takes root and about 0.1 s.
    ///
    /// # Errors
    /// Missing rights or tools, a kernel without what is needed, or a lab of the same fixed name.
    pub fn create(options: LabOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        options.check()?;
        if !nix::unistd::geteuid().is_root() {
            bail!("make a lab of network namespaces: not root\nhint: run it as root or with sudo");
        }
        let lifetime = if options.name.is_some() {
            Lifetime::Detached
        } else {
            Lifetime::Parent
        };
        let name = options.name.clone().unwrap_or_else(|| {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            format!("{}{}-{count}", place::PASSING, std::process::id())
        });
        kernel::mount_bpf_fs()?;
        let place = Place::create(&name)?;
        let lab = Self {
            name,
            options,
            netns: BTreeMap::new(),
            _links: Vec::new(),
            place,
            lifetime,
        };
        // From here on, drop removes whatever was made.
        lab.build()
    }

    fn build(mut self) -> Result<Self> {
        let roles: Vec<String> = self
            .options
            .roles()
            .into_iter()
            .map(str::to_owned)
            .collect();
        let mut script = String::new();
        for role in &roles {
            let name = self.prefixed(role);
            self.place.note_netns(&name)?;
            script.push_str(&format!("netns add {name}\n"));
        }
        kernel::ip_batch(None, &script)?;
        for role in &roles {
            let netns = Netns::open(&self.prefixed(role))?;
            netns.run(|| kernel::write_settings(&self.options.settings(role)))??;
            self.netns.insert(role.clone(), netns);
        }
        for (role, script) in self.options.scripts(&self.prefixed("")) {
            kernel::ip_batch(Some(&self.prefixed(&role)), &script)?;
        }
        for netns in self.netns.values() {
            netns.run(kernel::finish_checksums)??;
        }
        self._links = self.attach_pass_programs()?;
        Ok(self)
    }

    /// Takes the link between the balancer and the second client away, as a container's goes with it.
    ///
    /// # Errors
    /// It is not there.
    pub fn unplug_side(&self) -> Result<()> {
        kernel::ip_batch(Some(&self.prefixed("lb")), "link del side\n")
    }

    /// Makes that link anew: other interfaces of the same names, with the same addresses.
    ///
    /// # Errors
    /// It is there already.
    pub fn plug_side(&mut self) -> Result<()> {
        for (role, script) in plan::side_scripts(&self.prefixed("")) {
            kernel::ip_batch(Some(&self.prefixed(&role)), &script)?;
        }
        for role in ["lb", "side"] {
            self.netns(role).run(kernel::finish_checksums)??;
        }
        let link = self.attach_pass("side", "eth0")?;
        self._links.push(link);
        Ok(())
    }

    fn attach_pass(&self, role: &str, interface: &str) -> Result<OwnedFd> {
        let attach = || anyhow::Ok(pass::attach_pass(kernel::ifindex(interface)?)?);
        self.netns(role)
            .run(attach)?
            .with_context(|| format!("in {role}"))
    }

    fn attach_pass_programs(&self) -> Result<Vec<OwnedFd>> {
        let mut links = Vec::new();
        let interfaces = match self.options.pass_programs {
            true => self.far_interfaces(),
            false => Vec::new(),
        };
        for (role, interface) in interfaces {
            let link = self.attach_pass(&role, &interface)?;
            if self.lifetime == Lifetime::Detached {
                pass::pin(
                    link.as_fd(),
                    &self.place.pins().join(format!("pass-{role}-{interface}")),
                )?;
            }
            links.push(link);
        }
        Ok(links)
    }

    fn prefixed(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    /// The lab's name; a namespace is `NAME-ROLE` to `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A namespace by role: `client`, `router`, `lb` or a backend's name.
    ///
    /// # Panics
    /// There is no such role: a mistake in the test.
    #[must_use]
    pub fn netns(&self, role: &str) -> &Netns {
        self.netns
            .get(role)
            .unwrap_or_else(|| panic!("the lab has no {role:?}, only {:?}", self.options.roles()))
    }

    /// Roles that have a namespace.
    #[must_use]
    pub fn roles(&self) -> Vec<&str> {
        self.options.roles()
    }

    /// A command that will run in a namespace, with the caller's mounts.
    #[must_use]
    pub fn command(&self, role: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.netns(role).command(program)
    }

    /// Starts a program in a namespace; it ends with its guard. Its error output is in the log `NAME`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Guard> {
        let guard = Guard::spawn(name, command, Some(self.log(name)), self.lifetime)?;
        if self.lifetime == Lifetime::Detached {
            self.place.note_process(guard.pid())?;
        }
        Ok(guard)
    }

    /// Starts the lab's own server on every backend, one process each, and waits until all listen.
    ///
    /// # Errors
    /// A server cannot be started.
    pub fn serve(&self, port: u16) -> Result<BTreeMap<String, Guard>> {
        let mut guards = BTreeMap::new();
        for name in &self.options.backends {
            guards.insert(name.clone(), self.serve_on(name, port)?);
        }
        Ok(guards)
    }

    /// Starts the lab's own server on one backend and waits until it listens.
    ///
    /// # Errors
    /// The server cannot be started.
    pub fn serve_on(&self, backend: &str, port: u16) -> Result<Guard> {
        let mut command = self.command(backend, find_binary("ebb-lab", "EBB_LAB_BIN")?);
        command.args([
            "serve",
            "--name",
            backend,
            "--listen",
            &format!("0.0.0.0:{port}"),
            "--listen",
            &format!("[::]:{port}"),
        ]);
        // A datagram's answer comes from the address that its socket is bound to.
        let mut own = vec![self.backend(backend), self.backend_in(Family::V6, backend)];
        if self.options.answers == Answers::Direct {
            own.push(address::VIP);
        }
        for ip in own {
            command.args(["--udp", &SocketAddr::new(ip, port).to_string()]);
        }
        let mut guard = self.spawn(&format!("server-{backend}"), command)?;
        if self.lifetime == Lifetime::Parent {
            guard.wait_line("listening ")?;
        } else {
            self.wait_port(backend, port)?;
        }
        Ok(guard)
    }

    fn wait_port(&self, backend: &str, port: u16) -> Result<()> {
        let deadline = std::time::Instant::now() + LIMIT;
        while let Err(error) = self.stats(backend, port) {
            if std::time::Instant::now() > deadline {
                return Err(error.context(format!("the server on {backend} does not answer")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What a server knows of its connections, asked inside the backend's namespace: no packet of it passes the
    /// balancer.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn stats(&self, backend: &str, port: u16) -> Result<server::Stats> {
        let target = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        let asked = self.netns(backend).block_on(|| async move {
            let mut connection = client::Connection::open(None, target, LIMIT).await?;
            connection.get_text("/stats").await
        })?;
        let (_, body) = asked.with_context(|| format!("GET {target}/stats on {backend}"))?;
        Ok(serde_json::from_str(&body)?)
    }

    /// Names of the backends, in order.
    #[must_use]
    pub fn backends(&self) -> &[String] {
        &self.options.backends
    }

    /// IPv4 address of a backend.
    ///
    /// # Panics
    /// There is no such backend: a mistake in the test.
    #[must_use]
    pub fn backend(&self, name: &str) -> IpAddr {
        self.backend_in(Family::V4, name)
    }

    /// Address of a backend.
    ///
    /// # Panics
    /// There is no such backend: a mistake in the test.
    #[must_use]
    pub fn backend_in(&self, family: Family, name: &str) -> IpAddr {
        let n = self.options.backends.iter().position(|b| b == name);
        let n = n.unwrap_or_else(|| panic!("the lab has no backend {name:?}"));
        self.options.backend(family, n)
    }

    /// How balancer and backends are joined.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.options.topology
    }

    /// The balancer's interfaces, the one towards the router first: those that need the XDP program.
    #[must_use]
    pub fn lb_interfaces(&self) -> Vec<String> {
        self.options.lb_interfaces()
    }

    /// Where what the balancer sends arrives, and an XDP program is needed: role and interface. The one towards the
    /// router first.
    #[must_use]
    pub fn far_interfaces(&self) -> Vec<(String, String)> {
        self.options.pass_interfaces()
    }

    /// Whether backends get tunnels and take them apart by `ebb decap`.
    #[must_use]
    pub fn has_decap(&self) -> bool {
        self.options.decap
    }

    /// Index and MAC address of an interface of a namespace.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn interface(&self, role: &str, name: &str) -> Result<(u32, [u8; 6])> {
        let find = || anyhow::Ok((kernel::ifindex(name)?, kernel::mac(name)?));
        self.netns(role)
            .run(find)?
            .with_context(|| format!("in {role}"))
    }

    /// The lab's own directory: `ebb.sock`, `ebb.toml`, `state/`, `logs/`.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.place.directory()
    }

    /// The lab's own directory in the BPF file system.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.place.pins()
    }

    /// Where the error output of what [`Lab::spawn`] started as `name` is.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory().join("logs").join(format!("{name}.log"))
    }

    /// Leaves the lab as it is; [`Lab::remove`] takes it down. Only labs with a fixed name.
    ///
    /// # Panics
    /// The lab has no fixed name: its programs would end with this process anyway.
    pub fn keep(self) {
        assert_eq!(
            self.lifetime,
            Lifetime::Detached,
            "only a lab with a fixed name can be kept"
        );
        // Closes the descriptors but does not remove what they stand for.
        let mut kept = std::mem::ManuallyDrop::new(self);
        kept.netns.clear();
        kept._links.clear();
    }

    /// Takes down a kept lab; whether there was one. Its processes are killed.
    pub fn remove(name: &str) -> bool {
        place::remove(name)
    }

    /// The namespace of a kept lab.
    ///
    /// # Errors
    /// There is no such lab or role.
    pub fn find_netns(name: &str, role: &str) -> Result<Netns> {
        let full = format!("{name}-{role}");
        Netns::open(&full).with_context(|| {
            let prefix = format!("{name}-");
            let roles: Vec<_> = netns::names()
                .into_iter()
                .filter_map(|n| n.strip_prefix(&prefix).map(str::to_owned))
                .collect();
            match roles.is_empty() {
                true => "no lab is up\nhint: cargo xtask lab up".to_owned(),
                false => format!(
                    "no namespace {role:?}\nhint: there are {}",
                    roles.join(", ")
                ),
            }
        })
    }

    /// Packets that an interface of a namespace has received, those that XDP took among them.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn received(&self, role: &str, interface: &str) -> Result<u64> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
        let table = self.netns(role).run(read)??;
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
        // Bytes, then packets.
        let packets = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
        packets.with_context(|| format!("no interface {interface} in {role}"))
    }

    /// MAC address of an interface of a namespace.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn mac_in(netns: &Netns, name: &str) -> Result<[u8; 6]> {
        netns.run(|| kernel::mac(name))?
    }

    /// Directory of a kept lab, by name.
    #[must_use]
    pub fn directory_of(name: &str) -> PathBuf {
        Path::new("/run/ebb-lab").join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        place::remove(&self.name);
    }
}
