//! What a daemon is killed in.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    config,
    scenario::{Scene, backend},
};

/// Time that the drains of these walks have, milliseconds; those that are to run into their deadline have [`SHORT_MS`].
const LONG_MS: u64 = 60_000;
const SHORT_MS: u64 = 300;

/// How far the daemon's clock, which never jumps, may be from the wall clock: both are rounded.
const CLOCKS_APART_MS: u64 = 20;

/// When an operation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// It has been answered.
    Answer,
    /// A deadline has passed.
    Drained,
    /// The change has settled.
    Settled,
}

/// Something to be asked of the daemon.
#[derive(Debug, Clone)]
pub struct Request {
    /// The route.
    pub path: &'static str,
    /// Its body.
    pub body: Value,
    /// The configuration file that is written first.
    pub file: Option<String>,
}

/// Something that takes several steps.
pub struct Operation {
    /// What it is called.
    pub name: &'static str,
    /// When it is over.
    pub goal: Goal,
    /// What must have been done before.
    pub prepare: fn(&Scene) -> Vec<Request>,
    /// The operation; `None` where time alone does it.
    pub request: fn(&Scene) -> Option<Request>,
    /// Whether a status shows it as done.
    pub is_done: fn(&Value) -> bool,
    /// What brings back what was before.
    pub undo: fn(&Scene) -> Vec<Request>,
    /// Who gets no new connection once it is done.
    pub closed: &'static [&'static str],
}

impl Operation {
    /// A drain that was begun within `begun` (Unix milliseconds) has the deadline that it was given.
    ///
    /// # Errors
    /// It has not.
    pub fn check_times(&self, status: &Value, begun: Range<u64>, before: &Value) -> Result<()> {
        let drain = &backend(status, "b1").context("b1")?["drain"];
        if self.name != "drain" || drain["id"] == before["id"] {
            return Ok(());
        }
        let time = |key: &str| {
            drain[key]
                .as_u64()
                .with_context(|| format!("{key} in {drain}"))
        };
        let since = time("since_ms")?;
        ensure!(
            (begun.start - CLOCKS_APART_MS..=begun.end + CLOCKS_APART_MS).contains(&since)
                && time("deadline_ms")? == since + LONG_MS,
            "not begun within {begun:?}, or another deadline than after {LONG_MS} ms: {drain}"
        );
        Ok(())
    }

    /// A drain that ran before still is the same one, with the same deadline, and has not ended before it.
    ///
    /// # Errors
    /// It is not.
    pub fn check_terms(&self, status: &Value, before: &Value) -> Result<()> {
        if self.goal == Goal::Answer {
            return Ok(());
        }
        let drain = &backend(status, "b1").context("b1")?["drain"];
        for key in ["id", "since_ms", "deadline_ms"] {
            ensure!(
                drain[key] == before[key],
                "{key} of {drain} was {}",
                before[key]
            );
        }
        let ended = drain["receipt"]["ended_ms"]
            .as_u64()
            .or(drain["ended_ms"].as_u64());
        if let Some(ended) = ended {
            ensure!(
                Some(ended) >= drain["deadline_ms"].as_u64(),
                "ended too early: {drain}"
            );
        }
        Ok(())
    }
}

fn ask(path: &'static str, body: Value) -> Request {
    Request {
        path,
        body,
        file: None,
    }
}

fn drain(timeout_ms: u64) -> Request {
    let body = json!({"backend": "web/b1", "timeout_ms": timeout_ms, "on_deadline": "leave"});
    ask("/v1/drain", body)
}

fn undrain() -> Request {
    ask("/v1/undrain", json!({"backend": "web/b1"}))
}

fn switch(pool: &str) -> Request {
    ask("/v1/switch", json!({"service": "web", "pool": pool}))
}

fn weigh_nothing() -> Request {
    ask("/v1/weight", json!({"backend": "web/b2", "weight": 0}))
}

fn weigh_as_before() -> Request {
    ask("/v1/weight", json!({"backend": "web/b2", "default": true}))
}

fn maintenance() -> Request {
    ask("/v1/maintenance", json!({"backend": "web/b3"}))
}

fn activate() -> Request {
    ask("/v1/activate", json!({"backend": "web/b3"}))
}

fn add(scene: &Scene) -> Request {
    let body = json!({"backend": "web/green/g3", "address": scene.backend_at("g3")});
    ask("/v1/add", body)
}

fn remove() -> Request {
    ask("/v1/remove", json!({"backend": "web/g3", "force": true}))
}

fn reload(text: String) -> Request {
    Request {
        file: Some(text),
        ..ask("/v1/reload", json!({}))
    }
}

/// Another weight, a service more, and some prefixes of clients.
fn other_file(scene: &Scene) -> String {
    let mut web = scene.service.clone();
    web.more_of.insert("b3".into(), "weight = 3".into());
    let mut more = scene.service.clone();
    more.name = "more".into();
    // In `l2` the backends have the service's own port.
    let same = more.backend_port == more.port;
    more.port = 81;
    more.backend_port = if same { more.port } else { 8081 };
    let denied =
        "\n[clients]\ndeny = [\"192.0.2.0/24\", \"192.0.2.128/25\", \"2001:db8:dead::/48\"]\n";
    config::file(&scene.lab, &[web, more]) + denied
}

fn is(status: &Value, name: &str, admin: &str) -> bool {
    backend(status, name).is_some_and(|backend| backend["admin"] == admin)
}

fn has_weight(status: &Value, name: &str, weight: u32) -> bool {
    backend(status, name).is_some_and(|backend| backend["weight"] == weight)
}

fn is_active(status: &Value, pool: &str) -> bool {
    let pools = status["services"].as_array().into_iter().flatten();
    let mut pools = pools.flat_map(|service| service["pools"].as_array().into_iter().flatten());
    pools.any(|found| found["name"] == pool && found["active"] == true)
}

fn has_more(status: &Value) -> bool {
    let mut services = status["services"].as_array().into_iter().flatten();
    services.any(|service| service["name"] == "more")
}

fn nothing(_: &Scene) -> Vec<Request> {
    Vec::new()
}

/// All that are walked. Those that a command begins come in pairs, one undoing the other.
#[must_use]
pub fn all() -> Vec<Operation> {
    vec![
        Operation {
            name: "drain",
            goal: Goal::Answer,
            prepare: nothing,
            request: |_| Some(drain(LONG_MS)),
            is_done: |status| is(status, "b1", "draining"),
            undo: |_| vec![undrain()],
            closed: &["b1", "g1", "g2"],
        },
        Operation {
            name: "undrain",
            goal: Goal::Answer,
            prepare: |_| vec![drain(LONG_MS)],
            request: |_| Some(undrain()),
            is_done: |status| is(status, "b1", "active"),
            undo: nothing,
            closed: &["g1", "g2"],
        },
        Operation {
            name: "switch",
            goal: Goal::Answer,
            prepare: nothing,
            request: |_| Some(switch("green")),
            is_done: |status| is_active(status, "green"),
            undo: |_| vec![switch("blue")],
            closed: &["b1", "b2", "b3"],
        },
        Operation {
            name: "switch back",
            goal: Goal::Answer,
            prepare: |_| vec![switch("green")],
            request: |_| Some(switch("blue")),
            is_done: |status| is_active(status, "blue"),
            undo: nothing,
            closed: &["g1", "g2"],
        },
        Operation {
            name: "weight",
            goal: Goal::Answer,
            prepare: nothing,
            request: |_| Some(weigh_nothing()),
            is_done: |status| has_weight(status, "b2", 0),
            undo: |_| vec![weigh_as_before()],
            closed: &["b2", "g1", "g2"],
        },
        Operation {
            name: "weight back",
            goal: Goal::Answer,
            prepare: |_| vec![weigh_nothing()],
            request: |_| Some(weigh_as_before()),
            is_done: |status| has_weight(status, "b2", 1),
            undo: nothing,
            closed: &["g1", "g2"],
        },
        Operation {
            name: "maintenance",
            goal: Goal::Answer,
            prepare: nothing,
            request: |_| Some(maintenance()),
            is_done: |status| is(status, "b3", "maintenance"),
            undo: |_| vec![activate()],
            closed: &["b3", "g1", "g2"],
        },
        Operation {
            name: "activate",
            goal: Goal::Answer,
            prepare: |_| vec![maintenance()],
            request: |_| Some(activate()),
            is_done: |status| is(status, "b3", "active"),
            undo: nothing,
            closed: &["g1", "g2"],
        },
        Operation {
            name: "add",
            goal: Goal::Answer,
            prepare: nothing,
            request: |scene| Some(add(scene)),
            is_done: |status| backend(status, "g3").is_some(),
            undo: |_| vec![remove()],
            closed: &["g1", "g2", "g3"],
        },
        Operation {
            name: "remove",
            goal: Goal::Answer,
            prepare: |scene| vec![add(scene)],
            request: |_| Some(remove()),
            is_done: |status| backend(status, "g3").is_none(),
            undo: nothing,
            closed: &["g1", "g2", "g3"],
        },
        Operation {
            name: "reload",
            goal: Goal::Answer,
            prepare: nothing,
            request: |scene| Some(reload(other_file(scene))),
            is_done: has_more,
            undo: |scene| vec![reload(scene.config())],
            closed: &["g1", "g2"],
        },
        Operation {
            name: "reload back",
            goal: Goal::Answer,
            prepare: |scene| vec![reload(other_file(scene))],
            request: |scene| Some(reload(scene.config())),
            is_done: |status| !has_more(status),
            undo: nothing,
            closed: &["g1", "g2"],
        },
        Operation {
            name: "deadline",
            goal: Goal::Drained,
            prepare: |_| vec![drain(SHORT_MS)],
            request: |_| None,
            is_done: |status| is(status, "b1", "drained"),
            undo: |_| vec![undrain()],
            closed: &["b1", "g1", "g2"],
        },
        Operation {
            name: "settling",
            goal: Goal::Settled,
            prepare: |_| vec![drain(1)],
            request: |_| None,
            is_done: |status| status["services"][0]["changing"] == false,
            undo: |_| vec![undrain()],
            closed: &["b1", "g1", "g2"],
        },
    ]
}
