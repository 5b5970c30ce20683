//! Role: the command line of `narrowlink`.
//! Invariants: whatever clap refuses exits with 2 and says how to write it.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use narrowlink_dataplane::run::log;
use narrowlink_proto::{
    endpoint::FramingChoice,
    target::{Target, TargetError},
};

/// Reaches machines behind NATs and firewalls through a Narrowlink gateway.
#[derive(Debug, Parser)]
#[command(
    name = "narrowlink",
    version,
    after_help = "\
Examples:
  narrowlink login -
  narrowlink list
  narrowlink whoami
  narrowlink doctor
  narrowlink ping -n home
  narrowlink forward -n home -l 127.0.0.1:2222 127.0.0.1:22
  ssh -o ProxyCommand='narrowlink connect -n home %h:%p' user@192.168.1.5

Without -c, client.yaml is looked for in ./, $XDG_CONFIG_HOME/narrowlink/, ~/.narrowlink/ and /etc/narrowlink/.

Exit codes: 0 done, 2 usage, 65 refused by policy, 69 unreachable or not found,
70 internal, 74 the session was reset, or standard input or output broke,
77 authentication, 78 configuration."
)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Say more; twice for everything
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Say errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// The form of the log's lines: text, or json, one object each
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: log::Format,
    /// How payload travels, whatever the configuration says
    #[arg(long, value_name = "HOW", global = true)]
    pub framing: Option<Framing>,
    /// Refuse to run without io_uring
    #[arg(long, global = true)]
    pub require_io_uring: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Take a ticket: write client.yaml and its token, and ask the gateway
    #[command(after_help = "\
Examples:
  narrowlink login nl1AbC..
  narrowlink login -                       and paste it, then Ctrl-D: so it stands in no history
  narrowlink login - < phone.ticket

A newer ticket of the same gateway replaces the token; forwards that run go on with it.
Another configuration is never overwritten.

Exit codes: as whoami, and 2 what is no ticket, 73 what can't be written.")]
    Login {
        /// The ticket, as `narrowlink-gateway ticket client` makes it; - reads it from standard input
        #[arg(value_name = "TICKET")]
        ticket: String,
        /// Where client.yaml goes: /etc/narrowlink for root, ~/.config/narrowlink for others
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Where another client's token is there, give that up
        #[arg(long)]
        replace: bool,
    },
    /// Show the agents that are connected
    #[command(after_help = "\
Examples:
  narrowlink list
  narrowlink list --json | jq -r '.[].name'")]
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show what your token is and allows, and whether the gateway accepts it
    #[command(after_help = "\
Examples:
  narrowlink whoami
  narrowlink whoami --offline                              asks nobody, looks at the token alone
  narrowlink whoami -v                                     and what is used of what is limited
  narrowlink whoami --json | jq -r '.[].expires_at'

Every endpoint of client.yaml is shown.

Exit codes: 0 each of their gateways accepts its token, 77 one does not,
69 one can't be reached. With --offline: 77 for a token whose time is over.")]
    Whoami {
        /// Only say what the token says; ask no gateway
        #[arg(long)]
        offline: bool,
        /// As a JSON array, one object for each endpoint
        #[arg(long)]
        json: bool,
    },
    /// Measure how far it is to the gateway, to an agent, and to what it dials
    #[command(after_help = "\
Examples:
  narrowlink ping -n home
  narrowlink ping -n home 127.0.0.1:22                     and how long the agent takes to connect
  narrowlink ping -n home --json | jq .client_agent.median_us

Each round trip goes through a session as any other. What lies between gateway and agent is the time
to the agent, less the time to the gateway at the same moment.")]
    Ping {
        /// The agent
        #[arg(short, long, visible_alias = "agent", value_name = "AGENT", value_parser = parse_agent)]
        name: String,
        /// How often
        #[arg(long, value_name = "TIMES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        count: u32,
        /// Milliseconds between two
        #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(..=60_000))]
        pause: u32,
        /// As one JSON object, times in microseconds
        #[arg(long)]
        json: bool,
        /// What it is to connect to besides, as the agent sees it
        #[arg(value_name = "HOST:PORT", value_parser = parse_target)]
        target: Option<Target>,
    },
    /// Measure how much goes through to the gateway and to an agent
    #[command(after_help = "\
Examples:
  narrowlink bench -n home
  narrowlink bench -n home --seconds 10 --streams 4
  narrowlink bench -n home --json | jq .client_agent.down_bytes_per_s

Each way is measured up and down, with the round trip beside it: one that grows much under load waits
in a queue on the way. Bytes count against the limits of your token as any others do.")]
    Bench {
        /// The agent
        #[arg(short, long, visible_alias = "agent", value_name = "AGENT", value_parser = parse_agent)]
        name: String,
        /// For how long in each direction of each way
        #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
        seconds: u32,
        /// Over so many connections at once
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
        streams: u32,
        /// As one JSON object, times in microseconds and rates in bytes a second
        #[arg(long)]
        json: bool,
        /// What the agent is to connect to besides, as it sees it
        #[arg(value_name = "HOST:PORT", value_parser = parse_target)]
        target: Option<Target>,
    },
    /// Go the way to each gateway step by step, and say what is wrong with it and what to do next
    #[command(after_help = "\
Examples:
  narrowlink doctor
  narrowlink doctor --json | jq -r '.[] | select(.state == \"FAIL\") | .next'

Each line is OK, WARN, FAIL or SKIP, what was looked at, and what was found.

Exit codes: 0 nothing is FAIL, else that of the trouble: 69 a gateway can't be reached, 70 the system
lacks what is required, 77 the token, 78 the configuration; of several the highest.")]
    Doctor {
        /// As a JSON array, one object for each line
        #[arg(long)]
        json: bool,
    },
    /// Make a target beyond an agent reachable at a local port, until stopped
    #[command(after_help = "\
Examples:
  narrowlink forward -n home -l 127.0.0.1:2222 127.0.0.1:22    then: ssh -p 2222 user@127.0.0.1
  narrowlink forward -n home printer.lan:631                   takes a free port and prints it
  narrowlink forward -n home db.lan:5432 --json | jq -r --unbuffered .listening

Whoever reaches the address of -l uses your token: one that other machines reach is warned of.")]
    Forward {
        /// The agent that dials
        #[arg(short, long, visible_alias = "agent", value_name = "AGENT", value_parser = parse_agent)]
        name: String,
        /// Where it listens.
        #[arg(
            short,
            long,
            help = LISTEN_HELP,
            value_name = "[IP:]PORT",
            default_value = "127.0.0.1:0",
            allow_negative_numbers = true,
            value_parser = parse_listen
        )]
        listen: SocketAddr,
        /// Say where it listens as one JSON object, in one line
        #[arg(long)]
        json: bool,
        /// What it dials, as the agent sees it: 127.0.0.1:22 is the agent's own machine
        #[arg(value_name = "HOST:PORT", value_parser = parse_target)]
        target: Target,
        /// What ssh users write.
        #[arg(short = 'L', value_name = "PORT:HOST:PORT", hide = true, num_args = 0..=1, default_missing_value = "", value_parser = refuse_ssh_form)]
        ssh_form: Option<Never>,
    },
    /// Join standard input and output with a target beyond an agent
    #[command(after_help = "\
Examples:
  ssh -o ProxyCommand='narrowlink connect -n home %h:%p' user@192.168.1.5
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | narrowlink connect -n home 127.0.0.1:80")]
    Connect {
        /// The agent that dials
        #[arg(short, long, visible_alias = "agent", value_name = "AGENT", value_parser = parse_agent)]
        name: String,
        /// What it dials, as the agent sees it: 127.0.0.1:22 is the agent's own machine
        #[arg(value_name = "HOST:PORT", value_parser = parse_target)]
        target: Target,
    },
}

/// The value of an option that takes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Never {}

/// How payload travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Framing {
    /// What fits best.
    Auto,
    /// WebSocket messages; works through any CDN.
    Framed,
    /// Plain bytes; only where nothing stands between.
    Raw,
}

impl From<Framing> for FramingChoice {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Auto => Self::Auto,
            Framing::Framed => Self::Framed,
            Framing::Raw => Self::Raw,
        }
    }
}

const LISTEN_HELP: &str = "Where to listen: 2222 or localhost:2222 (both are 127.0.0.1:2222), 192.168.1.9:2222, \
                           [::1]:2222; 0.0.0.0:2222 and [::]:2222 are all addresses of this machine. Port 0 is any \
                           that is free";

const LISTEN_FORMS: &str =
    "expected PORT, IP:PORT or [IPV6]:PORT, such as 2222, 127.0.0.1:2222 or [::1]:2222";

/// `2222`, `localhost:2222`, `127.0.0.1:2222` or `[::1]:2222`. No other name: which of its addresses is meant
/// would be anybody's guess.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let is_localhost = |host: &str| host.eq_ignore_ascii_case("localhost");
    let port = match text.split_once(':') {
        None => Some(text),
        Some((host, port)) if is_localhost(host) => Some(port),
        Some(_) => None,
    };
    let port = port.and_then(|port| port.parse().ok());
    let local = port.map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    local.or_else(|| text.parse().ok()).ok_or_else(|| listen_trouble(text))
}

/// Why `text` is no place to listen.
fn listen_trouble(text: &str) -> String {
    let is_number = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let what = match host {
        _ if text.eq_ignore_ascii_case("localhost") || bare.parse::<Ipv4Addr>().is_ok() => {
            "the port is missing"
        }
        _ if text.starts_with('[') && bare.parse::<Ipv6Addr>().is_ok() => "the port is missing",
        _ if text.parse::<Ipv6Addr>().is_ok() || host.parse::<Ipv6Addr>().is_ok() => {
            "an IPv6 address stands in brackets, and its port behind them"
        }
        "" if text.is_empty() => "it is empty",
        "" if text.strip_prefix('-').is_some_and(is_number) => "a port is a number from 0 to 65535",
        "" | "*" if text.contains(':') => {
            return "write 0.0.0.0:PORT for all addresses of this machine".to_owned();
        }
        _ if is_number(port) && port.parse::<u16>().is_err() => "a port is a number from 0 to 65535",
        _ if text.matches(':').count() >= 2 && !text.starts_with('[') => return SSH_FORM.to_owned(),
        _ if is_number(port) => "only addresses of this machine and localhost are taken, no other names",
        _ => return LISTEN_FORMS.to_owned(),
    };
    format!("{what}; {LISTEN_FORMS}")
}

const SSH_FORM: &str = "where to listen and what to reach are two arguments: -l [IP:]PORT HOST:PORT, such as \
                        -l 2222 127.0.0.1:22";

/// `-L 2222:127.0.0.1:22` is refused, with what to write.
fn refuse_ssh_form(_: &str) -> Result<Never, String> {
    Err(SSH_FORM.to_owned())
}

/// `HOST:PORT`, and `tcp://` may stand in front of it.
fn parse_target(text: &str) -> Result<Target, String> {
    match text.parse() {
        Ok(target @ Target::Tcp { .. }) => Ok(target),
        Ok(_) | Err(TargetError::Scheme) => {
            Err("only TCP can be forwarded: expected HOST:PORT or tcp://HOST:PORT".to_owned())
        }
        Err(TargetError::PortAlone) => {
            let port = text.trim_start_matches("tcp://");
            Err(format!("a port alone: write 127.0.0.1:{port} for the agent's own machine, else HOST:{port}"))
        }
        Err(why) => Err(why.to_string()),
    }
}

fn parse_agent(text: &str) -> Result<String, String> {
    match text {
        "" => Err("an agent has a name; `narrowlink list` shows those that are connected".to_owned()),
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_arguments_fit_together_and_every_command_has_examples() {
        let mut command = Args::command();
        command.clone().debug_assert();
        assert!(command.render_help().to_string().contains("Exit codes"));
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            assert!(sub.render_help().to_string().contains("Examples:"), "{}", sub.get_name());
        }
        let forward = command.find_subcommand_mut("forward").unwrap().render_long_help().to_string();
        assert!(forward.contains("[::1]:2222") && !forward.contains("-L"), "{forward}");
    }

    #[test]
    fn short_and_long_options_mean_the_same() {
        let short = parse("narrowlink -c a.yaml forward -n home -l 127.0.0.1:80 [::1]:22").unwrap();
        let long =
            parse("narrowlink forward --name home --listen 127.0.0.1:80 [::1]:22 --config a.yaml").unwrap();
        assert_eq!(short.command, long.command);
        assert_eq!(short.config, long.config);
        let alias =
            parse("narrowlink -c a.yaml forward --agent home --listen 127.0.0.1:80 [::1]:22").unwrap();
        assert_eq!(alias.command, long.command);
        let target = Target::Tcp { host: "::1".to_owned(), port: 22 };
        let listen = "127.0.0.1:80".parse().unwrap();
        let name = "home".to_owned();
        assert_eq!(short.command, Command::Forward { name, listen, json: false, target, ssh_form: None });
    }

    #[test]
    fn a_forward_takes_any_free_local_port_unless_told() {
        let args = parse("narrowlink forward -n home db.lan:5432 --framing raw").unwrap();
        assert_eq!(args.framing.map(FramingChoice::from), Some(FramingChoice::Raw));
        let Command::Forward { listen, .. } = args.command else { panic!("another command") };
        assert_eq!(listen, "127.0.0.1:0".parse().unwrap());
    }

    #[test]
    fn a_port_alone_and_localhost_are_taken_for_127_0_0_1() {
        for (text, addr) in [
            ("2222", "127.0.0.1:2222"),
            ("localhost:2222", "127.0.0.1:2222"),
            ("0", "127.0.0.1:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(parse_listen(text), Ok(addr.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_target_may_have_its_scheme_in_front() {
        let target = |text| parse_target(text).unwrap();
        assert_eq!(target("tcp://db.lan:5432"), target("db.lan:5432"));
        assert_eq!(target("tcp://[::1]:22"), Target::Tcp { host: "::1".to_owned(), port: 22 });
    }

    #[test]
    fn no_place_to_listen_is_refused_without_saying_why() {
        let forms = "; expected PORT, IP:PORT or [IPV6]:PORT";
        for (text, why) in [
            ("127.0.0.1", "the port is missing"),
            ("localhost", "the port is missing"),
            ("[::1]", "the port is missing"),
            ("::1", "an IPv6 address stands in brackets"),
            ("::1:22226", "an IPv6 address stands in brackets"),
            ("2001:db8::7:65536", "an IPv6 address stands in brackets"),
            ("99999", "a port is a number from 0 to 65535"),
            ("127.0.0.1:65536", "a port is a number from 0 to 65535"),
            ("localhost:99999", "a port is a number from 0 to 65535"),
            ("[::1]:99999", "a port is a number from 0 to 65535"),
            ("nas.lan:22", "no other names"),
            ("-1", "a port is a number from 0 to 65535"),
            ("", "it is empty"),
        ] {
            let said = parse_listen(text).unwrap_err();
            assert!(said.contains(why) && said.contains(forms), "{text}: {said}");
        }
        for text in [":80", "*:80"] {
            assert!(parse_listen(text).unwrap_err().contains("0.0.0.0:PORT"), "{text}");
        }
        for text in ["2222:nas.lan:22", "127.0.0.1:2222:nas.lan:22"] {
            assert_eq!(parse_listen(text), Err(SSH_FORM.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_wrong_line_is_refused_with_2_and_says_why() {
        let cases = [
            ("narrowlink", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, "Usage"),
            ("narrowlink connect 127.0.0.1:22", ErrorKind::MissingRequiredArgument, "--name"),
            ("narrowlink connect -n home 127.0.0.1", ErrorKind::ValueValidation, "the port is missing"),
            ("narrowlink connect -n home ::1:22", ErrorKind::ValueValidation, "in brackets"),
            ("narrowlink connect -n home a:0", ErrorKind::ValueValidation, "from 1 to 65535"),
            (
                "narrowlink forward -n home -l eighty a:1",
                ErrorKind::ValueValidation,
                "expected PORT, IP:PORT",
            ),
            ("narrowlink forward -n home -l 65536 a:1", ErrorKind::ValueValidation, "from 0 to 65535"),
            ("narrowlink forward -n home -l -1 a:1", ErrorKind::ValueValidation, "from 0 to 65535"),
            ("narrowlink forward -n home -l :80 a:1", ErrorKind::ValueValidation, "0.0.0.0:PORT"),
            ("narrowlink forward -n home -L 2222:a:22", ErrorKind::ValueValidation, "-l 2222 127.0.0.1:22"),
            ("narrowlink forward -n home a:22 -L", ErrorKind::ValueValidation, "-l 2222 127.0.0.1:22"),
            ("narrowlink forward --name= a:22", ErrorKind::ValueValidation, "an agent has a name"),
            ("narrowlink connect --name= a:22", ErrorKind::ValueValidation, "an agent has a name"),
            (
                "narrowlink connect -n home 22",
                ErrorKind::ValueValidation,
                "write 127.0.0.1:22 for the agent's",
            ),
            ("narrowlink connect -n home tcp://22", ErrorKind::ValueValidation, "write 127.0.0.1:22 for"),
            (
                "narrowlink connect -n home http://a",
                ErrorKind::ValueValidation,
                "expected HOST:PORT or tcp://",
            ),
            (
                "narrowlink connect -n home udp://a:53",
                ErrorKind::ValueValidation,
                "only TCP can be forwarded",
            ),
            ("narrowlink lst", ErrorKind::InvalidSubcommand, "list"),
            ("narrowlink list -v -q", ErrorKind::ArgumentConflict, "--quiet"),
        ];
        for (line, kind, says) in cases {
            let error = parse(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
            assert!(error.to_string().contains(says), "{line}: {error}");
        }
    }
}
