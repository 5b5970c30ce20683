//! Role: the operator's secrets, read from where a file or a command line says they are.
//! Invariants: paths in a file are relative to it; no error shows a secret.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    token::{Secret, SecretSource},
    yaml::{Document, Located, Spot, Step},
};
use serde::Deserialize;

use crate::{SecretFileError, TokengenError};

/// A secret, and where it stood.
#[derive(Debug)]
pub struct Candidate {
    /// Fits behind "the".
    pub place: String,
    /// The secret.
    pub secret: Secret,
}

/// What gateway.yaml and tokens.yaml have in common. All other keys are somebody else's to check.
#[derive(Deserialize)]
struct Holder {
    secret: SecretSource,
    #[serde(default)]
    old_secrets: Vec<SecretSource>,
}

/// The secrets that `spec` stands for: `hex:..`, `base64:..`, a secret file, or a YAML file with `secret:`
/// and perhaps `old_secrets:`, such as gateway.yaml.
///
/// # Errors
/// The operator's, see [`TokengenError`].
pub fn candidates(spec: &str) -> Result<Vec<Candidate>, TokengenError> {
    if spec.starts_with("hex:") || spec.starts_with("base64:") {
        let secret = Secret::parse(spec).map_err(|why| TokengenError::SecretArgument { why })?;
        return Ok(vec![Candidate { place: "secret given".to_owned(), secret }]);
    }
    let file = Path::new(spec);
    // What names no file may be a secret.
    let bytes = fs::read(file).map_err(|why| TokengenError::NoSecretFile { why })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) if is_yaml(file, text) => in_yaml(file, text),
        _ => {
            let secret =
                Secret::from_file(&bytes).map_err(|why| TokengenError::Secret { file: file.into(), why })?;
            Ok(vec![Candidate { place: format!("secret in {spec}"), secret }])
        }
    }
}

fn is_yaml(file: &Path, text: &str) -> bool {
    let by_name = file.extension().is_some_and(|end| end == "yaml" || end == "yml");
    by_name || text.lines().any(|line| line.starts_with("secret:"))
}

fn in_yaml(file: &Path, text: &str) -> Result<Vec<Candidate>, TokengenError> {
    let yaml = |why| TokengenError::Yaml { file: file.into(), why };
    let document = Document::parse(text).map_err(yaml)?;
    let holder: Holder = document.read().map_err(yaml)?;
    let first = ("secret".to_owned(), &holder.secret, vec![Step::from("secret")]);
    let old = holder.old_secrets.iter().enumerate();
    let old = old.map(|(i, old)| (format!("old_secrets[{i}]"), old, vec!["old_secrets".into(), i.into()]));
    let candidate = |(key, source, path): (String, &SecretSource, Vec<Step>)| {
        let secret = read(source, file, || document.spot(file, &path))?;
        Ok(Candidate { place: format!("{key} in {}", file.display()), secret })
    };
    std::iter::once(first).chain(old).map(candidate).collect()
}

/// The secret that `config` names at `spot`.
///
/// # Errors
/// The operator's: a file that can't be read or holds none.
pub(crate) fn read(
    source: &SecretSource,
    config: &Path,
    spot: impl Fn() -> Spot,
) -> Result<Secret, Located<SecretFileError>> {
    match source {
        SecretSource::Inline(secret) => Ok(secret.clone()),
        SecretSource::File(path) => {
            let file = beside(config, path);
            let read = fs::read(&file).map_err(|why| SecretFileError::Read { why });
            let secret = read.and_then(|bytes| {
                Secret::from_file(&bytes).map_err(|why| SecretFileError::Content { file, why })
            });
            secret.map_err(|e| spot().about(e))
        }
    }
}

fn beside(config: &Path, path: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join(path)
}

/// A warning when others than its owner can read the secret that `config` names.
pub(crate) fn open_to_others(source: &SecretSource, config: &Path) -> Option<String> {
    let holder = match source {
        SecretSource::Inline(_) => config.to_owned(),
        SecretSource::File(path) => beside(config, path),
    };
    let metadata = fs::metadata(&holder).ok()?;
    // A pipe is nobody else's, whatever its mode.
    let open = metadata.is_file() && metadata.permissions().mode() & 0o077 != 0;
    open.then(|| format!("{} holds the secret and others can read it: chmod 600 it", holder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dir: &Path, spec: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        let spec = if spec.contains(':') { spec.to_owned() } else { dir.join(spec).display().to_string() };
        let found = candidates(&spec).map_err(|e| e.to_string())?;
        let shorten = |place: &str| place.replace(&format!("{}/", dir.display()), "");
        Ok(found.iter().map(|c| (shorten(&c.place), c.secret.as_bytes().to_vec())).collect())
    }

    #[test]
    fn a_secret_is_found_in_whatever_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        write("raw", b"abc\n");
        write("hexed", b"hex:616263\n");
        write("bytes", &[0xff, 0xfe]);
        write(
            "gateway.yaml",
            b"name: g\nservices: [!Ws {domains: [a]}]\nsecret: !File raw\nold_secrets: [\"hex:01\", [2, 3]]\n",
        );
        write("tokens", b"# no ending\nsecret: [9]\ntokens: []\n");
        for (spec, want) in [
            ("hex:6162", vec![("secret given", &b"ab"[..])]),
            ("base64:YWI", vec![("secret given", b"ab")]),
            ("raw", vec![("secret in raw", b"abc")]),
            ("hexed", vec![("secret in hexed", b"abc")]),
            ("bytes", vec![("secret in bytes", &[0xff, 0xfe])]),
            (
                "gateway.yaml",
                vec![
                    ("secret in gateway.yaml", b"abc"),
                    ("old_secrets[0] in gateway.yaml", &[1]),
                    ("old_secrets[1] in gateway.yaml", &[2, 3]),
                ],
            ),
            ("tokens", vec![("secret in tokens", &[9])]),
        ] {
            let want: Vec<_> = want.into_iter().map(|(place, s)| (place.to_owned(), s.to_vec())).collect();
            assert_eq!(found(dir.path(), spec), Ok(want), "{spec}");
        }
    }

    #[test]
    fn what_holds_no_secret_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("empty"), "\n").unwrap();
        fs::write(dir.path().join("agent.yaml"), "endpoints: []\n").unwrap();
        fs::write(dir.path().join("lost.yml"), "secret: !File nowhere\n").unwrap();
        let old = "secret: [1]\nold_secrets: [\"hex:01\", !File empty]\n";
        fs::write(dir.path().join("old.yml"), old).unwrap();
        for (spec, says) in [
            ("hex:0", "--secret: not hexadecimal"),
            ("base64:?", "--secret: not base64"),
            ("empty", "empty: the secret is empty"),
            ("nobody", "--secret: no file that can be read: No such file"),
            ("agent.yaml", "agent.yaml: line 1 column 1: `secret` is missing"),
            ("lost.yml", "lost.yml: line 1 column 9: secret: this file can't be read: No such file"),
            ("old.yml", "old.yml: line 2 column 25: old_secrets[1]: "),
        ] {
            let why = found(dir.path(), spec).unwrap_err();
            assert!(why.contains(says), "{spec}: {why}");
        }
    }
}
