//! Prints how even the slot table is and how much a change disturbs it, against plain Maglev.
//!
//! `cargo run --release -p lb-userspace --example table_quality`

use std::time::Instant;

use comfy_table::Table;
use lb_userspace::model::table::{self, Member, Quality, quality};

#[path = "../src/model/table/maglev.rs"]
mod maglev;

const SLOTS: u32 = 65_537;
const SEEDS: u8 = 8;
const WEIGHT_STEP: &str = "one at half weight";

type Build = fn(&[u8; 16], u32, &[Member]) -> Vec<u32>;
type Change = fn(&mut Vec<Member>, usize);

fn main() {
    let changes: [(&str, Change); 4] = [
        ("one leaves", |members, seed| {
            members.remove(seed % members.len());
        }),
        ("a tenth leaves", |members, _| {
            members.retain(|member| member.id % 10 != 1)
        }),
        ("one joins", |members, _| {
            members.push(Member {
                key: "new",
                id: u32::MAX,
                weight: 100,
            })
        }),
        (WEIGHT_STEP, |members, seed| {
            let index = seed % members.len();
            members[index].weight /= 2;
        }),
    ];
    let mut rows = Table::new();
    rows.set_header([
        "members",
        "change",
        "table",
        "heaviest",
        "lightest",
        "moved %",
        "needed %",
        "collateral %",
        "ms",
    ]);
    for count in [3, 10, 100, 1000] {
        let keys: Vec<String> = (0..count).map(|index| format!("pool/b{index}")).collect();
        for (name, change) in changes {
            row(&mut rows, &keys, name, change, "ebb", table::build);
            // Plain Maglev knows no weights.
            if name != WEIGHT_STEP {
                row(&mut rows, &keys, name, change, "maglev", maglev::build);
            }
        }
    }
    println!("{SLOTS} slots, {SEEDS} seeds: worst shares, mean of the rest\n{rows}");
}

/// Measures one change for every seed and adds the row.
fn row(rows: &mut Table, keys: &[String], name: &str, change: Change, table: &str, build: Build) {
    let mut found: Vec<Quality> = Vec::new();
    let mut build_ms = 0.0;
    for seed in 0..SEEDS {
        let mut members: Vec<Member> = (1..)
            .zip(keys)
            .map(|(id, key)| Member {
                key,
                id,
                weight: 100,
            })
            .collect();
        let start = Instant::now();
        let before = build(&[seed; 16], SLOTS, &members);
        build_ms += start.elapsed().as_secs_f64() * 1e3;
        found.push(quality(&before, &before, &members));
        change(&mut members, usize::from(seed) * 37);
        found.push(quality(
            &before,
            &build(&[seed; 16], SLOTS, &members),
            &members,
        ));
    }
    // Every second measurement is of a table that did not change, so it adds nothing.
    let mean = |of: fn(&Quality) -> f64| found.iter().map(of).sum::<f64>() / f64::from(SEEDS);
    let heaviest = found
        .iter()
        .map(|quality| quality.imbalance)
        .fold(1.0, f64::max);
    let lightest = found
        .iter()
        .map(|quality| quality.lightest)
        .fold(1.0, f64::min);
    rows.add_row([
        keys.len().to_string(),
        name.to_owned(),
        table.to_owned(),
        format!("{heaviest:.4}"),
        format!("{lightest:.4}"),
        format!("{:.3}", 100.0 * mean(|quality| quality.moved)),
        format!("{:.3}", 100.0 * mean(|quality| quality.needed)),
        // After a weight step what is needed cannot be told from collateral slot by slot.
        if name == WEIGHT_STEP {
            "-".to_owned()
        } else {
            format!("{:.3}", 100.0 * mean(|quality| quality.collateral))
        },
        format!("{:.1}", build_ms / f64::from(SEEDS)),
    ]);
}
