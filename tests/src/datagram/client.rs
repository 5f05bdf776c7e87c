//! Many flows of datagrams from one client, each a socket of its own.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Answer, Ask, BODY, DATAGRAM_MAX};
use crate::{clock, lab::Netns};

/// An answer from another server than the flow's last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// When it came, ns of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Who answered before.
    pub from: String,
    /// Who answers now.
    pub to: String,
}

/// What is known of a flow.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Its own address.
    pub local: SocketAddr,
    /// When its first datagram was sent, ns of `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// Who answered last.
    pub server: Option<String>,
    /// Changes of server.
    pub moves: Vec<Move>,
    /// Questions sent.
    pub sent: u32,
    /// Answers that came, each once.
    pub answered: u32,
    /// Answers with a wrong byte.
    pub wrong: u32,
    /// Sends no more.
    pub silent: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    flows: Vec<Flow>,
    sockets: Vec<Arc<UdpSocket>>,
    stopped: bool,
    failed: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client that asks on all its flows, again and again.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    netns: Netns,
    target: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// A client in this namespace whose flows ask `target` once every `every`.
    pub fn start(netns: Netns, target: SocketAddr, every: Duration) -> Self {
        Self::start_with(netns, target, every, BODY)
    }

    /// The same with questions of this many bytes besides their head.
    pub fn start_with(netns: Netns, target: SocketAddr, every: Duration, body: u16) -> Self {
        let shared = Arc::new(Shared::default());
        let asking = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let ended = ask_all(&asking, every, body);
            asking.state().failed = ended.err().map(|error| error.to_string());
            asking.changed.notify_all();
        });
        Self {
            shared,
            netns,
            target,
            thread: Some(thread),
        }
    }

    /// Begins `count` more flows.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn open(&self, count: usize) -> Result<()> {
        let target = self.target;
        let sockets = self.netns.run(|| {
            (0..count)
                .map(|_| connected(target).map(Arc::new))
                .collect::<io::Result<Vec<_>>>()
        })?;
        for socket in sockets.context("open a flow of datagrams")? {
            let flow = Flow {
                local: socket.local_addr()?,
                began_ns: 0,
                server: None,
                moves: Vec::new(),
                sent: 0,
                answered: 0,
                wrong: 0,
                silent: false,
            };
            let mut state = self.shared.state();
            state.sockets.push(socket);
            state.flows.push(flow);
        }
        Ok(())
    }

    /// Lets the flows whose last answer was this server's fall silent; how many.
    pub fn silence(&self, server: &str) -> usize {
        let mut state = self.shared.state();
        let mut count = 0;
        for flow in &mut state.flows {
            if flow.server.as_deref() == Some(server) && !flow.silent {
                flow.silent = true;
                count += 1;
            }
        }
        count
    }

    /// What is known now.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        self.shared.state().flows.clone()
    }

    /// Flows that are not silent, by server.
    #[must_use]
    pub fn by_server(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for flow in self.shared.state().flows.iter().filter(|flow| !flow.silent) {
            if let Some(server) = &flow.server {
                *counts.entry(server.clone()).or_default() += 1;
            }
        }
        counts
    }

    /// Waits until every flow that is not silent has had `answers` more answers; whether they came within `limit`.
    #[must_use]
    pub fn wait_answers(&self, answers: u32, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let before: Vec<u32> = self.flows().iter().map(|flow| flow.answered).collect();
        let mut state = self.shared.state();
        loop {
            let mut pairs = state.flows.iter().zip(&before);
            if pairs.all(|(flow, before)| flow.silent || flow.answered >= before + answers) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.failed.is_some() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends, and says what became of each flow.
    ///
    /// # Errors
    /// A socket failed on the way.
    pub fn stop(mut self) -> Result<Vec<Flow>> {
        self.end();
        let state = self.shared.state();
        if let Some(why) = &state.failed {
            anyhow::bail!("datagrams: {why}");
        }
        Ok(state.flows.clone())
    }

    fn end(&mut self) {
        self.shared.state().stopped = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

fn connected(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// One round of questions every `every`, spread over it, until told to stop.
fn ask_all(shared: &Shared, every: Duration, body: u16) -> io::Result<()> {
    // Bursts as small as this fit every buffer on the way.
    const BURST: usize = 32;
    loop {
        let round = Instant::now();
        let count = shared.state().flows.len();
        let bursts = count.div_ceil(BURST).max(1);
        for burst in 0..bursts {
            for index in burst * BURST..count.min((burst + 1) * BURST) {
                ask(shared, index, body)?;
            }
            let due = round + every.mul_f64((burst + 1) as f64 / bursts as f64);
            hear_until(shared, due)?;
            if shared.state().stopped {
                return hear_the_last(shared);
            }
        }
    }
}

fn ask(shared: &Shared, index: usize, body: u16) -> io::Result<()> {
    let mut state = shared.state();
    let socket = Arc::clone(&state.sockets[index]);
    let flow = &mut state.flows[index];
    if flow.silent {
        return Ok(());
    }
    let ask = Ask {
        flow: index as u64,
        number: flow.sent,
        body,
    };
    if flow.sent == 0 {
        flow.began_ns = clock::now_ns();
    }
    flow.sent += 1;
    drop(state);
    match socket.send(&ask.write()) {
        // Nobody listened to an earlier one: for the flow's owner to see as a missing answer.
        Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok(()),
    }
}

/// Takes answers in until every question has one, or those that are missing are taken to be lost.
fn hear_the_last(shared: &Shared) -> io::Result<()> {
    let patience = Instant::now() + Duration::from_secs(2);
    let missing = || {
        let state = shared.state();
        state.flows.iter().any(|flow| flow.answered < flow.sent)
    };
    while missing() && Instant::now() < patience {
        hear_until(shared, Instant::now() + Duration::from_millis(10))?;
    }
    Ok(())
}

/// Takes answers in until `due`.
fn hear_until(shared: &Shared, due: Instant) -> io::Result<()> {
    let sockets = shared.state().sockets.clone();
    let mut waiting: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
        .collect();
    loop {
        let left = due.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        if left.is_zero() {
            return Ok(());
        }
        poll(&mut waiting, timeout)?;
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|at| waiting[*at].any().unwrap_or(false))
            .collect();
        for index in ready {
            hear(shared, index, &sockets[index])?;
        }
        shared.changed.notify_all();
    }
}

fn hear(shared: &Shared, index: usize, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let mut state = shared.state();
        let flow = &mut state.flows[index];
        let answer = Answer::read(&buffer[..length]);
        let Some(answer) = answer.filter(|answer| answer.ask.flow == index as u64) else {
            flow.wrong += 1;
            continue;
        };
        flow.answered += 1;
        let before = flow.server.replace(answer.name.clone());
        if let Some(from) = before.filter(|before| *before != answer.name) {
            flow.moves.push(Move {
                at_ns: clock::now_ns(),
                from,
                to: answer.name,
            });
        }
    }
}
