//! Role: what every program does to its own process before it starts.

use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit};

/// As many descriptors as the system allows (a session takes two, and the usual limit of 1,024 is
/// for programs that use select), and no core dumps: they would hold tokens and keys. Best effort:
/// what can't be had is logged.
pub fn prepare() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the descriptor limit stays as it is: {e}");
    }
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::debug!("core dumps stay possible: {e}");
    }
}
