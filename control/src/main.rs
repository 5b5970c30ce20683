//! Role: the program narrowlink-gateway: arguments, logging, signals, exit codes.
//! Invariants: it ends by exiting, never by dropping a worker's runtime.
//! See: README.md "Set it up".
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{
    env,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use narrowlink_control::{
    args::{
        Args, Bearer, Command, Explain, Init, NewTicket, Policy, Revoke, Ticket as TicketCommand,
        User as UserCommand, parse,
    },
    auth::say_secrets,
    certificate::Watch,
    clock::seconds_since_1970,
    config::{Config, Places, Service},
    expectations::Expectations,
    explain::{self, Question, Report, find_token},
    gateway::{self, Gateway, StartError},
    init::{InitError, Plan},
    reload::Reloader,
    revocations::RevocationError,
    revoke::{List, Revoked, Subject},
    supervise::{self, Outcome},
    tickets::{
        self, TicketError, Wanted,
        book::{self, Book, BookError},
    },
};
use narrowlink_dataplane::{
    gateway::shares,
    run::{
        log,
        process::{find_config, own_config_dir},
        ready_file::ReadyFile,
    },
    tls::{Ktls, choose_ktls},
};
use narrowlink_proto::{
    answer::{self, UNWRITTEN},
    policy::Verdict,
    ticket::Program,
    token::{Keys, Kind},
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
/// What was to be made is there already, or can't be written; sysexits.h has it so.
const CANT_CREATE: u8 = 73;
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
        Some(Command::Init(args)) => return init(args),
        Some(Command::Ticket(command)) => return ticket(command),
        Some(Command::User(command)) => return user(command),
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
    let bearer = explain::Bearer::examine(&token, gateway.as_ref(), seconds_since_1970());
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

fn init(args: &Init) -> Result<u8, Failure> {
    let env = |name: &str| env::var_os(name);
    let dir = args.dir.clone().or_else(|| own_config_dir(env));
    let dir = dir.context("there is no home directory: say --dir DIR").or_exit(USAGE)?;
    let plan = Plan::new(args, dir).or_exit(USAGE)?;
    if !args.yes {
        confirm(&plan.describe())?;
    }
    let made = plan.make(seconds_since_1970()).map_err(|e| Failure {
        code: match e {
            InitError::Exists(_) | InitError::File { .. } => CANT_CREATE,
            InitError::Config(_) | InitError::Given { .. } => CONFIGURATION,
            InitError::Host(_) | InitError::NoHost | InitError::Ticket(_) | InitError::Authority(_) => USAGE,
            InitError::Random(_) => INTERNAL,
        },
        error: e.into(),
    })?;
    print(&plan.next(&made))?;
    Ok(0)
}

/// Asks whether what was said before is meant.
fn confirm(what: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(anyhow!("standard input is no terminal, so nobody can be asked: add --yes"))
            .or_exit(USAGE);
    }
    log::say(&format!("{what}\nMake it? [Y/n] "));
    let mut line = String::new();
    io::stdin().read_line(&mut line).or_exit(USAGE)?;
    match line.trim() {
        "" | "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow!("nothing was made")).or_exit(NO),
    }
}

fn ticket(command: &TicketCommand) -> Result<u8, Failure> {
    let now = seconds_since_1970();
    match command {
        TicketCommand::Agent(new) => make_ticket(Kind::Agent, new, &[]),
        TicketCommand::Client { new, allow } => make_ticket(Kind::Client, new, allow),
        TicketCommand::List { json, config } => {
            let place = Place::find(config.as_deref())?;
            let book = Book::read(&place.book).or_exit(CONFIGURATION)?;
            let list = &place.config.revocations;
            print(&if *json { tickets::json(&book, list, now) } else { tickets::text(&book, list, now) })?;
            Ok(0)
        }
        TicketCommand::Revoke { kind, name, user, config } => {
            let place = Place::find(config.as_deref())?;
            let List::OfConfig { list, .. } =
                List::of(place.path.clone(), place.config).or_exit(CONFIGURATION)?
            else {
                unreachable!("a config's list is one of a config")
            };
            let kind = match kind {
                Bearer::Agent => Kind::Agent,
                Bearer::Client => Kind::Client,
            };
            let count =
                tickets::revoke(&place.book, &list, (user.as_deref(), kind, name), now).map_err(no_ticket)?;
            let said = match count {
                0 => format!("nothing was left to take back of the {} {name}\n", kind.name()),
                _ => format!(
                    "taken back: {count} of the {} {name}, in {}; a running gateway ends its links and sessions within 2 s\n",
                    kind.name(),
                    list.display()
                ),
            };
            print(&said)?;
            Ok(0)
        }
    }
}

/// A ticket alone goes to standard output, what to do with it to standard error.
fn make_ticket(kind: Kind, new: &NewTicket, allow: &[String]) -> Result<u8, Failure> {
    let NewTicket { name, user, expires, renew, config } = new;
    let place = Place::find(config.as_deref())?;
    let keys = place.config.secrets.first().map(|secret| Keys::new(secret.as_bytes()));
    let keys = keys.context("the config has no secret").or_exit(CONFIGURATION)?;
    let wanted = Wanted {
        user: user.clone(),
        kind,
        name: name.clone(),
        allow: allow.to_vec(),
        expires: *expires,
        renew: *renew,
    };
    let now = seconds_since_1970();
    let ticket = Book::change(&place.book, |book| wanted.make(book, &keys, now)).map_err(no_ticket)?;
    let text = ticket.encode();
    print(&format!("{}\n", text.expose()))?;
    let command = Program::of(kind).command;
    say(&format!(
        "whoever has this ticket is the {} {name}; there: {command} TICKET, or {command} - and paste it",
        kind.name()
    ));
    Ok(0)
}

fn no_ticket(e: TicketError) -> Failure {
    let code = match &e {
        TicketError::Usage(_) | TicketError::Token(_) => USAGE,
        TicketError::Book(BookError::File { .. }) | TicketError::Revocation(RevocationError::File { .. }) => {
            IO
        }
        TicketError::Book(_) | TicketError::Revocation(_) => CONFIGURATION,
        TicketError::Random(_) => INTERNAL,
    };
    Failure { code, error: e.into() }
}

fn user(command: &UserCommand) -> Result<u8, Failure> {
    match command {
        UserCommand::Add { name, uid, gateway, config } => {
            let place = Place::find(config.as_deref())?;
            let user = book::add_user(&place.book, name, *uid, gateway.as_deref()).map_err(no_ticket)?;
            print(&format!("{} has the space {}\n", user.name, user.uid))?;
        }
        UserCommand::List { json, config } => {
            let place = Place::find(config.as_deref())?;
            let book = Book::read(&place.book).or_exit(CONFIGURATION)?;
            print(&if *json { book.users_json() } else { book.users_text() })?;
        }
    }
    Ok(0)
}

/// A gateway's config and its book of tickets.
struct Place {
    path: PathBuf,
    config: Config,
    book: PathBuf,
}

impl Place {
    fn find(config: Option<&Path>) -> Result<Self, Failure> {
        let found = config.map_or_else(
            || find_config("gateway.yaml", |name| env::var_os(name)),
            |path| Ok(path.to_owned()),
        );
        let path =
            found.context("which gateway? `narrowlink-gateway init` makes one").or_exit(CONFIGURATION)?;
        let config = Config::load(&path).or_exit(CONFIGURATION)?;
        let book = path.with_file_name(book::FILE);
        Ok(Self { path, config, book })
    }
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
