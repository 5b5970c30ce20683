//! Role: the command line of `narrowlink-tokengen`.
//! Invariants: what excludes each other is refused here, before anything is read.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  narrowlink-tokengen keygen -o secret            a new secret, once
  narrowlink-tokengen tokens.yaml --check         what would be signed, and all that is odd
  narrowlink-tokengen tokens.yaml                 label and token, a line each
  narrowlink-tokengen -c tokens.yaml --json       the same as a JSON array
  narrowlink-tokengen tokens.yaml -o tokens       tokens/<uid>/agent-home.token and so on
  narrowlink-tokengen inspect laptop.token --secret gateway.yaml

tokens.yaml:
  secret: !File secret                # as in gateway.yaml; also [1, 2, ..], \"hex:..\", \"base64:..\"
  tokens:
    - !Agent { uid: 6dd2ecc3-8b4f-4cd0-a1d9-b6bb2e1e8a0f, name: home, exp: 365d }
    - !Client
      uid: 6dd2ecc3-8b4f-4cd0-a1d9-b6bb2e1e8a0f
      name: laptop
      exp: 30d                        # or 12h, 2027-01-31 (0:00 UTC), seconds since 1970
      policies:                       # leave out for no restriction
        permit: true                  # true: only these; false: all but these
        policies:
          - !Ip [home, 192.168.0.0/24, [22, 8000-8100], TCP]
          - !Domain [null, nas.lan, 0, ANY]
          - !Any [home, true]

Exit codes: 0 done, 1 inspect: a broken token, or not by that secret, 2 usage, 74 it could not be
written out, 78 configuration.";

const INSPECT: &str = "\
Examples:
  narrowlink-tokengen inspect laptop.token
  narrowlink-tokengen inspect laptop.token --secret gateway.yaml     also with its old_secrets
  wl-paste | narrowlink-tokengen inspect - --secret secret

Give the token and the secret as files or through standard input: everybody on this machine can
see the arguments of a program that runs.";

const KEYGEN: &str = "\
Examples:
  narrowlink-tokengen keygen               secret: \"hex:..\" for gateway.yaml and tokens.yaml
  narrowlink-tokengen keygen -o secret     secret: !File secret in both";

/// Signs Narrowlink tokens, offline.
#[derive(Debug, Parser)]
#[command(name = "narrowlink-tokengen", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// What to do instead of signing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to sign, and how it is shown.
    #[command(flatten)]
    pub sign: Sign,
}

/// What to sign, and how it is shown.
#[derive(Debug, clap::Args)]
pub struct Sign {
    #[command(flatten)]
    file: File,
    /// Sign, but show no token: a line for each says what it would be.
    #[arg(long, conflicts_with_all = ["json", "output"])]
    pub check: bool,
    /// Print a JSON array of { kind, uid, name, exp, jti, token }; with -o, file instead of token.
    #[arg(long)]
    pub json: bool,
    /// Write each token to DIR/UID/KIND-NAME.token, which only its owner reads, and show none.
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct File {
    /// What to sign, as YAML.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What to do instead of signing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a token says, and whether a secret signed it.
    #[command(after_help = INSPECT)]
    Inspect {
        /// A file with the token, - for standard input, or the token itself.
        token: String,
        /// A secret file, a YAML file with `secret:` such as gateway.yaml, or hex:.., base64:..
        #[arg(long, value_name = "SPEC")]
        secret: Option<String>,
        /// Print the claims as JSON, and `verified_by`.
        #[arg(long)]
        json: bool,
    },
    /// Make a new secret of 32 random bytes.
    #[command(after_help = KEYGEN)]
    Keygen {
        /// Write it to a new file, which only its owner reads.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl Sign {
    /// The file to sign.
    pub fn file(&self) -> PathBuf {
        self.file.file.clone().or_else(|| self.file.config.clone()).unwrap_or_default()
    }
}
