//! Role: YAML in, signed Narrowlink tokens out; offline.
//! Invariants: time and randomness are parameters; nothing is printed here.
//! See: `narrowlink-tokengen --help`.
#![forbid(unsafe_code)]

pub mod input;
mod oddities;
pub mod when;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    endpoint::with_place,
    id::Uid,
    token::{Keys, Secret, SecretError, SecretSource, TokenError},
};
use serde::Serialize;

use crate::input::{Input, Tagged};

/// A signed token and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Labelled {
    /// The tag of its YAML: `Client`, `Agent`, `AgentPublish`.
    pub kind: &'static str,
    /// The user's space.
    pub uid: Uid,
    /// The agent's or client's name.
    pub name: String,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// Its own name, for revocation.
    pub jti: String,
    /// The token.
    pub token: String,
}

/// What came out.
#[derive(Debug)]
pub struct Generated {
    /// In the order of the file.
    pub tokens: Vec<Labelled>,
    /// What the operator may not have meant.
    pub warnings: Vec<String>,
}

/// Why nothing came out. The operator's fault; the text names the file and the place in it.
#[derive(Debug, thiserror::Error)]
pub enum TokengenError {
    /// A file that can't be read.
    #[error("{}: {why}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        why: io::Error,
    },
    /// Not the YAML that is expected; the text has path, line and column.
    #[error("{}: {}", file.display(), with_place(why, why.location().map(|place| (place.line(), place.column()))))]
    Yaml {
        /// Which.
        file: PathBuf,
        /// What is wrong where.
        why: serde_yaml::Error,
    },
    /// A secret file that holds none.
    #[error("{}: {why}", file.display())]
    Secret {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: SecretError,
    },
    /// A token that would not be taken.
    #[error("{}: tokens[{index}] ({label}): {why}", file.display())]
    Token {
        /// Of which file.
        file: PathBuf,
        /// Where in the list.
        index: usize,
        /// Its tag and name.
        label: String,
        /// What is wrong with it.
        why: TokenError,
    },
}

/// Reads `file` and signs what it asks for. `now` is in seconds since 1970; `draw` gives the 128 random
/// bits that name a token whose `jti` the file leaves out.
///
/// # Errors
/// The operator's.
pub fn run(file: &Path, now: u64, draw: impl FnMut() -> [u8; 16]) -> Result<Generated, TokengenError> {
    let text = fs::read_to_string(file).map_err(|why| TokengenError::Read { file: file.into(), why })?;
    let input = Input::parse(&text).map_err(|why| TokengenError::Yaml { file: file.into(), why })?;
    let secret = read_secret(&input.secret, file)?;
    sign(&input, &secret, file, now, draw)
}

fn read_secret(source: &SecretSource, config: &Path) -> Result<Secret, TokengenError> {
    match source {
        SecretSource::Inline(secret) => Ok(secret.clone()),
        SecretSource::File(path) => {
            let file = config.parent().unwrap_or(Path::new("")).join(path);
            match fs::read(&file) {
                Ok(bytes) => Secret::from_file(&bytes).map_err(|why| TokengenError::Secret { file, why }),
                Err(why) => Err(TokengenError::Read { file, why }),
            }
        }
    }
}

fn sign(
    input: &Input,
    secret: &Secret,
    file: &Path,
    now: u64,
    mut draw: impl FnMut() -> [u8; 16],
) -> Result<Generated, TokengenError> {
    let keys = Keys::new(secret.as_bytes());
    let mut warnings = oddities::of_secret(secret);
    let mut tokens = Vec::with_capacity(input.tokens.len());
    for (index, Tagged(token)) in input.tokens.iter().enumerate() {
        let claims = token.claims(now, || format!("{:032x}", u128::from_be_bytes(draw())));
        let label = format!("{} {}", token.tag(), token.name());
        let odd = oddities::of_claims(&claims, now);
        warnings.extend(odd.iter().map(|odd| format!("tokens[{index}] ({label}): {odd}")));
        let signed = keys.sign(&claims).map_err(|why| TokengenError::Token {
            file: file.into(),
            index,
            label,
            why,
        })?;
        tokens.push(Labelled {
            kind: token.tag(),
            uid: claims.uid,
            name: claims.name,
            exp: claims.exp,
            jti: claims.jti,
            token: signed,
        });
    }
    if tokens.is_empty() {
        warnings.push("tokens is empty: nothing to sign".to_owned());
    }
    Ok(Generated { tokens, warnings })
}
