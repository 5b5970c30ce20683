//! Role: files that are made together: all of them, or none.
//! Invariants: they are written into a directory of their own, and get their names when all are there, the configuration last · what
//! is there is never overwritten · who comes after a try that was killed knows by its directory which files it had made,
//! and takes those away, and no others.
//! See: link(2), which makes no name that is there.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use narrowlink_dataplane::run::{
    process::dir_mode,
    replace::{Held, create},
};
use rustix::{
    fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with},
    io::Errno,
};

use super::{CONFIG, InitError};

/// Where they are until all are there.
const STAGE: &str = ".init";
const PRIVATE_DIR: u32 = 0o700;
/// So often another one may take the directory away that this one wants.
const TRIES: u32 = 100;

/// Files that are made together.
pub(super) struct Staged<'a> {
    dir: &'a Path,
    stage: PathBuf,
    names: Vec<String>,
    /// What goes again if the rest fails.
    made: Vec<PathBuf>,
    /// Told of each change of the disk.
    step: &'a dyn Fn(),
    /// Another one at the same time waits.
    _held: Held,
}

impl<'a> Staged<'a> {
    /// Makes the directory, unless it is there, and nothing in it that anybody looks for.
    pub(super) fn begin(dir: &'a Path, step: &'a dyn Fn()) -> Result<Self, InitError> {
        let mut made = Vec::new();
        let mut tries = 0;
        let begun = loop {
            tries += 1;
            match hold(dir, &mut made, step) {
                // Another one had made the directory, and has taken it away again.
                Err(InitError::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
                begun => break begun,
            }
        };
        match begun {
            Ok((held, stage)) => Ok(Self { dir, stage, names: Vec::new(), made, step, _held: held }),
            Err(e) => {
                take_away(&made);
                Err(e)
            }
        }
    }

    /// Where a file is for now.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.stage.join(name)
    }

    /// Writes one; the last one is the configuration.
    pub(super) fn file(&mut self, name: &str, text: &str, mode: u32) -> Result<(), InitError> {
        let path = self.path(name);
        create(&path, text, mode).map_err(failed(&self.dir.join(name)))?;
        self.names.push(name.to_owned());
        (self.step)();
        Ok(())
    }

    /// Gives each its name, in their order; before the last one a directory is made, if one is wanted.
    pub(super) fn settle(mut self, dir: Option<(&str, u32)>) -> Result<(), InitError> {
        let names = std::mem::take(&mut self.names);
        for name in &names {
            if name == CONFIG
                && let Some((dir, mode)) = dir
            {
                let path = self.dir.join(dir);
                if !path.is_dir() {
                    DirBuilder::new().mode(mode).create(&path).map_err(failed(&path))?;
                    self.made.push(path);
                    (self.step)();
                }
            }
            let path = self.dir.join(name);
            give_name(&self.path(name), &path).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => InitError::Exists(path.clone()),
                _ => InitError::File { path: path.clone(), source },
            })?;
            self.made.push(path);
            (self.step)();
        }
        let synced = fs::File::open(self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(failed(self.dir))?;
        self.made.clear();
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.stage);
        take_away(&self.made);
    }
}

/// A second name for a file, so that the first one says whose it is.
fn give_name(from: &Path, to: &Path) -> io::Result<()> {
    match linkat(CWD, from, CWD, to, AtFlags::empty()) {
        // A file system that has no such thing.
        Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?),
        linked => Ok(linked?),
    }
}

fn take_away(made: &[PathBuf]) {
    for path in made.iter().rev() {
        // A directory only if nothing else came into it.
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    }
}

/// Makes the directory and what is missing above it, and holds it.
fn hold(dir: &Path, made: &mut Vec<PathBuf>, step: &dyn Fn()) -> Result<(Held, PathBuf), InitError> {
    let missing: Vec<_> =
        dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        match DirBuilder::new().mode(dir_mode()).create(dir) {
            Ok(()) => made.push(dir.to_owned()),
            // By another one at the same time.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(e) => return Err(failed(dir)(e)),
        }
        step();
    }
    let held = Held::wait_for(&dir.join(CONFIG)).map_err(failed(dir))?;
    // One that was killed since anybody looked.
    clear_held(dir)?;
    let stage = dir.join(STAGE);
    DirBuilder::new().mode(PRIVATE_DIR).create(&stage).map_err(failed(&stage))?;
    step();
    Ok((held, stage))
}

/// Takes away what a try that was killed has left in `dir`. Where all had its name, all of it stays. One that is under way is waited
/// for.
pub(super) fn clear(dir: &Path) -> Result<(), InitError> {
    if fs::symlink_metadata(dir.join(STAGE)).is_err() {
        return Ok(());
    }
    let _held = Held::wait_for(&dir.join(CONFIG)).map_err(failed(dir))?;
    clear_held(dir)
}

fn clear_held(dir: &Path) -> Result<(), InitError> {
    let stage = dir.join(STAGE);
    let entries = match fs::symlink_metadata(&stage) {
        Ok(there) if there.is_dir() => fs::read_dir(&stage).map_err(failed(&stage))?,
        Ok(_) => return Err(InitError::Exists(stage)),
        Err(_) => return Ok(()),
    };
    let is_ours = |name: &Path| {
        let file = |path: &Path| fs::symlink_metadata(path).ok().map(|there| (there.dev(), there.ino()));
        file(&stage.join(name)).is_some_and(|ours| file(&dir.join(name)) == Some(ours))
    };
    if !is_ours(Path::new(CONFIG)) {
        let names = entries.flatten().map(|entry| PathBuf::from(entry.file_name()));
        for name in names.filter(|name| is_ours(name)) {
            let path = dir.join(name);
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    fs::remove_dir_all(&stage).map_err(failed(&stage))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> InitError + use<> {
    let path = path.to_owned();
    |source| InitError::File { path, source }
}
