//! Role: what every program does to its own process: before it starts, and when it says why it ends.

use std::error::Error;

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

/// An error and its causes in one line; a cause that the words before it contain already is not
/// said again.
pub fn explain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
        cause = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn a_cause_is_said_once() {
        let inner = || Some(Box::new(Said("no such file", None)));
        assert_eq!(explain(&Said("a.yaml", inner())), "a.yaml: no such file");
        assert_eq!(explain(&Said("a.yaml: no such file", inner())), "a.yaml: no such file");
    }
}
