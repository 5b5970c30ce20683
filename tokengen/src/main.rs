//! Role: `narrowlink-tokengen`: arguments in, tokens on stdout, warnings on stderr.
//! Invariants: stdout holds tokens and their labels, nothing else.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser};
use narrowlink_tokengen::{Labelled, run, when::show};

/// What /usr/include/sysexits.h calls these.
const EX_IOERR: u8 = 74;
const EX_CONFIG: u8 = 78;

const EXAMPLES: &str = "\
Examples:
  narrowlink-tokengen tokens.yaml            label and token, a line each
  narrowlink-tokengen -c tokens.yaml --json  the same as a JSON array
  narrowlink-tokengen tokens.yaml | grep -v '^#'

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
          - !Ip [home, 192.168.0.0/24, 22, TCP]
          - !Domain [null, nas.lan, 0, ANY]
          - !Any [office, true]

Exit codes: 0 done, 2 usage, 74 the tokens could not be written out, 78 configuration.";

/// Signs Narrowlink tokens, offline.
#[derive(Parser)]
#[command(name = "narrowlink-tokengen", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    file: File,
    /// Print a JSON array of { kind, uid, name, exp, jti, token }.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct File {
    /// What to sign, as YAML.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { file: File { file, config }, json } = Arguments::parse();
    let file = file.or(config).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let generated = match run(&file, now, draw) {
        Ok(generated) => generated,
        Err(why) => {
            eprintln!("narrowlink-tokengen: {why}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    for warning in &generated.warnings {
        eprintln!("warning: {warning}");
    }
    match print(&generated.tokens, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("narrowlink-tokengen: stdout: {why}");
            ExitCode::from(EX_IOERR)
        }
    }
}

fn draw() -> [u8; 16] {
    let mut bytes = [0; 16];
    #[expect(clippy::expect_used, reason = "a system without randomness can't run anything of ours")]
    getrandom::fill(&mut bytes).expect("the system's random source");
    bytes
}

fn print(tokens: &[Labelled], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, tokens)?;
        writeln!(out)?;
    } else {
        for Labelled { kind, uid, name, exp, token, .. } in tokens {
            writeln!(out, "# {kind} {uid} {name} (until {})", show(*exp))?;
            writeln!(out, "{token}")?;
        }
    }
    out.flush()
}
