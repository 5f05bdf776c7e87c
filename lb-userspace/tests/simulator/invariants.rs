//! The invariants of the steering rule, looked at after every event without touching anything.
//!
//! | | | when |
//! |---|---|---|
//! | 1 | a flow's packets go to the backend that it began on | its own packets: at each; any one other flow: after each packet; all flows: after each command, tick and restart |
//! | 2 | no flow begins on a backend that drains or is gone | each opening; every slot, after each command, tick and restart |
//! | 3 | a handshake ends where it began | as 1, with flows in their handshake |
//! | 4 | a flood of openings evicts no flow | as 1, while one goes on; openings leave the flow table as it is |
//! | 5 | the tables, and who owned slots in between, follow from the state alone, whatever numbers the backends have | after each command, tick and restart |
//! | 6 | an id that something names means one backend | after each command, tick and restart |
//!
//! With writes that fail, the maps are behind the state at times: then 2 is looked at with each opening, 5 at the end of a run.

use lb_common::abi::{Slot, backend_flags};
use lb_userspace::model::{
    former::{FormerOwners, MadeOf, Tables},
    state::{Composition, Service},
};

use super::*;

/// What the table was checked against last.
#[derive(Debug, Default)]
pub struct Known {
    made_of: Option<MadeOf>,
    current: Vec<u32>,
    base: Vec<u32>,
    formers: FormerOwners,
}

impl Simulator {
    /// After a packet: some other flow is where it was.
    pub fn after_packet(&mut self) {
        self.counts.events += 1;
        if self.flows.is_empty() {
            return;
        }
        let index = self.counts.events as usize % self.flows.len();
        self.peek(index);
    }

    /// After anything else.
    pub fn after_change(&mut self, what: &'static str) {
        self.counts.events += 1;
        self.doing = what;
        for index in 0..self.flows.len() {
            self.peek(index);
        }
        if self.plan.fault_one_in.is_none() {
            self.check_slots();
        }
    }

    /// Asks where a flow's next packet would go.
    fn peek(&self, index: usize) {
        let flow = &self.flows[index];
        // After a loss of the tables somebody has to be asked first.
        if self.is_over(flow) || self.plan.loss_one_in.is_some() {
            return;
        }
        let packet = Packet {
            client: Addr::from_v4(flow.client.to_be_bytes()),
            client_port: flow.port.to_be(),
            service_port: 80u16.to_be(),
            flags: tcp::ACK,
            sequence: flow.sequence,
            ..Packet::default()
        };
        match self.fake.ask(SERVICE, &packet) {
            Some(backend) if backend == flow.owner => {}
            found => self.fail(&format!("{flow:?} would go astray: {found:?}")),
        }
    }

    /// Nobody who must not gets new flows, and the table is the one that follows from the state.
    fn check_slots(&mut self) {
        let slots = self.fake.table(SERVICE).unwrap();
        let web = self.web();
        let can = |backend| {
            let record = self.fake.backend(backend).unwrap();
            backend_flags::can_have_flows(record.flags)
        };
        let made_of = MadeOf::of(web, &can);
        if self.known.made_of.as_ref() != Some(&made_of) {
            let current = compose::build(&SEED, web, &web.current);
            let base = compose::build(&SEED, web, &web.base);
            for (composition, table) in [(&web.current, &current), (&web.base, &base)] {
                if renumbered(web, composition) != *table {
                    self.fail("another order of ids makes another table");
                }
            }
            let build = |composition: &Composition| compose::build(&SEED, web, composition);
            let formers = Tables::default().owners(web, (&current, &base), &can, build);
            self.known = Known {
                formers,
                made_of: Some(made_of),
                current,
                base,
            };
        }
        for (index, slot) in slots.iter().enumerate() {
            let wanted = (self.known.current[index], self.known.base[index]);
            if (slot.current(), slot.base()) != wanted {
                self.fail(&format!("slot {index} is {slot:?}, not {wanted:?}"));
            }
        }
        self.check_formers(&slots);
        let takes = |id: &u32| self.known.current.contains(id);
        if let Some(id) = self.closed_to_new.iter().find(|id| takes(id)) {
            self.fail(&format!("{id} takes new flows, and drains or is gone"));
        }
    }
}

impl Simulator {
    /// Former owners follow from the compositions alone, whenever a daemon learnt of them; those of earlier changes are remembered
    /// where flows of theirs may be. The ids of none of them are free.
    fn check_formers(&self, slots: &[Slot]) {
        let web = self.web();
        let found = self.fake.formers(SERVICE).unwrap();
        let mut known = self.known.formers.iter().peekable();
        for (index, formers) in &found {
            let own = known.next_if(|(place, _)| place == index);
            let own: Vec<u32> = own.map_or(Vec::new(), |(_, own)| own.iter().collect());
            let all: Vec<u32> = formers.iter().collect();
            let may_be_more = slots[*index as usize].has_exceptions();
            if !all.starts_with(&own) || all.len() > own.len() && !may_be_more {
                self.fail(&format!(
                    "former owners of {index} are {all:?}, not {own:?}"
                ));
            }
        }
        if let Some(row) = known.next() {
            self.fail(&format!("former owners are not remembered: {row:?}"));
        }
        let mut named = found.iter().flat_map(|(_, formers)| formers.iter());
        if let Some(id) = named.find(|id| !web.backends.contains_key(id)) {
            self.fail(&format!("id {id} is free although a slot remembers it"));
        }
    }
}

/// The table that the same backends make with other ids, the last first, in terms of their own ids.
fn renumbered(web: &Service, composition: &Composition) -> Vec<u32> {
    const ABOVE: u32 = 1_000_000;
    let mut other = web.clone();
    let backends = std::mem::take(&mut other.backends);
    let renamed = backends.into_iter();
    other.backends = renamed.map(|(id, backend)| (ABOVE - id, backend)).collect();
    let mut shares = composition.clone();
    shares
        .iter_mut()
        .for_each(|share| share.backend = ABOVE - share.backend);
    shares.sort_by_key(|share| share.backend);
    let table = compose::build(&SEED, &other, &shares);
    let back = |id| if id == 0 { 0 } else { ABOVE - id };
    table.into_iter().map(back).collect()
}
