//! Role: the file that tells others that a program is ready.
//! Invariants: it appears whole or not at all · one from an earlier run is gone before this one begins · the program
//! waits for no disk and no reader: a thread of its own writes, and tries again until it has.
//! See: the `--ready-file` of gateway and agent.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How long a file that can't be written is left alone.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// A file that is to say that this program is ready.
#[derive(Debug)]
pub struct ReadyFile {
    path: PathBuf,
    /// A pipe, a device: written to, never replaced.
    is_special: bool,
}

impl ReadyFile {
    /// Takes the place: what an earlier run left there is removed.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn claim(path: &Path) -> io::Result<Self> {
        let is_special = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) if metadata.is_file() => {
                fs::remove_file(path)?;
                false
            }
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        let claimed = Self { path: path.to_owned(), is_special };
        if !is_special {
            File::create(claimed.draft())?;
            fs::remove_file(claimed.draft())?;
        }
        Ok(claimed)
    }

    /// Has `words` be written there, without waiting for it.
    pub fn announce(self, words: Vec<u8>) {
        let path = self.path.clone();
        let started = thread::Builder::new().name("ready-file".to_owned()).spawn(move || {
            let mut said = false;
            while let Err(e) = self.write(&words) {
                if !std::mem::replace(&mut said, true) {
                    let path = self.path.display();
                    tracing::error!("the ready file {path} can't be written: {e}; trying again every second");
                }
                thread::sleep(RETRY_EVERY);
            }
        });
        if let Err(e) = started {
            tracing::error!(
                "the ready file {} can't be written: there is no thread for it: {e}",
                path.display()
            );
        }
    }

    fn write(&self, words: &[u8]) -> io::Result<()> {
        if self.is_special {
            return OpenOptions::new().write(true).open(&self.path)?.write_all(words);
        }
        let draft = self.draft();
        let written = fs::write(&draft, words).and_then(|()| fs::rename(&draft, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }

    /// Beside it, so that it can be renamed.
    fn draft(&self) -> PathBuf {
        let mut draft = self.path.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        draft.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::{os::unix::fs::FileTypeExt as _, time::Instant};

    fn wait_for(path: &Path) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(text) = fs::read_to_string(path) {
                return text;
            }
            assert!(Instant::now() < deadline, "{} did not appear", path.display());
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn an_old_one_goes_and_the_new_one_appears_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        fs::write(&path, "old").unwrap();
        let ready = ReadyFile::claim(&path).unwrap();
        assert!(!path.exists());
        ready.announce(b"{}\n".to_vec());
        assert_eq!(wait_for(&path), "{}\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_where_no_file_can_be_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ReadyFile::claim(dir.path()).is_err());
        assert!(ReadyFile::claim(&dir.path().join("no/such/directory")).is_err());
    }

    #[test]
    fn it_is_tried_again_until_it_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later/ready");
        fs::create_dir(dir.path().join("later")).unwrap();
        let ready = ReadyFile::claim(&path).unwrap();
        fs::remove_dir(dir.path().join("later")).unwrap();
        ready.announce(b"{}".to_vec());
        fs::create_dir(dir.path().join("later")).unwrap();
        assert_eq!(wait_for(&path), "{}");
    }

    #[test]
    fn a_pipe_without_a_reader_keeps_nobody_waiting_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let ready = ReadyFile::claim(&path).unwrap();
        ready.announce(b"{}".to_vec());
        assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
        assert_eq!(wait_for(&path), "{}");
    }
}
