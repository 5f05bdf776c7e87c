//! The very first start of a node, with a death at a step of it: nobody has forwarded before, so all that is asked is that the
//! next start gets the node to where it should be.

use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::datapath::bpf;
use rand::{SeedableRng as _, rngs::SmallRng};
use serde_json::Value;

use super::{AFTERMATH, SHORT_WHILE, Sample, choose, scene, state};
use crate::{
    lab::Fate,
    scenario::{LIMIT, Scene, Way},
};

/// Connections that are to go through once a node has come up.
const LONG: usize = 20;
/// Answers on them that show that it forwards.
const ANSWERS: u64 = 40;

/// Walks the first start, at some of its steps: how many it has, and at how many it died. `slots` of the service, where not as
/// many as is usual.
///
/// # Errors
/// A daemon comes back as it must not, or not at all; naming the step.
pub fn first_start(way: Way, slots: Option<u32>, sample: Sample, seed: u64) -> Result<(u64, u64)> {
    let (scene, fate) = scene(way, slots)?;
    // The table is another each time: it follows from the seed.
    let reference = state(&scene.ebb.status()?);
    fate.load_anew(true);
    from_nothing(&scene, &fate)?;
    fate.die_at(0, false);
    fate.revive(&scene.ebb)?;
    let (count, steps) = fate.taken();
    ensure!(count == steps.len() as u64, "{count} steps are too many");
    let mut deaths = 0;
    for at in choose(&steps, sample, &mut SmallRng::seed_from_u64(seed)) {
        let what = || {
            let doing = steps.get(at - 1);
            format!("first start: killed at step {at} of {count}, {doing:?}")
        };
        deaths += die(&scene, &fate, at, &reference).with_context(what)?;
    }
    Ok((count, deaths))
}

/// A first start with a death at a step; whether it came.
fn die(scene: &Scene, fate: &Fate, at: usize, reference: &Value) -> Result<u64> {
    from_nothing(scene, fate)?;
    fate.die_at(u32::try_from(at)?, false);
    let died = fate.ends_again(&scene.ebb, AFTERMATH)?;
    fate.die_at(0, true);
    if !died && !fate.dies(SHORT_WHILE) {
        return Ok(0);
    }
    fate.revive(&scene.ebb)?;
    let end = state(&scene.wait_all_up()?);
    ensure!(
        end == *reference,
        "it leads to {end} instead of {reference}"
    );
    let load = scene.load(LONG, 0.0)?;
    let goes_through = load.wait(LIMIT, |now| now.frames >= ANSWERS);
    let report = load.stop(std::time::Duration::ZERO);
    ensure!(goes_through && report.is_clean(), "{}", report.summary());
    Ok(1)
}

/// Kills the daemon, and takes away all that it has left: maps, links, journal, seed.
fn from_nothing(scene: &Scene, fate: &Fate) -> Result<()> {
    fate.kill9()?;
    bpf::remove_pins(&scene.lab.pins().join("ebb")).context("remove the pins")?;
    let state = scene.lab.directory().join("state");
    match fs::remove_dir_all(&state) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", state.display()))
        }
        _ => Ok(()),
    }
}
