//! The Narrowlink agent: holds links to gateways and dials targets on behalf of their clients.
//!
//! [`start`] runs one on threads of its own. Each gateway has its `link`, on the first of them; a link has its `lanes`, as
//! many as their demand says, spread among the threads (`crew`); a lane that is dialled is `serve`d, within this agent's
//! [`rules`].
// They panic where they can't write; a running program writes to nothing that may stall. See `dataplane::run::log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod args;
pub mod check;
pub mod config;
pub mod expiry;
#[cfg(test)]
mod fixture;
pub mod identity;
mod lanes;
mod link;
mod ready;
pub mod rules;
mod serve;

use std::{
    future::Future,
    num::NonZeroUsize,
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_lite::future;
use narrowlink_dataplane::{
    peer::Gateway,
    run::{
        bell::{Gate, Opener, Tasks},
        crew::Crew,
        descriptors,
        lock::lock,
        timer::sleep,
        worker::{self, Driver, Main, Options, Workers, spawn},
    },
};
use narrowlink_proto::endpoint::SelfHosted;

use crate::{
    config::{Config, ConfigError},
    identity::Identity,
    ready::Ready,
};

/// Sessions that were cut off are given so long to reset their connections.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// One worker a core, unless the configuration says how many, but no more than these: that carries more than the way to a
/// gateway does.
const WORKERS_BY_DEFAULT_MAX: usize = 4;

/// Descriptors for a link that is made anew while sessions have all others: its own, and those of a look-up; and one
/// for a token's file.
const KEPT_FREE: usize = 5;

/// What all of an agent's tasks share.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) crew: Arc<Crew<()>>,
    pub(crate) identity: Option<Identity>,
    pub(crate) ready: Arc<Ready>,
    /// Opens when the agent is told to stop.
    pub(crate) stop: Gate,
    /// Opens when sessions have had the time they were given.
    pub(crate) cut: Gate,
    pub(crate) tasks: Arc<Tasks>,
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What its configuration names can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No event queue, or no thread.
    #[error(transparent)]
    Runtime(#[from] worker::StartError),
}

/// A running agent. Dropping it tells it to stop.
pub struct Agent {
    ready: Arc<Ready>,
    stopper: Stopper,
    workers: Workers,
}

/// Tells an agent to stop; for whoever hears the signals.
#[derive(Clone)]
pub struct Stopper(Arc<Mutex<Option<Opener>>>);

impl Stopper {
    /// Takes no more dials; sessions may finish for the time that the configuration says.
    pub fn stop(&self) {
        lock(&self.0).take();
    }
}

/// Starts an agent on threads of its own. It connects when it can, and goes on for ever.
///
/// # Errors
/// See [`StartError`]. That no gateway can be reached is none.
pub fn start(config: Config) -> Result<Agent, StartError> {
    start_with(config, None)
}

/// As [`start`]; `ready_file` is written when the first gateway has welcomed the agent.
///
/// # Errors
/// As there.
pub fn start_with(config: Config, ready_file: Option<PathBuf>) -> Result<Agent, StartError> {
    let gateways = config.gateways()?;
    let ready = Arc::new(Ready::new(ready_file.as_deref()));
    let (opener, stop) = Gate::new();
    let stopper = Stopper(Arc::new(Mutex::new(Some(opener))));
    let options = Options {
        count: config.workers.map_or_else(workers_by_default, NonZeroUsize::get),
        pin: false,
        require_io_uring: config.require_io_uring,
    };
    let (crew, inboxes) = Crew::new(options.count);
    let first = Mutex::new(Some((config, gateways, crew, ready.clone(), stop)));
    let main: Main = Arc::new(move |index| {
        let tasks = inboxes[index].clone().run(Rc::new(()));
        let first = lock(&first).take_if(|_| index == 0);
        let main: Pin<Box<dyn Future<Output = ()>>> = match first {
            Some((config, gateways, crew, ready, stop)) => Box::pin(async move {
                spawn(tasks);
                run(config, gateways, crew, ready, stop).await;
            }),
            None => Box::pin(tasks),
        };
        main
    });
    let workers = Workers::start("agent", &options, &main)?;
    Ok(Agent { ready, stopper, workers })
}

fn workers_by_default() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(WORKERS_BY_DEFAULT_MAX)
}

impl Agent {
    /// The gateway that welcomed the agent first; `None` when none has within `patience`.
    pub fn wait_ready(&self, patience: Duration) -> Option<String> {
        self.ready.wait(patience)
    }

    /// What the agent waits for events with.
    pub fn driver(&self) -> Driver {
        self.workers.driver
    }

    /// How long the slowest worker has not shown that it makes progress; each does once a second.
    pub fn longest_silence(&self) -> Duration {
        self.workers.longest_silence()
    }

    /// Whether it has come to its end.
    pub fn is_finished(&self) -> bool {
        self.workers.finished()
    }

    /// How many workers it has.
    pub fn workers(&self) -> usize {
        self.workers.count()
    }

    /// What tells it to stop.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Stops it, and waits until it has.
    pub fn stop(self) {
        self.stopper.stop();
        self.workers.join();
    }

    /// Waits until it has been stopped; whether it came to its end in good order.
    pub fn join(self) -> bool {
        self.workers.join()
    }
}

async fn run(config: Config, gateways: Vec<Gateway>, crew: Arc<Crew<()>>, ready: Arc<Ready>, stop: Gate) {
    descriptors::keep_free(KEPT_FREE);
    let drain = config.drain;
    let endpoints: Vec<SelfHosted> = config.endpoints.clone();
    let (cut_off, cut) = Gate::new();
    let identity = Identity::obtain(config.state_place(|name| std::env::var_os(name)));
    let (config, tasks) = (Arc::new(config), Arc::new(Tasks::default()));
    let shared = Arc::new(Shared { config, crew, identity, ready, stop, cut, tasks });
    for (endpoint, gateway) in endpoints.into_iter().zip(gateways) {
        let (shared, running) = (shared.clone(), shared.tasks.begin());
        spawn(async move {
            link::hold(shared, endpoint, Arc::new(gateway)).await;
            drop(running);
        });
    }
    spawn(expiry::watch(shared.clone()));
    shared.stop.wait().await;
    future::or(shared.tasks.done(), sleep(drain)).await;
    drop(cut_off);
    future::or(shared.tasks.done(), sleep(CUT_TIMEOUT)).await;
    shared.crew.dismiss();
}
