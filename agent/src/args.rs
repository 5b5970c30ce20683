//! Role: the command line of `narrowlink-agent`.
//! Invariants: whatever clap refuses exits with 2 and says how to write it; without a command it is an agent.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};
use narrowlink_dataplane::run::log;

/// Gives clients of a Narrowlink gateway access to this machine and what it can reach.
#[derive(Debug, Parser)]
#[command(
    name = "narrowlink-agent",
    version,
    after_help = "\
Examples:
  narrowlink-agent join -                  take the ticket that stands on standard input
  narrowlink-agent -c agent.yaml           run with this configuration
  narrowlink-agent --check                 say whether agent.yaml in a usual place can be used
  narrowlink-agent doctor                  say what is wrong on the way to its gateways
  narrowlink-agent -v                      say more: each session, each lane

Without -c, agent.yaml is looked for in ./, $XDG_CONFIG_HOME/narrowlink/, ~/.narrowlink/ and /etc/narrowlink/."
)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Say whether an agent of this configuration could start here, and exit; no gateway is asked
    #[arg(long)]
    pub check: bool,
    /// Write {"gateway":"HOST:PORT"} there when the first gateway has welcomed this agent
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
    /// Refuse to run without io_uring
    #[arg(long, global = true)]
    pub require_io_uring: bool,
    /// Log more; twice for everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// The form of the log's lines: text, or json, one object each
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: log::Format,
    /// What to do instead of being an agent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of being an agent.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Take a ticket: write agent.yaml and its token, and ask the gateway
    #[command(after_help = "\
Examples:
  sudo narrowlink-agent join nl1AbC..
  narrowlink-agent join -                  and paste it, then Ctrl-D: so it stands in no history
  narrowlink-agent join - < home.ticket

A newer ticket of the same gateway replaces the token; an agent that runs goes on with it.
Another configuration is never overwritten.

Exit codes: 0 the gateway takes it, 2 what is no ticket, 69 it does not, or can't be reached,
73 what can't be written, 78 configuration.")]
    Join {
        /// The ticket, as `narrowlink-gateway ticket agent` makes it; - reads it from standard input
        #[arg(value_name = "TICKET")]
        ticket: String,
        /// Where agent.yaml goes: /etc/narrowlink for root, ~/.config/narrowlink for others
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Where another agent's token is there, give that up
        #[arg(long)]
        replace: bool,
        /// Leave it to you to run it: for root, where systemd runs the machine, it is made a service else
        #[arg(long)]
        no_service: bool,
    },
    /// Have systemd run this agent, now and after each boot
    #[command(subcommand)]
    Service(Service),
    /// Go the way to each gateway step by step, and say what is wrong with it and what to do next
    #[command(after_help = "\
Examples:
  narrowlink-agent doctor
  narrowlink-agent doctor --json | jq -r '.[] | select(.state == \"FAIL\") | .next'

Each line is OK, WARN, FAIL or SKIP, what was looked at, and what was found. An agent that runs goes on.

Exit codes: 0 nothing is FAIL, else that of the trouble: 69 a gateway can't be reached, or does not
accept the token, 70 the system lacks what is required, 78 the configuration or its token; of several
the highest.")]
    Doctor {
        /// As a JSON array, one object for each line
        #[arg(long)]
        json: bool,
    },
}

/// What to do with the service.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Service {
    /// Install it and begin it; one that runs is begun anew
    #[command(after_help = SERVICE_HELP)]
    Install,
    /// End it and take its unit away; configuration and state stay
    #[command(after_help = SERVICE_HELP)]
    Uninstall,
    /// How it stands
    #[command(after_help = SERVICE_HELP)]
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

const SERVICE_HELP: &str = "\
Examples:
  sudo narrowlink-agent service install
  narrowlink-agent service status
  journalctl -u narrowlink-agent -f

The service runs as a user of its own. Files that not everybody can read (the token) reach it as
credentials: after a change of one, `systemctl restart narrowlink-agent`.

Exit codes: 0 done or it runs, 3 it does not run, 4 not installed, 2 usage, 73 what can't be written,
78 configuration.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Args::command().debug_assert();
        assert!(Args::try_parse_from(["narrowlink-agent", "-q", "-v"]).is_err());
    }
}
