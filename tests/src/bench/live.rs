//! The second method: live frames through a veth pair.
//!
//! The generator writes each frame anew and redirects it into the far interface; the measured program runs on
//! the near one, as it would on a NIC, and sends it back; a program on the far interface counts what arrives. The
//! generator's cost is in every figure, so the ratio to a bare XDP_TX program is what counts.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::PerCpuArray,
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, xdp::XdpLinkId, xdp::XdpMode},
};
use lb_common::{abi::mode, outcome::Outcome, steer::tcp::ACK};
use rand::{SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};

use super::{
    Family, Settings,
    driver::{Driver, program},
    frames::Frames,
    report::{Live, median, rounded},
    services::{Node, Standing, difference},
};

/// Frames that the kernel hands over at a time; must fit the veth's ring (256).
const BATCH: u32 = 64;

/// Frames a measurement.
const FRAMES: u32 = 1 << 20;

/// Share of the frames that may get lost on the way.
const LOSS_MAX: f64 = 0.01;

const BARE: &str = "XDP_TX only";

struct Program {
    name: &'static str,
    /// ebb's service; the bare program when `None`.
    mode: Option<u8>,
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: BARE,
        mode: None,
    },
    Program {
        name: "ebb, established, l2",
        mode: Some(mode::L2),
    },
    Program {
        name: "ebb, established, nat",
        mode: Some(mode::NAT),
    },
];

/// Frames that arrived, and their rate.
struct Rate {
    mpps: f64,
    lost: f64,
}

/// Measures all programs in every round.
pub fn run(settings: &Settings, node: &mut Node, driver: &mut Driver) -> Result<Vec<Live>> {
    let (_, far) = node.live_interfaces;
    program(&mut driver.ebpf, "arrive")?
        .attach(far, XdpMode::Driver)
        .with_context(|| format!("attaching to {far}"))?;
    let mut live = Vec::new();
    for &flows in &settings.flows {
        live.extend(with_flows(settings, node, driver, flows)?);
    }
    Ok(live)
}

fn with_flows(
    settings: &Settings,
    node: &mut Node,
    driver: &mut Driver,
    flows: u32,
) -> Result<Vec<Live>> {
    let mut rates: Vec<Vec<Rate>> = PROGRAMS.iter().map(|_| Vec::new()).collect();
    let mut order: Vec<usize> = (0..PROGRAMS.len()).collect();
    let mut random = SmallRng::seed_from_u64(3);
    for round in 0..settings.rounds {
        order.shuffle(&mut random);
        for &number in &order {
            if settings.progress {
                eprint!("\r\x1b[Klive frames, {flows} flows, round {}", round + 1);
            }
            let rate = measure(&PROGRAMS[number], node, driver, flows)
                .with_context(|| format!("live frames through {}", PROGRAMS[number].name))?;
            rates[number].push(rate);
        }
    }
    if settings.progress {
        eprint!("\r\x1b[K");
    }
    let speeds =
        |number: usize| -> Vec<f64> { rates[number].iter().map(|rate| rate.mpps).collect() };
    let bare = speeds(0);
    Ok(PROGRAMS
        .iter()
        .enumerate()
        .map(|(number, program)| {
            let own = speeds(number);
            let shares: Vec<f64> = own
                .iter()
                .zip(&bare)
                .map(|(own, bare)| own / bare)
                .collect();
            let lost: Vec<f64> = rates[number].iter().map(|rate| rate.lost).collect();
            Live {
                program: program.name,
                flows,
                mpps: rounded(median(&own)),
                ratio: rounded(median(&shares)),
                lost: median(&lost),
            }
        })
        .collect())
}

fn measure(what: &Program, node: &mut Node, driver: &mut Driver, flows: u32) -> Result<Rate> {
    let (near, far) = node.live_interfaces;
    // The bare program gets the same frames as ebb.
    let service = node.service(Family::V4, what.mode.unwrap_or(mode::L2), Standing::Live)?;
    let order = node.order(Some(service), flows)?;
    let frames = Frames::to(node.services[service].setup.vip, ACK);
    let ifindex = nix::net::if_::if_nametoindex(far)?;
    driver.set_up(frames.config(flows, ifindex), &order)?;
    let link = attach(what, node, driver, near)?;
    let result = send_and_count(what, service, node, driver);
    detach(what, node, driver, link)?;
    result
}

fn send_and_count(
    what: &Program,
    service: usize,
    node: &Node,
    driver: &mut Driver,
) -> Result<Rate> {
    send(driver, FRAMES / 16)?;
    let outcomes = node.outcomes(Some(service))?;
    let before = arrived(driver)?;
    let start = Instant::now();
    send(driver, FRAMES)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = settled(driver)?;
    let counted = difference(&outcomes, &node.outcomes(Some(service))?);
    let (all, to_backend) = (after[0] - before[0], after[1] - before[1]);
    let lost = 1.0 - all as f64 / f64::from(FRAMES);
    ensure!(
        lost.abs() <= LOSS_MAX,
        "{all} of {FRAMES} frames arrived; the machine is too busy for this measurement"
    );
    if what.mode.is_some() {
        ensure!(
            to_backend == all,
            "{to_backend} of {all} frames were for a backend"
        );
        let steady = matches!(&counted[..], [(Outcome::ForwardSteady, count)] if *count >= all);
        ensure!(steady, "{all} frames were counted as {counted:?}");
    }
    Ok(Rate {
        mpps: all as f64 / seconds / 1e6,
        lost,
    })
}

fn send(driver: &mut Driver, frames: u32) -> Result<()> {
    let data = [0u8; super::shared::V4_LENGTH];
    program(&mut driver.ebpf, "generate")?
        .test_run(TestRunOptions {
            data_in: Some(&data),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        })
        .context("BPF_PROG_TEST_RUN with live frames (kernel 5.18)")?;
    Ok(())
}

/// Frames at the far end: all, those to a backend.
fn arrived(driver: &Driver) -> Result<[u64; 2]> {
    let map = driver
        .ebpf
        .map("ARRIVED")
        .context("the bench's object has no map ARRIVED")?;
    let map: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)?;
    Ok(map
        .get(&0, 0)?
        .iter()
        .fold([0, 0], |sum, cpu| [sum[0] + cpu[0], sum[1] + cpu[1]]))
}

/// The same when no more are coming: the last batches may still be in a ring.
fn settled(driver: &Driver) -> Result<[u64; 2]> {
    let mut last = arrived(driver)?;
    loop {
        nix::poll::poll(&mut [], 5u8).context("waiting")?;
        let now = arrived(driver)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

fn attach(what: &Program, node: &mut Node, driver: &mut Driver, near: &str) -> Result<XdpLinkId> {
    let program = match what.mode {
        None => program(&mut driver.ebpf, "floor_tx")?,
        Some(_) => program(node.rig.datapath.ebpf_mut(), "ebb")?,
    };
    program
        .attach(near, XdpMode::Driver)
        .with_context(|| format!("attaching to {near}"))
}

fn detach(what: &Program, node: &mut Node, driver: &mut Driver, link: XdpLinkId) -> Result<()> {
    let program = match what.mode {
        None => program(&mut driver.ebpf, "floor_tx")?,
        Some(_) => program(node.rig.datapath.ebpf_mut(), "ebb")?,
    };
    Ok(program.detach(link)?)
}
