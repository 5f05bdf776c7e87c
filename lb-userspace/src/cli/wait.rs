//! Waiting for the end of a drain, over restarts of the daemon.

use std::time::{Duration, Instant};

use crate::api::Drain;

use super::{
    client::{Answer, Client, ClientError},
    error::CliError,
    human,
    progress::Progress,
};

/// Time that the daemon holds a poll that has nothing to tell: how often progress is shown.
const POLL: Duration = Duration::from_secs(1);

/// Time beyond [`POLL`] within which an answer counts.
const GRACE: Duration = Duration::from_secs(10);

/// Time that the daemon may be away: a restart takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time between attempts to reach a daemon that is away, and at least between two polls.
const PAUSE: Duration = Duration::from_millis(250);

/// How long the daemon has been away.
#[derive(Debug)]
struct Absence {
    patience: Duration,
    since: Option<Instant>,
}

impl Absence {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            since: None,
        }
    }

    /// It answered.
    fn ended(&mut self) {
        self.since = None;
    }

    /// It did not; the time that is left to it, `None` when it has been away for too long.
    fn goes_on(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let left = self.patience.saturating_sub(now.duration_since(since));
        (!left.is_zero()).then_some(left)
    }
}

/// A wait for one drain.
pub struct Wait<'c> {
    client: &'c Client,
    drain: Drain,
    progress: Progress,
    absence: Absence,
}

impl<'c> Wait<'c> {
    /// For the drain that `drain` is the latest news of.
    pub fn new(client: &'c Client, drain: Drain, progress: Progress) -> Self {
        Self {
            client,
            drain,
            progress,
            absence: Absence::new(PATIENCE),
        }
    }

    /// The latest news.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Takes the progress bar away.
    pub fn close(&mut self) {
        self.progress.close();
    }

    /// Polls until the drain has ended; the answer that says so. `first` is the answer that began it.
    ///
    /// # Errors
    ///
    /// The daemon refuses, or has been away for [`PATIENCE`].
    pub async fn until_ended(&mut self, first: Answer) -> Result<Answer, CliError> {
        let mut latest = first;
        let path = format!("/v1/drains/{}?wait_ms={}", self.drain.id, POLL.as_millis());
        while !ended(&self.drain) {
            self.progress
                .show(&self.drain, Instant::now(), human::now_ms());
            let asked = Instant::now();
            match self.client.get(&path, POLL + GRACE).await {
                Ok(answer) => {
                    self.absence.ended();
                    self.progress.back();
                    self.drain = answer.read()?;
                    latest = answer;
                    if ended(&self.drain) {
                        break;
                    }
                }
                Err(error) if error.may_pass() => self.away(&error)?,
                Err(error) => return Err(error.into()),
            }
            // A daemon that does not hold the poll must not be asked in a tight loop.
            tokio::time::sleep(PAUSE.saturating_sub(asked.elapsed())).await;
        }
        Ok(latest)
    }

    fn away(&mut self, error: &ClientError) -> Result<(), CliError> {
        let left = self.absence.goes_on(Instant::now());
        let name = &self.drain.backend;
        let left = left.ok_or_else(|| {
            CliError::failed(format!("lost the drain of {name} out of sight: {error}")).hint(
                format!(
                    "forwarding goes on without the daemon, and the drain with the next one: start \
                 it, then `ebb drain {name} --wait`"
                ),
            )
        })?;
        self.progress.away(error, left);
        Ok(())
    }
}

fn ended(drain: &Drain) -> bool {
    drain.receipt.is_some() || matches!(drain.state.as_str(), "drained" | "undrained")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_borne_for_so_long() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut absence = Absence::new(PATIENCE);
        assert_eq!(absence.goes_on(at(100)), Some(PATIENCE));
        assert_eq!(absence.goes_on(at(129)), Some(Duration::from_secs(1)));
        assert_eq!(absence.goes_on(at(130)), None);
        absence.ended();
        assert_eq!(absence.goes_on(at(131)), Some(PATIENCE));
    }
}
