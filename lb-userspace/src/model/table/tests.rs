//! What the table promises, for chosen sets of members and for generated ones.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SEED: [u8; 16] = *b"a seed of tests.";
const SLOTS: u32 = 65_537;

/// Keys for members 1, 2, 3 and so on.
fn keys(count: u32) -> Vec<String> {
    (1..=count).map(|id| format!("pool/b{id}")).collect()
}

/// One member a key, with ids from 1.
fn members<'a>(keys: &'a [String], weights: &[u32]) -> Vec<Member<'a>> {
    (1..)
        .zip(keys)
        .zip(weights)
        .map(|((id, key), &weight)| Member { key, id, weight })
        .collect()
}

fn equal(keys: &[String]) -> Vec<Member<'_>> {
    members(keys, &vec![100; keys.len()])
}

fn without<'a>(members: &[Member<'a>], gone: impl Fn(u32) -> bool) -> Vec<Member<'a>> {
    members
        .iter()
        .copied()
        .filter(|member| !gone(member.id))
        .collect()
}

/// Mean collateral, in %, of removing single members, for this table and for Maglev; and the worst imbalance here.
fn removal_figures(count: u32, trials: u32) -> (f64, f64, f64) {
    let keys = keys(count);
    let all = equal(&keys);
    let (ours, maglevs) = (build(&SEED, SLOTS, &all), maglev::build(&SEED, SLOTS, &all));
    let (mut sum, mut maglev_sum, mut imbalance) =
        (0.0, 0.0, quality(&ours, &ours, &all).imbalance);
    for trial in 0..trials {
        let gone = 1 + trial * (count / trials);
        let rest = without(&all, |id| id == gone);
        let found = quality(&ours, &build(&SEED, SLOTS, &rest), &rest);
        sum += found.collateral;
        imbalance = imbalance.max(found.imbalance);
        maglev_sum += quality(&maglevs, &maglev::build(&SEED, SLOTS, &rest), &rest).collateral;
    }
    let percent = 100.0 / f64::from(trials);
    (sum * percent, maglev_sum * percent, imbalance)
}

#[test]
fn fixed_slots_of_a_fixed_seed() {
    // Nodes of different versions share traffic: a change that makes this test fail moves flows between them.
    let keys = keys(5);
    let table = build(&SEED, 4_093, &members(&keys, &[1000, 1000, 500, 1, 0]));
    let picked: Vec<u32> = table.iter().step_by(256).copied().collect();
    let mut hasher = SipHasher24::new();
    table.iter().for_each(|id| hasher.write(&id.to_le_bytes()));
    assert_eq!(picked, [2, 1, 3, 3, 2, 2, 1, 2, 2, 3, 2, 1, 1, 2, 2, 1]);
    assert_eq!(
        hasher.finish128().as_u128(),
        251_806_550_909_450_289_472_973_536_026_632_366_253
    );
}

#[test]
fn nobody_has_weight() {
    let keys = keys(2);
    assert_eq!(build(&SEED, 7, &[]), [0; 7]);
    assert_eq!(build(&SEED, 7, &members(&keys, &[0, 0])), [0; 7]);
    assert!(build(&SEED, 0, &equal(&keys)).is_empty());
}

#[test]
fn a_single_member_has_everything() {
    let keys = keys(2);
    for slots in [1, 2, 4_093] {
        assert_eq!(
            build(&SEED, slots, &members(&keys, &[0, 7])),
            vec![2; slots as usize]
        );
    }
}

#[test]
fn the_seed_matters() {
    let keys = keys(10);
    assert_ne!(
        build(&SEED, 4_093, &equal(&keys)),
        build(&[7; 16], 4_093, &equal(&keys))
    );
}

#[test]
fn the_id_is_only_a_name() {
    let keys = keys(10);
    let here = equal(&keys);
    let there: Vec<_> = here
        .iter()
        .map(|member| Member {
            id: 1_000 - member.id,
            ..*member
        })
        .collect();
    let renamed: Vec<u32> = build(&SEED, 4_093, &here)
        .into_iter()
        .map(|id| 1_000 - id)
        .collect();
    assert_eq!(build(&SEED, 4_093, &there), renamed);
}

#[test]
fn a_number_of_slots_that_is_not_prime_still_works() {
    let keys = keys(9);
    for slots in [2, 4, 6, 8, 36, 4_096, 30_030] {
        let table = build(&SEED, slots, &equal(&keys));
        assert!(table.iter().all(|id| (1..=9).contains(id)), "{slots} slots");
    }
}

#[test]
fn equal_keys_are_settled_by_id() {
    let twins = [
        Member {
            key: "x",
            id: 1,
            weight: 1,
        },
        Member {
            key: "x",
            id: 2,
            weight: 1,
        },
    ];
    let turned = [twins[1], twins[0]];
    assert_eq!(build(&SEED, 4_093, &twins), build(&SEED, 4_093, &turned));
}

#[test]
fn light_members_among_heavy_ones_do_not_take_long() {
    // Full members stop asking; the rest, a thousand times slower, has to find the last slots.
    let keys = keys(300);
    let mut weights = vec![1; 300];
    weights[..3].fill(1000);
    let all = members(&keys, &weights);
    let table = build(&SEED, SLOTS, &all);
    assert!(quality(&table, &table, &all).share_error < 0.005);
}

#[test]
fn less_collateral_than_maglev_for_10() {
    let (ours, maglev, imbalance) = removal_figures(10, 10);
    assert!(ours < 0.18 && ours < maglev, "{ours} against {maglev}");
    assert!(imbalance <= 1.01, "{imbalance}");
}

#[test]
fn less_collateral_than_maglev_for_100() {
    let (ours, maglev, imbalance) = removal_figures(100, 10);
    assert!(ours < 0.52 && ours < maglev, "{ours} against {maglev}");
    assert!(imbalance <= 1.01, "{imbalance}");
}

#[test]
fn less_collateral_than_maglev_for_1000() {
    let (ours, maglev, imbalance) = removal_figures(1000, 4);
    assert!(ours < 0.60 && ours < maglev, "{ours} against {maglev}");
    assert!(imbalance <= 1.01, "{imbalance}");
}

#[test]
fn less_collateral_than_maglev_for_a_tenth_of_the_members_at_once() {
    let keys = keys(200);
    let all = equal(&keys);
    let rest = without(&all, |id| id % 10 == 0);
    let ours = quality(
        &build(&SEED, SLOTS, &all),
        &build(&SEED, SLOTS, &rest),
        &rest,
    )
    .collateral;
    let maglev = quality(
        &maglev::build(&SEED, SLOTS, &all),
        &maglev::build(&SEED, SLOTS, &rest),
        &rest,
    )
    .collateral;
    assert!(ours < maglev * 0.7, "{ours} against {maglev}");
}

#[test]
fn a_weight_step_moves_little_more_than_it_must() {
    let keys = keys(20);
    let full = equal(&keys);
    let mut stepped = full.clone();
    stepped[7].weight = 50;
    let found = quality(
        &build(&SEED, SLOTS, &full),
        &build(&SEED, SLOTS, &stepped),
        &stepped,
    );
    assert!(found.moved < found.needed + 0.002, "{found:?}");
}

#[test]
fn without_quotas_in_the_way_a_weight_step_moves_only_what_it_must() {
    let keys = keys(3);
    let (full, stepped) = (equal(&keys), members(&keys, &[100, 50, 100]));
    let found = quality(
        &build(&SEED, SLOTS, &full),
        &build(&SEED, SLOTS, &stepped),
        &stepped,
    );
    assert!(found.moved < found.needed + 0.0002, "{found:?}");
}

/// Weights of 1 to 40 members, at least one of them above 0; often equal, often far apart.
fn weights() -> impl Strategy<Value = Vec<u32>> {
    let weight = prop_oneof![Just(100_u32), 0..=1000_u32, Just(0), Just(1), Just(1000)];
    prop::collection::vec(weight, 1..40).prop_filter("somebody has weight", |all| {
        all.iter().any(|&weight| weight > 0)
    })
}

/// The same table, found slowly: all requests in order of time, each granted if slot and member have room.
fn build_in_order_of_time(seed: &[u8; 16], slots: u32, members: &[Member]) -> Vec<u32> {
    let mut askers: Vec<Asker> = members
        .iter()
        .filter(|member| member.weight > 0)
        .map(|member| Asker::new(seed, slots, member))
        .collect();
    prepare(&mut askers, slots);
    let mut requests = Vec::new();
    let mut turns = Turns::new(slots);
    for (index, asker) in askers.iter_mut().enumerate() {
        asker.set_time(&mut turns);
        requests.extend((0..slots).map(|_| (asker.time, index, asker.ask(&mut turns))));
    }
    requests.sort_unstable();
    let mut table = vec![0; slots as usize];
    for (_, index, slot) in requests {
        let asker = &mut askers[index];
        if table[slot as usize] == 0 && !asker.is_full() {
            table[slot as usize] = asker.id;
            asker.held += 1;
        }
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_members_does_not_matter(weights in weights(), seed: [u8; 16], turn in 0_usize..40) {
        let keys = keys(weights.len() as u32);
        let all = members(&keys, &weights);
        let mut turned: Vec<_> = all.iter().rev().copied().collect();
        turned.rotate_left(turn % all.len());
        prop_assert_eq!(build(&seed, 4_093, &all), build(&seed, 4_093, &turned));
    }

    #[test]
    fn the_earliest_who_has_room_owns_a_slot(weights in weights(), seed: [u8; 16]) {
        let keys = keys(weights.len() as u32);
        let all = members(&keys, &weights);
        prop_assert_eq!(build(&seed, 4_093, &all), build_in_order_of_time(&seed, 4_093, &all));
    }

    #[test]
    fn only_members_with_weight_own_slots(weights in weights(), seed: [u8; 16], slots in 1_u32..5_000) {
        let keys = keys(weights.len() as u32);
        let all = members(&keys, &weights);
        let weighty: BTreeSet<u32> = all.iter().filter(|member| member.weight > 0).map(|member| member.id).collect();
        let table = build(&seed, slots, &all);
        prop_assert_eq!(table.len(), slots as usize);
        prop_assert!(table.iter().all(|id| weighty.contains(id)));
    }

    #[test]
    fn members_without_weight_change_nothing(weights in weights(), seed: [u8; 16]) {
        let keys = keys(weights.len() as u32);
        let all = members(&keys, &weights);
        let weighty: Vec<_> = all.iter().filter(|member| member.weight > 0).copied().collect();
        prop_assert_eq!(build(&seed, 4_093, &all), build(&seed, 4_093, &weighty));
    }

    #[test]
    fn shares_follow_weights(weights in weights(), seed: [u8; 16]) {
        let keys = keys(weights.len() as u32);
        let all = members(&keys, &weights);
        let slots = choose_slots(all.len());
        let table = build(&seed, slots, &all);
        let found = quality(&table, &table, &all);
        prop_assert!(found.share_error <= 0.005, "{found:?}");
        // Nobody is above its quota.
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        for member in &all {
            let fair = f64::from(slots) * f64::from(member.weight) / total as f64;
            let owned = table.iter().filter(|&&id| id == member.id).count() as f64;
            prop_assert!(owned <= (fair * (1.0 + f64::from(SLACK_PPM) / 1e6)).ceil(), "{member:?}: {owned}, fair {fair}");
        }
    }

    #[test]
    fn a_member_that_returns_finds_its_slots(weights in weights(), seed: [u8; 16], gone in 1_u32..40) {
        let keys = keys(weights.len() as u32);
        let all = members(&keys, &weights);
        let before = build(&seed, 4_093, &all);
        let mut again = without(&all, |id| id == gone);
        let between = build(&seed, 4_093, &again);
        prop_assert!(!between.contains(&gone));
        again.extend(all.iter().filter(|member| member.id == gone));
        prop_assert_eq!(build(&seed, 4_093, &again), before);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The walks of two members can be alike (their steps are in a small ratio), and one of few members that leaves then
    /// disturbs more: with four members 5 of 2000 seeds had 0.6 % or more, two of them 2 %; with ten members 1 of 600 had
    /// 0.9 %. So the middle one of three seeds is judged.
    #[test]
    fn one_that_leaves_disturbs_few_others(count in 2_u32..200, seeds: [[u8; 16]; 3]) {
        let keys = keys(count);
        let all = equal(&keys);
        let rest = without(&all, |id| id == 1);
        let mut found = seeds.map(|seed| {
            quality(&build(&seed, SLOTS, &all), &build(&seed, SLOTS, &rest), &rest).collateral
        });
        found.sort_by(f64::total_cmp);
        prop_assert!(found[1] < 0.006, "{found:?}");
    }
}
