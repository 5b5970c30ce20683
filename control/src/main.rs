//! Role: the program narrowlink-gateway: arguments, logging, signals, exit codes.
//! Invariants: it ends by exiting, never by dropping a worker's runtime.
//! See: README.md "Set it up".
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{env, io, path::Path};

use anyhow::{Context as _, anyhow};
use narrowlink_control::{
    args::{Args, Command, Explain, Policy, Revoke, parse},
    auth::say_secrets,
    certificate::Watch,
    clock::seconds_since_1970,
    config::{Config, Places, Service},
    expectations::Expectations,
    explain::{Bearer, Question, Report, find_token},
    gateway::{self, Gateway, StartError},
    reload::Reloader,
    revocations::RevocationError,
    revoke::{List, Revoked, Subject},
    supervise::{self, Outcome},
};
use narrowlink_dataplane::{
    gateway::shares,
    run::{log, process::find_config, ready_file::ReadyFile},
    tls::{Ktls, choose_ktls},
};
use narrowlink_proto::{
    answer::{self, UNWRITTEN},
    policy::Verdict,
};
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What was asked has the answer no.
const NO: u8 = 1;
/// What was asked for makes no sense; clap's code.
const USAGE: u8 = 2;
/// What was asked depends on what nobody here knows.
const DEPENDS: u8 = 3;
/// An address can't be listened on.
const UNAVAILABLE: u8 = 69;
/// Our own fault.
const INTERNAL: u8 = 70;
/// The list of revoked tokens can't be read or written; an answer that can't has the same.
const IO: u8 = UNWRITTEN;
/// The config, or a file it names.
const CONFIGURATION: u8 = 78;

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

fn main() {
    let code = match parse().map_or_else(|help| print(&help).map(|()| 0), |args| run(&args)) {
        Ok(code) => code,
        Err(Failure { code, error }) => {
            say(&narrowlink_dataplane::run::process::explain(error.as_ref()));
            code
        }
    };
    // Workers may still be running: their runtimes are not to be dropped.
    log::exit(code)
}

/// Does it; the exit code.
fn run(args: &Args) -> Result<u8, Failure> {
    start_log(args);
    narrowlink_dataplane::run::process::prepare();
    // Only one library takes part in this process; that it is installed twice can't happen.
    narrowlink_dataplane::tls::install_crypto();
    match &args.command {
        Some(Command::Explain(explain)) => return answer(explain),
        Some(Command::Policy(Policy::Test { file, config })) => return test(file, config.as_deref()),
        Some(Command::Revoke(args)) => return revoke(args),
        None => {}
    }
    let path = match &args.config {
        Some(path) => path.clone(),
        None => find_config("gateway.yaml", |name| env::var_os(name)).or_exit(CONFIGURATION)?,
    };
    let mut config = load(&path)?;
    if let Some(words) = shares::scarcity() {
        tracing::warn!("{words}");
    }
    if args.check {
        check(&config)?;
        let services = count(config.services.len(), "service");
        let workers = count(config.workers.unwrap_or_else(gateway::cores), "worker");
        let secrets = say_secrets(&config.secrets);
        let ok =
            format!("{}: ok ({services}, {workers})\ntokens are signed with {secrets}\n", path.display());
        return print(&ok).map(|()| 0);
    }
    config.require_io_uring = args.require_io_uring;
    let reloader = Reloader::new(&path, &config);
    serve(config, reloader, args.ktls.into(), args.ready_file.as_deref()).map(|()| 0)
}

/// Whether a start would succeed, and clients would take its certificates.
fn check(config: &Config) -> Result<(), Failure> {
    gateway::check(config).map_err(|e| refused(e, &config.places))?;
    let said = Watch::default().handle_tick(seconds_since_1970(), config.certificates.iter());
    for words in &said.warnings {
        tracing::warn!("{words}");
    }
    for words in &said.notes {
        tracing::info!("{words}");
    }
    if said.errors.is_empty() {
        return Ok(());
    }
    Err(anyhow!(said.errors.join("; "))).or_exit(CONFIGURATION)
}

/// Why a gateway does not start, and its exit code.
fn refused(e: StartError, places: &Places) -> Failure {
    let code = match e {
        StartError::Listen { .. } => UNAVAILABLE,
        StartError::StateDir { .. } | StartError::Audit { .. } => CONFIGURATION,
        _ => INTERNAL,
    };
    Failure { code, error: anyhow!(e.located(places)) }
}

fn answer(args: &Explain) -> Result<u8, Failure> {
    let question = Question::new(args.agent.clone(), args.target.clone(), args.resolved.clone());
    let question = question.or_exit(USAGE)?;
    let config = args.config.clone().or_else(|| find_config("gateway.yaml", |name| env::var_os(name)).ok());
    let gateway = config.as_deref().map(load).transpose()?;
    let token = find_token(&args.token).map_err(anyhow::Error::msg).or_exit(USAGE)?;
    let bearer = Bearer::examine(&token, gateway.as_ref(), seconds_since_1970());
    let report = Report::new(&question, &bearer, config.as_deref(), seconds_since_1970()).or_exit(USAGE)?;
    print(&if args.json { report.json() } else { report.text() })?;
    Ok(match report.verdict() {
        Verdict::Allow => 0,
        Verdict::Deny => NO,
        Verdict::Depends => DEPENDS,
    })
}

fn test(file: &Path, config: Option<&Path>) -> Result<u8, Failure> {
    let config = config.map(load).transpose()?;
    let expectations =
        Expectations::load(file, config.as_ref(), seconds_since_1970()).or_exit(CONFIGURATION)?;
    let outcome = expectations.check().or_exit(CONFIGURATION)?;
    print(&outcome.text())?;
    Ok(if outcome.failures.is_empty() { 0 } else { NO })
}

fn revoke(args: &Revoke) -> Result<u8, Failure> {
    let list = match &args.list {
        Some(path) => List::File(path.clone()),
        None => {
            let config =
                args.config.clone().map_or_else(|| find_config("gateway.yaml", |name| env::var_os(name)), Ok);
            let path = config.context("no list to write to: --list FILE names one").or_exit(CONFIGURATION)?;
            let config = load(&path)?;
            List::of(path, config).or_exit(CONFIGURATION)?
        }
    };
    let subject = Subject::new(args, &list, seconds_since_1970()).or_exit(USAGE)?;
    for warning in &subject.warnings {
        say(warning);
    }
    let revoked = Revoked::add(&subject, &list).map_err(|e| Failure {
        code: if matches!(e, RevocationError::File { .. }) { IO } else { CONFIGURATION },
        error: e.into(),
    })?;
    print(&revoked.text())?;
    Ok(0)
}

fn load(config: &Path) -> Result<Config, Failure> {
    let config = Config::load(config).or_exit(CONFIGURATION)?;
    config.say_remarks();
    Ok(config)
}

fn say(message: &str) {
    log::say(&format!("narrowlink-gateway: {message}"));
}

fn print(text: &str) -> Result<(), Failure> {
    answer::write(io::stdout(), text).or_exit(UNWRITTEN)
}

fn serve(config: Config, reloader: Reloader, ktls: Ktls, ready_file: Option<&Path>) -> Result<(), Failure> {
    let words = supervise::signals().context("signals can't be handled").or_exit(INTERNAL)?;
    let ready_file = ready_file.map(claim).transpose()?;
    let (name, services) = (config.name.clone(), config.services.clone());
    let ktls = choose_ktls(ktls);
    tracing::info!("tokens are signed with {}", say_secrets(&config.secrets));
    let places = config.places.clone();
    let gateway = gateway::start(config).map_err(|e| refused(e, &places))?;
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
    if let Some(file) = ready_file {
        file.announce(serde_json::to_vec(&ready).or_exit(INTERNAL)?);
    }
    let outcome = supervise::supervise(&gateway, &words, Some(reloader));
    gateway.save();
    match outcome {
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
}

fn claim(path: &Path) -> Result<ReadyFile, Failure> {
    ReadyFile::claim(path)
        .with_context(|| format!("can't write the ready file {}", path.display()))
        .or_exit(CONFIGURATION)
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

fn start_log(args: &Args) {
    let level = match (args.verbose, args.quiet) {
        // Who asks a question wants its answer.
        (0, 0) if args.command.is_some() => "warn",
        (0, 0) => "info",
        (1, _) => "debug",
        (2.., _) => "trace",
        (0, 1) => "warn",
        (0, 2..) => "error",
    };
    log::start(level);
}
