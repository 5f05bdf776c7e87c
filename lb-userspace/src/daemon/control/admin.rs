//! Weights, maintenance and the way back to work, over the socket.

use axum::{body::Bytes, extract::State};

use super::{Answer, Control, done, parse};
use crate::{
    api::{Done, MaintenanceRequest, Targets, WeightRequest},
    daemon::engine::Engine,
    model::{command::Selection, refused::Refused},
};

fn selection(of: Targets) -> Selection {
    Selection {
        backends: of.backend.into_iter().chain(of.backends).collect(),
        pools: of.pools,
    }
}

/// `POST /v1/weight`.
pub async fn weight(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let request: WeightRequest = parse(&body)?;
    let selection = selection(request.of);
    if request.default == request.weight.is_some() {
        let error = format!("weight {}: which weight is not clear", selection.words());
        let hint = "say either `weight`, or `default` for the one that it came with";
        return Err(Refused::invalid(error).hint(hint).into());
    }
    let work = move |engine: &mut Engine, now| {
        engine.weigh(&selection, request.weight, request.force, now)
    };
    done(control.handle.command(work).await?)
}

/// `POST /v1/maintenance`.
pub async fn maintenance(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let request: MaintenanceRequest = parse(&body)?;
    let selection = selection(request.of);
    let work = move |engine: &mut Engine, now| engine.maintain(&selection, request.force, now);
    done(control.handle.command(work).await?)
}

/// `POST /v1/activate`.
pub async fn activate(State(control): State<Control>, body: Bytes) -> Answer<Done> {
    let selection = selection(parse(&body)?);
    let work = move |engine: &mut Engine, now| engine.activate(&selection, now);
    done(control.handle.command(work).await?)
}
