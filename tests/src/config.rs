//! Configuration files for the lab.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use crate::lab::{
    Lab,
    address::{self, Family},
};

/// A service of the lab, on [`address::vip`].
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Family of its address and, unless `backend_family` says otherwise, of its backends' addresses.
    pub family: Family,
    /// Family of its backends' addresses, where it is not the service's own.
    pub backend_family: Option<Family>,
    /// Address of all its backends, where they are no namespaces of the lab.
    pub backend_at: Option<IpAddr>,
    /// Its port on the VIP.
    pub port: u16,
    /// The last of several ports; backends then have none of their own.
    pub last_port: Option<u16>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Port of the backends; but in `nat` and `full-nat` the service's own.
    pub backend_port: u16,
    /// Port of the health check, when it is not the backends' own.
    pub check_port: Option<u16>,
    /// `nat`, `full-nat`, `l2`, `ipip` or `gue`.
    pub forward: String,
    /// The pool that takes new flows.
    pub active_pool: String,
    /// Pools: name, and names of backends in the lab.
    pub pools: Vec<(String, Vec<String>)>,
    /// Whether its backends are checked as in a file that says nothing of it.
    pub default_health: bool,
    /// More lines of the service's own table, as they stand in the file.
    pub more: String,
    /// More lines of its health table.
    pub more_health: String,
    /// More keys of a backend's table, as they stand in the file, by its name.
    pub more_of: BTreeMap<String, String>,
}

impl Service {
    /// `web` on port 80, with pools `blue` and `green` of the backends whose names begin with `b` and `g`.
    #[must_use]
    pub fn blue_green(lab: &Lab, forward: &str) -> Self {
        let pool = |name: &str, first: char| {
            let members = lab
                .backends()
                .iter()
                .filter(|backend| backend.starts_with(first))
                .cloned()
                .collect();
            (name.to_owned(), members)
        };
        Self {
            name: "web".into(),
            family: Family::V4,
            backend_family: None,
            backend_at: None,
            port: 80,
            last_port: None,
            protocol: "tcp".into(),
            check_port: None,
            backend_port: if forward.ends_with("nat") { 8080 } else { 80 },
            forward: forward.into(),
            active_pool: "blue".into(),
            pools: vec![pool("blue", 'b'), pool("green", 'g')],
            default_health: false,
            more: String::new(),
            more_health: String::new(),
            more_of: BTreeMap::new(),
        }
    }

    /// Where clients reach it.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(address::vip(self.family), self.port)
    }

    /// Where it reaches a backend.
    #[must_use]
    pub fn backend(&self, lab: &Lab, name: &str) -> SocketAddr {
        let family = self.backend_family.unwrap_or(self.family);
        let ip = self
            .backend_at
            .unwrap_or_else(|| lab.backend_in(family, name));
        SocketAddr::new(ip, self.backend_port)
    }
}

/// A whole configuration file for this lab.
#[must_use]
pub fn file(lab: &Lab, services: &[Service]) -> String {
    let interfaces: Vec<_> = lab
        .lb_interfaces()
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect();
    let mut text = format!(
        "interfaces = [{}]\nxdp_mode = \"native\"\nhash_seed_file = \"{}\"\n",
        interfaces.join(", "),
        lab.directory().join("state/seed").display(),
    );
    for service in services {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{}", table(lab, service));
    }
    text
}

fn table(lab: &Lab, service: &Service) -> String {
    let Service {
        name,
        last_port,
        protocol,
        check_port,
        forward,
        active_pool,
        pools,
        more,
        more_health,
        more_of,
        default_health,
        ..
    } = service;
    let last = last_port.map_or_else(String::new, |port| format!("-{port}"));
    let check = check_port.map_or_else(String::new, |port| format!(", port = {port}"));
    let mut text = format!(
        "[service.{name}]\nlisten = \"{}{last}/{protocol}\"\nforward = \"{forward}\"\nactive_pool = \"{active_pool}\"\n{more}\n",
        service.target(),
    );
    if !default_health {
        let _ = writeln!(
            text,
            "[service.{name}.health]\n\
             readiness = {{ http = \"/health/ready\"{check}, period = \"500ms\", timeout = \"500ms\", rise = 2, fail = 4 }}",
        );
    }
    if !more_health.is_empty() {
        // Of the health table that stands above, or of one with nothing else in it.
        let head = if *default_health {
            format!("[service.{name}.health]\n")
        } else {
            String::new()
        };
        let _ = writeln!(text, "{head}{more_health}");
    }
    for (pool, backends) in pools {
        let members: Vec<_> = backends
            .iter()
            .map(|backend| {
                let at = service.backend(lab, backend);
                let at = match last_port {
                    None => at.to_string(),
                    Some(_) => at.ip().to_string(),
                };
                match more_of.get(backend) {
                    None => format!("{backend} = \"{at}\""),
                    Some(more) => format!("{backend} = {{ address = \"{at}\", {more} }}"),
                }
            })
            .collect();
        let _ = write!(
            text,
            "[service.{name}.pool.{pool}]\nbackends = {{ {} }}\n",
            members.join(", ")
        );
    }
    text
}
