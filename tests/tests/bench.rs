//! The bench itself: every row that it measures is proven frame by frame, so a run that ends well is a test of the
//! program, and one over a wrong program must fail. Needs root.

use anyhow::Result;
use ebb_tests::bench::{self, Family, REFERENCE, Settings};

#[test]
fn every_row_is_proven() -> Result<()> {
    let report = bench::run(&Settings {
        rounds: 1,
        flows: vec![1],
        families: vec![Family::V4, Family::V6],
        only: Vec::new(),
        cpu: None,
        object: None,
        live: false,
        progress: false,
    })?;
    assert!(report.verifier.instructions > 0 && report.verifier.jited_bytes > 0);
    assert!(report.floors.iter().any(|floor| floor.name == REFERENCE));
    for kind in ["established", "pass", "reply", "retransmitted opening"] {
        for family in ["v4", "v6"] {
            assert!(
                report.cases.iter().any(
                    |case| (case.kind, case.family) == (kind, family) && case.ratio.is_finite()
                ),
                "{kind} {family}"
            );
        }
    }
    assert!(report.table.build_ms > 0.0 && report.table.publish_ms > 0.0);
    // One slot of some 131 is 0.8 %.
    assert!(report.table.heaviest < 1.02, "{}", report.table);
    Ok(())
}
