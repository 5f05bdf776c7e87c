//! A service of a real systemd, tied to its backend by `ebb-backend@.service`.
//!
//! Wants systemd-nspawn, and mmdebstrap for a root file system (see [`Machine`]): `cargo xtask setup --all` installs both.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    lab::Machine,
    scenario::{LIMIT, Scene, Way, can_run, check_sum, long_on},
};
use serde_json::Value;

const TIE: &str = "ebb-backend@web.service";

/// What the repository ships, and where it goes.
const SHIPPED: [(&str, &str); 3] = [
    ("dist/systemd/ebb-backend", "/usr/lib/ebb/ebb-backend"),
    (
        "dist/systemd/ebb-backend@.service",
        "/usr/lib/systemd/system/ebb-backend@.service",
    ),
    (
        "dist/systemd/ebb.service",
        "/usr/lib/systemd/system/ebb.service",
    ),
];

/// The scene with a systemd where b1 is; its server is the service `web`, tied to the backend.
struct Tied {
    /// Ends first.
    machine: Machine,
    scene: Scene,
}

impl Tied {
    fn new() -> Result<Self> {
        let edit = |service: &mut ebb_tests::config::Service| {
            service.more = "drain = { timeout = \"60s\", spread = \"0s\" }".to_owned();
        };
        let mut scene = Scene::with(Way::Nat, &["b1", "b2", "b3"], edit, "")?;
        let port = scene.service.backend_port;
        scene.servers.remove("b1").context("its server")?.kill9();
        let machine = Machine::boot(&scene.lab, "b1", &SHIPPED)?;
        machine.write("/etc/systemd/system/web.service", &web(port, ""))?;
        let tied = Self { machine, scene };
        tied.set("")?;
        tied.machine.ok("systemctl daemon-reload")?;
        tied.machine
            .ok("systemd-analyze verify ebb.service ebb-backend@web.service")?;
        tied.machine.ok(&format!("systemctl enable {TIE}"))?;
        Ok(tied)
    }

    /// Settings of the tie, besides what it has to have.
    fn set(&self, more: &str) -> Result<()> {
        let text = format!("EBB_BACKEND=web/b1\nEBB_SOCKET=/lab/ebb.sock\n{more}\n");
        self.machine.write("/etc/ebb/backends/web.conf", &text)
    }

    fn active(&self) -> Result<()> {
        self.machine.wait(TIE, "ActiveState", &["active"])?;
        self.scene
            .wait_backend("b1", |b1| b1["accepting"] == true)?;
        Ok(())
    }

    /// The last drain of b1.
    fn last_drain(&self) -> Result<Value> {
        let drains = self.scene.ok("drains web/b1 --json")?.json()?;
        drains.get(0).cloned().context("b1 was never drained")
    }
}

/// The unit of b1's server.
fn web(port: u16, more: &str) -> String {
    // Started more often here than a service may be by default (five times in ten seconds), when its drains end soon.
    format!(
        "[Unit]\nStartLimitIntervalSec=0\n\n[Service]\nType=exec\nRestart=always\nRestartSec=200ms\n{more}\n\
         ExecStart=/usr/bin/ebb-lab serve --name b1 --listen 0.0.0.0:{port} --listen [::]:{port}\n"
    )
}

/// A command that goes on while the test looks.
fn background(machine: &Machine, line: &str) -> Result<std::process::Child> {
    let mut command = machine.command(line);
    Ok(command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}

#[test]
fn a_service_is_drained_before_it_stops() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut tied = Tied::new()?;
    tied.machine.ok("systemctl start web")?;
    tied.active()?;
    restart_under_load(&tied)?;
    deadline(&tied)?;
    an_operators_drain(&tied)?;
    crash(&tied)?;
    added_when_missing(&tied)?;
    without_a_balancer(&mut tied)
}

/// A restart of the service breaks no connection: it is drained first, then restarted, then takes new flows again.
fn restart_under_load(tied: &Tied) -> Result<()> {
    let Tied { machine, scene } = tied;
    let load = scene.load(90, 60.0)?;
    let process = machine.property("web", "MainPID")?;
    let on_b1 = long_on(&load, "b1");
    ensure!(on_b1.len() > 5, "few connections are on b1");
    let mut restart = background(machine, "systemctl restart web")?;
    let draining = scene.wait_backend("b1", |b1| b1["admin"] == "draining")?;
    assert_eq!(draining["drain"]["by"], "unit", "{draining}");
    scene.traffic(&load, 50)?;
    assert_eq!(long_on(&load, "b1"), on_b1, "they live while it waits");
    assert_eq!(machine.property("web", "MainPID")?, process, "it serves on");
    let deadline = Instant::now() + 3 * LIMIT;
    while restart.try_wait()?.is_none() {
        ensure!(Instant::now() < deadline, "the restart does not end");
        load.close_long(Some("b1"), 1.0, Duration::from_millis(200), true);
        load.wait(Duration::from_millis(300), |_| false);
    }
    tied.active()?;
    assert_ne!(
        machine.property("web", "MainPID")?,
        process,
        "it was restarted"
    );
    scene.traffic(&load, 50)?;
    let drain = tied.last_drain()?;
    check_sum(&drain["receipt"])?;
    assert_eq!(
        (&drain["by"], &drain["receipt"]["reason"]),
        (&"unit".into(), &"empty".into())
    );
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    Ok(())
}

/// At the deadline the rest is cut, which is no failure of the unit: exit code 3.
fn deadline(tied: &Tied) -> Result<()> {
    let Tied { machine, scene } = tied;
    tied.set("EBB_DRAIN_OPTIONS=--timeout 1s")?;
    let load = scene.load(30, 0.0)?;
    machine.ok("systemctl stop web")?;
    assert_eq!(machine.property(TIE, "ActiveState")?, "inactive");
    assert_eq!(machine.property(TIE, "Result")?, "success");
    let drain = tied.last_drain()?;
    assert!(drain["receipt"]["reset"].as_u64() > Some(0), "{drain}");
    drop(load);
    machine.ok("systemctl start web")?;
    tied.active()
}

/// What an operator has drained stays so, whatever the service does.
fn an_operators_drain(tied: &Tied) -> Result<()> {
    let Tied { machine, scene } = tied;
    scene.ok("drain web/b1 --wait")?;
    machine.ok("systemctl restart web")?;
    machine.wait(TIE, "ActiveState", &["active"])?;
    let b1 = scene.wait_backend("b1", |b1| b1["health"] == "up")?;
    assert_eq!(
        (&b1["admin"], &b1["drain"]["by"]),
        (&"drained".into(), &"operator".into())
    );
    scene.ok("undrain web/b1")?;
    tied.active()
}

/// Whoever crashes is not drained: there is nobody left to wait for, and systemd starts it again at once.
fn crash(tied: &Tied) -> Result<()> {
    let Tied { machine, scene } = tied;
    let before = tied.last_drain()?["id"].clone();
    let process = machine.property("web", "MainPID")?;
    let began = Instant::now();
    machine.ok(&format!("kill -9 {process}"))?;
    while machine.property("web", "MainPID")? == process
        || machine.property("web", "SubState")? != "running"
    {
        ensure!(began.elapsed() < LIMIT, "it is not started again");
        thread::sleep(Duration::from_millis(20));
    }
    eprintln!("started again {:?} after it was killed", began.elapsed());
    tied.active()?;
    assert_eq!(tied.last_drain()?["id"], before, "no drain");
    scene.wait_all_up().map(drop)
}

/// A backend that ebb does not have is added.
fn added_when_missing(tied: &Tied) -> Result<()> {
    let Tied { machine, scene } = tied;
    let address = scene.backend_at("b1");
    tied.set(&format!(
        "EBB_DRAIN_OPTIONS=--timeout 1s\nEBB_POOL=blue\nEBB_ADDRESS={address}"
    ))?;
    machine.ok("systemctl stop web")?;
    scene.ok("remove web/b1")?;
    machine.ok("systemctl start web")?;
    tied.active()?;
    // It is there now, and the drain of the stop is its own.
    machine.ok("systemctl restart web")?;
    tied.active()
}

/// Without a balancer the service stops and starts as ever; when there is one again, it is told.
fn without_a_balancer(tied: &mut Tied) -> Result<()> {
    let Tied { machine, scene } = tied;
    machine.ok("systemctl stop web")?;
    scene.ebb.stop()?;
    machine.ok("systemctl start web")?;
    assert_eq!(machine.property("web", "ActiveState")?, "active");
    machine.wait(TIE, "SubState", &["auto-restart"])?;
    // Stopped meanwhile it has nothing to drain.
    machine.ok("systemctl restart web")?;
    machine.wait(TIE, "SubState", &["auto-restart"])?;
    scene.ebb.restart(&scene.lab)?;
    let b1 = scene.wait_backend("b1", |b1| b1["admin"] == "active")?;
    assert_eq!(b1["drain"]["by"], "unit", "{b1}");
    machine.wait(TIE, "ActiveState", &["active"])?;
    // Gone while it serves: the stop fails to drain, says so, and stops.
    scene.ebb.stop()?;
    let began = Instant::now();
    machine.ok("systemctl stop web")?;
    ensure!(
        began.elapsed() < LIMIT,
        "the stop took {:?}",
        began.elapsed()
    );
    assert_eq!(machine.property("web", "ActiveState")?, "inactive");
    machine.wait(TIE, "ActiveState", &["failed"])?;
    let said = machine.ok(&format!("journalctl --no-pager -u {TIE}"))?;
    let part = "web/b1 is not drained; web.service stops all the same";
    ensure!(said.contains(part), "{said}");
    Ok(())
}

/// The balancer as a service, and b1's server with it on one machine: a restart of the balancer breaks nothing, and when both are
/// stopped together, as at a shutdown, the drain comes first.
#[test]
fn the_balancer_is_a_service() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut ebb_tests::config::Service| {
        service.more = "drain = { timeout = \"1s\", spread = \"0s\" }".to_owned();
    };
    let mut scene = Scene::with(Way::Nat, &["b1", "b2", "b3"], edit, "")?;
    let port = scene.service.backend_port;
    let config = scene.config();
    scene.ok("stop --detach")?;
    scene.ebb.stop()?;
    scene.servers.remove("b1").context("its server")?.kill9();

    let mut binds = SHIPPED.to_vec();
    binds.push(("/run/netns", "/lab-netns"));
    let machine = Machine::boot(&scene.lab, "lb", &binds)?;
    machine.ok("mount -t bpf bpf /sys/fs/bpf")?;
    let seed = |line: &str| !line.starts_with("hash_seed_file");
    let config: Vec<&str> = config.lines().filter(|line| seed(line)).collect();
    machine.write("/etc/ebb/ebb.toml", &config.join("\n"))?;
    // What stops the target stops both in one transaction, as a shutdown does.
    machine.write(
        "/etc/systemd/system/both.target",
        "[Unit]\nWants=ebb.service web.service\n",
    )?;
    let part = "[Unit]\nPartOf=both.target\n";
    let socket = format!("{part}[Service]\nEnvironment=EBB_SOCKET=/lab/ebb.sock\n");
    machine.write("/etc/systemd/system/ebb.service.d/lab.conf", &socket)?;
    machine.write("/etc/systemd/system/web.service.d/lab.conf", part)?;
    let netns = scene.lab.netns("b1").name().to_owned();
    let place = format!("NetworkNamespacePath=/lab-netns/{netns}");
    machine.write("/etc/systemd/system/web.service", &web(port, &place))?;
    let tie = "EBB_BACKEND=web/b1\nEBB_SOCKET=/lab/ebb.sock\n";
    machine.write("/etc/ebb/backends/web.conf", tie)?;
    machine.ok("systemctl daemon-reload")?;
    machine.ok(&format!("systemctl enable {TIE}"))?;
    machine.ok("systemctl start both.target")?;
    scene.wait_all_up()?;
    machine.wait(TIE, "ActiveState", &["active"])?;
    eprintln!(
        "{}",
        machine.ok("systemd-analyze security --no-pager ebb.service | tail -1")?
    );

    let load = scene.load(60, 60.0)?;
    let process = machine.property("ebb", "MainPID")?;
    machine.ok("systemctl restart ebb")?;
    assert_ne!(machine.property("ebb", "MainPID")?, process);
    assert_eq!(
        machine.property(TIE, "ActiveState")?,
        "active",
        "nobody drains for that"
    );
    scene.traffic(&load, 50)?;
    machine.ok("systemctl reload ebb")?;
    machine.ok("systemctl stop ebb")?;
    scene.traffic(&load, 50)?;
    machine.ok("systemctl start ebb")?;
    scene.traffic(&load, 50)?;
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());

    machine.ok("systemctl stop both.target")?;
    machine.wait("ebb", "ActiveState", &["inactive"])?;
    machine.wait(TIE, "ActiveState", &["inactive", "failed"])?;
    assert_eq!(machine.property(TIE, "Result")?, "success");
    let said = machine.ok(&format!("journalctl --no-pager -u {TIE}"))?;
    ensure!(said.contains("web/b1 is drained"), "{said}");
    machine.ok("ebb stop --detach --socket /lab/ebb.sock || rm -rf /sys/fs/bpf/ebb")?;
    Ok(())
}
