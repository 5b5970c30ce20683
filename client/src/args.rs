//! Role: the command line of `narrowlink`.
//! Invariants: whatever clap refuses exits with 2 and says how to write it.

use std::{net::SocketAddr, path::PathBuf};

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use narrowlink_dataplane::process;
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
  narrowlink list
  narrowlink whoami
  narrowlink forward -n home -l 127.0.0.1:2222 127.0.0.1:22
  ssh -o ProxyCommand='narrowlink connect -n home %h:%p' user@192.168.1.5

Without -c, client.yaml is looked for in ./, $XDG_CONFIG_HOME/narrowlink/, ~/.narrowlink/ and /etc/narrowlink/.

Exit codes: 0 done, 2 usage, 65 refused by policy, 69 unreachable or not found, 74 the session was reset,
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
  narrowlink whoami --json | jq -r '.[].expires_at'

Every endpoint of client.yaml is shown. Exit code: 0 if each of their gateways accepts its token; else 77 if
one does not, or 69 if one can't be reached. With --offline: 77 for a token whose time is over.")]
    Whoami {
        /// Only say what the token says; ask no gateway
        #[arg(long)]
        offline: bool,
        /// As a JSON array, one object for each endpoint
        #[arg(long)]
        json: bool,
    },
    /// Make a target beyond an agent reachable at a local port, until stopped
    #[command(after_help = "\
Examples:
  narrowlink forward -n home -l 127.0.0.1:2222 127.0.0.1:22    then: ssh -p 2222 user@127.0.0.1
  narrowlink forward -n home printer.lan:631                   takes a free port and prints it")]
    Forward {
        /// The agent that dials
        #[arg(short, long, value_name = "AGENT")]
        name: String,
        /// Where to listen; port 0 for any that is free
        #[arg(short, long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// What it dials
        #[arg(value_name = "HOST:PORT", value_parser = parse_target)]
        target: Target,
    },
    /// Join standard input and output with a target beyond an agent
    #[command(after_help = "\
Examples:
  ssh -o ProxyCommand='narrowlink connect -n home %h:%p' user@192.168.1.5
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | narrowlink connect -n home 127.0.0.1:80")]
    Connect {
        /// The agent that dials
        #[arg(short, long, value_name = "AGENT")]
        name: String,
        /// What it dials
        #[arg(value_name = "HOST:PORT", value_parser = parse_target)]
        target: Target,
    },
}

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

/// The arguments of this process. What is wrong with them is said without what was written: it might be a secret.
pub fn parse() -> Args {
    process::refuse_secrets("narrowlink", &[]);
    Args::try_parse().unwrap_or_else(|e| {
        if e.use_stderr() {
            process::refuse_arguments(&e.to_string(), e.exit_code());
        }
        e.exit()
    })
}

fn parse_target(text: &str) -> Result<Target, TargetError> {
    Target::parse_host_port(text).map(|(host, port)| Target::Tcp { host, port })
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
    }

    #[test]
    fn short_and_long_options_mean_the_same() {
        let short = parse("narrowlink -c a.yaml forward -n home -l 127.0.0.1:80 [::1]:22").unwrap();
        let long =
            parse("narrowlink forward --name home --listen 127.0.0.1:80 [::1]:22 --config a.yaml").unwrap();
        assert_eq!(short.command, long.command);
        assert_eq!(short.config, long.config);
        let target = Target::Tcp { host: "::1".to_owned(), port: 22 };
        let listen = "127.0.0.1:80".parse().unwrap();
        assert_eq!(short.command, Command::Forward { name: "home".to_owned(), listen, target });
    }

    #[test]
    fn a_forward_takes_any_free_local_port_unless_told() {
        let args = parse("narrowlink forward -n home db.lan:5432 --framing raw").unwrap();
        assert_eq!(args.framing.map(FramingChoice::from), Some(FramingChoice::Raw));
        let Command::Forward { listen, .. } = args.command else { panic!("another command") };
        assert_eq!(listen, "127.0.0.1:0".parse().unwrap());
    }

    #[test]
    fn a_wrong_line_is_refused_with_2_and_says_why() {
        let cases = [
            ("narrowlink", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, "Usage"),
            ("narrowlink connect 127.0.0.1:22", ErrorKind::MissingRequiredArgument, "--name"),
            ("narrowlink connect -n home 127.0.0.1", ErrorKind::ValueValidation, "the port is missing"),
            ("narrowlink connect -n home ::1:22", ErrorKind::ValueValidation, "in brackets"),
            ("narrowlink connect -n home a:0", ErrorKind::ValueValidation, "from 1 to 65535"),
            ("narrowlink forward -n home -l 80 a:1", ErrorKind::ValueValidation, "--listen"),
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
