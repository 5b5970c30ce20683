//! Role: the file in the state directory that says which process the gateway is.
//! Invariants: no gateway needs it to serve; `upgrade` finds the gateway by it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use narrowlink_dataplane::run::replace::Held;

/// The file's name in the state directory.
pub(crate) const FILE: &str = "gateway.pid";
const MODE: u32 = 0o644;

/// Says which process is the gateway of a state directory, until dropped.
pub struct PidFile(Option<PathBuf>);

impl PidFile {
    /// This one is; a place that can't be written is said, and no reason not to serve.
    pub fn claim(state_dir: Option<&Path>) -> Self {
        let file = Self(state_dir.map(|dir| dir.join(FILE)));
        file.renew();
        file
    }

    /// This one still is: who waits for another hears so.
    pub fn renew(&self) {
        let Some(path) = &self.0 else { return };
        let text = format!("{}\n", std::process::id());
        if let Err(e) = Held::wait_for(path).and_then(|held| held.replace(&text, MODE)) {
            tracing::warn!("{}: {e}; `narrowlink-gateway upgrade` needs --pid", path.display());
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Unless another one goes on.
        if let Some(path) = &self.0
            && read(path).is_ok_and(|pid| pid == std::process::id())
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// The process that it names.
///
/// # Errors
/// It is not there, or names none.
pub(crate) fn read(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it names no process"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_this_process_until_it_ends_or_another_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let file = PidFile::claim(Some(dir.path()));
        assert_eq!(read(&path).unwrap(), std::process::id());
        drop(file);
        assert!(!path.exists());
        let file = PidFile::claim(Some(dir.path()));
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert_eq!(read(&path).unwrap(), 1);
        drop(PidFile::claim(None));
    }
}
