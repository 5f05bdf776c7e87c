//! Drains under way, moved on after each look.

use super::{Engine, Fault};
use crate::model::{
    command::{self, Target},
    drain::{self, Admin, Drained, Draining, Sight, Step, as_ms},
    state::{Backend, Forgiven, Op, Service},
};

impl Engine {
    /// Counts what is to be counted, ends what is to end.
    pub(super) fn step_drains(&mut self, now_ms: u64) -> Result<(), Fault> {
        let mut ops = Vec::new();
        let mut written = Vec::new();
        for (name, service, id, backend) in self.state.backends() {
            match &backend.admin {
                Admin::Draining(drain) => {
                    let target = Target {
                        name,
                        service,
                        id,
                        backend,
                    };
                    if self.step_drain(&target, drain, now_ms, &mut ops) {
                        written.push(drain.id);
                    }
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
            return Ok(());
        }
        let result = self.commit(ops, now_ms);
        if !matches!(result, Err(Fault::Journal(_))) {
            for id in written {
                if let Some(watch) = self.watches.get_mut(&id) {
                    watch.written(now_ms);
                }
            }
        }
        result
    }

    /// Whether what was seen of it so far is among `ops`.
    fn step_drain(
        &self,
        target: &Target,
        drain: &Draining,
        now_ms: u64,
        ops: &mut Vec<Op>,
    ) -> bool {
        let sight = self.sight(target.service, target.id, target.backend);
        let watch = self.watches.get(&drain.id);
        // Flows that looks have freed since the last step.
        let expired = watch.map_or(0, |watch| watch.unwritten.idle_expired);
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
        drain.progress = self.progress(&drain);
        let writes = expired > 0 || watch.is_some_and(|watch| watch.wants_writing(now_ms));
        if writes {
            let progress = drain.progress.clone();
            ops.push(Op::DrainProgress {
                service: service.clone(),
                backend,
                progress,
            });
        }
        // What has just been given up is still counted as open.
        let sight = Sight {
            unseen: sight.unseen.saturating_sub(expired),
            doubtful: self.doubts.is_waited_for(backend, now_ms),
            ..sight
        };
        // A deadline's cuts that fell into a time without a daemon are still to be made.
        let resumes = drain.cutting.is_some()
            && now_ms < self.began_ms.saturating_add(as_ms(drain::LAST_CALL));
        match drain::step(&drain, sight, target.service.spec.idle_timeout, now_ms) {
            Step::End(_) if resumes => {}
            Step::Wait => {}
            Step::Cut(cutting) => ops.push(Op::DrainCut {
                service,
                backend,
                cutting,
            }),
            Step::End(end) => {
                let forgiven = self.forgiven(target, end.left > 0);
                let ages = self.listed_ages(drain.id);
                ops.push(command::end(target, &drain, end, &ages, forgiven, now_ms));
            }
        }
        writes
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
