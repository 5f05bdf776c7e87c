//! A case: a few inputs in a row, made from the run's seed and the case's number alone, so that it can be had again.

use std::fmt;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::{
    edits::{Edit, FRAME_MAX, Mutation, edits},
    frame::Frame,
    shapes::{Flow, Shape, frame},
    sums::{TCP, UDP},
    view::View,
    world::World,
};

/// Inputs of a case. The tables are emptied before it, so what they hold is no more than this.
pub const CASE_INPUTS: usize = 32;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// What it began as.
    pub shape: Shape,
    /// That, sound.
    pub frame: Frame,
    /// How it was broken.
    pub mutations: Vec<Mutation>,
    /// The same byte by byte.
    pub edits: Vec<Edit>,
}

impl Input {
    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.frame.build();
        bytes.truncate(FRAME_MAX);
        for edit in &self.edits {
            edit.apply(&mut bytes);
        }
        bytes
    }
}

/// Which ports flows of `full-nat` services find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// All are free.
    Free,
    /// All are those of flows that are not confirmed.
    Flooded,
    /// There are none.
    None,
}

/// Inputs that are sent one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Whether new handshakes and flows are recorded; else their allowance is used up.
    pub records: bool,
    /// Which ports flows of `full-nat` services may have.
    pub ports: Ports,
    /// The inputs.
    pub inputs: Vec<Input>,
}

impl Case {
    /// Case `number` of the run with this seed.
    pub fn new(world: &World, seed: u64, number: u64) -> Self {
        // Neighbouring numbers must not make neighbouring generators.
        let mixed =
            (seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut random = SmallRng::seed_from_u64(mixed ^ (mixed >> 32));
        let mut flows = |protocol| -> Vec<Flow> {
            let flow = |_| Flow::new(world, protocol, &mut random);
            (0..3).map(flow).collect()
        };
        let flows = [flows(TCP), flows(UDP)];
        let records = random.random_ratio(7, 8);
        let ports = match random.random_range(0..32) {
            0 | 1 => Ports::None,
            2 => Ports::Flooded,
            _ => Ports::Free,
        };
        let inputs = (0..CASE_INPUTS)
            .map(|_| input(&flows, &mut random))
            .collect();
        Self {
            records,
            ports,
            inputs,
        }
    }
}

fn input(flows: &[Vec<Flow>; 2], random: &mut SmallRng) -> Input {
    // Half of them the course of a flow, half anything; and fragments, of which two must be of one packet.
    let shape = if random.random_ratio(1, 10) {
        Shape::Fragment
    } else if random.random() {
        *Shape::ALL[..4].choose(random).expect("shapes")
    } else {
        *Shape::ALL.choose(random).expect("shapes")
    };
    // Now and then a protocol that the service does not have.
    let fits = random.random_ratio(7, 8);
    let is_udp = match shape {
        Shape::Fragment | Shape::Echo | Shape::Error => random.random(),
        _ => (shape.protocol() == UDP) == fits,
    };
    let of_protocol = &flows[usize::from(is_udp)];
    let flow = of_protocol.choose(random).expect("flows");
    let frame = frame(shape, flow, random);
    let mut input = Input {
        shape,
        frame,
        mutations: Vec::new(),
        edits: Vec::new(),
    };
    let broken = random.random();
    for _ in 0..if broken {
        random.random_range(1..=3)
    } else {
        0
    } {
        let bytes = input.bytes();
        let view = View::parse(&bytes).ok();
        let mutation = *Mutation::ALL.choose(random).expect("mutations");
        input
            .edits
            .extend(edits(mutation, &bytes, view.as_ref(), random));
        input.mutations.push(mutation);
    }
    input
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mutations: Vec<_> = self.mutations.iter().map(|m| m.name()).collect();
        write!(f, "{} [{}]", self.shape.name(), mutations.join(", "))
    }
}
