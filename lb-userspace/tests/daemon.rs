//! A whole daemon over the in-memory data plane, spoken to through its socket.

mod common;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{hop, service, spec};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use lb_common::{
    Addr,
    steer::{Packet, tcp},
};
use lb_userspace::{
    api::Refusal,
    daemon::{
        RunOptions, StopOrder,
        clock::{SteadyClock, WallClock},
        core::{Event, Ports},
        engine::commands::ProbeTarget,
        run,
    },
    datapath::fake::{Fake, Sizes},
    model::{
        observed::{Health, Way},
        spec::Spec,
    },
};
use serde_json::{Value, json};
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle};

type Loaded = Arc<Mutex<Result<Spec, Refusal>>>;

/// What a daemon leaves behind when it stops, and finds when it starts.
struct World {
    directory: tempfile::TempDir,
    loaded: Loaded,
    fake: Fake,
}

/// A daemon that runs.
struct Daemon {
    socket: PathBuf,
    events: mpsc::Sender<Event>,
    stop: StopOrder,
    task: JoinHandle<anyhow::Result<()>>,
}

impl World {
    fn new(checked: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = spec([service("web", checked)]);
        spec.node.hash_seed_file = directory.path().join("seed");
        Self {
            directory,
            loaded: Arc::new(Mutex::new(Ok(spec))),
            fake: Fake::running(Sizes::default()),
        }
    }

    fn edit(&self, edit: impl FnOnce(&mut Spec)) {
        edit(self.loaded.lock().unwrap().as_mut().unwrap());
    }

    /// Starts a daemon whose next hops are known and, where `up`, whose backends are healthy.
    fn spawn(&self, up: bool) -> Daemon {
        let (events, receiver) = mpsc::channel(64);
        let socket = self.directory.path().join("ebb.sock");
        let loaded = Arc::clone(&self.loaded);
        let stop = StopOrder::default();
        let options = RunOptions {
            config: "/nonexistent/ebb.toml".into(),
            socket: socket.clone(),
            state_dir: self.directory.path().join("state"),
            load: Arc::new(move |_: &Path| loaded.lock().unwrap().clone()),
            stop: stop.clone(),
        };
        let (ways, healths) = (events.clone(), events.clone());
        let ports = Ports {
            events: receiver,
            watch_addresses: Box::new(move |addresses| {
                for address in addresses {
                    ways.try_send(Event::NextHop {
                        address,
                        way: way(),
                    })
                    .unwrap();
                }
            }),
            probe_now: Box::new(|_, _| {}),
            send: Box::new(drop),
            set_targets: Box::new(move |targets: Vec<ProbeTarget>| {
                for target in targets.into_iter().filter(|_| up) {
                    healths
                        .try_send(is(&target.service, &target.backend, Health::Up))
                        .unwrap();
                }
            }),
        };
        let fake = self.fake.clone();
        let task = tokio::spawn(run(
            options,
            move |_| Ok(Box::new(fake)),
            ports,
            Arc::new(SteadyClock::new(Arc::new(WallClock))),
        ));
        Daemon {
            socket,
            events,
            stop,
            task,
        }
    }

    /// Starts one and waits until all that was said of its backends has been taken in.
    async fn start(&self) -> Daemon {
        let daemon = self.spawn(true);
        let known = |backend: &Value| {
            backend["health"] != "starting" && backend["next_hop"] != "being looked up"
        };
        daemon
            .wait_status(|status| {
                accepting(status).len() == 4 && backends(status).iter().all(known)
            })
            .await;
        daemon
    }

    /// Opens a flow and completes its handshake; who got it.
    fn flow(&self, port: u16) -> u32 {
        let mut packet = Packet {
            client: Addr::from_v4([10, 9, 0, 1]),
            client_port: port.to_be(),
            service_port: 80u16.to_be(),
            flags: tcp::SYN,
            sequence: 7,
            ..Packet::default()
        };
        let backend = self.fake.packet(1, &packet).unwrap().backend;
        (packet.flags, packet.sequence) = (tcp::ACK, 8);
        assert_eq!(self.fake.packet(1, &packet).unwrap().backend, backend);
        backend
    }
}

fn way() -> Way {
    Way::Known(hop())
}

fn is(service: &str, backend: &str, health: Health) -> Event {
    Event::Health {
        service: service.to_owned(),
        backend: backend.to_owned(),
        health,
        reason: Some("said so".to_owned()),
        silence: None,
    }
}

impl Daemon {
    async fn connect(&self) -> UnixStream {
        loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => return stream,
                Err(_) => {
                    assert!(!self.task.is_finished(), "the daemon has stopped");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let stream = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "ebb");
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.call("POST", path, &body.to_string()).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn refused(&self, path: &str, body: Value) -> (u16, String, String) {
        let (status, answer) = self.call("POST", path, &body.to_string()).await;
        assert!(status >= 400, "{path} was not refused: {answer}");
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        (status, text("error"), text("hint"))
    }

    async fn wait_status(&self, until: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let status = self.get("/v1/status").await;
                if until(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .expect("the status that was waited for")
    }

    async fn stop(self) {
        self.stop.give(false);
        self.task.await.unwrap().unwrap();
        assert!(!self.socket.exists());
    }
}

fn backends(status: &Value) -> Vec<Value> {
    let pools = status["services"][0]["pools"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    pools
        .iter()
        .flat_map(|pool| pool["backends"].as_array().cloned().unwrap_or_default())
        .collect()
}

fn accepting(status: &Value) -> Vec<String> {
    let accepting = backends(status)
        .into_iter()
        .filter(|backend| backend["accepting"] == true);
    accepting
        .map(|backend| backend["name"].as_str().unwrap().to_owned())
        .collect()
}

fn backend(status: &Value, name: &str) -> Value {
    backends(status)
        .into_iter()
        .find(|backend| backend["name"] == name)
        .unwrap_or(Value::Null)
}

#[tokio::test]
async fn a_drain_without_flows_ends_empty_and_can_be_taken_back() {
    let world = World::new(true);
    let daemon = world.start().await;
    let drain = daemon.post("/v1/drain", json!({"backend": "web/b1"})).await;
    assert_eq!(
        (&drain["state"], &drain["backend"]),
        (&json!("draining"), &json!("web/b1"))
    );
    let ended = daemon
        .get(&format!("/v1/drains/{}?wait_ms=20000", drain["id"]))
        .await;
    assert_eq!(ended["state"], "drained");
    assert_eq!(ended["receipt"]["reason"], "empty");
    let status = daemon.get("/v1/status").await;
    assert_eq!(accepting(&status), ["b2", "b3", "b4"]);
    assert_eq!(backend(&status, "b1")["admin"], "drained");
    daemon
        .post("/v1/undrain", json!({"backend": "web/b1"}))
        .await;
    assert_eq!(accepting(&daemon.get("/v1/status").await).len(), 4);
    daemon.stop().await;
}

#[tokio::test]
async fn a_drain_with_flows_waits_for_them_and_resets_them_at_its_deadline() {
    let world = World::new(true);
    world.edit(|spec| {
        spec.services.get_mut("web").unwrap().drain.spread = Duration::ZERO;
    });
    let daemon = world.start().await;
    let b1 = backend(&daemon.get("/v1/status").await, "b1")["id"]
        .as_u64()
        .unwrap() as u32;
    let of_b1 = (2000..2200).filter(|port| world.flow(*port) == b1).count() as u64;
    assert!(of_b1 > 20);
    let drain = daemon
        .post("/v1/drain", json!({"backend": "web/b1", "timeout_ms": 700}))
        .await;
    assert_eq!(drain["flows"]["at_start"], of_b1);
    assert!(
        (3000..3200).all(|port| world.flow(port) != b1),
        "a new flow went to the draining backend"
    );
    let ended = daemon
        .get(&format!("/v1/drains/{}?wait_ms=20000", drain["id"]))
        .await;
    assert_eq!(ended["receipt"]["reason"], "deadline");
    assert_eq!(ended["receipt"]["reset"], of_b1);
    assert_eq!(ended["receipt"]["flows_at_start"], of_b1);
    daemon.stop().await;
}

#[tokio::test]
async fn refusals_say_what_and_why_and_what_to_do() {
    let world = World::new(true);
    let daemon = world.start().await;
    let (status, error, hint) = daemon
        .refused("/v1/drain", json!({"backend": "web/b9"}))
        .await;
    assert_eq!(
        (status, error.as_str()),
        (404, "no backend of service web \"b9\"")
    );
    assert!(hint.starts_with("did you mean b"), "{hint}");
    let (status, _, hint) = daemon
        .refused("/v1/drain", json!({"backend": "wbe/b1"}))
        .await;
    assert_eq!((status, hint.as_str()), (404, "did you mean web?"));
    let (status, _, hint) = daemon.refused("/v1/drain", json!({"backend": "b1"})).await;
    assert_eq!((status, hint.as_str()), (400, "write SERVICE/BACKEND"));
    for name in ["b1", "b2", "b3"] {
        daemon
            .post("/v1/drain", json!({"backend": format!("web/{name}")}))
            .await;
    }
    let (status, error, _) = daemon
        .refused("/v1/drain", json!({"backend": "web/b4"}))
        .await;
    assert_eq!(status, 409);
    assert!(
        error.contains("0 of 1") && error.contains("min_available is 1"),
        "{error}"
    );
    daemon
        .post("/v1/drain", json!({"backend": "web/b4", "force": true}))
        .await;
    let (status, _, hint) = daemon
        .refused("/v1/remove", json!({"backend": "web/g1"}))
        .await;
    assert_eq!(status, 409);
    assert!(hint.contains("drain web/g1"), "{hint}");
    assert_eq!(daemon.call("POST", "/v1/drain", "{").await.0, 400);
    assert_eq!(daemon.call("GET", "/v1/nothing", "").await.0, 404);
    assert_eq!(daemon.call("GET", "/v1/drain", "").await.0, 405);
    assert_eq!(daemon.call("GET", "/v1/drains/x", "").await.0, 400);
    assert_eq!(daemon.call("GET", "/v1/drains/77", "").await.0, 404);
    daemon.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_drains_switches_and_additions() {
    let world = World::new(true);
    let first = world.start().await;
    let b2 = backend(&first.get("/v1/status").await, "b2")["id"]
        .as_u64()
        .unwrap() as u32;
    assert!((2000..2100).any(|port| world.flow(port) == b2));
    let drain = first
        .post(
            "/v1/drain",
            json!({"backend": "web/b2", "timeout_ms": 3_600_000}),
        )
        .await;
    first
        .post(
            "/v1/add",
            json!({"backend": "web/green/g4", "address": "10.0.3.3:8080"}),
        )
        .await;
    first
        .wait_status(|status| backend(status, "g4")["health"] == "up")
        .await;
    first
        .post("/v1/switch", json!({"service": "web", "pool": "green"}))
        .await;
    let before = first.get("/v1/status").await;
    first.stop().await;

    // No probe has answered yet: who took flows goes on taking them.
    let writes = world.fake.writes();
    let second = world.spawn(false);
    let after = second.get("/v1/status").await;
    assert_eq!(accepting(&after), accepting(&before));
    assert_eq!(accepting(&after), ["g1", "g2", "g3", "g4"]);
    for name in ["b1", "b2", "g4"] {
        assert_eq!(backend(&after, name)["id"], backend(&before, name)["id"]);
    }
    let again = second.get(&format!("/v1/drains/{}", drain["id"])).await;
    for key in ["state", "since_ms", "deadline_ms", "backend"] {
        assert_eq!(again[key], drain[key], "{key}");
    }
    assert_eq!(again["flows"]["at_start"], drain["flows"]["at_start"]);
    assert!(world.fake.writes() > writes);
    second
        .events
        .send(is("web", "g4", Health::Down))
        .await
        .unwrap();
    second
        .wait_status(|status| accepting(status) == ["g1", "g2", "g3"])
        .await;
    second.stop().await;
}

#[tokio::test]
async fn a_bad_configuration_disturbs_nothing() {
    let world = World::new(true);
    let bad = Refusal {
        error: "ebb.toml:3:7: unknown key".to_owned(),
        hint: Some("remove it".to_owned()),
    };
    let good = std::mem::replace(&mut *world.loaded.lock().unwrap(), Err(bad.clone()));
    let error = world.spawn(true).task.await.unwrap().unwrap_err();
    assert_eq!(error.downcast_ref::<Refusal>().unwrap().error, bad.error);
    *world.loaded.lock().unwrap() = good.clone();

    let daemon = world.start().await;
    let before = daemon.get("/v1/status").await;
    *world.loaded.lock().unwrap() = Err(bad);
    let (status, error, hint) = daemon.refused("/v1/reload", json!({})).await;
    assert_eq!(
        (status, error.as_str(), hint.as_str()),
        (409, "ebb.toml:3:7: unknown key", "remove it")
    );
    *world.loaded.lock().unwrap() = good;
    world.edit(|spec| spec.services.get_mut("web").unwrap().listen.port = 81);
    let (_, error, _) = daemon.refused("/v1/reload", json!({})).await;
    assert!(error.contains("listen"), "{error}");
    let after = daemon.get("/v1/status").await;
    assert_eq!(backends(&after), backends(&before));
    daemon.stop().await;
}

#[tokio::test]
async fn a_reload_drains_what_left_and_keeps_what_was_done_by_hand() {
    let world = World::new(true);
    let daemon = world.start().await;
    daemon
        .post(
            "/v1/add",
            json!({"backend": "web/blue/hand", "address": "10.0.3.3:8080"}),
        )
        .await;
    world.edit(|spec| {
        let blue = spec
            .services
            .get_mut("web")
            .unwrap()
            .pools
            .get_mut("blue")
            .unwrap();
        blue.backends.remove("b1");
        blue.backends.get_mut("b2").unwrap().weight = 5;
        blue.backends.extend(common::pool("n", 200, 1).backends);
    });
    let plan = daemon.post("/v1/reload", json!({"dry_run": true})).await;
    assert_eq!(plan["applied"], false);
    assert!(backend(&daemon.get("/v1/status").await, "n1").is_null());
    let done = daemon.post("/v1/reload", json!({})).await;
    assert_eq!(
        (&done["applied"], &done["changes"]),
        (&json!(true), &plan["changes"])
    );
    let words = done["changes"].to_string();
    for step in [
        "drain and remove backend web/b1",
        "add backend web/blue/n1",
        "weight 1 to 5",
    ] {
        assert!(words.contains(step), "{words}");
    }
    let status = daemon
        .wait_status(|status| {
            backend(status, "b1").is_null() && backend(status, "hand")["accepting"] == true
        })
        .await;
    assert_eq!(backend(&status, "b2")["weight"], 5);
    assert_eq!(
        daemon.post("/v1/reload", json!({})).await["changes"],
        json!([])
    );
    daemon.stop().await;
}

#[tokio::test]
async fn two_daemons_do_not_share_a_state_directory() {
    let world = World::new(true);
    let daemon = world.start().await;
    let error = world.spawn(true).task.await.unwrap().unwrap_err();
    assert!(
        format!("{error:#}").contains("in use by another daemon"),
        "{error:#}"
    );
    daemon.get("/v1/version").await;
    daemon.stop().await;
}

#[tokio::test]
async fn flows_and_explanations() {
    let world = World::new(false);
    world.edit(|spec| {
        spec.services.get_mut("web").unwrap().tracking = lb_userspace::model::spec::Tracking::Full
    });
    let daemon = world.start().await;
    world.flow(4000);
    let flows = daemon.get("/v1/flows?service=web").await;
    assert_eq!(flows.as_array().unwrap().len(), 1);
    assert_eq!(
        (&flows[0]["client"], &flows[0]["phase"]),
        (&json!("10.9.0.1:4000"), &json!("established"))
    );
    let owner = flows[0]["backend"].as_str().unwrap().to_owned();
    let of_owner = daemon
        .get(&format!("/v1/flows?service=web&backend={owner}"))
        .await;
    assert_eq!(of_owner.as_array().unwrap().len(), 1);
    for key in ["client", "backend", "phase"] {
        assert_eq!(of_owner[0][key], flows[0][key], "{key}");
    }
    let another = if owner == "b1" { "b2" } else { "b1" };
    let of_another = daemon
        .get(&format!("/v1/flows?service=web&backend={another}"))
        .await;
    assert_eq!(of_another, json!([]));
    daemon
        .post("/v1/drain", json!({"backend": format!("web/{owner}")}))
        .await;
    let explained = daemon
        .post(
            "/v1/explain",
            json!({"service": "web", "from": "10.9.0.1:4000"}),
        )
        .await;
    assert_eq!(explained["base"], json!(owner));
    assert_eq!(explained["established"]["backend"], json!(owner));
    assert_ne!(explained["opening"]["backend"], json!(owner));
    assert!(
        explained["established"]["why"]
            .as_str()
            .unwrap()
            .contains("flow table")
    );
    assert_eq!(daemon.call("GET", "/v1/flows?backend=b1", "").await.0, 400);
    daemon.stop().await;
}

#[tokio::test]
async fn writes_that_fail_are_reported_and_tried_again() {
    let world = World::new(true);
    let daemon = world.start().await;
    world.fake.fail_from(Some(1));
    let (status, error, hint) = daemon
        .refused("/v1/drain", json!({"backend": "web/b3"}))
        .await;
    assert_eq!(status, 500);
    assert!(
        error.contains("told to fail") && hint.contains("tried again"),
        "{error}; {hint}"
    );
    let status = daemon.get("/v1/status").await;
    assert!(
        status["node"]["warnings"]
            .to_string()
            .contains("told to fail")
    );
    world.fake.fail_from(None);
    daemon
        .wait_status(|status| backend(status, "b3")["admin"] == "drained")
        .await;
    daemon.stop().await;
}

#[tokio::test]
async fn several_drains_are_one_step_or_none() {
    let world = World::new(true);
    world.edit(|spec| spec.services.get_mut("web").unwrap().min_available = 2);
    let daemon = world.start().await;
    let (status, error, hint) = daemon
        .refused(
            "/v1/drains",
            json!({"backends": ["web/b1", "web/b2", "web/b3", "web/b9"]}),
        )
        .await;
    assert_eq!(status, 409);
    for part in [
        "drain web/b1, web/b2, web/b3: 1 of 4 accepting backends of pool blue would remain, min_available is 2",
        "no backend of service web \"b9\"",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(
        hint.contains("--force") && hint.contains("did you mean"),
        "{hint}"
    );
    assert_eq!(daemon.get("/v1/drains").await, json!([]));
    assert_eq!(accepting(&daemon.get("/v1/status").await).len(), 4);

    let journal = world.directory.path().join("state/journal");
    let lines = || std::fs::read_to_string(&journal).unwrap().lines().count();
    let before = lines();
    let drains = daemon
        .post(
            "/v1/drains",
            json!({"pools": ["web/blue"], "force": true, "timeout_ms": 3_600_000}),
        )
        .await;
    let of_blue: Vec<&str> = drains
        .as_array()
        .unwrap()
        .iter()
        .map(|drain| drain["backend"].as_str().unwrap())
        .collect();
    assert_eq!(of_blue, ["web/b1", "web/b2", "web/b3", "web/b4"]);
    assert!(lines() <= before + 2, "one step, and one with the counts");
    // All of them have ended, for they had no flows.
    let ended = daemon.get("/v1/drains?of=web&wait_ms=20000").await;
    let ended = ended.as_array().unwrap();
    assert_eq!(ended.len(), 4);
    assert!(
        ended
            .iter()
            .all(|drain| drain["receipt"]["reason"] == "empty")
    );
    let (status, error, _) = daemon
        .refused("/v1/drains", json!({"pools": ["web/blue"]}))
        .await;
    assert_eq!(status, 409);
    assert!(error.contains("drained already"), "{error}");
    // Who waits for one of them again is told how it ended; who wants other terms is refused.
    let again = json!({"backend": "web/b1"});
    let told = daemon.post("/v1/drain", again).await;
    assert_eq!(told["receipt"]["reason"], "empty", "{told}");
    let other = json!({"backend": "web/b1", "timeout_ms": 1000});
    let (status, error, _) = daemon.refused("/v1/drain", other).await;
    assert_eq!(status, 409);
    assert!(error.contains("drained already"), "{error}");

    let (_, error, _) = daemon
        .refused("/v1/undrain", json!({"backends": ["web/b1", "web/g1"]}))
        .await;
    assert!(error.contains("web/g1: it is not draining"), "{error}");
    assert!(backend(&daemon.get("/v1/status").await, "b1")["admin"] == "drained");
    let done = daemon
        .post("/v1/undrain", json!({"pools": ["web/blue"]}))
        .await;
    assert_eq!(done["done"], "web/b1, web/b2, web/b3, web/b4 are active");
    assert_eq!(accepting(&daemon.get("/v1/status").await).len(), 4);
    daemon.stop().await;
}

#[tokio::test]
async fn receipts_outlast_a_restart_and_are_listed_by_number_service_and_backend() {
    let world = World::new(true);
    let first = world.start().await;
    let drains = first
        .post("/v1/drains", json!({"backends": ["web/b2", "web/b1"]}))
        .await;
    let ids = [&drains[0]["id"], &drains[1]["id"]];
    assert_eq!(ids, [&json!(1), &json!(2)]);
    let before = first.get("/v1/drains?wait_ms=20000").await;
    assert!(before[0]["receipt"].is_object());
    first.stop().await;

    let second = world.spawn(true);
    let after = second.get("/v1/drains").await;
    assert_eq!(after, before);
    assert_eq!(after[0]["id"], 2, "the last one first");
    second
        .post(
            "/v1/drain",
            json!({"backend": "web/b3", "timeout_ms": 3_600_000}),
        )
        .await;
    let with_new = second.get("/v1/drains?of=web").await;
    assert_eq!(with_new[0]["backend"], "web/b3", "what runs comes first");
    for (of, backends) in [
        ("1", vec!["web/b2"]),
        ("web/b1", vec!["web/b1"]),
        ("web/b1,1", vec!["web/b1", "web/b2"]),
        ("web/g1", vec![]),
    ] {
        let found = second.get(&format!("/v1/drains?of={of}")).await;
        let found: Vec<&str> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|drain| drain["backend"].as_str().unwrap())
            .collect();
        assert_eq!(found, backends, "{of}");
    }
    assert_eq!(second.call("GET", "/v1/drains?of=77", "").await.0, 404);
    assert_eq!(second.call("GET", "/v1/drains?of=wbe", "").await.0, 404);
    assert_eq!(second.call("GET", "/v1/drains?of=web/b9", "").await.0, 404);
    second.stop().await;
}

#[tokio::test]
async fn who_waits_hears_of_a_changed_deadline_at_once() {
    let world = World::new(true);
    let daemon = world.start().await;
    let b1 = backend(&daemon.get("/v1/status").await, "b1")["id"]
        .as_u64()
        .unwrap() as u32;
    assert!((2000..2100).any(|port| world.flow(port) == b1));
    let body = |timeout: u64| json!({"backend": "web/b1", "timeout_ms": timeout});
    let drain = daemon.post("/v1/drain", body(3_600_000)).await;
    let path = format!("/v1/drains/{}?wait_ms=20000&until=change", drain["id"]);
    let began = std::time::Instant::now();
    let change = async {
        // Not before the question is there.
        tokio::time::sleep(Duration::from_millis(300)).await;
        daemon.post("/v1/drain", body(7_200_000)).await
    };
    let (news, changed) = tokio::join!(daemon.get(&path), change);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(news["deadline_ms"], changed["deadline_ms"]);
    assert_ne!(news["deadline_ms"], drain["deadline_ms"]);
    assert!(news["receipt"].is_null());
    daemon.stop().await;
}
