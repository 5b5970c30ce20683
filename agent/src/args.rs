//! Role: the command line of `narrowlink-agent`.
//! Invariants: whatever clap refuses exits with 2 and says how to write it; without a command it is an agent.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

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
  narrowlink-agent -v                      say more: each session, each lane

Without -c, agent.yaml is looked for in ./, $XDG_CONFIG_HOME/narrowlink/, ~/.narrowlink/ and /etc/narrowlink/."
)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say whether an agent of this configuration could start here, and exit; no gateway is asked
    #[arg(long)]
    pub check: bool,
    /// Write {"gateway":"HOST:PORT"} there when the first gateway has welcomed this agent
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
    /// Refuse to run without io_uring
    #[arg(long)]
    pub require_io_uring: bool,
    /// Log more; twice for everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
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
  narrowlink-agent join nl1AbC..
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
    },
}

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
