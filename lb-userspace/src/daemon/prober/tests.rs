//! The prober against listeners on loopback.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::model::{
    health::{Cause, Check, FailureKind, Health},
    spec::{DrainSigns, ProbeKind, ProbeSpec},
};

const PATIENCE: Duration = Duration::from_secs(20);
const PERIOD: Duration = Duration::from_millis(20);

/// A server that ends when dropped, and says of every connection that it began.
struct Server {
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<String>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Reads a request (where one comes), writes `answer`, and then closes or, with `hold`, waits for the client to.
    async fn start(answer: &'static str, hold: bool) -> Self {
        let listener = listen().await;
        Self::on(listener, answer, hold)
    }

    fn on(listener: TcpListener, answer: &'static str, hold: bool) -> Self {
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let _ = sender.send(serve(stream, answer, hold).await);
                });
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    async fn request(&mut self) -> String {
        timeout(PATIENCE, self.requests.recv())
            .await
            .expect("no request")
            .unwrap()
    }
}

async fn serve(mut stream: TcpStream, answer: &str, hold: bool) -> String {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await.unwrap_or(0);
    let _ = stream.write_all(answer.as_bytes()).await;
    if hold {
        let _ = stream.read(&mut [0; 64]).await;
    }
    String::from_utf8_lossy(&request[..length]).into_owned()
}

/// On an address of its own, so that no port given up in one test is taken in another.
async fn listen() -> TcpListener {
    static HOSTS: AtomicU8 = AtomicU8::new(1);
    let host = HOSTS.fetch_add(1, Ordering::Relaxed);
    TcpListener::bind((Ipv4Addr::new(127, 66, 0, host), 0))
        .await
        .unwrap()
}

/// An address where nothing listens.
async fn nowhere() -> SocketAddr {
    let address = listen().await.local_addr().unwrap();
    // A child of another test has every socket of this process from its fork to its exec.
    let freed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(PERIOD).await;
        }
    };
    timeout(PATIENCE, freed).await.expect("somebody listens");
    address
}

fn probe(kind: ProbeKind) -> ProbeSpec {
    ProbeSpec {
        kind,
        port: None,
        period: PERIOD,
        timeout: Duration::from_secs(5),
        rise: 1,
        fall: 2,
    }
}

fn http() -> ProbeSpec {
    probe(ProbeKind::Http {
        path: "/health?deep=1".to_owned(),
        host: None,
        drain: DrainSigns::default(),
    })
}

fn ready(address: SocketAddr, readiness: ProbeSpec) -> Target {
    Target {
        address,
        health: Arc::new(HealthSpec {
            startup: None,
            readiness: Some(readiness),
            liveness: None,
            agent: None,
        }),
    }
}

fn key(backend: &str) -> TargetKey {
    TargetKey {
        service: "web".to_owned(),
        backend: backend.to_owned(),
    }
}

struct Probing {
    prober: Prober,
    events: mpsc::Receiver<HealthEvent>,
}

impl Probing {
    fn start(targets: impl IntoIterator<Item = (TargetKey, Target)>) -> Self {
        let (sender, events) = mpsc::channel(64);
        let mut prober = Prober::start(sender, mpsc::channel(64).0, mpsc::unbounded_channel().0);
        prober.set_targets(targets.into_iter().collect());
        Self { prober, events }
    }

    fn one(target: Target) -> Self {
        Self::start([(key("b1"), target)])
    }

    async fn next(&mut self) -> HealthEvent {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("no event")
            .expect("the prober ended")
    }

    async fn change(&mut self) -> (Health, Health, bool, String) {
        let change = self.next().await.change;
        (
            change.from,
            change.to,
            change.dead,
            change.cause.to_string(),
        )
    }
}

/// The first change of a target with this check.
async fn verdict(address: SocketAddr, readiness: ProbeSpec) -> (Health, String) {
    let (_, to, _, why) = Probing::one(ready(address, readiness)).change().await;
    (to, why)
}

fn up() -> (Health, String) {
    (Health::Up, "readiness: 1 probe succeeded".to_owned())
}

fn down(how: &str) -> (Health, String) {
    (Health::Down, format!("readiness: 2 probes {how}"))
}

#[tokio::test]
async fn tcp_up_and_refused() {
    let server = Server::start("", true).await;
    assert_eq!(verdict(server.address, probe(ProbeKind::Tcp)).await, up());
    assert_eq!(
        verdict(nowhere().await, probe(ProbeKind::Tcp)).await,
        down("refused")
    );
    assert_eq!(verdict(nowhere().await, http()).await, down("refused"));
}

#[tokio::test]
async fn statuses() {
    let rows = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", up()),
        ("HTTP/1.1 204 No Content\r\n\r\n", up()),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", up()),
        (
            "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
            up(),
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            up(),
        ),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            down("answered 404"),
        ),
        (
            "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
            down("answered 500"),
        ),
    ];
    for (answer, expected) in rows {
        let server = Server::start(answer, false).await;
        assert_eq!(verdict(server.address, http()).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn what_is_not_http_fails() {
    for answer in [
        "",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 2",
        "\0\u{1}\u{2}\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
    ] {
        let server = Server::start(answer, false).await;
        assert_eq!(
            verdict(server.address, http()).await,
            down("failed"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn no_answer_in_time() {
    for answer in ["", "HTTP/1.1 200 OK\r\nhalf-a-he"] {
        let server = Server::start(answer, true).await;
        let check = ProbeSpec {
            timeout: Duration::from_millis(50),
            ..http()
        };
        assert_eq!(
            verdict(server.address, check).await,
            down("timed out"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_slow_body_does_not_matter() {
    let server = Server::start(
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe rest never comes",
        true,
    )
    .await;
    assert_eq!(verdict(server.address, http()).await, up());
}

#[tokio::test]
async fn the_request_is_what_was_asked_for() {
    let mut server = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    // The check's own port counts, not the backend's.
    let elsewhere = SocketAddr::new(server.address.ip(), 1);
    let check = ProbeSpec {
        port: Some(server.address.port()),
        ..http()
    };
    let mut probing = Probing::one(ready(elsewhere, check.clone()));
    let request = server.request().await;
    let wanted = [
        "GET /health?deep=1 HTTP/1.1\r\n",
        &format!("host: {}\r\n", server.address),
        "connection: close\r\n",
    ];
    assert!(
        wanted.iter().all(|wanted| request.contains(wanted)),
        "{request}"
    );
    assert_eq!(
        probing.next().await.address,
        elsewhere,
        "told of as the backend"
    );
    let named = ProbeSpec {
        kind: ProbeKind::Http {
            path: "/".to_owned(),
            host: Some("shop.example".to_owned()),
            drain: DrainSigns::default(),
        },
        ..check
    };
    let mut server = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let _probing = Probing::one(ready(
        server.address,
        ProbeSpec {
            port: None,
            ..named
        },
    ));
    let request = server.request().await;
    assert!(request.contains("host: shop.example\r\n"), "{request}");
}

#[tokio::test]
async fn an_impossible_request_fails_and_nothing_breaks() {
    let server = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let check = ProbeSpec {
        kind: ProbeKind::Http {
            path: "no path at all".to_owned(),
            host: None,
            drain: DrainSigns::default(),
        },
        ..http()
    };
    assert_eq!(verdict(server.address, check).await, down("failed"));
}

#[tokio::test]
async fn a_backend_comes_goes_and_dies() {
    let address = nowhere().await;
    let check = probe(ProbeKind::Tcp);
    let mut probing = Probing::one(Target {
        address,
        health: Arc::new(HealthSpec {
            startup: Some(ProbeSpec {
                fall: 3,
                ..check.clone()
            }),
            readiness: Some(http()),
            liveness: Some(ProbeSpec { fall: 4, ..check }),
            agent: None,
        }),
    });
    let told = probing.change().await;
    assert_eq!(
        told,
        (
            Health::Starting,
            Health::Down,
            false,
            "startup: 3 probes refused".to_owned()
        )
    );

    let busy = Server::on(
        listen_again(address).await,
        "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
        false,
    );
    let told = probing.change().await;
    assert_eq!(
        told,
        (
            Health::Down,
            Health::Starting,
            false,
            "startup: 1 probe succeeded".to_owned()
        )
    );
    let told = probing.change().await;
    assert_eq!(
        told,
        (
            Health::Starting,
            Health::Down,
            false,
            "readiness: 2 probes answered 503".to_owned()
        )
    );
    stop(busy).await;

    let well = Server::on(
        listen_again(address).await,
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        false,
    );
    // Whether the gap between the two servers was long enough to be dead in is up to the machine.
    loop {
        let told = probing.change().await;
        if told.1 == Health::Up {
            break;
        }
    }
    stop(well).await;
    let mut dead = false;
    while !dead {
        let told = probing.next().await.change;
        assert_eq!(told.to, Health::Down);
        dead = told.dead;
        if dead {
            let failures = vec![(FailureKind::Refused, 4)];
            assert!(
                matches!(&told.cause, Cause::Failed { check: Check::Liveness, failures: told } if *told == failures),
                "{}",
                told.cause
            );
        }
    }
}

/// Probes out of turn: at once, whatever the period; and where they meet silence, on until it is known what that means.
#[tokio::test]
async fn a_question_does_not_wait_for_its_turn() {
    let server = Server::start("", true).await;
    let (sender, events) = mpsc::channel(64);
    let (answers, mut answered) = mpsc::unbounded_channel();
    let seldom = ProbeSpec {
        period: Duration::from_secs(3600),
        fall: 3,
        ..probe(ProbeKind::Tcp)
    };
    let mut prober = Prober::start(sender, mpsc::channel(64).0, answers);
    prober.set_targets([(key("b1"), ready(server.address, seldom))].into());
    let mut probing = Probing { prober, events };
    assert_eq!(probing.change().await.1, Health::Up);
    for _ in 0..2 {
        probing.prober.probe_now(&key("b1"));
        let answer = timeout(PATIENCE, answered.recv()).await;
        assert_eq!(answer.expect("no answer"), Some(key("b1")));
    }
    stop(server).await;
    probing.prober.probe_now(&key("b1"));
    let event = probing.next().await;
    assert_eq!(
        event.change.cause.to_string(),
        "readiness: 3 probes refused"
    );
    assert!(event.unanswered < PATIENCE, "{event:?}");
    assert!(answered.try_recv().is_err(), "nobody answered");
}

async fn stop(mut server: Server) {
    server.task.abort();
    // The listener is closed once the task is gone.
    let _ = (&mut server.task).await;
}

/// At an address that was given up just now; see [`nowhere`] for who may still have it.
async fn listen_again(address: SocketAddr) -> TcpListener {
    let bound = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
            }
            tokio::time::sleep(PERIOD).await;
        }
    };
    timeout(PATIENCE, bound).await.expect("still in use")
}

#[tokio::test]
async fn without_checks_a_backend_is_up() {
    let mut probing = Probing::one(Target {
        address: nowhere().await,
        health: Arc::new(HealthSpec {
            startup: None,
            readiness: None,
            liveness: None,
            agent: None,
        }),
    });
    assert_eq!(
        probing.change().await,
        (
            Health::Starting,
            Health::Up,
            false,
            "no health check".to_owned()
        )
    );
}

#[tokio::test]
async fn replaced_targets() {
    let mut first = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let mut second = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let kept = (key("kept"), ready(first.address, http()));
    let moved = |address| (key("moved"), ready(address, http()));
    let mut probing = Probing::start([kept.clone(), moved(first.address)]);
    for _ in 0..2 {
        assert_eq!(probing.next().await.change.to, Health::Up);
    }
    probing
        .prober
        .set_targets(BTreeMap::from([kept.clone(), moved(second.address)]));
    let event = probing.next().await;
    assert_eq!(
        (event.key, event.address, event.change.from),
        (key("moved"), second.address, Health::Starting)
    );
    assert_eq!(probing.prober.running.len(), 2);

    probing.prober.set_targets(BTreeMap::from([kept]));
    // The last requests under way are let through, then only the kept one goes on.
    timeout(PATIENCE, async {
        while timeout(PERIOD * 10, second.requests.recv()).await.is_ok() {}
    })
    .await
    .expect("a removed target is still probed");
    while first.requests.try_recv().is_ok() {}
    first.request().await;
    assert!(
        probing.events.try_recv().is_err(),
        "the kept one keeps its state and tells nothing"
    );

    probing.prober.set_targets(BTreeMap::new());
    assert_eq!(probing.prober.running.len(), 0);
}

#[tokio::test]
async fn all_tasks_end_with_the_prober() {
    let server = Server::start("", true).await;
    let before = Handle::current().metrics().num_alive_tasks();
    let stuck = ProbeSpec {
        timeout: Duration::from_secs(3600),
        ..http()
    };
    let targets = (0..50).map(|number| {
        (
            key(&format!("b{number}")),
            ready(server.address, stuck.clone()),
        )
    });
    let mut probing = Probing::start(targets.clone().collect::<Vec<_>>());
    for round in 0..20u64 {
        // Each round replaces every target.
        let patience = Duration::from_secs(1000 + round);
        let replaced = targets.clone().map(|(key, mut target)| {
            let health = Arc::make_mut(&mut target.health);
            health.readiness.as_mut().unwrap().timeout = patience;
            (key, target)
        });
        probing.prober.set_targets(replaced.collect());
        tokio::task::yield_now().await;
    }
    let Probing { prober, mut events } = probing;
    drop(prober);
    let ended = timeout(PATIENCE, async { while events.recv().await.is_some() {} }).await;
    assert!(ended.is_ok(), "a task holds on to the events");
    // What remains are the server's own connections, which end with their clients.
    let gone = timeout(PATIENCE, async {
        while Handle::current().metrics().num_alive_tasks() > before {
            tokio::task::yield_now().await;
        }
    });
    assert!(gone.await.is_ok(), "connections are left");
}

#[tokio::test]
async fn more_targets_than_turns_are_all_probed() {
    let server = Server::start("", true).await;
    let (sender, mut events) = mpsc::channel(64);
    let mut prober =
        Prober::with_turns(sender, mpsc::channel(64).0, mpsc::unbounded_channel().0, 2);
    let slow = ProbeSpec {
        timeout: Duration::from_millis(20),
        fall: 1,
        ..http()
    };
    let targets = (0..20).map(|number| {
        (
            key(&format!("b{number}")),
            ready(server.address, slow.clone()),
        )
    });
    prober.set_targets(targets.collect());
    for _ in 0..20 {
        let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        assert_eq!(
            event.change.cause.to_string(),
            "readiness: 1 probe timed out"
        );
    }
}

/// Sockets of a TCP probe are gone at once: no TIME_WAIT, whoever closes first.
#[tokio::test]
async fn tcp_probes_leave_nothing_behind() {
    let mut server = Server::start("", true).await;
    let _probing = Probing::one(ready(server.address, probe(ProbeKind::Tcp)));
    for _ in 0..5 {
        server.request().await;
    }
    let SocketAddr::V4(address) = server.address else {
        panic!("it listens on IPv4");
    };
    // As the kernel prints it: a number in host order of the bytes in network order.
    let ip = u32::from_ne_bytes(address.ip().octets());
    let server = format!(" {ip:08X}:{:04X} ", address.port());
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    assert!(sockets.contains(&server), "its listener is not in the list");
    let time_wait = sockets
        .lines()
        .filter(|line| line.contains(&server) && line.split_whitespace().nth(3) == Some("06"));
    assert_eq!(time_wait.count(), 0);
}

mod speech;
