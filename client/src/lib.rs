//! `narrowlink`, the client: reaches targets beyond agents through a gateway.
//!
//! [`start_forward`], [`connect`], [`agents`], [`ping`], [`bench()`] and [`identities`] are its commands; each finds a gateway by its `routes`
//! and asks there by `open` for sessions. A forward also holds a link (`presence`) and streams that
//! stand (`warm`), on which a session costs no handshake (`early`), and takes a newer token up as soon as its file has
//! one (`renewal`). Its first worker accepts (`forward`), and all of them `carry` what was accepted.
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod args;
mod carry;
pub mod config;
pub mod doctor;
mod early;
pub mod exit;
#[cfg(test)]
mod fixture;
mod forward;
pub mod list;
pub mod measure;
mod open;
mod outlook;
mod plan;
mod presence;
mod queue;
mod renewal;
mod routes;
mod stdio;
mod stop;
mod warm;
pub mod whoami;

use std::{
    convert::Infallible,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use async_channel::Sender;
use narrowlink_dataplane::run::{
    crew::Crew,
    lock::lock,
    worker::{Main, Options, Workers, run_alone},
};
use narrowlink_proto::{message::AgentInfo, target::Target};

pub use crate::plan::Plan;
use crate::{
    carry::Shared,
    config::{Config, ConfigError},
    exit::{Exit, Failure},
    forward::{FIRST, Forwarder},
    measure::{Bench, Course, Ping},
    open::Opener,
    renewal::Renewal,
    routes::Routes,
    stop::Stop,
    whoami::Identity,
};

/// One core carries more than the way to a gateway usually does.
const WORKERS_BY_DEFAULT: usize = 1;

/// A running forward. Dropping it stops it.
pub struct Forward {
    /// Where it listens.
    pub local_addr: SocketAddr,
    stop: Sender<Infallible>,
    workers: Workers,
}

impl Forward {
    /// Stops it: what is under way is reset.
    pub fn stop(self) {
        drop(self.stop);
        self.workers.join();
    }

    /// Waits for its end, which comes only when one of its threads fails.
    pub fn join(self) {
        self.workers.join();
    }
}

/// Starts a forward on threads of its own. It connects when it can, and goes on for ever.
///
/// # Errors
/// The configuration's, or the local port's. That no gateway can be reached is none.
pub fn start_forward(config: &Config, plan: Plan) -> Result<Forward, Failure> {
    // Looked at before they are read: a later change is noticed then.
    let renewal = Renewal::new(config);
    let gateways = config.gateways()?;
    let listener = forward::bind(plan.listen)?;
    let local_addr = listener.local_addr().map_err(|e| Failure::new(Exit::Internal, e))?;
    let (stop, stopped) = Stop::new();
    let (started, starting) = mpsc::channel();
    let options = Options {
        count: config.workers.map_or(WORKERS_BY_DEFAULT, NonZeroUsize::get),
        pin: false,
        require_io_uring: config.require_io_uring,
    };
    let shared = Shared::new(plan, Opener::new(Routes::new(config, gateways)), stopped);
    let (crew, inboxes) = Crew::new(options.count);
    let first = Mutex::new(Some((listener, renewal, started)));
    let main: Main = Arc::new(move |index| {
        let first = lock(&first).take_if(|_| index == FIRST);
        let (shared, crew, inbox) = (shared.clone(), crew.clone(), inboxes[index].clone());
        Box::pin(async move {
            let _others = shared.stop.when_dropped();
            let forwarder = Forwarder::new(shared, crew);
            match first {
                None => forwarder.help(inbox).await,
                Some((listener, renewal, started)) => match forward::adopt(listener) {
                    Ok(listener) => {
                        let _ = started.send(Ok(()));
                        forwarder.accept(listener, renewal).await;
                    }
                    Err(failure) => drop(started.send(Err(failure))),
                },
            }
            forwarder.wind_up().await;
        })
    });
    let workers = Workers::start("forward", &options, &main)?;
    match starting.recv() {
        Ok(Ok(())) => Ok(Forward { local_addr, stop, workers }),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::new(Exit::Internal, "the forward's thread failed")),
    }
}

/// Joins standard input and output with a target, until both directions have ended.
///
/// # Errors
/// Why there was no session, or why it did not end well.
pub fn connect(config: &Config, agent: &str, target: &Target) -> Result<(), Failure> {
    let routes = Routes::load(config)?;
    run_alone(config.require_io_uring, |_| stdio::run(Opener::new(routes), agent, target))?
}

/// The agents that are connected.
///
/// # Errors
/// Why no gateway could be asked.
pub fn agents(config: &Config) -> Result<Vec<AgentInfo>, Failure> {
    let routes = Routes::load(config)?;
    run_alone(config.require_io_uring, |_| async move { list::agents(&routes).await })?
}

/// How far it is to an agent, measured so often with such pauses.
///
/// # Errors
/// Why it could not be measured.
pub fn ping(config: &Config, course: Course, count: u32, pause: Duration) -> Result<Ping, Failure> {
    let routes = Routes::load(config)?;
    run_alone(config.require_io_uring, |_| Ping::measure(Opener::new(routes), course, count, pause))?
}

/// How much goes through to an agent: for so long in each direction of each way, over so many streams.
///
/// # Errors
/// Why it could not be measured.
pub fn bench(config: &Config, course: Course, time: Duration, streams: usize) -> Result<Bench, Failure> {
    let routes = Routes::load(config)?;
    run_alone(config.require_io_uring, |_| Bench::measure(Opener::new(routes), course, time, streams))?
}

/// Who one is to each gateway of the configuration: by the token alone if `offline`, else the gateways are
/// asked as well. A gateway that does not accept it is an answer, no failure.
///
/// # Errors
/// The configuration's, or the system's.
pub fn identities(config: &Config, offline: bool) -> Result<Vec<Identity>, Failure> {
    let endpoints = config.endpoints.iter().map(|endpoint| {
        let one = Config { endpoints: vec![endpoint.clone()], ..config.clone() };
        Ok(Identity::read(Routes::load(&one)?, config.token_place(endpoint)))
    });
    let mut identities = endpoints.collect::<Result<Vec<_>, ConfigError>>()?;
    if !offline {
        run_alone(config.require_io_uring, |_| async {
            for identity in &mut identities {
                identity.ask().await;
            }
        })?;
    }
    Ok(identities)
}
