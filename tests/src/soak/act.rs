//! Carries out what was chosen.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    Soak,
    judge::Drained,
    plan::{Command, Step, pool_of},
};
use crate::{
    clock,
    lab::Cli,
    scenario::{backends, joined},
};

impl Soak<'_> {
    /// Does it.
    pub(super) fn perform(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Fault(fault) => {
                *self.ledger.faults.entry(fault.kind()).or_default() += 1;
                self.inflict(fault)?;
            }
            Step::Command(command, killed) => self.command(command, *killed)?,
        }
        self.look()
    }

    fn command(&mut self, command: &Command, killed: Option<u64>) -> Result<()> {
        let before = self.scene.moment(&self.load)?;
        let line = self.line(command);
        let is_done = match killed {
            None => self.is_done(command, &self.scene.run(&line)?)?,
            Some(ms) => {
                *self
                    .ledger
                    .faults
                    .entry("daemon killed in a command")
                    .or_default() += 1;
                let running = self.scene.background(&line);
                thread::sleep(Duration::from_millis(ms));
                self.scene.ebb.kill9();
                // It may have been done or not; what is true now is asked below.
                let said = joined(running)?;
                self.scene.ebb.restart(&self.scene.lab)?;
                said.code == Some(0)
            }
        };
        self.note_closed(before, clock::now_ns())?;
        let counts = match is_done || killed.is_some() {
            true => &mut self.ledger.operations,
            false => &mut self.ledger.refused,
        };
        *counts.entry(command.kind()).or_default() += 1;
        if let Command::Drain(name, seconds, _, leave) = command {
            let over = Duration::from_millis(seconds * 900);
            self.load
                .close_long(Some(name), f64::from(*leave) / 100.0, over, true);
        }
        Ok(())
    }

    fn line(&self, command: &Command) -> String {
        match command {
            Command::Drain(name, seconds, reset, _) => {
                let then = if *reset { "reset" } else { "leave" };
                format!("drain web/{name} --timeout {seconds}s --on-deadline {then}")
            }
            Command::Undrain(_)
            | Command::Weight(..)
            | Command::Maintenance(_)
            | Command::Activate(_) => command.to_string(),
            Command::Remove(name) => format!("remove web/{name}"),
            Command::Add(name) => format!(
                "add web/{}/{name} {}",
                pool_of(name),
                self.scene.backend_at(name)
            ),
            Command::Switch(pool) => format!("switch web {pool}"),
            Command::Reload => "reload".into(),
        }
    }

    /// Whether the command was carried out. Between the choice and the command a flow may have come or health may have
    /// changed: then it may be refused, but only with a reason.
    fn is_done(&self, command: &Command, said: &Cli) -> Result<bool> {
        let may_be_refused = !matches!(command, Command::Reload);
        let is_refusal = said.code == Some(1) && said.stderr.contains("error: ");
        ensure!(
            said.code == Some(0) || (may_be_refused && is_refusal),
            "{said}"
        );
        Ok(said.code == Some(0))
    }

    /// Notes the drains that can be seen.
    pub(super) fn look(&mut self) -> Result<()> {
        let status = self.status()?;
        let now = clock::now_ns();
        for backend in backends(&status) {
            let name = backend["name"].as_str().unwrap_or_default();
            let drain = &backend["drain"];
            let Some(id) = drain["id"].as_u64() else {
                continue;
            };
            let known = self.ledger.drains.entry(id).or_insert_with(|| Drained {
                backend: name.to_owned(),
                deadline_ns: deadline_ns(drain, now),
                ended_ns: None,
                resets: drain["on_deadline"] == "reset",
                receipt: None,
            });
            if backend["admin"] != "draining" {
                known.ended_ns.get_or_insert(now);
            }
            if drain["receipt"].is_object() {
                known.receipt = Some(drain["receipt"].clone());
            }
        }
        // Drains that are no longer shown are over.
        let shown: Vec<u64> = backends(&status)
            .iter()
            .filter_map(|backend| backend["drain"]["id"].as_u64())
            .collect();
        for (id, drain) in &mut self.ledger.drains {
            if !shown.contains(id) {
                drain.ended_ns.get_or_insert(now);
            }
        }
        Ok(())
    }
}

/// A drain's deadline on the clock of the clients. A little early: two clocks are read one after the other.
fn deadline_ns(drain: &Value, now_ns: u64) -> u64 {
    const EARLY_MS: i64 = 50;
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.as_millis() as i64);
    let left_ms = drain["deadline_ms"].as_i64().unwrap_or(i64::MAX / 2) - now_ms - EARLY_MS;
    now_ns.saturating_add_signed(left_ms.saturating_mul(1_000_000))
}
