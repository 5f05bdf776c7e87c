//! QUIC services with a real QUIC stack: a connection stays with its server, whatever its client's address.

mod stack;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    config::Service,
    lab::address,
    scenario::{Scene, Way, can_run, check_sum, joined, lab},
};
use tokio::{task::JoinSet, time::timeout};

use stack::{Answer, Certificate, Log, User};

const USERS: usize = 30;
/// How long an answer is waited for that is not expected.
const PATIENCE: Duration = Duration::from_secs(5);

/// A scene with a QUIC server on every backend.
struct Stage {
    scene: Scene,
    certificate: Certificate,
    logs: Vec<(String, Log)>,
    /// The client's addresses.
    homes: [IpAddr; 2],
}

impl Stage {
    /// With these lines in the service's table.
    fn new(way: Way, more: &str) -> Result<Self> {
        let (lab, mut service) = lab(way, &["b1", "b2", "b3"])?;
        let family = way.family();
        // Beside the QUIC servers there are those of the health check.
        let servers = lab.serve(service.backend_port)?;
        service.check_port = Some(service.backend_port);
        service.protocol = "udp".into();
        service.port = 443;
        service.backend_port = if service.forward == "nat" { 4433 } else { 443 };
        service.more += &format!("\nidle_timeout = \"6s\"\n{more}");
        let homes = [address::client(family), address::client_elsewhere(family)];
        stack::move_in(&lab, homes[1], family.link_bits())?;
        let certificate = Certificate::new()?;
        let mut logs = Vec::new();
        for backend in lab.backends() {
            let own = lab.backend_in(family, backend);
            let listen = listening(&service, own);
            let id = stack::server_id(own);
            if !more.is_empty() && own.is_ipv6() {
                let id = format!("server_id = \"{}\"", hexadecimal(&id));
                service.more_of.insert(backend.clone(), id);
            }
            let log = stack::serve(lab.netns(backend), backend, listen, id, &certificate)?;
            logs.push((backend.clone(), log));
        }
        Ok(Self {
            scene: Scene::over(lab, service, servers, "")?,
            certificate,
            logs,
            homes,
        })
    }

    async fn user(&self) -> Result<User> {
        User::connect(self.homes[0], self.scene.target(), &self.certificate).await
    }

    /// Users, of whom every backend has some.
    async fn users(&self) -> Result<Vec<User>> {
        let mut users = Vec::new();
        for _ in 0..USERS {
            users.push(self.user().await?);
        }
        let servers: BTreeSet<_> = users.iter().map(|user| user.server.clone()).collect();
        ensure!(servers.len() == 3, "not shared out: {servers:?}");
        Ok(users)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a backend's server listens: in `l2` it answers from the service's own address.
fn listening(service: &Service, own: IpAddr) -> SocketAddr {
    match service.forward.as_str() {
        "nat" => SocketAddr::new(own, service.backend_port),
        _ => service.target(),
    }
}

async fn all_the_same(users: &mut [User]) -> Result<()> {
    for user in users {
        user.same().await?;
    }
    Ok(())
}

/// A long answer to each, begun.
async fn all_begin(users: &mut [User]) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for user in users {
        answers.push(user.begin().await?);
    }
    Ok(answers)
}

/// All go on from a new port of this address, and read what is left.
async fn all_move_and_finish(users: &[User], to: IpAddr, answers: Vec<Answer>) -> Result<()> {
    for user in users {
        user.migrate(to)?;
    }
    for mut answer in answers {
        answer.rest().await?;
    }
    Ok(())
}

/// Clients change their addresses and ports in mid-transfer: in peace, in a drain, and after every entry was lost.
fn connections_follow_their_clients(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new(way, "quic = {}")?;
    let client = stage.scene.lab.netns("client").clone();
    client.block_on(|| async { migrate(&stage).await })?
}

async fn migrate(stage: &Stage) -> Result<()> {
    let Stage { scene, homes, .. } = stage;
    let mut users = stage.users().await?;
    let on_b1 = users.iter().filter(|user| user.server == "b1").count();
    let begun = all_begin(&mut users).await?;
    all_move_and_finish(&users, homes[1], begun)
        .await
        .context("in peace")?;

    let begun = all_begin(&mut users).await?;
    scene.ok("drain web/b1 --timeout 120s")?;
    all_move_and_finish(&users, homes[0], begun)
        .await
        .context("in the drain")?;
    for _ in 0..10 {
        let user = stage.user().await?;
        ensure!(user.server != "b1", "begun on b1 in its drain");
        users.push(user);
    }

    let (lost, _) = scene.lose_tables()?;
    ensure!(lost >= users.len() as u32, "{lost} entries");
    all_the_same(&mut users).await?;
    let begun = all_begin(&mut users).await?;
    scene.lose_tables()?;
    all_move_and_finish(&users, homes[1], begun)
        .await
        .context("without entries")?;
    all_the_same(&mut users).await?;
    // Keep-alives list them all again, where they are now.
    scene.wait_backend("b1", |b1| b1["flows"].as_u64() >= Some(on_b1 as u64))?;

    let paths = check_logs(stage, &users);
    println!(
        "{} connections over {paths} paths: none broken, none moved; {on_b1} of them on the drained backend",
        users.len()
    );
    explained(stage)?;
    ended(scene, &mut users).await
}

/// Every connection is on one server, which has seen it from everywhere. How many paths there were.
fn check_logs(stage: &Stage, users: &[User]) -> usize {
    let mut paths = 0;
    for (name, log) in &stage.logs {
        let log = log.lock().expect("nobody panics with it").clone();
        let wanted = users.iter().filter(|user| user.server == *name).count();
        assert_eq!(log.len(), wanted, "connections on {name}");
        for seen in &log {
            let known = |peer: &SocketAddr| stage.homes.contains(&peer.ip());
            assert!(seen.peers.iter().all(known), "{seen:?}");
            // Those that begin in the drain move once, the others three times.
            let moves = if name == "b1" { 4..=4 } else { 2..=4 };
            assert!(moves.contains(&seen.peers.len()), "{name}: {seen:?}");
            paths += seen.peers.len();
        }
    }
    paths
}

/// What the loaded program says of them.
fn explained(stage: &Stage) -> Result<()> {
    let scene = &stage.scene;
    let from = SocketAddr::new(stage.homes[1], 9);
    let id = stack::server_id(scene.backend_at("b1").ip());
    let id = hexadecimal(&id);
    let ask = |id: &str| {
        let said = scene.ok(&format!("explain web --from {from} --cid {id} --json"))?;
        said.json()
    };
    let said = ask(&format!("0c{id}0000"))?;
    assert_eq!(said["named"]["backend"], "b1", "{said}");
    assert_eq!(said["named"]["outcome"], "forward_server_id", "{said}");
    assert_eq!(said["opening"]["outcome"], "forward_opening", "{said}");
    assert_ne!(said["opening"]["backend"], "b1", "{said}");
    let said = ask(&format!("2c{id}0000"))?;
    assert_ne!(said["named"]["backend"], "b1", "{said}");
    assert_eq!(said["named"]["outcome"], "forward_server_unknown", "{said}");
    let refusal = format!("explain web --from {from} --cid 0c0");
    scene.refused(&refusal, "is no connection id")?;
    Ok(())
}

/// The drain ends when its connections have fallen silent, and counts them as idle. The others go on.
async fn ended(scene: &Scene, users: &mut [User]) -> Result<()> {
    let on_b1 = users.iter().filter(|user| user.server == "b1").count();
    let waiting = scene.background("drain web/b1 --wait --json");
    for user in users.iter().filter(|user| user.server == "b1") {
        user.close();
    }
    let drained = tokio::task::spawn_blocking(move || joined(waiting)).await??;
    assert_eq!(drained.code, Some(0), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["reason"], "empty", "{receipt}");
    // Entries that the test has removed count as finished.
    let idle = receipt["idle_expired"].as_u64();
    assert!(idle >= Some(on_b1 as u64), "{receipt}");
    for user in users.iter_mut().filter(|user| user.server != "b1") {
        user.same().await?;
    }
    Ok(())
}

#[test]
fn connections_follow_their_clients_nat() -> Result<()> {
    connections_follow_their_clients(Way::Nat)
}

#[test]
fn connections_follow_their_clients_l2() -> Result<()> {
    connections_follow_their_clients(Way::L2)
}

#[test]
fn connections_follow_their_clients_nat_v6() -> Result<()> {
    connections_follow_their_clients(Way::NatV6)
}

/// The same servers behind a service that does not read their ids: a client that moves loses its connection, unless the
/// new address happens to lead to the same backend. So it is the ids that keep the others.
#[test]
fn without_ids_connections_break() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new(Way::Nat, "")?;
    let client = stage.scene.lab.netns("client").clone();
    client.block_on(|| async {
        let mut users = stage.users().await?;
        all_the_same(&mut users).await?;
        for user in &users {
            user.migrate(stage.homes[1])?;
        }
        let mut moved = JoinSet::new();
        for mut user in users {
            moved.spawn(async move { timeout(PATIENCE, user.same()).await });
        }
        let answers = moved.join_all().await;
        let kept = answers
            .iter()
            .filter(|answer| matches!(answer, Ok(Ok(()))))
            .count();
        ensure!(kept < USERS, "all {USERS} are where they were");
        println!("{kept} of {USERS} have an answer after they moved");
        Ok(())
    })?
}
