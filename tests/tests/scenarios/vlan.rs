//! Tagged frames on a live wire. This kernel may have no VLAN devices, so both ends are packet sockets: one beside the
//! router, on the link to the balancer, one on each backend.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use ebb_tests::{
    icmp::Message,
    packets::Segment,
    scenario::{Scene, Way, can_run},
    tagged::Frames,
};

const SYN: u8 = 2;
const SOON: Duration = Duration::from_secs(5);

/// Tags as on the wire, outermost first.
const TAGS: [&[u8]; 2] = [
    &[0x81, 0, 0x20, 100],
    &[0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 100],
];

fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// The frame without these tags, if it begins with them.
fn untagged(frame: &[u8], tags: &[u8]) -> Option<Vec<u8>> {
    let rest = frame.get(12..)?.strip_prefix(tags)?;
    Some([&frame[..12], rest].concat())
}

/// A ping and openings with tags: the answer, and what each backend gets, have the same ones.
fn tags_stay(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let names = ["b1", "b2", "b3"];
    let scene = Scene::new(way, &names)?;
    let (router, lb) = (scene.lab.netns("router"), scene.lab.netns("lb"));
    let wire = Frames::open(router, "lb")?;
    let from_mac = ebb_tests::lab::Lab::mac_in(router, "lb")?;
    let to_mac = ebb_tests::lab::Lab::mac_in(lb, "eth0")?;
    let backends: Vec<(&str, Frames)> = names
        .into_iter()
        .map(|name| Ok((name, Frames::open(scene.lab.netns(name), "eth0")?)))
        .collect::<Result<_>>()?;
    let vip = scene.target();
    let client = SocketAddr::new(scene.raw_client(0)?.address(), 0);
    for tags in TAGS {
        let echo = if vip.is_ipv4() { 8 } else { 128 };
        let mut ping = Message::new(client.ip(), vip.ip(), echo, 0, b"tagged");
        (ping.to_mac, ping.from_mac) = (to_mac, from_mac);
        wire.send(&tagged(&ping.build(), tags))?;
        let answer = wire.find(SOON, |frame| {
            let message = Message::parse(&untagged(frame, tags)?).ok()?;
            (message.from == vip.ip() && message.body == b"tagged").then_some(message)
        })?;
        ensure!(
            answer.to == client.ip() && answer.to_mac == from_mac,
            "{answer:?}"
        );

        let mut reached = BTreeSet::new();
        for port in 50_000..50_020_u16 {
            let from = SocketAddr::new(client.ip(), port);
            let mut syn = Segment::new(from, vip, SYN).at(u32::from(port), 0);
            (syn.to_mac, syn.from_mac) = (to_mac, from_mac);
            wire.send(&tagged(&syn.build(), tags))?;
            // On the bridge each frame goes to the one whose MAC address it has.
            let arrived = backends.iter().find_map(|(name, frames)| {
                let mine = |frame: &[u8]| {
                    let found = Segment::parse(&untagged(frame, tags)?).ok()?;
                    (found.from == from && found.to == vip).then_some(())
                };
                frames
                    .find(Duration::from_millis(200), mine)
                    .ok()
                    .map(|()| *name)
            });
            ensure!(
                arrived.is_some(),
                "the opening from port {port} with {tags:02x?} arrived nowhere"
            );
            reached.extend(arrived);
            if reached.len() == names.len() {
                break;
            }
        }
        ensure!(reached.len() > 1, "{reached:?}");
    }
    Ok(())
}

#[test]
fn tags_stay_l2() -> Result<()> {
    tags_stay(Way::L2)
}

#[test]
fn tags_stay_l2_v6() -> Result<()> {
    tags_stay(Way::L2V6)
}
