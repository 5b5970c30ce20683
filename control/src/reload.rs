//! Role: has a running gateway follow its files: on SIGHUP, or when one of them has changed.
//! Invariants: a file that is still being written is not read: it must look the same twice · what can't be taken
//! changes nothing and is said once · nothing of this runs on a worker.
//! See: docs/configuration.md "Reload".

use std::path::{Path, PathBuf};

use narrowlink_dataplane::run::file::Stamp;

use crate::{
    config::{Config, Remark},
    gateway::{Changes, Gateway},
};

/// Watches the files of a configuration and applies what they say.
pub struct Reloader {
    path: PathBuf,
    /// As they were when they were last read.
    known: Vec<(PathBuf, Option<Stamp>)>,
    /// The list of revoked tokens, once it has been there: without it, they would be taken again.
    list: Option<PathBuf>,
    /// As they were seen to be different.
    seen: Option<Vec<(PathBuf, Option<Stamp>)>>,
}

impl Reloader {
    /// A reloader of `path`, whose present contents are `config`.
    pub fn new(path: &Path, config: &Config) -> Self {
        let list = config.revocations_path.clone().filter(|path| path.exists());
        Self { path: path.to_owned(), known: stamps(config.files.clone()), list, seen: None }
    }

    /// Whether a file has changed, and has stopped changing. To be asked every now and then.
    pub fn handle_tick(&mut self) -> bool {
        let now = stamps(self.known.iter().map(|(path, _)| path.clone()));
        if now == self.known {
            self.seen = None;
            return false;
        }
        let settled = self.seen.as_ref() == Some(&now);
        self.seen = Some(now);
        settled
    }

    /// Reads the files and applies them; what can't be taken is said, here and as an error, and the old one stays.
    ///
    /// # Errors
    /// The operator's: what can't be taken, in words.
    pub fn reload(&mut self, gateway: &Gateway) -> Result<Changes, String> {
        // Looked at before they are read: a later change is noticed then.
        let before = stamps(self.known.iter().map(|(path, _)| path.clone()));
        self.seen = None;
        match self.apply(gateway) {
            Ok((changes, config)) => {
                let remarks = config.remarks;
                let changed = changed(&self.known, &before);
                let was = |path: &Path| before.iter().find(|(known, _)| known == path).map(|known| known.1);
                let known = config.files.into_iter().map(|path| {
                    let stamp = was(&path).unwrap_or_else(|| Stamp::of(&path));
                    (path, stamp)
                });
                self.known = known.collect();
                self.list = config.revocations_path.filter(|path| path.exists());
                remarks.iter().for_each(Remark::say);
                say(&self.path, &changed, &changes);
                Ok(changes)
            }
            Err(why) => {
                self.known = before;
                let why = format!("the configuration was not taken, the old one stays: {why}");
                tracing::error!("{why}");
                Err(why)
            }
        }
    }

    fn apply(&self, gateway: &Gateway) -> Result<(Changes, Config), String> {
        let config = Config::load_again(&self.path).map_err(|e| e.to_string())?;
        if let Some(list) = &self.list
            && config.revocations_path.as_ref() == Some(list)
            && !list.exists()
        {
            let list = list.display();
            return Err(format!(
                "{list}: gone, and with it what it revokes: write [] there to revoke nothing"
            ));
        }
        let changes = gateway.reload(&config).map_err(|e| e.located(&config.places))?;
        Ok((changes, config))
    }
}

/// The files that are not as they were.
fn changed(known: &[(PathBuf, Option<Stamp>)], now: &[(PathBuf, Option<Stamp>)]) -> Vec<String> {
    let differ = known.iter().zip(now).filter(|(known, now)| known != now);
    differ.map(|((path, _), _)| path.display().to_string()).collect()
}

fn say(path: &Path, changed: &[String], changes: &Changes) {
    let list =
        |addrs: &[std::net::SocketAddr]| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let addresses = [("opened", &changes.opened), ("closed", &changes.closed)];
    let addresses = addresses.into_iter().filter(|(_, addrs)| !addrs.is_empty());
    let words: String = addresses.map(|(what, addrs)| format!("; {what} {}", list(addrs))).collect();
    let changed = if changed.is_empty() {
        "nothing has changed".to_owned()
    } else {
        format!("changed: {}", changed.join(", "))
    };
    tracing::info!("{}: taken; {changed}{words}", path.display());
    for key in &changes.after_restart {
        tracing::warn!("{}: {key} has changed: that needs a restart", path.display());
    }
}

fn stamps(paths: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, Option<Stamp>)> {
    let stamped = paths.into_iter().map(|path| {
        let stamp = Stamp::of(&path);
        (path, stamp)
    });
    stamped.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_change_counts_once_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.yaml");
        fs::write(&path, "a").unwrap();
        let files = vec![path.clone(), dir.path().join("not-there")];
        let mut reloader = Reloader { path: path.clone(), known: stamps(files), list: None, seen: None };
        assert!(!reloader.handle_tick());
        fs::write(&path, "ab").unwrap();
        assert!(!reloader.handle_tick(), "it may still be written");
        fs::write(&path, "abc").unwrap();
        assert!(!reloader.handle_tick(), "it was");
        assert!(reloader.handle_tick());
        fs::write(dir.path().join("not-there"), "").unwrap();
        assert!(!reloader.handle_tick());
        assert!(reloader.handle_tick(), "a file that appears is a change");
        let now = stamps(reloader.known.iter().map(|(path, _)| path.clone()));
        assert_eq!(changed(&reloader.known, &now).len(), 2);
        assert_eq!(changed(&now, &now), Vec::<String>::new());
    }
}
