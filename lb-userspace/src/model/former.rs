//! Who owned the slots of a service between its base and its current composition: see [`lb_common::former`].
//!
//! The compositions in between are part of the state, so that two nodes with the same events know the same, and a daemon that
//! starts again too; the owners follow from them. Their tables are large and mostly like the base's: of each only what
//! differs is kept.
//!
//! There is room for [`lb_common::former::FORMERS_MAX`] of them, so whoever can not have flows any more is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::{abi::Slot, former::Formers};

use super::{
    packed::Packed,
    state::{Composition, Service},
};

/// Most compositions that are remembered.
pub const PASSED_MAX: usize = 64;

/// Most shares in all of them.
pub const SHARES_MAX: usize = 1 << 14;

/// Slots with former owners, in the order of their index.
pub type FormerOwners = Vec<(u32, Formers)>;

/// What a service's table was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeOf {
    /// As of the service.
    pub current: Composition,
    /// As above.
    pub base: Composition,
    /// As above.
    pub passed: Vec<Composition>,
    /// Who in them could not have flows any more.
    pub ended: BTreeSet<u32>,
}

impl MadeOf {
    /// What its table is to be made of. `can` says whether a backend can have flows.
    pub fn of(service: &Service, can: &dyn Fn(u32) -> bool) -> Self {
        Self {
            current: service.current.clone(),
            base: service.base.clone(),
            passed: service.passed.clone(),
            ended: ended(service, can),
        }
    }

    /// Whether it is that.
    pub fn is_of(&self, service: &Service, can: &dyn Fn(u32) -> bool) -> bool {
        self.current == service.current
            && self.base == service.base
            && self.passed == service.passed
            && self.ended == ended(service, can)
    }
}

fn ended(service: &Service, can: &dyn Fn(u32) -> bool) -> BTreeSet<u32> {
    let shares = service.passed.iter().flatten();
    let backends = shares.map(|share| share.backend);
    backends.filter(|backend| !can(*backend)).collect()
}

/// Slots, each with its owner, in the order of their index.
type Moved = Vec<(u32, u32)>;

/// Notes that `old` has been current until now. `passed` are the compositions before it, the last one first.
pub fn note(
    passed: &mut Vec<Composition>,
    old: &Composition,
    current: &Composition,
    base: &Composition,
) {
    if !old.is_empty() {
        passed.insert(0, old.clone());
    }
    let mut shares = 0;
    let mut seen: Vec<Composition> = Vec::new();
    for composition in passed.drain(..) {
        let known = composition == *current || composition == *base || seen.contains(&composition);
        if known {
            continue;
        }
        shares += composition.len();
        if seen.len() == PASSED_MAX || (shares > SHARES_MAX && !seen.is_empty()) {
            break;
        }
        seen.push(composition);
    }
    *passed = seen;
}

/// What the tables of compositions in between had otherwise than the base's.
#[derive(Debug, Default)]
pub struct Tables(BTreeMap<u32, Kept>);

/// Of one service.
#[derive(Debug, Default)]
struct Kept {
    base: Composition,
    moved: HashMap<Composition, Moved>,
}

impl Tables {
    /// Takes in what is `installed` for a service, made of these compositions, before another table replaces it.
    pub fn keep(&mut self, service: u32, made_of: &MadeOf, installed: &Packed) {
        let (current, base) = (&made_of.current, &made_of.base);
        let kept = self.0.entry(service).or_default();
        if kept.base != *base {
            *kept = Kept {
                base: base.clone(),
                moved: HashMap::new(),
            };
        }
        if !kept.moved.contains_key(current) {
            let slots = (0..).zip(installed.iter());
            let moved = slots.filter(|(_, slot)| slot.is_moved());
            let moved = moved.map(|(index, slot)| (index, slot.current()));
            kept.moved.insert(current.clone(), moved.collect());
        }
    }

    /// Forgets what no service needs any more.
    pub fn tidy<'a>(&mut self, services: impl Iterator<Item = &'a Service>) {
        let wanted: BTreeMap<u32, &Service> =
            services.map(|service| (service.id, service)).collect();
        self.0.retain(|id, kept| {
            let Some(service) = wanted.get(id).filter(|found| found.base == kept.base) else {
                return false;
            };
            kept.moved
                .retain(|composition, _| service.passed.contains(composition));
            !kept.moved.is_empty()
        });
    }

    /// Former owners of the service's slots, whose owners now are these, as far as they `can` have flows. `build` makes a
    /// composition's table.
    pub fn owners(
        &self,
        service: &Service,
        (current, base): (&[u32], &[u32]),
        can: &dyn Fn(u32) -> bool,
        build: impl Fn(&Composition) -> Vec<u32>,
    ) -> FormerOwners {
        let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let ended = ended(service, can);
        let kept = self.0.get(&service.id);
        let kept = kept.filter(|kept| kept.base == service.base);
        for composition in &service.passed {
            let built;
            let moved = match kept.and_then(|kept| kept.moved.get(composition)) {
                Some(moved) => moved,
                None => {
                    built = moved_in(&build(composition), base);
                    &built
                }
            };
            for (index, owner) in moved {
                let place = *index as usize;
                let is_none = *owner == 0
                    || ended.contains(owner)
                    || current.get(place) == Some(owner)
                    || base.get(place) == Some(owner);
                if is_none {
                    continue;
                }
                let owners = found.entry(*index).or_default();
                if !owners.contains(owner) {
                    owners.push(*owner);
                }
            }
        }
        let owners = found.into_iter();
        owners
            .map(|(index, owners)| (index, Formers::new(owners)))
            .collect()
    }
}

fn moved_in(table: &[u32], base: &[u32]) -> Moved {
    let pairs = (0..).zip(table.iter().zip(base));
    let moved = pairs.filter(|(_, (owner, base))| owner != base);
    moved.map(|(index, (owner, _))| (index, *owner)).collect()
}

/// Slots with the flag that says who of them has former owners.
pub fn flagged<'a>(
    slots: impl Iterator<Item = Slot> + 'a,
    formers: &'a FormerOwners,
) -> impl Iterator<Item = Slot> + 'a {
    let mut next = formers.iter().peekable();
    (0..).zip(slots).map(move |(index, slot)| {
        match next.next_if(|(flagged, _): &&(u32, Formers)| *flagged == index) {
            Some(_) => slot.with_formers(),
            None => slot,
        }
    })
}
