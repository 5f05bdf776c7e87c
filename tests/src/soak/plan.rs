//! What happens next, chosen by a seeded generator from what is possible.

use std::{collections::BTreeMap, fmt};

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

/// A backend as the daemon shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// `active`, `draining`, `drained`...
    pub admin: String,
    /// Its weight.
    pub weight: u64,
    /// It is healthy.
    pub is_up: bool,
    /// Flows it has.
    pub flows: u64,
}

impl Backend {
    /// New connections may go to it, if its pool takes them and it is up.
    pub fn is_wanted(&self) -> bool {
        self.admin == "active" && self.weight > 0
    }
}

/// All that a choice is made from.
#[derive(Debug, Clone)]
pub struct View {
    /// Backends of the service by name.
    pub backends: BTreeMap<String, Backend>,
    /// Backends that were taken out of the service.
    pub removed: Vec<String>,
    /// The pool that takes new flows.
    pub active_pool: String,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A command, after `ebb`; the daemon is killed so many milliseconds after its beginning.
    Command(Command, Option<u64>),
    /// A fault.
    Fault(Fault),
}

/// A command of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `drain`, deadline in seconds; whether its flows are reset then or left; percent of its users that leave before.
    Drain(String, u64, bool, u8),
    /// `undrain`.
    Undrain(String),
    /// `weight`, or `default`.
    Weight(String, Option<u64>),
    /// `maintenance`.
    Maintenance(String),
    /// `activate`.
    Activate(String),
    /// `remove`.
    Remove(String),
    /// `add`.
    Add(String),
    /// `switch`.
    Switch(String),
    /// `reload` of the same file.
    Reload,
}

/// A fault, with how long it lasts in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the daemon.
    DaemonKilled(u64),
    /// The daemon stands still (SIGSTOP).
    DaemonStopped(u64),
    /// A backend's server is killed, and started again.
    ServerKilled(String, u64),
    /// A backend's server answers health checks with 503.
    Unready(String, u64),
    /// The balancer's kernel forgets its neighbours' MAC addresses.
    NeighboursForgotten,
    /// Flow table and handshake table are emptied.
    TablesLost,
}

impl Fault {
    /// Its kind, in summaries.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::DaemonKilled(_) => "daemon killed",
            Self::DaemonStopped(_) => "daemon stopped",
            Self::ServerKilled(..) => "server killed",
            Self::Unready(..) => "server unready",
            Self::NeighboursForgotten => "neighbours forgotten",
            Self::TablesLost => "tables lost",
        }
    }
}

impl Command {
    /// Its kind, in summaries.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Drain(..) => "drain",
            Self::Undrain(_) => "undrain",
            Self::Weight(..) => "weight",
            Self::Maintenance(_) => "maintenance",
            Self::Activate(_) => "activate",
            Self::Remove(_) => "remove",
            Self::Add(_) => "add",
            Self::Switch(_) => "switch",
            Self::Reload => "reload",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(command, None) => command.fmt(f),
            Self::Command(command, Some(ms)) => {
                write!(f, "{command}; daemon killed {ms} ms after its beginning")
            }
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain(name, seconds, reset, leave) => {
                let then = if *reset { "reset" } else { "leave" };
                write!(
                    f,
                    "drain web/{name}, deadline {seconds} s ({then}), {leave} % of its users leave before"
                )
            }
            Self::Undrain(name) => write!(f, "undrain web/{name}"),
            Self::Weight(name, Some(weight)) => write!(f, "weight web/{name} {weight}"),
            Self::Weight(name, None) => write!(f, "weight web/{name} default"),
            Self::Maintenance(name) => write!(f, "maintenance web/{name}"),
            Self::Activate(name) => write!(f, "activate web/{name}"),
            Self::Remove(name) => write!(f, "remove web/{name}"),
            Self::Add(name) => write!(f, "add web/{}/{name}", pool_of(name)),
            Self::Switch(pool) => write!(f, "switch web {pool}"),
            Self::Reload => f.write_str("reload"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DaemonKilled(ms) => write!(f, "fault: kill -9 of the daemon, back after {ms} ms"),
            Self::DaemonStopped(ms) => write!(f, "fault: daemon stopped for {ms} ms"),
            Self::ServerKilled(name, ms) => {
                write!(f, "fault: server {name} killed, back after {ms} ms")
            }
            Self::Unready(name, ms) => write!(f, "fault: {name} unready for {ms} ms"),
            Self::NeighboursForgotten => f.write_str("fault: neighbours forgotten"),
            Self::TablesLost => f.write_str("fault: flow and handshake table lost"),
        }
    }
}

/// The pool that a backend belongs to.
pub fn pool_of(name: &str) -> &'static str {
    if name.starts_with('b') {
        "blue"
    } else {
        "green"
    }
}

/// The next step.
pub fn next(view: &View, lose_tables: bool, random: &mut SmallRng) -> Step {
    if random.random_bool(0.25) {
        return Step::Fault(fault(view, lose_tables, random));
    }
    let possible = commands(view, random);
    let command = possible.choose(random).cloned().unwrap_or(Command::Reload);
    let killed = random.random_bool(0.15).then(|| random.random_range(0..40));
    Step::Command(command, killed)
}

/// Backends that would still take new flows in `pool` without `name`.
fn others(view: &View, pool: &str, name: &str) -> usize {
    let fits = |(other, backend): &(&String, &Backend)| {
        pool_of(other) == pool && *other != name && backend.is_wanted() && backend.is_up
    };
    view.backends.iter().filter(fits).count()
}

/// One of each kind that can be done, drains more often.
fn commands(view: &View, random: &mut SmallRng) -> Vec<Command> {
    let mut possible = Vec::new();
    let with_admin = |wanted: &[&str]| -> Vec<&String> {
        let fits = |(_, backend): &(&String, &Backend)| wanted.contains(&&*backend.admin);
        view.backends
            .iter()
            .filter(fits)
            .map(|(name, _)| name)
            .collect()
    };
    for _ in 0..3 {
        if let Some(name) = with_admin(&["active", "maintenance"]).choose(random) {
            // Of the pool in the background all may go, but somebody must be there for a switch.
            if others(view, pool_of(name), name) > 0 {
                possible.push(Command::Drain(
                    (*name).clone(),
                    random.random_range(2..12),
                    random.random_bool(0.6),
                    random.random_range(20..=100),
                ));
            }
        }
    }
    if let Some(name) = with_admin(&["draining", "drained"]).choose(random) {
        possible.push(Command::Undrain((*name).clone()));
    }
    possible.extend(by_hand(view, random));
    let empty: Vec<_> = with_admin(&["drained"])
        .into_iter()
        .filter(|name| {
            view.backends
                .get(*name)
                .is_some_and(|found| found.flows == 0)
        })
        .collect();
    if let Some(name) = empty.choose(random) {
        possible.push(Command::Remove((*name).clone()));
    }
    if let Some(name) = view.removed.choose(random) {
        possible.push(Command::Add(name.clone()));
    }
    let other = if view.active_pool == "blue" {
        "green"
    } else {
        "blue"
    };
    if others(view, other, "") > 0 {
        possible.push(Command::Switch(other.to_owned()));
    }
    // A file read again brings back what was removed by hand, which is another change than this.
    if view.removed.is_empty() {
        possible.push(Command::Reload);
    }
    possible
}

/// A weight, maintenance and its end.
fn by_hand(view: &View, random: &mut SmallRng) -> Vec<Command> {
    let mut possible = Vec::new();
    let names: Vec<&String> = view.backends.keys().collect();
    if let Some(name) = names.choose(random) {
        let weight = [None, Some(0), Some(1), Some(3), Some(10)][random.random_range(0..5)];
        // As with drains somebody must be left.
        if weight != Some(0) || others(view, pool_of(name), name) > 0 {
            possible.push(Command::Weight((*name).clone(), weight));
        }
    }
    if let Some(name) = names.choose(random)
        && others(view, pool_of(name), name) > 0
    {
        possible.push(Command::Maintenance((*name).clone()));
    }
    let aside = view.backends.iter();
    let aside = aside.filter(|(_, backend)| backend.admin != "active");
    let aside: Vec<&String> = aside.map(|(name, _)| name).collect();
    if let Some(name) = aside.choose(random) {
        possible.push(Command::Activate((*name).clone()));
    }
    possible
}

fn fault(view: &View, lose_tables: bool, random: &mut SmallRng) -> Fault {
    // Who asks for it wants to see it in minutes.
    if lose_tables && random.random_bool(0.5) {
        return Fault::TablesLost;
    }
    let ms = random.random_range(100..2000);
    // Somebody else must be there for those that come meanwhile.
    let spared: Vec<&String> = view
        .backends
        .iter()
        .filter(|(name, backend)| backend.is_up && others(view, &view.active_pool, name) > 0)
        .map(|(name, _)| name)
        .collect();
    match (random.random_range(0..10), spared.choose(random)) {
        (0..=2, _) => Fault::DaemonKilled(ms),
        (3..=4, _) => Fault::DaemonStopped(ms),
        (5, Some(name)) => Fault::ServerKilled((*name).clone(), ms + 2000),
        (6..=7, Some(name)) => Fault::Unready((*name).clone(), ms + 2000),
        _ => Fault::NeighboursForgotten,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn view(of: &[(&str, &str)]) -> View {
        let backend = |admin: &str| Backend {
            admin: admin.to_owned(),
            weight: 1,
            is_up: true,
            flows: 0,
        };
        View {
            backends: of
                .iter()
                .map(|(name, admin)| ((*name).to_owned(), backend(admin)))
                .collect(),
            removed: Vec::new(),
            active_pool: "blue".into(),
        }
    }

    #[test]
    fn the_same_seed_chooses_the_same() {
        let view = view(&[
            ("b1", "active"),
            ("b2", "draining"),
            ("b3", "active"),
            ("g1", "active"),
        ]);
        let run = |seed| {
            let mut random = SmallRng::seed_from_u64(seed);
            let steps: Vec<Step> = (0..50).map(|_| next(&view, true, &mut random)).collect();
            steps
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn the_last_of_a_pool_is_left_alone() {
        let view = view(&[("b1", "active"), ("b2", "drained"), ("g1", "drained")]);
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..2000 {
            let step = next(&view, true, &mut random);
            let hurts = match &step {
                Step::Command(Command::Switch(_), _) => true,
                Step::Command(
                    Command::Drain(name, ..)
                    | Command::Weight(name, Some(0))
                    | Command::Maintenance(name),
                    _,
                ) => name == "b1" || name == "g1",
                Step::Fault(Fault::ServerKilled(name, _) | Fault::Unready(name, _)) => name == "b1",
                _ => false,
            };
            assert!(!hurts, "{step}");
        }
    }

    #[test]
    fn tables_are_lost_only_when_asked_for() {
        let view = view(&[("b1", "active"), ("b2", "active")]);
        let losses = |wanted| {
            let mut random = SmallRng::seed_from_u64(3);
            let steps = (0..2000).map(|_| next(&view, wanted, &mut random));
            steps
                .filter(|step| *step == Step::Fault(Fault::TablesLost))
                .count()
        };
        assert_eq!(losses(false), 0);
        assert!(losses(true) > 0);
    }
}
