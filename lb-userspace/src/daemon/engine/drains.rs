//! Drains under way, moved on after each look.

use super::{Engine, Fault};
use crate::model::{
    command::{self, Target},
    drain::{self, Admin, Drained, Draining, Progress, Sight, Step, as_ms},
    state::{Backend, Forgiven, Op, Service},
};

impl Engine {
    /// Counts what is to be counted, ends what is to end.
    pub(super) fn step_drains(&mut self, now_ms: u64) -> Result<(), Fault> {
        self.note_ages();
        let expired = std::mem::take(&mut self.expired);
        let mut ops = Vec::new();
        for (name, service, id, backend) in self.state.backends() {
            match &backend.admin {
                Admin::Draining(drain) => {
                    let target = Target {
                        name,
                        service,
                        id,
                        backend,
                    };
                    let expired = expired.get(&id).copied().unwrap_or(0);
                    self.step_drain(&target, drain, expired, now_ms, &mut ops);
                }
                Admin::Drained(drained) if backend.leaving => {
                    if self.may_leave(service, id, backend, drained, now_ms) {
                        ops.push(Op::BackendRemoved {
                            service: name.clone(),
                            backend: id,
                            by_hand: false,
                        });
                    }
                }
                Admin::Active | Admin::Drained(_) | Admin::Maintenance | Admin::Removed => {}
            }
        }
        if ops.is_empty() {
            Ok(())
        } else {
            self.commit(ops, now_ms)
        }
    }

    /// `expired`: flows that looks have freed since the last step.
    fn step_drain(
        &self,
        target: &Target,
        drain: &Draining,
        expired: u64,
        now_ms: u64,
        ops: &mut Vec<Op>,
    ) {
        let sight = self.sight(target.service, target.id, target.backend);
        let service = target.name.to_owned();
        let backend = target.id;
        let mut drain = drain.clone();
        if drain.at_start.is_none() {
            // What was freed since the command was there at the command. The counters still say so, where they know.
            let freed = if target.service.spec.is_datagram() {
                expired
            } else {
                0
            };
            let flows = sight.left() + freed;
            drain.at_start = Some(flows);
            ops.push(Op::DrainCounted {
                service: service.clone(),
                backend,
                flows,
            });
        }
        drain.progress = self.progress(&drain, expired);
        if expired > 0 {
            let progress = drain.progress;
            ops.push(Op::DrainProgress {
                service: service.clone(),
                backend,
                progress,
            });
        }
        // What has just been given up is still counted as open.
        let sight = Sight {
            unseen: sight.unseen.saturating_sub(expired),
            ..sight
        };
        match drain::step(&drain, sight, target.service.spec.idle_timeout, now_ms) {
            Step::Wait => {}
            Step::Cut(cutting) => ops.push(Op::DrainCut {
                service,
                backend,
                cutting,
            }),
            Step::End(end) => {
                let forgiven = self.forgiven(target, end.left > 0);
                ops.push(command::end(target, &drain, end, forgiven, now_ms));
            }
        }
    }

    fn progress(&self, drain: &Draining, expired: u64) -> Progress {
        let longest = self.longest_ms.get(&drain.id).copied().unwrap_or(0);
        Progress {
            idle_expired: drain.progress.idle_expired + expired,
            longest_ms: drain.progress.longest_ms.max(longest),
        }
    }

    /// Once a drain is over, whatever still counts as open is not.
    fn forgiven(&self, target: &Target, flows_go_on: bool) -> Forgiven {
        if flows_go_on {
            return target.backend.forgiven;
        }
        let stats = self.datapath.backend_stats(target.id).unwrap_or_default();
        Forgiven {
            flows: stats.opened.saturating_sub(stats.closed),
            opened: stats.opened,
        }
    }

    /// Keeps the age of the oldest flow of each drain.
    fn note_ages(&mut self) {
        let per_second = u64::from(self.datapath.ticks_per_second().max(1));
        let mut longest = std::mem::take(&mut self.longest_ms);
        let running: std::collections::BTreeMap<u64, u64> = self
            .state
            .backends()
            .filter_map(|(_, _, id, backend)| {
                let drain = backend.admin.draining()?;
                let ticks = self
                    .last_look
                    .tallies
                    .get(&id)
                    .map_or(0, |tally| tally.longest);
                let age = u64::from(ticks) * 1000 / per_second;
                Some((drain.id, longest.remove(&drain.id).unwrap_or(0).max(age)))
            })
            .collect();
        self.longest_ms = running;
    }

    /// Whether a drained backend that left the configuration may go: it has no flows, or those left at its deadline have
    /// not been seen for an idle timeout.
    fn may_leave(
        &self,
        service: &Service,
        id: u32,
        backend: &Backend,
        drained: &Drained,
        now_ms: u64,
    ) -> bool {
        if !drained.flows_go_on {
            return true;
        }
        let sight = self.sight(service, id, backend);
        let waited = now_ms
            >= drained
                .ended_ms
                .saturating_add(as_ms(service.spec.idle_timeout));
        // While the change is unfinished its flows are its base's and need not be listed; afterwards they are.
        sight.left() == 0 || (sight.listed == 0 && waited && !service.is_changing())
    }
}
