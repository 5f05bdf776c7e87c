//! Putting the program on interfaces, by links that are pinned so that they outlive the daemon.

use std::path::{Path, PathBuf};

use aya::programs::{
    Xdp,
    links::{FdLink, PinnedLink},
    xdp::{XdpLink, XdpMode as AyaMode},
};

use super::chain;
use crate::{
    datapath::{Attachment, Error, Result},
    model::spec::XdpMode,
};

const MODES: [(&str, AyaMode); 2] = [("native", AyaMode::Driver), ("generic", AyaMode::Skb)];

fn pin_path(directory: &Path, interface: &str, mode: &str) -> PathBuf {
    directory.join(format!("link-{interface}-{mode}"))
}

fn other(what: &str, interface: &str, error: impl std::fmt::Display) -> Error {
    Error::Other(format!("{what} {interface}: {error}"))
}

/// Puts `program` on `interface`: into the link that is pinned there, atomically, or by a new one.
pub fn attach(
    program: &mut Xdp,
    pins: &Path,
    interface: &str,
    wanted: XdpMode,
) -> Result<Attachment> {
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
            return Ok(Attachment {
                interface: interface.into(),
                ifindex,
                mode: mode.into(),
            });
        }
        // The link of an interface that is gone, or of a mode that is no longer wanted.
        std::fs::remove_file(&path)
            .map_err(|error| other("removing the old link of", interface, error))?;
    }
    let mut refusal = String::new();
    for (mode, aya_mode) in MODES {
        if wanted != XdpMode::Auto && name(wanted) != mode {
            continue;
        }
        match program.attach_to_if_index(ifindex, aya_mode) {
            Ok(id) => {
                let link = program
                    .take_link(id)
                    .map_err(|error| other("attaching to", interface, error))?;
                pin(link, &pin_path(pins, interface, mode), interface)?;
                return Ok(Attachment {
                    interface: interface.into(),
                    ifindex,
                    mode: mode.into(),
                });
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
    link.pin(path)
        .map(std::mem::drop)
        .map_err(|error| other("pinning the link of", interface, error))
}

/// Takes the program off every interface that has a pinned link here, but those named.
pub fn detach_others(pins: &Path, keep: &[Attachment]) -> std::io::Result<()> {
    for entry in std::fs::read_dir(pins)? {
        let path = entry?.path();
        let is_link = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("link-"));
        if is_link
            && !keep
                .iter()
                .any(|kept| path == pin_path(pins, &kept.interface, &kept.mode))
        {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
