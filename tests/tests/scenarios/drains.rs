//! Several drains at once, whole pools, and the receipts that are kept of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ebb_tests::scenario::{LIMIT, Scene, Way, backend, can_run, check_sum, joined, now};
use serde_json::Value;

fn receipts(value: &Value) -> Result<Vec<Value>> {
    let receipts = value.as_array().context("an array of receipts")?;
    receipts.iter().try_for_each(check_sum)?;
    Ok(receipts.clone())
}

fn sum(receipts: &[Value], part: &str) -> u64 {
    let parts = receipts.iter().map(|receipt| &receipt[part]);
    parts.filter_map(Value::as_u64).sum()
}

/// Two of four backends drained at once under load, or none when too few would be left; then the rest of their pool,
/// after a switch. Nothing breaks, nothing new comes, every flow is in a receipt, and the receipts are kept.
#[test]
fn several_and_a_pool() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut ebb_tests::config::Service| {
        service.more.push_str("\nmin_available = 2");
    };
    let scene = Scene::with(Way::Nat, &["b1", "b2", "b3", "g1", "g2"], edit, "")?;
    let load = scene.load(120, 60.0)?;

    let said = scene.refused("drain web/b1 web/b2", "drain web/b1, web/b2: 1 of 3")?;
    assert!(said.contains("min_available is 2"), "{said}");
    let status = scene.ebb.status()?;
    for name in ["b1", "b2", "b3"] {
        assert_eq!(backend(&status, name).context("it")?["admin"], "active");
    }

    let before = scene.open_on("b1")?.len() + scene.open_on("b2")?.len();
    ensure!(before > 30, "{before} connections on two backends of three");
    let begun = scene
        .ok("drain web/b1 web/b2 --force --timeout 60s --json")?
        .json()?;
    let from = now();
    let (one, other) = (&begun[0]["id"], &begun[1]["id"]);
    let waiting = scene.background(&format!("drains {one} {other} --wait --json"));
    // Half of them leave over two seconds, and the drains say how it goes on.
    for name in ["b1", "b2"] {
        load.close_long(Some(name), 0.5, Duration::from_secs(2), true);
    }
    let told = load.wait(LIMIT, |_| {
        let drains = scene.run("drains web/b1 web/b2 --json");
        let drains = drains.and_then(|cli| cli.json()).unwrap_or_default();
        let drains = drains.as_array().cloned().unwrap_or_default();
        let tells = |drain: &Value| {
            let progress = &drain["progress"];
            progress["rate_per_s"].as_f64() > Some(1.0)
                && progress["ages_known"].as_u64() > Some(0)
                && progress["forecast"]["most_gone_s"].as_f64() > Some(0.0)
        };
        drains.len() == 2 && drains.iter().all(tells)
    });
    ensure!(told, "no forecast: {}", scene.run("drains --json")?);
    let status = scene.ok("status")?.stdout;
    assert!(status.contains("outlive the deadline"), "{status}");
    load.close_long(Some("b2"), 1.0, Duration::from_millis(500), true);
    let ended = scene.leave_until_drained(&load, "b1", waiting);
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return Err(error.context("both drains")),
    };
    let until = now();
    assert_eq!(ended.code, Some(0), "{ended}");
    let both = receipts(&ended.json()?)?;
    assert_eq!(both.len(), 2, "{ended}");
    let flows = sum(&both, "flows_at_start");
    assert!(flows >= before as u64, "{before} before, {both:?}");
    assert_eq!(sum(&both, "finished"), flows, "{both:?}");
    for receipt in &both {
        let known = receipt["ages_known"].as_u64().context("ages")?;
        let (p50, p99) = (receipt["p50_s"].as_f64(), receipt["p99_s"].as_f64());
        let longest = receipt["longest_s"].as_f64();
        ensure!(
            known > 0 && p50 > Some(0.0) && p50 <= p99 && p99 <= longest,
            "{receipt}"
        );
    }

    // The rest of the pool, which takes no new flows any more: left to go on at the deadline.
    scene.ok("switch web green")?;
    let on_b3 = scene.open_on("b3")?.len() as u64;
    let waiting = scene
        .background("drain web --pool blue --timeout 1500ms --on-deadline leave --wait --json");
    let left = joined(waiting)?;
    assert_eq!(left.code, Some(3), "{left}");
    let left = receipts(&left.json()?)?;
    assert_eq!(left.len(), 1, "b1 and b2 are drained already: {left:?}");
    assert_eq!(left[0]["backend"], "web/b3");
    // Short ones were under way too.
    ensure!(
        left[0]["left"].as_u64() <= Some(on_b3) && left[0]["left"].as_u64() > Some(0),
        "{on_b3} open, {left:?}"
    );

    let kept = scene.ok("drains --json")?.json()?;
    let kept = kept.as_array().context("drains")?;
    assert_eq!(kept.len(), 3, "{kept:?}");
    for receipt in both.iter().chain(&left) {
        ensure!(
            kept.iter().any(|drain| drain["receipt"] == *receipt),
            "{receipt} is not kept in {kept:?}"
        );
    }
    let table = scene.ok("drains web")?.stdout;
    assert!(table.starts_with("no drain is under way"), "{table}");
    assert_eq!(table.matches("web/b").count(), 3, "{table}");
    scene.ok("undrain web --pool blue")?;
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    for name in ["b1", "b2"] {
        scene.none_begun_on(name, &report, from..until)?;
    }
    Ok(())
}
