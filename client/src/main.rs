//! Role: the program `narrowlink`: arguments, log, what is printed, exit codes.
//! Invariants: standard output has the results and nothing else; everything said is one line each.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::exit,
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_client::{
    Plan, agents,
    args::{Args, Command, parse},
    config::{self, Config, ConfigError},
    connect,
    exit::{Exit, Failure},
    identities, list, start_forward, whoami,
};
use narrowlink_dataplane::process::find_config;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args = parse();
    start_log(&args);
    narrowlink_dataplane::process::prepare();
    narrowlink_dataplane::tls::install_crypto();
    let code = match run(args) {
        Ok(exit) => exit,
        Err(failure) => {
            say(&failure.message);
            failure.exit
        }
    };
    // What the runtime still holds must not be taken apart: the process just ends.
    exit(code.code().into())
}

fn start_log(args: &Args) {
    // A forward runs for long, so it says what becomes of it; who waits for an answer hears only of
    // trouble.
    let usual = if matches!(args.command, Command::Forward { .. }) { "info" } else { "warn" };
    let level = match (args.quiet, args.verbose) {
        (true, _) => "error",
        (false, 0) => usual,
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("error,narrowlink={level}")));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stderr().is_terminal());
    log.with_target(false).with_writer(io::stderr).init();
}

fn run(args: Args) -> Result<Exit, Failure> {
    let path = match &args.config {
        Some(path) => path.clone(),
        None => find_config(config::FILE_NAME, |name| std::env::var_os(name)).map_err(ConfigError::from)?,
    };
    let mut config = Config::load(&path)?;
    config.require_io_uring = args.require_io_uring;
    if let Some(framing) = args.framing {
        config = config.with_framing(framing.into());
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let now = seconds_since_1970();
    // `whoami` says it itself, in full.
    if !matches!(args.command, Command::Whoami { .. }) {
        for words in config.endings(now) {
            tracing::warn!("{words}");
        }
    }
    match args.command {
        Command::List { json } => print_agents(&config, json)?,
        Command::Whoami { offline, json } => return print_identities(&config, offline, json),
        Command::Connect { name, target } => connect(&config, &name, &target)?,
        Command::Forward { name, listen, target } => {
            let forward = start_forward(&config, Plan { agent: name, target, listen })?;
            print(&format!("{}\n", forward.local_addr))?;
            forward.join();
            return Err(Failure::new(Exit::Internal, "the forward's thread failed"));
        }
    }
    Ok(Exit::Done)
}

/// What is wrong stands among what is printed: only the exit code says it once more.
fn print_identities(config: &Config, offline: bool, as_json: bool) -> Result<Exit, Failure> {
    let identities = identities(config, offline)?;
    let now = seconds_since_1970();
    print(&if as_json { whoami::json(&identities) } else { whoami::text(&identities, now) })?;
    Ok(whoami::exit(&identities, now))
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn print_agents(config: &Config, as_json: bool) -> Result<(), Failure> {
    let agents = agents(config)?;
    if as_json {
        return print(&list::json(&agents).map_err(|e| Failure::new(Exit::Internal, e))?);
    }
    if agents.is_empty() {
        say("no agents are connected");
        return Ok(());
    }
    print(&list::table(&agents))
}

/// In one write, so that what others say at the same time does not come between.
fn say(message: &str) {
    let _ = io::stderr().write_all(format!("narrowlink: {message}\n").as_bytes());
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|e| Failure::new(Exit::Reset, format!("standard output could not be written: {e}")))
}
