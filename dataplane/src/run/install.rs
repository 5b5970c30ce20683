//! Role: puts a configuration, and the file of a secret beside it, where there was none.
//! Invariants: a secret is readable for its owner alone from its first byte on · no configuration is overwritten: where the same
//! is there already, the secret alone is replaced, and programs that run with it follow.
//! See: `replace`.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    process::dir_mode,
    replace::{Held, create},
};

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// A file to be written: its name and its text.
pub type Named<'a> = (&'a str, &'a str);

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The configuration.
    pub config: PathBuf,
    /// The secret's file.
    pub secret: PathBuf,
    /// Whether the configuration was there already, and only the secret is new.
    pub renewed: bool,
}

/// Why nothing was done. The user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is another configuration.
    #[error(
        "{} is there already and says something else; nothing was changed. Move it away, or name another directory with --dir",
        .0.display()
    )]
    Exists(PathBuf),
    /// A file can't be written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes both into `dir`, which is made if it isn't there. Comments make no difference between configurations.
///
/// # Errors
/// See [`InstallError`]; a configuration that was there is as it was, and its secret too.
pub fn install(dir: &Path, config: Named<'_>, secret: Named<'_>) -> Result<Installed, InstallError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| InstallError::File { path, source }
    };
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(dir_mode()).create(dir).map_err(failed(dir))?;
    }
    let ((config, text), (secret, value)) = (config, secret);
    let (config, secret) = (dir.join(config), dir.join(secret));
    close_to_others(&secret).map_err(failed(&secret))?;
    // Another one at the same time waits, and finds what was written.
    let held = Held::wait_for(&secret).map_err(failed(&secret))?;
    let renewed = is_there(&config, text)?;
    held.replace(value, PRIVATE).map_err(failed(&secret))?;
    if !renewed {
        create(&config, text, PUBLIC).map_err(failed(&config))?;
    }
    Ok(Installed { config, secret, renewed })
}

/// Whether this configuration is there already.
///
/// # Errors
/// Another one is, or it can't be read.
pub fn is_there(config: &Path, text: &str) -> Result<bool, InstallError> {
    match fs::read_to_string(config) {
        Ok(there) if without_comments(&there) == without_comments(text) => Ok(true),
        Ok(_) => Err(InstallError::Exists(config.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(InstallError::File { path: config.to_owned(), source }),
    }
}

/// A file that is there keeps its owner and group when it is replaced, but what others might read is no place for a secret,
/// and where a link leads is not ours to say.
fn close_to_others(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => fs::remove_file(path),
        Ok(there) if there.permissions().mode() & 0o007 != 0 => {
            fs::set_permissions(path, fs::Permissions::from_mode(there.permissions().mode() & 0o770))
        }
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn without_comments(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Named<'_> = ("a.yaml", "# from a ticket\na: 1\n");

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn both_are_written_into_a_new_directory() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("x/narrowlink");
        let Installed { config, secret, renewed } = install(&own, CONFIG, ("a.token", "one\n")).unwrap();
        assert!(!renewed);
        assert_eq!(fs::read_to_string(&config).unwrap(), CONFIG.1);
        assert_eq!(fs::read_to_string(&secret).unwrap(), "one\n");
        assert_eq!((mode(&secret), mode(&own)), (PRIVATE, dir_mode()));
    }

    #[test]
    fn a_newer_secret_of_the_same_configuration_replaces_the_old_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = install(dir.path(), CONFIG, ("a.token", "one\n")).unwrap();
        fs::write(&first.config, "# mine\n\na: 1\n").unwrap();
        assert!(install(dir.path(), CONFIG, ("a.token", "two\n")).unwrap().renewed);
        assert_eq!(fs::read_to_string(&first.config).unwrap(), "# mine\n\na: 1\n");
        assert_eq!(fs::read_to_string(&first.secret).unwrap(), "two\n");
        assert_eq!(mode(&first.secret), PRIVATE);
    }

    #[test]
    fn a_secret_is_for_nobody_else_whatever_lies_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (token, victim) = (dir.path().join("a.token"), dir.path().join("victim"));
        fs::write(&token, "").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
        install(dir.path(), CONFIG, ("a.token", "one\n")).unwrap();
        assert_eq!((mode(&token), fs::read_to_string(&token).unwrap().as_str()), (0o640, "one\n"));
        fs::remove_file(&token).unwrap();
        fs::write(&victim, "other").unwrap();
        std::os::unix::fs::symlink(&victim, &token).unwrap();
        install(dir.path(), CONFIG, ("a.token", "two\n")).unwrap();
        assert_eq!((mode(&token), fs::read_to_string(&token).unwrap().as_str()), (PRIVATE, "two\n"));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "other");
    }

    #[test]
    fn another_configuration_is_left_alone_and_its_secret_too() {
        let dir = tempfile::tempdir().unwrap();
        let first = install(dir.path(), CONFIG, ("a.token", "one\n")).unwrap();
        let said = install(dir.path(), ("a.yaml", "a: 2\n"), ("a.token", "two\n")).unwrap_err().to_string();
        assert!(said.contains("a.yaml is there already"), "{said}");
        assert_eq!(fs::read_to_string(&first.secret).unwrap(), "one\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
