//! Which backend a slot belongs to: a weighted consistent-hash table.
//!
//! [`build`] is a pure function of the seed and the set of members. The order in which members are given, earlier
//! tables and the ids of backends have no say in who wins a slot, so two nodes with the same configuration and seed
//! hold the same table. Integers only: floating point could round differently on another machine.
//!
//! # How
//!
//! Every member walks all slots in its own pseudo-random order and asks for its k-th slot at about the time
//! `(k + phase) / weight`. A slot belongs to whoever asked for it first. Up to here a slot's owner depends on nothing
//! but the keys and weights of those who want it, so nothing moves without need; but shares scatter. Therefore a member
//! holds no more than its *quota* (its fair share and [`SLACK_PPM`] more) and keeps the slots it asked for earliest; a
//! slot given back goes to who asked next. This is a stable matching in which both sides rank by the same time, so
//! there is exactly one outcome, and members may ask in any order (deferred acceptance) to find it.
//!
//! When a member goes, each slot it held starts a chain: the next in time takes it and, if full, gives back its latest
//! slot, and so on until somebody has room. Times only grow along the chain, and the slack makes it end early.
//!
//! # What was measured
//!
//! M = 65,537, one member of 10/100/1000 removed; heaviest member against its fair share, then collateral in %:
//!
//! - plain Maglev: 1.000/1.001/1.007 and 0.24/0.56/0.58 (0.18/0.52/0.60 in an earlier measurement);
//! - this table, slack 0.45 %: 1.005/1.006/1.007 and 0.06/0.22/0.27;
//! - with other keys and slack 0.5 %: 0.04/0.21/0.24; none: 1.000/1.002/1.007 and 0.14/0.30/0.31; 1 %:
//!   1.010/1.011/1.022 and 0.01/0.14/0.20;
//! - a fresh phase at every turn: no better. Quotas that grow with time, to hold fast members back or to make all of
//!   them end nearly full: 1.5 to 70 times the collateral;
//! - turns of equal length instead of ever longer ones: the same while weights are equal, but then shares do not follow
//!   weights by themselves, and quotas have to force them: halving one of three weights moved 1.5 % too many, now 0.
//!
//! A quota of a few dozen slots is rounded to a whole one: with 900 members (72.8 slots each) the heaviest has 1.016.
//! The price is paid below the fair share: the lightest member has 0.98/0.92/0.78 of it (Maglev: 1.00/1.00/0.99).
//! `cargo run --release -p lb-userspace --example table_quality` measures again.

mod quality;
mod slots;

#[cfg(test)]
mod maglev;
#[cfg(test)]
mod tests;

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

pub use self::{
    quality::{Quality, quality},
    slots::choose_slots,
};

/// How far above its fair share a member's quota lies, in millionths.
///
/// More slack means less collateral and heavier members. All of it together is what a member can lack at most, so it
/// stays below the 0.5 % of all slots within which weights are honoured, with room for rounding. Nodes must agree on it.
pub const SLACK_PPM: u32 = 4_500;

/// Who may own slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// What the member is, the same on every node and over restarts, for example `pool/backend`. Distinct: of two
    /// members with the same key one gets little but what the other leaves (still the same table on every node, if
    /// their ids are the same there).
    pub key: &'a str,
    /// The number written into its slots; never 0. Two members may share an id; their slots are then alike.
    pub id: u32,
    /// Share relative to the other members, 0 (no slot) to 1000.
    pub weight: u32,
}

/// The owner's id for each of `slots` slots; all 0 if no member has weight.
///
/// `slots` should be prime, at least 100 times the number of members (see [`choose_slots`]) and at most 2^27. Fewer
/// work, with coarser shares; more work as well, with shares less like the weights. A member has at most its fair
/// share and [`SLACK_PPM`] of it, rounded up (one slot more if there are only a few a member). Takes about 6 ms for
/// 131,071 slots and 1000 members (release build).
pub fn build(seed: &[u8; 16], slots: u32, members: &[Member]) -> Vec<u32> {
    let mut askers: Vec<Asker> = members
        .iter()
        .filter(|member| member.weight > 0)
        .map(|member| Asker::new(seed, slots, member))
        .collect();
    if askers.is_empty() || slots == 0 {
        return vec![0; slots as usize];
    }
    prepare(&mut askers, slots);
    Matching::new(slots, askers).run()
}

/// Puts members into an order of their own, for ties, and gives them quotas.
fn prepare(askers: &mut [Asker], slots: u32) {
    askers.sort_unstable_by_key(|asker| (asker.hash, asker.id, asker.weight));
    set_quotas(askers, slots);
}

/// A member on its walk over the slots.
struct Asker {
    hash: u128,
    id: u32,
    weight: u32,
    /// Most slots it may hold.
    quota: u32,
    /// Slots it holds now.
    held: u32,
    /// Turns taken, at most one a slot.
    turn: u32,
    /// When in this turn it asks, in units of 2^-32 turns at the start of the walk, by its weight.
    time: u64,
    /// The slot it asks for next.
    next: u32,
    /// How far it is from there to the one after; prime to the number of slots, so that the walk visits all.
    step: u32,
    /// When in its turn it asks, in 2^-32 turns.
    phase: u32,
    /// Decides whether a fraction of a slot in its quota is rounded up, in 2^-32 slots.
    rounding: u32,
}

impl Asker {
    fn new(seed: &[u8; 16], slots: u32, member: &Member) -> Self {
        let mut hasher = SipHasher24::new_with_key(seed);
        hasher.write(member.key.as_bytes());
        let hash = hasher.finish128().as_u128();

        let modulus = u64::from(slots.max(1));
        let start = mix(hash as u64) % modulus;
        let step = 1 + mix((hash >> 64) as u64) % (modulus - 1).max(1);
        let rest = mix(hash as u64 ^ (hash >> 64) as u64);
        Self {
            hash,
            id: member.id,
            weight: member.weight,
            quota: 0,
            held: 0,
            turn: 0,
            time: 0,
            next: start as u32,
            step: coprime_from(step as u32, slots),
            phase: (rest >> 32) as u32,
            rounding: rest as u32,
        }
    }

    fn is_full(&self) -> bool {
        self.held >= self.quota
    }

    /// Sets `time` for the turn that has begun.
    fn set_time(&mut self, turns: &mut Turns) {
        let turn = turns.get(self.turn);
        let ask_after = (u128::from(turn.length) * u128::from(self.phase)) >> 32;
        let time = turn.start.saturating_add(ask_after as u64);
        // Nearly all weights are 1, and a division would be felt.
        self.time = match self.weight {
            1 => time,
            weight => time / u64::from(weight),
        };
    }

    /// The slot it asks for now; goes on to the next turn.
    fn ask(&mut self, turns: &mut Turns) -> u32 {
        let slots = turns.slots;
        let slot = self.next;
        // Both are below `slots`; a division here would be felt.
        let until_end = slots - slot;
        self.next = if self.step < until_end {
            slot + self.step
        } else {
            self.step - until_end
        };
        self.turn += 1;
        self.set_time(turns);
        slot
    }
}

/// The turns of a walk, the same for every member but for its phase and weight.
///
/// They grow longer as fewer slots are left to ask for, so that the time of any one slot is distributed as rendezvous
/// hashing wants it (exponentially, here as a harmonic sum): only then are shares as weights are.
struct Turns {
    slots: u32,
    /// Those that somebody has come to.
    known: Vec<Turn>,
}

/// A turn, in units of 2^-32 turns at the start of the walk, were the member's weight 1.
#[derive(Clone, Copy)]
struct Turn {
    start: u64,
    length: u64,
}

impl Turns {
    fn new(slots: u32) -> Self {
        let known = Vec::new();
        Self { slots, known }
    }

    fn get(&mut self, turn: u32) -> Turn {
        while self.known.len() <= turn as usize {
            let start = self
                .known
                .last()
                .map_or(0, |last| last.start.saturating_add(last.length));
            let left = u64::from(self.slots).saturating_sub(self.known.len() as u64);
            let length = (u64::from(self.slots) << 32) / left.max(1);
            self.known.push(Turn { start, length });
        }
        self.known[turn as usize]
    }
}

/// Fills in how many slots each may hold, all together at least `slots`.
///
/// Fractions are rounded by the member's own hash and not by comparison with the others: a quota changes only as much
/// as the fair share does when some other member comes or goes.
fn set_quotas(askers: &mut [Asker], slots: u32) {
    const ONE: u128 = 1 << 32;
    let total: u128 = askers.iter().map(|asker| u128::from(asker.weight)).sum();
    let scale = u128::from(1_000_000 + SLACK_PPM) * u128::from(slots) * ONE;
    // With few slots a member, rounding can cost more than the slack gives. Adding a whole slot to each always suffices.
    for sixteenths in 0..=16 {
        let extra = sixteenths * ONE / 16;
        for asker in askers.iter_mut() {
            let fair = scale * u128::from(asker.weight) / (total * 1_000_000);
            asker.quota =
                ((fair + u128::from(asker.rounding) + extra) / ONE).min(u128::from(slots)) as u32;
        }
        if askers
            .iter()
            .map(|asker| u64::from(asker.quota))
            .sum::<u64>()
            >= u64::from(slots)
        {
            return;
        }
    }
}

/// Deferred acceptance between slots and members.
struct Matching {
    askers: Vec<Asker>,
    turns: Turns,
    /// For each slot when its earliest asker yet asked; [`FREE`]'s if none did. By themselves, because most who ask are
    /// refused for this, and what is refused is felt: these fit into a processor's cache.
    times: Vec<u64>,
    /// Who it is: index into `askers`, which settles a tie.
    owners: Vec<u32>,
    free: u32,
}

/// Later than any asker.
const FREE: (u64, u32) = (u64::MAX, u32::MAX);

impl Matching {
    fn new(slots: u32, mut askers: Vec<Asker>) -> Self {
        let mut turns = Turns::new(slots);
        for asker in &mut askers {
            asker.set_time(&mut turns);
        }
        Self {
            askers,
            turns,
            times: vec![FREE.0; slots as usize],
            owners: vec![FREE.1; slots as usize],
            free: slots,
        }
    }

    /// Lets time pass, a stretch after the other, until every slot is taken: no later asker could change anything then.
    /// How long the stretches are makes no difference to the outcome, only to how much is asked in vain at the end.
    fn run(mut self) -> Vec<u32> {
        let mut end = 0_u64;
        let mut asking = Vec::new();
        while self.free > 0 {
            asking.extend(
                (0_u32..)
                    .zip(&self.askers)
                    .filter(|(_, asker)| !asker.is_full())
                    .map(|(index, _)| index),
            );
            let weight: u64 = asking
                .iter()
                .map(|&index| u64::from(self.askers[index as usize].weight))
                .sum();
            // Half a turn a slot over all who still ask, however light they are. Quotas cover all slots, so while one
            // is free somebody asks; and a walk meets every slot, so it ends.
            end = end.saturating_add(((u64::from(self.turns.slots) << 31) / weight.max(1)).max(1));
            self.ask_until(end, &mut asking);
        }
        self.owners
            .iter()
            .map(|&index| self.askers[index as usize].id)
            .collect()
    }

    /// Lets the members in `asking`, and those they displace, ask for slots until `end` or until they are full.
    fn ask_until(&mut self, end: u64, asking: &mut Vec<u32>) {
        let slots = self.turns.slots;
        while let Some(index) = asking.pop() {
            let asker = &mut self.askers[index as usize];
            let mut displaced = None;
            while !asker.is_full() && asker.turn < slots && asker.time < end {
                let time = asker.time;
                let slot = asker.ask(&mut self.turns) as usize;
                let earliest = &mut self.times[slot];
                if time < *earliest || (time == *earliest && index < self.owners[slot]) {
                    *earliest = time;
                    let before = std::mem::replace(&mut self.owners[slot], index);
                    asker.held += 1;
                    if before == FREE.1 {
                        self.free -= 1;
                    } else {
                        displaced = Some(before);
                        break;
                    }
                }
            }
            if let Some(before) = displaced {
                self.askers[before as usize].held -= 1;
                asking.extend([index, before]);
            }
        }
    }
}

/// Spreads 64 bits over 64 bits, one to one (the finalizer of SplitMix64).
fn mix(value: u64) -> u64 {
    let mut bits = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// The first number from `step` on that has no divisor in common with `slots`: `step` itself if `slots` is prime.
fn coprime_from(step: u32, slots: u32) -> u32 {
    // One below `slots` is such a number, so the search ends there at the latest.
    (step..).find(|&step| gcd(step, slots) == 1).unwrap_or(1)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
