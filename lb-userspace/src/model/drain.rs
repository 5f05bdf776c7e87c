//! A drain from its command to its receipt.
//!
//! [`step`] decides from what was observed; [`Admin::transition`] carries decisions out. Neither knows the clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ages::Ages,
    census::LINGER,
    forecast::Exposure,
    spec::{OnDeadline, millis},
};

/// What the operator wants of a backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// It takes new flows when it is healthy.
    #[default]
    Active,
    /// It keeps its flows and takes no new ones. In a place of its own: most backends are not draining, and there may be
    /// ten thousand.
    Draining(Box<Draining>),
    /// A drain has ended.
    Drained(Drained),
    /// Put aside by hand: takes no new flows, keeps what it has.
    Maintenance,
    /// It is gone; only its id is still held back.
    Removed,
}

/// Who asked for a drain. Whoever did not ask for it does not take it back by the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A person or a program, with a command.
    #[default]
    Operator,
    /// The configuration, which the backend has left.
    Configuration,
    /// Whoever runs the backend, such as its systemd unit: a command in the backend's name (`--as-backend`).
    Unit,
    /// The backend itself, in the answer to a check.
    Answer,
}

impl By {
    /// Whether the backend's own side asked for it.
    pub const fn is_backend(self) -> bool {
        matches!(self, Self::Unit | Self::Answer)
    }

    /// Whether a drain of `before` becomes this one's who asks for it again: an operator's stays his, whatever the
    /// backend says later.
    pub const fn takes_over(self, before: Self) -> bool {
        self.rank() > before.rank()
    }

    const fn rank(self) -> u8 {
        match self {
            Self::Answer => 0,
            Self::Unit => 1,
            Self::Operator => 2,
            Self::Configuration => 3,
        }
    }

    /// For people, after `asked for by`.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Operator => "the operator",
            Self::Configuration => "the configuration",
            Self::Unit => "the backend's unit",
            Self::Answer => "the backend's answer",
        }
    }

    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Configuration => "configuration",
            Self::Unit => "unit",
            Self::Answer => "answer",
        }
    }
}

/// A drain under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draining {
    /// Its number.
    pub id: u64,
    /// Who asked for it.
    #[serde(default)]
    pub by: By,
    /// When it began, Unix milliseconds.
    pub since_ms: u64,
    /// When it is to end, Unix milliseconds.
    pub deadline_ms: u64,
    /// What happens then.
    pub on_deadline: OnDeadline,
    /// Time over which flows are reset.
    #[serde(with = "millis")]
    pub spread: Duration,
    /// Flows it had when the drain took effect; `None` until they were counted.
    pub at_start: Option<u64>,
    /// What has been seen since.
    pub progress: Progress,
    /// Set once its deadline has passed and its flows are being cut.
    pub cutting: Option<Cutting>,
    /// Its backend was in maintenance before, and is again when the drain is taken back.
    #[serde(default)]
    pub maintained: bool,
}

/// What has been seen of a drain's flows so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Flows not seen for the idle timeout.
    pub idle_expired: u64,
    /// Age of the oldest flow when last seen, milliseconds.
    pub longest_ms: u64,
    /// Ages of flows as they ended, of those whose entry has been freed since and whose opening was seen.
    #[serde(default)]
    pub ages: Ages,
    /// Time that its flows have spent at each age.
    #[serde(default)]
    pub exposure: Exposure,
}

impl Progress {
    /// With what was seen since.
    pub fn merge(&mut self, other: &Self) {
        self.idle_expired += other.idle_expired;
        self.longest_ms = self.longest_ms.max(other.longest_ms);
        self.ages.merge(&other.ages);
        self.exposure.merge(&other.exposure);
    }
}

/// Flows being reset one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cutting {
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// Flows there were left to cut.
    pub left: u64,
}

/// A drain that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    /// Its number.
    pub id: u64,
    /// Who asked for it.
    #[serde(default)]
    pub by: By,
    /// Why it ended.
    pub reason: Reason,
    /// When, Unix milliseconds.
    pub ended_ms: u64,
    /// Whether flows were left to go on. If not, the backend's id means nobody any more.
    pub flows_go_on: bool,
    /// As of [`Draining`].
    #[serde(default)]
    pub maintained: bool,
}

/// Why a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// No flows left.
    Empty,
    /// Its deadline passed with flows left.
    Deadline,
    /// The backend died.
    Died,
    /// Taken back.
    Undrained,
}

impl Reason {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Deadline => "deadline",
            Self::Died => "died",
            Self::Undrained => "undrained",
        }
    }
}

/// What became of a drain's flows. `flows_at_start = finished + idle_expired + reset + died + left`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// `SERVICE/BACKEND`.
    pub backend: String,
    /// `empty`, `deadline`, `died` or `undrained`.
    pub reason: String,
    /// Flows it had when the drain began.
    pub flows_at_start: u64,
    /// Ended by themselves.
    pub finished: u64,
    /// Not seen for the service's idle timeout.
    pub idle_expired: u64,
    /// Cut at the deadline.
    pub reset: u64,
    /// Lost with their backend.
    pub died: u64,
    /// Left to go on.
    pub left: u64,
    /// Age of the oldest flow when it ended or was left.
    pub longest_s: f64,
    /// Flows whose age at their end is known: ebb saw them open, and listed them. The quantiles are theirs.
    #[serde(default)]
    pub ages_known: u64,
    /// Age that half of them did not exceed, to a sixteenth; `None` when none is known.
    #[serde(default)]
    pub p50_s: Option<f64>,
    /// Age that 99 in 100 of them did not exceed.
    #[serde(default)]
    pub p99_s: Option<f64>,
    /// How long the drain took.
    pub seconds: f64,
}

/// A drain that is over, with its receipt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The drain as it was last.
    pub drain: Draining,
    /// Why it ended.
    pub reason: Reason,
    /// When, Unix milliseconds.
    pub ended_ms: u64,
    /// Its receipt.
    pub receipt: Receipt,
}

/// What a look at the flow table and the counters says of a draining backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sight {
    /// Live flows listed.
    pub listed: u64,
    /// Flows opened and never seen to close, not listed: an upper bound.
    pub unseen: u64,
    /// Of those listed, the ones that have closed and are kept for stragglers only.
    pub closed: u64,
    /// Whether health says that it is down.
    pub down: bool,
    /// Whether it is down because nobody answers there.
    pub silent: bool,
    /// Whether it has died: its flows have nobody to talk to.
    pub dead: bool,
    /// Of a silent one: flows left when it was last known to answer.
    pub before: u64,
    /// Its last flows have just gone, and it has not been heard of since.
    pub doubtful: bool,
    /// When entries of flows were lost last, or not made for want of room, whoever's they were, Unix milliseconds; 0 for
    /// never.
    pub lost_ms: u64,
    /// Since when openings and closes are counted, where flows may be older than that, Unix milliseconds; 0 where the
    /// counters know all.
    pub counted_since_ms: u64,
}

impl Sight {
    /// Flows it may still have.
    pub const fn left(self) -> u64 {
        self.listed + self.unseen
    }

    /// Whether an idle timeout has passed since all of these: whoever lives has been seen in that time, and is listed.
    fn all_seen(self, since_ms: u64, idle_timeout: Duration, now_ms: u64) -> bool {
        let since_ms = since_ms.max(self.lost_ms).max(self.counted_since_ms);
        now_ms >= since_ms.saturating_add(as_ms(idle_timeout))
    }

    /// Whether the counters know all flows that are not listed.
    fn all_counted(self, idle_timeout: Duration, now_ms: u64) -> bool {
        let known_ms = self.counted_since_ms.saturating_add(as_ms(idle_timeout));
        self.counted_since_ms == 0 || now_ms >= known_ms
    }

    /// The same without those that have closed: what a deadline finds.
    pub const fn open(self) -> u64 {
        self.left().saturating_sub(self.closed)
    }
}

/// What a drain does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// Its deadline has passed: begin to cut.
    Cut(Cutting),
    /// It is over.
    End(End),
}

/// How a drain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// Flows not seen for too long to be alive, on top of those noted on the way.
    pub idle_expired: u64,
    /// Flows cut.
    pub reset: u64,
    /// Flows lost.
    pub died: u64,
    /// Flows left.
    pub left: u64,
}

impl End {
    /// An end with nothing left over.
    pub const fn of(reason: Reason) -> Self {
        Self {
            reason,
            idle_expired: 0,
            reset: 0,
            died: 0,
            left: 0,
        }
    }
}

/// Shortest drain. The counters do not know every flow: one that is closed on the client's side alone (which is all that
/// `l2` shows) may still carry an answer, and one may have been opened through another node. Whatever is busy is listed
/// within this time.
pub const LOOK_TIME: Duration = Duration::from_secs(2);

/// Decides what a drain does next.
///
/// - No flow is left, listed or not, and the counters know all of them: over, `empty`; but not before [`LOOK_TIME`].
/// - None is listed, and an idle timeout has passed since it began, since entries were lost and since the counters count:
///   over, `empty`. Whatever was not seen in that time has ended.
/// - The backend has died: over, `died`, with the flows that it had when it was last known to answer. So it is when none
///   is left and it is silent: the kernel of a killed server closes its connections.
/// - The backend is down and none of its flows is seen any more: over, `died`.
/// - The deadline has passed: the service's wish is done to the rest. Of a backend that is down the rest has died.
pub fn step(drain: &Draining, sight: Sight, idle_timeout: Duration, now_ms: u64) -> Step {
    if let Some(cutting) = drain.cutting {
        return step_cutting(drain, cutting, now_ms);
    }
    let died = sight.open().max(sight.before);
    if died > 0 && (sight.dead || sight.left() == 0 && sight.silent) {
        return Step::End(End {
            died,
            ..End::of(Reason::Died)
        });
    }
    if sight.left() == 0 && sight.doubtful {
        return Step::Wait;
    }
    if sight.left() == 0 && sight.all_counted(idle_timeout, now_ms) {
        let looked = now_ms >= drain.since_ms.saturating_add(as_ms(LOOK_TIME));
        return if looked {
            Step::End(End::of(Reason::Empty))
        } else {
            Step::Wait
        };
    }
    if sight.listed == 0 && sight.all_seen(drain.since_ms, idle_timeout, now_ms) {
        return Step::End(End {
            idle_expired: sight.unseen,
            ..End::of(Reason::Empty)
        });
    }
    if sight.listed == 0 && sight.unseen > 0 && sight.down {
        return Step::End(End {
            died: sight.unseen,
            ..End::of(Reason::Died)
        });
    }
    if now_ms < drain.deadline_ms {
        return Step::Wait;
    }
    // All have closed; their last packets are let through before the backend's id means nobody.
    if sight.open() == 0 && now_ms < drain.deadline_ms.saturating_add(as_ms(LINGER)) {
        return Step::Wait;
    }
    match drain.on_deadline {
        OnDeadline::Leave => Step::End(End {
            left: sight.open(),
            ..End::of(Reason::Deadline)
        }),
        OnDeadline::Reset | OnDeadline::Drop if sight.down => Step::End(End {
            died: sight.open(),
            ..End::of(Reason::Died)
        }),
        OnDeadline::Reset | OnDeadline::Drop => Step::Cut(Cutting {
            since_ms: now_ms,
            left: sight.open(),
        }),
    }
}

/// Time that a drain goes on dropping, so that the clients' packets meet silence and not another backend's reset.
const DROP_TIME: Duration = Duration::from_secs(5);

/// Time that a drain goes on resetting once all of its flows are to be. Whoever waits for an answer at that moment has
/// nothing to send: it must get its answer, which the backend gives only while it is known, and then send something.
pub const LAST_CALL: Duration = Duration::from_secs(2);

fn step_cutting(drain: &Draining, cutting: Cutting, now_ms: u64) -> Step {
    let time = match drain.on_deadline {
        OnDeadline::Reset | OnDeadline::Leave => drain.spread + LAST_CALL,
        OnDeadline::Drop => DROP_TIME,
    };
    if now_ms < cutting.since_ms.saturating_add(as_ms(time)) {
        return Step::Wait;
    }
    Step::End(End {
        reset: cutting.left,
        ..End::of(Reason::Deadline)
    })
}

impl Draining {
    /// The state after a change that concerns a drain under way.
    fn transition(mut self: Box<Self>, change: Change) -> Admin {
        match change {
            Change::Drain(new) => {
                self.by = new.by;
                self.deadline_ms = new.deadline_ms;
                self.on_deadline = new.on_deadline;
                self.spread = new.spread;
                self.cutting = new.cutting;
            }
            Change::Counted(flows) => self.at_start = Some(flows),
            Change::Progress(progress) => self.progress = progress,
            Change::Cut(cutting) => self.cutting = Some(cutting),
            Change::Adopt(by) => self.by = by,
            Change::End(drained) => return Admin::Drained(drained),
            Change::Activate => return Admin::Active,
            Change::Maintain => return Admin::Maintenance,
            Change::Remove => return Admin::Removed,
        }
        Admin::Draining(self)
    }

    /// How far flows are cut at `now_ms`, as in [`lb_common::abi::BackendRecord::cut`].
    pub fn cut(&self, now_ms: u64) -> u32 {
        let Some(cutting) = self.cutting else {
            return 0;
        };
        let spread = as_ms(self.spread);
        let passed = now_ms.saturating_sub(cutting.since_ms);
        if self.on_deadline == OnDeadline::Drop || passed >= spread {
            return u32::MAX;
        }
        (u128::from(u32::MAX) * u128::from(passed) / u128::from(spread)) as u32
    }

    /// The receipt of this drain if it ends so. Its parts always add up: flows that nobody knew of at the start
    /// (another node's, adopted here later) are added to those at the start.
    ///
    /// `ages`: of the flows that are still listed, as they ended or are left.
    pub fn receipt(&self, backend: String, end: End, ages: &Ages, now_ms: u64) -> Receipt {
        let mut all = self.progress.ages.clone();
        all.merge(ages);
        // Those that came to their end between two looks are in the ages alone.
        let longest_ms = self.progress.longest_ms.max(all.reached());
        let quantile = |q| {
            let age = all.quantile(q)?.min(longest_ms);
            Some(age as f64 / 1000.0)
        };
        let idle_expired = self.progress.idle_expired + end.idle_expired;
        let known = idle_expired + end.reset + end.died + end.left;
        let flows_at_start = self.at_start.unwrap_or(0).max(known);
        Receipt {
            backend,
            reason: end.reason.name().to_owned(),
            flows_at_start,
            finished: flows_at_start - known,
            idle_expired,
            reset: end.reset,
            died: end.died,
            left: end.left,
            longest_s: longest_ms as f64 / 1000.0,
            ages_known: all.count().min(flows_at_start),
            p50_s: quantile(0.5),
            p99_s: quantile(0.99),
            seconds: now_ms.saturating_sub(self.since_ms) as f64 / 1000.0,
        }
    }
}

/// What happens to a backend's [`Admin`] state.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A drain begins, or its terms change.
    Drain(Draining),
    /// Its flows at the start were counted.
    Counted(u64),
    /// Its progress was noted.
    Progress(Progress),
    /// Its deadline has passed.
    Cut(Cutting),
    /// It has ended.
    End(Drained),
    /// Somebody else wants it as well, and from now on it is his.
    Adopt(By),
    /// It is taken back, or the backend returns to work.
    Activate,
    /// The backend is put aside.
    Maintain,
    /// The backend is removed.
    Remove,
}

impl Admin {
    /// The state after `change`; a change that does not apply in this state leaves it as it is.
    #[must_use]
    pub fn transition(self, change: Change) -> Self {
        match (self, change) {
            (Self::Removed, _) => Self::Removed,
            (_, Change::Remove) => Self::Removed,
            (_, Change::Activate) => Self::Active,
            (_, Change::Maintain) => Self::Maintenance,
            (Self::Draining(drain), change) => drain.transition(change),
            (state, Change::Drain(new)) => Self::Draining(Box::new(Draining {
                maintained: state.is_maintained(),
                ..new
            })),
            (Self::Drained(drained), Change::Adopt(by)) => Self::Drained(Drained { by, ..drained }),
            (state @ (Self::Active | Self::Maintenance), Change::Adopt(_)) => state,
            (
                state @ (Self::Active | Self::Drained(_) | Self::Maintenance),
                Change::Counted(_) | Change::Progress(_) | Change::Cut(_) | Change::End(_),
            ) => state,
        }
    }

    /// Its name in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining(_) => "draining",
            Self::Drained(_) => "drained",
            Self::Maintenance => "maintenance",
            Self::Removed => "removed",
        }
    }

    /// For people, after "it is".
    pub const fn words(&self) -> &'static str {
        match self {
            Self::Maintenance => "in maintenance",
            other => other.name(),
        }
    }

    /// Whether it is in maintenance, or was before its drain.
    pub const fn is_maintained(&self) -> bool {
        match self {
            Self::Maintenance => true,
            Self::Draining(drain) => drain.maintained,
            Self::Drained(drained) => drained.maintained,
            Self::Active | Self::Removed => false,
        }
    }

    /// The drain under way.
    pub const fn draining(&self) -> Option<&Draining> {
        match self {
            Self::Draining(drain) => Some(drain),
            _ => None,
        }
    }

    /// Who asked for the drain that is under way or has ended.
    pub const fn drained_by(&self) -> Option<By> {
        match self {
            Self::Draining(drain) => Some(drain.by),
            Self::Drained(drained) => Some(drained.by),
            Self::Active | Self::Maintenance | Self::Removed => None,
        }
    }

    /// Whether nobody's flows are there any more: packets for it go to the current backend, which resets them.
    pub const fn is_ended(&self) -> bool {
        match self {
            Self::Removed => true,
            Self::Drained(drained) => !drained.flows_go_on,
            Self::Active | Self::Draining(_) | Self::Maintenance => false,
        }
    }
}

/// A duration as whole milliseconds.
pub fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(350);

    fn drain(on_deadline: OnDeadline) -> Draining {
        Draining {
            id: 1,
            by: By::Operator,
            since_ms: 1_000,
            deadline_ms: 11_000,
            on_deadline,
            spread: Duration::from_secs(4),
            at_start: Some(10),
            progress: Progress::default(),
            cutting: None,
            maintained: false,
        }
    }

    fn sight(listed: u64, unseen: u64, down: bool) -> Sight {
        Sight {
            listed,
            unseen,
            down,
            ..Sight::default()
        }
    }

    #[test]
    fn steps() {
        use OnDeadline::{Drop, Leave, Reset};
        let end = |reason| Step::End(End::of(reason));
        let idle = 1_000 + 350_000;
        #[rustfmt::skip]
        let rows = [
            ("flows left", Reset, sight(3, 0, false), 5_000, Step::Wait),
            ("unseen flows hold it", Reset, sight(0, 2, false), 5_000, Step::Wait),
            ("none left", Reset, sight(0, 0, false), 3_000, end(Reason::Empty)),
            ("none left, but nobody has looked for long", Reset, sight(0, 0, false), 2_999, Step::Wait),
            ("none left at the deadline", Reset, sight(0, 0, false), 11_000, end(Reason::Empty)),
            ("unseen for the idle time", Leave, sight(0, 2, false), idle,
                Step::End(End { idle_expired: 2, ..End::of(Reason::Empty) })),
            ("unseen for the idle time, but not since entries were lost", Leave,
                Sight { lost_ms: 2_000, ..sight(0, 2, false) }, idle, Step::End(End { left: 2, ..End::of(Reason::Deadline) })),
            ("none left, but not all were counted", Reset, Sight { counted_since_ms: 900, ..sight(0, 0, false) }, 5_000, Step::Wait),
            ("nor is anybody known to have died", Reset, Sight { counted_since_ms: 900, ..sight(0, 0, true) }, 5_000, Step::Wait),
            ("the deadline finds whoever was not counted", Reset, Sight { counted_since_ms: 900, ..sight(0, 0, false) }, 15_000,
                Step::Cut(Cutting { since_ms: 15_000, left: 0 })),
            ("none left, and counted for an idle time", Reset, Sight { counted_since_ms: 900, ..sight(0, 0, false) }, idle,
                end(Reason::Empty)),
            ("died", Reset, sight(0, 2, true), 5_000, Step::End(End { died: 2, ..End::of(Reason::Died) })),
            ("dead", Reset, Sight { dead: true, before: 5, ..sight(1, 2, true) }, 5_000,
                Step::End(End { died: 5, ..End::of(Reason::Died) })),
            ("closed by the kernel of the dead", Leave, Sight { silent: true, before: 5, ..sight(0, 0, true) }, 5_000,
                Step::End(End { died: 5, ..End::of(Reason::Died) })),
            ("silent after its flows had ended", Leave, Sight { silent: true, ..sight(0, 0, true) }, 5_000, end(Reason::Empty)),
            ("none left, and not heard of since", Reset, Sight { doubtful: true, ..sight(0, 0, false) }, 5_000, Step::Wait),
            ("down, but flows are seen", Reset, sight(1, 2, true), 5_000, Step::Wait),
            ("deadline: reset", Reset, sight(3, 1, false), 11_000, Step::Cut(Cutting { since_ms: 11_000, left: 4 })),
            ("deadline: drop", Drop, sight(3, 1, false), 11_500, Step::Cut(Cutting { since_ms: 11_500, left: 4 })),
            ("deadline: leave", Leave, sight(3, 1, false), 11_000,
                Step::End(End { left: 4, ..End::of(Reason::Deadline) })),
            ("deadline, down", Reset, sight(3, 1, true), 11_000, Step::End(End { died: 4, ..End::of(Reason::Died) })),
        ];
        for (what, on_deadline, sight, now, wanted) in rows {
            assert_eq!(
                step(&drain(on_deadline), sight, IDLE, now),
                wanted,
                "{what}"
            );
        }
    }

    #[test]
    fn cutting_rises_over_the_spread_and_then_ends() {
        let mut drain = drain(OnDeadline::Reset);
        assert_eq!(drain.cut(20_000), 0);
        drain.cutting = Some(Cutting {
            since_ms: 11_000,
            left: 4,
        });
        assert_eq!(drain.cut(11_000), 0);
        assert_eq!(drain.cut(13_000), u32::MAX / 2);
        assert_eq!(drain.cut(15_000), u32::MAX);
        assert_eq!(step(&drain, sight(4, 0, false), IDLE, 16_999), Step::Wait);
        let end = End {
            reset: 4,
            ..End::of(Reason::Deadline)
        };
        assert_eq!(
            step(&drain, sight(4, 0, false), IDLE, 17_000),
            Step::End(end)
        );
    }

    proptest! {
        #[test]
        fn a_receipt_accounts_for_every_flow(
            at_start in prop::option::of(0u64..1000), idle in 0u64..100, more in 0u64..100,
            reset in 0u64..1000, died in 0u64..1000, left in 0u64..1000,
        ) {
            let mut drain = drain(OnDeadline::Reset);
            drain.at_start = at_start;
            drain.progress.idle_expired = idle;
            let end = End { reason: Reason::Deadline, idle_expired: more, reset, died, left };
            let receipt = drain.receipt("s/b".into(), end, &Ages::default(), 12_000);
            prop_assert_eq!(
                receipt.flows_at_start,
                receipt.finished + receipt.idle_expired + receipt.reset + receipt.died + receipt.left
            );
            prop_assert!(receipt.flows_at_start >= at_start.unwrap_or(0));
        }
    }

    #[test]
    fn a_receipt_has_the_ages_that_are_known() {
        let mut drain = drain(OnDeadline::Leave);
        let receipt = |drain: &Draining, listed: &Ages| {
            drain.receipt("s/b".into(), End::of(Reason::Empty), listed, 12_000)
        };
        let none = receipt(&drain, &Ages::default());
        assert_eq!((none.ages_known, none.p50_s), (0, None));
        (1..=5).for_each(|n| drain.progress.ages.add(n * 1000));
        drain.progress.longest_ms = 90_000;
        let mut listed = Ages::default();
        listed.add(90_000);
        let six = receipt(&drain, &listed);
        assert_eq!(six.ages_known, 6);
        assert!((2.8..=3.2).contains(&six.p50_s.unwrap()), "{six:?}");
        assert!((85.0..=90.0).contains(&six.p99_s.unwrap()), "{six:?}");
    }

    #[test]
    fn a_second_drain_changes_the_terms_only() {
        let first = Admin::Draining(Box::new(drain(OnDeadline::Reset)));
        let mut second = drain(OnDeadline::Leave);
        (
            second.id,
            second.since_ms,
            second.deadline_ms,
            second.at_start,
        ) = (7, 9_000, 99_000, None);
        let Admin::Draining(merged) = first.transition(Change::Drain(second)) else {
            panic!("still draining");
        };
        assert_eq!(
            (merged.id, merged.since_ms, merged.at_start),
            (1, 1_000, Some(10))
        );
        assert_eq!(
            (merged.deadline_ms, merged.on_deadline),
            (99_000, OnDeadline::Leave)
        );
    }

    #[test]
    fn a_deadline_finds_open_flows_only() {
        let mut drain = drain(OnDeadline::Leave);
        let closing = Sight {
            closed: 3,
            ..sight(10, 2, false)
        };
        let now_ms = drain.deadline_ms;
        let Step::End(end) = step(&drain, closing, IDLE, now_ms) else {
            panic!("over");
        };
        assert_eq!(end.left, 9);
        drain.on_deadline = OnDeadline::Reset;
        let cut = Step::Cut(Cutting {
            since_ms: now_ms,
            left: 9,
        });
        assert_eq!(step(&drain, closing, IDLE, now_ms), cut);

        // With none open there is only a moment to wait.
        let closed = Sight {
            closed: 4,
            ..sight(4, 0, false)
        };
        assert_eq!(step(&drain, closed, IDLE, now_ms), Step::Wait);
        assert_ne!(
            step(&drain, closed, IDLE, now_ms + as_ms(LINGER)),
            Step::Wait
        );
    }

    #[test]
    fn a_drain_remembers_maintenance() {
        let begin = |before: Admin| before.transition(Change::Drain(drain(OnDeadline::Reset)));
        let ended = |draining: Admin| {
            let maintained = draining.is_maintained();
            draining.transition(Change::End(Drained {
                id: 1,
                by: By::Operator,
                reason: Reason::Empty,
                ended_ms: 2_000,
                flows_go_on: false,
                maintained,
            }))
        };
        assert!(!begin(Admin::Active).is_maintained());
        assert!(begin(Admin::Maintenance).is_maintained());
        // Other terms of the same drain.
        assert!(begin(begin(Admin::Maintenance)).is_maintained());
        assert!(begin(ended(begin(Admin::Maintenance))).is_maintained());
        assert!(
            !begin(Admin::Maintenance)
                .transition(Change::Activate)
                .is_maintained()
        );
    }

    #[test]
    fn removed_is_for_ever() {
        assert_eq!(Admin::Removed.transition(Change::Activate), Admin::Removed);
    }
}
