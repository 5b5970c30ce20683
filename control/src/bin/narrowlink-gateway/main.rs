//! Role: the program narrowlink-gateway: arguments, logging, signals, exit codes.
//! Invariants: it ends by exiting, never by dropping a worker's runtime.
//! See: README.md "Set it up".
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod ask;
mod credentials;
mod end;
mod serve;
mod service;

use std::{
    env,
    path::{Path, PathBuf},
};

use narrowlink_control::{
    args::{Args, Command, Policy, parse},
    config::Config,
    keeper::{self, KeepError},
};
use narrowlink_dataplane::{
    gateway::shares,
    run::{
        log,
        process::{NoConfig, find_config},
    },
};
use narrowlink_manual::{Line, PageError, Question};

use self::end::{CONFIGURATION, Failure, INTERNAL, OrExit as _, print};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let done = match parse() {
        Ok(Line::Run(args)) => run(&args),
        Ok(Line::Ask(question)) => answer(*question),
        Err(help) => print(&help).map(|()| 0),
    };
    let code = match done {
        Ok(code) => code,
        Err(failure) => {
            log::say_last(&format!("narrowlink-gateway: {}", failure.said()));
            failure.code
        }
    };
    // Workers may still be running: their runtimes are not to be dropped.
    log::exit(code)
}

/// About this program itself.
fn answer(question: Question) -> Result<u8, Failure> {
    print(&question.answer().or_exit(PageError::EXIT)?)?;
    Ok(0)
}

/// Does it; the exit code.
fn run(args: &Args) -> Result<u8, Failure> {
    start_log(args);
    narrowlink_dataplane::run::process::prepare();
    // Only one library takes part in this process; that it is installed twice can't happen.
    narrowlink_dataplane::tls::install_crypto();
    match &args.command {
        Some(Command::Init(args)) => return credentials::init(args),
        Some(Command::Ticket(command)) => return credentials::ticket(command),
        Some(Command::User(command)) => return credentials::user(command),
        Some(Command::Explain(explain)) => return ask::answer(explain),
        Some(Command::Policy(Policy::Test { file, json, config })) => {
            return ask::test(file, *json, config.as_deref());
        }
        Some(Command::Upgrade(args)) => return service::upgrade(args),
        Some(Command::Service(command)) => return service::run(command),
        Some(Command::Revoke(args)) => return credentials::revoke(args),
        None => {}
    }
    if args.keeper {
        let arguments = env::args_os().skip(1).filter(|argument| argument != "--keeper");
        return keeper::keep(arguments).map_err(|e| {
            let code = if matches!(e, KeepError::Sockets(_)) { CONFIGURATION } else { INTERNAL };
            Failure { code, error: e.into() }
        });
    }
    let path = find(args.config.as_deref()).or_exit(CONFIGURATION)?;
    let mut config = load(&path)?;
    if let Some(words) = shares::scarcity() {
        tracing::warn!("{words}");
    }
    if args.check {
        return serve::check(&config, &path).map(|()| 0);
    }
    config.require_io_uring = args.require_io_uring;
    serve::serve(config, &path, args).map(|()| 0)
}

/// The config that was named, or the one in a usual place.
fn find(named: Option<&Path>) -> Result<PathBuf, NoConfig> {
    named.map_or_else(|| find_config("gateway.yaml", |name| env::var_os(name)), |path| Ok(path.to_owned()))
}

fn load(config: &Path) -> Result<Config, Failure> {
    let config = Config::load(config).or_exit(CONFIGURATION)?;
    config.say_remarks();
    Ok(config)
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
    log::start(level, args.log_format);
}
