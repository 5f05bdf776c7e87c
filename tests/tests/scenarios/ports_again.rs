//! Clients that use their ports again at once. The backend that served the connection before keeps it in TIME-WAIT and answers for it
//! whatever comes from there; when the tables are lost, it is asked about the new one.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use ebb_tests::{
    client::{Connection, Failure},
    config::Service,
    lab::{Topology, address::Family},
    scenario::{Scene, Way, can_run},
};
use tokio::task::JoinSet;

use super::{full_nat, ports::other, tunnel};

const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];
/// The clients' ports: about a third of them is b1's at first.
const FIRST: u16 = 20_000;
const PORTS: u16 = 240;
/// Time for an answer. A few retransmissions fit, the minute of TIME-WAIT does not.
const LIMIT: Duration = Duration::from_secs(20);

/// One request on this port, whose connection the server ends first: who answered.
async fn once(from: SocketAddr, target: SocketAddr) -> Result<String, Failure> {
    let mut connection = Connection::open(Some(from), target, LIMIT).await?;
    let answer = connection
        .get_bytes(100, u64::from(from.port()), true)
        .await?;
    // Its FIN, before that of the client.
    connection.unasked().await;
    connection.close().await?;
    Ok(answer.backend.to_string())
}

/// Asks on all of them at once: answers come from where they came before.
async fn ask(open: Vec<Connection>) -> Result<Vec<Connection>, Failure> {
    let mut asked = JoinSet::new();
    for mut connection in open {
        asked.spawn(async move {
            let seed = u64::from(connection.local().port());
            connection.get_bytes(100, seed, false).await?;
            Ok(connection)
        });
    }
    asked.join_all().await.into_iter().collect()
}

/// How many connections with clients a backend's kernel keeps in TIME-WAIT.
fn waiting_on(scene: &Scene, backend: &str) -> Result<usize> {
    let port = format!("sport = :{}", scene.service.backend_port);
    let mut command = scene.lab.command(backend, "ss");
    let output = command
        .args(["-tnaH", "state", "time-wait", &port])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}

/// The ports that b1 has served are used again while it drains, and both tables are lost.
async fn again(scene: &Scene) -> Result<(usize, usize), Failure> {
    let target = scene.target();
    let mut ports = Vec::new();
    for port in FIRST..FIRST + PORTS {
        let from = SocketAddr::new(scene.client(), port);
        if once(from, target).await? == "b1" {
            ports.push(from);
        }
    }
    let waiting = waiting_on(scene, "b1").map_err(other)?;
    scene.ok("drain web/b1 --timeout 120s").map_err(other)?;
    let mut open = Vec::new();
    for from in &ports {
        let mut connection = Connection::open(Some(*from), target, LIMIT).await?;
        let answer = connection.get_bytes(100, 1, false).await?;
        assert_ne!(*answer.backend, *"b1", "new after the drain");
        open.push(connection);
    }
    for _ in 0..2 {
        scene.lose_tables().map_err(other)?;
        open = ask(open).await?;
    }
    for connection in open {
        connection.close().await?;
    }
    Ok((ports.len(), waiting))
}

/// `by`: the outcome of packets that says why they live.
fn survive(scene: &Scene, name: &str, by: &str) -> Result<()> {
    let client = scene.lab.netns("client").clone();
    let done = client.block_on(|| again(scene))?;
    let (ports, waiting) =
        done.map_err(|failure| anyhow::anyhow!("{name}: {failure}\n{}", scene.who_waits()))?;
    let saved = scene.ebb.status()?["services"][0]["outcomes"][by].as_u64();
    eprintln!(
        "{name}: {ports} ports used again, {waiting} connections in TIME-WAIT on b1, {by}: {saved:?}"
    );
    ensure!(ports > 30, "{ports} ports were b1's");
    ensure!(waiting >= ports, "{waiting} of {ports} wait on b1");
    ensure!(saved >= Some(2 * ports as u64), "{saved:?}");
    Ok(())
}

fn in_nat(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(way, &BACKENDS)?;
    survive(&scene, &format!("{way:?}"), "drop_second_chance")
}

#[test]
fn ports_again_nat() -> Result<()> {
    in_nat(Way::Nat)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn ports_again_nat_v6() -> Result<()> {
    in_nat(Way::NatV6)
}

#[test]
fn ports_again_full_nat() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| {
        service.more = "drain = { timeout = \"120s\" }".to_owned();
    };
    let scene = full_nat::scene_with(Topology::TwoArm, Family::V4, &BACKENDS, edit)?;
    survive(&scene, "full-nat", "drop_second_chance")
}

#[test]
fn ports_again_ipip() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let families = (Family::V4, Family::V4);
    let more = "decap = \"ebb\"";
    let scene = tunnel::scene_with("ipip", families, Some(tunnel::WIDE), &BACKENDS, more)?;
    survive(&scene, "ipip", "forward_second_chance")
}
