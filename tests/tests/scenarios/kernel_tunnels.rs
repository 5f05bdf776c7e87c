//! The tunnel modes towards Linux's own tunnel devices: a backend that is a virtual machine with Debian's kernel takes
//! the packets out by ipip, sit, ip6_tunnel and fou, in every pair of families.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    capture::Capture,
    client::{Connection, raw::RawClient},
    config::{self, Service},
    lab::{
        Answers, Ebb, Lab, LabOptions, Topology, VmBackend, VmOptions,
        address::{self, Family},
    },
    outer::Outer,
    scenario::{LIMIT, backend, can_run},
};
use serde_json::Value;

use super::tunnel::{learned, transfer};

/// The machine's name, as backend and as server.
const VM: &str = "vm";
const NUMBER: u8 = 1;
/// UDP port of `gue` unless told otherwise.
const GUE: &str = "6080";
/// What the machine is asked for is little: its processor is emulated.
const FRAMES: u64 = 15;

/// Another address of the balancer, which the outer headers of `gue` are to have as their source.
fn chosen(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 2, 0, 9]),
        Family::V6 => IpAddr::from([0xfd00, 2, 0, 0, 0, 0, 0, 9]),
    }
}

/// One way through a tunnel.
struct Case {
    forward: &'static str,
    /// Family of the service, and of the machine's address.
    inner: Family,
    outer: Family,
    /// The machine's device that the packets come out of.
    device: &'static str,
    /// Bytes of the outer headers.
    overhead: u32,
}

/// By increasing room that the headers take: a path MTU that a client has learned never grows.
const CASES: [Case; 8] = [
    case("ipip", Family::V4, Family::V4, "ipip", 20),
    case("gue", Family::V4, Family::V4, "gueipip", 28),
    case("ipip", Family::V4, Family::V6, "ip6tnl", 40),
    case("gue", Family::V4, Family::V6, "gueip6tnl", 48),
    case("ipip", Family::V6, Family::V4, "sit", 20),
    case("gue", Family::V6, Family::V4, "guesit", 28),
    case("ipip", Family::V6, Family::V6, "ip6tnl", 40),
    case("gue", Family::V6, Family::V6, "gueip6tnl", 48),
];

const fn case(
    forward: &'static str,
    inner: Family,
    outer: Family,
    device: &'static str,
    overhead: u32,
) -> Case {
    Case {
        forward,
        inner,
        outer,
        device,
        overhead,
    }
}

/// Tunnel devices that take packets of one source only: of the balancer's first address, or of the chosen one.
fn devices(vm: &VmBackend) -> String {
    let mut script = String::new();
    for (prefix, source) in [("", address::lb as fn(Family) -> IpAddr), ("gue", chosen)] {
        for (kind, mode, family) in [
            ("ipip", "ipip", Family::V4),
            ("sit", "ip6ip", Family::V4),
            ("ip6tnl", "any", Family::V6),
        ] {
            let (local, remote) = (vm.address(family), source(family));
            let device = format!("{prefix}{kind}");
            script += &format!(
                "link add {device} type {kind} mode {mode} local {local} remote {remote}\n\
                 link set {device} up\n"
            );
        }
    }
    script + &format!("fou add port {GUE} gue\nfou add port {GUE} gue -6\n")
}

fn service(lab: &Lab, vm: &VmBackend, number: u16, case: &Case) -> Service {
    let mut service = Service::blue_green(lab, case.forward);
    service.name = format!("tunnel{number}");
    service.family = case.inner;
    service.backend_at = Some(vm.address(case.outer));
    (service.port, service.backend_port) = (8000 + number, 8000 + number);
    service.pools = vec![("blue".into(), vec![VM.into()])];
    if case.forward == "gue" {
        service.more = format!("tunnel_source = \"{}\"\n", chosen(case.outer));
    }
    service
}

/// Bytes that came out of a device of the machine. Not packets: generic receive offload joins those before they are
/// counted.
fn came_out(vm: &mut VmBackend, device: &str) -> Result<u64> {
    let words = ["ip", "-s", "-j", "link", "show", "dev", device];
    let said = vm.machine().output(&words, "")?;
    let links: Value = serde_json::from_str(&said)?;
    links[0]["stats64"]["rx"]["bytes"]
        .as_u64()
        .with_context(|| format!("no bytes in {said}"))
}

#[test]
fn transfers_through_the_kernels_own_devices() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::create(LabOptions::new(Topology::OneArm, Answers::Direct, &["b1"]))?;
    for family in Family::BOTH {
        let (ip, bits) = (chosen(family), family.link_bits());
        // Deprecated: not what the kernel itself chooses as the source of `ipip`.
        let mut words = format!("addr add {ip}/{bits} dev eth0");
        if family == Family::V6 {
            words += " nodad preferred_lft 0";
        }
        let done = lab.command("lb", "ip").args(words.split(' ')).status()?;
        ensure!(done.success(), "ip {words}");
    }
    let mut vm = VmBackend::boot(&lab, VmOptions::new(VM, NUMBER))?;
    eprintln!("the machine runs Linux {}", vm.machine().kernel());
    let script = devices(&vm);
    vm.ip(&script)?;
    let services: Vec<Service> = (0..)
        .zip(&CASES)
        .map(|(number, case)| service(&lab, &vm, number, case))
        .collect();
    let listen: Vec<SocketAddr> = services
        .iter()
        .flat_map(|service| {
            [IpAddr::from([0; 4]), IpAddr::from([0; 16])]
                .map(|ip| SocketAddr::new(ip, service.port))
        })
        .collect();
    vm.serve(&listen)?;
    let ebb = Ebb::start(&lab, &config::file(&lab, &services))?;
    ebb.wait_status(LIMIT, |status| {
        (0..services.len()).all(|n| is_up(&status["services"][n]))
    })
    .context("health checks of the machine")?;

    for (case, service) in CASES.iter().zip(&services) {
        let what = format!("{} {:?} in {:?}", case.forward, case.inner, case.outer);
        one(&lab, &mut vm, case, service).context(what)?;
    }
    let status = ebb.status()?;
    for (n, case) in CASES.iter().enumerate() {
        let told = status["services"][n]["outcomes"]["answer_too_big"].as_u64();
        ensure!(
            told.unwrap_or(0) > 0,
            "{} {:?} in {:?}: {}",
            case.forward,
            case.inner,
            case.outer,
            status["services"][n]
        );
    }
    Ok(())
}

/// Whether the machine is a backend of the service in this status that is up.
fn is_up(service: &Value) -> bool {
    let status = serde_json::json!({"services": [service]});
    backend(&status, VM).is_some_and(|backend| {
        let hop = backend["next_hop"].as_str().unwrap_or_default();
        backend["health"] == "up" && hop.matches(':').count() == 5
    })
}

/// Transfers through one tunnel, both ways, beyond what fits; fragments; and what was on the wire.
fn one(lab: &Lab, vm: &mut VmBackend, case: &Case, service: &Service) -> Result<()> {
    let target = service.target();
    let before = came_out(vm, case.device)?;
    let bytes = transfer(lab, target, FRAMES)?;
    ensure!(
        learned(lab, target.ip())? == Some(1500 - case.overhead),
        "the client has learned {:?}",
        learned(lab, target.ip())?
    );
    let out = came_out(vm, case.device)? - before;
    ensure!(
        out > bytes,
        "{out} bytes came out of {} for an upload of {bytes}",
        case.device
    );
    in_fragments(lab, target)?;
    on_the_wire(lab, case, target)
}

/// A connection whose every packet with data comes in fragments: later ones have no flow, no UDP checksum over IPv6.
fn in_fragments(lab: &Lab, target: SocketAddr) -> Result<()> {
    let client = RawClient::open(lab, Family::of(target.ip()), 0)?;
    let mut conversation = client.conversation(target.port(), target, 1000)?;
    conversation.cut(24, 16);
    conversation.connect(LIMIT)?;
    let answer = conversation.get("/bytes/1000?seed=5", LIMIT)?;
    ensure!(
        answer.status == 200 && answer.backend == VM && answer.body.len() == 1000,
        "{answer:?}"
    );
    conversation.close(LIMIT)
}

/// The outer headers of some connections: right to the byte, from the source that was asked for, with a UDP source port
/// by flow.
fn on_the_wire(lab: &Lab, case: &Case, target: SocketAddr) -> Result<()> {
    const FLOWS: u16 = 24;
    let filter = match (case.forward, case.outer, case.inner) {
        ("gue", ..) => format!("udp dst port {GUE}"),
        (_, Family::V4, Family::V4) => "ip proto 4".into(),
        (_, Family::V4, Family::V6) => "ip proto 41".into(),
        (_, Family::V6, Family::V4) => "ip6 proto 4".into(),
        (_, Family::V6, Family::V6) => "ip6 proto 41".into(),
    };
    let capture = Capture::start(lab, "router", VM, "out", &filter)?;
    lab.netns("client").block_on(|| async move {
        for seed in 0..u64::from(FLOWS) {
            let mut connection = Connection::open(None, target, LIMIT).await?;
            let answer = connection.get_bytes(2000, seed, true).await?;
            ensure!(&*answer.backend == VM, "{answer:?}");
            connection.close().await?;
        }
        Ok(())
    })??;
    let source = if case.forward == "gue" {
        chosen(case.outer)
    } else {
        address::lb(case.outer)
    };
    let frames = capture.stop_when(|frames| {
        let clients = frames.iter().filter_map(|frame| {
            let outer = Outer::parse(frame).ok()?;
            client_of(&outer.inner).ok()
        });
        clients.collect::<BTreeSet<_>>().len() == usize::from(FLOWS)
    })?;
    let mut ports = BTreeMap::<(IpAddr, u16), BTreeSet<u16>>::new();
    for frame in frames {
        let outer = Outer::parse(&frame).map_err(anyhow::Error::msg)?;
        ensure!(outer.source == source, "from {}", outer.source);
        let (client, port) = client_of(&outer.inner)?;
        let flow = ports.entry((client, port)).or_default();
        flow.extend(outer.udp.map(|udp| udp.source));
    }
    ensure!(
        ports.len() == usize::from(FLOWS),
        "{} flows: {ports:?}",
        ports.len()
    );
    if case.forward == "gue" {
        ensure!(
            ports.values().all(|ports| ports.len() == 1),
            "a flow has several source ports: {ports:?}"
        );
        let different: BTreeSet<_> = ports.values().flatten().collect();
        // Of 24 in 16384 two are the same once in 60 times, four hardly ever.
        ensure!(
            different.len() + 2 > usize::from(FLOWS),
            "source ports are not by flow: {ports:?}"
        );
    }
    Ok(())
}

/// Address and port that a TCP packet without options or extension headers is from.
fn client_of(packet: &[u8]) -> Result<(IpAddr, u16)> {
    let is_v4 = packet.first().context("an empty packet")? >> 4 == 4;
    let (source, ports) = if is_v4 { (12..16, 20) } else { (8..24, 40) };
    let part = |range| packet.get(range).context("a packet cut short");
    let source = part(source)?;
    let ip = match <[u8; 4]>::try_from(source) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(source)?),
    };
    let port = <[u8; 2]>::try_from(part(ports..ports + 2)?)?;
    Ok((ip, u16::from_be_bytes(port)))
}
