//! Services that keep a client on one backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use ebb_tests::{
    client::{Connection, Failure},
    lab::address,
    scenario::{LIMIT, Scene, Way, can_run},
};

/// Clients' addresses: four in each of eight blocks of four (a prefix of 30 or 126 bits).
const BLOCKS: std::ops::Range<u8> = 10..18;

fn source(scene: &Scene, block: u8, host: u8) -> IpAddr {
    match address::client(scene.service.family) {
        IpAddr::V4(own) => {
            let [a, b, c, _] = own.octets();
            IpAddr::from([a, b, c, block * 4 + host])
        }
        IpAddr::V6(own) => {
            let mut segments = own.segments();
            segments[7] = u16::from(block) * 4 + u16::from(host);
            IpAddr::from(segments)
        }
    }
}

fn add_sources(scene: &Scene) -> Result<()> {
    for block in BLOCKS {
        for host in 0..4 {
            let mut command = scene.lab.command("client", "ip");
            let at = source(scene, block, host);
            let bits = scene.service.family.bits();
            command.args(["addr", "add", &format!("{at}/{bits}"), "dev", "eth0"]);
            if at.is_ipv6() {
                command.arg("nodad");
            }
            let status = command.status()?;
            ensure!(status.success(), "ip addr add {at}: {status}");
        }
    }
    Ok(())
}

/// Who answers three connections of every address, by block.
async fn ask(scene: &Scene) -> Result<BTreeMap<u8, BTreeSet<String>>, Failure> {
    let mut answered: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
    for block in BLOCKS {
        for host in 0..12 {
            let from = SocketAddr::new(source(scene, block, host % 4), 0);
            let mut connection = Connection::open(Some(from), scene.target(), LIMIT).await?;
            let answer = connection.get_bytes(100, u64::from(host), true).await?;
            answered
                .entry(block)
                .or_default()
                .insert(answer.backend.to_string());
            connection.close().await?;
        }
    }
    Ok(answered)
}

/// All connections of a prefix are on one backend; a drain moves the prefixes of its backend alone, and what was open
/// stays.
fn prefixes_stay_together(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::with(
        way,
        &["b1", "b2", "b3"],
        |service| {
            let bits = service.family.bits() - 2;
            service
                .more
                .push_str(&format!("\naffinity = {{ client = {bits} }}"));
        },
        "",
    )?;
    add_sources(&scene)?;
    let client = scene.lab.netns("client").clone();
    let asked = client.block_on(|| async {
        let before = ask(&scene).await?;
        let first = BLOCKS.start;
        let own = before[&first].first().cloned().unwrap_or_default();
        let from = SocketAddr::new(source(&scene, first, 1), 0);
        let mut open = Connection::open(Some(from), scene.target(), LIMIT).await?;
        let answer = open.get_bytes(100, 1, false).await?;
        assert_eq!(*answer.backend, *own);
        let drained = scene.ok(&format!("drain web/{own} --timeout 60s"));
        let after = ask(&scene).await?;
        let answer = open.get_bytes(100, 2, false).await?;
        assert_eq!(*answer.backend, *own, "an open connection stays");
        Ok::<_, Failure>((before, own, drained, after))
    })?;
    let (before, own, drained, after) = asked.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    drained?;
    let all: BTreeSet<_> = before.values().flatten().collect();
    ensure!(all.len() > 1, "all are on one backend: {before:?}");
    for (block, backends) in &before {
        ensure!(backends.len() == 1, "block {block} is on {backends:?}");
        ensure!(
            after[block].len() == 1,
            "block {block} is on {:?}",
            after[block]
        );
        let stayed = &after[block] == backends;
        ensure!(
            stayed != backends.contains(&own),
            "block {block}: {backends:?} became {:?}",
            after[block]
        );
    }
    Ok(())
}

#[test]
fn prefixes_stay_together_nat() -> Result<()> {
    prefixes_stay_together(Way::Nat)
}

#[test]
fn prefixes_stay_together_l2_v6() -> Result<()> {
    prefixes_stay_together(Way::L2V6)
}
