//! Prefixes of clients: two tries in the kernel that take turns, so that thousands of prefixes change at once.

use aya::{
    Ebpf,
    maps::{
        MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    Addr,
    protect::{ClientRule, action},
};

use super::{Pod, map_error, take};
use crate::{
    datapath::{Error, Result},
    model::spec::{ClientAction, ClientRules, Prefix},
    step::{Step, step},
};

// SAFETY: plain integers without padding, as asserted in lb-common.
unsafe impl aya::Pod for Pod<ClientRule> {}

type Trie = LpmTrie<MapData, [u8; 16], Pod<ClientRule>>;

/// Bits in front of an IPv4 address in the 128 of an [`Addr`].
const MAPPED_BITS: u32 = 96;

/// Both tries.
pub struct Tries([Trie; 2]);

impl Tries {
    /// Takes them out of the loaded object.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        let mut trie = |name| Trie::try_from(take(ebpf, name)?).map_err(map_error);
        Ok(Self([trie("CLIENTS_1")?, trie("CLIENTS_2")?]))
    }

    /// Fills the trie that is not `live` (1 or 2, 0 for none); the number of the one to make live, 0 where there are no
    /// rules.
    pub fn fill(&mut self, live: u32, rules: &ClientRules) -> Result<u32> {
        if rules.0.is_empty() {
            return Ok(0);
        }
        let next = if live == 1 { 2 } else { 1 };
        let trie = self.trie_mut(next)?;
        let old: Vec<_> = trie
            .keys()
            .collect::<std::result::Result<_, _>>()
            .map_err(map_error)?;
        for key in old {
            step(Step::Call);
            trie.remove(&key).map_err(map_error)?;
        }
        for (prefix, action) in &rules.0 {
            let rule = ClientRule {
                action: match action {
                    ClientAction::Deny => action::DENY,
                    ClientAction::Allow => action::ALLOW,
                },
                ..ClientRule::default()
            };
            step(Step::Call);
            trie.insert(&key(prefix), Pod(rule), 0).map_err(map_error)?;
        }
        Ok(next)
    }

    /// Packets that each of the rules decided on in the trie `live`.
    pub fn read(&self, live: u32) -> Result<Vec<(Prefix, ClientAction, u64)>> {
        let Some(trie) = (live as usize).checked_sub(1).and_then(|at| self.0.get(at)) else {
            return Ok(Vec::new());
        };
        trie.iter()
            .map(|entry| {
                let (key, Pod(rule)) = entry.map_err(map_error)?;
                let action = if rule.action == action::DENY {
                    ClientAction::Deny
                } else {
                    ClientAction::Allow
                };
                let prefix = prefix(&key)
                    .ok_or_else(|| Error::Other("a client prefix without meaning".into()))?;
                Ok((prefix, action, rule.packets))
            })
            .collect()
    }

    fn trie_mut(&mut self, number: u32) -> Result<&mut Trie> {
        self.0
            .get_mut(number as usize - 1)
            .ok_or_else(|| Error::Other(format!("no trie {number}")))
    }
}

fn key(prefix: &Prefix) -> Key<[u8; 16]> {
    let mapped = if prefix.address().is_ipv4() {
        MAPPED_BITS
    } else {
        0
    };
    Key::new(
        mapped + u32::from(prefix.length()),
        Addr::from(prefix.address()).bytes(),
    )
}

fn prefix(key: &Key<[u8; 16]>) -> Option<Prefix> {
    let address = Addr::from_bytes(key.data());
    let mapped = if address.is_v4() { MAPPED_BITS } else { 0 };
    let length = u8::try_from(key.prefix_len().checked_sub(mapped)?).ok()?;
    Prefix::new(std::net::IpAddr::from(address), length)
}
