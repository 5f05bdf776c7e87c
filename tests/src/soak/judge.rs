//! Who is to blame for a connection that broke, and whether new ones went where they should not.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use serde_json::Value;

use super::{
    Options,
    summary::{Cut, Summary},
};
use crate::{
    client::{Broken, Reason, Report, begun_within},
    clock,
    scenario::Way,
    server::Stats,
};

/// Time after a drain's end in which its cuts may still be seen: a flow is reset at its next packet, and the news has to
/// come back.
const CUT_LATE_NS: u64 = 4_000_000_000;
/// Time before a fault is noted in which a connection may have begun that it hits.
const NOTED_LATE_NS: u64 = 2_000_000_000;

/// A drain whose deadline cuts.
#[derive(Debug, Clone)]
pub struct Drained {
    /// Its backend.
    pub backend: String,
    /// When its deadline passes, ns of `CLOCK_MONOTONIC`.
    pub deadline_ns: u64,
    /// When it was first seen to be over.
    pub ended_ns: Option<u64>,
    /// Whether its deadline resets what is left.
    pub resets: bool,
    /// What it accounts for.
    pub receipt: Option<Value>,
}

impl Drained {
    /// It was there to break this one.
    fn cuts(&self, broken: &Broken) -> bool {
        let end = self
            .ended_ns
            .unwrap_or(u64::MAX)
            .saturating_add(CUT_LATE_NS);
        self.resets
            && broken.backend.as_deref() == Some(&self.backend)
            && broken.reason == Reason::Reset
            && (self.deadline_ns..end).contains(&broken.broken_ns)
    }
}

/// A server that was killed, and is there again; ns of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone)]
pub struct Killed {
    /// Its backend.
    pub backend: String,
    /// From just before, until new connections could be sure of it again.
    pub during: Range<u64>,
}

impl Killed {
    fn broke(&self, broken: &Broken) -> bool {
        let is_fitting = matches!(
            broken.reason,
            Reason::Reset | Reason::Connect | Reason::Closed | Reason::ShortRead
        );
        let begun = broken.started_ns < self.during.end;
        match broken.backend.as_deref() {
            Some(name) => {
                is_fitting && name == self.backend && begun && broken.broken_ns >= self.during.start
            }
            None => is_fitting && begun && broken.started_ns + NOTED_LATE_NS >= self.during.start,
        }
    }
}

/// A loss of the tables, ns of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone)]
pub struct Lost {
    /// When.
    pub at_ns: u64,
    /// Flows that only an entry kept where they were.
    pub exceptional: BTreeSet<SocketAddr>,
    /// Since when a change was unfinished, if one was.
    pub changing_since_ns: Option<u64>,
}

impl Lost {
    /// It began in an unfinished change, or was kept by nothing but its entry, and ended as such a one may.
    fn exposed(&self, broken: &Broken) -> bool {
        let is_fitting = matches!(broken.reason, Reason::Reset | Reason::Timeout);
        let exceptional = broken
            .local
            .is_some_and(|local| self.exceptional.contains(&local));
        let begun_in_change = self
            .changing_since_ns
            .is_some_and(|since| broken.started_ns + NOTED_LATE_NS >= since);
        is_fitting
            && broken.broken_ns >= self.at_ns
            && broken.started_ns <= self.at_ns
            && (exceptional || begun_in_change)
    }
}

/// Backends that are closed to new connections, over time.
#[derive(Debug, Default)]
pub struct Closed {
    /// Those that are now, and since when.
    pub since: BTreeMap<String, u64>,
    /// Those that were.
    pub over: Vec<(String, Range<u64>)>,
}

impl Closed {
    /// These are closed now: since `after` if they were not, and the others until `before` if they were.
    pub fn set(&mut self, closed: &BTreeSet<String>, before: u64, after: u64) {
        let reopened: Vec<String> = self
            .since
            .keys()
            .filter(|name| !closed.contains(*name))
            .cloned()
            .collect();
        for name in reopened {
            if let Some(since) = self.since.remove(&name) {
                self.over.push((name, since..before.max(since)));
            }
        }
        for name in closed {
            self.since.entry(name.clone()).or_insert(after);
        }
    }

    /// The whole windows of each, ns of `CLOCK_MONOTONIC`; those still open end at `now`.
    fn windows(&self, now: u64) -> BTreeMap<String, Vec<Range<u64>>> {
        let open = self.since.iter();
        let open = open.map(|(name, &since)| (name.clone(), since..now));
        let mut of: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, window) in self.over.iter().cloned().chain(open) {
            of.entry(name).or_default().push(window);
        }
        of
    }
}

/// All that the judge must know.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Operations that were done, by kind.
    pub operations: BTreeMap<&'static str, u64>,
    /// Operations that were refused, by kind.
    pub refused: BTreeMap<&'static str, u64>,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Drains by number.
    pub drains: BTreeMap<u64, Drained>,
    /// Servers that were killed.
    pub killed: Vec<Killed>,
    /// Losses of the tables.
    pub lost: Vec<Lost>,
    /// Who must not get new connections, when.
    pub closed: Closed,
    /// What servers have recorded, each before its end.
    pub stats: BTreeMap<String, Vec<Stats>>,
}

/// Who is to blame.
enum Blame {
    Drain(u64),
    Server,
    Tables,
    Ebb,
}

impl Ledger {
    /// `way`: where nobody sees the answers, a flow that was lost with the tables can not be found again. Elsewhere it can, but tables
    /// that are lost again and again may leave no time for it.
    fn blame(&self, way: Way, broken: &Broken) -> Blame {
        if let Some((&id, _)) = self.drains.iter().find(|(_, drain)| drain.cuts(broken)) {
            return Blame::Drain(id);
        }
        if self.killed.iter().any(|killed| killed.broke(broken)) {
            return Blame::Server;
        }
        let can_be = way == Way::L2 || broken.reason == Reason::Timeout;
        if can_be && self.lost.iter().any(|lost| lost.exposed(broken)) {
            return Blame::Tables;
        }
        Blame::Ebb
    }

    /// The verdict.
    pub fn judge(
        self,
        options: &Options,
        report: &Report,
        clients: &[IpAddr],
        now_ns: u64,
        took: Duration,
    ) -> Summary {
        let mut cuts: BTreeMap<u64, u64> = BTreeMap::new();
        let start_ns = now_ns.saturating_sub(took.as_nanos() as u64);
        let (mut died, mut exposed, mut broken) = (0, BTreeMap::new(), Vec::new());
        for one in &report.broken {
            let at = clock::seconds_between(start_ns, one.broken_ns);
            let line = format!("at {at:.1} s: {one}");
            match self.blame(options.way, one) {
                Blame::Drain(id) => *cuts.entry(id).or_default() += 1,
                Blame::Server => died += 1,
                Blame::Tables => {
                    let lines: &mut Vec<String> = exposed.entry(one.reason).or_default();
                    lines.push(line);
                }
                Blame::Ebb => broken.push(line),
            }
        }
        let mut misplaced = Vec::new();
        for (name, windows) in self.closed.windows(now_ns) {
            for stats in self.stats.get(&name).into_iter().flatten() {
                let late = begun_within(stats, &report.flows, clients, &windows);
                misplaced.extend(late.iter().map(|late| format!("{name}: {late:?}")));
            }
        }
        let corrupt = self
            .stats
            .values()
            .flatten()
            .map(|stats| stats.corrupt)
            .sum();
        let cut = self.drains.iter().filter_map(|(id, drain)| {
            let connections = cuts.get(id).copied().unwrap_or(0);
            (connections > 0).then(|| Cut {
                drain: *id,
                backend: format!("web/{}", drain.backend),
                connections,
                receipt: drain.receipt.clone(),
            })
        });
        Summary {
            seed: options.seed,
            seconds: took.as_secs_f64(),
            connections: report.opened + report.requests_ok + report.requests_failed,
            long_connections: report.opened,
            finished: report.finished,
            requests: report.requests_ok,
            exchanges: report.frames,
            operations: self.operations,
            refused: self.refused,
            faults: self.faults,
            drains: self.drains.len() as u64,
            broken,
            misplaced,
            corrupt,
            cut: cut.collect(),
            died,
            exposed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Length;

    const S: u64 = 1_000_000_000;

    fn broken(backend: Option<&str>, reason: Reason, started: u64, at: u64) -> Broken {
        Broken {
            length: Length::Long,
            local: Some("10.0.0.1:1000".parse().unwrap()),
            backend: backend.map(Into::into),
            reason,
            detail: String::new(),
            started_ns: started,
            broken_ns: at,
        }
    }

    #[test]
    fn a_deadline_cuts_its_own_backend_after_it_passed() {
        let drain = Drained {
            backend: "b1".into(),
            deadline_ns: 100 * S,
            ended_ns: Some(101 * S),
            resets: true,
            receipt: None,
        };
        let cut = |backend, reason, at| drain.cuts(&broken(Some(backend), reason, 0, at));
        assert!(cut("b1", Reason::Reset, 100 * S + 1));
        assert!(!cut("b2", Reason::Reset, 100 * S + 1));
        assert!(!cut("b1", Reason::Timeout, 100 * S + 1));
        assert!(!cut("b1", Reason::Reset, 99 * S));
        assert!(!cut("b1", Reason::Reset, 106 * S));
        let leaves = Drained {
            resets: false,
            ..drain.clone()
        };
        assert!(!leaves.cuts(&broken(Some("b1"), Reason::Reset, 0, 100 * S + 1)));
    }

    #[test]
    fn a_killed_server_takes_what_it_had_and_what_came_meanwhile() {
        let killed = Killed {
            backend: "b1".into(),
            during: 10 * S..20 * S,
        };
        let broke =
            |backend, reason, started, at| killed.broke(&broken(backend, reason, started, at));
        assert!(broke(Some("b1"), Reason::Reset, S, 30 * S));
        assert!(!broke(Some("b1"), Reason::WrongBytes, S, 30 * S));
        assert!(!broke(Some("b1"), Reason::Reset, S, 9 * S));
        assert!(!broke(Some("b1"), Reason::Reset, 21 * S, 30 * S));
        assert!(!broke(Some("b2"), Reason::Reset, S, 11 * S));
        assert!(broke(None, Reason::Connect, 11 * S, 11 * S));
        assert!(!broke(None, Reason::Connect, 21 * S, 21 * S));
        assert!(!broke(None, Reason::Timeout, 11 * S, 15 * S));
    }

    #[test]
    fn lost_tables_excuse_only_what_no_table_of_slots_can_save() {
        let lost = |changing_since_ns, exceptional: &[&str]| Lost {
            at_ns: 50 * S,
            exceptional: exceptional
                .iter()
                .map(|local| local.parse().unwrap())
                .collect(),
            changing_since_ns,
        };
        let old = broken(Some("b1"), Reason::Reset, 10 * S, 51 * S);
        assert!(!lost(None, &[]).exposed(&old));
        assert!(!lost(Some(40 * S), &[]).exposed(&old));
        assert!(lost(Some(5 * S), &[]).exposed(&old));
        assert!(lost(None, &["10.0.0.1:1000"]).exposed(&old));
        let wrong = broken(Some("b1"), Reason::WrongBytes, 10 * S, 51 * S);
        assert!(!lost(None, &["10.0.0.1:1000"]).exposed(&wrong));
        let later = broken(Some("b1"), Reason::Reset, 51 * S, 52 * S);
        assert!(!lost(Some(5 * S), &[]).exposed(&later));
    }

    #[test]
    fn windows_open_when_a_change_is_done_and_end_before_the_next_begins() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut closed = Closed::default();
        closed.set(&names(&["g1"]), 0, 0);
        closed.set(&names(&["g1", "b1"]), 5, 7);
        closed.set(&names(&["b1"]), 9, 11);
        closed.set(&names(&["b1", "g1"]), 12, 14);
        let expected = [
            ("b1".to_owned(), std::iter::once(7..20).collect()),
            ("g1".to_owned(), vec![0..9, 14..20]),
        ];
        assert_eq!(closed.windows(20), expected.into());
    }
}
