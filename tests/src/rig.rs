//! The loaded program with hand-made maps, run on single packets (BPF_PROG_TEST_RUN).

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions};
use lb_common::{
    Addr,
    abi::{BackendRecord, BackendStats, ServiceRecord, Slot, backend_flags, mode, service_flags},
    checksum,
    entry::{FlowEntry, FlowKey},
    full_nat::Sources,
    hash::HashKey,
    index::{IndexEntry, kind, kind_of, selector, server_key},
    outcome::Outcome,
    steer,
    trace::TraceFilter,
    tunnel,
};
use lb_userspace::{
    datapath::{
        Datapath, Table, Verdict as Scan,
        bpf::{self, BpfDatapath, Options, VALUE_MAX},
        object,
        trace::{Record, Records},
    },
    model::spec::{Capacity, XdpMode},
};

use crate::client::raise_open_files;

mod pool;

pub use pool::Borrowed;

/// A program's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// XDP_DROP.
    Drop,
    /// XDP_PASS.
    Pass,
    /// XDP_TX.
    Tx,
    /// XDP_REDIRECT.
    Redirect,
    /// Anything else, among it XDP_ABORTED.
    Other(u32),
}

impl Verdict {
    /// From a program's return value.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Tx,
            4 => Verdict::Redirect,
            other => Verdict::Other(other),
        }
    }
}

/// The MAC addresses that the rig's backend `id` is reached with: destination, source.
pub fn backend_macs(id: u32) -> ([u8; 6], [u8; 6]) {
    (
        [2, 0xbe, 0, 0, 0, id as u8],
        [2, 0xeb, 0xb0, 0, 0, id as u8],
    )
}

/// Port that the rig's backends decapsulate at.
pub const TUNNEL_PORT: u16 = 6081;

/// The source of the outer headers to the backend with this address.
pub fn tunnel_source(backend: IpAddr) -> Addr {
    match backend {
        IpAddr::V4(_) => Addr::from_v4([10, 0, 0, 254]),
        IpAddr::V6(_) => Addr::from(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0xfe])),
    }
}

/// A service of the rig.
#[derive(Debug, Clone, Copy)]
pub struct ServiceSetup {
    /// Service id.
    pub id: u32,
    /// Where it listens.
    pub vip: SocketAddr,
    /// A [`mode`].
    pub mode: u8,
    /// [`lb_common::abi::service_flags`]; with `DATAGRAM` it is a UDP service.
    pub flags: u32,
}

impl ServiceSetup {
    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        if self.flags & service_flags::DATAGRAM == 0 {
            6
        } else {
            17
        }
    }
}

/// The program, loaded.
///
/// Packets go through the tracing program from [`Rig::trace`] on.
pub struct Rig {
    /// The data plane.
    pub datapath: Borrowed,
    index: Vec<IndexEntry>,
    services: Vec<ServiceSetup>,
    records: Option<Box<dyn Records>>,
}

const SMALL: Capacity = Capacity {
    services: 8,
    backends: 32,
    slots: 4096,
    flows: 1024,
    handshakes: 256,
    ports: 1024,
};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Interface index of `lo`, which test runs arrive by: a backend behind it is answered by XDP_TX.
pub const INGRESS: u32 = 1;

impl Rig {
    /// Loads the program with small tables. Moves this thread into a network namespace of its own, where the kernel
    /// forwards, and knows the way to 192.0.2.0/24 and 2001:db8:1::/64 (neighbour .1, ::1 alone).
    pub fn new() -> Result<Self> {
        Self::with_capacity(SMALL)
    }

    /// The same with its maps pinned, and programs that nobody uses again.
    pub fn pinned() -> Result<Self> {
        Self::with_object(object::XDP, SMALL)
    }

    /// The same with these sizes.
    pub fn with_capacity(capacity: Capacity) -> Result<Self> {
        own_namespace()?;
        // Each has some 150, and a guest lets a process have no more than 1024 until it asks.
        raise_open_files()?;
        Ok(Self::of(Borrowed::from_pool(capacity, || {
            load(object::XDP, capacity, VALUE_MAX)
        })?))
    }

    /// The same with the programs of another object file, and its maps pinned.
    pub fn with_object(object: &[u8], capacity: Capacity) -> Result<Self> {
        own_namespace()?;
        let (datapath, pins) = load(object, capacity, VALUE_MAX)?;
        Ok(Self::of(Borrowed::pinned(datapath, pins)?))
    }

    /// As [`Self::pinned`], on a kernel that keeps no values of more bytes than that in its maps.
    pub fn with_values_of(value_max: u32) -> Result<Self> {
        own_namespace()?;
        let (datapath, pins) = load(object::XDP, SMALL, value_max)?;
        Ok(Self::of(Borrowed::pinned(datapath, pins)?))
    }

    fn of(datapath: Borrowed) -> Self {
        Self {
            datapath,
            index: Vec::new(),
            services: Vec::new(),
            records: None,
        }
    }

    /// Where its maps are pinned, if they are.
    pub fn pins(&self) -> Option<&Path> {
        self.datapath.pins()
    }

    /// Puts the tracing program in front, where it shows what `filter` wants. It finds the maps by their pins, so the
    /// rig must be [`Rig::pinned`].
    pub fn trace(&mut self, filter: &TraceFilter) -> Result<()> {
        self.pins().context("the maps are not pinned")?;
        let tracer = self.datapath.prepare_trace()?()?;
        self.datapath.begin_trace(tracer.program, filter)?;
        self.records = Some(tracer.records);
        Ok(())
    }

    /// Has it show other packets.
    pub fn change_trace(&mut self, filter: &TraceFilter) -> Result<()> {
        Ok(self.datapath.change_trace(filter)?)
    }

    /// What was shown since it was asked last.
    pub fn shown(&mut self) -> Vec<Record> {
        let records = self.records.as_mut();
        records.map_or_else(Vec::new, |records| {
            std::iter::from_fn(|| records.next()).collect()
        })
    }

    /// How many records found no room.
    pub fn lost(&self) -> Result<u64> {
        Ok(self
            .records
            .as_ref()
            .map_or(Ok(0), |records| records.lost())?)
    }

    /// A service whose slots all have this owner.
    pub fn service(&mut self, setup: ServiceSetup, slots: &[Slot]) -> Result<()> {
        self.service_with(setup, slots, |_| {})
    }

    /// A service whose record is changed by `edit` at last.
    pub fn service_with(
        &mut self,
        setup: ServiceSetup,
        slots: &[Slot],
        edit: impl FnOnce(&mut ServiceRecord),
    ) -> Result<()> {
        let mut record = ServiceRecord {
            key: HashKey::from_number(1),
            vip: Addr::from(setup.vip.ip()),
            port: setup.vip.port().to_be(),
            protocol: setup.protocol(),
            mode: setup.mode,
            flags: setup.flags,
            linger_ticks: self.datapath.ticks_per_second() * 2,
            affinity_mask: Addr::prefix_mask(128),
            tunnel_port: TUNNEL_PORT.to_be(),
            ..ServiceRecord::default()
        };
        record.set_idle(self.datapath.ticks_per_second() * 300);
        edit(&mut record);
        self.datapath.put_service(setup.id, &record)?;
        self.datapath.publish_table(setup.id, slots, &[])?;
        self.services.push(setup);
        let own = if record.last_port == 0 {
            selector(record.port, setup.protocol(), kind::SERVICE)
        } else {
            self.numbered(record.vip, setup.protocol(), kind::RANGE)
        };
        self.index.push(IndexEntry {
            address: record.vip,
            selector: own,
            service: setup.id,
            backend: 0,
        });
        self.index.push(IndexEntry {
            address: record.vip,
            selector: selector(0, 0, kind::VIP),
            service: setup.id,
            backend: 0,
        });
        self.datapath.publish_index(&self.index)?;
        Ok(())
    }

    /// The server ids that a QUIC service's backends go by, in place of those it had: server id, backend.
    pub fn server_ids(&mut self, service: u32, servers: &[(u64, u32)]) -> Result<()> {
        self.index
            .retain(|entry| kind_of(entry.selector) != kind::SERVER_ID || entry.service != service);
        for (server, backend) in servers {
            let (address, selector) = server_key(service, *server);
            self.index.push(IndexEntry {
                address,
                selector,
                service,
                backend: *backend,
            });
        }
        Ok(self.datapath.publish_index(&self.index)?)
    }

    /// The next free selector of this kind at an address.
    fn numbered(&self, address: Addr, protocol: u8, kind: u8) -> u64 {
        let taken = |selector: u64| {
            let same = |entry: &IndexEntry| entry.address == address && entry.selector == selector;
            self.index.iter().any(same)
        };
        (0..)
            .map(|number| selector(number, protocol, kind))
            .find(|selector| !taken(*selector))
            .expect("65536 are enough")
    }

    /// A backend of that service, reachable through `lo` and taking new flows.
    pub fn backend(&mut self, service: &ServiceSetup, id: u32, address: SocketAddr) -> Result<()> {
        let flags = backend_flags::VALID | backend_flags::ACCEPTING | backend_flags::NEXT_HOP;
        self.backend_with(service, id, address, |record| record.flags = flags)
    }

    /// A backend whose record is changed by `edit` at last.
    pub fn backend_with(
        &mut self,
        service: &ServiceSetup,
        id: u32,
        address: SocketAddr,
        edit: impl FnOnce(&mut BackendRecord),
    ) -> Result<()> {
        let (to, from) = backend_macs(id);
        let mut ethernet = [0; 12];
        ethernet[..6].copy_from_slice(&to);
        ethernet[6..].copy_from_slice(&from);
        let (vip, own) = (Addr::from(service.vip.ip()), Addr::from(address.ip()));
        let source = tunnel_source(address.ip());
        let mut record = BackendRecord {
            tunnel_source: source,
            tunnel_sum: tunnel::fixed_sum(&source, &own, TUNNEL_PORT.to_be()),
            address: own,
            ethernet,
            ifindex: INGRESS,
            flags: backend_flags::VALID | backend_flags::ACCEPTING | backend_flags::NEXT_HOP,
            port: address.port().to_be(),
            mtu: 1500,
            cut: 0,
            to_backend: checksum::address_delta(&vip, &own),
            to_client: checksum::address_delta(&own, &vip),
            service: service.id,
            ..BackendRecord::default()
        };
        edit(&mut record);
        record.set_room(service.mode);
        self.datapath.put_backend(id, &record)?;
        if mode::is_two_way(service.mode) {
            let selector = if record.port == 0 {
                self.numbered(own, service.protocol(), kind::REPLY_RANGE)
            } else {
                selector(record.port, service.protocol(), kind::REPLY)
            };
            let entry = IndexEntry {
                address: own,
                selector,
                service: service.id,
                backend: id,
            };
            if !self.index.contains(&entry) {
                self.index.push(entry);
                self.datapath.publish_index(&self.index)?;
            }
        }
        Ok(())
    }

    /// Where ports for `full-nat` come from, of both families: first port, last port, addresses.
    pub fn nat(&mut self, ports: (u16, u16), addresses: &[&str]) -> Result<()> {
        let all: Vec<IpAddr> = addresses
            .iter()
            .map(|text| text.parse())
            .collect::<std::result::Result<_, _>>()?;
        let sources = [true, false].map(|is_v4| {
            let own: Vec<_> = all.iter().filter(|ip| ip.is_ipv4() == is_v4).collect();
            let mut sources = Sources {
                range: Sources::range(ports.0, ports.1, own.len()),
                ..Sources::default()
            };
            for (place, ip) in sources.addresses.iter_mut().zip(own) {
                *place = Addr::from(*ip);
            }
            sources
        });
        Ok(self.datapath.put_sources(&sources)?)
    }

    /// Sets and clears flags of a backend.
    pub fn flags(&mut self, id: u32, set: u32, clear: u32) -> Result<()> {
        let mut record = self.datapath.backend(id)?;
        record.flags = (record.flags | set) & !clear;
        Ok(self.datapath.put_backend(id, &record)?)
    }

    /// Runs the balancer on a frame: verdict, the frame afterwards, and the one outcome that was counted.
    pub fn run(&mut self, frame: &[u8]) -> Result<(Verdict, Vec<u8>, Outcome)> {
        let before = self.all_outcomes()?;
        let (verdict, out) = self.run_unlooked(frame)?;
        let after = self.all_outcomes()?;
        let counted: Vec<Outcome> = Outcome::ALL
            .iter()
            .copied()
            .filter(|outcome| after[*outcome as usize] != before[*outcome as usize])
            .collect();
        let total: u64 = after.iter().sum::<u64>() - before.iter().sum::<u64>();
        ensure!(
            total == 1 && counted.len() == 1,
            "{total} outcomes counted for one packet: {counted:?}"
        );
        Ok((verdict, out, counted[0]))
    }

    /// The same without looking at the counters, which takes longer than the packet.
    pub fn run_unlooked(&mut self, frame: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        let mut out = vec![0u8; 4096];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = self
            .datapath
            .front()?
            .test_run(options)
            .context("BPF_PROG_TEST_RUN")?;
        out.truncate(result.data_size_out as usize);
        Ok((Verdict::from_code(result.return_value), out))
    }

    /// Runs the balancer on a frame without looking at the counters: the verdict alone, quickly.
    pub fn run_fast(&mut self, frame: &[u8]) -> Result<Verdict> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = self.datapath.front()?.test_run(options)?;
        Ok(Verdict::from_code(result.return_value))
    }

    fn all_outcomes(&self) -> Result<Vec<u64>> {
        let mut sums = vec![0; Outcome::COUNT];
        // What belongs to no service is counted for id 0.
        let last = self.services.iter().map(|service| service.id).max();
        for service in 0..=last.unwrap_or(0) {
            for (sum, count) in sums.iter_mut().zip(self.datapath.outcomes(service)?) {
                *sum += count;
            }
        }
        Ok(sums)
    }

    /// How many openings and how many adoptions a CPU records in one tick.
    pub fn limit(&mut self, openings_per_tick: u32, adoptions_per_tick: u32) -> Result<()> {
        Ok(self
            .datapath
            .set_limits(openings_per_tick, adoptions_per_tick)?)
    }

    /// How many flows a CPU lets begin in a second: over all services, and of the service.
    pub fn limit_flows(&mut self, all: u32, service: u32, of_service: u32) -> Result<()> {
        self.datapath.put_flow_limit(all)?;
        let mut record = self.datapath.service(service)?;
        record.flows_per_second = of_service;
        Ok(self.datapath.put_service(service, &record)?)
    }

    /// A backend's counters.
    pub fn stats(&self, backend: u32) -> Result<BackendStats> {
        Ok(self.datapath.backend_stats(backend)?)
    }

    /// Entries in use.
    pub fn entries(&mut self, table: Table) -> Result<Vec<FlowEntry>> {
        let mut entries = Vec::new();
        self.datapath.scan(table, &mut |entry| {
            entries.push(*entry);
            Scan::Keep
        })?;
        Ok(entries)
    }

    /// Empties a table, as when it is lost.
    pub fn lose(&mut self, table: Table) -> Result<()> {
        Ok(self.datapath.scan(table, &mut |_| Scan::Remove)?)
    }

    /// Slot of a client's flow to a service.
    pub fn slot_of(&self, service: &ServiceSetup, client: SocketAddr) -> Result<u32> {
        let record = self.datapath.service(service.id)?;
        let key = FlowKey {
            client: Addr::from(client.ip()),
            ports: FlowKey::pack(
                client.port().to_be(),
                service.vip.port().to_be(),
                service.id,
            ),
        };
        Ok(steer::slot_index(
            &record,
            &key,
            steer::flow_hash(&record, &key),
        ))
    }
}

/// Loads the object with pins of its own.
fn load(object: &[u8], capacity: Capacity, value_max: u32) -> Result<(BpfDatapath, PathBuf)> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let pins = PathBuf::from(format!(
        "/sys/fs/bpf/ebb-rig-{}-{number}",
        std::process::id()
    ));
    let options = Options {
        pins: pins.clone(),
        interfaces: Vec::new(),
        mode: XdpMode::Auto,
        capacity,
        trace: false,
        value_max,
    };
    // What a failed attempt pinned would stay for ever.
    let datapath = BpfDatapath::open(object, &options)
        .inspect_err(|_| std::mem::drop(bpf::remove_pins(&pins)))?;
    Ok((datapath, pins))
}

/// A network namespace for this thread, with a veth pair whose near end is the way to the clients' networks.
fn own_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("unshare(CLONE_NEWNET): root is needed")?;
    let commands = [
        "link set lo up",
        "link add up0 type veth peer name far0",
        "link set up0 address 02:00:00:00:00:01 up",
        "link set far0 up",
        "addr add 192.0.2.254/24 dev up0",
        "addr add 2001:db8:1::fe/64 dev up0 nodad",
        "neigh add 192.0.2.1 lladdr 02:00:00:00:00:c1 dev up0",
        "neigh add 2001:db8:1::1 lladdr 02:00:00:00:00:c1 dev up0",
    ];
    for command in commands {
        let status = Command::new("ip")
            .args(command.split(' '))
            .status()
            .context("running ip (iproute2)")?;
        ensure!(status.success(), "ip {command}: {status}");
    }
    // The thread's own /proc/thread-self/net leads to its namespace; sysctls follow the reader's namespace as well.
    for sysctl in [
        "ipv4/conf/all/forwarding",
        "ipv4/conf/lo/forwarding",
        "ipv6/conf/all/forwarding",
    ] {
        std::fs::write(format!("/proc/sys/net/{sysctl}"), "1")
            .with_context(|| format!("sysctl {sysctl}"))?;
    }
    Ok(())
}

/// The address of `ip` with a port.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("a literal address"), port)
}
