//! `ebb trace` beside live traffic: what it shows is what clients and backends see, its captures hold what XDP sends,
//! and no connection notices that it comes, goes, or is killed.

use std::{
    collections::HashSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::{Connection, Failure},
    lab::{Cli, Guard, Lab},
    scenario::{LIMIT, Scene, Way, can_run},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Pings of the flood, and the bytes in each.
const PINGS: (u64, usize) = (4000, 1400);

/// A capture that runs.
struct Capturing {
    guard: Guard,
    file: PathBuf,
    log: PathBuf,
}

impl Capturing {
    /// Starts `ebb trace FILTER --pcap FILE` and waits until it is in front.
    fn start(scene: &Scene, name: &str, filter: &str) -> Result<Self> {
        let file = scene.lab.directory().join(format!("{name}.pcapng"));
        let mut words = vec!["trace"];
        words.extend(filter.split(' '));
        let mut command = scene.ebb.reach().command(&words);
        command.arg("--pcap").arg(&file);
        let guard = scene.lab.spawn(name, command)?;
        let log = scene.lab.log(name);
        wait_tracing(scene, true)?;
        Ok(Self { guard, file, log })
    }

    /// What it has said.
    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Waits until it has said this.
    fn wait_said(&self, words: &str) -> Result<()> {
        let said = until(|| Ok(self.said()?.contains(words)))?;
        ensure!(said, "not said: {words}; but {}", self.said()?);
        Ok(())
    }

    /// Ends it as Ctrl-C does; packets shown and lost, as its last line says them.
    fn interrupt(mut self) -> Result<(u64, u64)> {
        self.guard.signal(Signal::SIGINT)?;
        let mut status = None;
        until(|| {
            status = self.guard.try_wait()?;
            Ok(status.is_some())
        })?;
        let said = self.said()?;
        let code = status.and_then(|status| status.code());
        ensure!(code == Some(0), "ended with {status:?}: {said}");
        let last = said.lines().last().context("it said nothing")?;
        let number = |text: &str| text.split(' ').next()?.parse().ok();
        let shown = number(last).with_context(|| format!("no count in {last:?}"))?;
        let lost = last.split(", ").nth(1).and_then(number);
        Ok((shown, lost.unwrap_or(0)))
    }
}

fn until(mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + LIMIT;
    while !done()? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}

/// Waits until every interface runs the tracing program, or every one the plain program.
fn wait_tracing(scene: &Scene, wanted: bool) -> Result<Value> {
    let is_so = |status: &Value| {
        let xdp = &status["node"]["xdp"];
        let interfaces = xdp["interfaces"].as_array().into_iter().flatten();
        let plain = &xdp["program"];
        plain.is_u64()
            && xdp["trace"].is_object() == wanted
            && interfaces
                .map(|interface| &interface["program"])
                .all(|program| program.is_u64() && (program != plain) == wanted)
    };
    let status = scene.ebb.wait_status(LIMIT, is_so);
    status.with_context(|| format!("wait for the tracing program to be there: {wanted}"))
}

/// One request from a port of the client's; which backend answers.
fn request(scene: &Scene, port: u16) -> Result<String> {
    let (source, target) = (SocketAddr::new(scene.client(), port), scene.target());
    let exchange = async move {
        let mut connection = Connection::open(Some(source), target, LIMIT).await?;
        let (answer, _) = connection.get_text("/").await?;
        connection.close().await?;
        Ok(answer.backend.to_string())
    };
    let answered = scene.lab.netns("client").block_on(|| exchange)?;
    answered.map_err(|failure: Failure| anyhow::anyhow!("{failure}"))
}

/// The file as tcpdump prints it, a line a frame, with MAC addresses.
fn printed(file: &Path) -> Result<Vec<String>> {
    let output = Command::new("tcpdump")
        .args(["-n", "-e", "-r"])
        .arg(file)
        .output()
        .context("run tcpdump")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

fn mac(scene: &Scene, role: &str) -> Result<String> {
    let bytes = Lab::mac_in(scene.lab.netns(role), "eth0")?;
    Ok(bytes.map(|byte| format!("{byte:02x}")).join(":"))
}

fn objects(cli: &Cli) -> Result<Vec<Value>> {
    let lines = cli.stdout.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Frames leave by XDP_TX here, which no packet socket sees.
#[test]
fn a_connection_is_shown_and_captured() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(Way::L2, &["b1", "b2"])?;

    let waiting = scene.background("trace web --port 45451 --count 4 --json");
    wait_tracing(&scene, true)?;
    let backend = request(&scene, 45_451)?;
    let shown = waiting.join().expect("no panic")?.success()?;
    let packets = objects(&shown)?;
    assert_eq!(packets.len(), 4, "{shown}");
    let syn = &packets[0];
    assert_eq!(
        (&syn["flags"], &syn["outcome"], &syn["verdict"]),
        (&"S".into(), &"forward_opening".into(), &"tx".into()),
        "{syn}"
    );
    assert_eq!(syn["source"]["port"], 45_451, "{syn}");
    let backends: HashSet<_> = packets.iter().map(|p| p["backend"].as_str()).collect();
    assert_eq!(backends, HashSet::from([Some(backend.as_str())]), "{shown}");
    assert!(shown.stderr.contains(r#""packets":4"#), "{shown}");
    wait_tracing(&scene, false)?;

    let capturing = Capturing::start(&scene, "one", "web --port 45452")?;
    let backend = request(&scene, 45_452)?;
    let is_closing = |line: &&String| line.contains("Flags [F");
    let closed = until(|| Ok(printed(&capturing.file)?.iter().filter(is_closing).count() == 2))?;
    let frames = printed(&capturing.file)?;
    assert!(closed, "{frames:#?}");
    let file = capturing.file.clone();
    let (packets, lost) = capturing.interrupt()?;
    assert!(packets >= 4 && lost == 0, "{packets} packets, {lost} lost");
    let frames_at_end = printed(&file)?;
    let to = |role: &str| -> Result<usize> {
        let to = format!("> {},", mac(&scene, role)?);
        Ok(frames_at_end
            .iter()
            .filter(|line| line.contains(&to))
            .count())
    };
    // Each as it came to the balancer, and as the balancer sent it on.
    assert_eq!(
        (to("lb")? as u64, to(&backend)? as u64),
        (packets, packets),
        "{frames_at_end:#?}"
    );
    assert_eq!(frames_at_end.len() as u64, 2 * packets);
    let syns = frames_at_end
        .iter()
        .filter(|line| line.contains("Flags [S]"));
    assert_eq!(syns.count(), 2);
    wait_tracing(&scene, false)?;
    Ok(())
}

/// A trace is ended, killed, refused, left behind by a daemon that is killed, and ended by one that stops.
#[test]
fn no_connection_notices() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new(Way::Nat, &["b1", "b2", "b3"])?;
    let load = scene.load(60, 60.0)?;
    let syns_again = scene.syns_again()?;

    let ended = Capturing::start(&scene, "ended", "web")?;
    scene.refused("trace web --count 1", "another one runs")?;
    scene.traffic(&load, 30)?;
    let (packets, _) = ended.interrupt()?;
    assert!(packets > 0);
    wait_tracing(&scene, false)?;
    scene.traffic(&load, 10)?;

    // Nothing comes that it wants: nobody writes to the client that is gone.
    let mut killed = Capturing::start(&scene, "killed", "--port 1")?;
    scene.traffic(&load, 10)?;
    killed.guard.kill9();
    wait_tracing(&scene, false)?;
    scene.traffic(&load, 10)?;

    let mut left = Capturing::start(&scene, "left", "web")?;
    scene.ebb.kill9();
    scene.traffic(&load, 30)?;
    let mut status = None;
    until(|| {
        status = left.guard.try_wait()?;
        Ok(status.is_some())
    })?;
    assert_eq!(status.and_then(|status| status.code()), Some(1));
    assert!(left.said()?.contains("error: "), "{}", left.said()?);
    scene.ebb.restart(&scene.lab)?;
    wait_tracing(&scene, false)?;
    scene.traffic(&load, 10)?;

    let mut stopped = Capturing::start(&scene, "stopped", "web")?;
    scene.ebb.stop()?;
    scene.traffic(&load, 10)?;
    stopped.wait_said("error: the trace has ended: the daemon stopped")?;
    stopped.guard.kill9();
    scene.ebb.restart(&scene.lab)?;
    wait_tracing(&scene, false)?;
    scene.traffic(&load, 10)?;

    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    assert_eq!(scene.syns_again()?, syns_again, "a SYN was lost");
    Ok(())
}

/// Whoever does not read loses packets and learns how many; the packets themselves are served.
#[test]
fn what_a_slow_reader_loses_is_counted() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(Way::L2, &["b1"])?;
    let slow = Capturing::start(&scene, "slow", "--protocol icmp --all")?;
    slow.guard.signal(Signal::SIGSTOP)?;
    let (count, size) = PINGS;
    let ping = scene
        .lab
        .command("client", "ping")
        .args([
            "-f",
            "-q",
            "-c",
            &count.to_string(),
            "-s",
            &size.to_string(),
        ])
        .arg(scene.target().ip().to_string())
        .output()
        .context("run ping")?;
    let said = String::from_utf8_lossy(&ping.stdout).into_owned();
    assert!(said.contains(&format!("{count} received")), "{said}");
    slow.guard.signal(Signal::SIGCONT)?;
    slow.wait_said("packets are being lost")?;
    let (shown, lost) = slow.interrupt()?;
    assert!(shown > 0 && lost > 0, "{shown} shown, {lost} lost");
    assert!(shown + lost <= count, "{shown} shown, {lost} lost");
    wait_tracing(&scene, false)?;
    Ok(())
}

/// `ebb run --log-packets` beside it: every decision is a line of the daemon's log.
#[test]
fn decisions_are_logged_where_asked() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new(Way::L2, &["b1"])?;
    scene.ebb.stop()?;
    scene.ebb.add_argument("--log-packets");
    scene.ebb.restart(&scene.lab)?;
    request(&scene, 45_453)?;
    let log = scene.lab.log("ebb");
    let opening = format!(
        "outcome {} backend",
        lb_common::outcome::Outcome::ForwardOpening as u32
    );
    let logged = until(|| Ok(fs::read_to_string(&log)?.contains(&opening)))?;
    assert!(logged, "no {opening:?} in {}", scene.ebb.log_tail());
    Ok(())
}
