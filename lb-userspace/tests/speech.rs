//! Backends that ask to be drained: the engine over the in-memory data plane.

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{probe, service, spec};
use lb_userspace::{
    api::Status,
    daemon::{
        engine::{Engine, Facts},
        journal::{Journal, NoLog},
    },
    datapath::fake::{Fake, Sizes, TICKS_PER_SECOND},
    model::{
        command::{Selection, Terms},
        drain::{Admin, By},
        observed::Health,
        spec::{ProbeKind, ProbeSpec, ServiceSpec, Spec},
        speech::Wish,
        state::{Backend, State},
    },
};
use proptest::prelude::*;

const SEED: [u8; 16] = *b"an engine's seed";

struct Node {
    engine: Engine,
    fake: Fake,
    now_ms: u64,
}

/// The service `web` with an agent; at least `least` of its four backends are to take new flows.
fn asked(least: u32) -> ServiceSpec {
    let mut web = service("web", true);
    web.health.agent = Some(ProbeSpec {
        kind: ProbeKind::Agent {
            send: String::new(),
        },
        port: Some(8088),
        ..probe()
    });
    web.min_available = least;
    web
}

fn node(least: u32) -> Node {
    let fake = Fake::new(Sizes::default());
    let boxed = Box::new(fake.clone());
    let spec = spec([asked(least)]);
    let engine = Engine::new(State::default(), spec, SEED, boxed, Box::new(NoLog)).unwrap();
    let mut node = Node {
        engine,
        fake,
        now_ms: 1_000_000,
    };
    node.engine.begin(node.now_ms).unwrap();
    node.all_up();
    node.pass(100);
    node
}

fn unit() -> Terms {
    Terms {
        by: By::Unit,
        ..Terms::default()
    }
}

impl Node {
    fn all_up(&mut self) {
        for target in self.engine.targets() {
            let (service, backend) = (&target.service, &target.backend);
            self.engine
                .health(service, backend, Health::Up, None, self.now_ms);
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            self.fake.advance(TICKS_PER_SECOND / 10);
            self.engine.tick(self.now_ms);
        }
    }

    fn status(&mut self) -> Status {
        let facts = Facts {
            version: String::new(),
            pid: 1,
            started_ms: 0,
            config: String::new(),
        };
        self.engine.status(&facts, self.now_ms)
    }

    fn says(&mut self, name: &str, wish: Wish) {
        if self.engine.note_said("web", name, Some(wish), "") {
            self.engine.after_events(self.now_ms);
        }
    }

    fn backend(&self, name: &str) -> &Backend {
        self.engine.state().services["web"].backend(name).unwrap().1
    }

    /// Who asked for its drain, under way or ended.
    fn by(&self, name: &str) -> Option<By> {
        self.backend(name).admin.drained_by()
    }

    fn refused(&mut self, name: &str) -> (Option<String>, u64) {
        let status = self.status();
        let backend = status.services[0].pools[0]
            .backends
            .iter()
            .find(|backend| backend.name == name)
            .unwrap();
        let says = backend.says.clone().unwrap();
        (says.refused, says.refusals)
    }

    fn undrain(&mut self, name: &str, by: By) -> String {
        let selection = Selection::one(&format!("web/{name}"));
        self.engine
            .undrain_all(&selection, by, self.now_ms)
            .unwrap()
    }

    fn drain(&mut self, name: &str, terms: Terms) {
        let path = format!("web/{name}");
        self.engine.drain(&path, terms, self.now_ms).unwrap();
    }
}

#[test]
fn a_backend_drains_itself_and_comes_back() {
    let mut node = node(1);
    node.says("b1", Wish::Drain);
    assert_eq!(node.by("b1"), Some(By::Answer));
    assert!(matches!(node.backend("b1").admin, Admin::Draining(_)));
    node.pass(3_000);
    assert!(
        matches!(node.backend("b1").admin, Admin::Drained(_)),
        "it had no flows"
    );
    assert_eq!(node.by("b1"), Some(By::Answer));
    let ended = node.engine.drains(&[], node.now_ms).unwrap();
    assert_eq!((ended.len(), ended[0].by), (1, By::Answer));
    node.says("b1", Wish::Ready);
    assert_eq!(node.backend("b1").admin, Admin::Active);
    node.says("b1", Wish::Drain);
    node.says("b1", Wish::Ready);
    let receipt = node.engine.drains(&[], node.now_ms).unwrap()[0]
        .receipt
        .clone();
    assert_eq!(receipt.unwrap().reason, "undrained");
}

#[test]
fn an_operators_drain_stays() {
    let mut node = node(1);
    node.drain("b1", Terms::default());
    node.says("b1", Wish::Drain);
    node.says("b1", Wish::Ready);
    assert_eq!(node.by("b1"), Some(By::Operator));

    // One that the backend began becomes the operator's when he asks for it too, running or ended.
    node.says("b2", Wish::Drain);
    node.drain("b2", Terms::default());
    node.says("b2", Wish::Ready);
    assert_eq!(node.by("b2"), Some(By::Operator));
    node.says("b3", Wish::Drain);
    node.pass(3_000);
    assert!(matches!(node.backend("b3").admin, Admin::Drained(_)));
    node.drain("b3", Terms::default());
    node.says("b3", Wish::Ready);
    assert_eq!(node.by("b3"), Some(By::Operator));
}

#[test]
fn an_operator_overrules_a_backend_until_it_has_asked_for_nothing() {
    let mut node = node(1);
    node.says("b1", Wish::Drain);
    node.undrain("b1", By::Operator);
    node.pass(1_000);
    assert_eq!(node.backend("b1").admin, Admin::Active);
    let (refused, _) = node.refused("b1");
    assert_eq!(refused.as_deref(), Some("the operator took its drain back"));
    node.says("b1", Wish::Ready);
    node.says("b1", Wish::Drain);
    assert_eq!(node.by("b1"), Some(By::Answer));
}

#[test]
fn below_min_available_a_backend_waits_for_its_drain() {
    let mut node = node(3);
    for name in ["b1", "b2"] {
        node.says(name, Wish::Drain);
    }
    assert_eq!((node.by("b1"), node.by("b2")), (Some(By::Answer), None));
    node.pass(1_000);
    let (refused, refusals) = node.refused("b2");
    let why = "3 backends of pool blue take new flows, min_available is 3";
    assert_eq!((refused.as_deref(), refusals), (Some(why), 1));
    node.says("b1", Wish::Ready);
    assert_eq!(node.by("b1"), None);
    node.pass(200);
    assert_eq!(node.by("b2"), Some(By::Answer), "now there are enough");
    assert_eq!(node.refused("b2"), (None, 1));
    // One that takes no new flows anyway is missed by nobody.
    node.engine
        .health("web", "b3", Health::Down, None, node.now_ms);
    node.says("b3", Wish::Drain);
    assert_eq!(node.by("b3"), Some(By::Answer));
}

#[test]
fn a_unit_takes_back_only_what_it_asked_for() {
    let mut node = node(1);
    node.drain("b1", unit());
    assert_eq!(node.by("b1"), Some(By::Unit));
    // The answers of a service that stops soon say nothing of the drain that its unit has begun.
    node.says("b1", Wish::Ready);
    assert_eq!(node.by("b1"), Some(By::Unit));
    assert_eq!(node.undrain("b1", By::Unit), "web/b1 is active");
    assert_eq!(node.undrain("b1", By::Unit), "web/b1 is active already");
    node.drain("b1", Terms::default());
    node.drain("b1", unit());
    let told = node.undrain("b1", By::Unit);
    assert_eq!(told, "web/b1 stays drained: the operator asked for it");
    assert_eq!(node.by("b1"), Some(By::Operator));
    // What has ended already is no reason to fail, whoever asked for it.
    node.pass(3_000);
    node.drain("b1", unit());
    assert_eq!(node.by("b1"), Some(By::Operator));
}

#[test]
fn a_backend_that_left_the_configuration_does_not_talk_itself_back() {
    let mut node = node(1);
    node.says("b1", Wish::Drain);
    let mut without = asked(1);
    let pool = without.pools.get_mut("blue").unwrap();
    pool.backends.remove("b1");
    node.engine.reload(spec([without]), node.now_ms).unwrap();
    node.says("b1", Wish::Ready);
    assert!(matches!(node.backend("b1").admin, Admin::Draining(_)));
    assert!(node.backend("b1").leaving);
    assert!(
        node.undrain("b1", By::Unit)
            .contains("it has left the configuration")
    );
}

#[test]
fn what_an_agent_says_in_vain_is_counted() {
    let mut node = node(1);
    for _ in 0..3 {
        assert!(!node.engine.note_said("web", "b1", None, "75%"));
    }
    assert!(
        !node
            .engine
            .note_said("web", "nobody", Some(Wish::Drain), "")
    );
    let status = node.status();
    let says = status.services[0].pools[0].backends[0]
        .says
        .clone()
        .unwrap();
    assert_eq!(
        (says.not_understood, says.last_not_understood.as_deref()),
        (3, Some("75%"))
    );
}

/// One step of somebody.
#[derive(Debug, Clone, Copy)]
enum Step {
    Says(usize, Wish),
    Operator(usize, bool),
    Unit(usize, bool),
    Health(usize, bool),
    Pass,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..4usize;
    let wish = prop::sample::select(vec![Wish::Drain, Wish::Ready]);
    prop_oneof![
        6 => (who.clone(), wish).prop_map(|(who, wish)| Step::Says(who, wish)),
        2 => (who.clone(), any::<bool>()).prop_map(|(who, drain)| Step::Operator(who, drain)),
        2 => (who.clone(), any::<bool>()).prop_map(|(who, drain)| Step::Unit(who, drain)),
        2 => (who, any::<bool>()).prop_map(|(who, up)| Step::Health(who, up)),
        3 => Just(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

const NAMES: [&str; 4] = ["b1", "b2", "b3", "b4"];
const LEAST: u32 = 2;

fn open(directory: &std::path::Path, fake: &Fake) -> Engine {
    let opened = Journal::open(directory).unwrap();
    let (datapath, log) = (Box::new(fake.clone()), Box::new(opened.journal));
    Engine::new(opened.state, the_spec(), SEED, datapath, log).unwrap()
}

fn the_spec() -> Spec {
    spec([asked(LEAST)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever happens in whatever order, with restarts from the journal in between: what an operator or the unit asked for
    /// is never taken back by an answer, an answer's drain never takes the last ones that are needed, and in the end a
    /// backend that asks for a drain has one, is overruled or refused, and one that asks for nothing has none of its own.
    #[test]
    fn wishes_are_followed_and_nobody_elses(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::new(Sizes::default());
        let mut node = Node { engine: open(directory.path(), &fake), fake, now_ms: 1_000_000 };
        node.engine.begin(node.now_ms).unwrap();
        node.all_up();
        node.pass(100);
        let mut wishes: BTreeMap<usize, Wish> = BTreeMap::new();
        for step in steps {
            let before: Vec<Option<By>> = NAMES.iter().map(|name| node.by(name)).collect();
            match step {
                Step::Says(who, wish) => {
                    wishes.insert(who, wish);
                    let then = node.in_work();
                    node.says(NAMES[who], wish);
                    prop_assert!(node.in_work() >= then.min(LEAST as usize));
                }
                Step::Operator(who, true) => {
                    let path = format!("web/{}", NAMES[who]);
                    let _ = node.engine.drain(&path, Terms::default(), node.now_ms);
                }
                Step::Operator(who, false) => {
                    let _ = node.engine.undrain(&format!("web/{}", NAMES[who]), node.now_ms);
                }
                Step::Unit(who, true) => {
                    let path = format!("web/{}", NAMES[who]);
                    let _ = node.engine.drain(&path, unit(), node.now_ms);
                }
                Step::Unit(who, false) => {
                    node.undrain(NAMES[who], By::Unit);
                }
                Step::Health(who, up) => {
                    let health = if up { Health::Up } else { Health::Down };
                    node.engine.health("web", NAMES[who], health, None, node.now_ms);
                }
                Step::Pass => node.pass(1_500),
                Step::Restart => {
                    let Node { engine, fake, now_ms } = node;
                    drop(engine);
                    node = Node { engine: open(directory.path(), &fake), fake, now_ms };
                    node.engine.begin(now_ms).unwrap();
                    for (name, then) in NAMES.iter().zip(&before) {
                        prop_assert_eq!(node.by(name), *then, "{} over a restart", name);
                    }
                    node.all_up();
                    for (who, wish) in wishes.clone() {
                        node.says(NAMES[who], wish);
                    }
                }
            }
            if !matches!(step, Step::Operator(..) | Step::Unit(..)) {
                for (name, then) in NAMES.iter().zip(&before) {
                    if matches!(then, Some(By::Operator | By::Unit)) {
                        prop_assert_eq!(node.by(name), *then, "{} after {:?}", name, step);
                    }
                }
            }
        }
        node.pass(300);
        for (who, wish) in wishes {
            let name = NAMES[who];
            match (wish, node.by(name)) {
                (Wish::Drain, None) => prop_assert!(node.refused(name).0.is_some(), "{} waits in vain", name),
                (Wish::Ready, by) => prop_assert_ne!(by, Some(By::Answer), "{}", name),
                (Wish::Drain, Some(_)) => {}
            }
        }
    }
}

impl Node {
    /// Backends that are active and up.
    fn in_work(&mut self) -> usize {
        let status = self.status();
        let backends = status.services[0].pools[0].backends.iter();
        backends
            .filter(|backend| backend.health == "up" && backend.admin == "active")
            .count()
    }
}

/// What a unit asks before it adds its backend.
#[test]
fn a_backend_is_there_by_name_pool_and_address() {
    let node = node(1);
    let at = |text: &str| text.parse().unwrap();
    assert!(node.engine.has("web/blue/b1", at("10.0.0.1:8080")));
    assert!(node.engine.has("web/blue/b1", at("10.0.0.1:0")));
    for (path, address) in [
        ("web/blue/b1", "10.0.0.1:8081"),
        ("web/blue/b1", "10.0.0.2:8080"),
        ("web/green/b1", "10.0.0.1:8080"),
        ("web/blue/b9", "10.0.0.1:8080"),
        ("api/blue/b1", "10.0.0.1:8080"),
        ("web/b1", "10.0.0.1:8080"),
    ] {
        assert!(!node.engine.has(path, at(address)), "{path} {address}");
    }
}

#[test]
fn a_drain_of_its_own_has_the_services_terms() {
    let mut node = node(1);
    node.says("b1", Wish::Drain);
    let drain = node.backend("b1").admin.draining().unwrap().clone();
    let own = service("web", true).drain;
    let timeout = Duration::from_millis(drain.deadline_ms - drain.since_ms);
    assert_eq!((timeout, drain.on_deadline), (own.timeout, own.on_deadline));
}
