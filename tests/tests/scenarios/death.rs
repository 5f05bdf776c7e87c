//! Backends that die: what their connections are told, where new ones go, and what a drain says of it.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::Reason,
    lab::Cli,
    scenario::{LIMIT, Scene, Way, can_run, check_sum, joined, now},
};

/// Time in which established clients of a backend whose link has failed are told, at the default settings.
const TOLD: Duration = Duration::from_secs(2);

/// A command that waits for the end of a drain.
type Waiting = JoinHandle<Result<Cli>>;

/// A scene at the default settings of health checks.
fn scene(way: Way) -> Result<Scene> {
    Scene::with(
        way,
        &["b1", "b2", "b3"],
        |service| service.default_health = true,
        "",
    )
}

fn pull_the_plug(scene: &Scene, backend: &str) -> Result<()> {
    let mut command = scene.lab.command(backend, "ip");
    command.args(["link", "set", "eth0", "down"]);
    let done = command.stdout(Stdio::null()).status()?;
    ensure!(done.success(), "ip link set down: {done}");
    Ok(())
}

/// The link of a backend fails: its clients are told by a reset within two seconds, and nobody else is. The flows are
/// counted as what they are; a drain under way ends at once and says so.
fn link_down(way: Way, drained: bool) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(way)?;
    let load = scene.load(90, 0.0)?;
    let on_b1 = scene.open_on("b1")?;
    let drain = drained
        .then(|| begin_drain(&scene, on_b1.len()))
        .transpose()?;
    let down = now();
    pull_the_plug(&scene, "b1")?;
    let all_told = load.wait(LIMIT, |now| now.broken >= on_b1.len() as u64);
    ensure!(all_told, "{:?} {:?}", load.now(), load.broken());
    scene.traffic(&load, 0)?;
    let status = scene.ebb.status()?;
    let report = load.stop(Duration::from_millis(300));

    let told: BTreeSet<SocketAddr> = report.broken.iter().filter_map(|b| b.local).collect();
    assert_eq!(told, on_b1, "{}", report.summary());
    let longest = report
        .broken
        .iter()
        .map(|broken| {
            assert_eq!(broken.reason, Reason::Reset, "{broken}");
            Duration::from_nanos(broken.broken_ns - down)
        })
        .max()
        .context("nobody was on b1")?;
    eprintln!(
        "{way:?}: {} connections told, the last after {longest:?}",
        told.len()
    );
    assert!(longest < TOLD, "the last was told after {longest:?}");
    let resets = &status["services"][0]["outcomes"]["reset_dead"];
    assert!(
        resets.as_u64().is_some_and(|n| n >= on_b1.len() as u64),
        "{resets}"
    );
    drain.map_or(Ok(()), |drain| died_in_drain(drain, on_b1.len()))
}

/// Begins a drain of b1 and waits until its flows are counted.
fn begin_drain(scene: &Scene, flows: usize) -> Result<Waiting> {
    let waiting = scene.background("drain web/b1 --timeout 60s --wait --json");
    scene.wait_backend("b1", |b1| {
        b1["admin"] == "draining" && b1["drain"]["flows"]["at_start"] == flows
    })?;
    Ok(waiting)
}

/// The drain has ended because its backend died, and its receipt counts all of its flows as died.
fn died_in_drain(drain: Waiting, flows: usize) -> Result<()> {
    let ended = joined(drain)?;
    assert_eq!(ended.code, Some(4), "{ended}");
    let receipt = ended.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["reason"], "died", "{receipt}");
    assert_eq!(receipt["died"], flows, "{receipt}");
    Ok(())
}

#[test]
fn link_down_nat() -> Result<()> {
    link_down(Way::Nat, false)
}

#[test]
fn link_down_in_a_drain_l2() -> Result<()> {
    link_down(Way::L2, true)
}

/// A server is killed in the middle of its backend's drain: the machine's kernel closes the connections, but none of them
/// has finished.
fn killed_in_a_drain(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = scene(way)?;
    let load = scene.load(60, 0.0)?;
    let on_b1 = scene.open_on("b1")?;
    let drain = begin_drain(&scene, on_b1.len())?;
    scene.servers.remove("b1").context("its server")?.kill9();
    died_in_drain(drain, on_b1.len())?;
    scene.traffic(&load, 0)?;
    let report = load.stop(Duration::from_millis(300));
    let told: BTreeSet<SocketAddr> = report.broken.iter().filter_map(|b| b.local).collect();
    assert_eq!(told, on_b1, "{}", report.summary());
    Ok(())
}

#[test]
fn killed_in_a_drain_nat() -> Result<()> {
    killed_in_a_drain(Way::Nat)
}

#[test]
fn killed_in_a_drain_l2() -> Result<()> {
    killed_in_a_drain(Way::L2)
}

/// A server is killed under load. In `nat` the first connection that it refuses makes the backend suspect; in `l2` ebb
/// sees no answers, and the checks find out. `grace`: how long after the first refused connection others may be begun
/// that are refused as well.
fn killed(way: Way, grace: Duration) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = scene(way)?;
    let load = scene.load(30, 200.0)?;
    scene.servers.remove("b2").context("its server")?.kill9();
    scene.wait_backend("b2", |b2| b2["health"] == "down")?;
    scene.traffic(&load, 100)?;
    let log = scene.ebb.log_tail();
    let report = load.stop(Duration::from_millis(300));

    let refused = report
        .broken
        .iter()
        .filter(|broken| broken.reason == Reason::Connect);
    let mut refused: Vec<_> = refused.map(|b| (b.started_ns, b.broken_ns)).collect();
    refused.sort_by_key(|(_, broken_ns)| *broken_ns);
    let (_, first) = *refused.first().context("nobody met the dead server")?;
    let late = |started: u64| Duration::from_nanos(started.saturating_sub(first));
    let after = refused.iter().map(|(started, _)| late(*started));
    let begun_after = after.clone().filter(|after| !after.is_zero()).count();
    let last = after.max().unwrap_or_default();
    eprintln!(
        "{way:?}: {} refused, {begun_after} of them begun after the first was, the last {last:?} later",
        refused.len()
    );
    assert!(last < grace, "refused {last:?} after the first");
    let passive = log.contains("suspect: it refused a connection");
    assert_eq!(passive, way == Way::Nat, "{log}");
    Ok(())
}

#[test]
fn killed_nat() -> Result<()> {
    killed(Way::Nat, Duration::from_millis(150))
}

#[test]
fn killed_l2() -> Result<()> {
    killed(Way::L2, Duration::from_millis(1500))
}

/// Connections that nobody says anything on, at a deadline: both ends are reset all the same, the client's because it is
/// asked for a packet, the server's because the client's was; and no others.
fn idle_at_a_deadline(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut ebb_tests::config::Service| {
        service.more.push_str("\ntracking = \"full\"");
    };
    let scene = Scene::with(way, &["b1", "b2"], edit, "")?;
    let target = scene.target();
    let connect = || TcpStream::connect_timeout(&target, LIMIT);
    let streams = scene
        .lab
        .netns("client")
        .run(|| (0..40).map(|_| connect()).collect::<Result<Vec<_>, _>>())??;
    let all = |scene: &Scene| -> Result<(BTreeSet<_>, BTreeSet<_>)> {
        Ok((scene.open_on("b1")?, scene.open_on("b2")?))
    };
    let (on_b1, on_b2) = await_that(|| all(&scene), |(b1, b2)| b1.len() + b2.len() == 40)?;
    let drained = scene.run("drain web/b1 --timeout 1s --on-deadline reset --wait --json")?;
    assert_eq!(drained.code, Some(3), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["reset"], on_b1.len(), "{receipt}");

    let (open, others) = await_that(|| all(&scene), |(b1, _)| b1.is_empty())?;
    assert_eq!(
        (open, others),
        (BTreeSet::new(), on_b2),
        "as the servers know it; {}",
        scene.ebb.log_tail()
    );
    for mut stream in streams {
        let was_cut = on_b1.contains(&stream.local_addr()?);
        stream.set_nonblocking(!was_cut)?;
        stream.set_read_timeout(was_cut.then_some(LIMIT))?;
        let found = stream.read(&mut [0]).map_err(|error| error.kind());
        let expected = if was_cut {
            ErrorKind::ConnectionReset
        } else {
            ErrorKind::WouldBlock
        };
        assert_eq!(found, Err(expected), "{:?}", stream.local_addr());
    }
    Ok(())
}

/// Looks until something is so; what it was last.
fn await_that<T>(mut look: impl FnMut() -> Result<T>, is_so: impl Fn(&T) -> bool) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = look()?;
        if is_so(&found) || Instant::now() > deadline {
            return Ok(found);
        }
    }
}

#[test]
fn idle_at_a_deadline_nat() -> Result<()> {
    idle_at_a_deadline(Way::Nat)
}

#[test]
fn idle_at_a_deadline_l2() -> Result<()> {
    idle_at_a_deadline(Way::L2)
}
