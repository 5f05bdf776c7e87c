//! The engine over the in-memory data plane, one situation a test.

mod common;

use std::time::Duration;

use common::{IDLE, address, hop, service, spec};
use lb_common::{
    Addr,
    abi::{Known, Slot, backend_flags},
    entry::{FlowEntry, Meta, state},
    index::{kind, selector},
    limits::silence,
    outcome::Outcome,
    steer::{Packet, tcp},
};
use lb_userspace::{
    daemon::{
        engine::{Engine, Suspicion, pressing},
        journal::{Journal, NoLog},
    },
    datapath::{
        Datapath, Table, Verdict,
        fake::{Delivered, Fake, Sizes, TICKS_PER_SECOND},
    },
    model::{
        command::{Selection, Terms},
        drain::Admin,
        observed::{Health, Silence, Way},
        refused::Refused,
        spec::{
            BackendSpec, Decap, Forward, OnDeadline, Protocol, ServiceSpec, Spec, Tracking,
            TunnelSpec,
        },
        state::State,
    },
};

const SEED: [u8; 16] = *b"an engine's seed";

/// A node whose time is moved by hand.
struct Node {
    engine: Engine,
    fake: Fake,
    now_ms: u64,
}

impl Node {
    fn new(spec: Spec) -> Self {
        Self::new_on(Fake::new(Sizes::default()), spec)
    }

    fn new_on(fake: Fake, spec: Spec) -> Self {
        let engine = Engine::new(
            State::default(),
            spec,
            SEED,
            Box::new(fake.clone()),
            Box::new(NoLog),
        )
        .unwrap();
        let mut node = Self {
            engine,
            fake,
            now_ms: 1_000_000,
        };
        node.engine.begin(node.now_ms).unwrap();
        node
    }

    /// One whose backends are all up.
    fn ready(spec: Spec) -> Self {
        Self::ready_on(Fake::new(Sizes::default()), spec)
    }

    fn ready_on(fake: Fake, spec: Spec) -> Self {
        let mut node = Self::new_on(fake, spec);
        node.ways();
        node.health_of_all(Health::Up);
        node.pass(100);
        node
    }

    fn ways(&mut self) {
        for ip in self.engine.addresses() {
            self.engine.way(ip, Way::Known(hop()), self.now_ms);
        }
    }

    fn health_of_all(&mut self, health: Health) {
        for target in self.engine.targets() {
            self.engine
                .health(&target.service, &target.backend, health, None, self.now_ms);
        }
    }

    /// Lets time pass in steps of 100 ms.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            self.fake.advance(TICKS_PER_SECOND / 10);
            self.engine.tick(self.now_ms);
        }
    }

    fn web(&self) -> &lb_userspace::model::state::Service {
        &self.engine.state().services["web"]
    }

    fn id(&self, name: &str) -> u32 {
        self.web().backend(name).unwrap().0
    }

    fn flags(&self, id: u32) -> u32 {
        self.fake.backend(id).unwrap().flags
    }

    fn slots(&self) -> Vec<Slot> {
        self.fake.table(self.web().id).unwrap()
    }

    fn drain(&mut self, name: &str, seconds: u64, on_deadline: OnDeadline) -> u64 {
        let terms = Terms {
            timeout: Some(Duration::from_secs(seconds)),
            on_deadline: Some(on_deadline),
            force: false,
            by: Default::default(),
        };
        self.engine
            .drain(&format!("web/{name}"), terms, self.now_ms)
            .unwrap()
    }

    fn weigh(&mut self, name: &str, weight: Option<u32>) -> Result<String, Refused> {
        let one = Selection::one(&format!("web/{name}"));
        self.engine.weigh(&one, weight, false, self.now_ms)
    }

    fn maintain(&mut self, name: &str) -> Result<String, Refused> {
        let one = Selection::one(&format!("web/{name}"));
        self.engine.maintain(&one, false, self.now_ms)
    }

    fn activate(&mut self, name: &str) -> Result<String, Refused> {
        let one = Selection::one(&format!("web/{name}"));
        self.engine.activate(&one, self.now_ms)
    }

    fn admin(&self, name: &str) -> &'static str {
        self.web().backend(name).unwrap().1.admin.name()
    }

    /// Its part of the slots, in percent.
    fn share(&self, name: &str) -> f64 {
        let (id, slots) = (self.id(name), self.slots());
        let own = slots.iter().filter(|slot| slot.current() == id).count();
        100.0 * own as f64 / slots.len() as f64
    }

    /// The daemon ends, and another begins with this configuration.
    fn restart(&mut self, spec: Spec) {
        // As the journal has it.
        let text = serde_json::to_string(self.engine.state()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let fake = Box::new(self.fake.clone());
        self.engine = Engine::new(state, spec, SEED, fake, Box::new(NoLog)).unwrap();
        self.engine.begin(self.now_ms).unwrap();
        self.ways();
        self.health_of_all(Health::Up);
    }

    /// An answer of a backend to [`Self::send`].
    fn reply(&self, port: u16, backend: u32, flags: u8) {
        let packet = Packet {
            client: Addr::from_v4([10, 9, 0, 1]),
            client_port: port.to_be(),
            service_port: 80u16.to_be(),
            flags,
            ..Packet::default()
        };
        self.fake.reply(self.web().id, &packet, backend);
    }

    fn send(&self, port: u16, flags: u8, sequence: u32) -> u32 {
        self.deliver(port, flags, sequence).backend
    }

    fn deliver(&self, port: u16, flags: u8, sequence: u32) -> Delivered {
        let packet = Packet {
            client: Addr::from_v4([10, 9, 0, 1]),
            client_port: port.to_be(),
            service_port: 80u16.to_be(),
            flags,
            sequence,
            ..Packet::default()
        };
        self.fake.packet(self.web().id, &packet).unwrap()
    }

    /// The receipt of a drain that is over.
    fn receipt(&self, drain: u64) -> lb_userspace::model::drain::Receipt {
        let view = self.engine.drain_view(drain, self.now_ms);
        view.unwrap().receipt.unwrap()
    }

    /// A port whose flow, once open, is this backend's.
    fn flow_on(&self, backend: u32) -> u16 {
        self.flow_after(1999, backend)
    }

    /// The same, of the ports after this one.
    fn flow_after(&self, last: u16, backend: u32) -> u16 {
        let port = (last + 1..).find(|port| {
            self.send(*port, tcp::SYN, 7) == backend || {
                // Not the one that was wanted: it ends at once.
                self.send(*port, tcp::RST, 8);
                false
            }
        });
        let port = port.unwrap();
        assert_eq!(self.send(port, tcp::ACK, 8), backend);
        port
    }
}

#[test]
fn a_new_service_begins_whole() {
    let mut node = Node::new(spec([service("web", true)]));
    node.pass(1000);
    assert!(node.web().current.is_empty(), "nobody has answered yet");
    node.ways();
    for name in ["b1", "b2", "b3"] {
        node.engine
            .health("web", name, Health::Up, None, node.now_ms);
    }
    assert!(node.web().current.is_empty(), "b4 may still answer");
    node.engine
        .health("web", "b4", Health::Down, None, node.now_ms);
    assert_eq!(node.web().current.len(), 3);
    assert!(node.slots().iter().all(|slot| !slot.is_tracked()));
}

#[test]
fn a_new_service_does_not_wait_for_ever() {
    let mut node = Node::new(spec([service("web", true)]));
    node.engine
        .health("web", "b2", Health::Up, None, node.now_ms);
    node.pass(3100);
    assert_eq!(node.web().current.len(), 1);
}

#[test]
fn a_table_does_not_depend_on_the_order_of_events() {
    let orders: [&[&str]; 2] = [&["drain b1", "drain b3", "undrain b1"], &["drain b3"]];
    let tables = orders.map(|order| {
        let mut node = Node::ready(spec([service("web", true)]));
        for event in order {
            match event.split_once(' ').unwrap() {
                ("drain", name) => _ = node.drain(name, 60, OnDeadline::Leave),
                (_, name) => {
                    _ = node
                        .engine
                        .undrain(&format!("web/{name}"), node.now_ms)
                        .unwrap()
                }
            }
        }
        node.slots()
            .iter()
            .map(|slot| (slot.current(), slot.base()))
            .collect::<Vec<_>>()
    });
    assert_eq!(tables[0], tables[1]);
}

#[test]
fn a_change_settles_after_the_idle_timeout_and_flows_stay() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.drain("b1", 3600, OnDeadline::Leave);
    node.drain("b1", 1, OnDeadline::Leave);
    for _ in 0..40 {
        node.pass(1000);
        assert_eq!(node.send(port, tcp::ACK, 8), b1);
    }
    assert!(
        !node.web().is_changing(),
        "settled {IDLE:?} after the drain"
    );
    let slots = node.slots();
    assert!(slots.iter().all(|slot| slot.base() != b1));
    assert_eq!(
        slots.iter().filter(|slot| slot.has_exceptions()).count(),
        1,
        "only the flow's own slot"
    );
    // Once it ends, nothing is tracked any more.
    node.send(port, tcp::RST, 8);
    node.pass(20_000);
    assert!(node.slots().iter().all(|slot| !slot.is_tracked()));
}

/// Flows that began while a drain was under way that was taken back are on backends that no slot names once that has settled.
/// Who they are is known for as long as they live, also by the next daemon.
#[test]
fn whose_flows_outlive_a_change_is_remembered_while_they_do() {
    let mut node = Node::ready(spec([service("web", false)]));
    node.drain("b1", 600, OnDeadline::Leave);
    let moved: Vec<u16> = (1000..1200)
        .filter(|port| {
            let first = node.deliver(*port, tcp::SYN, 7);
            node.send(*port, tcp::ACK, 8);
            node.slots()[first.slot as usize].is_moved()
        })
        .collect();
    assert!(moved.len() > 20, "{}", moved.len());
    node.engine.undrain("web/b1", node.now_ms).unwrap();
    let alive = |node: &Node| {
        moved
            .iter()
            .for_each(|port| assert_ne!(node.send(*port, tcp::ACK, 8), 0))
    };
    let formers = |node: &Node| node.fake.formers(node.web().id).unwrap();
    let all = formers(&node).len();
    while node.web().is_changing() {
        node.pass(1000);
        alive(&node);
    }
    let kept = formers(&node);
    assert!(
        kept.len() > 20 && kept.len() <= moved.len(),
        "{} of {all}",
        kept.len()
    );
    node.restart(spec([service("web", false)]));
    node.pass(3000);
    assert_eq!(formers(&node), kept);
    // The tables are lost. They are not forgotten before the flows have been seen again.
    node.fake.forget_flows();
    node.fake.forget_handshakes();
    node.pass(2000);
    assert_eq!(formers(&node), kept);
    node.pass(2 * as_ms(IDLE));
    assert_eq!(formers(&node), []);
}

/// A flow that has sent nothing since its drain began is known by its opening alone. A flood of openings takes that from
/// nobody, so that the drain sees the flow's end; and it leaves room for those of clients.
#[test]
fn a_flood_hides_no_end_from_a_drain() {
    let mut node = Node::ready(spec([service("web", false)]));
    let b1 = node.id("b1");
    let ports = [node.flow_on(b1), node.flow_after(3000, b1)];
    let drain = node.drain("b1", 3600, OnDeadline::Leave);
    for port in 10_000..60_000 {
        node.send(port, tcp::SYN, 7);
    }
    node.pass(1000);
    let view = node.engine.drain_view(drain, node.now_ms).unwrap();
    assert_eq!(view.progress.unwrap().left, 2);
    for port in ports {
        node.send(port, tcp::RST, 8);
    }
    node.pass(5000);
    let receipt = node.receipt(drain);
    assert_eq!((receipt.reason.as_str(), receipt.finished), ("empty", 2));
}

/// While it is not known who has a flow, its client is asked for packets: each finds out about one backend. Not for ever: it may be
/// forged.
#[test]
fn the_client_of_a_flow_that_is_sought_is_asked_for_packets() {
    let mut node = Node::ready(spec([service("web", false)]));
    let b1 = node.id("b1");
    let ports = [node.flow_on(b1), node.flow_after(3000, b1)];
    node.drain("b1", 3600, OnDeadline::Leave);
    node.fake.forget_flows();
    node.fake.forget_handshakes();
    for port in ports {
        assert_eq!(node.send(port, tcp::ACK, 8), b1);
    }
    // One is found at once.
    node.reply(ports[1], b1, tcp::ACK | tcp::FIN);
    let asked = |node: &mut Node, ms| -> Vec<u16> {
        node.pass(ms);
        let segments = node.engine.take_segments();
        segments.iter().map(|segment| segment.to.port()).collect()
    };
    assert!(asked(&mut node, 200).is_empty());
    let often = asked(&mut node, 4000);
    assert!((10..=20).contains(&often.len()), "{often:?}");
    assert!(often.iter().all(|port| *port == ports[0]));
    asked(&mut node, 1000);
    assert!(asked(&mut node, 60_000).is_empty());
}

/// A slot has room for six former owners. Whoever has ended takes no place among them, however often the service changes.
#[test]
fn former_owners_that_have_ended_give_way() {
    let mut node = Node::ready(spec([service("web", false)]));
    let add = |node: &mut Node, name: &str, port: u16| {
        let spec = BackendSpec {
            address: address(port),
            weight: 20,
            server_id: None,
        };
        let path = format!("web/blue/{name}");
        node.engine.add(&path, spec, node.now_ms).unwrap();
        node.ways();
        node.health_of_all(Health::Up);
    };
    let opened = |node: &mut Node, name: &str| {
        let id = node.id(name);
        (2000..2400)
            .filter(|port| node.send(*port, tcp::SYN, 7) == id)
            .map(|port| node.deliver(port, tcp::ACK, 8))
            .inspect(|delivered| assert_eq!(delivered.backend, id))
            .map(|delivered| delivered.slot)
            .collect::<Vec<u32>>()
    };
    add(&mut node, "early", 400);
    let of_flows = opened(&mut node, "early");
    assert!(of_flows.len() > 100, "{}", of_flows.len());
    node.drain("early", 3600, OnDeadline::Leave);
    for n in 0..10 {
        let name = format!("h{n}");
        add(&mut node, &name, 401 + n);
        node.drain(&name, 3600, OnDeadline::Leave);
        node.pass(3000);
        assert!(node.web().backend(&name).unwrap().1.admin.is_ended());
    }
    let early = node.id("early");
    let slots = node.slots();
    let formers = node.fake.formers(node.web().id).unwrap();
    let ended = |id| !backend_flags::can_have_flows(node.flags(id));
    for (index, formers) in &formers {
        let named: Vec<u32> = formers.iter().collect();
        assert!(!named.iter().any(|id| ended(*id)), "{index}: {named:?}");
    }
    for slot in of_flows {
        let place = formers.binary_search_by_key(&slot, |(index, _)| *index);
        let named: Vec<u32> = place.map_or(Vec::new(), |place| formers[place].1.iter().collect());
        let owner = slots[slot as usize];
        assert!(
            owner.current() == early || named.contains(&early),
            "{slot}: {owner:?} {named:?}"
        );
    }
}

#[test]
fn a_backend_id_is_free_only_when_nothing_names_it() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.drain("b1", 60, OnDeadline::Reset);
    node.send(port, tcp::RST, 8);
    node.pass(10_000);
    assert!(matches!(node.web().backends[&b1].admin, Admin::Drained(_)));
    node.engine.remove("web/b1", false, node.now_ms).unwrap();
    assert_ne!(node.flags(b1) & backend_flags::ENDED, 0);
    let added = |node: &mut Node, n: u16| {
        let spec = BackendSpec {
            address: address(300 + n),
            weight: 1,
            server_id: None,
        };
        node.engine
            .add(&format!("web/blue/n{n}"), spec, node.now_ms)
            .unwrap();
        node.id(&format!("n{n}"))
    };
    assert_ne!(added(&mut node, 1), b1, "the base still names it");
    node.pass(60_000);
    assert!(!node.web().backends.contains_key(&b1));
    assert_eq!(node.flags(b1), 0);
    assert_ne!(node.fake.backend_stats(b1).unwrap().opened, 0);
    assert_eq!(added(&mut node, 2), b1);
    assert_eq!(
        node.fake.backend_stats(b1).unwrap().opened,
        0,
        "counters begin anew"
    );
}

#[test]
fn reset_cuts_over_the_spread_then_ends() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    let drain = node.drain("b1", 5, OnDeadline::Reset);
    node.pass(4000);
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
    node.pass(2000);
    let record = node.fake.backend(b1).unwrap();
    assert_ne!(record.flags & backend_flags::CUT_RESET, 0);
    assert!(record.cut > 0 && record.cut < u32::MAX);
    assert_eq!(
        node.engine.drain_view(drain, node.now_ms).unwrap().state,
        "resetting"
    );
    // Who waits for an answer when all are to go gets it, and is reset with its next packet.
    node.pass(3000);
    assert_eq!(node.fake.backend(b1).unwrap().cut, u32::MAX);
    assert_eq!(node.flags(b1) & backend_flags::ENDED, 0);
    node.pass(3000);
    assert_ne!(node.flags(b1) & backend_flags::ENDED, 0);
    let receipt = node.receipt(drain);
    assert_eq!((receipt.reason.as_str(), receipt.reset), ("deadline", 1));
}

/// Flows that leave one after the other: the receipt has their ages, over a restart in the middle, and while it runs
/// the drain says what comes.
#[test]
fn a_receipt_knows_the_ages_and_a_drain_says_what_comes() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let mut ports = Vec::new();
    for _ in 0..20 {
        let after = ports.last().map_or(2000, |port| port + 1);
        let port = (after..).find(|port| {
            let backend = node.send(*port, tcp::SYN, 7);
            if backend != b1 {
                node.send(*port, tcp::RST, 8);
            }
            backend == b1
        });
        ports.push(port.unwrap());
        assert_eq!(node.send(*ports.last().unwrap(), tcp::ACK, 8), b1);
    }
    let drain = node.drain("b1", 60, OnDeadline::Reset);
    let all = ports.clone();
    for second in 1..=20 {
        for port in &ports {
            node.send(*port, tcp::ACK, 8);
        }
        // The oldest leave at 1, 2, 3 s and so on.
        node.send(ports.remove(0), tcp::RST, 8);
        node.pass(1000);
        let view = node.engine.drain_view(drain, node.now_ms).unwrap();
        let Some(progress) = view.progress else { break };
        assert_eq!(progress.left + progress.gone, 20);
        if second == 12 {
            assert_eq!(progress.left, 8);
            assert_eq!(progress.ages_known, 8);
            assert!((0.8..=1.3).contains(&progress.rate_per_s.unwrap()));
            let forecast = progress.forecast.unwrap();
            assert_eq!(forecast.seen, 12);
            assert!(forecast.outlive <= 4, "{forecast:?}");
            assert!((1.0..60.0).contains(&forecast.most_gone_s.unwrap()));
            let state = node.engine.state().clone();
            let fake = Box::new(node.fake.clone());
            let spec = spec([service("web", true)]);
            node.engine = Engine::new(state, spec, SEED, fake, Box::new(NoLog)).unwrap();
            node.engine.begin(node.now_ms).unwrap();
            node.ways();
            node.health_of_all(Health::Up);
        }
    }
    node.pass(5000);
    let view = node.engine.drain_view(drain, node.now_ms).unwrap();
    let receipt = view.receipt.unwrap();
    assert_eq!((receipt.flows_at_start, receipt.finished), (20, 20));
    // A crash may lose the ages that were noted last, here none: they are written down when they are freed late.
    assert!(receipt.ages_known >= 15, "{receipt:?} {all:?}");
    let (p50, p99) = (receipt.p50_s.unwrap(), receipt.p99_s.unwrap());
    assert!((7.0..=14.0).contains(&p50), "{receipt:?}");
    assert!(
        (17.0..=22.0).contains(&p99) && p99 <= receipt.longest_s,
        "{receipt:?}"
    );
}

#[test]
fn leave_lets_flows_go_on() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    let drain = node.drain("b1", 5, OnDeadline::Leave);
    node.pass(6000);
    let receipt = node.receipt(drain);
    assert_eq!(
        (receipt.reason.as_str(), receipt.left, receipt.reset),
        ("deadline", 1, 0)
    );
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
    assert!(
        node.engine.remove("web/b1", false, node.now_ms).is_err(),
        "it still has a flow"
    );
}

#[test]
fn a_backend_that_is_down_keeps_its_flows() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.engine.health(
        "web",
        "b1",
        Health::Down,
        Some("refused".to_owned()),
        node.now_ms,
    );
    assert!(node.slots().iter().all(|slot| slot.current() != b1));
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
}

#[test]
fn with_nobody_up_the_last_ones_go_on() {
    let mut node = Node::ready(spec([service("web", true)]));
    node.health_of_all(Health::Down);
    assert_eq!(node.web().current.len(), 1, "the last one to be seen up");
    let facts = facts();
    let warnings = node.engine.status(&facts, node.now_ms).services[0]
        .warnings
        .join("; ");
    assert!(warnings.contains("is up"), "{warnings}");
}

/// Who answers echo requests to an address, by the services on its ports 80, 81 and 82.
#[test]
fn an_address_is_in_the_index_once_and_names_a_service_that_answers() {
    for (wishes, expected) in [
        ([true, true, true], 80),
        ([false, true, true], 81),
        ([false, false, true], 82),
        ([false, false, false], 80),
    ] {
        let services = (80..).zip(wishes).map(|(port, wish)| {
            let mut service = service(&format!("s{port}"), false);
            (service.listen.port, service.listen.last_port) = (port, port);
            service.icmp_echo = wish;
            let backends = service
                .pools
                .values_mut()
                .flat_map(|pool| pool.backends.values_mut());
            backends.for_each(|backend| backend.address.set_port(port));
            service
        });
        let node = Node::ready(spec(services));
        let address = selector(0, 0, kind::VIP);
        let index = node.fake.index();
        let entries: Vec<_> = index
            .iter()
            .filter(|entry| entry.selector == address)
            .collect();
        assert_eq!(entries.len(), 1, "{wishes:?}");
        let named = node.engine.state().services.values();
        let named = named
            .into_iter()
            .find(|service| service.id == entries[0].service);
        assert_eq!(
            named.expect("a service").spec.listen.port,
            expected,
            "{wishes:?}"
        );
    }
}

#[test]
fn a_weight_by_hand_changes_the_shares_and_settles_late() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    let said = node.weigh("b2", Some(5)).unwrap();
    assert_eq!(said, "web/b2 has weight 5, set by hand");
    assert!(
        (61.0..64.0).contains(&node.share("b2")),
        "{}",
        node.share("b2")
    );
    assert!((11.5..13.5).contains(&node.share("b1")));
    assert!(node.slots().iter().any(|slot| slot.is_moved()));
    // Whoever is quiet until then is not known yet.
    node.pass(IDLE.as_millis() as u64 - 1000);
    assert!(
        node.web().is_changing(),
        "flows have had no time to be seen"
    );
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
    node.pass(2000);
    assert!(!node.web().is_changing());
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
    node.weigh("b2", None).unwrap();
    assert!((24.0..26.0).contains(&node.share("b2")));
    assert!(node.web().is_changing());
}

#[test]
fn weight_0_keeps_flows_and_takes_no_new_ones() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.weigh("b1", Some(0)).unwrap();
    assert!(node.slots().iter().all(|slot| slot.current() != b1));
    for _ in 0..60 {
        assert_eq!(node.send(port, tcp::ACK, 8), b1);
        node.pass(1000);
    }
    assert!(!node.web().is_changing());
    assert_eq!(node.admin("b1"), "active");
    // Not even when nobody else is up.
    node.health_of_all(Health::Down);
    assert!(node.web().current.iter().all(|share| share.backend != b1));
    node.health_of_all(Health::Up);
    node.weigh("b1", Some(1)).unwrap();
    assert!(node.share("b1") > 20.0);
}

#[test]
fn min_available_counts_weights_and_maintenance() {
    let mut web = service("web", true);
    web.min_available = 3;
    let mut node = Node::ready(spec([web]));
    node.weigh("b1", Some(0)).unwrap();
    let before = node.engine.state().clone();
    for (command, refused) in [
        ("weight 0 of", node.weigh("b2", Some(0))),
        ("maintenance", node.maintain("b2")),
    ] {
        let refused = refused.unwrap_err();
        let error = format!(
            "{command} web/b2: 2 of 3 accepting backends of pool blue would remain, min_available is 3"
        );
        assert_eq!(refused.error, error);
        assert!(refused.hint.unwrap().ends_with("or use --force"));
    }
    assert_eq!(*node.engine.state(), before);
    // Whom new flows do not go to anyway is not missed.
    node.maintain("b1").unwrap();
    node.weigh("g1", Some(0)).unwrap();
    let two = Selection {
        backends: vec!["web/b2".to_owned(), "web/b3".to_owned()],
        pools: Vec::new(),
    };
    let said = node.engine.weigh(&two, Some(0), true, node.now_ms).unwrap();
    assert_eq!(said, "web/b2, web/b3 have weight 0, set by hand");
    let refused = node.weigh("b1", Some(1001)).unwrap_err();
    assert_eq!(refused.error, "weight web/b1: weight 1001 is too large");
}

#[test]
fn what_is_set_by_hand_outlasts_reloads_and_restarts() {
    let all = spec([service("web", true)]);
    let mut node = Node::ready(all.clone());
    node.weigh("b2", Some(5)).unwrap();
    node.maintain("b3").unwrap();
    let mut other = all.clone();
    let web = other.services.get_mut("web").unwrap();
    let blue = &mut web.pools.get_mut("blue").unwrap().backends;
    blue.get_mut("b2").unwrap().weight = 2;
    blue.remove("b3");
    let plan = node.engine.plan_reload(&other, node.now_ms).unwrap();
    let words = "change backend web/b2: weight 1 to 2 (5, set by hand, stays)";
    assert!(plan.iter().any(|step| step == words), "{plan:?}");
    node.engine.reload(other.clone(), node.now_ms).unwrap();
    assert_eq!(node.admin("b3"), "draining", "it has left");
    node.restart(other);
    let shown = node.engine.status(&facts(), node.now_ms).services[0].pools[0].backends[1].clone();
    assert_eq!((shown.weight, shown.configured_weight), (5, Some(2)));
    node.engine.reload(all.clone(), node.now_ms).unwrap();
    assert_eq!(node.admin("b3"), "maintenance", "it is back, as it was");
    node.restart(all);
    assert_eq!(node.admin("b3"), "maintenance");
    node.weigh("b2", None).unwrap();
    let shown = node.engine.status(&facts(), node.now_ms).services[0].pools[0].backends[1].clone();
    assert_eq!((shown.weight, shown.configured_weight), (1, None));
}

#[test]
fn an_operators_drain_outlasts_that_its_backend_leaves_the_configuration_and_returns() {
    let all = spec([service("web", true)]);
    let mut less = all.clone();
    let web = less.services.get_mut("web").unwrap();
    web.pools.get_mut("blue").unwrap().backends.remove("b2");
    let mut node = Node::ready(all.clone());
    let b2 = node.id("b2");
    node.flow_on(b2);
    node.drain("b2", 600, OnDeadline::Leave);
    node.engine.reload(less, node.now_ms).unwrap();
    node.engine.reload(all, node.now_ms).unwrap();
    assert_eq!(node.admin("b2"), "draining");
    node.pass(700_000);
    assert_eq!(node.admin("b2"), "drained");
}

#[test]
fn maintenance_keeps_flows_without_a_deadline() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    assert_eq!(node.maintain("b1").unwrap(), "web/b1 is in maintenance");
    assert_eq!(node.maintain("b1").unwrap(), "web/b1 is in maintenance");
    assert!(node.slots().iter().all(|slot| slot.current() != b1));
    for second in 0..100 {
        assert_eq!(node.send(port, tcp::ACK, 8), b1, "after {second} s");
        node.pass(1000);
    }
    assert!(!node.web().is_changing());
    assert_eq!(node.activate("b1").unwrap(), "web/b1 is active");
    assert_eq!(node.activate("b1").unwrap(), "web/b1 is active");
    assert!(node.share("b1") > 20.0);
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
}

#[test]
fn a_backend_in_maintenance_is_not_taken_for_dead() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.maintain("b1").unwrap();
    let silence = Silence {
        since_ms: node.now_ms,
        dead: true,
    };
    node.engine.note_silence("web", "b1", Some(silence));
    node.engine
        .health("web", "b1", Health::Down, None, node.now_ms);
    node.engine.after_events(node.now_ms);
    node.pass(5000);
    assert_eq!(
        node.flags(b1) & (backend_flags::DEAD | backend_flags::ENDED),
        0
    );
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
    // Back at work it is.
    node.activate("b1").unwrap();
    assert_ne!(node.flags(b1) & backend_flags::DEAD, 0);
}

#[test]
fn a_drain_of_a_backend_in_maintenance_returns_to_it() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.maintain("b1").unwrap();
    let refused = node.engine.undrain("web/b1", node.now_ms).unwrap_err();
    assert_eq!(refused.error, "undrain web/b1: it is not draining");
    assert!(refused.hint.unwrap().contains("`ebb activate web/b1`"));
    let drain = node.drain("b1", 60, OnDeadline::Reset);
    node.pass(1000);
    let said = node.engine.undrain("web/b1", node.now_ms).unwrap();
    assert_eq!(said, "web/b1 is in maintenance");
    let receipt = node.receipt(drain);
    assert_eq!((receipt.reason.as_str(), receipt.left), ("undrained", 1));
    // To its end, too.
    let drain = node.drain("b1", 60, OnDeadline::Reset);
    node.send(port, tcp::RST, 8);
    node.pass(20_000);
    assert_eq!(node.receipt(drain).reason, "empty");
    node.engine.undrain("web/b1", node.now_ms).unwrap();
    assert_eq!(node.admin("b1"), "maintenance");
    node.drain("b1", 60, OnDeadline::Reset);
    node.activate("b1").unwrap();
    assert_eq!(node.admin("b1"), "active");
}

#[test]
fn maintenance_takes_a_drain_back() {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    let drain = node.drain("b1", 5, OnDeadline::Reset);
    node.pass(1000);
    node.maintain("b1").unwrap();
    let receipt = node.receipt(drain);
    assert_eq!((receipt.reason.as_str(), receipt.left), ("undrained", 1));
    for _ in 0..30 {
        node.pass(1000);
        assert_eq!(node.send(port, tcp::ACK, 8), b1);
    }
    assert!(
        !node.web().is_changing(),
        "it settles without the drain's end"
    );
}

#[test]
fn who_was_cut_before_a_drain_was_taken_back_is_in_its_receipt() {
    for command in ["undrain", "maintenance", "activate"] {
        let mut node = Node::ready(spec([service("web", true)]));
        let b1 = node.id("b1");
        let port = node.flow_on(b1);
        node.pass(10_000);
        let drain = node.drain("b1", 5, OnDeadline::Reset);
        node.pass(4000);
        node.send(port, tcp::ACK, 8);
        // All of the spread has passed, and not the last call.
        node.pass(3500);
        node.send(port, tcp::ACK, 8);
        node.pass(300);
        let view = node.engine.drain_view(drain, node.now_ms).unwrap();
        assert_eq!(view.state, "resetting");
        let done = match command {
            "undrain" => node.engine.undrain("web/b1", node.now_ms),
            "maintenance" => node.maintain("b1"),
            _ => node.activate("b1"),
        };
        done.unwrap();
        let receipt = node.receipt(drain);
        let counts = (receipt.finished, receipt.reset, receipt.left);
        assert_eq!(counts, (0, 1, 0), "{command}: {receipt:?}");
    }
}

#[test]
fn a_removed_service_leaves_nothing_behind() {
    let mut other = service("other", false);
    (other.listen.port, other.listen.last_port) = (81, 81);
    for pool in other.pools.values_mut() {
        for backend in pool.backends.values_mut() {
            backend.address.set_port(9090);
        }
    }
    let mut node = Node::ready(spec([service("web", true), other]));
    let id = node.engine.state().services["other"].id;
    let backends: Vec<u32> = node.engine.state().services["other"]
        .backends
        .keys()
        .copied()
        .collect();
    assert!(!node.fake.table(id).unwrap().is_empty());
    node.engine
        .reload(spec([service("web", true)]), node.now_ms)
        .unwrap();
    assert!(node.fake.table(id).unwrap().is_empty());
    assert!(node.fake.index().iter().all(|entry| entry.service != id));
    assert!(backends.iter().all(|backend| node.flags(*backend) == 0));
    node.pass(10_000);
    assert!(node.engine.state().retired.is_empty());
}

#[test]
fn what_is_removed_by_hand_stays_removed_and_what_returns_is_undrained() {
    let all = spec([service("web", true)]);
    let mut less = all.clone();
    let blue = less
        .services
        .get_mut("web")
        .unwrap()
        .pools
        .get_mut("blue")
        .unwrap();
    blue.backends.remove("b2");
    let mut node = Node::ready(all.clone());
    node.engine.remove("web/b1", true, node.now_ms).unwrap();
    let b2 = node.id("b2");
    node.flow_on(b2);
    node.engine.reload(less, node.now_ms).unwrap();
    assert!(node.web().backends[&b2].admin.draining().is_some());
    node.engine.reload(all, node.now_ms).unwrap();
    assert_eq!(node.web().backends[&b2].admin, Admin::Active);
    assert!(node.web().backend("b1").is_none());
}

#[test]
fn a_reload_that_does_not_fit_changes_nothing() {
    let mut node = Node::ready(spec([service("web", true)]));
    let before = node.engine.state().clone();
    let names = ["huge", "vast", "wide"];
    let services = names.map(|name| service(name, true));
    let mut large = spec([service("web", true)].into_iter().chain(services));
    for (name, port) in names.into_iter().zip(82..) {
        let huge = large.services.get_mut(name).unwrap();
        (huge.listen.port, huge.slots) = (port, Some(1_048_573));
    }
    let refused = node.engine.reload(large, node.now_ms).unwrap_err();
    assert!(refused.error.contains("capacity.slots"), "{refused:?}");
    let mut other = spec([service("web", true)]);
    other.node.capacity.flows *= 2;
    assert!(node.engine.reload(other, node.now_ms).is_err());
    assert_eq!(*node.engine.state(), before);
}

#[test]
fn a_command_that_can_not_be_written_down_changes_nothing() {
    struct FullDisk;
    impl lb_userspace::daemon::journal::Log for FullDisk {
        fn append(&mut self, _: &[lb_userspace::model::state::Op]) -> std::io::Result<()> {
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        }
        fn offer(&mut self, _: &State) -> std::io::Result<()> {
            Ok(())
        }
    }
    let node = Node::ready(spec([service("web", true)]));
    let (state, fake) = (node.engine.state().clone(), node.fake.clone());
    let spec = spec([service("web", true)]);
    let mut engine = Engine::new(
        state.clone(),
        spec,
        SEED,
        Box::new(fake.clone()),
        Box::new(FullDisk),
    )
    .unwrap();
    let writes = fake.writes();
    let refused = engine
        .drain("web/b1", Terms::default(), node.now_ms)
        .unwrap_err();
    assert!(refused.error.contains("journal"), "{refused:?}");
    assert_eq!((engine.state(), fake.writes()), (&state, writes));
}

/// A daemon that starts again has nothing to say before it has seen anything new: no record loses its next hop or its
/// permission to take flows meanwhile.
#[test]
fn a_new_daemon_takes_over_how_backends_are_reached() {
    let node = Node::ready(spec([service("web", true)]));
    let fake = node.fake.clone();
    let before: Vec<_> = [node.id("b1"), node.id("b2")]
        .map(|id| fake.backend(id).unwrap())
        .to_vec();
    assert!(
        before
            .iter()
            .all(|record| record.flags & backend_flags::NEXT_HOP != 0)
    );
    let mut engine = Engine::new(
        node.engine.state().clone(),
        spec([service("web", true)]),
        SEED,
        Box::new(fake.clone()),
        Box::new(NoLog),
    )
    .unwrap();
    engine.begin(node.now_ms).unwrap();
    let after: Vec<_> = [node.id("b1"), node.id("b2")]
        .map(|id| fake.backend(id).unwrap())
        .to_vec();
    assert_eq!(after, before);
}

/// The daemon is killed at every write of a drain in turn; each time the next one brings the maps to the state.
#[test]
fn killed_at_any_write_the_next_daemon_converges() {
    for nth in 1..40 {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::new(Sizes::default());
        let start = |fake: &Fake| {
            let opened = Journal::open(directory.path()).unwrap();
            let spec = spec([service("web", false)]);
            Engine::new(
                opened.state,
                spec,
                SEED,
                Box::new(fake.clone()),
                Box::new(opened.journal),
            )
            .unwrap()
        };
        let mut engine = start(&fake);
        fake.fail_from(Some(nth));
        let mut now_ms = 1_000_000;
        let begun = engine.begin(now_ms).is_ok();
        now_ms += 5000;
        engine.tick(now_ms);
        let drained = engine.drain("web/b1", Terms::default(), now_ms).is_ok();
        let written_down = engine.state().clone();
        drop(engine);
        fake.fail_from(None);
        let mut engine = start(&fake);
        assert_eq!(*engine.state(), written_down, "write {nth}");
        engine.begin(now_ms).unwrap();
        engine.tick(now_ms);
        let web = &engine.state().services["web"];
        let (b1, draining) = web.backend("b1").unwrap();
        assert!(
            draining.admin != Admin::Active || !drained,
            "write {nth}, begun {begun}"
        );
        let slots = fake.table(web.id).unwrap();
        assert!(!slots.is_empty());
        // It has no flows, so it may be drained already.
        if draining.admin != Admin::Active {
            assert!(slots.iter().all(|slot| slot.current() != b1), "write {nth}");
            assert_eq!(
                fake.backend(b1).unwrap().flags & backend_flags::ACCEPTING,
                0
            );
        }
        assert!(fake.entries(Table::Flows).is_empty());
    }
}

#[test]
fn asking_for_a_drain_again_keeps_its_terms() {
    let mut node = Node::ready(spec([service("web", false)]));
    node.flow_on(node.id("b1"));
    node.drain("b1", 100, OnDeadline::Leave);
    let running = |node: &Node| {
        let drain = node.web().backend("b1").unwrap().1.admin.draining();
        let drain = drain.expect("it drains").clone();
        (drain.id, drain.deadline_ms, drain.on_deadline)
    };
    let first = running(&node);
    node.pass(1_000);
    let again = |terms: Terms, node: &mut Node| {
        node.engine.drain("web/b1", terms, node.now_ms).unwrap();
        running(node)
    };
    assert_eq!(again(Terms::default(), &mut node), first);
    let terms = Terms {
        on_deadline: Some(OnDeadline::Reset),
        ..Terms::default()
    };
    assert_eq!(
        again(terms, &mut node),
        (first.0, first.1, OnDeadline::Reset)
    );
    let terms = Terms {
        timeout: Some(Duration::from_secs(5)),
        ..Terms::default()
    };
    let sooner = (first.0, node.now_ms + 5_000, OnDeadline::Reset);
    assert_eq!(again(terms, &mut node), sooner);
}

#[test]
fn the_capacity_is_what_the_configuration_says() {
    let mut whole = spec([service("web", false)]);
    whole.node.capacity.services = 1;
    whole.node.capacity.backends = 7;
    let mut node = Node::ready(whole);
    let spec = BackendSpec {
        address: address(500),
        weight: 1,
        server_id: None,
    };
    let refused = node
        .engine
        .add("web/blue/b9", spec, node.now_ms)
        .unwrap_err();
    assert!(refused.error.contains("7 of 7 ids are in use"), "{refused}");
}

/// By hand no more is possible than in the configuration.
#[test]
fn addresses_that_no_backend_can_have_are_refused() {
    let mut node = Node::ready(spec([service("web", false)]));
    let rows = [
        (
            "[2001:db8::1]:80",
            "is IPv6 and the service is IPv4: forward = \"nat\" can not change the family",
        ),
        ("[::ffff:10.0.0.9]:80", "an IPv4 address written as IPv6"),
        ("127.0.0.1:80", "a loopback address"),
        ("203.0.113.10:81", "can not be a backend's address"),
    ];
    for (text, words) in rows {
        let spec = BackendSpec {
            address: text.parse().unwrap(),
            weight: 1,
            server_id: None,
        };
        let refused = node.engine.add("web/blue/b9", spec, node.now_ms);
        let said = refused.unwrap_err().error;
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn a_new_daemon_sends_where_the_last_one_did() {
    let node = Node::ready(spec([service("web", true)]));
    let (id, state) = (node.id("b1"), node.engine.state().clone());
    let before = node.fake.backend(id).unwrap();
    assert_ne!(before.flags & backend_flags::NEXT_HOP, 0);
    let mut engine = Engine::new(
        state,
        spec([service("web", true)]),
        SEED,
        Box::new(node.fake.clone()),
        Box::new(NoLog),
    )
    .unwrap();
    engine.begin(node.now_ms).unwrap();
    assert_eq!(node.fake.backend(id).unwrap(), before);
}

fn facts() -> lb_userspace::daemon::engine::Facts {
    lb_userspace::daemon::engine::Facts {
        version: String::new(),
        pid: 1,
        started_ms: 0,
        config: String::new(),
    }
}

fn datagrams() -> lb_userspace::model::spec::ServiceSpec {
    let mut service = service("web", true);
    service.listen.protocol = Protocol::Udp;
    service.tracking = Tracking::Full;
    service
}

/// Flows of `count` ports, by backend.
fn udp_flows(node: &Node, count: u16) -> std::collections::BTreeMap<u32, Vec<u16>> {
    let mut flows = std::collections::BTreeMap::<u32, Vec<u16>>::new();
    for port in 2000..2000 + count {
        flows.entry(node.send(port, 0, 0)).or_default().push(port);
    }
    flows
}

#[test]
fn datagrams_that_stop_coming_end_a_drain() {
    let mut node = Node::ready(spec([datagrams()]));
    let b1 = node.id("b1");
    let flows = udp_flows(&node, 200);
    let (silent, talking) = flows[&b1].split_at(5);
    node.pass(1000);
    let drain = node.drain("b1", 300, OnDeadline::Reset);
    for _ in 0..30 {
        node.pass(1000);
        for port in talking {
            assert_eq!(node.send(*port, 0, 0), b1);
        }
        // Whoever asks for the status makes the daemon look, and must take nothing from the receipt.
        let _ = node.engine.status(&facts(), node.now_ms);
    }
    let seen = node.engine.drain_view(drain, node.now_ms).unwrap();
    assert_eq!(seen.flows.listed, talking.len() as u64);
    node.pass(IDLE.as_millis() as u64 + 2000);
    let receipt = node.receipt(drain);
    let all = (silent.len() + talking.len()) as u64;
    assert_eq!(
        (
            receipt.reason.as_str(),
            receipt.flows_at_start,
            receipt.idle_expired
        ),
        ("empty", all, all)
    );
    let status = node.engine.status(&facts(), node.now_ms);
    let backends = &status.services[0].pools[0].backends;
    assert_eq!((backends[0].opened, backends[0].closed), (all, all));
}

#[test]
fn what_a_look_freed_before_it_gave_way_to_a_command_is_in_the_receipt() {
    let mut node = Node::ready(spec([datagrams()]));
    let b1 = node.id("b1");
    let all = udp_flows(&node, 200)[&b1].len();
    let drain = node.drain("b1", 300, OnDeadline::Reset);
    let entries = |node: &Node| {
        let mut count = 0;
        let mut count_one = |_: &_| {
            count += 1;
            Verdict::Keep
        };
        let scanned = node.fake.clone().scan(Table::Flows, &mut count_one);
        scanned.map(|()| count).unwrap()
    };
    // Nobody presses until shortly before the first is over, so that the looks' patience is still whole.
    node.pass(u64::from(silence(IDLE.as_millis() as u32)) - 200);
    while entries(&node) == 200 {
        // Each look frees the first entry that is over, and goes no further.
        let pressed = node.engine.pressing().press();
        node.pass(100);
        drop(pressed);
    }
    let pressed = node.engine.pressing().press();
    node.pass(300);
    let left = entries(&node);
    assert!((1..200).contains(&left), "{left}");
    // Not for ever, however many commands there are.
    node.pass(pressing::PATIENCE_MS + 300);
    assert_eq!(entries(&node), 0);
    drop(pressed);
    node.pass(2000);
    let receipt = node.receipt(drain);
    assert_eq!(
        (receipt.flows_at_start, receipt.idle_expired),
        (all as u64, all as u64)
    );
}

/// A node with a drain of `b1` under way for longer than the idle timeout, and a flow that lives there.
fn long_in_a_drain() -> (Node, u32, u16) {
    let mut node = Node::ready(spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.drain("b1", 300, OnDeadline::Reset);
    for _ in 0..10 {
        node.pass(5_000);
        assert_eq!(node.send(port, tcp::ACK, 8), b1);
    }
    (node, b1, port)
}

fn is_draining(node: &Node, id: u32) -> bool {
    matches!(node.web().backends[&id].admin, Admin::Draining(_))
}

/// The flow is waited for although nothing is known of it, and again once it was seen; its silence ends the drain within
/// `last_ms` after the idle timeout.
fn waits_for_it(node: &mut Node, b1: u32, port: u16, last_ms: u64) {
    node.pass(as_ms(IDLE) - 1_000);
    assert!(is_draining(node, b1), "it may live");
    assert_eq!(node.send(port, tcp::ACK, 8), b1);
    node.pass(as_ms(IDLE) - 1_000);
    assert!(is_draining(node, b1), "it was seen");
    node.pass(last_ms);
    assert!(!is_draining(node, b1));
}

#[test]
fn a_drain_waits_for_flows_whose_entries_are_lost_to_be_seen_again() {
    let (mut node, b1, port) = long_in_a_drain();
    node.pass(100);
    node.fake.forget_flows();
    waits_for_it(&mut node, b1, port, 3_000);
}

/// A flow of a draining backend that is forwarded, but gets no entry: adoptions are at their limit, or its bucket is full.
#[test]
fn a_drain_waits_for_flows_that_can_not_be_listed() {
    let (mut node, b1, port) = unlisted_in_a_drain(service("web", true));
    // The next daemon can not know when the last of them was.
    node = next_daemon(&node, node.fake.clone());
    waits_for_it(&mut node, b1, port, 3_000);
}

/// A flow that was silent for a while gives its entry to another, and no look sees it until its next packet.
#[test]
fn a_drain_waits_for_flows_whose_entries_gave_way() {
    let sizes = Sizes {
        flows: 4,
        ..Sizes::default()
    };
    let mut node = Node::ready_on(Fake::new(sizes), spec([service("web", true)]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.fake.forget_handshakes();
    node.drain("b1", 300, OnDeadline::Reset);
    for _ in 0..10 {
        assert_eq!(node.send(port, tcp::ACK, 8), b1);
        node.pass(5_000);
        assert!(is_draining(&node, b1), "it lives");
    }
    let is_exceptional = |entry: &FlowEntry| Meta(entry.meta).has(state::EXCEPTIONAL);
    for other in 3000.. {
        // In its slots they are not the base's, and give way to nobody.
        node.send(other, tcp::SYN, 7);
        node.send(other, tcp::ACK, 8);
        let entries = node.fake.entries(Table::Flows);
        if entries.len() == 4 && entries.iter().all(is_exceptional) {
            break;
        }
    }
    waits_for_it(&mut node, b1, port, 3_000);
}

/// A service whose backends are asked for flows that nothing is known of.
fn asking() -> ServiceSpec {
    ServiceSpec {
        forward: Forward::Ipip,
        tunnel: TunnelSpec {
            decap: Decap::Ebb,
            ..TunnelSpec::default()
        },
        ..service("web", true)
    }
}

#[test]
fn a_drain_waits_for_flows_that_can_not_be_listed_and_are_asked_about() {
    let (mut node, b1, port) = unlisted_in_a_drain(asking());
    let delivered = node.deliver(port, tcp::ACK, 8);
    assert_eq!(delivered.outcome, Outcome::ForwardAskingUnlisted);
    waits_for_it(&mut node, b1, port, 3_000);
}

/// As [`long_in_a_drain`], of a flow that is never listed.
fn unlisted_in_a_drain(service: ServiceSpec) -> (Node, u32, u16) {
    let mut node = Node::ready(spec([service]));
    let b1 = node.id("b1");
    let port = node.flow_on(b1);
    node.fake.forget_handshakes();
    node.fake.allow(u64::MAX, 0);
    node.drain("b1", 300, OnDeadline::Reset);
    for _ in 0..10 {
        node.pass(5_000);
        assert!(is_draining(&node, b1), "it lives");
        assert_eq!(node.send(port, tcp::ACK, 8), b1);
    }
    assert!(node.fake.entries(Table::Flows).is_empty());
    (node, b1, port)
}

/// A flow whose handshake stands for it, because its bucket has no room, is listed all the same.
#[test]
fn a_drain_waits_for_flows_whose_handshakes_stand_for_them() {
    let sizes = Sizes {
        flows: 4,
        ..Sizes::default()
    };
    let mut node = Node::ready_on(Fake::new(sizes), spec([service("web", true)]));
    let (b1, b3) = (node.id("b1"), node.id("b3"));
    node.drain("b2", 300, OnDeadline::Reset);
    let mut flows = Vec::new();
    for port in 2000.. {
        // Flows of `b3` in moved slots fill the table, then one of `b1` finds no room.
        let entries = node.fake.entries(Table::Flows).len();
        let is_full = entries == sizes.flows as usize;
        let backend = if is_full { b1 } else { b3 };
        if node.send(port, tcp::SYN, 7) != backend {
            continue;
        }
        let delivered = node.deliver(port, tcp::ACK, 8);
        if delivered.outcome == Outcome::ForwardHandshake {
            flows.push((port, backend));
            if is_full {
                break;
            }
        }
    }
    let drain = node.drain("b1", 300, OnDeadline::Reset);
    for _ in 0..10 {
        node.pass(5_000);
        assert!(is_draining(&node, b1), "it lives");
        for (port, backend) in &flows {
            assert_eq!(node.send(*port, tcp::ACK, 8), *backend);
        }
    }
    node.pass(as_ms(IDLE) + 1_000);
    assert_eq!(node.receipt(drain).reason, "empty");
}

#[test]
fn a_change_waits_for_flows_that_can_not_be_listed() {
    for service in [service("web", true), asking()] {
        waits_with_a_change(service);
    }
}

fn waits_with_a_change(service: ServiceSpec) {
    let mut node = Node::ready(spec([service]));
    let b1 = node.id("b1");
    let mut ports = vec![node.flow_on(b1)];
    while ports.len() < 20 {
        ports.push(node.flow_after(ports[ports.len() - 1], b1));
    }
    assert!(!node.web().is_changing());
    node.fake.forget_handshakes();
    node.fake.allow(u64::MAX, 0);
    node.weigh("b2", Some(10)).unwrap();
    for _ in 0..10 {
        node.pass(5_000);
        assert!(node.web().is_changing(), "a flow would move");
        for port in &ports {
            assert_eq!(node.send(*port, tcp::ACK, 8), b1);
        }
    }
    // What is listed by now stays where it is.
    node.fake.allow(u64::MAX, u64::MAX);
    for port in &ports {
        assert_eq!(node.send(*port, tcp::ACK, 8), b1);
    }
    node.pass(as_ms(IDLE) - 1_000);
    assert!(node.web().is_changing());
    for port in &ports {
        assert_eq!(node.send(*port, tcp::ACK, 8), b1);
    }
    node.pass(10_000);
    assert!(!node.web().is_changing());
    for port in &ports {
        assert_eq!(node.send(*port, tcp::ACK, 8), b1);
    }
}

/// Another daemon over these maps, with what the journal says.
fn next_daemon(node: &Node, fake: Fake) -> Node {
    let engine = Engine::new(
        node.engine.state().clone(),
        spec([service("web", true)]),
        SEED,
        Box::new(fake.clone()),
        Box::new(NoLog),
    );
    let mut next = Node {
        engine: engine.unwrap(),
        fake,
        now_ms: node.now_ms,
    };
    next.engine.begin(next.now_ms).unwrap();
    next.ways();
    next.health_of_all(Health::Up);
    next
}

#[test]
fn a_drain_waits_for_flows_that_new_maps_know_nothing_of() {
    let (node, b1, port) = long_in_a_drain();
    let mut node = next_daemon(&node, Fake::new(Sizes::default()));
    waits_for_it(&mut node, b1, port, 10_000);
}

#[test]
fn that_the_maps_are_younger_than_the_state_is_known_after_another_restart() {
    let (node, b1, port) = long_in_a_drain();
    let mut node = next_daemon(&node, Fake::new(Sizes::default()));
    for _ in 0..2 {
        node.pass(300);
        node = next_daemon(&node, node.fake.clone());
    }
    waits_for_it(&mut node, b1, port, 10_000);
}

#[test]
fn a_drain_waits_for_flows_whose_entries_were_lost_before_a_restart() {
    let (mut node, b1, port) = long_in_a_drain();
    node.pass(100);
    node.fake.forget_flows();
    // Nobody has looked since.
    let mut node = next_daemon(&node, node.fake.clone());
    node.pass(500);
    // What this one has found is known to the next.
    let mut node = next_daemon(&node, node.fake.clone());
    waits_for_it(&mut node, b1, port, 4_000);
}

/// A daemon that died while it forgot the maps, or an ebb that noted nothing: what is missing may be missing since ever.
#[test]
fn a_drain_waits_where_nobody_has_noted_what_there_was() {
    let (mut node, b1, port) = long_in_a_drain();
    node.pass(100);
    node.fake.forget_flows();
    node.fake.reset_backend_stats(b1).unwrap();
    node.fake.note_known(&Known::default()).unwrap();
    let mut node = next_daemon(&node, node.fake.clone());
    waits_for_it(&mut node, b1, port, 10_000);
}

/// Where nothing was lost, a drain ends after a restart as soon as it would have without.
#[test]
fn a_restart_holds_up_no_drain() {
    let ends_after = |restarts: bool| {
        let (mut node, b1, port) = long_in_a_drain();
        assert_eq!(node.send(port, tcp::FIN | tcp::ACK, 8), b1);
        node.reply(port, b1, tcp::FIN | tcp::ACK);
        let closed_ms = node.now_ms;
        if restarts {
            node = next_daemon(&node, node.fake.clone());
        }
        while is_draining(&node, b1) {
            node.pass(100);
        }
        node.now_ms - closed_ms
    };
    assert_eq!(ends_after(true), ends_after(false));
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

#[test]
fn datagrams_go_on_elsewhere_after_the_deadline() {
    let mut node = Node::ready(spec([datagrams()]));
    let b1 = node.id("b1");
    let flows = udp_flows(&node, 100);
    let drain = node.drain("b1", 5, OnDeadline::Reset);
    node.pass(4000);
    for port in &flows[&b1] {
        assert_eq!(node.send(*port, 0, 0), b1);
    }
    node.pass(2000);
    for port in &flows[&b1] {
        assert_ne!(node.send(*port, 0, 0), b1);
    }
    node.pass(6000);
    let receipt = node.receipt(drain);
    assert_eq!(
        (receipt.reason.as_str(), receipt.reset),
        ("deadline", flows[&b1].len() as u64)
    );
}

/// A flood of new flows evicts no flow that only its entry keeps where it is.
#[test]
fn a_flood_of_datagrams_moves_no_flow_of_a_draining_backend() {
    let mut node = Node::ready(spec([datagrams()]));
    let b1 = node.id("b1");
    let flows = udp_flows(&node, 100);
    node.drain("b1", 60, OnDeadline::Reset);
    let sizes = Sizes::default();
    for port in 3000..=u16::MAX {
        node.send(port, 0, 0);
    }
    assert!(sizes.flows < u32::from(u16::MAX), "a flood");
    for port in &flows[&b1] {
        assert_eq!(node.send(*port, 0, 0), b1);
    }
}

/// Takes new flows now.
fn accepts(node: &Node, name: &str) -> bool {
    let id = node.id(name);
    node.web().current.iter().any(|share| share.backend == id)
}

#[test]
fn who_refuses_an_opening_is_suspect_until_it_answers() {
    let mut node = Node::ready(spec([service("web", true)]));
    let suspect = |node: &mut Node, name: &str| {
        let (id, now_ms) = (node.id(name), node.now_ms);
        let news = node.engine.suspect(id, Suspicion::Refused, now_ms);
        node.engine.after_events(now_ms);
        news
    };
    let answer = |node: &mut Node, name: &str| {
        node.engine.note_answer("web", name, node.now_ms);
        node.engine.after_events(node.now_ms);
    };
    assert!(suspect(&mut node, "b2"));
    assert!(!accepts(&node, "b2"));
    let asked = [("web".to_owned(), "b2".to_owned())];
    assert_eq!(node.engine.take_questions(), asked);
    assert!(!suspect(&mut node, "b2"), "no news");
    answer(&mut node, "b2");
    assert!(accepts(&node, "b2"));
    assert!(!suspect(&mut node, "b2"), "trusted for a while");
    node.pass(5_100);
    assert!(suspect(&mut node, "b2"));

    // Never more than half of them.
    assert!(suspect(&mut node, "b3"));
    assert!(!suspect(&mut node, "b1") && accepts(&node, "b1"));
    node.engine
        .health("web", "b2", Health::Down, None, node.now_ms);
    node.engine
        .health("web", "b2", Health::Up, None, node.now_ms);
    assert!(accepts(&node, "b2"), "a verdict is more than a suspicion");
}

#[test]
fn openings_sent_again_say_something_of_one_backend_only() {
    let mut node = Node::ready(spec([service("web", true)]));
    let sends = |node: &mut Node, ports: &[u16]| {
        node.pass(1_000);
        for port in ports {
            node.send(*port, tcp::SYN, 7);
        }
        node.pass(1_100);
    };
    let ports: Vec<u16> = (2000..2080).collect();
    let owners: Vec<u32> = ports
        .iter()
        .map(|port| node.send(*port, tcp::SYN, 7))
        .collect();
    // A flood of them concerns everybody.
    sends(&mut node, &ports);
    assert_eq!(node.web().current.len(), 4);
    // Those of one backend's flows.
    let dead = node.id("b3");
    let met: Vec<u16> = ports
        .iter()
        .zip(&owners)
        .filter(|(_, owner)| **owner == dead)
        .map(|(port, _)| *port)
        .collect();
    sends(&mut node, &met);
    assert!(!accepts(&node, "b3"));
    assert_eq!(node.web().current.len(), 3);
}
