//! Backends that ask to be drained themselves.

use std::{
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use ebb_tests::scenario::{Scene, Way, can_run, check_sum, long_on, now};

const AGENT_PORT: u16 = 8099;

/// An agent in a backend's namespace: it says its line to whoever connects.
struct Agent {
    line: Arc<Mutex<&'static str>>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(scene: &Scene, backend: &str, line: &'static str) -> Result<Self> {
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, AGENT_PORT));
        let listener = scene.lab.netns(backend).run(listen)??;
        let line = Arc::new(Mutex::new(line));
        let (accepting, said) = (listener.try_clone()?, Arc::clone(&line));
        let answer = move || {
            for stream in accepting.incoming() {
                let Ok(mut stream) = stream else { return };
                let line = *said.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever goes away before the answer has no use for it.
                let _ = stream.write_all(line.as_bytes());
            }
        };
        let thread = Some(thread::spawn(answer));
        Ok(Self {
            line,
            listener,
            thread,
        })
    }

    fn say(&self, line: &'static str) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Wakes the thread out of its accept.
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// b1 asks for a drain in its health answer, under load, with the daemon killed in the middle: its connections live, it gets
/// no new ones, and comes back when it no longer asks. b2 asks with an agent's word: first it is one too many, then
/// it is drained, and when an operator wants that too, its `ready` is no longer enough.
#[test]
fn backends_ask_for_their_drains() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut ebb_tests::config::Service| {
        service.more = "min_available = 2".to_owned();
        service.more_health = format!("agent = {{ port = {AGENT_PORT}, period = \"300ms\" }}");
    };
    let mut scene = Scene::with(Way::Nat, &["b1", "b2", "b3"], edit, "")?;
    let agents = ["b1", "b2", "b3"].map(|name| Agent::start(&scene, name, "up 50%\n"));
    let [_b1, b2, _b3] = agents;
    let b2 = b2?;
    let load = scene.load(120, 100.0)?;

    scene.set_state("b1", 200, "drain")?;
    let draining = scene.wait_backend("b1", |b1| b1["admin"] == "draining")?;
    let from = now();
    assert_eq!(draining["drain"]["by"], "answer", "{draining}");
    assert_eq!(draining["says"]["asks"], "drain", "{draining}");
    let on_b1 = long_on(&load, "b1");
    assert!(on_b1.len() > 5, "few connections are on b1");
    scene.traffic(&load, 50)?;

    b2.say("drain\n");
    let refused = scene.wait_backend("b2", |b2| b2["says"]["refused"].is_string())?;
    let why = "2 backends of pool blue take new flows, min_available is 2";
    assert_eq!(refused["says"]["refused"], why);
    assert_eq!(
        (&refused["admin"], &refused["accepting"]),
        (&"active".into(), &true.into())
    );
    let told = scene.ok("status web")?.stdout;
    for part in [
        "b1: draining, asked for by the backend's answer, ",
        "b2: asks to be drained and is not: 2 backends",
        "b2: its agent says \"50%\", which means nothing to ebb",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }

    scene.ebb.kill9();
    scene.traffic(&load, 30)?;
    scene.ebb.restart(&scene.lab)?;
    let after = scene.wait_backend("b1", |b1| b1["says"]["asks"] == "drain")?;
    assert_eq!(
        after["drain"]["id"], draining["drain"]["id"],
        "the same drain"
    );
    assert_eq!(after["drain"]["by"], "answer", "{after}");
    assert_eq!(long_on(&load, "b1"), on_b1, "they live through both");

    let id = after["drain"]["id"].as_u64().context("its number")?;
    let waiting = scene.background(&format!("drains {id} --wait --json"));
    let drained = scene.leave_until_drained(&load, "b1", waiting)?;
    assert_eq!(drained.code, Some(0), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    assert_eq!(
        (&receipt["reason"], &receipt["reset"]),
        (&"empty".into(), &0.into())
    );
    let until = now();

    // b1 is back, so b2 may go; an operator wants that too, and then it is his.
    scene.set_state("b1", 200, "")?;
    scene.wait_backend("b1", |b1| b1["accepting"] == true)?;
    let b2_drain = scene.wait_backend("b2", |b2| b2["admin"] == "draining")?;
    assert_eq!(b2_drain["drain"]["by"], "answer", "{b2_drain}");
    scene.ok("drain web/b2 --timeout 60s")?;
    b2.say("ready\n");
    let stays = scene.wait_backend("b2", |b2| b2["says"]["asks"] == "ready")?;
    assert_eq!(
        (&stays["admin"], &stays["drain"]["by"]),
        (&"draining".into(), &"operator".into())
    );
    let listed = scene.ok("drains")?.stdout;
    assert!(
        listed.contains("answer") && listed.contains("operator"),
        "{listed}"
    );
    scene.traffic(&load, 30)?;
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    scene.none_begun_on("b1", &report, from..until)
}
