//! What happens in the demo, in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    client::{Flow, Load, LoadOptions, Report, begun_within},
    clock,
    config::Service,
    lab::{
        Ebb, Lab,
        address::{self, Family},
    },
    server::Stats,
};
use serde_json::Value;

use super::{
    Demo,
    picture::Picture,
    receipt::{Receipt, Step},
    status::{Status, drain_line},
};

/// Time in which anything that is waited for must happen.
const LIMIT: Duration = Duration::from_secs(20);
/// Time in which the users of a draining backend leave.
const LEAVE: Duration = Duration::from_secs(5);
/// Time for which each new state is shown.
const LOOK: Duration = Duration::from_secs(4);

/// Backends that must not get new connections for a time.
struct Closed {
    step: usize,
    backends: Vec<String>,
    from_ns: u64,
    until_ns: u64,
}

impl Closed {
    /// Counts connections begun in this time: those on the closed backends, as the backends and the client recorded
    /// them, and those elsewhere.
    fn judge(&self, report: &Report, stats: &BTreeMap<&str, Stats>, step: &mut Step) {
        let is_closed = |name: &str| self.backends.iter().any(|backend| backend == name);
        let begun =
            |flow: &&Flow| self.from_ns < flow.started_ns && flow.started_ns < self.until_ns;
        let mut wrong: BTreeSet<(SocketAddr, u64)> = BTreeSet::new();
        for (_, stats) in stats.iter().filter(|(name, _)| is_closed(name)) {
            let window = self.from_ns..self.until_ns;
            let clients = Family::BOTH.map(address::client);
            let late = begun_within(stats, &report.flows, &clients, &[window]);
            wrong.extend(late.iter().map(|late| {
                (
                    late.accepted.peer,
                    late.started_ns.unwrap_or(late.accepted.accepted_ns),
                )
            }));
        }
        for flow in report.flows.iter().filter(begun) {
            match flow.backend.as_deref() {
                Some(name) if is_closed(name) => {
                    wrong.insert((flow.local, flow.started_ns));
                }
                Some(_) => step.new_elsewhere += 1,
                None => {}
            }
        }
        step.new_on_closed += wrong.len();
    }
}

struct Story<'a> {
    ebb: &'a Ebb,
    load: &'a Load,
    picture: &'a Picture,
    steps: Vec<Step>,
    drains: Vec<Value>,
    closed: Vec<Closed>,
}

/// Runs all of it.
pub fn tell(lab: &Lab, ebb: &Ebb, service: &Service, demo: &Demo) -> Result<Receipt> {
    let started = Instant::now();
    let pool = |n: usize| service.pools[n].1.clone();
    let (blue, green) = (pool(0), pool(1));
    let all_up = |status: &Value| {
        let rows = Status(status.clone()).rows("web");
        rows.len() == blue.len() + green.len() && rows.iter().all(|row| row.health == "up")
    };
    ebb.wait_status(LIMIT, all_up)
        .context("wait until every backend is up")?;

    let load = Load::start(
        lab.netns("client"),
        LoadOptions {
            long: demo.connections,
            short_per_second: demo.requests,
            ..LoadOptions::new(service.target())
        },
    )?;
    let picture = Picture::start(load.watch(), ebb.reach().clone(), demo.no_tty);
    let mut story = Story {
        ebb,
        load: &load,
        picture: &picture,
        steps: vec![],
        drains: vec![],
        closed: vec![],
    };
    let failure = story.play(demo.connections, &blue, &green).err();
    if failure.is_some() {
        // What began in the step that failed is judged as well.
        story.end("unfinished", None, Instant::now());
    }
    let Story {
        mut steps,
        drains,
        mut closed,
        ..
    } = story;

    picture.step("everybody leaves");
    let now = clock::now_ns();
    for window in closed
        .iter_mut()
        .filter(|window| window.until_ns == u64::MAX)
    {
        window.until_ns = now;
    }
    let report = load.stop(Duration::from_secs(2));
    let status = Status(ebb.status()?);
    drop(picture);

    let mut stats = BTreeMap::new();
    for backend in lab.backends() {
        stats.insert(backend.as_str(), lab.stats(backend, service.backend_port)?);
    }
    for window in &closed {
        window.judge(&report, &stats, &mut steps[window.step]);
    }
    let corrupt = stats.values().map(|stats| stats.corrupt).sum();
    Ok(Receipt {
        report,
        corrupt,
        steps,
        drains,
        status,
        failure: failure.map(|error| format!("{error:#}")),
        seconds: started.elapsed().as_secs_f64(),
    })
}

impl Story<'_> {
    fn play(&mut self, connections: usize, blue: &[String], green: &[String]) -> Result<()> {
        self.fill(connections)?;
        self.drain("b1")?;
        self.undrain("b1")?;
        self.switch("switch", "green", blue)?;
        self.switch("rollback", "blue", green)
    }

    fn begin(&self, text: &str) -> Instant {
        self.picture.step(text);
        Instant::now()
    }

    fn end(&mut self, name: &str, command: Option<&str>, since: Instant) {
        self.steps.push(Step {
            name: name.to_owned(),
            command: command.map(str::to_owned),
            seconds: since.elapsed().as_secs_f64(),
            new_on_closed: 0,
            new_elsewhere: 0,
            long_after: self.load.now().long,
        });
    }

    /// Backends that must not get new connections from now until [`Self::reopen`]; for the step that comes next.
    fn close(&mut self, backends: &[String], from_ns: u64) {
        let step = self.steps.len();
        self.closed.push(Closed {
            step,
            backends: backends.to_vec(),
            from_ns,
            until_ns: u64::MAX,
        });
    }

    fn reopen(&mut self) {
        // Of connections begun before, none can be sent on its way only after what comes next.
        let moment = self.load.moment(LIMIT);
        let now = moment.unwrap_or_else(clock::now_ns);
        for window in self
            .closed
            .iter_mut()
            .filter(|window| window.until_ns == u64::MAX)
        {
            window.until_ns = now;
        }
    }

    fn fill(&mut self, connections: usize) -> Result<()> {
        let since = self.begin(&format!(
            "{connections} long-lived connections, and short requests all the time"
        ));
        let is_full = self.load.wait_long(connections, LIMIT);
        ensure!(
            is_full,
            "open {connections} connections: after {LIMIT:?} {}",
            self.trouble()
        );
        self.look(Duration::from_secs(2))?;
        self.end("fill", None, since);
        Ok(())
    }

    fn drain(&mut self, backend: &str) -> Result<()> {
        let name = format!("web/{backend}");
        let text = format!("ebb drain {name} --wait --json");
        let since = self.begin(&text);
        // Returns when the drain is in effect; from then on no new connection may come to the backend.
        self.ebb.cli(&["drain", &name, "--json"])?.success()?;
        self.close(&[backend.to_owned()], clock::now_ns());
        // The same command again finds the drain that runs, and waits for its end.
        let reach = self.ebb.reach();
        let mut command = reach.command(&["drain", &name, "--wait", "--json"]);
        let drain = thread::spawn(move || run(&mut command));
        let left = self.load.now().long.get(backend).copied().unwrap_or(0);
        self.picture.note(format!(
            "{name} drains: {left} long connections on it leave when they like"
        ));
        self.load.close_long(Some(backend), 1.0, LEAVE, true);
        let deadline = Instant::now() + LEAVE + LIMIT;
        let mut again = Instant::now() + LEAVE;
        while !drain.is_finished() {
            ensure!(
                Instant::now() < deadline,
                "{text}: not done in time; {}",
                self.trouble()
            );
            self.look(Duration::from_millis(100))?;
            if Instant::now() > again {
                // Those whose handshake was under way when the drain began.
                self.load
                    .close_long(Some(backend), 1.0, Duration::from_millis(200), true);
                again = Instant::now() + Duration::from_secs(1);
            }
        }
        let output = drain
            .join()
            .map_err(|_| anyhow::anyhow!("{text}: its thread panicked"))?;
        let receipt: Value = output.with_context(|| text.clone())?;
        self.picture.note(drain_line(&receipt));
        self.drains.push(receipt);
        self.look(Duration::from_secs(1))?;
        self.end("drain", Some(&text), since);
        Ok(())
    }

    fn undrain(&mut self, backend: &str) -> Result<()> {
        let name = format!("web/{backend}");
        let text = format!("ebb undrain {name}");
        let since = self.begin(&text);
        self.reopen();
        self.ebb.cli(&["undrain", &name])?.success()?;
        self.turnover(0.3, Duration::from_secs(2))?;
        self.end("undrain", Some(&text), since);
        Ok(())
    }

    /// Switches to `pool`; backends in `others` get no new connections from then on.
    fn switch(&mut self, step: &str, pool: &str, others: &[String]) -> Result<()> {
        let text = format!("ebb switch web {pool}");
        let since = self.begin(&text);
        self.reopen();
        self.ebb.cli(&["switch", "web", pool])?.success()?;
        self.close(others, clock::now_ns());
        self.picture.note(format!(
            "{text}: new connections go to {pool}, old ones stay where they are"
        ));
        self.turnover(0.5, LOOK)?;
        self.end(step, Some(&text), since);
        Ok(())
    }

    /// A share of the users leaves, and as many come.
    fn turnover(&self, share: f64, over: Duration) -> Result<()> {
        self.load.close_long(None, share, over * 3 / 4, true);
        self.look(over)
    }

    /// Lets time pass for people to see; ends early when something breaks.
    fn look(&self, time: Duration) -> Result<()> {
        if self
            .load
            .wait(time, |now| now.broken + now.requests_failed > 200)
        {
            bail!("too much breaks to go on: {}", self.trouble());
        }
        Ok(())
    }

    fn trouble(&self) -> String {
        let now = self.load.now();
        let counts = format!(
            "{} broken, {} requests failed",
            now.broken, now.requests_failed
        );
        self.load
            .broken()
            .iter()
            .take(5)
            .fold(counts, |text, broken| format!("{text}\n  {broken}"))
    }
}

/// Runs a command to its end; its output as JSON.
fn run(command: &mut Command) -> Result<Value> {
    let output = command.stdin(Stdio::null()).output()?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{}: {} {}",
        output.status,
        out.trim(),
        err.trim()
    );
    serde_json::from_str(&out).with_context(|| format!("no JSON: {}", out.trim()))
}
