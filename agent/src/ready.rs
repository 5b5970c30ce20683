//! Role: tells whoever waits that a first gateway has welcomed this agent.
//! Invariants: the ready file appears whole or not at all, and once.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// Whether, and by whom, the agent has been welcomed.
#[derive(Default)]
pub(crate) struct Ready {
    gateway: Mutex<Option<String>>,
    told: Condvar,
    file: Option<PathBuf>,
}

impl Ready {
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { file, ..Self::default() }
    }

    /// A gateway has welcomed this agent; only the first one counts.
    pub(crate) fn tell(&self, gateway: &str) {
        let mut first = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_some() {
            return;
        }
        *first = Some(gateway.to_owned());
        self.told.notify_all();
        if let Some(path) = &self.file
            && let Err(e) = write(path, gateway)
        {
            tracing::error!("the ready file {} can't be written: {e}", path.display());
        }
    }

    /// The gateway that welcomed the agent first; `None` when none has within `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Option<String> {
        let first = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(first, patience, |first| first.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

fn write(path: &Path, gateway: &str) -> io::Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".new");
    fs::write(&tmp, format!("{}\n", serde_json::json!({ "gateway": gateway })))?;
    fs::rename(&tmp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_welcome_is_told_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        let ready = Ready::new(Some(path.clone()));
        assert_eq!(ready.wait(Duration::ZERO), None);
        assert!(!path.exists());
        ready.tell("gw.example:443");
        ready.tell("other:443");
        assert_eq!(ready.wait(Duration::ZERO).as_deref(), Some("gw.example:443"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"gateway\":\"gw.example:443\"}\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
