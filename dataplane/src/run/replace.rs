//! Role: a file of the operator's that a command changes while a gateway, or another command, may read it.
//! Invariants: whoever reads it sees the old text or the new one, whole, after a crash as well · commands that change files
//! of one directory do so one after the other · who can read the old file can read the new one.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Whoever changes a file is done in milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_TICK: Duration = Duration::from_millis(5);

/// The right to change the files of a directory, until dropped.
#[derive(Debug)]
pub struct Held {
    dir: File,
    /// The file that is to be changed; where a link leads, if it is one.
    path: PathBuf,
}

impl Held {
    /// Waits until no other command changes a file beside `path`, but not for long: a gateway that runs calls this, too.
    ///
    /// # Errors
    /// The system's, or another one holds on to it.
    pub fn wait_for(path: &Path) -> io::Result<Self> {
        // A link stays one: what it leads to is replaced.
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let dir = real.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The directory is locked, not the file: that is another one after each change.
        let (place, mut dir) = (dir, File::open(dir)?);
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match dir.try_lock() {
                Ok(()) if is_at(&dir, place)? => return Ok(Self { dir, path: real }),
                // It was taken away while this one waited.
                Ok(()) => dir = File::open(place)?,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_TICK),
                Err(TryLockError::WouldBlock) => {
                    let words = "another program holds a lock on this directory: end it, and try again";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, words));
                }
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    /// Where it really is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts `text` in the place of what the file says; a new one has this mode.
    ///
    /// # Errors
    /// The system's: the old text stands then.
    pub fn replace(&self, text: &str, mode: u32) -> io::Result<()> {
        let mut tmp = self.path.as_os_str().to_owned();
        tmp.push(format!(".{}", std::process::id()));
        let tmp = PathBuf::from(tmp);
        // One of a process of this number that was killed.
        let _ = fs::remove_file(&tmp);
        let written = write_like(&self.path, &tmp, (text, mode)).and_then(|()| fs::rename(&tmp, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&tmp);
        }
        written.and_then(|()| self.dir.sync_all())
    }
}

/// Whether this directory is the one at `place`.
fn is_at(dir: &File, place: &Path) -> io::Result<bool> {
    let (held, there) = (dir.metadata()?, fs::metadata(place)?);
    Ok((held.dev(), held.ino()) == (there.dev(), there.ino()))
}

/// Writes a new file that whoever can read `path` can read, too.
fn write_like(path: &Path, tmp: &Path, (text, mode): (&str, u32)) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode & 0o600).open(tmp)?;
    file.write_all(text.as_bytes())?;
    let mode = match fs::metadata(path) {
        Ok(old) => {
            let new = file.metadata()?;
            let same_owner = (old.uid(), old.gid()) == (new.uid(), new.gid());
            // What its program can't read any more says nothing to it.
            if !same_owner && old.mode() & 0o004 == 0 {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
            old.mode() & 0o777
        }
        Err(_) => mode,
    };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Writes a file that isn't there, with this mode.
///
/// # Errors
/// The system's; it is there already.
pub fn create(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half of it would be in the way of another try.
        let _ = fs::remove_file(path);
    }
    written
}
