//! Role: tokens and secrets on disk: a file for each, which only its owner reads.
//! Invariants: no two tokens get one file; a file is whole or as it was before; all of them are on the disk
//! before the first is put in its place; a name leads nowhere but into its own folder.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use narrowlink_proto::{id::Uid, token::Kind};
use serde::Serialize;

use crate::{Labelled, as_tag, tag};

/// What Linux allows.
const FILE_NAME_BYTES_MAX: usize = 255;

/// A token that has become a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    /// What it is for.
    #[serde(serialize_with = "as_tag")]
    pub kind: Kind,
    /// The user's space.
    pub uid: Uid,
    /// The agent's or client's name.
    pub name: String,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// Its own name, for revocation.
    pub jti: String,
    /// The file.
    pub file: PathBuf,
}

/// A file or folder that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system's answer.
    #[error("{}: {why}{}", path.display(), if why.kind() == io::ErrorKind::NotADirectory { "; -o takes a directory" } else { "" })]
    System {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// A name that no file can have.
    #[error(
        "{kind} {name}: as a file name this has more than {FILE_NAME_BYTES_MAX} bytes; choose a shorter name"
    )]
    TooLong {
        /// The token's tag.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A secret is where a new one was to go.
    #[error("{}: it exists already and is left as it is: choose another name, or move it away first", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
}

/// Writes each token to `dir/<uid>/<kind>-<name>.token`, in the place of what was there. `draw` gives the 128
/// random bits of a temporary name.
///
/// # Errors
/// The operator's, or the system's: while the files are made none is put in its place yet.
pub fn write_tokens(
    dir: &Path,
    tokens: &[Labelled],
    mut draw: impl FnMut() -> [u8; 16],
) -> Result<Vec<Written>, WriteError> {
    let mut staged = Vec::with_capacity(tokens.len());
    for (one, name) in tokens.iter().zip(file_names(tokens)?) {
        let folder = dir.join(one.uid.to_string());
        make_folder(&folder).map_err(at(&folder))?;
        let aside = folder.join(format!(".{:032x}", u128::from_be_bytes(draw())));
        let file = folder.join(name);
        staged.push((Staged::new(aside, &one.token).map_err(at(&file))?, file));
    }
    let mut written = Vec::with_capacity(tokens.len());
    for (one, (staged, file)) in tokens.iter().zip(staged) {
        staged.put(&file).map_err(at(&file))?;
        let Labelled { kind, uid, name, exp, jti, .. } = one.clone();
        written.push(Written { kind, uid, name, exp, jti, file });
    }
    let folders: HashSet<_> = written.iter().filter_map(|one| one.file.parent()).collect();
    for folder in folders {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
    }
    Ok(written)
}

/// Writes a secret to a file that wasn't there.
///
/// # Errors
/// The operator's: it was there. Or the system's.
pub fn write_secret(path: &Path, secret: &str) -> Result<(), WriteError> {
    match write_new(path, secret) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
            Err(WriteError::Exists { path: path.into() })
        }
        done => done.map_err(at(path)),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    |why| WriteError::System { path: path.to_owned(), why }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A line in a new file that only its owner reads; nothing is left of it if that fails.
fn write_new(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = writeln!(file, "{line}").and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// A file under a temporary name, gone unless it is put in its place.
struct Staged {
    aside: PathBuf,
}

impl Staged {
    fn new(aside: PathBuf, line: &str) -> io::Result<Self> {
        write_new(&aside, line).map(|()| Self { aside })
    }

    fn put(self, file: &Path) -> io::Result<()> {
        fs::rename(&self.aside, file)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After the rename there is nothing under this name any more.
        let _ = fs::remove_file(&self.aside);
    }
}

/// The name of each token's file, within its uid's folder.
fn file_names(tokens: &[Labelled]) -> Result<Vec<String>, WriteError> {
    let stem = |one: &Labelled| format!("{}-{}", one.kind.name(), encoded(&one.name));
    // Whoever comes first with a name keeps it as it is. Only then come the numbers, which could meet a name.
    let mut taken = HashSet::new();
    let first: Vec<_> = tokens.iter().map(|one| taken.insert((one.uid, stem(one)))).collect();
    let mut counts = HashMap::new();
    let mut name = |(one, first): (&Labelled, bool)| {
        let mut name = stem(one);
        let count = counts.entry((one.uid, name.clone())).or_insert(1);
        while !first && !taken.insert((one.uid, name.clone())) {
            *count += 1;
            name = format!("{}-{count}", stem(one));
        }
        name.push_str(".token");
        if name.len() > FILE_NAME_BYTES_MAX {
            return Err(WriteError::TooLong { kind: tag(one.kind), name: one.name.clone() });
        }
        Ok(name)
    };
    tokens.iter().zip(first).map(&mut name).collect()
}

/// A name with everything but `A-Z a-z 0-9 . _ -` as `%` and two hexadecimal digits.
fn encoded(name: &str) -> String {
    name.bytes().fold(String::with_capacity(name.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            text.push(byte.into());
        } else {
            // Writing to a String does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token(kind: Kind, uid: u128, name: &str) -> Labelled {
        let (uid, name, jti) = (Uid::from_u128(uid), name.to_owned(), "j".to_owned());
        Labelled { kind, uid, name, exp: 1, jti, token: format!("token of {kind:?}") }
    }

    fn counter() -> impl FnMut() -> [u8; 16] {
        let mut n = 0u128;
        move || {
            n += 1;
            n.to_be_bytes()
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_owner_reads_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep/out");
        let tokens = [
            token(Kind::Agent, 1, "home"),
            token(Kind::AgentPublish, 1, "home"),
            token(Kind::Client, 2, "c"),
        ];
        let written = write_tokens(&out, &tokens, counter()).unwrap();
        let (one, two) = (out.join(Uid::from_u128(1).to_string()), out.join(Uid::from_u128(2).to_string()));
        assert_eq!(names(&one), ["agent-home.token", "agent_publish-home.token"]);
        assert_eq!(names(&two), ["client-c.token"]);
        for folder in [&dir.path().join("deep"), &out, &one, &two] {
            assert_eq!(mode(folder), 0o700, "{}", folder.display());
        }
        for Written { kind, file, .. } in &written {
            assert_eq!(mode(file), 0o600);
            assert_eq!(fs::read_to_string(file).unwrap(), format!("token of {kind:?}\n"));
        }
    }

    #[test]
    fn what_was_there_is_replaced_whoever_could_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(Uid::from_u128(1).to_string());
        fs::create_dir(&folder).unwrap();
        let old = folder.join("agent-home.token");
        fs::write(&old, "old").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o644)).unwrap();
        write_tokens(dir.path(), &[token(Kind::Agent, 1, "home")], counter()).unwrap();
        assert_eq!((fs::read_to_string(&old).unwrap().as_str(), mode(&old)), ("token of Agent\n", 0o600));
        assert_eq!(names(&folder), ["agent-home.token"]);
    }

    #[test]
    fn nothing_is_put_in_its_place_before_all_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(Uid::from_u128(1).to_string());
        fs::write(dir.path().join(Uid::from_u128(2).to_string()), "in the way").unwrap();
        let tokens = [token(Kind::Agent, 1, "home"), token(Kind::Agent, 2, "home")];
        let why = write_tokens(dir.path(), &tokens, counter()).unwrap_err().to_string();
        assert!(why.contains(&Uid::from_u128(2).to_string()), "{why}");
        assert_eq!(names(&folder), Vec::<String>::new());
    }

    #[test]
    fn a_name_is_no_path_and_no_two_names_are_one_file() {
        let tricks = [
            "..",
            ".",
            "/etc/passwd",
            "../../x",
            "a/b",
            "a%2Fb",
            "a b",
            "A b",
            "\u{fc}",
            "u\u{308}",
            "-",
            "a\\b",
        ];
        let tokens: Vec<_> = tricks.iter().map(|name| token(Kind::Agent, 1, name)).collect();
        let names = file_names(&tokens).unwrap();
        assert_eq!(
            names[..5],
            [
                "agent-...token",
                "agent-..token",
                "agent-%2Fetc%2Fpasswd.token",
                "agent-..%2F..%2Fx.token",
                "agent-a%2Fb.token"
            ]
        );
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), tricks.len());
        assert!(names.iter().all(|name| !name.contains('/') && name.starts_with("agent-")), "{names:?}");
    }

    #[test]
    fn tokens_of_one_name_are_numbered_around_the_names_there_are() {
        let tokens =
            ["home", "home", "home-2", "home", "home-2", "home-3"].map(|name| token(Kind::Agent, 1, name));
        let names = file_names(&tokens).unwrap();
        let numbered = ["home", "home-4", "home-2", "home-5", "home-2-2", "home-3"];
        assert_eq!(names, numbered.map(|name| format!("agent-{name}.token")));
        let apart = [token(Kind::Agent, 1, "a"), token(Kind::Client, 1, "a"), token(Kind::Agent, 2, "a")];
        assert_eq!(file_names(&apart).unwrap(), ["agent-a.token", "client-a.token", "agent-a.token"]);
    }

    #[test]
    fn a_name_too_long_for_a_file_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = [token(Kind::Agent, 1, "a"), token(Kind::Agent, 1, &"\u{5bb6}".repeat(42))];
        let why = write_tokens(&dir.path().join("out"), &tokens, counter()).unwrap_err();
        assert!(matches!(why, WriteError::TooLong { .. }), "{why}");
        assert_eq!(names(dir.path()), Vec::<String>::new());
        assert!(file_names(&[token(Kind::AgentPublish, 1, &"a".repeat(128))]).is_ok());
    }

    #[test]
    fn a_secret_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_secret(&path, "hex:00").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("hex:00\n", 0o600));
        let why = write_secret(&path, "hex:01").unwrap_err();
        assert!(
            why.to_string().ends_with(
                "secret: it exists already and is left as it is: choose another name, or move it away first"
            ),
            "{why}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "hex:00\n");
        let nowhere = write_secret(&dir.path().join("no/secret"), "hex:01").unwrap_err().to_string();
        assert!(nowhere.contains("no/secret: No such file"), "{nowhere}");
    }
}
