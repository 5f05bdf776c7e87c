//! How soon a drain is in effect on a large node: a thousand backends, a million flows in the flow table, and traffic.

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
    client::{Load, LoadOptions},
    config,
    lab::{Answers, Ebb, Lab, LabOptions, Topology, address},
    scenario::{LIMIT, backends, can_run},
};
use lb_common::{
    Addr,
    entry::{FlowKey, Meta, state},
    hash::reduce,
};
use lb_userspace::datapath::bpf::{service_tables, slots_of};

const BACKENDS: u16 = 1000;
const FLOWS: u32 = 1_000_000;

/// Places of the flow table: of each two one is taken.
const PLACES: u32 = 1 << 21;

/// Port of the servers.
const PORT: u16 = 8080;

/// What the promptest of some drains may take from the command to its effect: twice what all of them may take on a
/// machine at rest. The others may have met other tests.
const MOST: Duration = Duration::from_millis(100);

/// Drains that come while nothing is under way.
const QUIET: u16 = 7;

/// Drains that come while the daemon looks at the flows of the one before.
const MEETING: u16 = 7;

/// From the answer of a drain to the look that follows it, roughly: the daemon's next tick.
const TO_THE_LOOK: Duration = Duration::from_millis(30);

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
    let _ = write!(
        text,
        "[service.live]\nlisten = \"{}:81/tcp\"\nforward = \"nat\"\nactive_pool = \"main\"\nhealth = \"none\"\n\
         [service.live.pool.main.backends]\nb1 = \"{}:{PORT}\"\n",
        address::VIP,
        lab.backend("b1"),
    );
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
    let tables = service_tables(&lab.pins().join("ebb"))?;
    // The larger one is the service's that is drained.
    let table = tables.iter().max_by_key(|word| **word as u32);
    let (service, table) = (0u32..)
        .zip(&tables)
        .find(|(_, word)| Some(*word) == table)
        .context("no table")?;
    let owners = slots_of(&lab.pins().join("ebb"), *table)?;
    let count = *table as u32;
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
        let ports = FlowKey::pack(40_000u16.to_be(), 80u16.to_be(), service);
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

/// Tells what was measured; fails where even the promptest was late.
fn judge(when: &str, took: &[Duration]) -> Result<()> {
    let in_order: Vec<String> = took
        .iter()
        .map(|t| format!("{:.1}", t.as_secs_f64() * 1e3))
        .collect();
    let mut took = took.to_vec();
    took.sort();
    let (best, middle, worst) = (took[0], took[took.len() / 2], took[took.len() - 1]);
    eprintln!(
        "a drain of one of {BACKENDS} backends with {FLOWS} flows is in effect after {best:.1?} to {worst:.1?} {when}, half of them within {middle:.1?} (ms, in order: {})",
        in_order.join(", ")
    );
    ensure!(best < MOST, "{when}: {took:?}");
    Ok(())
}

/// The steps of the last drains and what met them, where the daemon was told to say so
/// (`RUST_LOG=ebb=debug,lb_userspace=debug`).
fn steps(lab: &Lab) {
    let log = fs::read_to_string(lab.log("ebb")).unwrap_or_default();
    let steps: Vec<&str> = log.lines().filter(|line| line.contains("took")).collect();
    for line in &steps[steps.len().saturating_sub(90)..] {
        eprintln!("{line}");
    }
    let given_way = steps.iter().filter(|line| line.contains("gives way"));
    eprintln!("{} looks gave way", given_way.count());
}

#[test]
fn a_drain_is_in_effect_at_once() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let options = LabOptions::new(Topology::TwoArm, Answers::ThroughBalancer, &["b1"]);
    let lab = Lab::create(options)?;
    let servers = lab.serve(PORT)?;
    let ebb = Ebb::start(&lab, &config(&lab))?;
    let all = |status: &serde_json::Value| {
        let backends = backends(status);
        backends.len() == usize::from(BACKENDS) + 1
            && backends.iter().all(|b| b["accepting"] == true)
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
    let load = LoadOptions {
        long: 50,
        short_per_second: 100.0,
        echo_every: Duration::from_millis(50),
        ..LoadOptions::new((address::VIP, 81).into())
    };
    let load = Load::start(lab.netns("client"), load)?;
    ensure!(load.wait_long(50, LIMIT), "{:?}", load.broken());
    // Its flows are counted, so nothing is under way any more.
    let is_counted = |name: &str| {
        wait("the flows at the start", &|status| {
            let backend = ebb_tests::scenario::backend(status, name);
            backend.is_some_and(|b| b["drain"]["flows"]["at_start"].as_u64() > Some(0))
        })
    };
    let mut quiet = Vec::new();
    for n in 1..=QUIET {
        let name = format!("n{n}");
        quiet.push(drain(&lab, &name)?);
        is_counted(&name)?;
    }
    let mut meeting = Vec::new();
    for n in 1..=MEETING {
        let (first, second) = (
            format!("n{}", QUIET + 2 * n),
            format!("n{}", QUIET + 2 * n + 1),
        );
        drain(&lab, &first)?;
        // At one moment after the other of the look that takes 80 ms: when it begins is the daemon's own affair.
        std::thread::sleep(TO_THE_LOOK + 10 * Duration::from_millis(n.into()));
        meeting.push(drain(&lab, &second)?);
        is_counted(&first)?;
        is_counted(&second)?;
    }
    steps(&lab);
    judge("with nothing else under way", &quiet)?;
    judge("in the middle of a look at all flows", &meeting)?;
    let report = load.stop(Duration::from_millis(500));
    ensure!(report.broken.is_empty(), "{:?}", report.broken);
    let receipts = ebb.cli(&["drains", "--json"])?.success()?.json()?;
    ensure!(receipts.as_array().map(Vec::len) == Some(usize::from(QUIET + 2 * MEETING)));
    drop(servers);
    Ok(())
}
