//! Commands that ask the daemon for one change and say what it did.

use serde_json::json;

use crate::api::{
    self, AddRequest, BackendRequest, Done, MaintenanceRequest, ReloadRequest, Reloaded,
    SwitchRequest, UndrainRequest, WeightRequest,
};

use super::{
    args::{AddArgs, MaintenanceArgs, Named, SwitchArgs, Targets, UndrainArgs, WeightArgs},
    client::{Answer, Client},
    error::{CliError, exit},
    names::Backend,
    output::Output,
};

type Outcome = Result<u8, CliError>;

/// `ebb undrain`.
pub async fn undrain(client: &Client, args: &UndrainArgs, out: &mut Output) -> Outcome {
    let mut request = UndrainRequest {
        as_backend: args.as_backend,
        ..UndrainRequest::default()
    };
    match args.targets.named()? {
        Named::One(backend) => request.backend = Some(backend),
        Named::Backends(backends) => request.backends = backends,
        Named::Pools(pools) => request.pools = pools,
    }
    done(&client.post("/v1/undrain", &request).await?, out)
}

fn targets(named: Named) -> api::Targets {
    let mut of = api::Targets::default();
    match named {
        Named::One(backend) => of.backend = Some(backend),
        Named::Backends(backends) => of.backends = backends,
        Named::Pools(pools) => of.pools = pools,
    }
    of
}

/// `ebb weight`.
pub async fn weight(client: &Client, args: &WeightArgs, out: &mut Output) -> Outcome {
    let (named, weight) = args.parts()?;
    let request = WeightRequest {
        of: targets(named),
        weight: weight.0,
        default: weight.0.is_none(),
        force: args.force,
    };
    done(&client.post("/v1/weight", &request).await?, out)
}

/// `ebb maintenance`.
pub async fn maintenance(client: &Client, args: &MaintenanceArgs, out: &mut Output) -> Outcome {
    let request = MaintenanceRequest {
        of: targets(args.targets.named()?),
        force: args.force,
    };
    done(&client.post("/v1/maintenance", &request).await?, out)
}

/// `ebb activate`.
pub async fn activate(client: &Client, args: &Targets, out: &mut Output) -> Outcome {
    let request = targets(args.named()?);
    done(&client.post("/v1/activate", &request).await?, out)
}

/// `ebb remove`.
pub async fn remove(client: &Client, backend: &Backend, force: bool, out: &mut Output) -> Outcome {
    let request = BackendRequest {
        backend: backend.to_string(),
        force,
    };
    done(&client.post("/v1/remove", &request).await?, out)
}

/// `ebb add`.
pub async fn add(client: &Client, args: &AddArgs, out: &mut Output) -> Outcome {
    let request = AddRequest {
        backend: args.backend.to_string(),
        address: args.address,
        weight: args.weight,
        if_absent: args.if_absent,
    };
    done(&client.post("/v1/add", &request).await?, out)
}

/// `ebb switch`.
pub async fn switch(client: &Client, args: &SwitchArgs, out: &mut Output) -> Outcome {
    let request = SwitchRequest {
        service: args.service.0.clone(),
        pool: args.pool.0.clone(),
        force: args.force,
    };
    done(&client.post("/v1/switch", &request).await?, out)
}

/// `ebb stop`.
pub async fn stop(client: &Client, detach: bool, out: &mut Output) -> Outcome {
    let request = json!({ "detach": detach });
    done(&client.post("/v1/stop", &request).await?, out)
}

/// `ebb reload`.
pub async fn reload(client: &Client, dry_run: bool, out: &mut Output) -> Outcome {
    let request = ReloadRequest { dry_run };
    let answer = client.post("/v1/reload", &request).await?;
    let text = if out.json() {
        answer.text()?.to_owned()
    } else {
        steps(&answer.read()?)
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

fn done(answer: &Answer, out: &mut Output) -> Outcome {
    if out.json() {
        out.print(answer.text()?)?;
    } else {
        out.print(&answer.read::<Done>()?.done)?;
    }
    Ok(exit::DONE)
}

fn steps(reloaded: &Reloaded) -> String {
    if reloaded.changes.is_empty() {
        return "nothing to change".to_owned();
    }
    let head = if reloaded.applied {
        "done:"
    } else {
        "would be done:"
    };
    format!("{head}\n  {}", reloaded.changes.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_and_a_deed_are_told_apart() {
        let mut reloaded = Reloaded {
            applied: false,
            changes: vec!["add backend web/blue/b4".to_owned()],
        };
        assert_eq!(
            steps(&reloaded),
            "would be done:\n  add backend web/blue/b4"
        );
        reloaded.applied = true;
        assert!(steps(&reloaded).starts_with("done:"));
        reloaded.changes.clear();
        assert_eq!(steps(&reloaded), "nothing to change");
    }
}
