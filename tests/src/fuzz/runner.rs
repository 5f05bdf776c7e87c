//! Runs cases through the loaded program.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions};
use lb_common::outcome::Outcome;
use lb_userspace::datapath::{Datapath as _, Table, Verdict as Scan, trace::Record};

use super::{
    case::{Case, Ports},
    counters::{Counters, Moved},
    given::PORTS,
    oracle::{Broken, Run, counted_once, judge, named},
    shown,
    view::View,
    world::{Concern, ROWS, World},
};
use crate::rig::{Rig, Verdict};

/// Room for what comes out.
const OUTPUT_MAX: usize = 4096;

/// A loaded program, and what it is asked to do.
pub struct Runner {
    /// What it serves.
    pub world: World,
    rig: Rig,
    counters: Counters,
    output: Vec<u8>,
    tracing: bool,
}

/// What became of an input.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The frame that came in.
    pub input: Vec<u8>,
    /// The frame afterwards.
    pub output: Vec<u8>,
    /// What the program returned.
    pub verdict: Verdict,
    /// The counters that moved.
    pub moved: Vec<Moved>,
    /// What the tracing program showed.
    pub shown: Vec<Record>,
}

/// A case that broke a rule.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Place of the input in the case.
    pub at: usize,
    /// What became of it.
    pub seen: Seen,
    /// The rule.
    pub broken: Broken,
}

/// How closely counters are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// The counters where the packet should be found after each input, all of them after each case.
    Quick,
    /// All of them after each input.
    Close,
}

impl Runner {
    /// Loads the program of `object`, and the tracing program where `tracing` is asked for. Moves this thread into a
    /// network namespace of its own.
    ///
    /// # Errors
    /// Root is missing, or the kernel refuses something.
    pub fn new(object: &[u8], tracing: bool) -> Result<Self> {
        let (world, mut rig) = World::new(object)?;
        if tracing {
            rig.trace(&shown::FILTER)?;
        }
        let counters = Counters::open(rig.pins().context("its maps are pinned")?, ROWS.len() + 1)?;
        Ok(Self {
            world,
            rig,
            counters,
            output: vec![0; OUTPUT_MAX],
            tracing,
        })
    }

    /// Runs a case up to its first broken rule; `look` sees every input's outcome.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(
        &mut self,
        case: &Case,
        watch: Watch,
        mut look: impl FnMut(usize, Outcome, Verdict),
    ) -> Result<Option<Failed>> {
        for table in [Table::Flows, Table::Handshakes] {
            self.rig.datapath.scan(table, &mut |_| Scan::Remove)?;
        }
        let most = if case.records { u32::MAX } else { 0 };
        self.rig.limit(most, most)?;
        match case.ports {
            Ports::Flooded => {
                // Longer ago than any of this case, and not so long that they are free.
                let second = self.rig.datapath.ticks_per_second();
                let seen = self.rig.datapath.now_ticks().wrapping_sub(second);
                self.rig.datapath.flood_ports(seen)?;
            }
            Ports::Free | Ports::None => self.rig.datapath.lose_ports()?,
        }
        let range = match case.ports {
            Ports::None => (1, 1),
            _ => PORTS,
        };
        self.rig.nat(range, &[])?;
        self.world.given.take();
        self.world.numbered.borrow_mut().begin();
        self.world.ports.set(case.ports);
        let (mut last, mut names) = (None, Vec::new());
        for (at, input) in case.inputs.iter().enumerate() {
            let seen = self.send(input.bytes(), watch)?;
            names.extend(named(&self.world, &seen.input));
            let judged = counted_once(&seen.moved).and_then(|counted| {
                look(at, counted.outcome, seen.verdict);
                let run = Run {
                    input: &seen.input,
                    verdict: seen.verdict,
                    output: &seen.output,
                    service: counted.service,
                    outcome: counted.outcome,
                    named: &names,
                };
                if self.tracing {
                    shown::judge(&run, &seen.shown)?;
                }
                judge(&self.world, &run)
            });
            if let Err(broken) = judged {
                // What this case counted must not be laid to the next one.
                self.counters.moved_anywhere()?;
                return Ok(Some(Failed { at, seen, broken }));
            }
            last = Some((at, seen));
        }
        self.strays(last)
    }

    /// Counters that nobody looked at during the case have not moved either.
    fn strays(&mut self, last: Option<(usize, Seen)>) -> Result<Option<Failed>> {
        let stray = self.counters.moved_anywhere()?;
        Ok(match last {
            Some((at, seen)) if !stray.is_empty() => Some(Failed {
                at,
                seen,
                broken: Broken(format!(
                    "an input of this case was also counted as {stray:?}"
                )),
            }),
            _ => None,
        })
    }

    fn send(&mut self, input: Vec<u8>, watch: Watch) -> Result<Seen> {
        let result = self
            .rig
            .datapath
            .front()?
            .test_run(TestRunOptions {
                data_in: Some(&input),
                data_out: Some(&mut self.output),
                repeat: 1,
                ..TestRunOptions::default()
            })
            .with_context(|| format!("BPF_PROG_TEST_RUN of {} bytes", input.len()))?;
        let length = result.data_size_out as usize;
        ensure!(length <= OUTPUT_MAX, "a frame of {length} bytes came out");
        Ok(Seen {
            output: self.output[..length].to_vec(),
            verdict: Verdict::from_code(result.return_value),
            moved: self.moved(&input, watch)?,
            shown: self.rig.shown(),
            input,
        })
    }

    fn moved(&mut self, input: &[u8], watch: Watch) -> Result<Vec<Moved>> {
        if watch == Watch::Close {
            return self.counters.moved_anywhere();
        }
        let view = View::parse(input);
        let concern = view.map_or(Concern::Nobody, |view| self.world.concern(input, &view));
        let service = concern.service();
        let mut moved = Vec::with_capacity(1);
        self.counters.moved(service, &mut moved)?;
        if moved.is_empty() {
            return self.counters.moved_anywhere();
        }
        Ok(moved)
    }
}
