//! What backends say for themselves, over real sockets.

use std::sync::{Arc as Shared, Mutex};

use super::*;
use crate::model::{spec::HeaderSign, speech::Wish};

const READY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A server whose answer can be changed.
struct Changing {
    address: SocketAddr,
    answer: Shared<Mutex<&'static str>>,
    task: JoinHandle<()>,
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Changing {
    /// `asked`: whether it reads a request first.
    async fn start(answer: &'static str, asked: bool) -> Self {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let answer = Shared::new(Mutex::new(answer));
        let shared = Shared::clone(&answer);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                if asked {
                    let _ = stream.read(&mut [0; 4096]).await;
                }
                let answer = *shared.lock().unwrap();
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            address,
            answer,
            task,
        }
    }

    fn say(&self, answer: &'static str) {
        *self.answer.lock().unwrap() = answer;
    }
}

struct Hearing {
    _prober: Prober,
    events: mpsc::Receiver<HealthEvent>,
    speech: mpsc::Receiver<SpeechEvent>,
}

impl Hearing {
    fn of(address: SocketAddr, health: HealthSpec) -> Self {
        let (sender, events) = mpsc::channel(64);
        let (said, speech) = mpsc::channel(64);
        let mut prober = Prober::start(sender, said, mpsc::unbounded_channel().0);
        let health = Arc::new(health);
        prober.set_targets([(key("b1"), Target { address, health })].into());
        Self {
            _prober: prober,
            events,
            speech,
        }
    }

    async fn said(&mut self) -> Said {
        let event = timeout(PATIENCE, self.speech.recv()).await;
        event.expect("nothing is said").unwrap().said
    }

    async fn wish(&mut self) -> Wish {
        self.said().await.wish.expect("a wish")
    }

    async fn health(&mut self) -> (Health, String) {
        let event = timeout(PATIENCE, self.events.recv()).await;
        let change = event.expect("no event").unwrap().change;
        (change.to, change.cause.to_string())
    }
}

fn signs(header: Option<&str>, body: Option<&str>) -> HealthSpec {
    let header = header.map(|text| {
        let (name, value) = text
            .split_once(": ")
            .map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
        HeaderSign {
            name: name.to_ascii_lowercase(),
            value,
        }
    });
    let kind = ProbeKind::Http {
        path: "/".to_owned(),
        host: None,
        drain: DrainSigns {
            header,
            body: body.map(str::to_owned),
        },
    };
    HealthSpec {
        startup: None,
        readiness: Some(ProbeSpec {
            rise: 2,
            ..probe(kind)
        }),
        liveness: None,
        agent: None,
    }
}

fn agent(port: u16, send: &str) -> HealthSpec {
    HealthSpec {
        startup: None,
        readiness: None,
        liveness: None,
        agent: Some(ProbeSpec {
            port: Some(port),
            ..probe(ProbeKind::Agent {
                send: send.to_owned(),
            })
        }),
    }
}

#[tokio::test]
async fn headers_and_bodies_that_ask_for_a_drain() {
    const HEADER: &str = "HTTP/1.1 200 OK\r\nEBB-State:  Drain \r\ncontent-length: 2\r\n\r\nok";
    const BUSY: &str = "HTTP/1.1 503 Busy\r\nebb-state: drain\r\ncontent-length: 0\r\n\r\n";
    const BODY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{\"state\": \"draining now\"}";
    let usual = Some("Ebb-State: drain");
    let any = Some("X-Envoy-Immediate-Health-Check-Fail");
    let rows = [
        (usual, None, HEADER, Wish::Drain),
        (usual, None, BUSY, Wish::Drain),
        (usual, None, BODY, Wish::Ready),
        (usual, Some("draining"), BODY, Wish::Drain),
        (None, Some("draining"), HEADER, Wish::Ready),
        (any, None, HEADER, Wish::Ready),
        (
            any,
            None,
            "HTTP/1.1 503 No\r\nx-envoy-immediate-health-check-fail: true\r\ncontent-length: 0\r\n\r\n",
            Wish::Drain,
        ),
        (
            usual,
            None,
            "HTTP/1.1 200 OK\r\nebb-state: ready\r\ncontent-length: 0\r\n\r\n",
            Wish::Ready,
        ),
    ];
    for (header, body, answer, wanted) in rows {
        let server = Changing::start(answer, true).await;
        let mut hearing = Hearing::of(server.address, signs(header, body));
        assert_eq!(hearing.wish().await, wanted, "{header:?} {body:?} {answer}");
        let (health, _) = hearing.health().await;
        assert_eq!(health, Health::Up, "who asks to be drained answers");
    }
}

#[tokio::test]
async fn a_backend_asks_and_takes_it_back_with_answers_only() {
    let server = Changing::start(READY, true).await;
    let mut hearing = Hearing::of(server.address, signs(Some("Ebb-State: drain"), None));
    assert_eq!(hearing.wish().await, Wish::Ready);
    server.say("HTTP/1.1 200 OK\r\nebb-state: drain\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(hearing.wish().await, Wish::Drain);
    // A bad answer says nothing of it.
    server.say("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(hearing.health().await.0, Health::Up);
    assert_eq!(hearing.health().await.0, Health::Down);
    assert!(hearing.speech.try_recv().is_err());
    server.say(READY);
    assert_eq!(hearing.wish().await, Wish::Ready);
}

#[tokio::test]
async fn an_agent_says_what_it_wants() {
    let server = Changing::start("up ready\n", false).await;
    let address = SocketAddr::new(server.address.ip(), 1);
    let mut hearing = Hearing::of(address, agent(server.address.port(), ""));
    let health = hearing.health().await;
    assert_eq!(health, (Health::Up, "no health check".to_owned()));
    assert_eq!(hearing.wish().await, Wish::Ready);
    server.say("drain, 75%\n");
    let said = hearing.said().await;
    assert_eq!(
        (said.wish, &*said.not_understood),
        (Some(Wish::Drain), "75%")
    );
    server.say("down#upgrade");
    let health = hearing.health().await;
    assert_eq!(
        health,
        (Health::Down, "agent: says down (upgrade)".to_owned())
    );
    server.say("");
    server.say("up\nready\n");
    assert_eq!(
        hearing.health().await,
        (Health::Up, "agent: says up".to_owned())
    );
    while hearing
        .speech
        .try_recv()
        .is_ok_and(|event| event.said.wish.is_none())
    {}
    assert!(
        hearing.speech.try_recv().is_err(),
        "only the first line counts"
    );
    server.say("ready");
    while hearing.said().await.wish != Some(Wish::Ready) {}
}

#[tokio::test]
async fn an_agent_is_asked_and_need_not_be_there() {
    let mut server = Server::start("drain\n", true).await;
    let health = agent(server.address.port(), "web/b1\n");
    let mut hearing = Hearing::of(server.address, health);
    assert_eq!(server.request().await, "web/b1\n");
    assert_eq!(hearing.wish().await, Wish::Drain);
    let nobody = nowhere().await;
    let mut health = agent(nobody.port(), "");
    health.readiness = Some(probe(ProbeKind::Tcp));
    let there = Server::start("", true).await;
    let mut hearing = Hearing::of(there.address, health);
    assert_eq!(
        hearing.health().await,
        up(),
        "the agent's silence says nothing"
    );
}
