//! Health of one backend: what its checks observed -> `Starting`, `Up` or `Down`, and whether it is dead.
//!
//! | check | asked | decides |
//! |---|---|---|
//! | startup | first, alone, until its first success | when the others begin |
//! | readiness | then, for ever | whether the backend takes new flows |
//! | liveness | then, for ever | whether it is dead: refused, timed out or unreachable |
//!
//! Without a readiness check the liveness check's successes decide in its place; with neither, startup's; with none at
//! all a backend is up. A dead backend is always down. Health is only what is observed; what the operator wants, and
//! what becomes of flows, is decided elsewhere.
//!
//! Time is in here only as the order of observations, so there is no `now`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::spec::{HealthSpec, ProbeSpec};

/// Whether a backend takes new flows, as far as its health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not known yet; takes none.
    Starting,
    /// Takes new flows.
    Up,
    /// Takes none.
    Down,
}

/// One of a backend's checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// Asked until its first success.
    Startup,
    /// Decides whether the backend takes new flows.
    Readiness,
    /// Decides whether it is dead.
    Liveness,
    /// Asks what the backend says for itself.
    Agent,
}

/// How a probe failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// The connection was refused: the machine is there, nothing listens.
    Refused,
    /// No connection, or no answer, in time.
    Timeout,
    /// The network says that the machine cannot be reached (no answer to address resolution, or an ICMP error).
    Unreachable,
    /// An HTTP status outside 200 to 399.
    Status(u16),
    /// Anything else: an answer that is not HTTP, a connection cut off, an error of this node.
    Other,
}

impl FailureKind {
    /// Nobody is there to answer. The other failures are answers, if bad ones, or say nothing about the backend.
    pub fn is_silence(self) -> bool {
        matches!(self, Self::Refused | Self::Timeout | Self::Unreachable)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Timeout => f.write_str("timed out"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Status(status) => write!(f, "answered {status}"),
            Self::Other => f.write_str("failed"),
        }
    }
}

/// Result of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// As it should be.
    Success,
    /// Not so.
    Failure(FailureKind),
}

impl Observation {
    /// Nobody answered.
    pub fn is_silence(self) -> bool {
        matches!(self, Self::Failure(kind) if kind.is_silence())
    }
}

/// Why a state changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// No check is configured.
    Unchecked,
    /// So many consecutive probes of a check succeeded.
    Succeeded {
        /// The check.
        check: Check,
        /// Consecutive successes.
        probes: u32,
    },
    /// So many consecutive probes of a liveness check were answered, if not all as they should be.
    Answered {
        /// Consecutive answers.
        probes: u32,
    },
    /// The backend's agent said so.
    Said {
        /// Its word.
        word: String,
        /// What it said behind a `#`.
        note: Option<String>,
    },
    /// Consecutive probes of a check failed.
    Failed {
        /// The check.
        check: Check,
        /// How often in which way, in the order of the kinds; never empty.
        failures: Vec<(FailureKind, u32)>,
    },
}

impl Cause {
    /// Whether nobody answered.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Failed { failures, .. } if failures.iter().all(|(kind, _)| kind.is_silence()))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchecked => f.write_str("no health check"),
            Self::Succeeded { check, probes } => {
                write!(f, "{check}: {} succeeded", Probes(*probes))
            }
            Self::Answered { probes } => {
                write!(f, "{}: {} answered", Check::Liveness, Probes(*probes))
            }
            Self::Said { word, note } => match note {
                None => write!(f, "{}: says {word}", Check::Agent),
                Some(note) => write!(f, "{}: says {word} ({note})", Check::Agent),
            },
            Self::Failed { check, failures } => match failures.as_slice() {
                // "1 probe failed (1 failed)" would say nothing more.
                [(kind, probes)] => write!(f, "{check}: {} {kind}", Probes(*probes)),
                several => {
                    let total = several.iter().map(|(_, probes)| probes).sum();
                    write!(f, "{check}: {} failed (", Probes(total))?;
                    for (place, (kind, probes)) in several.iter().enumerate() {
                        let separator = if place == 0 { "" } else { ", " };
                        write!(f, "{separator}{probes} {kind}")?;
                    }
                    f.write_str(")")
                }
            },
        }
    }
}

/// A number of probes, in words.
struct Probes(u32);

impl fmt::Display for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.0,
            if self.0 == 1 { "probe" } else { "probes" }
        )
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
            Self::Agent => "agent",
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// A change of a backend's health. `from == to` when only `dead` changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChange {
    /// Health before.
    pub from: Health,
    /// Health from now on.
    pub to: Health,
    /// Whether the backend is dead from now on: its flows have nobody to talk to. Implies that `to` is `Down`.
    pub dead: bool,
    /// Why.
    pub cause: Cause,
}

/// Health of one backend and the observations that count towards its next change.
#[derive(Debug, Clone)]
pub struct HealthState {
    spec: Arc<HealthSpec>,
    started: bool,
    startup: RiseFall,
    /// Whether probes of the deciding check succeed.
    ready: RiseFall,
    /// Whether probes of the liveness check are answered.
    alive: RiseFall,
    /// Its agent said that it does not work, and has not said since that it does.
    says_down: bool,
}

impl HealthState {
    /// A backend nothing has been observed of. Without any check it is up from the start; see [`Self::unchecked`].
    pub fn new(spec: Arc<HealthSpec>) -> Self {
        Self {
            started: spec.startup.is_none(),
            spec,
            startup: RiseFall::default(),
            ready: RiseFall::default(),
            alive: RiseFall::default(),
            says_down: false,
        }
    }

    /// The change to tell of a backend without checks, which no observation will ever bring about. An agent is none of
    /// them: it may say that a backend does not work, and nothing is known from its silence.
    pub fn unchecked(&self) -> Option<HealthChange> {
        let HealthSpec {
            startup,
            readiness,
            liveness,
            agent: _,
        } = &*self.spec;
        let checks = [startup, readiness, liveness];
        checks
            .iter()
            .all(|check| check.is_none())
            .then_some(HealthChange {
                from: Health::Starting,
                to: Health::Up,
                dead: false,
                cause: Cause::Unchecked,
            })
    }

    /// The checks to be made now: startup, then readiness and liveness, and always the agent; as far as configured.
    pub fn checks(&self) -> Vec<Check> {
        let candidates: &[Check] = if self.started {
            &[Check::Readiness, Check::Liveness, Check::Agent]
        } else {
            &[Check::Startup, Check::Agent]
        };
        candidates
            .iter()
            .copied()
            .filter(|check| self.spec_of(*check).is_some())
            .collect()
    }

    /// How a check is made; `None` when it is not configured.
    pub fn spec_of(&self, check: Check) -> Option<&ProbeSpec> {
        match check {
            Check::Startup => self.spec.startup.as_ref(),
            Check::Readiness => self.spec.readiness.as_ref(),
            Check::Liveness => self.spec.liveness.as_ref(),
            Check::Agent => self.spec.agent.as_ref(),
        }
    }

    /// Health now.
    pub fn health(&self) -> Health {
        if !self.started {
            return if self.startup.verdict == Some(false) {
                Health::Down
            } else {
                Health::Starting
            };
        }
        if self.dead() || self.says_down {
            return Health::Down;
        }
        if self.decider().is_none() {
            return Health::Up;
        }
        match self.ready.verdict {
            None => Health::Starting,
            Some(true) => Health::Up,
            Some(false) => Health::Down,
        }
    }

    /// Whether the backend is dead.
    pub fn dead(&self) -> bool {
        self.alive.verdict == Some(false)
    }

    /// Takes an observation into account; the change it brings, if any.
    ///
    /// An observation of a check that is not to be made now (a startup probe that was under way when another one
    /// succeeded) is ignored.
    pub fn observe(&mut self, check: Check, observation: Observation) -> Option<HealthChange> {
        let spec = self.spec_of(check)?;
        let (rise, fall) = (spec.rise.max(1), spec.fall.max(1));
        if (check == Check::Startup) == self.started || check == Check::Agent {
            return None;
        }
        let (from, was_dead) = (self.health(), self.dead());
        let cause = match check {
            Check::Startup => {
                // The first success ends it, whatever `rise` says of checks that go on.
                let cause = self.startup.count(check, observation, 1, fall);
                self.started = self.startup.verdict == Some(true);
                cause
            }
            Check::Readiness => self.ready.count(check, observation, rise, fall),
            Check::Liveness => {
                let alive = self.alive.count_answers(observation, rise, fall);
                let decides = self.decider() == Some(Check::Liveness);
                let ready = if decides {
                    self.ready.count(check, observation, rise, fall)
                } else {
                    None
                };
                ready.or(alive)
            }
            Check::Agent => None,
        };
        let (to, dead) = (self.health(), self.dead());
        if (from, was_dead) == (to, dead) {
            return None;
        }
        Some(HealthChange {
            from,
            to,
            dead,
            cause: cause?,
        })
    }

    /// Takes into account that the backend's agent says whether it works; the change it brings, if any.
    pub fn hear(&mut self, works: bool, word: &str, note: Option<&str>) -> Option<HealthChange> {
        let from = self.health();
        self.says_down = !works;
        let to = self.health();
        (from != to).then(|| HealthChange {
            from,
            to,
            dead: self.dead(),
            cause: Cause::Said {
                word: word.to_owned(),
                note: note.map(str::to_owned),
            },
        })
    }

    /// Whether a check's answers are heard when they ask for something.
    pub fn is_heard(&self, check: Check) -> bool {
        match check {
            Check::Agent => true,
            Check::Startup => false,
            Check::Readiness | Check::Liveness => {
                self.decider() == Some(check) && self.spec.decider_speaks()
            }
        }
    }

    /// The check whose successes make a started backend up.
    fn decider(&self) -> Option<Check> {
        let candidates = [Check::Readiness, Check::Liveness];
        candidates
            .into_iter()
            .find(|check| self.spec_of(*check).is_some())
    }
}

/// A verdict that only enough consecutive results to the contrary overturn.
#[derive(Debug, Clone, Default)]
struct RiseFall {
    verdict: Option<bool>,
    good: u32,
    bad: BTreeMap<FailureKind, u32>,
}

impl RiseFall {
    /// Counts successes against failures; the cause when the verdict changed.
    fn count(
        &mut self,
        check: Check,
        observation: Observation,
        rise: u32,
        fall: u32,
    ) -> Option<Cause> {
        let failure = match observation {
            Observation::Success => None,
            Observation::Failure(kind) => Some(kind),
        };
        let verdict = self.push(failure, rise, fall)?;
        Some(if verdict {
            Cause::Succeeded {
                check,
                probes: self.good,
            }
        } else {
            self.failed(check)
        })
    }

    /// Counts answers against silence; the cause when the verdict changed.
    fn count_answers(&mut self, observation: Observation, rise: u32, fall: u32) -> Option<Cause> {
        let silence = match observation {
            Observation::Failure(kind) if observation.is_silence() => Some(kind),
            _ => None,
        };
        let verdict = self.push(silence, rise, fall)?;
        Some(if verdict {
            Cause::Answered { probes: self.good }
        } else {
            self.failed(Check::Liveness)
        })
    }

    fn failed(&self, check: Check) -> Cause {
        Cause::Failed {
            check,
            failures: self
                .bad
                .iter()
                .map(|(kind, probes)| (*kind, *probes))
                .collect(),
        }
    }

    /// The new verdict, when it changed.
    fn push(&mut self, failure: Option<FailureKind>, rise: u32, fall: u32) -> Option<bool> {
        let (reached, verdict) = match failure {
            None => {
                self.bad.clear();
                self.good = self.good.saturating_add(1);
                (self.good >= rise, true)
            }
            Some(kind) => {
                self.good = 0;
                // Past the threshold nothing is learned from counting on.
                if self.bad.values().sum::<u32>() < fall {
                    *self.bad.entry(kind).or_insert(0) += 1;
                }
                (self.bad.values().sum::<u32>() >= fall, false)
            }
        };
        if !reached || self.verdict == Some(verdict) {
            return None;
        }
        self.verdict = Some(verdict);
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::model::spec::ProbeKind;

    const OK: Observation = Observation::Success;
    const REFUSED: Observation = Observation::Failure(FailureKind::Refused);
    const TIMEOUT: Observation = Observation::Failure(FailureKind::Timeout);
    const BUSY: Observation = Observation::Failure(FailureKind::Status(503));

    fn probe(rise: u32, fall: u32) -> Option<ProbeSpec> {
        Some(ProbeSpec {
            kind: ProbeKind::Tcp,
            port: None,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise,
            fall,
        })
    }

    fn state(
        startup: Option<ProbeSpec>,
        readiness: Option<ProbeSpec>,
        liveness: Option<ProbeSpec>,
    ) -> HealthState {
        HealthState::new(Arc::new(HealthSpec {
            startup,
            readiness,
            liveness,
            agent: None,
        }))
    }

    /// Feeds observations of one check and lists the changes: after which, to what, dead, why.
    fn changes(
        state: &mut HealthState,
        check: Check,
        observations: &[Observation],
    ) -> Vec<(usize, Health, bool, String)> {
        let feed = observations.iter().enumerate();
        feed.filter_map(|(place, observation)| {
            let change = state.observe(check, *observation)?;
            Some((place + 1, change.to, change.dead, change.cause.to_string()))
        })
        .collect()
    }

    fn row(after: usize, to: Health, dead: bool, why: &str) -> (usize, Health, bool, String) {
        (after, to, dead, why.to_owned())
    }

    #[test]
    fn readiness_rises_and_falls() {
        let mut state = state(None, probe(2, 3), None);
        assert_eq!(state.checks(), [Check::Readiness]);
        let observations = [
            OK, REFUSED, OK, OK, REFUSED, REFUSED, OK, REFUSED, TIMEOUT, BUSY, REFUSED, OK, OK,
        ];
        let expected = [
            row(4, Health::Up, false, "readiness: 2 probes succeeded"),
            row(
                10,
                Health::Down,
                false,
                "readiness: 3 probes failed (1 refused, 1 timed out, 1 answered 503)",
            ),
            row(13, Health::Up, false, "readiness: 2 probes succeeded"),
        ];
        assert_eq!(
            changes(&mut state, Check::Readiness, &observations),
            expected
        );
    }

    #[test]
    fn the_cause_reads_well() {
        let mut state = state(None, probe(1, 3), None);
        let told = changes(
            &mut state,
            Check::Readiness,
            &[REFUSED, REFUSED, REFUSED, OK],
        );
        let expected = [
            row(3, Health::Down, false, "readiness: 3 probes refused"),
            row(4, Health::Up, false, "readiness: 1 probe succeeded"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn startup_comes_first_and_alone_and_its_first_success_ends_it() {
        let mut state = state(probe(5, 2), probe(1, 1), probe(1, 1));
        assert_eq!(state.checks(), [Check::Startup]);
        assert_eq!(state.observe(Check::Readiness, OK), None, "not its turn");
        assert_eq!(
            state.observe(Check::Liveness, REFUSED),
            None,
            "not its turn"
        );
        let told = changes(&mut state, Check::Startup, &[REFUSED, REFUSED, REFUSED, OK]);
        let expected = [
            row(2, Health::Down, false, "startup: 2 probes refused"),
            row(4, Health::Starting, false, "startup: 1 probe succeeded"),
        ];
        assert_eq!(told, expected);
        assert_eq!(state.checks(), [Check::Readiness, Check::Liveness]);
        assert_eq!(
            state.observe(Check::Startup, REFUSED),
            None,
            "its turn is over"
        );
        assert_eq!(state.observe(Check::Readiness, OK).unwrap().to, Health::Up);
    }

    #[test]
    fn startup_alone_makes_up() {
        let mut state = state(probe(1, 30), None, None);
        let told = changes(&mut state, Check::Startup, &[REFUSED, OK]);
        assert_eq!(
            told,
            [row(2, Health::Up, false, "startup: 1 probe succeeded")]
        );
        assert_eq!(state.checks(), []);
    }

    #[test]
    fn no_check_is_up() {
        let state = state(None, None, None);
        let change = state.unchecked().unwrap();
        assert_eq!(
            (change.to, state.health(), state.dead()),
            (Health::Up, Health::Up, false)
        );
        assert_eq!(
            super::HealthState::new(Arc::new(HealthSpec {
                startup: None,
                readiness: probe(1, 1),
                liveness: None,
                agent: None
            }))
            .unchecked(),
            None
        );
    }

    #[test]
    fn silence_kills_and_answers_of_any_kind_revive() {
        let mut state = state(None, probe(1, 1), probe(2, 3));
        assert_eq!(state.observe(Check::Readiness, OK).unwrap().to, Health::Up);
        let told = changes(
            &mut state,
            Check::Liveness,
            &[
                OK, BUSY, BUSY, BUSY, BUSY, REFUSED, TIMEOUT, BUSY, REFUSED, TIMEOUT, REFUSED,
            ],
        );
        let expected = [row(
            11,
            Health::Down,
            true,
            "liveness: 3 probes failed (2 refused, 1 timed out)",
        )];
        assert_eq!(told, expected, "a backend that answers 503 is not dead");
        let told = changes(&mut state, Check::Liveness, &[OK, TIMEOUT, BUSY, OK]);
        assert_eq!(
            told,
            [row(4, Health::Up, false, "liveness: 2 probes answered")],
            "ready all the time"
        );
    }

    #[test]
    fn dead_is_told_also_when_down_already() {
        let mut state = state(None, probe(1, 1), probe(1, 2));
        assert_eq!(
            state.observe(Check::Readiness, REFUSED).unwrap().to,
            Health::Down
        );
        assert_eq!(state.observe(Check::Liveness, REFUSED), None);
        let change = state.observe(Check::Liveness, REFUSED).unwrap();
        assert_eq!(
            (change.from, change.to, change.dead),
            (Health::Down, Health::Down, true)
        );
        assert_eq!(state.observe(Check::Readiness, OK), None, "dead stays down");
        let change = state.observe(Check::Liveness, OK).unwrap();
        assert_eq!(
            (change.from, change.to, change.dead),
            (Health::Down, Health::Up, false)
        );
    }

    #[test]
    fn an_agent_that_says_down_is_believed_until_it_says_up() {
        let mut state = state(None, probe(1, 1), None);
        assert!(state.observe(Check::Readiness, OK).is_some());
        let down = state.hear(false, "stopped", Some("upgrade")).unwrap();
        assert_eq!(
            (down.from, down.to, down.dead),
            (Health::Up, Health::Down, false)
        );
        assert_eq!(down.cause.to_string(), "agent: says stopped (upgrade)");
        assert_eq!(state.hear(false, "down", None), None, "it is down already");
        assert_eq!(
            state.observe(Check::Readiness, OK),
            None,
            "the word outweighs it"
        );
        assert_eq!(state.hear(true, "up", None).unwrap().to, Health::Up);
        state.observe(Check::Readiness, BUSY);
        assert_eq!(
            state.hear(true, "up", None),
            None,
            "the word does not make it up"
        );
    }

    #[test]
    fn without_readiness_liveness_decides_both() {
        let mut state = state(None, None, probe(2, 2));
        let told = changes(
            &mut state,
            Check::Liveness,
            &[OK, OK, BUSY, BUSY, TIMEOUT, TIMEOUT, BUSY, BUSY, OK, OK],
        );
        let expected = [
            row(2, Health::Up, false, "liveness: 2 probes succeeded"),
            row(4, Health::Down, false, "liveness: 2 probes answered 503"),
            row(6, Health::Down, true, "liveness: 2 probes timed out"),
            row(8, Health::Down, false, "liveness: 2 probes answered"),
            row(10, Health::Up, false, "liveness: 2 probes succeeded"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_threshold_of_zero_counts_as_one() {
        let mut state = state(None, probe(0, 0), None);
        assert_eq!(state.observe(Check::Readiness, OK).unwrap().to, Health::Up);
        assert_eq!(
            state.observe(Check::Readiness, REFUSED).unwrap().to,
            Health::Down
        );
    }

    fn observation() -> impl Strategy<Value = Observation> {
        prop_oneof![4 => Just(OK), 2 => Just(REFUSED), 2 => Just(TIMEOUT), 1 => Just(BUSY),
                    1 => Just(Observation::Failure(FailureKind::Other))]
    }

    fn optional_probe() -> impl Strategy<Value = Option<ProbeSpec>> {
        prop_oneof![
            Just(None),
            (1u32..5, 1u32..5).prop_map(|(rise, fall)| probe(rise, fall))
        ]
    }

    proptest! {
        /// The verdict is exactly what the last `rise` or `fall` results say, kept while they say nothing.
        #[test]
        fn readiness_follows_the_last_results(
            rise in 1u32..6, fall in 1u32..6, observations in prop::collection::vec(observation(), 0..80),
        ) {
            let mut state = state(None, probe(rise, fall), None);
            let mut expected = Health::Starting;
            for end in 1..=observations.len() {
                let seen = &observations[..end];
                let last = |count: u32| seen.len().checked_sub(count as usize).map(|start| &seen[start..]);
                let all = |count, good| last(count).is_some_and(|seen| seen.iter().all(|one| (*one == OK) == good));
                let before = expected;
                if all(rise, true) {
                    expected = Health::Up;
                } else if all(fall, false) {
                    expected = Health::Down;
                }
                let change = state.observe(Check::Readiness, seen[end - 1]);
                prop_assert_eq!(state.health(), expected);
                prop_assert_eq!(change.map(|change| (change.from, change.to)), (before != expected).then_some((before, expected)));
            }
        }

        /// Over any configuration and any interleaving: changes chain, are told exactly when something changed, the
        /// dead are down, only silence past the threshold kills, and every cause names enough probes.
        #[test]
        fn changes_chain_and_have_causes(
            startup in optional_probe(), readiness in optional_probe(), liveness in optional_probe(),
            feed in prop::collection::vec((0usize..3, observation()), 0..200),
        ) {
            let mut state = state(startup, readiness, liveness.clone());
            let (mut health, mut dead, mut silences) = (state.health(), state.dead(), 0u32);
            for (which, observation) in feed {
                let check = [Check::Startup, Check::Readiness, Check::Liveness][which];
                let asked = state.checks().contains(&check);
                if check == Check::Liveness && asked {
                    silences = if observation.is_silence() { silences + 1 } else { 0 };
                }
                let spec = state.spec_of(check).cloned();
                match state.observe(check, observation) {
                    None => prop_assert_eq!((state.health(), state.dead()), (health, dead)),
                    Some(change) => {
                        prop_assert!(asked);
                        prop_assert_eq!(change.from, health);
                        prop_assert!((change.to, change.dead) != (health, dead));
                        prop_assert_eq!((change.to, change.dead), (state.health(), state.dead()));
                        let spec = spec.unwrap();
                        match &change.cause {
                            Cause::Unchecked | Cause::Said { .. } => prop_assert!(false),
                            Cause::Succeeded { check: Check::Startup, probes } => prop_assert_eq!(*probes, 1),
                            Cause::Succeeded { probes, .. } | Cause::Answered { probes } => {
                                prop_assert!(*probes >= spec.rise);
                            }
                            Cause::Failed { failures, .. } => {
                                prop_assert_eq!(failures.iter().map(|(_, probes)| probes).sum::<u32>(), spec.fall);
                            }
                        }
                    }
                }
                if state.dead() && !dead {
                    prop_assert!(silences >= liveness.as_ref().unwrap().fall);
                }
                (health, dead) = (state.health(), state.dead());
                prop_assert!(!dead || health == Health::Down);
            }
        }
    }
}
