//! The arguments of `ebb`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use lb_common::tunnel::PORT_DEFAULT;

use crate::model::spec::{OnDeadline, Prefix, XdpMode};

use super::{
    error::{CliError, exit},
    help,
    names::{self, Backend, Drains, NameError, NewBackend, Pool, Scope, Service, Weight},
    trace::SNAP,
};

/// A layer-4 load balancer whose drains break no connection
#[derive(Debug, Parser)]
#[command(
    name = "ebb",
    bin_name = "ebb",
    version,
    long_about = help::EBB,
    after_help = "`ebb --help` has exit codes, environment variables and examples.",
    after_long_help = help::EBB_AFTER,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Control socket of the daemon
    #[arg(
        long,
        global = true,
        env = "EBB_SOCKET",
        help_heading = "Global options",
        hide_env_values = true,
        value_name = "PATH",
        default_value = "/run/ebb/ebb.sock"
    )]
    pub socket: PathBuf,

    /// Print JSON, errors too
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    #[command(long_about = help::RUN)]
    Run(RunArgs),

    /// Validate a configuration file
    #[command(long_about = help::CHECK)]
    Check {
        /// The file
        file: PathBuf,
    },

    /// Show services, pools and backends
    #[command(long_about = help::STATUS, after_long_help = help::STATUS_AFTER)]
    Status(StatusArgs),

    /// Take backends out of service, keeping their connections
    #[command(long_about = help::DRAIN, after_long_help = help::DRAIN_AFTER)]
    Drain(DrainArgs),

    /// Let drained backends take new flows again
    #[command(long_about = help::UNDRAIN, after_long_help = help::UNDRAIN_AFTER)]
    Undrain(UndrainArgs),

    /// Set the share of new flows that backends take
    #[command(long_about = help::WEIGHT, after_long_help = help::WEIGHT_AFTER)]
    Weight(WeightArgs),

    /// Put backends aside: no new flows, and no deadline for those that they have
    #[command(long_about = help::MAINTENANCE, after_long_help = help::MAINTENANCE_AFTER)]
    Maintenance(MaintenanceArgs),

    /// Put backends back to work, from maintenance or a drain
    #[command(long_about = help::ACTIVATE, after_long_help = help::ACTIVATE_AFTER)]
    Activate(Targets),

    /// List drains: running ones with a forecast, ended ones with their receipt
    #[command(long_about = help::DRAINS, after_long_help = help::DRAINS_AFTER)]
    Drains(DrainsArgs),

    /// Add a backend to a pool
    #[command(long_about = help::ADD, after_long_help = help::ADD_AFTER)]
    Add(AddArgs),

    /// Remove a backend that has no flows left
    #[command(long_about = help::REMOVE)]
    Remove {
        /// The backend, as in web/b1
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: Backend,
        /// Even with flows left (they break) or below min_available
        #[arg(long)]
        force: bool,
    },

    /// Send new flows to another pool
    #[command(long_about = help::SWITCH)]
    Switch(SwitchArgs),

    /// Read the configuration file again
    #[command(long_about = help::RELOAD)]
    Reload {
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
    },

    /// List the flows in the flow table
    #[command(long_about = help::FLOWS, after_long_help = help::FLOWS_AFTER)]
    Flows {
        /// Only these, as in web or web/b1
        #[arg(value_name = "SERVICE[/BACKEND]")]
        of: Option<Scope>,
    },

    /// List the prefixes of clients that are denied or allowed
    #[command(long_about = help::CLIENTS)]
    Clients,

    /// Say where a client's packets go, and why
    #[command(long_about = help::EXPLAIN, after_long_help = help::EXPLAIN_AFTER)]
    Explain {
        /// The service
        service: Service,
        /// The client
        #[arg(long, value_name = "ADDRESS:PORT", value_parser = names::address)]
        from: SocketAddr,
        /// Port of the service, where it is on several; the first when left out
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// Connection id of a packet to a QUIC service, hexadecimal
        #[arg(long, value_name = "HEX")]
        cid: Option<String>,
    },

    /// Show what becomes of packets, or capture them as they leave
    #[command(long_about = help::TRACE, after_long_help = help::TRACE_AFTER)]
    Trace(TraceArgs),

    /// Try whether this kernel takes the XDP program
    #[command(long_about = help::VERIFY)]
    Verify,

    /// Attach a passing XDP program to the far end of a veth
    #[command(long_about = help::PASS, after_long_help = help::PASS_AFTER)]
    Pass {
        /// The interface, in this network namespace
        #[arg(value_parser = names::interface)]
        interface: String,
        /// Take it off again
        #[arg(long)]
        detach: bool,
    },

    /// On a backend: take the outer headers of ebb's tunnels off
    #[command(long_about = help::DECAP, after_long_help = help::DECAP_AFTER)]
    Decap(DecapArgs),

    /// End the daemon; forwarding goes on
    #[command(long_about = help::STOP)]
    Stop {
        /// End forwarding too: take the program off the interfaces and remove the maps
        #[arg(long)]
        detach: bool,
    },

    /// Show versions
    #[command(long_about = help::VERSION)]
    Version,
}

/// `ebb trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Only these packets, as in web or web/b1
    #[arg(value_name = "SERVICE[/BACKEND]")]
    pub of: Option<Scope>,
    /// Only from or to these addresses
    #[arg(long, value_name = "PREFIX")]
    pub client: Option<Prefix>,
    /// Only from or to this port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Only of this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<TraceProtocol>,
    /// Only with these outcomes, or kinds of them: forward, answer, drop, reset, pass
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',')]
    pub outcome: Vec<String>,
    /// Only dropped ones (--outcome drop)
    #[arg(long)]
    pub dropped: bool,
    /// Also packets that belong to no service
    #[arg(long)]
    pub all: bool,
    /// End after so many packets
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Capture the packets, in pcapng; `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Which frames to capture
    #[arg(long, requires = "pcap", value_enum, default_value_t = Frames::Both)]
    pub frames: Frames,
    /// Bytes to keep of each frame
    #[arg(long, value_name = "BYTES", requires = "pcap", default_value_t = SNAP, value_parser = clap::value_parser!(u32).range(14..=i64::from(SNAP)))]
    pub snap: u32,
}

/// `--frames` of `ebb trace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Frames {
    /// As they came, and as they left
    Both,
    /// As they came
    In,
    /// As they left
    Out,
}

/// `--protocol` of `ebb trace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceProtocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// ICMP and ICMPv6
    Icmp,
}

impl TraceProtocol {
    /// As the API has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// `ebb decap`.
#[derive(Debug, Args)]
pub struct DecapArgs {
    /// The interface that tunnels come in by, in this network namespace
    #[arg(long, value_name = "INTERFACE", value_parser = names::interface)]
    pub interface: String,
    /// UDP port of `gue` tunnels
    #[arg(long, value_name = "PORT", default_value_t = PORT_DEFAULT, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Only from these sources (several times, or with commas); from anywhere when not given
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub from: Vec<Prefix>,
    /// How the program is attached
    #[arg(long, value_enum, value_name = "MODE", default_value_t = AttachMode::Auto)]
    pub mode: AttachMode,
    /// Take it off again
    #[arg(long, conflicts_with_all = ["port", "from", "mode", "counts"])]
    pub detach: bool,
    /// Only show what the attached program has counted
    #[arg(long, conflicts_with_all = ["port", "from", "mode"])]
    pub counts: bool,
}

/// How an XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// Native where the driver can, else generic
    Auto,
    /// By the driver
    Native,
    /// By the kernel, with every driver
    Generic,
}

impl From<AttachMode> for XdpMode {
    fn from(mode: AttachMode) -> Self {
        match mode {
            AttachMode::Auto => Self::Auto,
            AttachMode::Native => Self::Native,
            AttachMode::Generic => Self::Generic,
        }
    }
}

/// `ebb run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file
    #[arg(
        long,
        env = "EBB_CONFIG",
        hide_env_values = true,
        value_name = "FILE",
        default_value = "/etc/ebb/ebb.toml"
    )]
    pub config: PathBuf,

    /// Directory of the pinned maps and programs, on a BPF file system
    #[arg(
        long,
        env = "EBB_PINS",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/sys/fs/bpf/ebb"
    )]
    pub pins: PathBuf,

    /// Directory of the journal
    #[arg(
        long,
        env = "EBB_STATE_DIR",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/var/lib/ebb"
    )]
    pub state_dir: PathBuf,

    /// Forget the pinned maps, and all flows with them: for maps that another version of ebb has made
    #[arg(long)]
    pub afresh: bool,

    /// Log every decision of the data plane: for a lab, as it costs far more than the packet (see `ebb trace`)
    #[arg(long)]
    pub log_packets: bool,
}

/// `ebb status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this service
    pub service: Option<Service>,
    /// Redraw each second, with rates, until Ctrl-C
    #[arg(long, short)]
    pub watch: bool,
}

/// Backends that a command is about: several, or all of a pool.
#[derive(Debug, Args)]
pub struct Targets {
    /// The backends, as in web/b1; or with --pool their service, as in web
    #[arg(value_name = "SERVICE/BACKEND", required = true)]
    pub of: Vec<Scope>,

    /// Every backend of this pool of the service
    #[arg(long, value_name = "POOL")]
    pub pool: Vec<Pool>,
}

/// What [`Targets`] name.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// One backend, `SERVICE/BACKEND`.
    One(String),
    /// Several.
    Backends(Vec<String>),
    /// Whole pools, `SERVICE/POOL`.
    Pools(Vec<String>),
}

impl Targets {
    /// What they name.
    ///
    /// # Errors
    ///
    /// A service without a pool, or a backend with one.
    pub fn named(&self) -> Result<Named, CliError> {
        let wrong =
            |error: String, hint: String| Err(CliError::failed(error).hint(hint).exit(exit::USAGE));
        if self.pool.is_empty() {
            if let Some(service) = self.of.iter().find(|scope| scope.backend.is_none()) {
                return wrong(
                    format!("{service} names a service, and a backend or a pool is wanted"),
                    format!("write {service}/BACKEND, or {service} --pool POOL"),
                );
            }
            let mut paths: Vec<String> = self.of.iter().map(ToString::to_string).collect();
            return Ok(match paths.len() {
                1 => Named::One(paths.remove(0)),
                _ => Named::Backends(paths),
            });
        }
        match self.of.as_slice() {
            [
                Scope {
                    service,
                    backend: None,
                },
            ] => {
                let pools = self.pool.iter();
                Ok(Named::Pools(
                    pools.map(|pool| format!("{service}/{}", pool.0)).collect(),
                ))
            }
            _ => wrong(
                "--pool wants one service, and no backend".to_owned(),
                "as in web --pool blue".to_owned(),
            ),
        }
    }
}

/// `ebb drains`.
#[derive(Debug, Args)]
pub struct DrainsArgs {
    /// Only these: a service, a backend, or the number of a drain
    #[arg(value_name = "SERVICE[/BACKEND]|ID")]
    pub of: Vec<Drains>,

    /// Wait for the end of those that run (and of each that is given by its number), and print the receipts
    #[arg(long)]
    pub wait: bool,

    /// Every receipt that is kept, not only the last ones
    #[arg(long, conflicts_with = "wait")]
    pub all: bool,
}

/// `ebb drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Whom.
    #[command(flatten)]
    pub targets: Targets,

    /// Time to the deadline, as in 300s or 5m [default: the service's]
    #[arg(long, value_name = "DURATION", value_parser = names::duration)]
    pub timeout: Option<Duration>,

    /// What happens to the flows left at the deadline [default: the service's]
    #[arg(long, value_name = "reset|leave|drop", hide_possible_values = true)]
    pub on_deadline: Option<AtDeadline>,

    /// Wait for the end of the drains and print their receipts
    #[arg(long)]
    pub wait: bool,

    /// Even when fewer than min_available backends are left
    #[arg(long)]
    pub force: bool,

    /// In the backend's own name, as its systemd unit asks: it may take the drain back
    #[arg(long)]
    pub as_backend: bool,
}

/// `ebb undrain`.
#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// Whom.
    #[command(flatten)]
    pub targets: Targets,

    /// In the backend's own name: only a drain that it asked for itself is taken back, and no other is an error
    #[arg(long)]
    pub as_backend: bool,
}

/// `ebb weight`.
#[derive(Debug, Args)]
#[command(override_usage = "ebb weight [OPTIONS] <SERVICE/BACKEND>... <WEIGHT>")]
pub struct WeightArgs {
    /// The backends, as in web/b1, or with --pool their service, as in web; and last the weight: 0 to 1000, relative to
    /// the others of the pool, or `default`
    // One list: clap would take the word before an option in between for the weight.
    #[arg(value_name = "SERVICE/BACKEND|WEIGHT", required = true)]
    pub words: Vec<String>,

    /// Every backend of this pool of the service
    #[arg(long, value_name = "POOL")]
    pub pool: Vec<Pool>,

    /// Even when fewer than min_available backends are left (with weight 0)
    #[arg(long)]
    pub force: bool,
}

impl WeightArgs {
    /// Whose weight, and the weight.
    ///
    /// # Errors
    ///
    /// One of them is missing, or is none.
    pub fn parts(&self) -> Result<(Named, Weight), CliError> {
        let wrong = |error: String| {
            let hint = "`ebb weight web/b1 5`, and `ebb weight --help` says more";
            CliError::failed(error).hint(hint).exit(exit::USAGE)
        };
        let (last, backends) = match self.words.split_last() {
            Some((last, backends)) if !backends.is_empty() => (last, backends),
            _ => return Err(wrong("a backend and its weight are wanted".to_owned())),
        };
        let weight = last
            .parse()
            .map_err(|why: NameError| wrong(format!("{last:?} is no weight: {why}")))?;
        let of: Result<Vec<Scope>, NameError> = backends.iter().map(|word| word.parse()).collect();
        let targets = Targets {
            of: of.map_err(|why| wrong(why.to_string()))?,
            pool: self.pool.clone(),
        };
        Ok((targets.named()?, weight))
    }
}

/// `ebb maintenance`.
#[derive(Debug, Args)]
pub struct MaintenanceArgs {
    /// Whom.
    #[command(flatten)]
    pub targets: Targets,

    /// Even when fewer than min_available backends are left
    #[arg(long)]
    pub force: bool,
}

/// `--on-deadline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AtDeadline {
    /// Answer the client's next packet with a reset.
    Reset,
    /// Let them go on.
    Leave,
    /// Drop their packets.
    Drop,
}

impl From<AtDeadline> for OnDeadline {
    fn from(value: AtDeadline) -> Self {
        match value {
            AtDeadline::Reset => Self::Reset,
            AtDeadline::Leave => Self::Leave,
            AtDeadline::Drop => Self::Drop,
        }
    }
}

/// `ebb add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Its name, as in web/blue/b4
    #[arg(value_name = "SERVICE/POOL/BACKEND")]
    pub backend: NewBackend,

    /// Where it listens
    #[arg(value_name = "ADDRESS[:PORT]", value_parser = names::backend_address)]
    pub address: SocketAddr,

    /// Its share relative to the others, 0 to 1000 [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub weight: Option<u32>,

    /// When it is there already, at this address, leave it as it is
    #[arg(long)]
    pub if_absent: bool,
}

/// `ebb switch`.
#[derive(Debug, Args)]
pub struct SwitchArgs {
    /// The service
    pub service: Service,
    /// The pool that takes its new flows from now on
    pub pool: Pool,
    /// Even when fewer than min_available of its backends are up
    #[arg(long)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_anywhere() {
        for line in [
            "ebb --socket /x --json status",
            "ebb status --json --socket /x",
        ] {
            let cli = parse(line).expect(line);
            assert!(cli.json);
            assert_eq!(cli.socket, PathBuf::from("/x"));
        }
    }

    #[test]
    fn drain_takes_its_options() {
        let cli = parse("ebb drain web/b1 --timeout 5m --on-deadline leave --wait --force")
            .expect("a drain");
        let Command::Drain(args) = cli.command else {
            panic!("not a drain");
        };
        assert_eq!(
            args.targets.named().ok(),
            Some(Named::One("web/b1".to_owned()))
        );
        assert_eq!(args.timeout, Some(Duration::from_secs(300)));
        assert_eq!(args.on_deadline, Some(AtDeadline::Leave));
        assert!(args.wait && args.force);
    }

    #[test]
    fn backends_or_pools_are_named() {
        let named = |line: &str| match parse(line).expect(line).command {
            Command::Drain(args) => args.targets.named(),
            Command::Undrain(args) => args.targets.named(),
            _ => panic!("{line}"),
        };
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let rows = [
            (
                "ebb drain web/b1 web/b2 api/x --wait",
                Named::Backends(paths(&["web/b1", "web/b2", "api/x"])),
            ),
            (
                "ebb drain web --pool blue",
                Named::Pools(paths(&["web/blue"])),
            ),
            (
                "ebb undrain web --pool blue --pool green",
                Named::Pools(paths(&["web/blue", "web/green"])),
            ),
        ];
        for (line, wanted) in rows {
            assert_eq!(named(line).expect(line), wanted, "{line}");
        }
        for (line, part) in [
            ("ebb drain web", "web --pool POOL"),
            ("ebb drain web/b1 api", "api/BACKEND"),
            ("ebb drain web/b1 --pool blue", "web --pool blue"),
            ("ebb undrain web api --pool blue", "web --pool blue"),
        ] {
            let error = named(line).expect_err(line);
            assert_eq!(error.exit, exit::USAGE);
            assert!(error.hint.expect("a hint").contains(part), "{line}");
        }
    }

    #[test]
    fn the_weight_comes_after_the_backends() {
        let parts = |line: &str| match parse(line).expect(line).command {
            Command::Weight(args) => args.parts(),
            _ => panic!("{line}"),
        };
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let one = || Named::One("web/b1".to_owned());
        let rows = [
            ("ebb weight web/b1 5", one(), Some(5)),
            ("ebb weight web/b1 --force 0", one(), Some(0)),
            ("ebb weight web/b1 default", one(), None),
            (
                "ebb weight web/b1 web/b2 1000 --force",
                Named::Backends(paths(&["web/b1", "web/b2"])),
                Some(1000),
            ),
            (
                "ebb weight web --pool blue 7",
                Named::Pools(paths(&["web/blue"])),
                Some(7),
            ),
        ];
        for (line, named, weight) in rows {
            assert_eq!(parts(line).expect(line), (named, Weight(weight)), "{line}");
        }
        for (line, part) in [
            ("ebb weight web/b1", "a backend and its weight"),
            ("ebb weight 5", "a backend and its weight"),
            ("ebb weight web/b1 1001", "0 to 1000"),
            ("ebb weight web/b1 web/b2", "\"web/b2\" is no weight"),
            ("ebb weight web/blue/b1 5", "leave the pool out"),
            ("ebb weight web 5", "names a service"),
        ] {
            let error = parts(line).expect_err(line);
            assert_eq!(error.exit, exit::USAGE, "{line}");
            assert!(error.error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn trace_takes_its_filter() {
        let line = "ebb trace web/b1 --client 192.0.2.0/24 --port 443 --protocol icmp \
                    --outcome drop_ttl,reset --dropped -n 5 --seconds 9 --pcap - --frames in --snap 96";
        let Command::Trace(args) = parse(line).expect("a trace").command else {
            panic!("not a trace");
        };
        assert_eq!(args.of.map(|of| of.to_string()).as_deref(), Some("web/b1"));
        assert_eq!(args.client.map(|prefix| prefix.length()), Some(24));
        assert_eq!(args.outcome, ["drop_ttl", "reset"]);
        assert_eq!(
            (args.port, args.count, args.seconds),
            (Some(443), Some(5), Some(9))
        );
        assert!(args.dropped && args.frames == Frames::In && !args.all);
        assert_eq!((args.snap, args.protocol), (96, Some(TraceProtocol::Icmp)));
    }

    #[test]
    fn what_is_left_out_is_the_daemons_to_choose() {
        let Command::Drain(args) = parse("ebb drain web/b1").expect("a drain").command else {
            panic!("not a drain");
        };
        assert_eq!((args.timeout, args.on_deadline), (None, None));
        assert!(!args.wait && !args.force);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "ebb drain",
            "ebb drain web/b1 --timeout 300",
            "ebb drains web/blue/b1",
            "ebb undrain --pool blue",
            "ebb drain web/b1 --on-deadline never",
            "ebb add web/b1 10.0.0.1:80",
            "ebb add web/blue/b1 10.0.0.1:0",
            "ebb add web/blue/b1 10.0.0.1:80 --weight 1001",
            "ebb weight",
            "ebb weight web/b1 -1",
            "ebb maintenance",
            "ebb activate web/b1 --force",
            "ebb explain web",
            "ebb switch web",
            "ebb pass a/b",
            "ebb trace --frames in",
            "ebb trace --pcap f --frames none",
            "ebb trace --pcap f --snap 5000",
            "ebb trace --protocol sctp",
            "ebb trace --count 0",
            "ebb trace web/blue/b1",
            "ebb frobnicate",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn help_says_where_exit_codes_and_environment_are() {
        let help = Cli::command().render_long_help().to_string();
        for part in [
            "Exit codes",
            "EBB_SOCKET",
            "EBB_PINS",
            "EBB_STATE_DIR",
            "64",
        ] {
            assert!(help.contains(part), "{part}");
        }
    }
}
