//! Both tables are lost now and then, while changes overlap. In `nat` the backends' answers show where a flow is: whoever does
//! not know it resets it, and while somebody is left to ask its client hears nothing of that. One in three of those who do not
//! know it has another connection of the same client's port in TIME-WAIT, and answers for that one.

use super::*;

/// How often a flow's client tries at most: three times at each of eight backends.
const ASKED_MAX: usize = 24;

/// What a backend that does not have a flow says to a segment of it.
fn stranger(flow: &Flow, backend: u32) -> Packet {
    let mut random = Random((u64::from(flow.isn) << 32 | u64::from(backend)) ^ 0x7157);
    if !random.one_in(3) {
        return flow.packet(tcp::RST);
    }
    // Of a connection that was over before this one began, up to a minute ago (RFC 6528: a tick of the client's initial
    // sequence numbers is 64 ns in Linux).
    let before = random.below(60 * 1_000_000_000 / 64) as u32;
    Packet {
        sequence: random.next() as u32,
        acknowledgment: flow.isn.wrapping_sub(before),
        ..flow.packet(tcp::ACK)
    }
}

impl Simulator {
    /// Everything that is known of flows is gone. Those whose handshake is not done have it behind them: an opening that
    /// nobody knows is a new one.
    pub fn lose_tables(&mut self) {
        self.counts.lost += 1;
        self.note("tables lost".to_owned());
        self.fake.forget_flows();
        self.fake.forget_handshakes();
        for flow in &mut self.flows {
            flow.established = true;
        }
        // Most of them say something soon; the others may be met by the next change, or the next loss.
        let mut index = 0;
        while index < self.flows.len() {
            let before = self.flows.len();
            if !self.random.one_in(4) {
                self.data(index);
            }
            index += usize::from(self.flows.len() == before);
        }
    }

    /// Sends a packet until who has the flow gets it; `None` when the flow is broken although nobody is to blame.
    pub fn chase(&mut self, flow: &Flow, flags: u8) -> Option<Delivered> {
        for asked in 0..=ASKED_MAX {
            let delivered = self.send(flow, flags, flow.sequence);
            if matches!(
                delivered.outcome,
                Outcome::DropDeadline | Outcome::ResetDeadline
            ) {
                // Nobody knows that it is not the flow of the base, which is cut.
                self.counts.cut += 1;
                return None;
            }
            if delivered.outcome == Outcome::DropNoBackend {
                // The base has ended and nobody takes new flows: its client goes on trying until somebody does.
                self.counts.waiting += 1;
                return None;
            }
            if !delivered.outcome.is_forward() {
                return Some(delivered);
            }
            let knows = delivered.backend == flow.owner;
            let answer = if knows {
                self.answer(flow, asked == 0)
            } else {
                stranger(flow, delivered.backend)
            };
            let goes_on = self.fake.reply(SERVICE, &answer, delivered.backend);
            if knows {
                if !goes_on {
                    self.fail(&format!("{answer:?} to {flow:?} is withheld"));
                }
                if delivered.outcome == Outcome::ForwardFlow {
                    let owners = self.owners(delivered.slot);
                    let former = !owners[..2].contains(&flow.owner);
                    self.counts.found_between += u64::from(former && asked > 0);
                }
                return Some(delivered);
            }
            if answer.flags == tcp::ACK {
                self.counts.strangers += 1;
            } else if goes_on {
                let owners = self.owners(delivered.slot);
                if owners.contains(&flow.owner) {
                    self.fail(&format!(
                        "{flow:?} is reset by {}, though its owner is one of {owners:?}",
                        delivered.backend
                    ));
                }
                self.counts.exposed += 1;
                return None;
            }
            self.counts.withheld += u64::from(!goes_on);
        }
        let entries = self.fake.entries(Table::Flows).into_iter();
        let (client, port) = (Addr::from_v4(flow.client.to_be_bytes()), flow.port.to_be());
        let mut own = entries.filter(|entry| entry.client == client && entry.ports as u16 == port);
        if own.next().is_some() {
            let delivered = self.send(flow, flags, flow.sequence);
            if self.owners(delivered.slot).contains(&flow.owner) {
                self.fail(&format!("{flow:?} never arrives"));
            }
            self.counts.exposed += 1;
            return None;
        }
        // There is no room for its entry; its client would go on trying.
        self.counts.waiting += 1;
        None
    }

    /// What the server says to a segment of its flow. One in four times something before that is still missing, unless the
    /// client has sent it again: then it is the first that is.
    fn answer(&mut self, flow: &Flow, is_first: bool) -> Packet {
        let acknowledgment = if is_first && self.random.one_in(4) {
            flow.sequence.wrapping_sub(self.random.below(60_000) as u32)
        } else {
            flow.sequence.wrapping_add(1)
        };
        Packet {
            sequence: flow.answered.wrapping_add(self.random.below(60_000) as u32),
            acknowledgment,
            data: self.random.below(2) as u32,
            ..flow.packet(tcp::ACK)
        }
    }

    /// Who owns a slot: base, current, and those in between.
    fn owners(&self, slot: u32) -> Vec<u32> {
        let found = self.fake.table(SERVICE).unwrap()[slot as usize];
        let formers = self.fake.formers(SERVICE).unwrap().into_iter();
        let between = formers
            .filter(|(index, _)| *index == slot)
            .flat_map(|(_, formers)| formers.iter());
        [found.base(), found.current()]
            .into_iter()
            .chain(between)
            .collect()
    }
}
