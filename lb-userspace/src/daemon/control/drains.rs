//! Drains over the socket.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use serde::Deserialize;

use super::{Answer, Control, done, parse};
use crate::{
    api::{Done, Drain, DrainRequest, DrainsRequest, UndrainRequest},
    daemon::engine::Engine,
    model::{
        command::{self, Selection, Terms},
        drain::By,
        refused::Refused,
        spec::OnDeadline,
    },
};

/// Longest time that a question about drains waits for news.
const WAIT_MAX: Duration = Duration::from_secs(60);

fn terms(
    timeout_ms: Option<u64>,
    on_deadline: Option<OnDeadline>,
    force: bool,
    as_backend: bool,
) -> Terms {
    Terms {
        timeout: timeout_ms.map(Duration::from_millis),
        on_deadline,
        force,
        by: by(as_backend),
    }
}

/// Who asks: a request is the operator's unless it says that it is the backend's own.
const fn by(as_backend: bool) -> By {
    if as_backend { By::Unit } else { By::Operator }
}

/// `POST /v1/drain`.
pub async fn drain(State(control): State<Control>, body: Bytes) -> Answer<Drain> {
    let request: DrainRequest = parse(&body)?;
    let terms = terms(
        request.timeout_ms,
        request.on_deadline,
        request.force,
        request.as_backend,
    );
    let work = move |engine: &mut Engine, now| {
        let drain = engine.drain(&request.backend, terms, now)?;
        engine.drain_view(drain, now)
    };
    Ok(Json(control.handle.command(work).await??))
}

/// `POST /v1/drains`.
pub async fn drain_all(State(control): State<Control>, body: Bytes) -> Answer<Vec<Drain>> {
    let request: DrainsRequest = parse(&body)?;
    let terms = terms(
        request.timeout_ms,
        request.on_deadline,
        request.force,
        request.as_backend,
    );
    let selection = Selection {
        backends: request.backends,
        pools: request.pools,
    };
    let work = move |engine: &mut Engine, now| {
        let drains = engine.drain_all(&selection, terms, now)?;
        let of: Vec<String> = drains.iter().map(u64::to_string).collect();
        engine.drains(&of, now)
    };
    Ok(Json(control.handle.command(work).await??))
}

/// `POST /v1/undrain`.
pub async fn undrain(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let request: UndrainRequest = parse(&body)?;
    let selection = Selection {
        backends: request
            .backend
            .into_iter()
            .chain(request.backends)
            .collect(),
        pools: request.pools,
    };
    let by = by(request.as_backend);
    let work = move |engine: &mut Engine, now| engine.undrain_all(&selection, by, now);
    done(control.handle.command(work).await?)
}

/// Query of a question about drains.
#[derive(Debug, Deserialize)]
pub struct Which {
    of: Option<String>,
    wait_ms: Option<u64>,
    until: Option<Until>,
}

/// What a wait is to end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Until {
    /// The end of all.
    #[default]
    Ended,
    /// That, or other terms or another state of one.
    Change,
}

/// `GET /v1/drains`.
pub async fn list(
    State(control): State<Control>,
    query: Result<Query<Which>, QueryRejection>,
) -> Answer<Vec<Drain>> {
    let Query(query) = query.map_err(|error| Refused::invalid(error.body_text()))?;
    let of = query.of.as_deref().unwrap_or_default().split(',');
    let of = of
        .filter(|one| !one.is_empty())
        .map(str::to_owned)
        .collect();
    Ok(Json(news(&control, of, &query).await?))
}

/// `GET /v1/drains/{id}`.
pub async fn one(
    State(control): State<Control>,
    Path(id): Path<String>,
    query: Result<Query<Which>, QueryRejection>,
) -> Answer<Drain> {
    if id.parse::<u64>().is_err() {
        return Err(Refused::invalid(format!("{id:?} is not a drain's number")).into());
    }
    let Query(query) = query.map_err(|error| Refused::invalid(error.body_text()))?;
    let mut drains = news(&control, vec![id], &query).await?;
    match drains.pop() {
        Some(drain) => Ok(Json(drain)),
        None => Err(Refused::unknown("no such drain").into()),
    }
}

/// Whether a wait has come to its end; `first`: the drains when it began.
fn is_over(until: Until, first: &[Drain], now: &[Drain]) -> bool {
    let terms = |drain: &Drain| (drain.deadline_ms, drain.on_deadline, drain.state.clone());
    let changed = |now: &Drain| {
        let mut first = first.iter();
        let same = first.find(|first| first.id == now.id);
        now.receipt.is_none() && same.is_none_or(|first| terms(first) != terms(now))
    };
    now.iter().all(|drain| drain.receipt.is_some())
        || until == Until::Change && now.iter().any(changed)
}

async fn news(control: &Control, of: Vec<String>, query: &Which) -> command::Result<Vec<Drain>> {
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(0)).min(WAIT_MAX);
    let end = tokio::time::Instant::now() + wait;
    let mut changes = control.handle.changes();
    let mut first: Option<Vec<Drain>> = None;
    loop {
        changes.mark_unchanged();
        let of = of.clone();
        let drains = control
            .handle
            .call(move |engine, now| engine.drains(&of, now))
            .await??;
        let first = first.get_or_insert_with(|| drains.clone());
        if is_over(query.until.unwrap_or_default(), first, &drains)
            || tokio::time::Instant::now() >= end
        {
            return Ok(drains);
        }
        let changed = tokio::time::timeout_at(end, changes.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return Ok(drains);
        }
    }
}
