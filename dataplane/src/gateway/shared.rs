//! Role: what all workers of a gateway share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use narrowlink_proto::limits::Limits;

use crate::gateway::{
    claims::Claims, directory::Directory, door::Door, mailbox::Mailboxes, routes::Routes,
    shares::Descriptors, sources::Sources,
};

/// What all workers share.
pub struct Shared {
    /// The operator.
    pub door: Arc<dyn Door>,
    /// The agents.
    pub directory: Arc<Directory>,
    /// What is published through them.
    pub routes: Routes,
    /// Ids that were used.
    pub claims: Arc<Claims>,
    /// Where strangers come from.
    pub sources: Sources,
    /// What is said to workers.
    pub mailboxes: Mailboxes,
    /// How heavy the heaviest strangers of each worker are.
    heaviest: Vec<AtomicUsize>,
    limits: ArcSwap<Limits>,
    is_succeeded: AtomicBool,
    /// Agents of the gateway before this one come over until then.
    agents_come_until: ArcSwap<Instant>,
}

impl Shared {
    /// The shared state of `workers` workers.
    pub fn new(door: Arc<dyn Door>, directory: Arc<Directory>, limits: Limits, workers: usize) -> Self {
        let limits = ArcSwap::from_pointee(limits);
        let strangers_max = Descriptors::of_this_process().strangers_max();
        let sources = Sources::new(strangers_max, Instant::now());
        Self {
            door,
            directory,
            routes: Routes::default(),
            claims: Arc::default(),
            sources,
            heaviest: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            limits,
            is_succeeded: AtomicBool::new(false),
            agents_come_until: ArcSwap::from_pointee(Instant::now()),
            mailboxes: Mailboxes::new(workers),
        }
    }

    /// Deadlines and bounds, as they are now.
    pub fn limits(&self) -> Guard<Arc<Limits>> {
        self.limits.load()
    }

    /// From now on these hold, for what begins from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    /// Another process has the listening sockets as well: connections that wait in them are left to it.
    pub fn set_succeeded(&self) {
        self.is_succeeded.store(true, Ordering::Relaxed);
    }

    /// Whether another process has the listening sockets as well.
    pub(crate) fn is_succeeded(&self) -> bool {
        self.is_succeeded.load(Ordering::Relaxed)
    }

    /// Agents of the gateway before this one come over within this time.
    pub fn await_agents(&self, time: Duration) {
        self.agents_come_until.store(Arc::new(Instant::now() + time));
    }

    /// When all of them have had their time.
    pub(crate) fn agents_come_until(&self) -> Instant {
        **self.agents_come_until.load()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.mailboxes.count()
    }

    /// A worker's strangers have changed: the heaviest of them weigh so much (see `strangers`).
    pub(crate) fn weigh(&self, worker: usize, heaviest: usize) {
        self.heaviest[worker].store(heaviest, Ordering::Relaxed);
    }

    /// The worker with the heaviest strangers, if they are heavier than this.
    pub(crate) fn heavier_than(&self, here: usize) -> Option<usize> {
        let weights = self.heaviest.iter().map(|one| one.load(Ordering::Relaxed)).enumerate();
        let heavier = weights.filter(|(_, weight)| *weight > here).max_by_key(|(_, weight)| *weight);
        heavier.map(|(worker, _)| worker)
    }

    /// Forgets ids and sources that count no more. To be called once a second, on no worker.
    pub fn sweep(&self, now: Instant) {
        self.claims.sweep(now);
        self.sources.sweep(now);
    }
}
