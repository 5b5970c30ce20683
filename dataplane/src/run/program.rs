//! Role: the file of a program: which one this process was begun by, and how another one gets into its place.
//! Invariants: a program is put into place as a whole: one that runs can't be written into ("Text file busy") · what does not say
//! that it is the program is not put anywhere.
//! See: `control::upgrade`, `service`.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf, absolute},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

const EXECUTABLE: u32 = 0o755;
const TICK: Duration = Duration::from_millis(20);
/// How long a program may take to say its version.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);

/// As it was at the start: by now a link may lead elsewhere, and a program that was replaced is said to be deleted.
static OWN: OnceLock<Option<PathBuf>> = OnceLock::new();

/// The path by which this process was begun. A link stays one, so that whoever begins this program again has what the link
/// leads to by then. First asked at the start, by [`prepare`](super::process::prepare).
///
/// # Errors
/// The system does not say what program this is.
pub fn own_path() -> io::Result<PathBuf> {
    let find = || {
        let real = env::current_exe().ok()?;
        Some(called(env::args_os().next(), env::var_os("PATH"), &real).unwrap_or(real))
    };
    let own = OWN.get_or_init(find).clone();
    own.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the system does not say what program this is"))
}

/// What the program `real` was called as, if that leads there.
fn called(word: Option<OsString>, path: Option<OsString>, real: &Path) -> Option<PathBuf> {
    let word = PathBuf::from(word?);
    let is_bare = word.components().count() == 1 && !word.has_root();
    let places = match is_bare {
        true => env::split_paths(&path?).map(|dir| dir.join(&word)).collect(),
        false => vec![word],
    };
    let leads_there = |place: &PathBuf| fs::canonicalize(place).is_ok_and(|place| place == real);
    places.iter().filter_map(|place| absolute(place).ok()).find(leads_there)
}

/// A program that was put into its place.
#[derive(Debug)]
pub struct Placed {
    place: PathBuf,
    /// Where the one before lies now, if there was one.
    old: Option<PathBuf>,
}

impl Placed {
    /// The one before lies in its place again.
    pub fn undo(self) {
        let _ = match &self.old {
            Some(old) => fs::rename(old, &self.place),
            None => fs::remove_file(&self.place),
        };
    }

    /// The one before is not needed any more.
    pub fn keep(self) {
        if let Some(old) = self.old {
            let _ = fs::remove_file(old);
        }
    }
}

/// Puts the file `program` into `place`, if it says that it is the program `name`. What lies in `place` is replaced, be it a link.
///
/// # Errors
/// It is something else, or the system's: nothing was changed.
pub fn put(program: &Path, place: &Path, name: &str) -> io::Result<Placed> {
    let beside = |end: &str| {
        let mut path = place.as_os_str().to_owned();
        path.push(end);
        PathBuf::from(path)
    };
    let (new, old) = (beside(".new"), beside(".old"));
    let mut from = File::open(program)?;
    // What lies there may be a link of somebody else's.
    let _ = fs::remove_file(&new);
    let done = (|| {
        let mut into = File::options().write(true).create_new(true).mode(EXECUTABLE).open(&new)?;
        io::copy(&mut from, &mut into)?;
        into.set_permissions(fs::Permissions::from_mode(EXECUTABLE))?;
        into.sync_all()?;
        drop(into);
        prove(&new, name)?;
        let _ = fs::remove_file(&old);
        let had = match fs::hard_link(place, &old) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            linked => linked.map(|()| true)?,
        };
        fs::rename(&new, place)?;
        Ok(had)
    })();
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done.map(|had| Placed { place: place.to_owned(), old: had.then_some(old) })
}

/// Whether this is that program.
fn prove(program: &Path, name: &str) -> io::Result<()> {
    let deadline = Instant::now() + PROOF_PATIENCE;
    let mut child = loop {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        match command.spawn() {
            // Another process of ours was begun while it was written, and has it open for a moment.
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                thread::sleep(TICK);
            }
            begun => break begun?,
        }
    };
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        thread::sleep(TICK);
    }
    let _ = child.kill();
    let said = child.wait_with_output()?.stdout;
    let is_ours = said.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b" "));
    let words = format!("it is no {name}; nothing was changed");
    if is_ours { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, words)) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const NAME: &str = "narrowlink-gateway";

    #[test]
    fn a_program_is_put_into_place_as_a_whole_and_only_if_it_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let (new, place) = (dir.path().join("new"), dir.path().join(NAME));
        fs::write(&place, "old").unwrap();
        for text in ["garbage", "#!/bin/sh\nexit 0\n", "#!/bin/sh\necho narrowlink-gateways\n"] {
            fs::write(&new, text).unwrap();
            put(&new, &place, NAME).unwrap_err();
            assert_eq!(fs::read_to_string(&place).unwrap(), "old");
        }
        let gone = put(&dir.path().join("none"), &place, NAME).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let good = "#!/bin/sh\necho narrowlink-gateway 1.0\n";
        fs::write(&new, good).unwrap();
        let open = File::open(&place).unwrap();
        put(&new, &place, NAME).unwrap().undo();
        assert_eq!(fs::read_to_string(&place).unwrap(), "old");
        put(&new, &place, NAME).unwrap().keep();
        assert_eq!(fs::read_to_string(&place).unwrap(), good);
        assert_eq!(io::read_to_string(open).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // And where there was none, and where links are planted.
        let (other, victim) = (dir.path().join("other"), dir.path().join("victim"));
        put(&new, &other, NAME).unwrap().undo();
        assert!(!other.exists());
        fs::write(&victim, "mine").unwrap();
        for link in ["other", "other.new"] {
            symlink(&victim, dir.path().join(link)).unwrap();
        }
        put(&new, &other, NAME).unwrap().keep();
        assert_eq!((fs::read_to_string(&victim).unwrap().as_str(), other.is_symlink()), ("mine", false));
    }

    #[test]
    fn a_program_is_called_as_it_was_begun_as_long_as_that_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let (real, link) = (dir.join("1.0"), dir.join("gateway"));
        fs::write(&real, "").unwrap();
        symlink(&real, &link).unwrap();
        let path = || Some(OsString::from(format!("/nowhere:{}", dir.display())));
        let found = |word: &Path| called(Some(word.into()), path(), &real);
        assert_eq!(found(&link), Some(link.clone()));
        assert_eq!(found(Path::new("gateway")), Some(link.clone()));
        assert_eq!(found(&real), Some(real.clone()));
        for other in ["else", "-bash", "/nowhere/gateway", ""] {
            assert_eq!(found(Path::new(other)), None, "{other}");
        }
        assert_eq!(called(None, path(), &real), None);
    }
}
