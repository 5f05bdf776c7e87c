//! A service on several ports.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use ebb_tests::{
    client::{Connection, Failure},
    lab::address,
    scenario::{LIMIT, Scene, Way, can_run, lab},
};

const FIRST: u16 = 8000;
const LAST: u16 = 8003;

/// Asks twice on a connection to this port; who answered, and the connection.
async fn ask(port: u16) -> Result<(String, Connection), Failure> {
    let target = SocketAddr::new(address::VIP, port);
    let mut connection = Connection::open(None, target, LIMIT).await?;
    let answer = connection.get_bytes(5000, u64::from(port), false).await?;
    Ok((answer.backend.to_string(), connection))
}

/// Each port reaches the backend's own port of that number; a drain keeps what is open and takes nothing new.
fn ports_are_kept(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut service) = lab(way, &["b1", "b2"])?;
    service.port = FIRST;
    service.last_port = Some(LAST);
    service.check_port = Some(FIRST);
    let mut servers = lab.serve(FIRST)?;
    for port in FIRST + 1..=LAST {
        for backend in lab.backends().to_vec() {
            servers.insert(format!("{backend}-{port}"), lab.serve_on(&backend, port)?);
        }
    }
    let scene = Scene::over(lab, service, servers, "")?;
    let client = scene.lab.netns("client").clone();
    client
        .block_on(|| async {
            let mut open = Vec::new();
            for round in 0..24 {
                open.push(ask(FIRST + round % 4).await?);
            }
            for server in ["b1", "b2"] {
                let count = open.iter().filter(|(name, _)| name == server).count();
                assert!(count > 0, "nobody is on {server}");
            }
            scene.ok("drain web/b1 --timeout 60s").map_err(other)?;
            for (server, connection) in &mut open {
                let answer = connection.get_bytes(5000, 9, false).await?;
                assert_eq!(*answer.backend, **server);
            }
            for round in 0..24 {
                let (server, _) = ask(FIRST + round % 4).await?;
                assert_eq!(server, "b2");
            }
            // Nobody listens there, and ebb does not either.
            let outside = SocketAddr::new(address::VIP, LAST + 1);
            assert!(Connection::open(None, outside, LIMIT / 10).await.is_err());
            Ok::<_, Failure>(())
        })?
        .map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let flows = scene.ok("flows web/b1 --json")?.json()?;
    let flows = flows.as_array().or_else(|| flows["flows"].as_array());
    let flows = flows.context("no list of flows")?;
    assert!(!flows.is_empty());
    for flow in flows {
        let port = flow["service_port"].as_u64().context("service_port")?;
        assert!(
            (u64::from(FIRST)..=u64::from(LAST)).contains(&port),
            "{flow}"
        );
        let ask = format!(
            "explain web --from {} --port {port} --json",
            flow["client"].as_str().context("client")?
        );
        let said = scene.ok(&ask)?.json()?;
        assert_eq!(said["established"]["backend"], "b1", "{said}");
    }
    scene.refused("explain web --from 10.1.0.2:1000 --port 9", "no port of")?;
    Ok(())
}

/// What went wrong beside a connection, as a failure of it.
pub fn other(error: anyhow::Error) -> Failure {
    Failure::from(std::io::Error::other(error.to_string()))
}

#[test]
fn ports_are_kept_nat() -> Result<()> {
    ports_are_kept(Way::Nat)
}

#[test]
fn ports_are_kept_l2() -> Result<()> {
    ports_are_kept(Way::L2)
}
