//! Both tables are lost now and then, while changes overlap. In `nat` the backends' answers show where a flow is: whoever does
//! not know it resets it, and while somebody is left to ask its client hears nothing of that.

use super::*;

/// Most backends that are asked for a flow.
const ASKED_MAX: usize = 8;

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
            let packet = Packet {
                client: Addr::from_v4(flow.client.to_be_bytes()),
                client_port: flow.port.to_be(),
                service_port: 80u16.to_be(),
                flags: if knows { tcp::ACK } else { tcp::RST },
                sequence: 0,
            };
            let goes_on = self.fake.reply(SERVICE, &packet, delivered.backend);
            if knows {
                if delivered.outcome == Outcome::ForwardFlow {
                    let owners = self.owners(delivered.slot);
                    let former = !owners[..2].contains(&flow.owner);
                    self.counts.found_between += u64::from(former && asked > 0);
                }
                return Some(delivered);
            }
            if goes_on {
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
            self.counts.withheld += 1;
        }
        let entries = self.fake.entries(Table::Flows).into_iter();
        let (client, port) = (Addr::from_v4(flow.client.to_be_bytes()), flow.port.to_be());
        let mut own = entries.filter(|entry| entry.client == client && entry.ports as u16 == port);
        if own.next().is_some() {
            self.fail(&format!("{flow:?} never arrives"));
        }
        // There is no room for its entry; its client would go on trying.
        self.counts.waiting += 1;
        None
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
