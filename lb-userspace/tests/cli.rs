//! The real binary against a small daemon that is scripted by the test.

mod fake;

use std::{process::Stdio, time::Duration};

use axum::http::StatusCode;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use fake::{Fake, Run, command, ebb};

/// Far longer than anything here takes: a test that hangs fails instead.
const LIMIT: Duration = Duration::from_secs(20);

fn status() -> Value {
    json!({
        "node": {
            "version": "0.1.0", "pid": 7, "started_ms": 0, "config": "/etc/ebb/ebb.toml",
            "xdp": {
                "mode": "native",
                "interfaces": [{ "interface": "eth0", "ifindex": 2, "mode": "native" }],
                "packets": 10, "outcomes": {}, "flow_entries": 3, "handshake_entries": 0
            },
            "warnings": [], "of_a_later_version": true
        },
        "services": [service("api"), service("web")]
    })
}

fn service(name: &str) -> Value {
    json!({
        "name": name, "listen": "203.0.113.10:443/tcp", "forward": "nat", "slots": 1024,
        "slots_moved": 0, "slots_with_exceptions": 0, "changing": false, "outcomes": {},
        "pools": [{ "name": "blue", "version": null, "active": true, "backends": [{
            "name": "b1", "address": "10.0.0.11:8443", "id": 1, "admin": "active", "health": "up",
            "health_reason": null, "accepting": true, "weight": 1, "flows": 12, "flows_listed": 0,
            "packets": 1234, "bytes": 2048, "opened": 12, "closed": 0, "reply_packets": 0,
            "next_hop": "eth0 02:00:00:00:00:01", "drain": null
        }] }],
        "warnings": []
    })
}

fn drain(state: &str, listed: u64, unseen: u64, receipt: Value) -> Value {
    json!({
        "id": 7, "backend": "web/b1", "state": state, "since_ms": 0, "deadline_ms": 300_000,
        "on_deadline": "reset",
        "flows": { "at_start": 12, "listed": listed, "unseen": unseen }, "receipt": receipt
    })
}

fn receipt(reason: &str, finished: u64, reset: u64, died: u64) -> Value {
    json!({
        "backend": "web/b1", "reason": reason, "flows_at_start": 12, "finished": finished,
        "idle_expired": 0, "reset": reset, "died": died, "left": 0, "longest_s": 5.0,
        "seconds": 2.5
    })
}

fn ended(receipt: Value) -> Value {
    drain("drained", 0, 0, receipt)
}

/// A daemon whose drain goes through `stages`, one a poll.
fn draining(stages: Vec<Value>) -> Fake {
    let running = drain("draining", 12, 0, Value::Null);
    Fake::start()
        .answer("POST", "/v1/drain", vec![running])
        .answer("GET", "/v1/drains/7", stages)
}

#[tokio::test]
async fn status_is_a_table_for_people() {
    let fake = Fake::start().answer("GET", "/v1/status", vec![status()]);
    let run = ebb(&fake, "status").await;
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let row =
        "blue*  b1       10.0.0.11:8443  active  up      yes       1     12    1.23k  2.00 KiB";
    assert_eq!(run.out.matches(row).count(), 2, "{}", run.out);
    let run = ebb(&fake, "status web").await;
    assert_eq!(run.out.matches(row).count(), 1, "{}", run.out);
}

#[tokio::test]
async fn status_as_json_is_the_answer_itself() {
    let fake = Fake::start().answer("GET", "/v1/status", vec![status()]);
    assert_eq!(ebb(&fake, "status --json").await.json(), status());
    let one = ebb(&fake, "status web --json").await.json();
    assert_eq!(one["services"], json!([service("web")]));
    assert_eq!(one["node"]["of_a_later_version"], true);
}

#[tokio::test]
async fn an_unknown_service_is_an_error_that_names_the_others() {
    let fake = Fake::start().answer("GET", "/v1/status", vec![status()]);
    let run = ebb(&fake, "status wbe").await;
    assert_eq!(run.code, 1);
    assert!(
        run.err.ends_with("hint: the services are: api, web\n"),
        "{}",
        run.err
    );
}

#[tokio::test]
async fn a_watch_redraws_and_ends_with_ctrl_c() {
    let mut fake = Fake::start().answer("GET", "/v1/status", vec![status()]);
    let mut child = command(&fake.socket(), "status --watch --json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("ebb starts");
    fake.next_request().await;
    fake.next_request().await;
    let stdout = child.stdout.take().expect("a pipe");
    let mut lines = BufReader::new(stdout).lines();
    for _ in 0..2 {
        let line = lines.next_line().await.expect("readable").expect("a line");
        assert_eq!(
            serde_json::from_str::<Value>(&line).expect("JSON"),
            status()
        );
    }
    interrupt(&child);
    assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn a_watch_ends_with_its_reader() {
    let mut fake = Fake::start().answer("GET", "/v1/status", vec![status()]);
    let mut child = command(&fake.socket(), "status --watch")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ebb starts");
    fake.next_request().await;
    drop(child.stdout.take());
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let output = output.expect("it ends").expect("it ran");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[tokio::test]
async fn a_drain_returns_once_it_is_in_effect() {
    let mut fake = draining(Vec::new());
    let run = ebb(
        &fake,
        "drain web/b1 --timeout 5m --on-deadline leave --force",
    )
    .await;
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.out
            .starts_with("web/b1 takes no new flows; 12 flows left")
    );
    let request = fake.next_request().await;
    assert_eq!(
        request.body,
        json!({ "backend": "web/b1", "timeout_ms": 300_000, "on_deadline": "leave", "force": true })
    );
}

#[tokio::test]
async fn a_wait_goes_through_all_stages() {
    let mut fake = draining(vec![
        drain("draining", 12, 0, Value::Null),
        drain("draining", 5, 2, Value::Null),
        ended(receipt("empty", 12, 0, 0)),
    ]);
    let run = ebb(&fake, "drain web/b1 --wait").await;
    assert_eq!(run.code, 0, "{}", run.err);
    let progress: Vec<_> = run.err.lines().collect();
    let [first, second] = progress.as_slice() else {
        panic!("not two lines: {progress:?}");
    };
    assert!(
        first.starts_with("web/b1 draining: 12 flows left"),
        "{first}"
    );
    assert!(second.contains("7 flows left (5 seen, 2 not)"), "{second}");
    assert!(
        run.out
            .starts_with("web/b1 is drained: every flow ended by itself\n")
    );
    fake.next_request().await;
    assert_eq!(fake.next_request().await.query, "wait_ms=1000&until=change");
}

#[tokio::test]
async fn a_waits_json_is_the_receipt_alone() {
    let receipt = receipt("empty", 12, 0, 0);
    let fake = draining(vec![
        drain("draining", 1, 0, Value::Null),
        ended(receipt.clone()),
    ]);
    let run = ebb(&fake, "drain web/b1 --wait --json").await;
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert_eq!(run.json(), receipt);
}

#[tokio::test]
async fn a_wait_for_a_drain_that_has_ended_asks_no_more() {
    let end = ended(receipt("empty", 12, 0, 0));
    let fake = Fake::start().answer("POST", "/v1/drain", vec![end]);
    let run = ebb(&fake, "drain web/b1 --wait").await;
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}

#[tokio::test]
async fn the_exit_code_tells_how_it_ended() {
    for (receipt, code, text) in [
        (receipt("undrained", 2, 0, 0), 0, "was undrained"),
        (receipt("deadline", 12, 0, 0), 0, "no flow was left"),
        (receipt("deadline", 9, 3, 0), 3, "3 flows cut"),
        (
            receipt("died", 2, 0, 10),
            4,
            "web/b1 died: 10 flows died with it",
        ),
    ] {
        let run = ebb(&draining(vec![ended(receipt)]), "drain web/b1 --wait").await;
        assert_eq!(run.code, code, "{}", run.err);
        assert!(run.out.contains(text), "{}", run.out);
    }
}

#[tokio::test]
async fn ctrl_c_ends_the_wait_and_not_the_drain() {
    let mut fake = draining(vec![drain("draining", 12, 0, Value::Null)]);
    let child = command(&fake.socket(), "drain web/b1 --wait")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ebb starts");
    fake.next_request().await;
    fake.next_request().await;
    interrupt(&child);
    let run = Run::from(child.wait_with_output().await.expect("it ran"));
    assert_eq!((run.code, run.out.as_str()), (130, ""));
    assert!(
        run.err
            .contains("the drain of web/b1 goes on (12 flows left"),
        "{}",
        run.err
    );
    assert!(
        run.err.contains("hint: `ebb drain web/b1 --wait` waits"),
        "{}",
        run.err
    );
}

#[tokio::test]
async fn a_wait_outlasts_a_restart_of_the_daemon() {
    let mut fake = draining(vec![drain("draining", 12, 0, Value::Null)]);
    let mut child = command(&fake.socket(), "drain web/b1 --wait")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ebb starts");
    fake.next_request().await;
    fake.next_request().await;
    let fake = fake.stop().await;
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let away = async {
        while let Some(line) = lines.next_line().await.expect("readable") {
            if line.contains("trying again for") {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(LIMIT, away).await.expect("it says so"));
    let _fake = fake.restart().answer(
        "GET",
        "/v1/drains/7",
        vec![ended(receipt("empty", 12, 0, 0))],
    );
    let status = tokio::time::timeout(LIMIT, child.wait()).await;
    assert_eq!(status.expect("it ends").expect("it ran").code(), Some(0));
    let mut out = String::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_to_string(&mut out).await.expect("readable");
    assert!(out.contains("web/b1 is drained"), "{out}");
}

/// The drain `id` of a backend, running or with this receipt.
fn numbered(id: u64, backend: &str, deadline_ms: u64, receipt: Value) -> Value {
    let mut drain = drain("draining", 12, 0, receipt.clone());
    if !receipt.is_null() {
        drain = ended(receipt);
        drain["receipt"]["backend"] = json!(backend);
    }
    drain["id"] = json!(id);
    drain["backend"] = json!(backend);
    drain["deadline_ms"] = json!(deadline_ms);
    drain
}

#[tokio::test]
async fn several_are_drained_at_once_and_the_worst_end_counts() {
    let running = json!([
        numbered(7, "web/b1", 300_000, Value::Null),
        numbered(8, "web/b2", 300_000, Value::Null)
    ]);
    let over = json!([
        numbered(7, "web/b1", 300_000, receipt("empty", 12, 0, 0)),
        numbered(8, "web/b2", 300_000, receipt("deadline", 9, 3, 0))
    ]);
    let daemon = || {
        Fake::start()
            .answer("POST", "/v1/drains", vec![running.clone()])
            .answer("GET", "/v1/drains", vec![over.clone()])
    };
    let mut fake = daemon();
    let run = ebb(&fake, "drain web/b1 web/b2 --timeout 5m --wait").await;
    assert_eq!(run.code, 3, "{}", run.err);
    for part in [
        "web/b1 is drained: every flow ended by itself",
        "web/b2: the deadline passed, 3 flows cut",
        "2 drains: 24 flows at the start, 21 finished, 0 went idle, 3 cut",
    ] {
        assert!(run.out.contains(part), "{part}: {}", run.out);
    }
    let request = fake.next_request().await;
    assert_eq!(
        request.body,
        json!({
            "backends": ["web/b1", "web/b2"], "pools": [], "timeout_ms": 300_000,
            "on_deadline": null, "force": false
        })
    );
    assert_eq!(
        fake.next_request().await.query,
        "of=7,8&wait_ms=1000&until=change"
    );

    let run = ebb(&daemon(), "drain web --pool blue --wait --json").await;
    assert_eq!(run.code, 3, "{}", run.err);
    let receipts = run.json();
    assert_eq!(receipts[1]["reset"], 3);
    assert_eq!(receipts.as_array().map(Vec::len), Some(2));

    let run = ebb(&daemon(), "drain web --pool blue").await;
    assert!(run.out.contains("`ebb drains 7 8 --wait`"), "{}", run.out);
}

#[tokio::test]
async fn drains_are_listed_and_waited_for_again() {
    let seven = numbered(7, "web/b1", 300_000, Value::Null);
    let eight = numbered(8, "web/b2", 300_000, receipt("died", 2, 0, 10));
    let all = json!([seven, eight]);
    let mut fake = Fake::start().answer("GET", "/v1/drains", vec![all.clone()]);
    let run = ebb(&fake, "drains web web/b2").await;
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("12 of 12") && run.out.contains("died"));
    assert_eq!(fake.next_request().await.query, "of=web,web/b2");
    assert_eq!(ebb(&fake, "drains --json").await.json(), all);

    // Those that run alone are waited for, but what was named by its number is shown in any case.
    let end = numbered(7, "web/b1", 300_000, receipt("empty", 12, 0, 0));
    let fake = Fake::start().answer("GET", "/v1/drains", vec![all.clone(), json!([end])]);
    let run = ebb(&fake, "drains --wait --json").await;
    assert_eq!((run.code, run.json()), (0, json!([end["receipt"]])));
    let both = json!([end, eight]);
    let fake = Fake::start().answer("GET", "/v1/drains", vec![all, both]);
    assert_eq!(ebb(&fake, "drains 7 8 --wait").await.code, 4);
    let fake = Fake::start().answer("GET", "/v1/drains/8", vec![eight.clone()]);
    let run = ebb(&fake, "drains 8 --wait --json").await;
    assert_eq!((run.code, run.json()), (4, eight["receipt"].clone()));
}

#[tokio::test]
async fn a_changed_deadline_is_shown_to_who_waits() {
    let fake = Fake::start()
        .answer(
            "POST",
            "/v1/drain",
            vec![drain("draining", 12, 0, Value::Null)],
        )
        .answer(
            "GET",
            "/v1/drains/7",
            vec![
                numbered(7, "web/b1", 300_000, Value::Null),
                numbered(7, "web/b1", 9_999_999_999_999, Value::Null),
                ended(receipt("empty", 12, 0, 0)),
            ],
        );
    let run = ebb(&fake, "drain web/b1 --wait").await;
    let lines: Vec<&str> = run.err.lines().collect();
    assert_eq!(lines.len(), 2, "{}", run.err);
    assert!(lines[0].contains("past its deadline"), "{}", lines[0]);
    assert!(lines[1].contains("deadline in"), "{}", lines[1]);
}

#[tokio::test]
async fn a_refusal_is_an_error_with_the_daemons_hint() {
    let refusal =
        json!({ "error": "cannot drain web/b1: 1 of 2 would be left", "hint": "--force" });
    let fake = Fake::start().refuse("POST", "/v1/drain", StatusCode::CONFLICT, &refusal);
    let run = ebb(&fake, "drain web/b1 --wait").await;
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert_eq!(
        run.err,
        "error: cannot drain web/b1: 1 of 2 would be left\nhint: --force\n"
    );
    let run = ebb(&fake, "drain web/b1 --wait --json").await;
    let said: Value = serde_json::from_str(&run.err).expect("JSON");
    assert_eq!((run.code, said), (1, refusal));
}

#[tokio::test]
async fn an_unknown_route_points_at_versions() {
    let run = ebb(&Fake::start(), "stop").await;
    assert_eq!(run.code, 1);
    assert!(
        run.err
            .starts_with("error: POST /v1/stop was refused: HTTP status 404")
    );
    assert!(run.err.contains("ebb version"));
}

#[tokio::test]
async fn changes_send_what_was_said() {
    let rows = [
        (
            "undrain web/b1",
            "/v1/undrain",
            json!({ "backend": "web/b1" }),
        ),
        (
            "undrain web/b1 web/b2",
            "/v1/undrain",
            json!({ "backends": ["web/b1", "web/b2"] }),
        ),
        (
            "undrain web --pool blue",
            "/v1/undrain",
            json!({ "pools": ["web/blue"] }),
        ),
        (
            "remove web/b1 --force",
            "/v1/remove",
            json!({ "backend": "web/b1", "force": true }),
        ),
        (
            "add web/blue/b4 10.0.0.14:80 --weight 2",
            "/v1/add",
            json!({ "backend": "web/blue/b4", "address": "10.0.0.14:80", "weight": 2 }),
        ),
        (
            "add web/blue/b4 10.0.0.14:80 --if-absent",
            "/v1/add",
            json!({ "backend": "web/blue/b4", "address": "10.0.0.14:80", "weight": null, "if_absent": true }),
        ),
        (
            "undrain web/b1 --as-backend",
            "/v1/undrain",
            json!({ "backend": "web/b1", "as_backend": true }),
        ),
        (
            "weight web/b1 5",
            "/v1/weight",
            json!({ "backend": "web/b1", "weight": 5, "force": false }),
        ),
        (
            "weight web/b1 web/b2 0 --force",
            "/v1/weight",
            json!({ "backends": ["web/b1", "web/b2"], "weight": 0, "force": true }),
        ),
        (
            "weight web --pool blue default",
            "/v1/weight",
            json!({ "pools": ["web/blue"], "default": true, "force": false }),
        ),
        (
            "maintenance web/b1 --force",
            "/v1/maintenance",
            json!({ "backend": "web/b1", "force": true }),
        ),
        (
            "activate web/b1 web/b2",
            "/v1/activate",
            json!({ "backends": ["web/b1", "web/b2"] }),
        ),
        (
            "switch web green",
            "/v1/switch",
            json!({ "service": "web", "pool": "green", "force": false }),
        ),
        ("stop --detach", "/v1/stop", json!({ "detach": true })),
    ];
    for (line, path, body) in rows {
        let mut fake = Fake::start().answer("POST", path, vec![json!({ "done": "so it is" })]);
        let run = ebb(&fake, line).await;
        assert_eq!(
            (run.code, run.out.as_str()),
            (0, "so it is\n"),
            "{line}: {}",
            run.err
        );
        assert_eq!(fake.next_request().await.body, body);
    }
}

#[tokio::test]
async fn reload_flows_explain_and_version() {
    let answer = json!({ "outcome": "forward_steady", "backend": "b1", "why": "owns the slot" });
    let mut fake = Fake::start()
        .answer(
            "POST",
            "/v1/reload",
            vec![json!({ "applied": false, "changes": ["add web/b4"] })],
        )
        .answer("GET", "/v1/flows", vec![json!([])])
        .answer(
            "POST",
            "/v1/explain",
            vec![json!({
                "service": "web", "protocol": "tcp", "from": "198.51.100.7:40000", "slot": 3, "current": "b1",
                "base": "b1", "opening": answer, "established": answer
            })],
        )
        .answer(
            "GET",
            "/v1/version",
            vec![json!({ "ebb": "9.9.9", "map_layout": 1, "kernel": "6.12.0" })],
        );
    let run = ebb(&fake, "reload --dry-run").await;
    assert_eq!(run.out, "would be done:\n  add web/b4\n");
    assert_eq!(fake.next_request().await.body, json!({ "dry_run": true }));
    assert_eq!(ebb(&fake, "flows web/b1 --json").await.json(), json!([]));
    assert_eq!(fake.next_request().await.query, "service=web&backend=b1");
    let run = ebb(&fake, "explain web --from 198.51.100.7:40000").await;
    assert!(
        run.out.contains("b1: owns the slot (forward_steady)"),
        "{}",
        run.out
    );
    let run = ebb(&fake, "version").await;
    assert!(
        run.out
            .contains("daemon 9.9.9 (map layout 1, Linux 6.12.0)"),
        "{}",
        run.out
    );
}

#[tokio::test]
async fn no_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let run = Run::of(&socket, "status").await;
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    let line = format!(
        "error: cannot reach the daemon at {}: no such file\n",
        socket.display()
    );
    assert!(run.err.starts_with(&line), "{}", run.err);
    assert!(
        run.err.contains("hint: is `ebb run` running?"),
        "{}",
        run.err
    );

    let run = Run::of(&socket, "version").await;
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.starts_with("ebb "), "{}", run.out);

    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    // A child of another test has the listener from its fork to its exec.
    let freed = async {
        while tokio::net::UnixStream::connect(&socket).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, freed)
        .await
        .expect("nobody listens");
    let run = Run::of(&socket, "status").await;
    assert!(run.err.contains("nobody listens there"), "{}", run.err);
    assert!(run.err.contains("left its socket behind"), "{}", run.err);

    std::fs::remove_file(&socket).expect("removed");
    std::fs::write(&socket, "").expect("a file");
    let run = Run::of(&socket, "status").await;
    assert!(run.err.contains("it is no socket"), "{}", run.err);
}

#[tokio::test]
async fn a_configuration_is_checked_without_a_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let none = directory.path().join("s");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ebb.example.toml");
    let run = Run::of(&none, &format!("check {example}")).await;
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains(" is valid: "), "{}", run.out);
    let run = Run::of(&none, &format!("check {example} --json")).await;
    assert!(run.json()["services"].is_object());

    let run = Run::of(&none, &format!("check {}", none.display())).await;
    assert_eq!((run.code, run.err.lines().count()), (1, 2), "{}", run.err);
    assert!(
        run.err.contains("there is no such file\nhint: "),
        "{}",
        run.err
    );

    let file = directory.path().join("bad.toml");
    std::fs::write(&file, "interfaces = 1\nodd = 2\n").expect("a file");
    let run = Run::of(&none, &format!("check {}", file.display())).await;
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    let place = format!("{}:2:1: error: ", file.display());
    assert!(run.err.contains(&place), "{}", run.err);
    let last = run.err.lines().last().expect("a line");
    assert!(
        last.starts_with("error: ") && last.contains("is not valid"),
        "{last}"
    );
    let run = Run::of(&none, &format!("check {} --json", file.display())).await;
    let said: Value = serde_json::from_str(&run.err).expect("JSON");
    assert_eq!(said["details"]["problems"][0]["line"], 1);
}

#[tokio::test]
async fn usage() {
    let fake = Fake::start();
    for line in [
        "drain",
        "drain web",
        "frobnicate",
        "weight web/b1",
        "weight web/b1 1001",
        "weight web 5",
        "maintenance",
        "activate web",
        "status --x",
        "explain web --from 1.2.3.4",
    ] {
        let run = ebb(&fake, line).await;
        assert_eq!((run.code, run.out.as_str()), (64, ""), "{line}");
        assert!(run.err.starts_with("error: "), "{line}: {}", run.err);
        assert!(run.err.contains("\nhint: "), "{line}: {}", run.err);
    }
    let run = ebb(&fake, "drain --json").await;
    let said: Value = serde_json::from_str(&run.err).expect("JSON");
    assert!(said["error"].is_string() && said["hint"].is_string());
    for line in ["--help", "--version", "drain --help", "help drain"] {
        let run = ebb(&fake, line).await;
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{line}");
        assert!(!run.out.is_empty());
    }
}

fn interrupt(child: &tokio::process::Child) {
    let pid = child.id().expect("it runs");
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("a signal");
}
