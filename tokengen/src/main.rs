//! Role: `narrowlink-tokengen`: arguments in, tokens on stdout or in files, warnings on stderr.
//! Invariants: stdout holds what was asked for, nothing else; a failure is one line on stderr.
// They panic where they can't write.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

use std::{
    fmt,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_manual::{self as manual, Line, PageError};
use narrowlink_proto::{
    answer::{self, UNWRITTEN, Unwritten},
    code::Code,
    secrecy::{mask_arguments, misplaced_argument},
    token::Secret,
};
use narrowlink_tokengen::{
    TokengenError,
    args::{Args, Command, Sign},
    files::{WriteError, write_secret, write_tokens},
    inspect::{InspectError, fetch, inspect},
    output, run,
    secrets::candidates,
    show,
};

/// The token that was looked at is broken, or not by the secret it was held against.
const BAD_TOKEN: u8 = 1;
/// What /usr/include/sysexits.h calls these.
const EX_USAGE: u8 = 2;
const EX_CONFIG: u8 = 78;

struct Failure {
    code: u8,
    kind: Code,
    what: String,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    if let Some((at, form)) = misplaced_argument(&arguments, &["--secret", "inspect", "--json"]) {
        let why = format!("narrowlink-tokengen: argument {at} is {form}, which has no place there");
        return refuse(&(Code::Usage.mark(&why) + "\n"));
    }
    let done = match manual::parse(std::env::args_os()) {
        Ok(Line::Run(args)) => run_command(args),
        Ok(Line::Ask(question)) => question.answer().map_err(Failure::from).and_then(|text| print(&text)),
        Err(e) if e.use_stderr() => {
            return refuse(&mask_arguments(&manual::refusal(&e), arguments.into_iter().skip(1)));
        }
        // Help and version, which must get there.
        Err(e) => print(&e.render().to_string()),
    };
    done.unwrap_or_else(|Failure { code, kind, what }| {
        say(&format!("narrowlink-tokengen: {}", kind.mark(&what)));
        ExitCode::from(code)
    })
}

fn run_command(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        None => sign_file(&args.sign),
        Some(Command::Inspect { token, secret, json }) => look_at(&token, secret.as_deref(), json),
        Some(Command::Keygen { output }) => make_secret(output),
    }
}

/// What is wrong with the command line, without what was written there.
fn refuse(message: &str) -> ExitCode {
    // Whether anybody reads it changes nothing.
    let _ = io::stderr().write_all(message.as_bytes());
    ExitCode::from(EX_USAGE)
}

fn sign_file(sign: &Sign) -> Result<ExitCode, Failure> {
    let generated = run(&sign.file(), now(), draw)?;
    for warning in &generated.warnings {
        say(&format!("warning: {warning}"));
    }
    let (tokens, out) = (&generated.tokens, io::stdout().lock());
    answer::wrote(match &sign.output {
        Some(dir) => {
            let files = write_tokens(dir, tokens, draw)?;
            if sign.json { output::json(out, &files) } else { output::written(out, &files, now()) }
        }
        None if sign.check => output::check(out, tokens, now()),
        None if sign.json => output::json(out, tokens),
        None => output::plain(out, tokens, now()),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn look_at(token: &str, secret: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let secrets = secret.map(candidates).transpose()?;
    let found = inspect(&fetch(token, io::stdin().lock())?, secrets.as_deref())?;
    let page = if json { found.json()? + "\n" } else { show::inspection(&found, now()) };
    print(&page)?;
    Ok(if found.is_well() { ExitCode::SUCCESS } else { ExitCode::from(BAD_TOKEN) })
}

fn make_secret(file: Option<PathBuf>) -> Result<ExitCode, Failure> {
    let secret = Secret::spell(&draw::<32>());
    match file {
        Some(file) => write_secret(&file, &secret).map(|()| ExitCode::SUCCESS).map_err(Failure::from),
        None => print(&format!("{}\n", *secret)),
    }
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    answer::write(io::stdout().lock(), text)?;
    Ok(ExitCode::SUCCESS)
}

/// Where nobody can hear it, the exit code still says how it went.
fn say(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn draw<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::expect_used, reason = "a system without randomness can't run anything of ours")]
    getrandom::fill(&mut bytes).expect("the system's random source");
    bytes
}

impl Failure {
    fn new(code: u8, kind: Code, what: &impl fmt::Display) -> Self {
        Self { code, kind, what: what.to_string() }
    }
}

impl From<TokengenError> for Failure {
    fn from(why: TokengenError) -> Self {
        Self::new(EX_CONFIG, why.code(), &why)
    }
}

impl From<InspectError> for Failure {
    fn from(why: InspectError) -> Self {
        let (code, kind) = match &why {
            InspectError::Broken { .. } | InspectError::NoToken { .. } | InspectError::Count { .. } => {
                (BAD_TOKEN, Code::BadToken)
            }
            InspectError::Argument { .. } => (EX_CONFIG, Code::Usage),
            InspectError::Stdin { .. } => (EX_CONFIG, Code::Stdio),
        };
        Self::new(code, kind, &why)
    }
}

impl From<PageError> for Failure {
    fn from(why: PageError) -> Self {
        Self::new(PageError::EXIT, Code::Unmade, &why)
    }
}

impl From<WriteError> for Failure {
    fn from(why: WriteError) -> Self {
        Self::new(UNWRITTEN, Code::Unmade, &why)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(why: serde_json::Error) -> Self {
        Self::new(UNWRITTEN, Code::Unwritten, &why)
    }
}

impl From<Unwritten> for Failure {
    fn from(why: Unwritten) -> Self {
        Self::new(UNWRITTEN, Code::Unwritten, &why)
    }
}
