//! Role: the layer in front of the log's formatter: a line that is left out is never formatted.
//! Invariants: a call site knows nothing of it · what is said about lines left out is itself never left out.
//! See: `limit`, which decides.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{Layer, layer::Context};

use super::{
    limit::{Limit, Omission, Verdict},
    source::{Source, words},
};
use crate::run::lock::lock;

/// What the log says about itself has this target.
pub(super) const TARGET: &str = "narrowlink::log";

/// Asks the limit about each event.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<Limit>>);

impl Gate {
    fn limit(&self) -> MutexGuard<'_, Limit> {
        lock(&self.0)
    }

    /// What was left out in the last second, as events.
    pub(super) fn omissions(&self, now: Instant) -> Vec<Omission> {
        self.limit().handle_tick(now)
    }
}

impl<S: Subscriber> Layer<S> for Gate {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() == TARGET {
            return true;
        }
        // Values format themselves here: not while the limit is held, for one of them might log.
        let (kind, source) = (metadata.callsite(), Source::of(event));
        let verdict = self.limit().admit(kind.clone(), *metadata.level(), source, Instant::now());
        if verdict == Verdict::FirstLeftOut {
            let words = words(event);
            self.limit().liken(&kind, &source, words);
        }
        verdict == Verdict::Written
    }
}

impl Omission {
    /// Logs it, at the level of the lines it is about.
    pub(super) fn say(&self) {
        let Self { level, source, lines, like } = self;
        let from = source.map_or_else(|| " from other sources".to_owned(), |source| source.to_string());
        match *level {
            Level::ERROR => tracing::error!(target: TARGET, "{lines} more like this{from}: {like}"),
            Level::WARN => tracing::warn!(target: TARGET, "{lines} more like this{from}: {like}"),
            _ => tracing::info!(target: TARGET, "{lines} more like this{from}: {like}"),
        }
    }
}
