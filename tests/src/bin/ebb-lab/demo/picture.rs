//! The live picture: where connections are.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ebb_tests::{
    client::{Sample, Watch},
    lab::Reach,
};

use super::status::Status;

/// Time between two pictures on a terminal, and between two lines elsewhere.
const REDRAW: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(2);
/// Longest bar, characters.
const BAR: usize = 40;

#[derive(Default)]
struct Scene {
    step: String,
    notes: Vec<String>,
    ended: bool,
}

/// Draws on the error output until dropped.
pub struct Picture {
    scene: Arc<(Mutex<Scene>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Picture {
    /// Begins to draw: a picture in place on a terminal, else a line now and then.
    pub fn start(watch: Watch, reach: Reach, no_tty: bool) -> Self {
        let scene = Arc::<(Mutex<Scene>, Condvar)>::default();
        let painter = Painter {
            scene: Arc::clone(&scene),
            watch,
            reach,
            in_place: !no_tty && io::stderr().is_terminal(),
            started: Instant::now(),
            before: (Instant::now(), Sample::default()),
            lines: 0,
        };
        Self {
            scene,
            thread: Some(thread::spawn(move || painter.run())),
        }
    }

    /// Names what happens now.
    pub fn step(&self, text: &str) {
        text.clone_into(&mut self.lock().step);
        self.scene.1.notify_all();
    }

    /// Adds a line that stays.
    pub fn note(&self, text: String) {
        self.lock().notes.push(text);
        self.scene.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Scene> {
        self.scene.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        self.lock().ended = true;
        self.scene.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Painter {
    scene: Arc<(Mutex<Scene>, Condvar)>,
    watch: Watch,
    reach: Reach,
    in_place: bool,
    started: Instant,
    before: (Instant, Sample),
    /// Lines of the picture on the screen.
    lines: usize,
}

impl Painter {
    fn run(mut self) {
        let every = if self.in_place { REDRAW } else { LINE };
        let mut next = Instant::now();
        let mut shown = String::new();
        loop {
            let (step, notes, ended) = self.wait(next, &shown);
            let news = step != shown || !notes.is_empty();
            if news || Instant::now() >= next || ended {
                self.draw(&step, &notes, step != shown);
                shown = step;
                next = Instant::now() + every;
            }
            if ended {
                return;
            }
        }
    }

    /// Waits until `next`, or until something is to be said.
    fn wait(&self, next: Instant, shown: &str) -> (String, Vec<String>, bool) {
        let mut scene = self.scene.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !scene.ended && scene.notes.is_empty() && scene.step == shown && Instant::now() < next
        {
            let left = next.saturating_duration_since(Instant::now());
            scene = self
                .scene
                .1
                .wait_timeout(scene, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        (
            scene.step.clone(),
            std::mem::take(&mut scene.notes),
            scene.ended,
        )
    }

    fn draw(&mut self, step: &str, notes: &[String], is_new_step: bool) {
        let now = self.watch.now();
        let seconds = self.started.elapsed().as_secs_f64();
        let mut text = String::new();
        if self.in_place {
            if self.lines > 0 {
                // Up to where the picture began, and nothing below.
                let _ = write!(text, "\x1b[{}A\r\x1b[J", self.lines);
            }
            for note in notes {
                let _ = writeln!(text, "  {note}");
            }
            let picture = self.picture(step, seconds, &now);
            self.lines = picture.lines().count();
            text.push_str(&picture);
            self.before = (Instant::now(), now);
        } else {
            for note in notes {
                let _ = writeln!(text, "{seconds:5.1} s  {note}");
            }
            if is_new_step || notes.is_empty() {
                let _ = writeln!(text, "{seconds:5.1} s  {step}: {}", line(&now));
            }
        }
        // Nobody to see it is no reason to stop.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn picture(&self, step: &str, seconds: f64, now: &Sample) -> String {
        let body = self
            .reach
            .get("/v1/status")
            .ok()
            .filter(|(code, _)| *code == 200);
        let status = Status(
            body.and_then(|(_, body)| serde_json::from_str(&body).ok())
                .unwrap_or_default(),
        );
        let (at, before) = &self.before;
        let passed = at.elapsed().as_secs_f64().max(0.001);
        let mut text = format!("\n  {seconds:5.1} s   {step}\n\n");
        let most = now.long.values().copied().max().unwrap_or(0).max(BAR);
        let _ = writeln!(
            text,
            "  pool   backend  state        health   req/s  long connections"
        );
        for row in status.rows("web") {
            let name = row.name.as_str();
            let long = now.long.get(name).copied().unwrap_or(0);
            let answered = |sample: &Sample| sample.short.get(name).copied().unwrap_or(0);
            let rate = (answered(now).saturating_sub(answered(before))) as f64 / passed;
            let color = match (row.admin.as_str(), row.active) {
                ("active", true) => 32,
                ("active", false) => 34,
                _ => 33,
            };
            let bar = "█".repeat((long * BAR).div_ceil(most));
            let mark = if row.active { '*' } else { ' ' };
            let _ = writeln!(
                text,
                "  {:<5}{mark} {name:<8} {:<12} {:<8} {rate:>5.0}  {long:>4} \x1b[{color}m{bar}\x1b[0m",
                row.pool, row.admin, row.health
            );
        }
        let _ = writeln!(
            text,
            "\n  opened {}  finished {}  broken {}   requests ok {}  failed {}   packets in XDP {}",
            now.opened,
            now.finished,
            now.broken,
            now.requests_ok,
            now.requests_failed,
            status.xdp_packets().unwrap_or(0)
        );
        text
    }
}

fn line(now: &Sample) -> String {
    let zero = BTreeMap::new();
    let long = if now.long.is_empty() {
        &zero
    } else {
        &now.long
    };
    let places: Vec<_> = long.iter().map(|(name, n)| format!("{name} {n}")).collect();
    format!(
        "long connections {}; broken {}; requests ok {} failed {}",
        if places.is_empty() {
            "0".to_owned()
        } else {
            places.join(" ")
        },
        now.broken,
        now.requests_ok,
        now.requests_failed
    )
}
