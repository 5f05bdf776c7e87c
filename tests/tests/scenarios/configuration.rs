//! Configuration files, bad and good, at the start and at a reload.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    config,
    lab::{address, find_binary},
    scenario::{LIMIT, Scene, Way, backend, can_run, lab, now},
};

/// Line and column (from 1) of the first place where `part` is in `text`.
fn place(text: &str, part: &str) -> Result<String> {
    let at = text.find(part).context("not in the text")?;
    let line = text[..at].matches('\n').count() + 1;
    let column = at - text[..at].rfind('\n').map_or(0, |n| n + 1) + 1;
    Ok(format!("ebb.toml:{line}:{column}: error: "))
}

/// The daemon does not start with a bad file: every error with its place, exit code 1, nothing left in the kernel.
#[test]
fn bad_at_the_start() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, service) = lab(Way::Nat, &["b1", "b2"])?;
    let text = config::file(&lab, &[service])
        .replace("forward = \"nat\"", "forward = \"net\"")
        .replace("readiness =", "readyness =");
    let path = lab.directory().join("ebb.toml");
    fs::write(&path, &text)?;
    let mut command = lab.command("lb", find_binary("ebb", "EBB_BIN")?);
    command.args(["run", "--config"]).arg(&path);
    command
        .arg("--socket")
        .arg(lab.directory().join("ebb.sock"));
    command.arg("--pins").arg(lab.pins().join("ebb"));
    command
        .arg("--state-dir")
        .arg(lab.directory().join("state"));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for wrong in ["\"net\"", "readyness"] {
        let place = place(&text, wrong)?;
        assert!(said.contains(&place), "no {place} in {said}");
    }
    assert!(said.contains("hint: "), "{said}");
    assert!(
        !lab.pins().join("ebb").exists(),
        "maps were made all the same"
    );
    Ok(())
}

/// A bad file at a reload, by command and by signal, disturbs nothing. A good one then adds a backend, changes a
/// weight and lets a backend go, which drains first.
fn reload(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut config::Service| {
        service.pools[0].1.retain(|name| name != "b4");
        service.more = "drain = { timeout = \"60s\" }\nidle_timeout = \"8s\"".into();
    };
    let mut scene = Scene::with(way, &["b1", "b2", "b3", "b4"], edit, "")?;
    let load = scene.load(90, 150.0)?;
    let before = scene.ebb.status()?;

    let good = scene.config();
    let bad = good.replace("forward = ", "forwart = ");
    fs::write(scene.ebb.config(), &bad)?;
    let said = scene.refused("reload", &place(&bad, "forwart")?)?;
    assert!(said.contains("did you mean `forward`?"), "{said}");
    scene.refused("reload --dry-run", &place(&bad, "forwart")?)?;
    scene.ebb.signal(nix::sys::signal::Signal::SIGHUP)?;
    wait_log(&scene, "the configuration stays as it was")?;
    scene.traffic(&load, 50)?;
    let same = |status: &serde_json::Value| -> Vec<serde_json::Value> {
        let all = ebb_tests::scenario::backends(status).into_iter();
        all.map(|b| {
            serde_json::json!([
                b["name"],
                b["address"],
                b["admin"],
                b["accepting"],
                b["weight"]
            ])
        })
        .collect()
    };
    assert_eq!(same(&scene.ebb.status()?), same(&before));

    // b3 leaves, b4 comes, b2 gets three shares.
    scene.service.pools[0].1 = vec!["b1".into(), "b2".into(), "b4".into()];
    let b2 = scene.backend_at("b2");
    let text = scene.config().replace(
        &format!("b2 = \"{b2}\""),
        &format!("b2 = {{ address = \"{b2}\", weight = 3 }}"),
    );
    fs::write(scene.ebb.config(), &text)?;
    let plan = scene.ok("reload --dry-run")?.stdout;
    for part in [
        "add backend web/blue/b4",
        "change backend web/b2: weight 1 to 3",
        "drain and remove backend web/b3",
    ] {
        assert!(plan.contains(part), "no {part} in the plan {plan}");
    }
    assert_eq!(same(&scene.ebb.status()?), same(&before), "a dry run");
    scene.ok("reload")?;
    let from = now();
    let b3 = scene.wait_backend("b3", |b3| b3["admin"] == "draining")?;
    assert_eq!(b3["accepting"], false);
    scene.wait_backend("b4", |b4| b4["accepting"] == true)?;
    let weighted = scene.wait_backend("b2", |b2| b2["weight"] == 3)?;
    assert_eq!(weighted["accepting"], true);
    // New connections by weight: three of five to b2.
    let shares = load.now();
    let came = load.wait(LIMIT, |now| now.requests_ok >= shares.requests_ok + 500);
    ensure!(came, "{:?}", load.now());
    let later = load.now();
    let got = |name: &str| {
        let count =
            |sample: &ebb_tests::client::Sample| sample.short.get(name).copied().unwrap_or(0);
        count(&later) - count(&shares)
    };
    let (b1, b2, b4) = (got("b1"), got("b2"), got("b4"));
    let share = b2 as f64 / (b1 + b2 + b4) as f64;
    assert!((0.5..0.7).contains(&share), "b1 {b1}, b2 {b2}, b4 {b4}");
    assert!(b4 > 50, "b1 {b1}, b2 {b2}, b4 {b4}");

    // Its users leave, so b3 goes by itself; connections of the others stay.
    load.close_long(Some("b3"), 1.0, Duration::from_millis(800), true);
    let until_gone = scene
        .ebb
        .wait_status(LIMIT, |status| backend(status, "b3").is_none());
    until_gone.context("b3 stays in the status")?;
    scene.traffic(&load, 50)?;
    let until = now();
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    scene.none_begun_on("b3", &report, from..until)?;
    Ok(())
}

fn wait_log(scene: &Scene, part: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let log = scene.lab.log("ebb");
    while !fs::read_to_string(&log)?.contains(part) {
        ensure!(
            Instant::now() < deadline,
            "no {part:?} in the log{}",
            scene.ebb.log_tail()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn reload_nat() -> Result<()> {
    reload(Way::Nat)
}

#[test]
fn reload_l2() -> Result<()> {
    reload(Way::L2)
}

/// What does not fit is refused by the command that asks for it, and nothing is disturbed.
#[test]
fn capacity_exhausted() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut config::Service| {
        service.pools[0].1 = vec!["b1".into(), "b2".into()];
        service.more = "slots = 1009".into();
    };
    let tail =
        "\n[capacity]\nservices = 3\nbackends = 3\nslots = 2018\nflows = 1024\nhandshakes = 1024\n";
    let scene = Scene::with(Way::Nat, &["b1", "b2", "b3", "b4"], edit, tail)?;
    let load = scene.load(40, 80.0)?;
    let at = |name: &str| scene.backend_at(name);

    scene.ok(&format!("add web/blue/b3 {}", at("b3")))?;
    let said = scene.refused(
        &format!("add web/blue/b4 {}", at("b4")),
        "no room for another backend",
    )?;
    assert!(said.contains("hint: raise capacity.backends"), "{said}");

    let service = |name: &str, port: u16| {
        format!(
            "\n[service.{name}]\nlisten = \"{}:{port}/tcp\"\nslots = 1009\nhealth = \"none\"\nmin_available = 0\n\
             [service.{name}.pool.only]\nbackends = {{ }}\n",
            address::VIP
        )
    };
    let text = scene.config() + &service("second", 81);
    fs::write(scene.ebb.config(), text)?;
    let said = scene.refused("reload", "capacity.slots is 2018")?;
    assert!(said.contains("hint: raise capacity.slots"), "{said}");
    scene.traffic(&load, 50)?;
    assert!(backend(&scene.ebb.status()?, "b4").is_none());
    let report = load.stop(Duration::from_millis(200));
    assert!(report.is_clean(), "{}", report.summary());
    Ok(())
}
