//! Role: the command line of `narrowlink-gateway`.
//! Invariants: whatever clap refuses exits with 2 and says how to write it; without a command it is a gateway.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{
    ArgAction, ArgGroup, Args as Arguments, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};
use narrowlink_dataplane::{
    run::{log, process},
    tls::Ktls,
};
use narrowlink_manual::{self as manual, Line};
use narrowlink_proto::{id::Uid, target::Target, when::When};

use crate::{moment::Moment, succession::Predecessor};

/// The gateway of Narrowlink: agents and clients meet here.
#[derive(Debug, Parser)]
#[command(name = "narrowlink-gateway", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// The config; without it, gateway.yaml is looked for in ./, $XDG_CONFIG_HOME/narrowlink/,
    /// ~/.narrowlink/ and /etc/narrowlink/
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only say whether the config is good
    #[arg(long)]
    pub check: bool,
    /// Write the bound addresses to this file, as JSON, once all are bound
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Refuse to start where the kernel refuses io_uring, instead of falling back to epoll
    #[arg(long)]
    pub require_io_uring: bool,
    /// Whether the kernel may encrypt raw wss sessions: auto where it can change keys, too (Linux
    /// 6.14; else TLS 1.2 only), always where it has TLS at all, never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", hide_possible_values = true)]
    pub ktls: KtlsWhen,
    /// Stand in front of the gateway as a process of its own, which ends at once when it is told to: for the unit of
    /// a service, so that a restart leaves no gap
    #[arg(long)]
    pub keeper: bool,
    /// What stands on standard input: how gateways and keepers begin a gateway.
    #[arg(long, hide = true, value_name = "WHAT")]
    pub succeed: Option<Predecessor>,
    /// Log more (twice: everything)
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log warnings and errors only (twice: errors only)
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
    /// The form of the log's lines: text, or json, one object each
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: log::Format,
    /// What to do instead of being a gateway.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of being a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Say whether a token's bearer may reach a target, and which rule decides
    #[command(after_help = EXPLAIN_HELP)]
    Explain(Explain),
    /// Test policies
    #[command(subcommand)]
    Policy(Policy),
    /// Make a gateway, its first agent and its first client from nothing
    #[command(after_help = INIT_HELP)]
    Init(Init),
    /// Let an agent or a client in, and take that back
    #[command(subcommand)]
    Ticket(Ticket),
    /// Give somebody a space of their own: no agent and no client of one reaches another's
    #[command(subcommand)]
    User(User),
    /// Have systemd run this gateway, now and after each boot
    #[command(subcommand)]
    Service(Service),
    /// Replace a gateway that runs, without a gap
    #[command(after_help = UPGRADE_HELP)]
    Upgrade(Upgrade),
    /// Have tokens taken no more, and end what they began
    #[command(after_help = REVOKE_HELP)]
    Revoke(Revoke),
}

/// What a gateway is to be.
#[derive(Debug, Clone, PartialEq, Eq, Arguments)]
pub struct Init {
    /// The name or address under which agents and clients reach this machine, and the port if it is not 443;
    /// without it, the address by which it speaks to others
    #[arg(value_name = "HOST[:PORT]")]
    pub host: Option<String>,
    /// The chain of a certificate that there is (PEM); without it the gateway gets an authority of its own
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// A gateway.yaml of Narrowlink 0.2, of which this gateway is made: what is taken of it, and what is not, is said
    /// line by line
    #[arg(long, value_name = "OLD_CONFIG")]
    pub from: Option<PathBuf>,
    /// Where it listens, if that is not each address of this machine at that port
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "from")]
    pub listen: Option<SocketAddr>,
    /// Where its files go: /etc/narrowlink for root, ~/.config/narrowlink for others
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The first agent's name
    #[arg(long, value_name = "NAME", default_value = "home")]
    pub agent: String,
    /// The first client's name
    #[arg(long, value_name = "NAME", default_value = "laptop")]
    pub client: String,
    /// Leave it to you to run it: for root, where systemd runs the machine, it is made a service else
    #[arg(long)]
    pub no_service: bool,
    /// Ask nothing
    #[arg(short, long)]
    pub yes: bool,
    /// Print the tickets as one JSON object, and not what to type next
    #[arg(long)]
    pub json: bool,
}

/// What to do with tickets.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Ticket {
    /// A ticket for an agent
    #[command(after_help = TICKET_HELP)]
    Agent(NewTicket),
    /// A ticket for a client
    #[command(after_help = TICKET_HELP)]
    Client {
        /// What every ticket has.
        #[command(flatten)]
        new: NewTicket,
        /// What it may reach and nothing else: AGENT:HOST:PORTS, such as home:127.0.0.1:22 or
        /// '*:10.0.0.0/8:80,443/tcp', AGENT alone for all of it, or a rule of tokens.yaml; may be repeated
        #[arg(long, value_name = "RULE")]
        allow: Vec<String>,
    },
    /// The tickets that were made
    #[command(after_help = TICKET_HELP)]
    List {
        /// As one JSON array
        #[arg(long)]
        json: bool,
        /// The gateway's config
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Take back what an agent or a client was given: its links and sessions end within 2 s
    #[command(after_help = TICKET_HELP)]
    Revoke {
        /// An agent's or a client's
        #[arg(value_enum)]
        kind: Bearer,
        /// Its name
        name: String,
        /// Whose it is, by name or uid; the first user's without it
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// The gateway's config
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Who gets a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bearer {
    /// An agent.
    Agent,
    /// A client.
    Client,
}

/// A ticket to be made.
#[derive(Debug, Clone, PartialEq, Eq, Arguments)]
pub struct NewTicket {
    /// Its bearer's name
    pub name: String,
    /// Whose it is, by name or uid; the first user's without it
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// When it ends: 30d from now (s, m, h, d, w), a date (2027-01-31, 0:00 UTC), or seconds since 1970; without it
    /// 365d, and with --renew as long as the last one
    #[arg(long, value_name = "WHEN")]
    pub expires: Option<When>,
    /// Another one beside one that holds
    #[arg(long)]
    pub renew: bool,
    /// The gateway's config; without it, gateway.yaml is looked for where the gateway looks for it
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What to do with users.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum User {
    /// A new one
    #[command(after_help = TICKET_HELP)]
    Add {
        /// As you call them
        name: String,
        /// Their uid, if they have tokens already; drawn at random without it
        #[arg(long, value_name = "UID")]
        uid: Option<Uid>,
        /// Where the gateway is reached, for one that was not made by init
        #[arg(long, value_name = "HOST:PORT")]
        gateway: Option<String>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// The gateway's config
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Those that there are
    #[command(after_help = TICKET_HELP)]
    List {
        /// As one JSON array
        #[arg(long)]
        json: bool,
        /// The gateway's config
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Which gateway to replace, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Arguments)]
pub struct Upgrade {
    /// The new program, which is put in the place of the old one; without it, what lies there already
    #[arg(value_name = "PROGRAM")]
    pub program: Option<PathBuf>,
    /// The process of the gateway; without it, the one that its state_dir names
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// The gateway's config
    #[arg(short, long, value_name = "FILE", conflicts_with = "pid")]
    pub config: Option<PathBuf>,
}

/// What to do with the service.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Service {
    /// Install it and begin it; one that runs is begun anew, without a gap
    #[command(after_help = SERVICE_HELP)]
    Install {
        /// The config; without it, gateway.yaml is looked for where the gateway looks for it
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// End it and take its unit away; config and state stay
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

/// A question about one token.
#[derive(Debug, Clone, PartialEq, Eq, Arguments)]
pub struct Explain {
    /// The client's token: a file that holds it, - for standard input, or the token itself. Rather not
    /// itself: every user of this machine sees the arguments of its programs, and your shell keeps them
    #[arg(long, value_name = "FILE")]
    pub token: String,
    /// The agent that would dial
    #[arg(short = 'n', long, visible_alias = "name", value_name = "NAME")]
    pub agent: String,
    /// What it would dial: tcp://HOST:PORT (or just HOST:PORT), udp://HOST:PORT, icmp://HOST, unix:///PATH
    #[arg(long, value_name = "TARGET")]
    pub target: Target,
    /// What the target's name resolves to, as the agent sees it
    #[arg(long, value_name = "IP", num_args = 1.., action = ArgAction::Append, value_parser = parse_ip)]
    pub resolved: Vec<IpAddr>,
    /// The config whose secrets the token is held against; without it, gateway.yaml is looked for where
    /// the gateway looks for it
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What to revoke, and in which list.
#[derive(Debug, Clone, PartialEq, Eq, Arguments)]
#[command(group = ArgGroup::new("what").args(["token", "jti", "name", "issued_before"]).required(true).multiple(true))]
pub struct Revoke {
    /// This token, by its jti: a file that holds it, - for standard input, or the token itself
    #[arg(long, value_name = "FILE", conflicts_with_all = ["jti", "user", "name", "issued_before"])]
    pub token: Option<String>,
    /// The token of this id, which its claims call jti: as `ticket list` shows it, 4 characters at least, or whole
    #[arg(long, visible_alias = "id", value_name = "ID", conflicts_with_all = ["user", "name", "issued_before"])]
    pub jti: Option<String>,
    /// Tokens of this user, by name or uid: those of --name, or those --issued-before
    #[arg(long, visible_alias = "uid", value_name = "USER")]
    pub user: Option<String>,
    /// Tokens of this name, and without --issued-before that is for ever: new ones, too
    #[arg(long, value_name = "NAME", requires = "user")]
    pub name: Option<String>,
    /// Tokens issued before then: now, a date (2026-11-21, 0:00 UTC), or seconds since 1970. Without --user those
    /// of every user. A token that does not say when it was issued is older than any
    #[arg(long, value_name = "WHEN")]
    pub issued_before: Option<Moment>,
    /// The config whose list gets the entry; without it, gateway.yaml is looked for where the gateway looks
    /// for it
    #[arg(short, long, value_name = "FILE", conflicts_with = "list")]
    pub config: Option<PathBuf>,
    /// The list itself; it is made if it is not there
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What to do with policies.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Policy {
    /// Hold policies against a table of what you expect of them
    #[command(after_help = TEST_HELP)]
    Test {
        /// The table, see docs/policy.md
        file: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// The config whose secrets the tokens are held against; without it nobody's signature is checked
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// The words of `--ktls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KtlsWhen {
    /// Where the kernel can change keys.
    Auto,
    /// Where it has TLS at all.
    Always,
    /// Nowhere.
    Never,
}

impl From<KtlsWhen> for Ktls {
    fn from(when: KtlsWhen) -> Self {
        match when {
            KtlsWhen::Auto => Self::Auto,
            KtlsWhen::Always => Self::Always,
            KtlsWhen::Never => Self::Never,
        }
    }
}

/// An address, with brackets or without; a name is what the policy does not know.
fn parse_ip(text: &str) -> Result<IpAddr, &'static str> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| {
        "expected an IP address without a port, such as 10.1.2.3 or 2001:db8::7; in place of a name write what it resolves to"
    })
}

/// The arguments of this process. What is wrong with them is said without what was written: it might be a secret.
///
/// # Errors
/// Help or version is asked for: what is to be answered.
pub fn parse() -> Result<Line<Args>, String> {
    process::refuse_secrets("narrowlink-gateway", &["--token"]);
    manual::parse(std::env::args_os()).map_err(|e| {
        let e = with_tip(e);
        if e.use_stderr() {
            process::refuse_arguments(&manual::refusal(&e), e.exit_code());
        }
        e.render().to_string()
    })
}

/// What to write in place of an option that a command does not have. That it could be passed as a value, which is what clap
/// proposes, is never meant.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return error };
    let tip = match (error.kind(), option.as_str()) {
        (ErrorKind::UnknownArgument, "--allow") => {
            "--allow is for clients (ticket client NAME --allow RULE); what an agent dials is said in its agent.yaml"
        }
        (ErrorKind::UnknownArgument, "--dir") => {
            "-c FILE names the gateway's configuration, such as DIR/gateway.yaml; --dir is init's alone"
        }
        _ => return error,
    };
    error.remove(ContextKind::SuggestedArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    error
}

const AFTER_HELP: &str = "\
Examples:
  narrowlink-gateway init gw.example
  narrowlink-gateway -c gateway.yaml --check
  narrowlink-gateway -c /etc/narrowlink/gateway.yaml
  narrowlink-gateway -c gateway.yaml --ready-file /run/narrowlink/ready.json
  narrowlink-gateway explain --token laptop.token --agent home --target 10.0.0.1:22
  narrowlink-gateway revoke --token laptop.token

SIGHUP, and a change of any of its files, has it read them anew: what runs is not
touched, and a configuration that can't be taken leaves the old one in place.

SIGTERM and SIGINT stop it: links are told to come back later, sessions have
30 s (drain_s) to end; a second one ends it at once.

Exit codes: 0 stopped, 2 usage, 69 an address can't be listened on,
70 internal error, 74 an answer can't be written, 78 configuration.";

const INIT_HELP: &str = "\
Examples:
  sudo narrowlink-gateway init gw.example
  sudo narrowlink-gateway init gw.example --cert fullchain.pem --key privkey.pem
  narrowlink-gateway init 192.0.2.1:8443 --dir ./gw --yes
  narrowlink-gateway init --from old/gateway.yaml

It makes a secret, a certificate (unless there is one), gateway.yaml and two tickets,
overwrites nothing, and prints what to type next on the other machines.

Exit codes: 0 made, 1 you said no, 2 usage, 69 it could not listen there, 73 it is there already
or can't be written, 78 the certificate can't be used.";

const TICKET_HELP: &str = "\
Examples:
  narrowlink-gateway ticket agent office
  narrowlink-gateway ticket client phone --allow home:127.0.0.1:22 --expires 30d
  narrowlink-gateway ticket list
  narrowlink-gateway ticket revoke client phone
  narrowlink-gateway user add lab && narrowlink-gateway ticket agent rack --user lab

A ticket is all that `narrowlink-agent join` and `narrowlink login` need. Whoever has it is
that agent or client: it goes to standard output alone, and is kept nowhere.

Exit codes: 0 done, 2 usage, 74 the book of tickets, the list of revocations or the
answer can't be written, 78 configuration.";

const EXPLAIN_HELP: &str = "\
Examples:
  narrowlink-gateway explain --token laptop.token --agent home --target 10.0.0.1:22
  narrowlink-gateway explain --token t.token --agent home --target nas.lan:22 --resolved 10.1.2.3
  pass show laptop | narrowlink-gateway explain --token - --agent home --target udp://10.0.0.1:53

The answer is the gateway's own, and with --resolved the agent's. What the agent
forbids by itself (agent.yaml) is not known here.

Exit codes: 0 allow, 1 deny, 3 it depends on what the name resolves to, 2 usage,
78 configuration.";

const TEST_HELP: &str = "\
Example, expected.yaml:
  tokens:
    laptop: !File laptop.token
    intern: !Policies { permit: true, policies: [!Ip [home, 10.0.0.0/8, 22, TCP]] }
  expect:
    - [laptop, home, \"tcp://10.0.0.1:22\", allow]
    - [intern, home, \"tcp://nas.lan:22\", depends]
    - token: intern
      agent: home
      target: tcp://nas.lan:22
      resolved: 10.0.0.7
      verdict: allow
      rule: policies[0]

Examples:
  narrowlink-gateway policy test expected.yaml
  narrowlink-gateway policy test expected.yaml -c gateway.yaml

Exit codes: 0 all as expected, 1 not, 2 usage, 74 the answer can't be written,
78 the table or the configuration can't be used.";

const SERVICE_HELP: &str = "\
Examples:
  sudo narrowlink-gateway service install
  narrowlink-gateway service status
  systemctl reload narrowlink-gateway      read the files anew
  systemctl restart narrowlink-gateway     another one goes on at once, sessions end when they do
  journalctl -u narrowlink-gateway -f

The service runs as a user of its own. Files that not everybody can read (secret, keys) reach it as
credentials: after a change of one, restart it.

Exit codes: 0 done or it runs, 3 it does not run, 4 not installed, 2 usage, 73 what can't be written,
78 configuration.";

const UPGRADE_HELP: &str = "\
Examples:
  narrowlink-gateway upgrade ./narrowlink-gateway
  narrowlink-gateway upgrade -c /etc/narrowlink/gateway.yaml

The new one takes the sockets over and serves; then the old one ends, when its sessions have (drain_s).
If the new one does not come to serve, the old one goes on. SIGUSR2 does the same.

A program that runs can't be written into (cp says \"Text file busy\"): PROGRAM is put into place as a
whole, as mv does. A service is replaced by `systemctl restart`, without a gap too.

Exit codes: 0 done, 2 usage, 69 the old one goes on, 73 what can't be written, 78 configuration.";

const REVOKE_HELP: &str = "\
Examples:
  narrowlink-gateway revoke --token laptop.token
  narrowlink-gateway revoke --id 3f2a9c41
  narrowlink-gateway revoke --user lab --name laptop --issued-before now
  narrowlink-gateway revoke --user 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10 --issued-before 2026-11-21
  narrowlink-gateway revoke --list /etc/narrowlink/revoked.yaml --issued-before now

An id is completed from the book of tickets; one of narrowlink-tokengen, which the book does
not know, is written whole.

The list is the file that the config names: revocations: revoked.yaml. A running gateway
sees that it has changed, and ends links and sessions of these tokens within 2 s.

Exit codes: 0 it is on the list, 2 usage, 74 the list or the answer can't be written,
78 configuration.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_arguments_fit_together_and_every_command_has_examples() {
        let mut command = Args::command();
        command.clone().debug_assert();
        let mut named = |path: &[&str]| {
            let mut at = &mut command;
            for name in path {
                at = at.find_subcommand_mut(name).unwrap();
            }
            at.render_help().to_string()
        };
        for path in [
            &[][..],
            &["init"],
            &["ticket", "agent"],
            &["ticket", "client"],
            &["ticket", "list"],
            &["ticket", "revoke"],
            &["user", "add"],
            &["user", "list"],
            &["explain"],
            &["policy", "test"],
            &["revoke"],
        ] {
            let help = named(path);
            assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{path:?}: {help}");
        }
        assert!(named(&["explain"]).contains("every user of this machine"));
    }

    #[test]
    fn a_gateway_needs_no_command_and_a_command_takes_none_of_its_options() {
        let args = parse("narrowlink-gateway -c a.yaml --check -vv").unwrap();
        assert_eq!((args.command, args.check, args.verbose), (None, true, 2));
        let refused = parse("narrowlink-gateway --check policy test a.yaml").unwrap_err();
        assert_eq!((refused.kind(), refused.exit_code()), (ErrorKind::ArgumentConflict, 2));
    }

    #[test]
    fn an_option_that_a_command_does_not_have_is_followed_by_what_to_write() {
        for (line, says) in [
            ("ticket agent x --allow home", "tip: --allow is for clients (ticket client NAME --allow RULE)"),
            (
                "ticket client w --dir D",
                "tip: -c FILE names the gateway's configuration, such as DIR/gateway.yaml",
            ),
            ("user add w --dir D", "tip: -c FILE names"),
        ] {
            let refused = with_tip(parse(&format!("narrowlink-gateway {line}")).unwrap_err());
            assert_eq!((refused.kind(), refused.exit_code()), (ErrorKind::UnknownArgument, 2));
            let said = refused.to_string();
            assert!(said.contains(says) && !said.contains("-- --"), "{said}");
        }
        let other = with_tip(parse("narrowlink-gateway ticket agent x --colour").unwrap_err()).to_string();
        assert!(other.contains("unexpected argument '--colour'"), "{other}");
    }

    #[test]
    fn a_question_may_have_several_addresses() {
        let line = "narrowlink-gateway explain --token t --agent home --target nas.lan:22";
        for more in
            ["--resolved 10.0.0.1 fd00::1 -c a.yaml", "--resolved 10.0.0.1 --resolved fd00::1 -c a.yaml"]
        {
            let args = parse(&format!("{line} {more}")).unwrap();
            let Some(Command::Explain(explain)) = args.command else { panic!("another command") };
            assert_eq!(explain.resolved, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
            assert_eq!(explain.target, "tcp://nas.lan:22".parse().unwrap());
            assert_eq!(explain.config, Some(PathBuf::from("a.yaml")));
        }
        for (more, says) in [
            ("--resolved nas", "expected an IP address without a port"),
            ("--resolved 10.0.0.1:22", "expected an IP address without a port"),
            ("--target nas.lan", "more than once|cannot be used multiple times"),
        ] {
            let refused = parse(&format!("{line} {more}")).unwrap_err().to_string();
            assert!(says.split('|').any(|says| refused.contains(says)), "{more}: {refused}");
        }
        let refused = parse("narrowlink-gateway explain --token t --agent a --target nas.lan").unwrap_err();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("the port is missing"), "{refused}");
    }
}
