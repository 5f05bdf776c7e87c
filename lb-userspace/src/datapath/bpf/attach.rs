//! Putting the program on interfaces, by links that are pinned so that they outlive the daemon.

use std::path::{Path, PathBuf};

use aya::programs::{
    Xdp,
    links::{FdLink, PinnedLink},
    xdp::{XdpLink, XdpMode as AyaMode},
};

use super::chain;
use crate::{
    datapath::{Attachment, Error, Missing, Result, xdp_link},
    model::spec::XdpMode,
    step::{Step, step},
};

const MODES: [(&str, AyaMode); 2] = [("native", AyaMode::Driver), ("generic", AyaMode::Skb)];

fn pin_path(directory: &Path, interface: &str, mode: &str) -> PathBuf {
    directory.join(format!("link-{interface}-{mode}"))
}

fn other(what: &str, interface: &str, error: impl std::fmt::Display) -> Error {
    Error::Other(format!("{what} {interface}: {error}"))
}

/// Puts `program` on `interface`: into the link that is pinned there, atomically, or by a new one.
fn attach(program: &mut Xdp, pins: &Path, interface: &str, wanted: XdpMode) -> Result<Attachment> {
    let ifindex = nix::net::if_::if_nametoindex(interface).map_err(|error| Error::Kernel {
        what: format!("looking up interface {interface}"),
        source: error.into(),
    })?;
    for (mode, _) in MODES {
        let path = pin_path(pins, interface, mode);
        if !path.exists() {
            continue;
        }
        let kept =
            (wanted == XdpMode::Auto || name(wanted) == mode) && replace(program, &path).is_ok();
        if kept {
            return Ok(attachment(interface, ifindex, mode));
        }
        // The link of an interface that is gone, or of a mode that is no longer wanted.
        step(Step::Link);
        std::fs::remove_file(&path)
            .map_err(|error| other("removing the old link of", interface, error))?;
    }
    let mut refusal = String::new();
    for (mode, aya_mode) in MODES {
        if wanted != XdpMode::Auto && name(wanted) != mode {
            continue;
        }
        step(Step::Link);
        match program.attach_to_if_index(ifindex, aya_mode) {
            Ok(id) => {
                let link = program
                    .take_link(id)
                    .map_err(|error| other("attaching to", interface, error))?;
                pin(link, &pin_path(pins, interface, mode), interface)?;
                return Ok(attachment(interface, ifindex, mode));
            }
            Err(error) => refusal = format!("{refusal}{mode}: {}; ", chain(&error)),
        }
    }
    Err(other(
        "attaching the XDP program to",
        interface,
        refusal.trim_end_matches("; "),
    ))
}

fn attachment(interface: &str, ifindex: u32, mode: &str) -> Attachment {
    Attachment {
        interface: interface.into(),
        ifindex,
        mode: mode.into(),
        program: None,
    }
}

fn name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    }
}

fn replace(program: &mut Xdp, path: &Path) -> std::result::Result<(), String> {
    let link = PinnedLink::from_pin(path).map_err(|error| error.to_string())?;
    let link = XdpLink::try_from(FdLink::from(link)).map_err(|error| error.to_string())?;
    step(Step::Link);
    let id = program
        .attach_to_link(link)
        .map_err(|error| error.to_string())?;
    // Taken out and dropped: the pin keeps it.
    program
        .take_link(id)
        .map(std::mem::drop)
        .map_err(|error| error.to_string())
}

fn pin(link: XdpLink, path: &Path, interface: &str) -> Result<()> {
    let link = FdLink::try_from(link).map_err(|_| {
        other(
            "attaching to",
            interface,
            "the kernel has no XDP links (5.9 or later is needed)",
        )
    })?;
    step(Step::Link);
    link.pin(path)
        .map(std::mem::drop)
        .map_err(|error| other("pinning the link of", interface, error))
}

/// Where the program should run, and where it does.
#[derive(Debug)]
pub struct Interfaces {
    pins: PathBuf,
    mode: XdpMode,
    wanted: Vec<String>,
    attached: Vec<Attachment>,
    missing: Vec<Missing>,
}

impl Interfaces {
    /// Puts `program` on every interface of `wanted`, and takes it off all others that it was on.
    ///
    /// An interface that is not there is an error unless it was there before: one that has gone meanwhile, as a
    /// container's does, comes back, and must not keep a daemon from starting again.
    pub fn open(program: &mut Xdp, pins: &Path, wanted: &[String], mode: XdpMode) -> Result<Self> {
        let mut interfaces = Self {
            pins: pins.to_owned(),
            mode,
            wanted: wanted.to_owned(),
            attached: Vec::new(),
            missing: Vec::new(),
        };
        for interface in wanted {
            if index(interface).is_none() {
                if !was_attached(pins, interface) {
                    return Err(Error::NoInterface {
                        interface: interface.clone(),
                        known: names(),
                    });
                }
                interfaces.missing.push(gone(interface));
                continue;
            }
            let attachment = attach(program, pins, interface, mode)?;
            interfaces.attached.push(attachment);
        }
        interfaces.detach_others().map_err(|source| Error::Kernel {
            what: "detaching from other interfaces".into(),
            source,
        })?;
        Ok(interfaces)
    }

    /// Where it runs.
    pub fn attached(&self) -> Vec<Attachment> {
        let now = |attachment: &Attachment| Attachment {
            program: xdp_link::program_on(attachment.ifindex).ok().flatten(),
            ..attachment.clone()
        };
        self.attached.iter().map(now).collect()
    }

    /// Puts another program into every link, each atomically. Interfaces that have gone are left out.
    pub fn switch(&self, program: &mut Xdp) -> Result<()> {
        let mut failed = Ok(());
        for attachment in &self.attached {
            let Attachment {
                interface,
                ifindex,
                mode,
                ..
            } = attachment;
            if index(interface) != Some(*ifindex) {
                continue;
            }
            // All the others all the same: it may be the plain program that comes back.
            if let Err(error) = replace(program, &pin_path(&self.pins, interface, mode)) {
                failed = Err(other("changing the program on", interface, error));
            }
        }
        failed
    }

    /// Where it does not.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Looks again: an interface of the same name with another index is another interface.
    pub fn follow(&mut self, program: &mut Xdp) {
        self.missing.clear();
        for interface in &self.wanted {
            let now = index(interface);
            let before = self.attached.iter().position(|a| a.interface == *interface);
            match (before, now) {
                (Some(at), Some(now)) if self.attached[at].ifindex == now => continue,
                (Some(at), _) => drop(self.attached.remove(at)),
                (None, _) => {}
            }
            if now.is_none() {
                self.missing.push(gone(interface));
                continue;
            }
            match attach(program, &self.pins, interface, self.mode) {
                Ok(attachment) => self.attached.push(attachment),
                Err(error) => self.missing.push(Missing {
                    interface: interface.clone(),
                    why: error.to_string(),
                }),
            }
        }
        let place = |a: &Attachment| self.wanted.iter().position(|name| *name == a.interface);
        self.attached.sort_by_key(place);
    }

    /// Takes the program off every interface that has a pinned link here, but those wanted in the mode they have.
    fn detach_others(&self) -> std::io::Result<()> {
        let keep: Vec<PathBuf> = self
            .attached
            .iter()
            .map(|kept| pin_path(&self.pins, &kept.interface, &kept.mode))
            .chain(self.missing.iter().flat_map(|missing| {
                MODES.map(|(mode, _)| pin_path(&self.pins, &missing.interface, mode))
            }))
            .collect();
        for entry in std::fs::read_dir(&self.pins)? {
            let path = entry?.path();
            let is_link = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("link-"));
            if is_link && !keep.contains(&path) {
                step(Step::Link);
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn gone(interface: &str) -> Missing {
    Missing {
        interface: interface.to_owned(),
        why: "it is gone; it is taken up again when it comes back".to_owned(),
    }
}

/// Whether a link of this interface is pinned, of whatever is left of it.
fn was_attached(pins: &Path, interface: &str) -> bool {
    MODES
        .iter()
        .any(|(mode, _)| pin_path(pins, interface, mode).exists())
}

fn index(interface: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(interface).ok()
}

/// Names of the interfaces there are, but the loopback.
fn names() -> Vec<String> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return Vec::new();
    };
    interfaces
        .iter()
        .map(|interface| interface.name().to_string_lossy().into_owned())
        .filter(|name| name != "lo")
        .collect()
}
