//! Role: opens what the configuration names: files read as a whole, at a start or again while the program runs; and files
//! that lines are appended to. What tells whether a file has changed.
//! Invariants: reading again never waits for another program: a pipe, device or socket is refused · no file is read
//! beyond its bound · opening a pipe to append to it never waits for its reader.
//! See: open(2) `O_NONBLOCK`; fifo(7). A network mount that hangs still keeps its reader waiting: agents and
//! forwards read on a thread of its own ([`aside`](crate::run::aside)).

use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, io::Errno};

/// The directory of a service's credentials: what `LoadCredential=` in its unit names. See systemd.exec(5).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// When a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At the start of a program: it may be a pipe (`-c <(command)`, `/dev/stdin`). To wait for its writer is what the user
    /// wants, and a signal still ends the program.
    First,
    /// While the program runs, or of a file that is kept by programs: regular files only.
    Again,
}

/// A file that was read.
#[derive(Debug)]
pub struct Contents {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// What changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Of its contents: seconds since 1970, and nanoseconds.
    modified_at: (i64, i64),
    /// Of its inode, in the same units; also when it was renamed or its permissions were changed.
    changed_at: (i64, i64),
}

impl Stamp {
    /// A file's as it is now, that of what a link leads to; `None` for one that can't be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.size(),
            modified_at: (file.mtime(), file.mtime_nsec()),
            changed_at: (file.ctime(), file.ctime_nsec()),
        })
    }
}

/// Reads a file of no more than `bytes_max`. What this process may not read is taken from its credentials, if its service
/// manager gave it one of the file's name.
///
/// # Errors
/// The system's; the file is longer; or it is none that may be read now, and the words say what to do.
pub fn read(path: &Path, reading: Reading, bytes_max: u64) -> io::Result<Contents> {
    let file = match open(path, reading) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let dir = std::env::var_os(CREDENTIALS).map(PathBuf::from);
            credential(dir.as_deref(), path).map_or(Err(e), |credential| open(&credential, reading))?
        }
        opened => opened?,
    };
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {bytes_max} bytes")));
    }
    Ok(Contents { bytes, mode })
}

fn open(path: &Path, reading: Reading) -> io::Result<File> {
    match reading {
        Reading::First => File::open(path),
        Reading::Again => open_regular(path),
    }
}

/// Where the service manager has put what this file says, if it has.
fn credential(dir: Option<&Path>, path: &Path) -> Option<PathBuf> {
    let credential = dir?.join(path.file_name()?);
    credential.exists().then_some(credential)
}

/// As [`read`], of text.
///
/// # Errors
/// As there; or it is not UTF-8.
pub fn read_text(path: &Path, reading: Reading, bytes_max: u64) -> io::Result<String> {
    let text = String::from_utf8(read(path, reading, bytes_max)?.bytes);
    text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

/// Opens a file to append to it, which is made, for its owner alone, if it isn't there. `None`: a pipe that nobody reads now.
/// What it opens never blocks: a pipe that is full says so.
///
/// # Errors
/// The system's.
pub fn open_to_append(path: &Path) -> io::Result<Option<File>> {
    let opened =
        OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(not_waiting()).open(path);
    match opened {
        Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) && is_pipe(path) => Ok(None),
        opened => opened.map(Some),
    }
}

fn is_pipe(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo())
}

fn not_waiting() -> i32 {
    (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed()
}

/// Opens a regular file, and waits for nothing else that may stand in its place.
///
/// # Errors
/// The system's; or it is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Looked at before it is opened: that alone would end whoever waits to write into a pipe.
    require_regular(fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new().read(true).custom_flags(not_waiting()).open(path)?;
    // It may have been replaced in between.
    require_regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Whether a file could be made in `dir`; of one that is not there yet, in what it would be made in. Nothing is left
/// behind.
///
/// # Errors
/// The system's: why it could not.
pub fn probe_directory(dir: &Path) -> io::Result<()> {
    let is_there = |dir: &&Path| dir.as_os_str().is_empty() || fs::symlink_metadata(dir).is_ok();
    let there = dir.ancestors().find(is_there).filter(|dir| !dir.as_os_str().is_empty());
    let probe = there.unwrap_or(Path::new(".")).join(format!(".narrowlink-{}", std::process::id()));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe)?;
    fs::remove_file(&probe)
}

fn require_regular(file: FileType) -> io::Result<()> {
    let kind = match file {
        file if file.is_file() => return Ok(()),
        file if file.is_dir() => "directory",
        file if file.is_fifo() => "pipe",
        file if file.is_socket() => "socket",
        _ => "device",
    };
    let words = format!("it is a {kind}; a program that runs reads regular files only: put one there");
    Err(io::Error::new(io::ErrorKind::InvalidInput, words))
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixListener, thread};

    use rustix::fs::{CWD, Mode, mknodat};

    use super::*;

    fn pipe(path: &Path) {
        mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    #[test]
    fn what_could_keep_a_running_program_waiting_is_refused_at_once_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, socket) = (dir.path().join("fifo"), dir.path().join("socket"));
        pipe(&fifo);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        let cases = [
            (fifo.as_path(), "a pipe;"),
            (&link, "a pipe;"),
            (&socket, "a socket;"),
            (dir.path(), "a directory;"),
            (Path::new("/dev/zero"), "a device;"),
        ];
        for (path, is) in cases {
            let error = read(path, Reading::Again, 9).unwrap_err().to_string();
            assert!(error.contains(is) && error.contains("regular files only: put one there"), "{error}");
        }
    }

    #[test]
    fn a_credential_has_the_name_of_the_file_that_it_stands_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("agent.token"), "words").unwrap();
        let of = |dir, path: &str| credential(dir, Path::new(path));
        let found = of(Some(dir.path()), "/etc/narrowlink/agent.token");
        assert_eq!(found, Some(dir.path().join("agent.token")));
        for (dir, path) in [(None, "agent.token"), (Some(dir.path()), "other"), (Some(dir.path()), "/")] {
            assert_eq!(of(dir, path), None, "{path}");
        }
    }

    #[test]
    fn a_pipe_is_read_at_a_start_and_refused_later_even_with_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        pipe(&path);
        let writer = path.clone();
        let writer = thread::spawn(move || fs::write(writer, "words").unwrap());
        assert_eq!(read_text(&path, Reading::First, 9).unwrap(), "words");
        writer.join().unwrap();
        let _held = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(read_text(&path, Reading::Again, 9).is_err());
    }

    #[test]
    fn a_pipe_to_append_to_is_opened_as_soon_as_it_has_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        pipe(&path);
        assert!(open_to_append(&path).unwrap().is_none());
        let mut reader = OpenOptions::new().read(true).custom_flags(not_waiting()).open(&path).unwrap();
        let mut writer = open_to_append(&path).unwrap().unwrap();
        writer.write_all(b"line\n").unwrap();
        let mut line = [0; 5];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"line\n");
        let full = vec![0; 1 << 20];
        assert_eq!(writer.write_all(&full).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_stamp_changes_with_the_contents_the_file_and_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        assert_eq!(Stamp::of(&path), None);
        fs::write(&path, "one").unwrap();
        let first = Stamp::of(&path).unwrap();
        assert_eq!(Stamp::of(&path), Some(first));
        fs::write(&path, "longer").unwrap();
        let written = Stamp::of(&path).unwrap();
        assert_ne!(written, first);
        fs::write(&other, "rename").unwrap();
        fs::rename(&other, &path).unwrap();
        let replaced = Stamp::of(&path).unwrap();
        assert_ne!(replaced.inode, written.inode);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Stamp::of(&link), Some(replaced), "a link has that of its file");
    }

    #[test]
    fn a_file_is_read_to_its_bound_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for reading in [Reading::First, Reading::Again] {
            fs::write(&path, "123456789").unwrap();
            assert_eq!(read_text(&path, reading, 9).unwrap(), "123456789");
            let error = read(&path, reading, 8).unwrap_err();
            assert_eq!(error.to_string(), "longer than 8 bytes");
            assert_eq!(read(Path::new("/none"), reading, 8).unwrap_err().kind(), io::ErrorKind::NotFound);
            fs::write(&path, [0xff]).unwrap();
            assert_eq!(read_text(&path, reading, 8).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert!(read(Path::new("/dev/zero"), Reading::First, 8).is_err(), "it has no end");
    }
}
