//! How soon a drain is in effect on a large node: a thousand backends, a million flows in the flow table.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use ebb_tests::{
    config,
    lab::{Answers, Ebb, Lab, LabOptions, Topology, address},
    scenario::{LIMIT, backends, can_run},
};
use lb_common::{
    Addr,
    abi::Slot,
    entry::{FlowKey, Meta, state},
    hash::reduce,
};

const BACKENDS: u16 = 1000;
const FLOWS: u32 = 1_000_000;

/// Places of the flow table: of each two one is taken.
const PLACES: u32 = 1 << 21;

/// What the promptest of the drains may take from the command to its effect: four times what it may take on an idle
/// machine. The others may have met other tests.
const MOST: Duration = Duration::from_millis(200);

/// Drains that are measured.
const DRAINS: u16 = 9;

fn config(lab: &Lab) -> String {
    let mut text = config::file(lab, &[]);
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "[capacity]\nflows = {PLACES}\n[service.web]\nlisten = \"{}:80/tcp\"\nforward = \"nat\"\n\
         active_pool = \"blue\"\ntracking = \"full\"\nidle_timeout = \"3600s\"\nhealth = \"none\"\n[service.web.pool.blue.backends]\n",
        address::VIP
    );
    for n in 1..=BACKENDS {
        let _ = writeln!(text, "n{n} = \"10.99.{}.{}:8080\"", n / 250, n % 250 + 1);
    }
    text
}

fn pinned<T: aya::Pod>(lab: &Lab, name: &str) -> Result<Array<MapData, T>> {
    let data = MapData::from_pin(lab.pins().join("ebb").join(name))?;
    Ok(Array::try_from(Map::Array(data))?)
}

/// The kernel's clock, as programs read it.
fn jiffies() -> Result<u32> {
    let text = fs::read_to_string("/proc/timer_list")?;
    let line = text.lines().find_map(|line| line.strip_prefix("jiffies: "));
    let jiffies: u64 = line.context("no jiffies in timer_list")?.trim().parse()?;
    Ok(jiffies as u32)
}

/// Puts a million established flows into the flow table, each on the backend whose slot it is in.
fn fill(lab: &Lab) -> Result<()> {
    let services: Array<_, [u64; 24]> = pinned(lab, "SERVICES")?;
    let table = services.get(&1, 0)?[0];
    let (first, count) = ((table >> 32) as u32, table as u32);
    let slots: Array<_, u64> = pinned(lab, "SLOTS")?;
    let owners = (first..first + count).map(|index| slots.get(&index, 0).map(Slot));
    let owners = owners.collect::<Result<Vec<Slot>, _>>()?;
    let mut entries: Array<_, [u64; 8]> = pinned(lab, "FLOWS")?;
    let now = jiffies()?;
    for n in 0..FLOWS {
        // An odd number that is as good as a hash.
        let tag = u64::from(n)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32)
            | 1;
        let owner = owners[reduce(tag, count) as usize].base();
        let client = Addr::from_v4((0x0b00_0000 + n).to_be_bytes());
        let meta = Meta::new(n, owner, state::ISN_KNOWN).0;
        let seen = u64::from(now) | (u64::from(now.wrapping_sub(n % 100_000)) << 32);
        let ports = FlowKey::pack(40_000u16.to_be(), 80u16.to_be(), 1);
        // SAFETY: both are sixteen bytes of integers.
        let client: [u64; 2] = unsafe { std::mem::transmute(client) };
        let entry = [tag, client[0], client[1], ports, meta, seen, 0, 0];
        entries.set(n * 2, entry, 0)?;
    }
    Ok(())
}

/// Time to the answer of a drain, which is not given before the drain is in effect.
fn drain(lab: &Lab, name: &str) -> Result<Duration> {
    let mut stream = UnixStream::connect(lab.directory().join("ebb.sock"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let body = format!("{{\"backend\": \"web/{name}\", \"timeout_ms\": 3600000}}");
    let request = format!(
        "POST /v1/drain HTTP/1.1\r\nHost: ebb\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let began = Instant::now();
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let took = began.elapsed();
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(took)
}

#[test]
#[ignore = "measures time, which a busy machine has not; run by name with --ignored, in a release build"]
fn a_drain_is_in_effect_at_once() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let options = LabOptions::new(Topology::TwoArm, Answers::ThroughBalancer, &["b1"]);
    let lab = Lab::create(options)?;
    let ebb = Ebb::start(&lab, &config(&lab))?;
    let all = |status: &serde_json::Value| {
        let backends = backends(status);
        backends.len() == usize::from(BACKENDS) && backends.iter().all(|b| b["accepting"] == true)
    };
    // The status of a thousand backends is too long for a message.
    let wait = |what: &str, done: &dyn Fn(&serde_json::Value) -> bool| {
        let came = ebb.wait_status(LIMIT, done).is_ok();
        ensure!(came, "{what} not within {LIMIT:?}");
        Ok(())
    };
    wait("all backends", &all)?;
    fill(&lab)?;
    wait("all flows", &|status| {
        status["node"]["xdp"]["flow_entries"].as_u64() >= Some(u64::from(FLOWS) * 9 / 10)
    })?;
    let mut took = Vec::new();
    for n in 1..=DRAINS {
        let name = format!("n{n}");
        took.push(drain(&lab, &name)?);
        // The first look at its flows is done before the next one.
        wait("the flows at the start", &|status| {
            let backend = ebb_tests::scenario::backend(status, &name);
            backend.is_some_and(|b| b["drain"]["flows"]["at_start"].as_u64() > Some(0))
        })?;
    }
    // With RUST_LOG=ebb=debug,lb_userspace=debug: where the time goes.
    let log = fs::read_to_string(lab.log("ebb")).unwrap_or_default();
    let steps: Vec<&str> = log.lines().filter(|line| line.contains("took")).collect();
    for line in steps.iter().rev().take(16).rev() {
        eprintln!("{line}");
    }
    let in_order: Vec<String> = took
        .iter()
        .map(|t| format!("{:.1}", t.as_secs_f64() * 1e3))
        .collect();
    took.sort();
    let middle = took[took.len() / 2];
    eprintln!(
        "a drain of one of {BACKENDS} backends with {FLOWS} flows is in effect after {:.1?} to {:.1?}, half of them within {middle:.1?} (ms, in order: {})",
        took[0],
        took[took.len() - 1],
        in_order.join(", ")
    );
    ensure!(took[0] < MOST, "{took:?}");
    let receipts = ebb.cli(&["drains", "--json"])?.success()?.json()?;
    ensure!(receipts.as_array().map(Vec::len) == Some(usize::from(DRAINS)));
    Ok(())
}
