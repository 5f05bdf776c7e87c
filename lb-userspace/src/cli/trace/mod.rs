//! `ebb trace`.

mod capture;
mod line;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    time::Duration,
};

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{TraceLine, TracePacket, TraceRequest};

use super::{
    adapters::json_line,
    args::{Frames, TraceArgs},
    client::Client,
    error::{CliError, exit, io_words},
    human,
    output::Output,
};

use capture::Capture;

/// Bytes of a frame that are kept unless told otherwise: more than any that the kernel hands to XDP.
pub const SNAP: u32 = 4096;

/// Shows packets until there were enough, or Ctrl-C.
pub async fn trace(client: &Client, args: &TraceArgs, out: &mut Output) -> Result<u8, CliError> {
    let mut ends = Ends::listen(args.seconds)?;
    let mut shown = Shown::new(args, out)?;
    let mut stream = client.stream("/v1/trace", &request(args)).await?;
    shown.note(&format!("tracing {}; Ctrl-C ends it", what(args)));
    let result = loop {
        tokio::select! {
            lines = stream.lines::<TraceLine>() => match lines {
                Ok(lines) if lines.is_empty() => break Err(stopped()),
                Ok(lines) => if shown.take(lines)? { break Ok(()) },
                Err(error) => break Err(error.into()),
            },
            () = ends.come() => break Ok(()),
        }
    };
    shown.finish();
    result.map(|()| exit::DONE)
}

fn request(args: &TraceArgs) -> TraceRequest {
    let mut outcomes = args.outcome.clone();
    if args.dropped {
        outcomes.push("drop".to_owned());
    }
    let captured = |others| {
        let is_captured = args.pcap.is_some() && args.frames != others;
        if is_captured { args.snap } else { 0 }
    };
    TraceRequest {
        of: args.of.as_ref().map(ToString::to_string),
        client: args.client,
        port: args.port,
        protocol: args.protocol.map(|protocol| protocol.name().to_owned()),
        outcomes,
        all: args.all,
        snap_in: captured(Frames::Out),
        snap_out: captured(Frames::In),
    }
}

fn what(args: &TraceArgs) -> String {
    let of = args.of.as_ref();
    of.map_or_else(|| "packets".to_owned(), |of| format!("packets of {of}"))
}

fn stopped() -> CliError {
    CliError::failed("the trace has ended: the daemon stopped").hint(
        "packets go on through the plain program; start the trace again when `ebb status` answers",
    )
}

/// What ends a trace besides its count.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    at: Option<tokio::time::Instant>,
}

impl Ends {
    fn listen(seconds: Option<u64>) -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                CliError::failed(format!("cannot wait for signals: {}", io_words(&error)))
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            at: seconds.map(|seconds| tokio::time::Instant::now() + Duration::from_secs(seconds)),
        })
    }

    async fn come(&mut self) {
        let over = async |at: Option<tokio::time::Instant>| match at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = over(self.at) => {}
        }
    }
}

/// Where packets are shown, and how many were.
struct Shown<'a> {
    to: To<'a>,
    json: bool,
    packets: u64,
    lost: u64,
    most: Option<u64>,
}

enum To<'a> {
    /// A line each.
    Lines(&'a mut Output),
    /// A capture file.
    File(Capture<Box<dyn Write>>),
}

impl<'a> Shown<'a> {
    fn new(args: &TraceArgs, out: &'a mut Output) -> Result<Self, CliError> {
        let json = out.json();
        let to = match &args.pcap {
            None => To::Lines(out),
            Some(path) => To::File(open(path, args.snap)?),
        };
        Ok(Self {
            to,
            json,
            packets: 0,
            lost: 0,
            most: args.count,
        })
    }

    /// Shows lines; whether that is enough.
    fn take(&mut self, lines: Vec<TraceLine>) -> Result<bool, CliError> {
        for line in lines {
            match line {
                TraceLine::Packet(packet) => {
                    self.show(&packet)?;
                    self.packets += 1;
                    if self.most.is_some_and(|most| self.packets >= most) {
                        break;
                    }
                }
                TraceLine::Lost { lost } => self.lose(lost),
            }
        }
        let is_enough = self.most.is_some_and(|most| self.packets >= most);
        Ok(match &mut self.to {
            To::Lines(out) => out.closed() || is_enough,
            To::File(capture) => !capture.flush()? || is_enough,
        })
    }

    fn show(&mut self, packet: &TracePacket) -> Result<(), CliError> {
        match &mut self.to {
            To::Lines(out) if self.json => out.print(&json_line(packet)?),
            To::Lines(out) => out.print(&line::line(packet)),
            To::File(capture) => capture.add(packet),
        }
    }

    /// Takes in how many were lost so far, and says so when it begins: the summary may be long in coming.
    fn lose(&mut self, lost: u64) {
        if self.lost == 0 {
            self.note("packets are being lost: there are too many to be read in time");
        }
        self.lost = lost;
    }

    /// A word to whoever watches; not among the results.
    fn note(&self, text: &str) {
        if !self.json {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    fn finish(&mut self) {
        let (packets, lost) = (self.packets, self.lost);
        if self.json {
            let counts = json!({ "packets": packets, "lost": lost });
            let _ = writeln!(std::io::stderr(), "{counts}");
            return;
        }
        let mut text = human::plural(packets, "packet");
        if lost > 0 {
            text.push_str(&format!(
                ", {lost} more lost: too many to be read in time (a narrower filter shows more)"
            ));
        }
        self.note(&text);
    }
}

fn open(path: &Path, snap: u32) -> Result<Capture<Box<dyn Write>>, CliError> {
    let to: Box<dyn Write> = if path.as_os_str() == "-" {
        Box::new(std::io::stdout())
    } else {
        Box::new(File::create(path).map_err(|error| {
            CliError::failed(format!(
                "cannot write {}: {}",
                path.display(),
                io_words(&error)
            ))
        })?)
    };
    Capture::new(Box::new(BufWriter::new(to)), snap)
}
