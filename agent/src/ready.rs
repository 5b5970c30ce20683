//! Role: tells others that a first gateway has welcomed this agent.
//! Invariants: it is told once.

use std::{
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use narrowlink_dataplane::run::{lock::lock, ready_file::ReadyFile};

/// Whether, and by whom, the agent has been welcomed.
#[derive(Default)]
pub(crate) struct Ready {
    state: Mutex<State>,
    told: Condvar,
}

#[derive(Default)]
struct State {
    gateway: Option<String>,
    /// Still to be written.
    file: Option<ReadyFile>,
}

impl Ready {
    /// With a file to be written then. An agent serves without it, too.
    pub(crate) fn new(file: Option<&Path>) -> Self {
        let file = file.and_then(|path| match ReadyFile::claim(path) {
            Ok(file) => Some(file),
            Err(e) => {
                tracing::error!("the ready file {} can't be written: {e}", path.display());
                None
            }
        });
        Self { state: Mutex::new(State { gateway: None, file }), told: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A gateway has welcomed this agent; only the first one counts.
    pub(crate) fn tell(&self, gateway: &str) {
        let mut state = self.state();
        if state.gateway.is_some() {
            return;
        }
        state.gateway = Some(gateway.to_owned());
        self.told.notify_all();
        if let Some(file) = state.file.take() {
            file.announce(format!("{}\n", serde_json::json!({ "gateway": gateway })).into_bytes());
        }
    }

    /// The gateway that welcomed the agent first; `None` when none has within `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Option<String> {
        let waited = self.told.wait_timeout_while(self.state(), patience, |state| state.gateway.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.gateway.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Instant};

    use super::*;

    #[test]
    fn the_first_welcome_is_told_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        let ready = Ready::new(Some(&path));
        assert_eq!(ready.wait(Duration::ZERO), None);
        assert!(!path.exists());
        ready.tell("gw.example:443");
        ready.tell("other:443");
        assert_eq!(ready.wait(Duration::ZERO).as_deref(), Some("gw.example:443"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !path.exists() {
            assert!(Instant::now() < deadline, "it was not written");
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"gateway\":\"gw.example:443\"}\n");
    }

    #[test]
    fn who_waits_hears_the_first_welcome_at_once() {
        let ready = Ready::new(None);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| ready.wait(Duration::from_secs(30)));
            ready.tell("gw.example:443");
            assert_eq!(waiting.join().unwrap().as_deref(), Some("gw.example:443"));
        });
        ready.tell("other:443");
        assert_eq!(ready.wait(Duration::ZERO).as_deref(), Some("gw.example:443"), "once");
    }

    #[test]
    fn an_agent_whose_ready_file_can_not_be_written_is_ready_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for place in [dir.path().to_owned(), dir.path().join("no/such/directory")] {
            let ready = Ready::new(Some(&place));
            ready.tell("gw.example:443");
            assert_eq!(ready.wait(Duration::ZERO).as_deref(), Some("gw.example:443"));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
