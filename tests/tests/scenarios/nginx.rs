//! Other people's programs: nginx as backends, wrk as the client, both from Debian's packages.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    lab::{Guard, Lab},
    scenario::{LIMIT, Scene, Way, can_run, lab},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Where a program is; `cargo xtask setup` installs what is missing.
fn program(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|directory| PathBuf::from(directory).join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no program {name}\nhint: apt-get install nginx-light wrk"))
}

/// nginx in the foreground in a backend's namespace, once it listens.
fn nginx(lab: &Lab, backend: &str, port: u16) -> Result<Guard> {
    let directory = lab.directory().join(format!("nginx-{backend}"));
    fs::create_dir_all(&directory)?;
    let at = directory.display();
    // A keep-alive connection is not to be ended by its server: whatever ends it is the balancer's fault.
    let text = format!(
        "daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n access_log off; default_type text/plain;\n keepalive_requests 100000000; keepalive_timeout 600s;\n\
         client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3;\n\
         uwsgi_temp_path {at}/4; scgi_temp_path {at}/5;\n\
         server {{ listen {port} reuseport backlog=4096; listen [::]:{port} reuseport backlog=4096;\n\
         location / {{ return 200 \"{backend} {}\\n\"; }}\n location /health/ready {{ return 200; }} }} }}\n",
        "x".repeat(600)
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = lab.command(backend, program("nginx")?);
    command
        .arg("-p")
        .arg(&directory)
        .arg("-c")
        .arg(&file)
        .args(["-e", "stderr"]);
    let mut guard = lab.spawn(&format!("nginx-{backend}"), command)?;
    let target = (std::net::Ipv4Addr::LOCALHOST, port);
    let deadline = std::time::Instant::now() + LIMIT;
    let listens = || {
        lab.netns(backend)
            .run(|| std::net::TcpStream::connect(target).is_ok())
    };
    while !listens()? {
        if guard.try_wait()?.is_some() || std::time::Instant::now() > deadline {
            bail!("nginx on {backend} does not listen{}", guard.log_tail());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(guard)
}

/// wrk running in the client's namespace, for longer than any test takes.
struct Wrk {
    child: Child,
}

impl Wrk {
    fn start(scene: &Scene, more: &[&str]) -> Result<Self> {
        let mut command: Command = scene.lab.command("client", program("wrk")?);
        command.args(["-t1", "--timeout", "10s", "-d100s"]);
        command
            .args(more)
            .arg(format!("http://{}/", scene.target()));
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Ok(Self {
            child: child.context("start wrk")?,
        })
    }

    /// Ends it as Ctrl-C does; its report. It must not have ended by itself.
    fn end(mut self) -> Result<String> {
        let early = self.child.try_wait()?;
        ensure!(early.is_none(), "wrk ended before the changes did");
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGINT).context("end wrk")?;
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "wrk: {status} {text}");
        Ok(text)
    }
}

impl Drop for Wrk {
    fn drop(&mut self) {
        // Nothing to end when it was ended in good order.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// wrk counts every connection that was refused, cut, or not answered; none of it may happen.
fn judge(wrk: Wrk) -> Result<u64> {
    let text = wrk.end()?;
    for wrong in ["Socket errors", "Non-2xx"] {
        ensure!(!text.contains(wrong), "{text}");
    }
    let line = text.lines().find(|line| line.contains(" requests in "));
    let count = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let count: u64 = count.with_context(|| format!("no count of requests in {text}"))?;
    eprintln!("wrk: {count} requests, none failed");
    Ok(count)
}

/// wrk on nginx through a drain, an undrain, a switch and its way back.
fn through_changes(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, service) = lab(way, &["b1", "b2", "b3", "g1", "g2"])?;
    let mut servers = BTreeMap::new();
    for name in lab.backends() {
        servers.insert(name.clone(), nginx(&lab, name, service.backend_port)?);
    }
    let scene = Scene::over(lab, service, servers, "")?;
    let kept = Wrk::start(&scene, &["-c60"])?;
    let short = Wrk::start(&scene, &["-c4", "-H", "Connection: close"])?;
    let busy = |name: &str, more: u64| -> Result<()> {
        let packets = |b: &serde_json::Value| b["packets"].as_u64().unwrap_or(0);
        let before = packets(&scene.wait_backend(name, |_| true)?);
        scene
            .wait_backend(name, |b| packets(b) >= before + more)
            .map(drop)
    };
    busy("b1", 1000)?;
    scene.ok("drain web/b1")?;
    // Connections that are kept open go on there.
    busy("b1", 1000)?;
    busy("b2", 1000)?;
    scene.ok("undrain web/b1")?;
    busy("b1", 1000)?;
    scene.ok("switch web green")?;
    busy("g1", 1000)?;
    busy("b3", 1000)?;
    scene.ok("switch web blue")?;
    busy("b2", 1000)?;
    assert!(judge(kept)? > 1000);
    assert!(judge(short)? > 100);
    Ok(())
}

#[test]
fn through_changes_nat() -> Result<()> {
    through_changes(Way::Nat)
}

#[test]
fn through_changes_l2() -> Result<()> {
    through_changes(Way::L2)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn through_changes_nat_v6() -> Result<()> {
    through_changes(Way::NatV6)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn through_changes_l2_v6() -> Result<()> {
    through_changes(Way::L2V6)
}
