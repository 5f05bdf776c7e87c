//! Forecasts against drains that are played to their end.

use proptest::prelude::*;

use super::*;

/// Time between two looks of a played drain, milliseconds.
const LOOK_MS: u64 = 200;

/// SplitMix64 (Steele, Lea, Flood, 2014), as a number between 0 and 1.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean_ms: f64) -> u64 {
        (-mean_ms * (1.0 - self.unit()).ln()) as u64 + 1
    }
}

/// A flow of a played drain: its age at the start, and how long it lives on.
#[derive(Debug, Clone, Copy)]
struct Flow {
    age: u64,
    rest: u64,
    /// Whether its opening was seen.
    known: bool,
}

/// Everything that a drain knows after `ms`, and its forecast for `ahead` more.
fn play(flows: &[Flow], ms: u64, ahead: u64) -> (u64, Option<Forecast>) {
    let mut exposure = Exposure::default();
    let live_at = |now: u64| {
        let mut ages = Ages::default();
        let live = flows.iter().filter(|flow| flow.rest > now);
        live.clone()
            .filter(|flow| flow.known)
            .for_each(|flow| ages.add(flow.age + now));
        (live.count() as u64, ages)
    };
    for look in (0..ms / LOOK_MS).map(|look| look * LOOK_MS) {
        let (left, ages) = live_at(look);
        exposure.add(&ages, left - ages.count(), LOOK_MS);
    }
    let (left, live) = live_at(ms);
    let mut gone = Ages::default();
    let ended = flows.iter().filter(|flow| flow.rest <= ms && flow.known);
    ended.for_each(|flow| gone.add(flow.age + flow.rest));
    let picture = Picture {
        at_start: flows.len() as u64,
        left,
        live: &live,
        gone: &gone,
        exposure: &exposure,
    };
    (left, forecast(&picture, ahead))
}

/// Flows as a busy server has them: they live as `life` says, and were opened one after the other; those are there
/// that have not ended.
fn steady_state(
    count: usize,
    mean_ms: u64,
    mut life: impl FnMut() -> u64,
    random: &mut Random,
) -> Vec<Flow> {
    let mut flows = Vec::new();
    let window = 10.0 * mean_ms as f64;
    while flows.len() < count {
        let (age, life) = ((random.unit() * window) as u64, life());
        if life > age {
            flows.push(Flow {
                age,
                rest: life - age,
                known: true,
            });
        }
    }
    flows
}

fn alive_after(flows: &[Flow], ms: u64) -> f64 {
    flows.iter().filter(|flow| flow.rest > ms).count() as f64
}

#[test]
fn nothing_seen_is_no_forecast() {
    let flow = Flow {
        age: 1000,
        rest: 50_000,
        known: true,
    };
    assert_eq!(play(&[flow; 5], 10_000, 1000).1, None);
    assert_eq!(play(&[], 10_000, 1000).1, None);
}

#[test]
fn flows_without_memory_leave_as_they_did() {
    let mut lives = Random(7);
    let flows = steady_state(2000, 60_000, || lives.exponential(60_000.0), &mut Random(1));
    let (left, forecast) = play(&flows, 20_000, 100_000);
    let forecast = forecast.expect("many have left");
    let really = alive_after(&flows, 120_000);
    let said = forecast.outlive as f64;
    assert!(
        (said - really).abs() < 0.25 * really + 20.0,
        "of {left} {said} said, {really} were"
    );
    // ln(10) mean lives after the start.
    let most = forecast.most_gone_s.expect("soon") + 20.0;
    assert!((110.0..170.0).contains(&most), "{most}");
}

/// Short requests and connections that stay: the short ones leave at once, and say nothing of the others.
#[test]
fn old_flows_are_not_expected_to_leave_as_young_ones_do() {
    let mut flows = Vec::new();
    let mut random = Random(3);
    for n in 0..1000 {
        let (age, rest) = if n % 5 == 0 {
            (600_000 + n * 1000, 3_600_000)
        } else {
            (random.exponential(2_000.0), random.exponential(2_000.0))
        };
        flows.push(Flow {
            age,
            rest,
            known: true,
        });
    }
    let (left, forecast) = play(&flows, 20_000, 300_000);
    let forecast = forecast.expect("most have left");
    assert!((195..=210).contains(&left), "{left}");
    assert!(
        forecast.outlive >= 120,
        "200 stay, the forecast says {forecast:?}"
    );
    // What a rate over all flows would say.
    let naive = left as f64 * (-(800.0 / 20.0) / 400.0 * 300.0_f64).exp();
    assert!(naive < 1.0, "{naive}");
}

fn any_flows() -> impl Strategy<Value = Vec<Flow>> {
    let flow = (0u64..1 << 34, 0u64..1 << 24, any::<bool>());
    let flow = flow.prop_map(|(age, rest, known)| Flow { age, rest, known });
    prop::collection::vec(flow, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_forecast_is_possible(flows in any_flows(), looks in 0u64..40, ahead in any::<u64>()) {
        let (left, forecast) = play(&flows, looks * LOOK_MS, ahead);
        if let Some(forecast) = forecast {
            prop_assert!(forecast.outlive <= left);
            prop_assert!(forecast.seen <= flows.len() as u64 && forecast.seen > 0);
            if let Some(most) = forecast.most_gone_s {
                prop_assert!(most.is_finite() && most >= 0.0);
                prop_assert_eq!(most == 0.0, left as f64 <= flows.len() as f64 * (1.0 - MOST));
            }
        }
    }

    #[test]
    fn a_later_deadline_leaves_fewer(
        flows in any_flows(), looks in 1u64..40, ahead in 0u64..1 << 32, more in 0u64..1 << 32,
    ) {
        let at = |ahead| play(&flows, looks * LOOK_MS, ahead).1;
        if let (Some(sooner), Some(later)) = (at(ahead), at(ahead + more)) {
            prop_assert!(later.outlive <= sooner.outlive, "{:?} {:?}", sooner, later);
            prop_assert_eq!(later.most_gone_s, sooner.most_gone_s);
        }
    }

    /// With enough of them seen to leave, no more than a third off, whatever the mean life is.
    #[test]
    fn a_forecast_comes_true(seed in any::<u64>(), mean in 5_000u64..120_000, known in 0.0f64..1.0) {
        let mut lives = Random(seed);
        let mut flows = steady_state(1500, mean, || lives.exponential(mean as f64), &mut Random(!seed));
        let mut which = Random(seed ^ 1);
        flows.iter_mut().for_each(|flow| flow.known = which.unit() < known);
        let seen = mean / 2 / LOOK_MS * LOOK_MS;
        let (_, forecast) = play(&flows, seen, mean);
        let really = alive_after(&flows, seen + mean);
        let said = forecast.expect("a third has left").outlive as f64;
        prop_assert!((said - really).abs() < really / 3.0 + 20.0, "{} said, {} were", said, really);
    }
}
