//! Prefixes of clients that are denied and allowed, replaced while clients come.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::Result;
use ebb_tests::{
    client::raw::RawClient,
    lab::address::{self, Family},
    scenario::{LIMIT, Scene, Way, can_run},
};

/// A reload that denies a client by one of thousands of prefixes shuts it out at once, also in mid-connection, and
/// nobody else; the next reload lets it in again.
fn denied(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::with(way, &["b1", "b2"], |_| {}, "")?;
    let load = scene.load(30, 50.0)?;
    let client = RawClient::open(&scene.lab, Family::V4, 0)?;
    let mut open = client.conversation(42_000, scene.target(), 1000)?;
    open.connect(LIMIT)?;
    open.get("/bytes/10?seed=1", LIMIT)?;

    let list = scene.lab.directory().join("denied");
    let mut text = format!("# and many others\n{}\n", client.address());
    for n in 0..5000_u32 {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "100.{}.{}.{}/30",
            64 + (n >> 14),
            (n >> 6) & 255,
            (n & 63) << 2
        );
    }
    fs::write(&list, text)?;
    let allowed = scene.config();
    let rules = format!(
        "\n[clients]\nallow = [\"{}\"]\ndeny_file = {:?}\n",
        address::CLIENT,
        list
    );
    fs::write(scene.ebb.config(), allowed.clone() + &rules)?;
    let said = scene.ok("reload")?.stdout;
    assert!(
        said.contains("replace 0 prefixes of clients by 5002"),
        "{said}"
    );

    let short = Duration::from_millis(300);
    assert!(open.get("/bytes/10?seed=1", short).is_err());
    let mut new = client.conversation(42_001, scene.target(), 2000)?;
    assert!(new.connect(short).is_err());
    scene.ebb.wait_status(LIMIT, |status| {
        status["services"][0]["outcomes"]["drop_client"].as_u64() >= Some(2)
    })?;
    let listed = scene.ok("clients --json")?.json()?;
    let busiest = &listed[0];
    assert_eq!(busiest["action"], "allow", "{busiest}");
    assert_eq!(listed.as_array().map(Vec::len), Some(5002));
    scene.traffic(&load, 20)?;

    fs::write(scene.ebb.config(), allowed)?;
    scene.ok("reload")?;
    let mut again = client.conversation(42_002, scene.target(), 3000)?;
    again.connect(LIMIT)?;
    again.get("/bytes/10?seed=1", LIMIT)?;
    let report = load.stop(Duration::from_millis(200));
    assert!(report.is_clean(), "{}", report.summary());
    Ok(())
}

#[test]
fn denied_nat() -> Result<()> {
    denied(Way::Nat)
}
