//! Role: the program `narrowlink`: arguments, log, what is printed, exit codes.
//! Invariants: standard output has the results and nothing else; everything said is one line each.
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::error::ContextKind;
use narrowlink_client::{
    Plan, agents,
    args::{Args, Command},
    bench,
    config::{self, Config, ConfigError},
    connect, doctor,
    exit::{Exit, Failure},
    identities, list,
    measure::Course,
    ping, start_forward, whoami,
};
use narrowlink_dataplane::{
    peer::try_token,
    run::{
        enroll::{Enrolled, Place, enroll},
        log,
        process::find_config,
    },
};
use narrowlink_manual::{self as manual, Line, Question};
use narrowlink_proto::{answer, code::Code, printable::printable, target::Target, ticket::Program};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag::register_conditional_shutdown,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As much of an agent's name as any has.
const AGENT_CHARS_MAX: usize = 128;

fn main() {
    narrowlink_dataplane::run::process::refuse_secrets("narrowlink", &["login"]);
    let args = match manual::parse(std::env::args_os()) {
        Ok(Line::Run(args)) => args,
        Ok(Line::Ask(question)) => end(answer_question(*question)),
        Err(e) => usage(e),
    };
    if std::process::id() == 1 {
        obey_signals();
    }
    start_log(&args);
    narrowlink_dataplane::run::process::prepare();
    narrowlink_dataplane::tls::install_crypto();
    end(run(args))
}

fn end(done: Result<Exit, Failure>) -> ! {
    let code = match done {
        Ok(exit) => exit,
        Err(failure) => {
            if let Some(words) = failure.said() {
                say(&words);
            }
            failure.exit
        }
    };
    // What the runtime still holds must not be taken apart: the process just ends.
    log::exit(code.code())
}

/// About this program itself.
fn answer_question(question: Question) -> Result<Exit, Failure> {
    print(&question.answer()?)?;
    Ok(Exit::Done)
}

/// What clap has to say: help and version on standard output, which must get there; else how to write it.
fn usage(mut error: clap::Error) -> ! {
    // "to pass '-1' as a value, use '-- -1'": no value of ours begins so.
    error.remove(ContextKind::Suggested);
    if error.use_stderr() {
        narrowlink_dataplane::run::process::refuse_arguments(&manual::refusal(&error), error.exit_code());
    }
    end(print(&error.render().to_string()).map(|()| Exit::Done))
}

/// Process 1 of a container has none of the usual answers to signals: without this it could only be killed.
fn obey_signals() {
    for signal in [SIGTERM, SIGINT] {
        let at_once = Arc::new(AtomicBool::new(true));
        if let Err(e) = register_conditional_shutdown(signal, 128 + signal, at_once) {
            say(&format!("signal {signal} can't be heard: {e}"));
        }
    }
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
    log::start(&format!("error,narrowlink={level}"), args.log_format);
}

fn run(args: Args) -> Result<Exit, Failure> {
    if let Command::Login { ticket, dir, replace } = &args.command {
        return login(ticket, Place { dir: dir.as_deref(), replace: *replace });
    }
    let loaded = load(&args);
    if let Command::Doctor { json } = args.command {
        return doctor::run(loaded, args.config.is_some(), args.require_io_uring, json);
    }
    let config = loaded?;
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
        Command::Login { .. } => unreachable!("it needs no configuration"),
        Command::Doctor { .. } => unreachable!("it needs none either"),
        Command::List { json } => print_agents(&config, json)?,
        Command::Whoami { offline, json } => {
            return print_identities(&config, offline, json, args.verbose > 0);
        }
        Command::Connect { name, target } => connect(&config, &name, &target)?,
        Command::Ping { name, count, pause, json, target } => {
            let course = Course { agent: name, target };
            let ping = ping(&config, course, count, Duration::from_millis(pause.into()))?;
            print(&if json { ping.json() } else { ping.text() })?;
            ping.connect?;
        }
        Command::Bench { name, seconds, streams, json, target } => {
            let course = Course { agent: name, target };
            let time = Duration::from_secs(seconds.into());
            let bench = bench(&config, course, time, streams as usize)?;
            print(&if json { bench.json() } else { bench.text() })?;
            bench.connect?;
        }
        Command::Forward { name, listen, json, target, ssh_form: None } => {
            let plan = Plan { agent: name, target, listen };
            return Err(forward(&config, plan, json, args.quiet));
        }
    }
    Ok(Exit::Done)
}

fn load(args: &Args) -> Result<Config, ConfigError> {
    let path = match &args.config {
        Some(path) => path.clone(),
        None => find_config(config::FILE_NAME, |name| std::env::var_os(name))?,
    };
    let mut config = Config::load(&path)?;
    config.require_io_uring = args.require_io_uring;
    Ok(match args.framing {
        Some(framing) => config.with_framing(framing.into()),
        None => config,
    })
}

/// Forwards until it fails; why it did.
fn forward(config: &Config, plan: Plan, as_json: bool, quiet: bool) -> Failure {
    let forward = match start_forward(config, plan.clone()) {
        Ok(forward) => forward,
        Err(failure) => return failure,
    };
    let addr = forward.local_addr;
    if !quiet {
        if let Some(words) = plan.exposure() {
            say(&format!("warning: {words}"));
        }
        log::say(&format!("{addr} → {} → {} · Ctrl-C ends", plan.agent, place(&plan.target)));
    }
    let told = if as_json { plan.json(addr) } else { Ok(format!("{addr}\n")) };
    if let Err(failure) = told.map_err(|e| Failure::new(Exit::Internal, e)).and_then(|text| print(&text)) {
        return failure;
    }
    forward.join();
    Failure::new(Exit::Internal, "the forward's thread failed")
}

/// Writes what a ticket says, and asks the gateway whether it takes it.
fn login(ticket: &str, into: Place<'_>) -> Result<Exit, Failure> {
    let Enrolled { config, said, with, .. } =
        enroll(&Program::CLIENT, ticket, into, |name| std::env::var_os(name), try_token)?;
    say(&said);
    let config = Config::load(&config)?;
    let identities = identities(&config, false)?;
    let exit = whoami::exit(&identities, seconds_since_1970());
    print(&whoami::text(&identities, seconds_since_1970(), false))?;
    say(&match exit {
        Exit::Done => match identities.iter().find_map(|identity| identity.an_example()) {
            Some((agent, target)) => {
                let agent = quoted(&printable(agent, AGENT_CHARS_MAX));
                let (port, target) = (local_port(target.port()), place(&target));
                format!("next: narrowlink{with} forward -n {agent} -l {port} {target}")
            }
            None => format!(
                "next: narrowlink{with} list, and narrowlink{with} forward -n AGENT HOST:PORT with one of these"
            ),
        },
        Exit::Authentication => {
            "what the ticket said is written all the same; ask for another ticket: login with it takes its place".to_owned()
        }
        _ => format!("what the ticket said is written all the same; narrowlink{with} whoami asks again"),
    });
    Ok(exit)
}

/// A port here that nobody needs a right for, and that reminds of the one there.
const fn local_port(there: u16) -> u16 {
    match there {
        22 => 2222,
        ..1024 => 8000 + there,
        _ => there,
    }
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    match word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// What is wrong stands among what is printed: only the exit code says it once more.
fn print_identities(config: &Config, offline: bool, as_json: bool, in_full: bool) -> Result<Exit, Failure> {
    let identities = identities(config, offline)?;
    let now = seconds_since_1970();
    print(&if as_json { whoami::json(&identities) } else { whoami::text(&identities, now, in_full) })?;
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

fn say(message: &str) {
    log::say(&format!("narrowlink: {message}"));
}

/// A target as the user wrote it.
fn place(target: &Target) -> String {
    let words = target.to_string();
    words.strip_prefix("tcp://").map(str::to_owned).unwrap_or(words)
}

fn print(text: &str) -> Result<(), Failure> {
    answer::write(io::stdout(), text).map_err(|e| Failure::new(Exit::Reset, e).of_kind(Code::Unwritten))
}
