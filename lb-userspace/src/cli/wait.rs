//! Waiting for the end of drains, over restarts of the daemon.

use std::time::{Duration, Instant};

use serde::Deserialize as _;
use serde_json::Value;

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

/// What the daemon said last of the drains that are waited for: as it came, with what a newer one may have added.
#[derive(Debug, Clone)]
pub struct News {
    /// One JSON object each.
    drains: Vec<Value>,
    /// Whether it is about one drain alone, and is shown without an array around it.
    single: bool,
}

impl News {
    /// An answer that is one drain.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn one(answer: &Answer) -> Result<Self, ClientError> {
        answer.read::<Drain>()?;
        Ok(Self {
            drains: vec![answer.read()?],
            single: true,
        })
    }

    /// An answer that is an array of drains.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn several(answer: &Answer) -> Result<Self, ClientError> {
        answer.read::<Vec<Drain>>()?;
        Ok(Self {
            drains: answer.read()?,
            single: false,
        })
    }

    /// The drains.
    ///
    /// # Errors
    ///
    /// They are none.
    pub fn drains(&self) -> Result<Vec<Drain>, CliError> {
        let read = |drain: &Value| Drain::deserialize(drain);
        let drains: Result<Vec<Drain>, _> = self.drains.iter().map(read).collect();
        drains.map_err(|error| {
            CliError::failed(format!("the daemon's answer is not understood: {error}"))
                .hint("is it an ebb daemon of the same version? `ebb version` shows both")
        })
    }

    /// Those that `keep` takes.
    #[must_use]
    pub fn only(mut self, keep: impl Fn(&Value) -> bool) -> Self {
        self.drains.retain(keep);
        self
    }

    /// As JSON.
    pub fn json(&self) -> String {
        self.shown(self.drains.clone())
    }

    /// The receipts alone, as JSON.
    pub fn receipts_json(&self) -> String {
        let receipt = |drain: &Value| drain.get("receipt").cloned().unwrap_or_default();
        self.shown(self.drains.iter().map(receipt).collect())
    }

    fn shown(&self, mut values: Vec<Value>) -> String {
        match values.pop() {
            Some(only) if self.single && values.is_empty() => only.to_string(),
            last => {
                values.extend(last);
                Value::Array(values).to_string()
            }
        }
    }
}

/// A wait for drains.
pub struct Wait<'c> {
    client: &'c Client,
    drains: Vec<Drain>,
    progress: Progress,
    absence: Absence,
}

impl<'c> Wait<'c> {
    /// For the drains that `drains` are the latest news of.
    pub fn new(client: &'c Client, drains: Vec<Drain>, progress: Progress) -> Self {
        Self {
            client,
            drains,
            progress,
            absence: Absence::new(PATIENCE),
        }
    }

    /// The latest news.
    pub fn drains(&self) -> &[Drain] {
        &self.drains
    }

    /// Takes the progress bars away.
    pub fn close(&mut self) {
        self.progress.close();
    }

    /// Polls until every drain has ended; the news that say so. `first`: those that began it.
    ///
    /// # Errors
    ///
    /// The daemon refuses, or has been away for [`PATIENCE`].
    pub async fn until_ended(&mut self, first: News) -> Result<News, CliError> {
        let mut latest = first;
        let path = self.path(&latest);
        while !self.drains.iter().all(ended) {
            self.progress.show(&self.drains, human::now_ms());
            let asked = Instant::now();
            match self.client.get(&path, POLL + GRACE).await {
                Ok(answer) => {
                    self.absence.ended();
                    self.progress.back();
                    latest = if latest.single {
                        News::one(&answer)?
                    } else {
                        News::several(&answer)?
                    };
                    self.drains = latest.drains()?;
                    if self.drains.iter().all(ended) {
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

    fn path(&self, news: &News) -> String {
        let wait = format!("wait_ms={}&until=change", POLL.as_millis());
        let ids: Vec<String> = self
            .drains
            .iter()
            .map(|drain| drain.id.to_string())
            .collect();
        if news.single {
            format!("/v1/drains/{}?{wait}", ids.concat())
        } else {
            format!("/v1/drains?of={}&{wait}", ids.join(","))
        }
    }

    fn away(&mut self, error: &ClientError) -> Result<(), CliError> {
        let left = self.absence.goes_on(Instant::now());
        let names: Vec<&str> = self.drains.iter().map(|d| d.backend.as_str()).collect();
        let names = names.join(", ");
        let left = left.ok_or_else(|| {
            CliError::failed(format!("lost the drain of {names} out of sight: {error}")).hint(
                "forwarding goes on without the daemon, and the drain with the next one: start \
                 it, then `ebb drains --wait`",
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
