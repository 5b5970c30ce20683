//! Role: the instance key: by it a gateway tells a restart of this installation from a stranger who
//! holds a copy of the token.
//! Invariants: the file is 0600 from its creation, its directory 0700; a crash at any point leaves a
//! whole key or none; agents that start at the same time end up with the same key.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use narrowlink_dataplane::run::file::{self, Reading};
use narrowlink_proto::{
    id::{Nonce, Uid, instance_statement},
    message::Instance,
};

/// The key's file in the state directory.
const FILE_NAME: &str = "instance.key";
/// Why there is no place for it where neither configuration nor system names one.
pub const NOWHERE: &str = "there is no home directory";
/// A key has less than a hundred.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// An installation's key.
pub struct Identity {
    key: Ed25519KeyPair,
}

/// Why there is no stored key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file can't be read or written. Its path isn't shown: the configuration has it, and it may be no path.
    #[error("{FILE_NAME} can't be kept there: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{0} holds no instance key; remove it, and a new one is made")]
    NotAKey(PathBuf),
    /// No key could be made.
    #[error("no key could be made")]
    NoKey,
}

impl Identity {
    /// The key stored in a directory that messages call by the words beside it, made if there is none; with a warning, a
    /// key for this run only. `None` when the system can't even make that: then this agent counts as a stranger at each
    /// start.
    pub(crate) fn obtain(place: Option<(PathBuf, String)>) -> Option<Self> {
        let stored = match place {
            Some((dir, place)) => Self::load_or_create(&dir).map_err(|e| format!("{place}: {e}")),
            None => Err(format!("{NOWHERE}; name one with state_dir")),
        };
        match stored {
            Ok(identity) => Some(identity),
            Err(why) => {
                tracing::warn!(
                    "the instance key can't be kept ({why}): after a restart this agent may have to wait \
                     until the gateway has noticed that its old link is gone"
                );
                Ed25519KeyPair::generate().ok().map(|key| Self { key })
            }
        }
    }

    /// The key stored in `dir`; made and stored if there is none.
    ///
    /// # Errors
    /// The file system's, or a file that is no key.
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(FILE_NAME);
        match read(&path) {
            Ok(stored) => Self::parse(&stored, &path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let made =
                    Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::NoKey)?;
                let failed = |source| IdentityError::File { path: path.clone(), source };
                store(dir, &path, made.as_ref()).map_err(failed)?;
                // Perhaps not the one just made: whoever stored first has won.
                Self::parse(&read(&path).map_err(failed)?, &path)
            }
            Err(source) => Err(IdentityError::File { path, source }),
        }
    }

    /// Whether `Identity::load_or_create` would succeed, as far as can be told without changing anything.
    ///
    /// # Errors
    /// As there.
    pub fn probe(dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE_NAME);
        match read(&path) {
            Ok(stored) if Ed25519KeyPair::from_pkcs8(&stored).is_ok() => Ok(()),
            Ok(_) => Err(IdentityError::NotAKey(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                file::probe_directory(dir).map_err(|source| IdentityError::File { path, source })
            }
            Err(source) => Err(IdentityError::File { path, source }),
        }
    }

    fn parse(stored: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let key = Ed25519KeyPair::from_pkcs8(stored).map_err(|_| IdentityError::NotAKey(path.to_owned()))?;
        if fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
            tracing::warn!("{} could be read by others; it can't any more", path.display());
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
        }
        Ok(Self { key })
    }

    /// The proof for one link: the key, and its signature over the gateway's nonce and whose agent
    /// this is.
    pub fn sign(&self, nonce: &Nonce, uid: &Uid, agent: &str) -> Instance {
        let signature = self.key.sign(&instance_statement(nonce, uid, agent));
        Instance {
            key: URL_SAFE_NO_PAD.encode(self.key.public_key()),
            signature: URL_SAFE_NO_PAD.encode(signature),
        }
    }
}

/// The agent deals with signals itself by now, so that even at a start nothing may wait here.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    file::read(path, Reading::Again, FILE_BYTES_MAX).map(|contents| contents.bytes)
}

/// Stores a key unless one is there: written whole beside it first, then linked into place.
fn store(dir: &Path, path: &Path, key: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let tmp = dir.join(format!("{FILE_NAME}.{:016x}", getrandom::u64()?));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
    file.write_all(key)?;
    file.sync_all()?;
    match fs::hard_link(&tmp, path) {
        Ok(()) => fs::remove_file(&tmp)?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&tmp)?,
        // A file system without links: the last one to store wins there.
        Err(_) => fs::rename(&tmp, path)?,
    }
    File::open(dir)?.sync_all()
}

/// Where the key is kept when the configuration does not say; `env` reads the environment.
pub(crate) fn default_state_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty());
    // systemd may give several, separated by colons; the first is the unit's own.
    if let Some(dirs) = set("STATE_DIRECTORY") {
        return std::env::split_paths(&dirs).next();
    }
    let state = match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(home)) => Path::new(&home).join(".local/state"),
        (None, None) => return None,
    };
    Some(state.join("narrowlink"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn key_of(identity: &Identity) -> String {
        identity.sign(&Nonce::from_bytes([0; 32]), &Uid::nil(), "a").key
    }

    fn obtain(dir: &Path) -> Option<Identity> {
        Identity::obtain(Some((dir.to_owned(), "state_dir".to_owned())))
    }

    #[test]
    fn a_restart_finds_the_key_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        let first = key_of(&Identity::load_or_create(&state).unwrap());
        assert_eq!(key_of(&Identity::load_or_create(&state).unwrap()), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state), mode(&state.join(FILE_NAME))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "nothing is left beside the key");
    }

    #[test]
    fn agents_that_start_together_share_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let make = || Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let (one, other) = (make(), make());
        store(dir.path(), &path, one.as_ref()).unwrap();
        store(dir.path(), &path, other.as_ref()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), one.as_ref());
    }

    #[test]
    fn a_key_that_others_could_read_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        Identity::load_or_create(dir.path()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_key_is_kept_and_a_key_for_this_run_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(Identity::load_or_create(dir.path()), Err(IdentityError::NotAKey(_))));
        assert!(obtain(dir.path()).is_some());
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
        let nowhere = dir.path().join(FILE_NAME).join("below a file");
        assert!(obtain(&nowhere).is_some());
        assert!(Identity::obtain(None).is_some());
    }

    #[test]
    fn a_pipe_in_the_place_of_the_key_keeps_no_agent_waiting() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Command::new("mkfifo").arg(dir.path().join(FILE_NAME)).status().unwrap().success());
        let error = Identity::probe(dir.path()).unwrap_err().to_string();
        assert!(error.contains("it is a pipe"), "{error}");
        assert!(obtain(dir.path()).is_some());
    }

    #[test]
    fn a_probe_says_what_a_start_would_meet_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        for state in ["", "deep/state"] {
            Identity::probe(&dir.path().join(state)).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(Identity::probe(dir.path()), Err(IdentityError::NotAKey(_))));
        assert!(matches!(Identity::probe(&path.join("state")), Err(IdentityError::File { .. })));
        fs::remove_file(&path).unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        Identity::probe(dir.path()).unwrap();
    }

    #[test]
    fn the_signature_is_over_nonce_user_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let (nonce, uid) = (Nonce::from_bytes([7; 32]), Uid::from_u128(9));
        let instance = identity.sign(&nonce, &uid, "home");
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let key = UnparsedPublicKey::new(&ED25519, decode(&instance.key));
        let signature = decode(&instance.signature);
        assert!(key.verify(&instance_statement(&nonce, &uid, "home"), &signature).is_ok());
        assert!(key.verify(&instance_statement(&nonce, &uid, "away"), &signature).is_err());
    }

    #[test]
    fn the_state_directory_is_the_systems_usual_one() {
        let check = |vars: &[(&str, &str)], expected: Option<&str>| {
            let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            assert_eq!(default_state_dir(env), expected.map(PathBuf::from), "{vars:?}");
        };
        check(&[("STATE_DIRECTORY", "/var/lib/narrowlink:/b"), ("HOME", "/h")], Some("/var/lib/narrowlink"));
        check(&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")], Some("/x/narrowlink"));
        check(&[("HOME", "/h"), ("STATE_DIRECTORY", "")], Some("/h/.local/state/narrowlink"));
        check(&[], None);
    }
}
