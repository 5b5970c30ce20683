//! Role: the file of the list: read, and one entry more.
//! Invariants: whoever reads it sees the old list or the new one · of programs that add at once each finds the
//! others' entries · what the new file says is what the old one said, and the entry.

use std::{io, path::Path};

use narrowlink_dataplane::run::{
    file::{self, Reading},
    replace::Held,
};
use narrowlink_proto::yaml::{self, Document};

use super::{Entry, RevocationError, Revocations};

/// A list at the most.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A new list: it holds no secret, and a gateway that runs as another user must be able to read it.
const MODE: u32 = 0o644;

/// The entries of a file, `None` if it isn't there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<Entry>>, RevocationError> {
    let text = read_text(path).map_err(|source| RevocationError::File { path: path.to_owned(), source })?;
    text.map(|text| parse(&text, path)).transpose()
}

fn read_text(path: &Path) -> io::Result<Option<String>> {
    // A list is followed, and replaced by the next entry: a pipe would be neither.
    match file::read_text(path, Reading::Again, FILE_BYTES_MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    }
}

fn fits(bytes: u64) -> io::Result<()> {
    if bytes <= FILE_BYTES_MAX {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {FILE_BYTES_MAX} bytes")))
}

fn parse(text: &str, path: &Path) -> Result<Vec<Entry>, RevocationError> {
    let wrong = |source| RevocationError::Yaml { path: path.to_owned(), source };
    let document = Document::parse(text).map_err(wrong)?;
    // A file of comments is a list without entries.
    let entries: Vec<Entry> = document.read::<Option<_>>().map_err(wrong)?.unwrap_or_default();
    for (index, entry) in entries.iter().enumerate() {
        entry.check().map_err(|why| wrong(document.fault(&[index.into()], why)))?;
    }
    Ok(entries)
}

/// Adds an entry to the file, which is made if it isn't there; false if it says so already. What the file says
/// besides stays as it is. Waits for whoever else is adding to it.
///
/// # Errors
/// The file can't be read or replaced, or isn't a list now.
pub fn add(path: &Path, entry: &Entry) -> Result<bool, RevocationError> {
    entry.check().map_err(|why| RevocationError::Entry { path: path.to_owned(), index: 0, why })?;
    let failed = |source| RevocationError::File { path: path.to_owned(), source };
    let held = Held::wait_for(path).map_err(failed)?;
    let text = read_text(held.path()).map_err(failed)?.unwrap_or_default();
    let mut entries = parse(&text, path)?;
    // As it is read is as it must stay: an error here is one before anything was changed.
    Revocations::new(entries.clone(), path)?;
    if entries.contains(entry) {
        return Ok(false);
    }
    entries.push(entry.clone());
    let text = extend(text, entry, &entries).map_err(|e| failed(io::Error::other(e)))?;
    fits(text.len() as u64).and_then(|()| held.replace(&text, MODE)).map_err(failed)?;
    Ok(true)
}

/// The text with `entry` behind it, which says `all`.
fn extend(mut text: String, entry: &Entry, all: &[Entry]) -> Result<String, serde_yaml::Error> {
    let comments = text.lines().take_while(|line| line.trim().is_empty() || line.starts_with('#'));
    let comments: String = comments.flat_map(|line| [line, "\n"]).collect();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text += &serde_yaml::to_string(std::slice::from_ref(entry))?;
    match yaml::read::<Vec<Entry>>(&text) {
        Ok(read) if read == all => Ok(text),
        // A list in another style (`[{..}]`) is written as ours; of its comments those in front stay.
        _ => Ok(comments + &serde_yaml::to_string(all)?),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn entry(jti: &str) -> Entry {
        Entry { jti: Some(jti.to_owned()), uid: None, name: None, issued_before: None }
    }

    #[test]
    fn a_file_grows_by_an_entry_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.yaml");
        assert!(Revocations::load(&path).unwrap().is_none());
        for before in [
            None,
            Some("[]\n"),
            Some("# stolen in May\n"),
            Some("- jti: x # mine"),
            Some("[{jti: x}]"),
            Some("# stolen in May\n\n[{jti: x}]"),
            Some("  - jti: x\n"),
            Some("---\n- jti: x\n...\n"),
        ] {
            let _ = fs::remove_file(&path);
            if let Some(text) = before {
                fs::write(&path, text).unwrap();
            }
            assert!(add(&path, &entry("a")).unwrap(), "{before:?}");
            assert!(!add(&path, &entry("a")).unwrap(), "{before:?}");
            assert!(add(&path, &entry("null")).unwrap(), "{before:?}");
            let want = before.filter(|text| text.contains('x')).map(|_| entry("x"));
            let want: Vec<_> = want.into_iter().chain([entry("a"), entry("null")]).collect();
            assert_eq!(read(&path).unwrap(), Some(want), "{before:?}");
            let text = fs::read_to_string(&path).unwrap();
            for comment in ["# stolen in May", "# mine"] {
                let was_there = before.is_some_and(|text| text.contains(comment));
                assert_eq!(text.contains(comment), was_there, "{text}");
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_list_keeps_its_mode_and_a_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("revoked.yaml"), dir.path().join("link.yaml"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert!(add(&path, &entry("a")).unwrap());
        assert_eq!(mode(&path), MODE, "whatever the umask");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("revoked.yaml", &link).unwrap();
        assert!(add(&link, &entry("b")).unwrap());
        assert_eq!(read(&path).unwrap(), Some(vec![entry("a"), entry("b")]));
        assert!(mode(&path) == 0o640 && fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_list_does_not_grow_beyond_what_a_gateway_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.yaml");
        let full = "#".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() - 8);
        fs::write(&path, &full).unwrap();
        let error = add(&path, &entry("a")).unwrap_err().to_string();
        assert!(error.contains("longer than 16777216 bytes"), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), full.len() as u64);
    }

    #[test]
    fn a_file_that_is_no_list_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.yaml");
        for bad in ["- jti: [\n", "- {jti: a, until: 9}\n", "- {}\n", "jti: a\n"] {
            fs::write(&path, bad).unwrap();
            let error = add(&path, &entry("a")).unwrap_err().to_string();
            assert!(error.contains("revoked.yaml: line "), "{error}");
            assert!(Revocations::load(&path).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }
}
