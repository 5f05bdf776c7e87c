//! The control socket: requests as HTTP with JSON bodies, answered by the core.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, Query, State, connect_info::Connected},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::UnixListener, sync::watch};

use super::{
    RunOptions,
    core::Handle,
    engine::{Engine, Facts},
    trace::Trace,
};
use crate::{
    api::{
        AddRequest, BackendRequest, ClientPrefix, Done, ExplainRequest, Explained, Flow, Refusal,
        ReloadRequest, Reloaded, Status, StopRequest, SwitchRequest, TraceRequest, Version,
    },
    model::{
        refused::{Refused, RefusedKind},
        spec::BackendSpec,
    },
};

mod admin;
mod drains;

/// What every request needs.
#[derive(Clone)]
pub struct Control {
    /// The core.
    pub handle: Handle,
    /// The process.
    pub facts: Arc<Facts>,
    /// Where things are.
    pub options: RunOptions,
    /// True when the daemon stops.
    pub stopped: watch::Receiver<bool>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
struct Peer(String);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(match stream.io().peer_cred() {
            Ok(peer) => match peer.pid() {
                Some(pid) => format!("process {pid} of user {}", peer.uid()),
                None => format!("a process of user {}", peer.uid()),
            },
            Err(_) => "somebody".to_owned(),
        })
    }
}

/// A refusal on its way out.
pub struct Refuse(StatusCode, Refusal);

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self {
            error: refused.error,
            hint: refused.hint,
        }
    }
}

impl From<Refused> for Refuse {
    fn from(refused: Refused) -> Self {
        let status = match refused.kind {
            RefusedKind::Invalid => StatusCode::BAD_REQUEST,
            RefusedKind::Unknown => StatusCode::NOT_FOUND,
            RefusedKind::Conflict => StatusCode::CONFLICT,
            RefusedKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, refused.into())
    }
}

impl IntoResponse for Refuse {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refuse>;

/// Serves until `stopped` says so.
pub async fn serve(listener: UnixListener, control: Control, mut stopped: watch::Receiver<bool>) {
    let stop = async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let router = router(control).into_make_service_with_connect_info::<Peer>();
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await;
    if let Err(error) = served {
        tracing::error!("the control socket has failed: {error}");
    }
}

/// All routes.
pub fn router(control: Control) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/drain", post(drains::drain))
        .route("/v1/drains", get(drains::list).post(drains::drain_all))
        .route("/v1/drains/{id}", get(drains::one))
        .route("/v1/undrain", post(drains::undrain))
        .route("/v1/weight", post(admin::weight))
        .route("/v1/maintenance", post(admin::maintenance))
        .route("/v1/activate", post(admin::activate))
        .route("/v1/remove", post(remove))
        .route("/v1/add", post(add))
        .route("/v1/switch", post(switch))
        .route("/v1/reload", post(reload_route))
        .route("/v1/flows", get(flows))
        .route("/v1/clients", get(clients))
        .route("/v1/explain", post(explain))
        .route("/v1/trace", post(trace))
        .route("/v1/version", get(version))
        .route("/v1/stop", post(stop))
        .fallback(|| async {
            Refuse::from(Refused::unknown("no such call").hint("GET /v1/status is one"))
        })
        .method_not_allowed_fallback(|| async {
            let refusal = Refusal {
                error: "this call wants another method".to_owned(),
                hint: None,
            };
            Refuse(StatusCode::METHOD_NOT_ALLOWED, refusal)
        })
        .with_state(control)
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refused> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body)
        .map_err(|error| Refused::invalid(format!("the request's body: {error}")))
}

async fn stop(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let request: StopRequest = parse(&body)?;
    control.options.stop.give(request.detach);
    let rest = if request.detach {
        "nothing is forwarded any more"
    } else {
        "forwarding goes on"
    };
    Ok(Json(Done {
        done: format!("stopping; {rest}"),
    }))
}

async fn status(State(control): State<Control>) -> Answer<Status> {
    let facts = Arc::clone(&control.facts);
    Ok(Json(
        control
            .handle
            .call(move |engine, now| engine.status(&facts, now))
            .await?,
    ))
}

async fn clients(State(control): State<Control>) -> Answer<Vec<ClientPrefix>> {
    Ok(Json(
        control.handle.call(|engine, _| engine.clients()).await??,
    ))
}

async fn remove(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let request: BackendRequest = parse(&body)?;
    let work = move |engine: &mut Engine, now| engine.remove(&request.backend, request.force, now);
    done(control.handle.command(work).await?)
}

async fn add(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let request: AddRequest = parse(&body)?;
    let spec = BackendSpec {
        address: request.address,
        weight: request.weight.unwrap_or(1),
        server_id: None,
    };
    let work = move |engine: &mut Engine, now| {
        if request.if_absent && engine.has(&request.backend, request.address) {
            return Ok(format!("{} is there already", request.backend));
        }
        engine.add(&request.backend, spec, now)
    };
    done(control.handle.command(work).await?)
}

async fn switch(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let request: SwitchRequest = parse(&body)?;
    let work = move |engine: &mut Engine, now| {
        engine.switch(&request.service, &request.pool, request.force, now)
    };
    done(control.handle.command(work).await?)
}

fn done(result: Result<String, Refused>) -> Answer<Done> {
    Ok(Json(Done { done: result? }))
}

async fn reload_route(State(control): State<Control>, body: Bytes) -> Answer<Reloaded> {
    let request: ReloadRequest = parse(&body)?;
    match reload(&control, request.dry_run).await {
        Ok(reloaded) => Ok(Json(reloaded)),
        Err(refusal) => Err(Refuse(StatusCode::CONFLICT, refusal)),
    }
}

/// Reads the configuration again and follows it, or only says what that would change.
///
/// # Errors
/// What is wrong with it. Nothing has changed then.
pub async fn reload(control: &Control, dry_run: bool) -> Result<Reloaded, Refusal> {
    let options = control.options.clone();
    let load = move || (options.load)(&options.config);
    let loaded = tokio::task::spawn_blocking(load).await;
    let failed = |error: String| Refusal { error, hint: None };
    let spec = loaded
        .map_err(|error| failed(format!("the configuration could not be read: {error}")))??;
    let work = move |engine: &mut Engine, now| {
        if dry_run {
            engine.plan_reload(&spec, now)
        } else {
            engine.reload(spec, now)
        }
    };
    let changes = control
        .handle
        .command(work)
        .await
        .map_err(Refusal::from)?
        .map_err(Refusal::from)?;
    Ok(Reloaded {
        applied: !dry_run,
        changes,
    })
}

/// Query of a list of flows.
#[derive(Debug, Deserialize)]
struct Which {
    service: Option<String>,
    backend: Option<String>,
}

async fn flows(
    State(control): State<Control>,
    query: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<Flow>> {
    let Query(which) = query.map_err(|error| Refused::invalid(error.body_text()))?;
    let work = move |engine: &mut Engine, _| {
        engine.flows(which.service.as_deref(), which.backend.as_deref())
    };
    Ok(Json(control.handle.call(work).await??))
}

async fn explain(State(control): State<Control>, body: Bytes) -> Answer<Explained> {
    let request: ExplainRequest = parse(&body)?;
    let work = move |engine: &mut Engine, _| {
        let cid = request.cid.as_deref();
        engine.explain(&request.service, request.from, request.port, cid)
    };
    Ok(Json(control.handle.call(work).await??))
}

async fn trace(
    State(control): State<Control>,
    ConnectInfo(Peer(by)): ConnectInfo<Peer>,
    body: Bytes,
) -> Result<Response, Refuse> {
    let request: TraceRequest = parse(&body)?;
    // On a task of its own: a client that goes away meanwhile must not leave the trace's place taken.
    let begun = tokio::spawn(Trace::begin(control.handle, request, by, control.stopped));
    let trace = begun
        .await
        .map_err(|error| Refused::new(RefusedKind::Failed, format!("trace: {error}")))??;
    let lines = axum::body::Body::from_stream(trace.lines());
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

async fn version() -> Json<Version> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Json(Version {
        ebb: env!("CARGO_PKG_VERSION").to_owned(),
        map_layout: lb_common::limits::ABI_VERSION,
        kernel: kernel.trim().to_owned(),
    })
}
