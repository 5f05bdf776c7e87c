//! Carries out faults, and waits until they are over.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    Soak,
    judge::{Killed, Lost},
    plan::Fault,
};
use crate::{
    clock,
    scenario::{LIMIT, backend},
};

impl Soak<'_> {
    /// Does it, and lets it be over.
    pub(super) fn inflict(&mut self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::DaemonKilled(ms) => {
                self.scene.ebb.kill9();
                self.go_on(*ms);
                self.scene.ebb.restart(&self.scene.lab)
            }
            Fault::DaemonStopped(ms) => {
                self.scene.ebb.signal(Signal::SIGSTOP)?;
                self.go_on(*ms);
                self.scene.ebb.signal(Signal::SIGCONT)
            }
            Fault::ServerKilled(name, ms) => self.kill_server(name, *ms),
            Fault::Unready(name, ms) => self.unready(name, *ms),
            Fault::NeighboursForgotten => {
                let mut command = self.scene.lab.command("lb", "ip");
                let output = command.args(["neigh", "flush", "all"]).output()?;
                let said = String::from_utf8_lossy(&output.stdout)
                    + String::from_utf8_lossy(&output.stderr);
                // Under load the kernel learns them anew while they are flushed, round after round: they were forgotten.
                let forgotten = output.status.success() || said.contains("Flush not complete");
                ensure!(forgotten, "ip neigh flush all: {}: {said}", output.status);
                Ok(())
            }
            Fault::TablesLost => self.lose_tables(),
        }
    }

    /// Traffic for a while.
    fn go_on(&self, ms: u64) {
        self.load.wait(Duration::from_millis(ms), |_| false);
    }

    fn wait_up(&self, name: &str) -> Result<()> {
        let in_status = backend(&self.status()?, name).is_some();
        if in_status {
            self.scene
                .wait_backend(name, |shown| shown["health"] == "up")?;
        }
        Ok(())
    }

    fn kill_server(&mut self, name: &str, ms: u64) -> Result<()> {
        let port = self.scene.service.backend_port;
        let stats = self.scene.lab.stats(name, port)?;
        self.ledger
            .stats
            .entry(name.to_owned())
            .or_default()
            .push(stats);
        let from = clock::now_ns();
        let mut server = self.scene.servers.remove(name).context("no server")?;
        server.kill9();
        self.go_on(ms);
        let server = self.scene.lab.serve_on(name, port)?;
        self.scene.servers.insert(name.to_owned(), server);
        self.wait_up(name)?;
        // Whoever began before this may have met the dead server.
        let until = self.scene.moment(&self.load)?;
        self.ledger.killed.push(Killed {
            backend: name.to_owned(),
            during: from..until,
        });
        Ok(())
    }

    fn unready(&mut self, name: &str, ms: u64) -> Result<()> {
        self.scene.set_ready(name, 503)?;
        self.go_on(ms);
        self.scene.set_ready(name, 200)?;
        self.wait_up(name)
    }

    fn lose_tables(&mut self) -> Result<()> {
        let changing = self.status()?["services"][0]["changing"] == true;
        let flows = self.scene.ok("flows --json")?.json()?;
        let flows = flows.as_array().or_else(|| flows["flows"].as_array());
        let exceptional: BTreeSet<SocketAddr> = flows
            .context("no flows")?
            .iter()
            .filter(|flow| flow["exceptional"] == true)
            .filter_map(|flow| flow["client"].as_str()?.parse().ok())
            .collect();
        self.ledger.lost.push(Lost {
            at_ns: clock::now_ns(),
            exceptional,
            changing_since_ns: changing.then_some(self.changing_since_ns),
        });
        let _ = self.scene.lose_tables()?;
        self.load.wait(LIMIT / 10, |_| false);
        Ok(())
    }
}
