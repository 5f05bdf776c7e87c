//! The lab, its servers and its clients by themselves: before they judge the balancer, they must be seen to
//! notice what they are there for. No balancer here, packets go by plain routing.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    slice,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ebb_tests::{
    client::{self, Connection, Length, Load, LoadOptions, Reason, begun_within, raw::RawClient},
    clock,
    lab::{
        Answers, Lab, LabOptions, Topology,
        address::{self, Family},
    },
    scenario::{LIMIT, can_run},
};
use lb_userspace::datapath::pass::{self, PassError};
use nix::sys::signal::Signal;

const PORT: u16 = 8080;

fn lab(topology: Topology, backends: &[&str]) -> Result<Lab> {
    Lab::create(LabOptions::new(
        topology,
        Answers::ThroughBalancer,
        backends,
    ))
}

fn at(lab: &Lab, backend: &str) -> SocketAddr {
    at_in(lab, Family::V4, backend)
}

fn at_in(lab: &Lab, family: Family, backend: &str) -> SocketAddr {
    SocketAddr::new(lab.backend_in(family, backend), PORT)
}

/// A small load that leaves CPU to the tests beside it.
fn options(target: SocketAddr) -> LoadOptions {
    LoadOptions {
        long: 50,
        ramp: Duration::from_millis(200),
        echo_every: Duration::from_millis(50),
        limit: LIMIT,
        ..LoadOptions::new(target)
    }
}

#[test]
fn every_backend_answers_in_both_topologies() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for topology in [Topology::OneArm, Topology::TwoArm] {
        let started = Instant::now();
        let lab = lab(topology, &["b1", "b2", "b3"])?;
        eprintln!("{topology:?}: made in {:?}", started.elapsed());
        let _servers = lab.serve(PORT)?;
        for (name, family) in lab
            .backends()
            .iter()
            .flat_map(|b| Family::BOTH.map(|f| (b, f)))
        {
            let target = at_in(&lab, family, name);
            let answer = lab.netns("client").block_on(|| async move {
                let mut connection = Connection::open(None, target, LIMIT).await?;
                connection.get_bytes(100_000, 7, false).await?;
                connection.get_bytes(1, 8, true).await
            })??;
            assert_eq!(&*answer.backend, name);
            let stats = lab.stats(name, PORT)?;
            assert_eq!(
                stats.from_clients(&[address::client(family)]).count(),
                1,
                "{stats:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn direct_backends_own_the_vip_without_telling() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for topology in [Topology::OneArm, Topology::TwoArm] {
        let lab = Lab::create(LabOptions::new(topology, Answers::Direct, &["b1", "b2"]))?;
        let _servers = lab.serve(PORT)?;
        for family in Family::BOTH {
            // The router asks the balancer for the VIP, which has no program yet: nobody else may answer.
            let vip = SocketAddr::new(address::vip(family), PORT);
            let refused = lab
                .netns("client")
                .block_on(|| async move { Connection::open(None, vip, LIMIT).await.err() })?;
            assert_eq!(
                refused.context("somebody answered for the VIP")?.reason,
                Reason::Connect
            );
            let own = at_in(&lab, family, "b2");
            let answer = lab.netns("client").block_on(|| async move {
                Connection::open(None, own, LIMIT)
                    .await?
                    .get_bytes(10, 0, true)
                    .await
            })??;
            assert_eq!(&*answer.backend, "b2");
        }
    }
    Ok(())
}

#[test]
fn labs_run_side_by_side_and_leave_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (first, second) = (
        lab(Topology::OneArm, &["b1"])?,
        lab(Topology::TwoArm, &["b1"])?,
    );
    let places: Vec<_> = [&first, &second]
        .iter()
        .flat_map(|lab| {
            let netns = ["client", "router", "lb", "b1"]
                .map(|role| format!("/run/netns/{}-{role}", lab.name()).into());
            netns.into_iter().chain([lab.directory(), lab.pins()])
        })
        .collect();
    for place in &places {
        assert!(place.exists(), "{} is missing", place.display());
    }
    drop(first);
    // The second one goes by a panic.
    let panicked = std::thread::spawn(move || {
        let _second = second;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    for place in &places {
        assert!(!place.exists(), "{} was left", place.display());
    }
    Ok(())
}

#[test]
fn load_is_counted_and_clean() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(Topology::OneArm, &["b1"])?;
    let _servers = lab.serve(PORT)?;
    let load = Load::start(lab.netns("client"), options(at(&lab, "b1")))?;
    assert!(load.wait_long(50, LIMIT), "{:?}", load.now());
    assert_eq!(
        load.close_long(Some("b1"), 0.4, Duration::from_millis(200), false),
        20
    );
    assert!(
        load.wait(LIMIT, |now| now.finished == 20),
        "{:?}",
        load.now()
    );
    assert_eq!(load.close_long(Some("b2"), 1.0, Duration::ZERO, false), 0);
    let moment = clock::now_ns();
    assert!(
        load.wait(LIMIT, |now| now.requests_ok > 50 && now.frames > 500),
        "{:?}",
        load.now()
    );
    let report = load.stop(Duration::from_millis(100));
    assert!(report.is_clean(), "{}", report.summary());
    assert_eq!(
        (report.opened, report.finished),
        (50, 50),
        "{}",
        report.summary()
    );

    // The backend saw the same: every connection, and nothing else from this client.
    let stats = lab.stats("b1", PORT)?;
    let seen: BTreeSet<_> = stats
        .from_clients(&[address::CLIENT])
        .map(|c| c.peer)
        .collect();
    assert_eq!(seen, report.flows.iter().map(|flow| flow.local).collect());
    assert_eq!(stats.corrupt, 0);
    let window = moment..u64::MAX;
    let late = begun_within(
        &stats,
        &report.flows,
        &[address::CLIENT],
        slice::from_ref(&window),
    );
    let begun = report
        .flows
        .iter()
        .filter(|flow| flow.started_ns > moment)
        .count();
    assert_eq!(late.len(), begun);
    assert!(
        late.iter()
            .all(|late| late.started_ns.is_some_and(|ns| ns > moment))
    );
    Ok(())
}

#[test]
fn a_killed_server_breaks_every_long_connection() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(Topology::TwoArm, &["b1"])?;
    let mut servers = lab.serve(PORT)?;
    let load = Load::start(lab.netns("client"), options(at(&lab, "b1")))?;
    assert!(load.wait_long(50, LIMIT), "{:?}", load.now());
    servers.get_mut("b1").context("b1")?.kill9();
    assert!(load.wait(LIMIT, |now| now.broken == 50), "{:?}", load.now());
    assert!(
        load.wait(LIMIT, |now| now.requests_failed > 10),
        "{:?}",
        load.now()
    );
    let report = load.stop(Duration::ZERO);
    assert_eq!(
        (report.opened, report.finished),
        (50, 0),
        "{}",
        report.summary()
    );
    for broken in &report.broken {
        let at_once = [Reason::Reset, Reason::Closed, Reason::ShortRead];
        match broken.length {
            Length::Long => assert!(at_once.contains(&broken.reason), "{broken}"),
            Length::Short => assert!(
                [Reason::Connect]
                    .iter()
                    .chain(&at_once)
                    .any(|r| *r == broken.reason),
                "{broken}"
            ),
        }
    }
    Ok(())
}

#[test]
fn a_silent_server_is_a_timeout() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(Topology::OneArm, &["b1"])?;
    let servers = lab.serve(PORT)?;
    // Long enough that an answer is never too late before the server falls silent.
    let limit = Duration::from_secs(4);
    let load = Load::start(
        lab.netns("client"),
        LoadOptions {
            limit,
            ..options(at(&lab, "b1"))
        },
    )?;
    assert!(load.wait_long(50, LIMIT), "{:?}", load.now());
    servers["b1"].signal(Signal::SIGSTOP)?;
    assert!(load.wait(LIMIT, |now| now.broken == 50), "{:?}", load.now());
    let report = load.stop(Duration::ZERO);
    assert!(
        report
            .broken_long()
            .all(|broken| broken.reason == Reason::Timeout),
        "{}",
        report.summary()
    );
    Ok(())
}

#[test]
fn another_backend_in_the_middle_is_noticed() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    // One name answers first and another one later: a server is stopped and its port taken over by an impostor,
    // and the connection to it is a new one in truth but the same to the checker.
    let lab = lab(Topology::OneArm, &["b1"])?;
    let target = SocketAddr::new(lab.backend("b1"), PORT);
    let listener = lab
        .netns("b1")
        .run(|| std::net::TcpListener::bind(("0.0.0.0", PORT)))??;
    let impostor = std::thread::spawn(move || -> Result<()> {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept()?;
        for name in ["b1", "b2"] {
            let mut request = [0; 512];
            anyhow::ensure!(stream.read(&mut request)? > 0);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nX-Backend: {name}\r\nX-Connection: 0\r\nContent-Length: 0\r\n\r\n"
            );
            stream.write_all(answer.as_bytes())?;
        }
        Ok(())
    });
    let second = lab.netns("client").block_on(|| async move {
        let mut connection = Connection::open(None, target, LIMIT).await?;
        connection.get_bytes(0, 0, false).await?;
        connection.get_bytes(0, 0, false).await
    })?;
    assert_eq!(second.unwrap_err().reason, Reason::WrongBackend);
    impostor.join().expect("the impostor does not panic")
}

#[test]
fn a_port_can_be_used_again_at_once() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(Topology::OneArm, &["b1"])?;
    let _servers = lab.serve(PORT)?;
    let (source, target) = (SocketAddr::new(address::CLIENT, 40_000), at(&lab, "b1"));
    let numbers = lab.netns("client").block_on(|| async move {
        let mut numbers = Vec::new();
        for _ in 0..3 {
            let mut connection = Connection::open(Some(source), target, LIMIT).await?;
            numbers.push(connection.get_bytes(100, 1, false).await?.connection);
            connection.reset()?;
        }
        Ok::<_, ebb_tests::client::Failure>(numbers)
    })??;
    assert_eq!(numbers, [0, 1, 2]);
    Ok(())
}

#[test]
fn a_handshake_can_be_held() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(Topology::OneArm, &["b1"])?;
    let _servers = lab.serve(PORT)?;
    let client = RawClient::open(&lab, Family::V4, 0)?;
    let mut held = client.conversation(5000, at(&lab, "b1"), 1_000_000)?;
    held.send_syn()?;
    let initial = held.await_syn_ack(LIMIT)?;
    let peers = [client.address()];
    assert_eq!(
        lab.stats("b1", PORT)?.from_clients(&peers).count(),
        0,
        "accepted before the ACK"
    );
    // The same SYN again gets the same answer, and the client's kernel has not sent a RST in between.
    held.send_syn()?;
    assert_eq!(held.await_syn_ack(LIMIT)?, initial);
    held.send_ack()?;
    let answer = held.get("/bytes/5000?seed=3", LIMIT)?;
    assert_eq!((answer.status, answer.backend.as_str()), (200, "b1"));
    assert_eq!(ebb_tests::pattern::check(3, 0, &answer.body), Ok(()));
    held.close(LIMIT)?;
    assert_eq!(lab.stats("b1", PORT)?.from_clients(&peers).count(), 1);
    Ok(())
}

#[test]
fn children_end_with_their_guard_and_see_pins() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(Topology::OneArm, &["b1"])?;
    let mut command = lab.command("lb", "sh");
    command
        .args(["-c", "echo pins $(ls -d \"$0\"); exec sleep 1000"])
        .arg(lab.pins());
    let mut guard = lab.spawn("sleeper", command)?;
    assert_eq!(guard.wait_line("pins ")?, lab.pins().to_string_lossy());
    let process = std::path::PathBuf::from(format!("/proc/{}", guard.pid()));
    assert!(process.exists());
    let inside = std::fs::read_link(process.join("ns/net"))?;
    assert_ne!(inside, std::fs::read_link("/proc/self/ns/net")?);
    drop(guard);
    assert!(!process.exists());
    Ok(())
}

#[test]
fn thousands_of_connections_cost_little() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    client::raise_open_files()?;
    let lab = lab(Topology::OneArm, &["b1"])?;
    let servers = lab.serve(PORT)?;
    let memory_kib = |pid: u32| -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(line
            .context("VmRSS")?
            .trim()
            .trim_end_matches(" kB")
            .parse()?)
    };
    let pid = servers["b1"].pid();
    let before = memory_kib(pid)?;
    let load = LoadOptions {
        long: 5000,
        ramp: Duration::from_secs(1),
        echo_every: Duration::from_secs(2),
        echo_bytes: (16, 200),
        short_per_second: 0.0,
        limit: 3 * LIMIT,
        ..LoadOptions::new(at(&lab, "b1"))
    };
    let load = Load::start(lab.netns("client"), load)?;
    assert!(load.wait_long(5000, 3 * LIMIT), "{:?}", load.now());
    let each = (memory_kib(pid)? - before) * 1024 / 5000;
    let report = load.stop(Duration::from_millis(500));
    assert!(report.is_clean(), "{}", report.summary());
    eprintln!("the server uses {each} bytes a connection");
    assert!(each < 10_000, "the server uses {each} bytes a connection");
    Ok(())
}

#[test]
fn a_pass_program_stays_and_only_it_is_taken_off() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(Topology::OneArm, &["b1"])?;
    let (ifindex, _) = lab.interface("b1", "eth0")?;
    let (port, _) = lab.interface("router", "lb")?;
    let has_program = || -> Result<bool> {
        let output = lab
            .command("b1", "ip")
            .args(["link", "show", "eth0"])
            .output()?;
        Ok(String::from_utf8(output.stdout)?.contains("xdp"))
    };
    assert!(!has_program()?);
    lab.netns("b1")
        .run(|| pass::attach_pass_for_good(ifindex))??;
    assert!(has_program()?);
    let again = lab
        .netns("b1")
        .run(|| pass::attach_pass_for_good(ifindex))?;
    assert!(matches!(again, Err(PassError::Attach { .. })), "{again:?}");
    assert!(lab.netns("b1").run(|| pass::detach_pass(ifindex))??);
    assert!(!has_program()?);
    assert!(!lab.netns("b1").run(|| pass::detach_pass(ifindex))??);
    // The router's end has one that a link holds: not of this kind.
    assert!(!lab.netns("router").run(|| pass::detach_pass(port))??);
    Ok(())
}
