//! The task that makes the probes: it holds a little of every target, and a task of a probe's own only while that is
//! under way.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::sleep_until,
};

use super::{
    HealthEvent, SpeechEvent, Target, TargetKey,
    probe::{self, Found, Says},
    schedule,
    voice::{Said, Voice},
};
use crate::model::{
    health::{Check, Health, HealthChange, HealthState, Observation},
    spec::ProbeSpec,
};

/// A target's number; none is given twice.
pub type Number = u64;

/// Every check, in the order of their turns.
const CHECKS: [Check; 4] = [
    Check::Startup,
    Check::Readiness,
    Check::Liveness,
    Check::Agent,
];

/// What the driver is told.
#[derive(Debug)]
pub enum Order {
    /// Begin with a target.
    Begin(Number, Arc<TargetKey>, Target),
    /// Forget one, and its probes under way.
    Forget(Number),
    /// Probe one out of turn.
    Ask(Number),
}

/// Shortest time between the starts of two probes of a target that is silent, while it is to be known soon whether it
/// has died.
const SOON: Duration = Duration::from_millis(100);

/// A target.
struct Watched {
    key: Arc<TargetKey>,
    target: Target,
    state: HealthState,
    phase: u64,
    /// When the last probe began that was answered.
    answered: Option<Instant>,
    /// When it was asked out of turn; nothing has been heard since.
    asked: Option<Instant>,
    /// By [`Check`].
    turns: [Option<Turn>; CHECKS.len()],
    /// What it says for itself.
    voice: Voice,
}

/// Where a check stands.
enum Turn {
    /// Its next probe is due then.
    Due(Instant),
    /// A probe is under way.
    UnderWay(AbortHandle),
}

/// A probe under way.
struct UnderWay {
    number: Number,
    check: Check,
    due: Instant,
    began: Instant,
}

/// The driver's data.
pub struct Driver {
    orders: mpsc::UnboundedReceiver<Order>,
    events: mpsc::Sender<HealthEvent>,
    speech: mpsc::Sender<SpeechEvent>,
    answers: mpsc::UnboundedSender<TargetKey>,
    at_once: usize,
    epoch: Instant,
    targets: HashMap<Number, Box<Watched>>,
    /// What is due when, the earliest first.
    queue: BTreeSet<(Instant, Number, Check)>,
    probes: JoinSet<Option<Found>>,
    under_way: HashMap<Id, UnderWay>,
}

/// Nobody listens to what is found.
struct Unheard;

impl Driver {
    /// Without targets. At most `at_once` probes are under way at the same time.
    pub fn new(
        orders: mpsc::UnboundedReceiver<Order>,
        events: mpsc::Sender<HealthEvent>,
        speech: mpsc::Sender<SpeechEvent>,
        answers: mpsc::UnboundedSender<TargetKey>,
        at_once: usize,
    ) -> Self {
        Self {
            orders,
            events,
            speech,
            answers,
            at_once: at_once.max(1),
            epoch: Instant::now(),
            targets: HashMap::new(),
            queue: BTreeSet::new(),
            probes: JoinSet::new(),
            under_way: HashMap::new(),
        }
    }

    /// Runs until nobody can give orders any more, or nobody listens.
    pub async fn run(mut self) {
        loop {
            self.begin_due();
            let next = self.queue.first().map(|(due, _, _)| *due);
            let has_turn = self.under_way.len() < self.at_once;
            let now = Instant::now();
            let heard = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                Some(ended) = self.probes.join_next_with_id() => self.take_in(ended).await,
                () = sleep_until(next.unwrap_or(now).into()), if next.is_some() && has_turn => Ok(()),
            };
            if heard.is_err() {
                return;
            }
        }
    }

    /// Begins the probes that are due, as many as may be under way.
    fn begin_due(&mut self) {
        let now = Instant::now();
        while self.under_way.len() < self.at_once
            && let Some((due, number, check)) = self.queue.first().copied()
            && due <= now
        {
            self.queue.pop_first();
            self.begin(number, check, due);
        }
    }

    fn begin(&mut self, number: Number, check: Check, due: Instant) {
        let Some(watched) = self.targets.get_mut(&number) else {
            return;
        };
        let Some(spec) = watched.state.spec_of(check) else {
            return;
        };
        let under_way = UnderWay {
            number,
            check,
            due,
            began: Instant::now(),
        };
        let probe = self.probes.spawn(make(&watched.target, spec.clone()));
        self.under_way.insert(probe.id(), under_way);
        watched.set(check, Turn::UnderWay(probe));
    }

    async fn obey(&mut self, order: Order) -> Result<(), Unheard> {
        match order {
            Order::Begin(number, key, target) => {
                let watched = Watched {
                    phase: schedule::phase(&key.service, &key.backend),
                    state: HealthState::new(Arc::clone(&target.health)),
                    key,
                    target,
                    answered: None,
                    asked: None,
                    turns: [const { None }; CHECKS.len()],
                    voice: Voice::default(),
                };
                let unchecked = watched.state.unchecked();
                self.targets.insert(number, Box::new(watched));
                // Without checks there may be an agent to ask all the same.
                self.start(number);
                match unchecked {
                    Some(change) => self.tell(number, change).await,
                    None => Ok(()),
                }
            }
            Order::Ask(number) => {
                self.ask(number);
                Ok(())
            }
            Order::Forget(number) => {
                self.stop(number);
                self.targets.remove(&number);
                Ok(())
            }
        }
    }

    /// The first probe of every check to be made now is due at once.
    fn start(&mut self, number: Number) {
        let Some(watched) = self.targets.get_mut(&number) else {
            return;
        };
        let now = Instant::now();
        for check in watched.state.checks() {
            watched.set(check, Turn::Due(now));
            self.queue.insert((now, number, check));
        }
    }

    /// What is due is due now. A probe under way goes on, and says nothing about what is asked; the next one does.
    fn ask(&mut self, number: Number) {
        let Some(watched) = self.targets.get_mut(&number) else {
            return;
        };
        let now = Instant::now();
        watched.asked = Some(now);
        for check in watched.state.checks() {
            if let Some(Turn::Due(due)) = watched.turns[check as usize] {
                self.queue.remove(&(due, number, check));
                watched.set(check, Turn::Due(now));
                self.queue.insert((now, number, check));
            }
        }
    }

    /// Gives up what is due, and what is under way.
    fn stop(&mut self, number: Number) {
        let Some(watched) = self.targets.get_mut(&number) else {
            return;
        };
        for check in CHECKS {
            match watched.turns[check as usize].take() {
                None => {}
                Some(Turn::Due(due)) => {
                    self.queue.remove(&(due, number, check));
                }
                Some(Turn::UnderWay(probe)) => {
                    self.under_way.remove(&probe.id());
                    probe.abort();
                }
            }
        }
    }

    /// Takes in what a probe found, and says when the next one is due.
    async fn take_in(
        &mut self,
        ended: Result<(Id, Option<Found>), JoinError>,
    ) -> Result<(), Unheard> {
        let (id, found) = match ended {
            Ok(ended) => ended,
            // Given up, or broken: then it says nothing about the backend.
            Err(error) => (error.id(), None),
        };
        let Some(UnderWay {
            number,
            check,
            due,
            began,
        }) = self.under_way.remove(&id)
        else {
            return Ok(());
        };
        let Some(watched) = self.targets.get_mut(&number) else {
            return Ok(());
        };
        // An agent speaks for a backend that may be dead.
        let observation = found
            .as_ref()
            .map(|found| found.observation)
            .filter(|_| check != Check::Agent);
        if observation.is_some_and(|found| !found.is_silence()) {
            watched.answered = Some(began);
            if watched.asked.is_some_and(|asked| asked <= began) {
                watched.asked = None;
                self.answers
                    .send((*watched.key).clone())
                    .map_err(|_| Unheard)?;
            }
        }
        let before = watched.state.checks();
        let says = found
            .as_ref()
            .and_then(|found| found.says.clone())
            .filter(|_| watched.state.is_heard(check));
        let change = found.and_then(|found| watched.state.observe(check, found.observation));
        let (said, change) = watched.hear(check, says, change);
        if watched.state.checks() != before {
            watched.turns[check as usize] = None;
            self.stop(number);
            self.start(number);
        } else if let Some(spec) = watched.state.spec_of(check) {
            let (phase, period) = (watched.phase, spec.period);
            let next = if watched.is_urgent(check, observation) {
                Instant::now().max(began + SOON)
            } else {
                schedule::next(self.epoch, phase, period, due, Instant::now())
            };
            watched.set(check, Turn::Due(next));
            self.queue.insert((next, number, check));
        }
        if let Some(said) = said {
            self.pass_on(number, said).await?;
        }
        match change {
            Some(change) => self.tell(number, change).await,
            None => Ok(()),
        }
    }

    async fn pass_on(&self, number: Number, said: Said) -> Result<(), Unheard> {
        let Some(watched) = self.targets.get(&number) else {
            return Ok(());
        };
        let event = SpeechEvent {
            key: (*watched.key).clone(),
            said,
        };
        self.speech.send(event).await.map_err(|_| Unheard)
    }

    /// Waits while the events are full; probes under way go on meanwhile.
    async fn tell(&self, number: Number, change: HealthChange) -> Result<(), Unheard> {
        let Some(watched) = self.targets.get(&number) else {
            return Ok(());
        };
        let event = HealthEvent {
            key: (*watched.key).clone(),
            address: watched.target.address,
            unanswered: watched.answered.map_or(Duration::ZERO, |at| at.elapsed()),
            change,
        };
        self.events.send(event).await.map_err(|_| Unheard)
    }
}

impl Watched {
    /// Takes in what a check's answer says; what is to be passed on of it, and the change of health, if any.
    fn hear(
        &mut self,
        check: Check,
        says: Option<Says>,
        change: Option<HealthChange>,
    ) -> (Option<Said>, Option<HealthChange>) {
        let mut change = change;
        if let Some(Says::Line(line)) = &says
            && let Some((works, word)) = line.works
        {
            change = self
                .state
                .hear(works, word, line.note.as_deref())
                .or(change);
        }
        let checks = CHECKS
            .into_iter()
            .filter(|check| self.state.is_heard(*check) && self.state.spec_of(*check).is_some());
        let checks: Vec<Check> = checks.collect();
        let rise = self.state.spec_of(check).map_or(1, |spec| spec.rise);
        (self.voice.take_in(check, says, rise, &checks), change)
    }

    /// Whether the next probe of a check is not to wait for its turn: the last one met silence, and it is not known yet
    /// whether that is death; or somebody has asked.
    fn is_urgent(&self, check: Check, observation: Option<Observation>) -> bool {
        let silent = observation.is_some_and(Observation::is_silence);
        let may_die = check == Check::Liveness && !self.state.dead();
        let waited_for = self.asked.is_some() && self.state.health() != Health::Down;
        silent && (may_die || waited_for) || self.asked.is_some() && !silent
    }

    fn set(&mut self, check: Check, turn: Turn) {
        self.turns[check as usize] = Some(turn);
    }
}

/// One probe, with everything that it needs.
fn make(target: &Target, spec: ProbeSpec) -> impl Future<Output = Option<Found>> + use<> {
    let mut address = target.address;
    if let Some(port) = spec.port {
        address.set_port(port);
    }
    async move {
        let timeout = spec.timeout.max(Duration::from_millis(1));
        probe::observe(&spec.kind, address, timeout).await
    }
}
