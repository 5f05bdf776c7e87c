//! Plain Maglev, to compare with: members take turns, each takes the first slot of its own order that is still free.
//! Weights are not honoured. Written for the tests and the example, which includes this file.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use super::Member;

/// Maglev's table: one id a slot, `slots` prime.
pub fn build(seed: &[u8; 16], slots: u32, members: &[Member]) -> Vec<u32> {
    let modulus = u64::from(slots);
    let mut walks: Vec<(u64, u64, u32)> = members
        .iter()
        .map(|member| {
            let mut hasher = SipHasher24::new_with_key(seed);
            hasher.write(member.key.as_bytes());
            let hash = hasher.finish128();
            (hash.h1 % modulus, 1 + hash.h2 % (modulus - 1), member.id)
        })
        .collect();
    let mut table = vec![0; slots as usize];
    let mut free = slots;
    while !walks.is_empty() {
        for (next, step, id) in &mut walks {
            if free == 0 {
                return table;
            }
            while table[*next as usize] != 0 {
                *next = (*next + *step) % modulus;
            }
            table[*next as usize] = *id;
            free -= 1;
        }
    }
    table
}
