//! Role: the program `narrowlink-agent`: arguments, log, signals, exit codes.
//! Invariants: decides nothing that the library does not; a second signal ends it at once.
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod doctor;
mod service;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use narrowlink_agent::{
    Agent, StartError,
    args::{Args, Command},
    check::check,
    config::{self, Config, ConfigError},
    expiry::seconds_since_1970,
    start_with,
};
use narrowlink_dataplane::{
    peer::try_token,
    run::{
        enroll::{EnrollError, Enrolled, Place, Trial, enroll},
        log,
        notify::Notifier,
        process::find_config,
        service::{ServiceError, Unit},
        watch::{Fault, TICK, Watch},
    },
};
use narrowlink_manual::{self as manual, Line, PageError, Question};
use narrowlink_proto::{
    answer::{self, UNWRITTEN, Unwritten},
    code::Code,
    ticket::Program,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use self::doctor::Unwell;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What makes no sense on a command line; clap's code.
const EXIT_USAGE: u8 = 2;
/// sysexits.h: the gateway can't be reached, or takes no agent of this token.
const EXIT_UNAVAILABLE: u8 = 69;
/// sysexits.h: what was to be written can't be.
const EXIT_CANT_CREATE: u8 = 73;
/// sysexits.h: something is wrong with the configuration.
const EXIT_CONFIG: u8 = 78;
/// sysexits.h: our own fault, or the system's.
const EXIT_SOFTWARE: u8 = 70;
/// How long a gateway may take to welcome an agent that joins.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// A second signal: 128 + SIGTERM, as shells have it.
const EXIT_SIGNALLED: u8 = 143;

fn main() {
    narrowlink_dataplane::run::process::refuse_secrets("narrowlink-agent", &["join"]);
    let args = match manual::parse::<Args>(std::env::args_os()) {
        Ok(Line::Run(args)) => args,
        Ok(Line::Ask(question)) => end(answer_question(*question)),
        Err(e) if e.use_stderr() => {
            narrowlink_dataplane::run::process::refuse_arguments(&manual::refusal(&e), e.exit_code())
        }
        // Help and version, which must get there.
        Err(e) => end(answer::write(io::stdout(), &e.render().to_string()).map(|()| 0).map_err(Into::into)),
    };
    start_log(&args);
    narrowlink_dataplane::run::process::prepare();
    narrowlink_dataplane::tls::install_crypto();
    end(run(&args))
}

/// About this program itself.
fn answer_question(question: Question) -> anyhow::Result<u8> {
    answer::write(io::stdout(), &question.answer()?)?;
    Ok(0)
}

fn end(done: anyhow::Result<u8>) -> ! {
    let code = match done {
        Ok(code) => code,
        Err(error) => {
            // What is wrong stands among what was printed.
            if !error.is::<Unwell>() {
                let why = narrowlink_dataplane::run::process::explain(error.as_ref());
                log::say_last(&format!("narrowlink-agent: {}", kind_of(&error).mark(&why)));
            }
            code_of(&error)
        }
    };
    // What the runtime still holds must not be taken apart: the process just ends.
    log::exit(code)
}

fn code_of(error: &anyhow::Error) -> u8 {
    let by_config = error.is::<ConfigError>()
        || matches!(error.downcast_ref::<StartError>(), Some(StartError::Config(_)));
    if let Some(e) = error.downcast_ref::<ServiceError>() {
        return e.exit();
    }
    match error.downcast_ref::<EnrollError>() {
        _ if by_config => EXIT_CONFIG,
        Some(EnrollError::Install(_) | EnrollError::Another { .. }) => EXIT_CANT_CREATE,
        Some(EnrollError::Input(_)) => UNWRITTEN,
        Some(EnrollError::Ticket(_) | EnrollError::Program(_) | EnrollError::Nowhere) => EXIT_USAGE,
        Some(EnrollError::Refused { .. }) => EXIT_UNAVAILABLE,
        None if error.is::<NotWelcomed>() => EXIT_UNAVAILABLE,
        None if error.is::<Unwell>() => error.downcast_ref().map_or(EXIT_SOFTWARE, |Unwell(code)| *code),
        None if error.is::<Unwritten>() => UNWRITTEN,
        None if error.is::<PageError>() => PageError::EXIT,
        None => EXIT_SOFTWARE,
    }
}

/// The kind of trouble.
fn kind_of(error: &anyhow::Error) -> Code {
    if let Some(e) = error.downcast_ref::<ConfigError>() {
        return e.code();
    }
    if let Some(e) = error.downcast_ref::<ServiceError>() {
        return e.code();
    }
    match (error.downcast_ref::<StartError>(), error.downcast_ref::<EnrollError>()) {
        (Some(StartError::Config(e)), _) => e.code(),
        (Some(StartError::Runtime(_)), _) => Code::Internal,
        (None, Some(EnrollError::Install(_) | EnrollError::Another { .. })) => Code::Unmade,
        (None, Some(EnrollError::Input(_))) => Code::Stdio,
        (None, Some(EnrollError::Ticket(_) | EnrollError::Program(_))) => Code::Ticket,
        (None, Some(EnrollError::Refused { .. })) => Code::Token,
        (None, Some(EnrollError::Nowhere)) => Code::Usage,
        (None, None) if error.is::<NotWelcomed>() => Code::NotWelcomed,
        (None, None) if error.is::<Unwritten>() => Code::Unwritten,
        (None, None) if error.is::<PageError>() => Code::Unmade,
        (None, None) => Code::Internal,
    }
}

fn start_log(args: &Args) {
    let level = match (args.quiet, args.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    log::start(&format!("warn,narrowlink={level}"), args.log_format);
}

/// Does it; the exit code.
fn run(args: &Args) -> anyhow::Result<u8> {
    match &args.command {
        Some(Command::Join { ticket, dir, replace, no_service }) => {
            let place = Place { dir: dir.as_deref(), replace: *replace };
            join(ticket, place, !no_service, args.require_io_uring).map(|()| 0)
        }
        Some(Command::Service(command)) => service::run(command, args.config.as_deref()),
        Some(Command::Doctor { json }) => {
            doctor::run(load(args), args.config.is_some(), args.require_io_uring, *json).map(|()| 0)
        }
        None => serve(args).map(|()| 0),
    }
}

/// Is the agent of a configuration until it is told to stop, or only looks whether it could be.
fn serve(args: &Args) -> anyhow::Result<()> {
    let (mut config, path) = load(args)?;
    config.require_io_uring = args.require_io_uring;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if args.check {
        return say_whether_good(&config, &path);
    }
    let gateways: Vec<_> = config.endpoints.iter().map(|endpoint| endpoint.gateway.clone()).collect();
    let agent = start_with(config, args.ready_file.clone())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), driver = %agent.driver(), gateways = gateways.join(", "),
        "narrowlink-agent started"
    );
    let stopper = agent.stopper();
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals can't be heard")?;
    let notifier = Notifier::new();
    notifier.status(&format!("waits to be welcomed by {}", gateways.join(", ")));
    let told = notifier.clone();
    std::thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            told.stopping("sessions may finish");
            tracing::info!("stopping: sessions may finish; a second signal ends them");
            stopper.stop();
        }
        if signals.next().is_some() {
            log::exit(EXIT_SIGNALLED);
        }
    });
    watch(&agent, &notifier)?;
    anyhow::ensure!(agent.join(), "the agent's thread failed");
    Ok(())
}

/// Returns when the agent has ended; until then the service manager hears how it is.
fn watch(agent: &Agent, notifier: &Notifier) -> Result<(), Fault> {
    let (mut watch, mut watchdog) = (Watch::new(Instant::now()), notifier.watchdog());
    let mut is_ready = false;
    while !agent.is_finished() {
        // Waits that long for the first welcome; later on it returns at once.
        match agent.wait_ready(TICK) {
            Some(gateway) if !is_ready => {
                is_ready = true;
                notifier.ready(&format!("welcomed by {gateway}"));
            }
            Some(_) => std::thread::sleep(TICK),
            None => {}
        }
        if let Some(fault) = watch.handle_tick(Instant::now(), agent.longest_silence(), false) {
            return Err(fault);
        }
        if let Some(watchdog) = &mut watchdog {
            watchdog.feed(Instant::now());
        }
    }
    Ok(())
}

fn load(args: &Args) -> Result<(Config, PathBuf), ConfigError> {
    let path = match &args.config {
        Some(path) => path.clone(),
        None => find_config(config::FILE_NAME, |name| std::env::var_os(name))?,
    };
    Ok((Config::load(&path)?, path))
}

/// Writes what a ticket says, and asks the gateway whether it takes it.
fn join(ticket: &str, place: Place<'_>, may_serve: bool, require_io_uring: bool) -> anyhow::Result<()> {
    let Enrolled { name, config: path, said, renewed, with } =
        enroll(&Program::AGENT, ticket, place, |name| std::env::var_os(name), try_token)?;
    say(&said);
    let is_service = may_serve && with.is_empty() && Unit::can_be_installed();
    if let Some(trial) = renewed {
        // An agent of this name may run: it would have to leave for one that only asks.
        let next = match is_service {
            true => service::install(&path)?,
            false => format!(
                "an agent that runs takes it within 2 s; else next: narrowlink-agent{with}\n\
                 narrowlink-agent{with} doctor goes the way to the gateway step by step\n"
            ),
        };
        let Trial::Taken(gateway) = trial else {
            say(next.trim_end());
            return Err(NotWelcomed::Renewed.into());
        };
        let told = format!("{gateway} takes the token of the agent {name}\n{next}");
        return Ok(answer::write(io::stdout(), &told)?);
    }
    let mut config = Config::load(&path)?;
    config.require_io_uring = require_io_uring;
    let agent = start_with(config, None)?;
    let welcomed = agent.wait_ready(WELCOME_TIMEOUT);
    agent.stop();
    // A service waits for its gateway.
    let next = match is_service {
        true => service::install(&path)?,
        false => format!("next: narrowlink-agent{with}\n"),
    };
    let Some(gateway) = welcomed else {
        if is_service {
            say(next.trim_end());
        }
        return Err(NotWelcomed::New.into());
    };
    let told = format!("{gateway} takes this machine for the agent {name}\n{next}");
    Ok(answer::write(io::stdout(), &told)?)
}

/// What a ticket said is written, and the gateway has not welcomed its bearer.
#[derive(Debug, thiserror::Error)]
enum NotWelcomed {
    #[error(
        "the gateway has not welcomed this agent: why is said above. What the ticket said is written all the same; \
         narrowlink-agent tries again"
    )]
    New,
    #[error(
        "no gateway could be asked whether it takes the new token, which is in its place: narrowlink-agent doctor says what is \
         in the way"
    )]
    Renewed,
}

fn say(message: &str) {
    log::say(&format!("narrowlink-agent: {message}"));
}

fn say_whether_good(config: &Config, path: &Path) -> anyhow::Result<()> {
    for warning in check(config, seconds_since_1970())? {
        tracing::warn!("{warning}");
    }
    let count = config.endpoints.len();
    let plural = if count == 1 { "" } else { "s" };
    Ok(answer::write(io::stdout(), &format!("{}: ok ({count} gateway{plural})\n", path.display()))?)
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::finding::Trouble;

    use super::*;

    #[test]
    fn what_the_user_can_mend_exits_with_78() {
        let missing = ConfigError::from(find_config("no-such.yaml", |_| None).unwrap_err());
        assert_eq!(code_of(&missing.into()), EXIT_CONFIG);
        assert_eq!(code_of(&anyhow::anyhow!("else")), EXIT_SOFTWARE);
        let codes = [
            (Trouble::Token, EXIT_CONFIG),
            (Trouble::Refused, EXIT_UNAVAILABLE),
            (Trouble::Internal, EXIT_SOFTWARE),
        ];
        for (trouble, code) in codes {
            assert_eq!(code_of(&Unwell(doctor::code_of(trouble)).into()), code);
        }
    }
}
