//! What backends say for themselves: the words of an agent's line, and what follows from what a backend asks for.
//!
//! A backend asks for a drain, or for nothing, in the answers to its checks. What it asks for is a state, not an event: it
//! is compared with the backend's own state at every change and tick, so a drain that had to be refused is begun as
//! soon as it can be, and after a restart of the daemon nothing depends on what was heard before.
//!
//! | backend asks for | state | what follows |
//! |---|---|---|
//! | a drain | active | a drain of its own ([`By::Answer`]); below `min_available` it is refused and goes on being wanted |
//! | a drain | active, and an operator took its drain back | nothing, until it has asked for nothing |
//! | a drain | draining or drained | nothing |
//! | nothing | draining or drained by its own answer | it is active again |
//! | nothing | draining or drained by anybody else | nothing |

use std::collections::BTreeMap;

use super::{
    command::Target,
    compose,
    drain::{Admin, By},
    observed::Observed,
    spec::HealthSpec,
    state::{Backend, Service, State},
};

/// What a backend asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// To be drained.
    Drain,
    /// Nothing: to be treated as any other.
    Ready,
}

impl Wish {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Ready => "ready",
        }
    }
}

/// Most bytes of an agent's line that are read, its end included.
pub const LINE_MAX: usize = 1024;

/// Words of a line that are not known and are remembered of it.
const UNKNOWN_MAX: usize = 4;

/// Longest word that is remembered, in characters.
const WORD_MAX: usize = 32;

/// What one line of an agent says. What it does not mention stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line {
    /// What is asked for: the last such word.
    pub wish: Option<Wish>,
    /// Whether the backend works, and the word that says so: the last such word.
    pub works: Option<(bool, &'static str)>,
    /// What stands behind a `#`, for people.
    pub note: Option<String>,
    /// Words that mean nothing here, the first few of them.
    pub unknown: Vec<String>,
}

/// Reads an agent's line: words with spaces, tabs or commas in between, up to the first end of line; what follows a `#` is a
/// note. Case does not matter. The words are those of HAProxy's agent-check.
///
/// | word | means |
/// |---|---|
/// | `drain`, `maint` | the backend asks to be drained |
/// | `ready` | it no longer does |
/// | `up` | it works |
/// | `down`, `stopped`, `fail`, `failed` | it does not: no new flows |
///
/// `NN%` and `maxconn:N` are for proxies that count connections or can shift weights at will; they are not known here.
pub fn line(bytes: &[u8]) -> Line {
    let end = bytes
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n' | 0));
    let text = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
    let (words, note) = match text.split_once('#') {
        Some((words, note)) => (words, Some(note.trim())),
        None => (&*text, None),
    };
    let mut line = Line {
        note: note
            .filter(|note| !note.is_empty())
            .map(|note| note.chars().take(2 * WORD_MAX).collect()),
        ..Line::default()
    };
    let between = |c: char| c.is_whitespace() || c == ',';
    for word in words.split(between).filter(|word| !word.is_empty()) {
        line.take_in(&word.to_ascii_lowercase());
    }
    line
}

impl Line {
    fn take_in(&mut self, word: &str) {
        match word {
            "drain" | "maint" => self.wish = Some(Wish::Drain),
            "ready" => self.wish = Some(Wish::Ready),
            "up" => self.works = Some((true, "up")),
            "down" => self.works = Some((false, "down")),
            "stopped" => self.works = Some((false, "stopped")),
            "fail" | "failed" => self.works = Some((false, "failed")),
            other if self.unknown.len() < UNKNOWN_MAX => {
                self.unknown.push(other.chars().take(WORD_MAX).collect());
            }
            _ => {}
        }
    }
}

/// What has been heard of a backend since the daemon began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// What it asks for; `None` before its first answer.
    pub wish: Option<Wish>,
    /// What went wrong with that, if anything ever did: there may be ten thousand backends that ask for nothing.
    pub troubles: Option<Box<Troubles>>,
}

/// What went wrong with what a backend asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Troubles {
    /// Why what it asks for is not done.
    pub refused: Option<String>,
    /// Times that it began to be refused.
    pub refusals: u64,
    /// Lines with words that mean nothing here.
    pub not_understood: u64,
    /// The last such words.
    pub last_not_understood: String,
}

/// What follows from all that backends ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// To be drained: service and id.
    pub drain: Vec<(String, u32)>,
    /// To be active again.
    pub undrain: Vec<(String, u32)>,
    /// They ask for nothing any more, so their next drain is a new matter.
    pub forgiven: Vec<(String, u32)>,
    /// What they ask for cannot be: id and reason.
    pub refused: BTreeMap<u32, String>,
}

impl Due {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.drain.is_empty() && self.undrain.is_empty() && self.forgiven.is_empty()
    }
}

/// Whether a check of the service can say what a backend asks for.
pub const fn is_asked(health: &HealthSpec) -> bool {
    health.agent.is_some() || health.decider_speaks()
}

/// Works out what follows.
///
/// Of several that ask at once for a drain, as many are let go as `min_available` allows: in the order of their ids.
pub fn due(state: &State, observed: &Observed) -> Due {
    let mut due = Due::default();
    for (name, service) in &state.services {
        if !is_asked(&service.spec.health) {
            continue;
        }
        let pool = service.active_pool();
        let accepting = compose::accepting(service, observed, pool).count();
        let mut spare = accepting.saturating_sub(service.spec.min_available as usize);
        for (id, backend) in service.live_backends() {
            let heard = observed.heard.get(&id);
            let Some(wish) = heard.and_then(|heard| heard.wish) else {
                continue;
            };
            let key = || (name.clone(), id);
            match (wish, &backend.admin) {
                (Wish::Drain, Admin::Active) if !backend.overruled => {
                    if !takes_flows(service, observed, id, backend) {
                        due.drain.push(key());
                    } else if spare > 0 {
                        spare -= 1;
                        due.drain.push(key());
                    } else {
                        due.refused.insert(id, too_few(service, accepting));
                    }
                }
                (Wish::Ready, _) if is_own(backend) => due.undrain.push(key()),
                (Wish::Ready, _) if backend.overruled => due.forgiven.push(key()),
                _ => {}
            }
        }
    }
    due
}

/// Whether it is one of those that `min_available` counts.
fn takes_flows(service: &Service, observed: &Observed, id: u32, backend: &Backend) -> bool {
    backend.pool == service.active_pool()
        && backend.weight() > 0
        && compose::health(service, observed, id).is_up()
}

fn is_own(backend: &Backend) -> bool {
    backend.admin.drained_by() == Some(By::Answer) && !backend.leaving
}

fn too_few(service: &Service, accepting: usize) -> String {
    format!(
        "{accepting} backends of pool {} take new flows, min_available is {}",
        service.active_pool(),
        service.spec.min_available
    )
}

/// The backend that a key of [`Due`] means.
pub fn target<'a>(state: &'a State, (service, id): &(String, u32)) -> Option<Target<'a>> {
    let (name, service) = state.services.get_key_value(service)?;
    let backend = service.backends.get(id)?;
    Some(Target {
        name,
        service,
        id: *id,
        backend,
    })
}

#[cfg(test)]
mod tests;
