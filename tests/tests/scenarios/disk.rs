//! The state directory and the clock fail the daemon: a full disk, a torn and a damaged journal, a clock that is set.
//! Whatever happens, what runs is forwarded, byte for byte.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    client::Load,
    config,
    lab::Fate,
    scenario::{LIMIT, Scene, Way, backend, can_run, lab, seed_of_commit},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

/// Time that a drain has.
const TIMEOUT: Duration = Duration::from_millis(1200);

/// A small disk of its own; gone on drop.
struct Disk(PathBuf);

impl Disk {
    fn at(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)?;
        let size = Some("size=128k");
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), size)?;
        Ok(Self(path.to_owned()))
    }

    fn fill(&self) -> Result<()> {
        let mut ballast = fs::File::create(self.0.join("ballast"))?;
        while ballast.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("ballast"))?)
    }

    fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A daemon whose lives are decided over, its disk, and its clients.
struct Stage {
    load: Load,
    disk: Disk,
    scene: Scene,
    fate: Fate,
}

impl Stage {
    fn set() -> Result<Self> {
        let (lab, mut service) = lab(Way::Nat, &["b1", "b2", "b3"])?;
        service.default_health = true;
        service.more =
            "health = \"none\"\ndrain = { timeout = \"60s\", on_deadline = \"leave\" }".into();
        let disk = Disk::at(&lab.directory().join("state"))?;
        let (scene, fate) = Scene::mortal_in(lab, service)?;
        let load = scene.load(60, 100.0)?;
        Ok(Self {
            load,
            disk,
            scene,
            fate,
        })
    }

    fn b1(&self) -> Result<Value> {
        let status = self.scene.ebb.status()?;
        backend(&status, "b1").cloned().context("no b1")
    }

    fn warnings(&self) -> Result<String> {
        Ok(self.scene.ebb.status()?["node"]["warnings"].to_string())
    }

    fn die(&self) -> Result<()> {
        self.fate.kill9()?;
        let answered = self.load.now().requests_ok + 5;
        let goes_on = self.load.wait(LIMIT, |now| now.requests_ok >= answered);
        ensure!(
            goes_on,
            "no traffic while nobody is there: {:?}",
            self.load.broken()
        );
        Ok(())
    }

    fn revive(&self) -> Result<()> {
        self.fate.revive(&self.scene.ebb)
    }

    /// Until the disk is full to the last byte: the file's last page may have room for some records.
    fn refused(&self) -> Result<String> {
        for _ in 0..100 {
            for line in ["drain web/b1", "undrain web/b1"] {
                let said = self.scene.run(line)?;
                if said.code != Some(0) {
                    return Ok(said.stderr);
                }
            }
        }
        bail!("a full disk takes everything")
    }

    fn full(&self) -> Result<()> {
        self.disk.fill()?;
        let said = self.refused()?;
        let path = self.disk.journal().display().to_string();
        for part in ["error: ", "No space left", "hint: ", &path] {
            ensure!(said.contains(part), "no {part:?} in {said}");
        }
        let before = self.b1()?;
        self.scene.traffic(&self.load, 10)?;

        // The next one finds a full disk, and another configuration.
        self.die()?;
        let mut service = self.scene.service.clone();
        service.more_of.insert("b3".into(), "weight = 3".into());
        // Its record is larger than those that were refused.
        let mut more = service.clone();
        (more.name, more.port, more.backend_port) = ("more".into(), 81, 8081);
        let text = config::file(&self.scene.lab, &[service, more]);
        fs::write(self.scene.ebb.config(), text)?;
        self.revive()?;
        let warnings = self.warnings()?;
        for part in ["not followed", "No space left", &path] {
            ensure!(warnings.contains(part), "no {part:?} in {warnings}");
        }
        let after = self.b1()?;
        ensure!(after["admin"] == before["admin"], "{before} is now {after}");
        let said = self.refused()?;
        ensure!(said.contains("No space left"), "{said}");
        self.scene.traffic(&self.load, 10)?;

        self.disk.make_room()?;
        self.scene.wait_backend("b3", |b3| b3["weight"] == 3)?;
        let warnings = self.warnings()?;
        ensure!(!warnings.contains("not followed"), "{warnings}");
        fs::write(self.scene.ebb.config(), self.scene.config())?;
        self.scene.ok("reload")?;
        self.scene.run("undrain web/b1").map(drop)
    }

    /// The last record is cut off here and there, or has something behind it.
    fn torn(&self) -> Result<()> {
        let path = self.disk.journal();
        let cut_off = "the last record is dropped";
        self.fate.kill9()?;
        let before = fs::read(&path)?;
        self.revive()?;
        self.scene.ok("drain web/b1")?;
        let drain = self.b1()?["drain"].clone();
        self.fate.kill9()?;
        let whole = fs::read(&path)?;
        ensure!(whole.starts_with(&before), "the journal was replaced");
        let record = &whole[before.len()..];
        let line = record
            .iter()
            .position(|byte| *byte == b'\n')
            .context("no record")?;
        let stride = 17;
        let offset = usize::try_from(seed_of_commit() % stride)?;
        let cuts = (1 + offset..line).step_by(usize::try_from(stride)?);
        for cut in cuts.chain([1, line]) {
            fs::write(&path, &whole[..before.len() + cut])?;
            self.revive()?;
            let (b1, warnings) = (self.b1()?, self.warnings()?);
            ensure!(b1["admin"] == "active", "cut at {cut}: {b1}");
            ensure!(warnings.contains(cut_off), "cut at {cut}: {warnings}");
            self.die()?;
        }
        for tail in [&b"5d1c"[..], &[0; 300], b"\xff\xfe 00000000 {"] {
            fs::write(&path, [&whole, tail].concat())?;
            self.revive()?;
            let (b1, warnings) = (self.b1()?, self.warnings()?);
            let same = ["id", "since_ms", "deadline_ms"]
                .iter()
                .all(|key| b1["drain"][key] == drain[key]);
            ensure!(b1["admin"] == "draining" && same, "{b1} was {drain}");
            ensure!(warnings.contains(cut_off), "{warnings}");
            self.die()?;
        }

        // In the middle it is refused, with the place.
        let mut damaged = whole.clone();
        damaged[before.len() / 2] ^= 1;
        fs::write(&path, &damaged)?;
        let said = self.fate.refuse(&self.scene.ebb)?;
        let path = path.display().to_string();
        ensure!(
            said.contains(&path) && said.contains("is damaged"),
            "{said}"
        );
        self.scene.traffic(&self.load, 10)?;
        fs::write(&path, &whole)?;
        self.revive()?;
        ensure!(self.b1()?["drain"]["id"] == drain["id"]);
        self.scene.ok("undrain web/b1").map(drop)
    }

    /// A drain lasts as long as it was told to, whatever the clock is set to and however often the daemon dies.
    fn clock(&self) -> Result<()> {
        const HOUR: i64 = 3_600_000;
        for (ahead, dies) in [
            (HOUR, false),
            (-HOUR, false),
            (2 * HOUR, true),
            (-2 * HOUR, true),
        ] {
            let timeout = format!("drain web/b1 --timeout {}ms", TIMEOUT.as_millis());
            let began = Instant::now();
            self.scene.ok(&timeout)?;
            let deadline = self.b1()?["drain"]["deadline_ms"].clone();
            self.fate.set_clock(ahead);
            if dies {
                self.die()?;
                self.revive()?;
                let warnings = self.warnings()?;
                ensure!(warnings.contains("the wall clock was set"), "{warnings}");
            }
            let b1 = self
                .scene
                .wait_backend("b1", |b1| b1["admin"] == "drained")?;
            let took = began.elapsed();
            ensure!(
                took >= TIMEOUT && took < 2 * TIMEOUT && b1["drain"]["deadline_ms"] == deadline,
                "clock {ahead} ms ahead: over after {took:?}: {b1}"
            );
            self.scene.ok("undrain web/b1")?;
        }
        Ok(())
    }
}

#[test]
fn disk_journal_and_clock_fail() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::set()?;
    stage.full().context("full disk")?;
    stage.torn().context("torn journal")?;
    stage.clock().context("clock")?;
    let lives = stage.fate.lives();
    let report = stage.load.stop(Duration::from_millis(300));
    eprintln!(
        "{lives} lives of the daemon; {} connections, {} exchanges, broken {}",
        report.flows.len(),
        report.frames + report.requests_ok,
        report.broken.len()
    );
    assert!(report.is_clean(), "{}", report.summary());
    Ok(())
}
