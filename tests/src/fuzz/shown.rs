//! What the tracing program must show of every packet: one record, which says what the counters, the verdict and the
//! frames say.

use lb_common::trace::{FRAME_MAX, TraceFilter};
use lb_userspace::datapath::trace::Record;

use super::oracle::{Broken, Run, rule};
use crate::rig::Verdict;

/// Everything, with all of its bytes.
pub const FILTER: TraceFilter = TraceFilter {
    snap_came: FRAME_MAX as u32,
    snap_left: FRAME_MAX as u32,
    ..TraceFilter::ALL
};

/// Judges the records of one packet.
///
/// # Errors
/// The first rule that they break.
pub fn judge(run: &Run<'_>, shown: &[Record]) -> Result<(), Broken> {
    let [record] = shown else {
        return Err(Broken(format!(
            "a packet is shown once; it was shown {} times",
            shown.len()
        )));
    };
    let event = &record.event;
    rule!(
        event.outcome == run.outcome as u32 && event.service == run.service,
        "shown as outcome {} of service {}, counted as {:?} of {}",
        event.outcome,
        event.service,
        run.outcome,
        run.service
    );
    rule!(
        Verdict::from_code(event.verdict) == run.verdict,
        "shown with the verdict {}, which was {:?}",
        event.verdict,
        run.verdict
    );
    rule!(
        record.came == run.input && event.length as usize == run.input.len(),
        "the frame that came is shown as {:02x?}",
        record.came
    );
    let sent = match run.verdict {
        Verdict::Tx | Verdict::Redirect => run.output,
        _ => &[],
    };
    rule!(
        record.left == sent && event.length_left as usize == sent.len(),
        "the frame that left is shown as {:02x?}",
        record.left
    );
    rule!(
        (event.exit == 0) == sent.is_empty() && event.left >= event.came,
        "sent out by interface {}, from {} to {}",
        event.exit,
        event.came,
        event.left
    );
    Ok(())
}
