//! Two nodes over in-memory data planes that tell each other of exceptional flows.

mod common;

use std::{sync::Arc, time::Duration};

use common::{hop, service, spec};
use lb_common::{
    Addr,
    steer::{Packet, tcp},
};
use lb_userspace::{
    daemon::{engine::Engine, journal::NoLog, share::Counts},
    datapath::{
        Datapath as _, Table,
        fake::{Fake, Sizes, TICKS_PER_SECOND},
    },
    model::{
        command::Terms,
        observed::{Health, Way},
        share::{SharedFlow, backend_digest},
        spec::{Forward, OnDeadline},
        state::State,
    },
};
use tokio::sync::mpsc;

const SEED: [u8; 16] = *b"two nodes' seed.";
/// Ports of the clients' flows.
const PORTS: std::ops::Range<u16> = 2000..2400;

struct Node {
    engine: Engine,
    fake: Fake,
    told: mpsc::Receiver<Vec<SharedFlow>>,
    now_ms: u64,
}

impl Node {
    fn new() -> Self {
        let mut web = service("web", true);
        web.forward = Forward::L2;
        web.listen.port = 8080;
        let fake = Fake::new(Sizes::default());
        let log = Box::new(NoLog);
        let data = Box::new(fake.clone());
        let mut engine = Engine::new(State::default(), spec([web]), SEED, data, log).unwrap();
        let (outbox, told) = mpsc::channel(16);
        engine.share(outbox, Arc::<Counts>::default());
        engine.begin(1_000_000).unwrap();
        let mut node = Self {
            engine,
            fake,
            told,
            now_ms: 1_000_000,
        };
        for ip in node.engine.addresses() {
            node.engine.way(ip, Way::Known(hop()), node.now_ms);
        }
        for target in node.engine.targets() {
            let (service, backend) = (&target.service, &target.backend);
            node.engine
                .health(service, backend, Health::Up, None, node.now_ms);
        }
        node.pass(100);
        node
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            self.fake.advance(TICKS_PER_SECOND / 10);
            self.engine.tick(self.now_ms);
        }
    }

    fn drain(&mut self, backend: &str) {
        let terms = Terms {
            timeout: Some(Duration::from_secs(60)),
            on_deadline: Some(OnDeadline::Leave),
            force: false,
            by: Default::default(),
        };
        let path = format!("web/{backend}");
        self.engine.drain(&path, terms, self.now_ms).unwrap();
    }

    fn service(&self) -> u32 {
        self.engine.state().services["web"].id
    }

    /// Where a packet of the flow with this client port goes, by the backend's name.
    fn send(&self, port: u16, flags: u8, sequence: u32) -> String {
        let packet = Packet {
            client: Addr::from_v4([10, 9, 0, 1]),
            client_port: port.to_be(),
            service_port: 8080_u16.to_be(),
            flags,
            sequence,
            ..Packet::default()
        };
        let delivered = self.fake.packet(self.service(), &packet).unwrap();
        let service = &self.engine.state().services["web"];
        service.backends[&delivered.backend].name.clone()
    }

    fn open_all(&self) -> Vec<String> {
        self.open_all_at(7)
    }

    fn open_all_at(&self, isn: u32) -> Vec<String> {
        let open = |port| {
            self.send(port, tcp::SYN, isn);
            self.send(port, tcp::ACK, isn + 1)
        };
        PORTS.map(open).collect()
    }

    fn all_told(&mut self) -> Vec<SharedFlow> {
        let batches = std::iter::from_fn(|| self.told.try_recv().ok());
        batches.flatten().collect()
    }
}

/// Flows that `node` sends elsewhere than `owners` says.
fn strayed(node: &Node, owners: &[String]) -> usize {
    let pairs = PORTS.zip(owners);
    pairs
        .filter(|(port, owner)| node.send(*port, tcp::ACK, 8) != **owner)
        .count()
}

#[test]
fn what_one_node_is_told_of_stays_where_it_began() {
    let (mut first, mut second) = (Node::new(), Node::new());
    let old = first.open_all();
    assert_eq!(strayed(&second, &old), 0, "before any change the tables do");
    first.drain("b1");
    second.drain("b1");
    assert_eq!(strayed(&second, &old), 0, "what began before it, too");
    second.fake.forget_flows();
    let young = first.open_all_at(70_000);
    first.pass(300);
    let told = first.all_told();
    assert!(
        told.len() > 50,
        "a fourth of the slots has moved: {}",
        told.len()
    );
    assert!(told.len() < 200, "and no more: {}", told.len());
    second.engine.hear(&told);
    let entries = second.fake.entries(Table::Flows).len();
    assert_eq!(entries, told.len());
    second.pass(300);
    assert!(
        second.all_told().is_empty(),
        "what one was told is not told on"
    );
    let id = |node: &Node, name: &str| {
        let service = &node.engine.state().services["web"];
        service.backend(name).unwrap().0
    };
    for name in ["b1", "b2", "b3", "b4"] {
        let stats = second.fake.backend_stats(id(&second, name)).unwrap();
        assert_eq!((stats.opened, stats.closed), (0, 0), "{name}");
    }
    assert_eq!(strayed(&second, &young), 0);
}

#[test]
fn without_a_word_of_them_they_stray() {
    let (mut first, mut second) = (Node::new(), Node::new());
    first.drain("b1");
    second.drain("b1");
    let young = first.open_all();
    assert!(strayed(&second, &young) > 50);
}

#[test]
fn flows_are_told_at_once_then_now_and_then_and_no_more_when_they_have_ended() {
    let mut node = Node::new();
    node.drain("b1");
    node.open_all();
    node.pass(300);
    let count = node.all_told().len();
    node.pass(4_000);
    assert!(node.all_told().is_empty(), "not again so soon");
    node.pass(6_000);
    assert_eq!(node.all_told().len(), count, "again");
    for port in PORTS {
        node.send(port, tcp::RST, 8);
    }
    node.pass(8_000);
    assert!(node.all_told().is_empty(), "they are over");
}

#[test]
fn a_full_outbox_is_tried_again() {
    let mut node = Node::new();
    let (outbox, told) = mpsc::channel(1);
    outbox.try_send(Vec::new()).unwrap();
    node.engine.share(outbox, Arc::<Counts>::default());
    node.told = told;
    node.drain("b1");
    node.open_all();
    node.pass(300);
    assert!(node.all_told().is_empty(), "there was no room");
    node.pass(300);
    assert!(node.all_told().len() > 50);
}

#[test]
fn what_means_nothing_here_is_left_out() {
    let (mut first, mut second) = (Node::new(), Node::new());
    first.drain("b1");
    first.open_all();
    first.pass(300);
    let told = first.all_told();
    second.engine.hear(&told);
    assert!(
        second.fake.entries(Table::Flows).is_empty(),
        "no slot has moved here"
    );
    second.drain("b1");
    let elsewhere = backend_digest("web", "b2", "192.0.2.1:1".parse().unwrap());
    for strange in [(told[0].service, elsewhere), (1, told[0].backend)] {
        let flow = SharedFlow {
            service: strange.0,
            backend: strange.1,
            ..told[0]
        };
        second.engine.hear(&[flow]);
    }
    assert!(second.fake.entries(Table::Flows).is_empty());
    second.engine.hear(&told);
    assert_eq!(second.fake.entries(Table::Flows).len(), told.len());
}

#[test]
fn what_a_node_has_seen_itself_counts_more() {
    let (mut first, mut second) = (Node::new(), Node::new());
    first.drain("b1");
    second.drain("b1");
    let own = second.open_all();
    first.open_all();
    first.pass(300);
    // The other node says that these flows are on other backends: an older word, or a lie.
    let liar = |mut flow: SharedFlow| {
        flow.backend = backend_digest("web", "b1", common::address(1));
        flow
    };
    let lies: Vec<SharedFlow> = first.all_told().into_iter().map(liar).collect();
    second.engine.hear(&lies);
    assert_eq!(strayed(&second, &own), 0);
}
