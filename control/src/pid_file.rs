//! Role: the file in the state directory that says which process the gateway is.
//! Invariants: no gateway needs it to serve; `upgrade` finds the gateway by it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use narrowlink_dataplane::run::{
    file::{self, Reading},
    program::own_path,
    replace::Held,
};

/// The file's name in the state directory.
pub(crate) const FILE: &str = "gateway.pid";
const MODE: u32 = 0o644;
/// A number and a path.
const BYTES_MAX: u64 = 8192;

/// Says which process is the gateway of a state directory, until dropped.
pub struct PidFile {
    path: Option<PathBuf>,
    /// As it was called at the start: a program that was replaced is said to be deleted.
    program: PathBuf,
    /// Another gateway goes on: the file is that one's, whatever it says.
    is_anothers: AtomicBool,
}

impl PidFile {
    /// This one is; a place that can't be written is said, and no reason not to serve.
    pub fn claim(state_dir: Option<&Path>) -> Self {
        let path = state_dir.map(|dir| dir.join(FILE));
        let program = own_path().unwrap_or_default();
        let file = Self { path, program, is_anothers: AtomicBool::new(false) };
        file.renew();
        file
    }

    /// Another gateway goes on: the file is left to it.
    pub fn disown(&self) {
        self.is_anothers.store(true, Ordering::Relaxed);
    }

    /// This one still is: who waits for another hears so.
    pub fn renew(&self) {
        let Some(path) = &self.path else { return };
        let text = format!("{}\n{}\n", std::process::id(), self.program.display());
        if let Err(e) = Held::wait_for(path).and_then(|held| held.replace(&text, MODE)) {
            tracing::warn!("{}: {e}; `narrowlink-gateway upgrade` needs --pid", path.display());
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Unless another one goes on.
        if let Some(path) = &self.path
            && !self.is_anothers.load(Ordering::Relaxed)
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
    Ok(read_all(path)?.0)
}

/// The process that it names, and where that one's program lies.
///
/// # Errors
/// As there.
pub(crate) fn read_all(path: &Path) -> io::Result<(u32, PathBuf)> {
    let text = file::read_text(path, Reading::Again, BYTES_MAX)?;
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok());
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it names no process"))?;
    Ok((pid, lines.next().unwrap_or_default().into()))
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
