//! `narrowlink`, the client: reaches targets beyond agents through a gateway.
//!
//! [`start_forward`], [`connect`], [`agents`] and [`identities`] are its commands; each finds a gateway by its `routes`
//! and asks there by `open` for sessions. A forward also holds a link (`presence`) and streams that
//! stand (`warm`), on which a session costs no handshake (`early`), and takes a newer token up as soon as its file has
//! one (`renewal`).
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod args;
mod carry;
pub mod config;
mod early;
mod event;
pub mod exit;
#[cfg(test)]
mod fixture;
mod forward;
pub mod list;
mod lock;
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

use std::{convert::Infallible, net::SocketAddr, sync::mpsc, thread::JoinHandle};

use async_channel::Sender;
use narrowlink_dataplane::run::worker::run_alone;
use narrowlink_proto::{message::AgentInfo, target::Target};

pub use crate::plan::Plan;
use crate::{
    carry::Shared,
    config::{Config, ConfigError},
    exit::{Exit, Failure},
    forward::Forwarder,
    open::Opener,
    renewal::Renewal,
    routes::Routes,
    stop::Stop,
    whoami::Identity,
};

/// A running forward. Dropping it stops it.
pub struct Forward {
    /// Where it listens.
    pub local_addr: SocketAddr,
    stop: Sender<Infallible>,
    thread: JoinHandle<()>,
}

impl Forward {
    /// Stops it: what is under way is reset.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }

    /// Waits for its end, which comes only when its thread fails.
    pub fn join(self) {
        let _ = self.thread.join();
    }
}

/// Starts a forward on a thread of its own. It connects when it can, and goes on for ever.
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
    let config = config.clone();
    let thread = std::thread::Builder::new().name("forward".to_owned()).spawn(move || {
        let ran = run_alone(config.require_io_uring, |_| async {
            let listener = match forward::adopt(listener) {
                Ok(listener) => listener,
                Err(failure) => return drop(started.send(Err(failure))),
            };
            let _ = started.send(Ok(()));
            let opener = Opener::new(Routes::new(&config, gateways));
            let forwarder = Forwarder::new(Shared::new(plan, opener, stopped));
            forwarder.accept(listener, renewal).await;
            forwarder.wind_up().await;
        });
        if let Err(e) = ran {
            let _ = started.send(Err(e.into()));
        }
    });
    let thread = thread.map_err(|e| Failure::new(Exit::Internal, e))?;
    match starting.recv() {
        Ok(Ok(())) => Ok(Forward { local_addr, stop, thread }),
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
    run_alone(config.require_io_uring, |_| async move { list::ask(&routes).await })?
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
