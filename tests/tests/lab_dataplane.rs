//! The loaded program on the lab's wires, with hand-made maps and live TCP: what the rows of `packet.rs` cannot
//! show, that frames sent by XDP arrive where they should.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use ebb_tests::{
    client::{Connection, Load, LoadOptions, Reason},
    lab::{Answers, Lab, LabOptions, Topology, address},
    scenario::{LIMIT, can_run},
};
use lb_common::{
    Addr,
    abi::{BackendRecord, Known, ServiceRecord, Slot, backend_flags, mode},
    checksum,
    hash::HashKey,
    index::{IndexEntry, kind, selector},
};
use lb_userspace::{
    datapath::{
        Datapath,
        bpf::{self, BpfDatapath, Options, VALUE_MAX},
        object,
    },
    model::spec::{Capacity, XdpMode},
};

const TCP: u8 = 6;
const PORT: u16 = 8080;
const SERVICE: u32 = 1;
const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];

fn answers(mode: u8) -> Answers {
    if mode == mode::L2 {
        Answers::Direct
    } else {
        Answers::ThroughBalancer
    }
}

fn vip() -> SocketAddr {
    SocketAddr::new(address::VIP, PORT)
}

/// Loads the program onto the balancer's interfaces, with every backend in turn in the slots.
fn balance(lab: &Lab, mode: u8) -> Result<BpfDatapath> {
    let capacity = Capacity {
        services: 8,
        backends: 32,
        slots: 4096,
        flows: 1024,
        handshakes: 256,
        ports: 1024,
    };
    let options = Options {
        pins: lab.pins().join("ebb"),
        interfaces: lab.lb_interfaces(),
        mode: XdpMode::Native,
        capacity,
        trace: false,
        value_max: VALUE_MAX,
    };
    let mut datapath = lab
        .netns("lb")
        .run(|| BpfDatapath::open(object::XDP, &options))??;
    let mut index = vec![IndexEntry {
        address: Addr::from(address::VIP),
        selector: selector(PORT.to_be(), TCP, kind::SERVICE),
        service: SERVICE,
        backend: 0,
    }];
    for (name, id) in lab.backends().iter().zip(1..) {
        datapath.put_backend(id, &backend(lab, name)?)?;
        if mode == mode::NAT {
            let address = Addr::from(lab.backend(name));
            let selector = selector(PORT.to_be(), TCP, kind::REPLY);
            index.push(IndexEntry {
                address,
                selector,
                service: SERVICE,
                backend: id,
            });
        }
    }
    let second = datapath.ticks_per_second();
    let record = ServiceRecord {
        key: HashKey::from_number(1),
        vip: Addr::from(address::VIP),
        port: PORT.to_be(),
        protocol: TCP,
        mode,
        idle_ticks: second * 300,
        linger_ticks: second * 2,
        ..ServiceRecord::default()
    };
    datapath.put_service(SERVICE, &record)?;
    let ids = (1..=BACKENDS.len() as u32).cycle().take(331);
    let slots: Vec<_> = ids.map(|id| Slot::new(id, id, false)).collect();
    datapath.publish_table(SERVICE, &slots, &[])?;
    datapath.publish_index(&index)?;
    Ok(datapath)
}

fn backend(lab: &Lab, name: &str) -> Result<BackendRecord> {
    let outgoing = match lab.topology() {
        Topology::OneArm => "eth0".to_owned(),
        Topology::TwoArm => format!("to-{name}"),
    };
    let (ifindex, source) = lab.interface("lb", &outgoing)?;
    let (_, target) = lab.interface(name, "eth0")?;
    let mut ethernet = [0; 12];
    ethernet[..6].copy_from_slice(&target);
    ethernet[6..].copy_from_slice(&source);
    let (vip, own) = (Addr::from(address::VIP), Addr::from(lab.backend(name)));
    Ok(BackendRecord {
        address: own,
        ethernet,
        ifindex,
        flags: backend_flags::VALID | backend_flags::ACCEPTING | backend_flags::NEXT_HOP,
        port: PORT.to_be(),
        mtu: 1500,
        to_backend: checksum::address_delta(&vip, &own),
        to_client: checksum::address_delta(&own, &vip),
        service: SERVICE,
        ..BackendRecord::default()
    })
}

/// Long and short connections through the program reach every backend, and every byte is right.
fn carries(topology: Topology, mode: u8) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::create(LabOptions::new(topology, answers(mode), &BACKENDS))?;
    let _servers = lab.serve(PORT)?;
    let datapath = balance(&lab, mode)?;
    let options = LoadOptions {
        long: 60,
        ramp: Duration::from_millis(300),
        limit: LIMIT,
        ..LoadOptions::new(vip())
    };
    let load = Load::start(lab.netns("client"), options)?;
    assert!(
        load.wait_long(60, LIMIT),
        "{:?} {:?}",
        load.now(),
        load.broken()
    );
    assert!(
        load.wait(LIMIT, |now| now.requests_ok > 100 && now.frames > 500),
        "{:?}",
        load.now()
    );
    let everywhere = load.now();
    let report = load.stop(Duration::from_millis(100));
    assert!(report.is_clean(), "{}", report.summary());
    for name in BACKENDS {
        assert!(
            everywhere.long.contains_key(name) && everywhere.short.contains_key(name),
            "{everywhere:?}"
        );
        // Backends see the client's own address, and nothing came to them that the client does not know of.
        let stats = lab.stats(name, PORT)?;
        let peers: [IpAddr; 1] = [address::CLIENT];
        let on_it = report
            .flows
            .iter()
            .filter(|flow| flow.backend.as_deref() == Some(name))
            .count();
        assert_eq!(stats.from_clients(&peers).count(), on_it);
    }
    // The frames did go through the program, not past it.
    let packets: u64 = (1..=3)
        .map(|id| datapath.backend_stats(id).map(|stats| stats.packets))
        .sum::<Result<_, _>>()?;
    assert!(
        packets > report.frames,
        "{packets} packets for {} frames",
        report.frames
    );
    forgets(&lab, datapath)
}

/// Whoever removes the maps takes back what was noted of them first: should he die on the way, some will be new.
fn forgets(lab: &Lab, mut datapath: BpfDatapath) -> Result<()> {
    let known = Known {
        entries: 7,
        lost_s: 8,
        ..Known::default()
    };
    datapath.note_known(&known)?;
    assert_eq!(datapath.known()?, known);
    bpf::remove_pins(&lab.pins().join("ebb")).context("remove the pins")?;
    assert_eq!(datapath.known()?, Known::default());
    Ok(())
}

#[test]
fn nat_on_one_segment() -> Result<()> {
    carries(Topology::OneArm, mode::NAT)
}

#[test]
fn nat_to_backends_on_veths_of_the_same_host() -> Result<()> {
    carries(Topology::TwoArm, mode::NAT)
}

#[test]
fn l2_on_one_segment() -> Result<()> {
    carries(Topology::OneArm, mode::L2)
}

#[test]
fn l2_to_backends_on_veths_of_the_same_host() -> Result<()> {
    carries(Topology::TwoArm, mode::L2)
}

#[test]
fn without_pass_programs_frames_vanish() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for topology in [Topology::OneArm, Topology::TwoArm] {
        let options = LabOptions::new(topology, answers(mode::NAT), &BACKENDS);
        let lab = Lab::create(LabOptions {
            pass_programs: false,
            ..options
        })?;
        let _servers = lab.serve(PORT)?;
        let _datapath = balance(&lab, mode::NAT)?;
        let limit = Duration::from_millis(500);
        let opened = lab
            .netns("client")
            .block_on(|| async move { Connection::open(None, vip(), limit).await.err() })?;
        assert_eq!(
            opened
                .context("a frame arrived without a pass program")?
                .reason,
            Reason::Timeout
        );
    }
    Ok(())
}
