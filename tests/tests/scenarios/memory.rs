//! What the daemon holds in memory at 100 services of 100 backends each, all of them probed over real connections.
//!
//! The backends' 10,000 addresses are all of one namespace, whose server listens on every address: what the daemon
//! holds does not depend on who answers.

use std::{fmt::Write as _, net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use ebb_tests::{
    config,
    lab::{Answers, Ebb, Lab, LabOptions, Memory, Topology},
    scenario::{self, can_run},
};
use serde_json::Value;

const SERVICES: u8 = 100;
const BACKENDS: u8 = 100;
const PORT: u16 = 8080;

/// Time in which every backend must be up.
const LIMIT: Duration = Duration::from_secs(120);

/// What the daemon holds when few probes are under way and nobody asks for its status, the pages of its program included; the
/// kernel's maps are not its own.
const WANTED_BYTES: u64 = 40_000_000;

/// What it may hold on a busy machine, beside another test: each probe takes some 12 kB, 1024 of them are under way at most, and
/// what they leave free between other things stays for a while. (66 to 69 MB beside a machine's worth of other tests.)
const MOST_BYTES: u64 = 96 << 20;

fn address(service: u8, backend: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 64, service, backend)
}

/// One namespace that has all the backends' addresses.
fn lab() -> Result<Lab> {
    let lab = Lab::create(LabOptions::new(
        Topology::TwoArm,
        Answers::ThroughBalancer,
        &["b1"],
    ))?;
    let via = lab.backend("b1").to_string();
    let routes: [(&str, &[&str]); 2] = [
        (
            "b1",
            &["route", "add", "local", "10.64.0.0/16", "dev", "lo"],
        ),
        ("lb", &["route", "add", "10.64.0.0/16", "via", &via]),
    ];
    for (role, arguments) in routes {
        let output = lab.command(role, "ip").args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {arguments:?}: {said}");
    }
    Ok(lab)
}

fn configuration(lab: &Lab) -> String {
    let mut text = config::file(lab, &[]);
    for service in 0..SERVICES {
        let port = 1000 + u16::from(service);
        let vip = std::net::SocketAddr::new(ebb_tests::lab::address::VIP, port);
        let members: Vec<String> = (0..BACKENDS)
            .map(|backend| {
                format!(
                    "backend-{backend} = \"{}:{PORT}\"",
                    address(service, backend)
                )
            })
            .collect();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[service.service-{service}]\nlisten = \"{vip}/tcp\"\nforward = \"nat\"\nactive_pool = \"main\"\n\
             [service.service-{service}.health]\n\
             readiness = {{ http = \"/health/ready\", period = \"5s\", timeout = \"3s\", rise = 1, fail = 3 }}\n\
             [service.service-{service}.pool.main]\nbackends = {{ {} }}\n",
            members.join(", ")
        );
    }
    text
}

fn accepting(status: &Value) -> usize {
    let backends = scenario::backends(status);
    backends
        .iter()
        .filter(|backend| backend["accepting"] == true)
        .count()
}

/// Polls gently: a status of 10,000 backends is work, too.
fn wait_all_accept(ebb: &Ebb, wanted: usize) -> Result<Duration> {
    let start = std::time::Instant::now();
    loop {
        let now = accepting(&ebb.status()?);
        if now == wanted {
            return Ok(start.elapsed());
        }
        let late = start.elapsed() > LIMIT;
        ensure!(
            !late,
            "{now} of {wanted} backends take flows{}",
            ebb.log_tail()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Waits until what statuses of all the backends needed has been given back, and what of the program is not used; fails where
/// that is never enough.
fn settled(ebb: &Ebb) -> Result<Memory> {
    let start = std::time::Instant::now();
    loop {
        let memory = ebb.memory()?;
        let late = start.elapsed() > scenario::LIMIT;
        if memory.resident < WANTED_BYTES || late && memory.resident < MOST_BYTES {
            return Ok(memory);
        }
        ensure!(!late, "more than {MOST_BYTES} bytes: {memory}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_hundred_services_of_a_hundred_backends() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab()?;
    let servers = lab.serve(PORT)?;
    let ebb = Ebb::start(&lab, &configuration(&lab))?;
    let all = usize::from(SERVICES) * usize::from(BACKENDS);
    let taken = wait_all_accept(&ebb, all)?;
    eprintln!("all {all} take flows after {taken:?}");
    // Until each has been probed once more.
    let served = || -> Result<u64> { Ok(lab.stats("b1", PORT)?.requests) };
    let before = served()?;
    while served()? < before + all as u64 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let memory = settled(&ebb)?;
    eprintln!("at rest: {memory}");
    ebb.cli(&["drain", "service-1/backend-1"])?.success()?;
    wait_all_accept(&ebb, all - 1)?;
    let memory = settled(&ebb)?;
    eprintln!("in a drain: {memory}");
    drop((ebb, servers));
    Ok(())
}
