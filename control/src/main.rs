//! Role: the program narrowlink-gateway: arguments, logging, signals, exit codes.
//! Invariants: it ends by exiting, never by dropping a worker's runtime.
//! See: README "narrowlink-gateway".

use std::{
    env, fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{ArgAction, Parser, ValueEnum};
use narrowlink_control::{
    config::{Config, Service},
    gateway::{self, Gateway, StartError},
    reload::Reloader,
    supervise::{self, Outcome},
};
use narrowlink_dataplane::{
    process::find_config,
    tls::{Ktls, choose_ktls},
};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An address can't be listened on.
const UNAVAILABLE: u8 = 69;
/// Our own fault.
const INTERNAL: u8 = 70;
/// The config, or a file it names.
const CONFIGURATION: u8 = 78;

/// The gateway of Narrowlink: agents and clients meet here.
#[derive(Parser)]
#[command(name = "narrowlink-gateway", version, after_help = AFTER_HELP)]
struct Args {
    /// The config; without it, gateway.yaml is looked for in ./, $XDG_CONFIG_HOME/narrowlink/,
    /// ~/.narrowlink/ and /etc/narrowlink/
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only say whether the config is good
    #[arg(long)]
    check: bool,
    /// Write the bound addresses to this file, as JSON, once all are bound
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Refuse to start where the kernel refuses io_uring, instead of falling back to epoll
    #[arg(long)]
    require_io_uring: bool,
    /// Whether the kernel may encrypt raw wss sessions: auto where it can change keys, too (Linux
    /// 6.14; else TLS 1.2 only), always where it has TLS at all, never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", hide_possible_values = true)]
    ktls: When,
    /// Log more (twice: everything)
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Log warnings and errors only (twice: errors only)
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
}

/// The words of `--ktls`.
#[derive(Clone, Copy, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

impl From<When> for Ktls {
    fn from(when: When) -> Self {
        match when {
            When::Auto => Self::Auto,
            When::Always => Self::Always,
            When::Never => Self::Never,
        }
    }
}

const AFTER_HELP: &str = "\
Examples:
  narrowlink-gateway -c gateway.yaml --check
  narrowlink-gateway -c /etc/narrowlink/gateway.yaml
  narrowlink-gateway -c gateway.yaml --ready-file /run/narrowlink/ready.json

SIGHUP, and a change of any of its files, has it read them anew: what runs is not
touched, and a configuration that can't be taken leaves the old one in place.

SIGTERM and SIGINT stop it: links are told to come back later, sessions have
30 s (drain_s) to end; a second one ends it at once.

Exit codes: 0 stopped, 2 usage, 69 an address can't be listened on,
70 internal error, 78 configuration.";

/// What to say last, and the exit code.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

/// Says which exit code an error means.
trait OrExit<T> {
    fn or_exit(self, code: u8) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> Result<T, Failure> {
        self.map_err(|error| Failure { code, error: error.into() })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let code = match run(&args) {
        Ok(()) => 0,
        Err(Failure { code, error }) => {
            eprintln!("narrowlink-gateway: {}", narrowlink_dataplane::process::explain(error.as_ref()));
            code
        }
    };
    // Workers may still be running: their runtimes are not to be dropped.
    std::process::exit(code.into());
}

fn run(args: &Args) -> Result<(), Failure> {
    log(args);
    narrowlink_dataplane::process::prepare();
    // Only one library takes part in this process; that it is installed twice can't happen.
    narrowlink_dataplane::tls::install_crypto();
    let path = match &args.config {
        Some(path) => path.clone(),
        None => find_config("gateway.yaml", |name| env::var_os(name)).or_exit(CONFIGURATION)?,
    };
    let mut config = Config::load(&path).or_exit(CONFIGURATION)?;
    if args.check {
        let services = count(config.services.len(), "service");
        let workers = count(config.workers.unwrap_or_else(gateway::cores), "worker");
        println!("{}: ok ({services}, {workers})", path.display());
        return Ok(());
    }
    config.require_io_uring = args.require_io_uring;
    let reloader = Reloader::new(&path, &config);
    serve(config, reloader, args.ktls.into(), args.ready_file.as_deref())
}

fn serve(config: Config, reloader: Reloader, ktls: Ktls, ready_file: Option<&Path>) -> Result<(), Failure> {
    let words = supervise::signals().context("signals can't be handled").or_exit(INTERNAL)?;
    if let Some(path) = ready_file {
        forget_ready(path).or_exit(CONFIGURATION)?;
    }
    let (name, services) = (config.name.clone(), config.services.clone());
    let ktls = choose_ktls(ktls);
    let gateway = gateway::start(config).map_err(|e| Failure {
        code: if matches!(e, StartError::Listen { .. }) { UNAVAILABLE } else { INTERNAL },
        error: e.into(),
    })?;
    let ready = Ready::of(&services, &gateway);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name,
        driver = %gateway.driver(),
        workers = gateway.workers(),
        %ktls,
        "listening on {}",
        ready.describe()
    );
    if let Some(path) = ready_file {
        ready.write(path).or_exit(CONFIGURATION)?;
    }
    match supervise::supervise(&gateway, &words, Some(reloader)) {
        Outcome::Drained => tracing::info!("stopped; every session had ended"),
        Outcome::Cut => tracing::warn!("stopped; sessions were cut"),
        Outcome::Broken(fault) => {
            return Err(anyhow!("{fault}; this is a bug in the gateway")).or_exit(INTERNAL);
        }
    }
    Ok(())
}

/// What the ready file says.
#[derive(Serialize)]
struct Ready {
    services: Vec<ReadyService>,
}

#[derive(Serialize)]
struct ReadyService {
    kind: &'static str,
    address: String,
}

impl Ready {
    fn of(services: &[Service], gateway: &Gateway) -> Self {
        let services = services.iter().zip(gateway.addresses());
        let services = services
            .map(|(service, address)| ReadyService { kind: service.kind(), address: address.to_string() });
        Self { services: services.collect() }
    }

    fn describe(&self) -> String {
        let services = self.services.iter().map(|service| format!("{}://{}", service.kind, service.address));
        services.collect::<Vec<_>>().join(", ")
    }

    /// Whoever sees the file sees all of it.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut tmp = path.as_os_str().to_owned();
        tmp.push(format!(".{}", std::process::id()));
        let tmp = PathBuf::from(tmp);
        let written = fs::write(&tmp, serde_json::to_vec(self)?).and_then(|()| fs::rename(&tmp, path));
        if written.is_err() {
            let _ = fs::remove_file(&tmp);
        }
        written.with_context(|| format!("can't write the ready file {}", path.display()))
    }
}

/// A file from an earlier run must not say that this one is ready.
fn forget_ready(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("can't replace the ready file {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

fn log(args: &Args) {
    let level = match (args.verbose, args.quiet) {
        (0, 0) => "info",
        (1, _) => "debug",
        (2.., _) => "trace",
        (0, 1) => "warn",
        (0, 2..) => "error",
    };
    // RUST_LOG is for who looks into other crates.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
