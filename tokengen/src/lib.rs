//! Role: YAML in, signed Narrowlink tokens out; offline. And what tokens say, for people who look at them.
//! Invariants: time and randomness are parameters; nothing is printed here.
//! See: docs/tokens.md, `narrowlink-tokengen --help`.
// They panic where they can't write.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub mod args;
pub mod files;
mod hosts;
pub mod input;
pub mod inspect;
mod items;
mod name;
mod oddities;
pub mod output;
mod policies;
pub mod resolve;
pub mod secrets;
pub mod show;
mod tagged;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    code::Code,
    id::Uid,
    token::{Keys, Kind, SecretError, TokenError},
    unread::{hint, hint_named},
    yaml::{Document, Fault, Located},
};
use serde::{Serialize, Serializer};

use crate::{
    input::{Input, Spot},
    resolve::{Draft, Drafts, Misfit},
};

/// A signed token and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Labelled {
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
    #[error("{}: {why}{}", file.display(), hint(why))]
    Read {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        why: io::Error,
    },
    /// Not the YAML that is expected; the text has path, line and column.
    #[error("{}: {why}", file.display())]
    Yaml {
        /// Which.
        file: PathBuf,
        /// What is wrong where.
        why: Fault,
    },
    /// A secret file that holds none.
    #[error("{}: {why}", file.display())]
    Secret {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: SecretError,
    },
    /// A file that a secret names can't be used.
    #[error(transparent)]
    SecretFile(#[from] Located<SecretFileError>),
    /// A command line's that can't be read.
    #[error("--secret: no file that can be read: {why}; a secret would begin with hex: or base64:")]
    NoSecretFile {
        /// The system's answer.
        why: io::Error,
    },
    /// An argument that spells no secret.
    #[error("--secret: {why}")]
    SecretArgument {
        /// What is wrong with it.
        why: SecretError,
    },
    /// An entry that does not fit the others.
    #[error("{}: {why}", file.display())]
    Misfit {
        /// Of which file.
        file: PathBuf,
        /// Which entry, and what is wrong with it.
        why: Misfit,
    },
    /// A token that would not be taken.
    #[error("{}: {spot}: {why}", file.display())]
    Token {
        /// Of which file.
        file: PathBuf,
        /// Which entry.
        spot: Spot,
        /// What is wrong with it.
        why: TokenError,
    },
}

impl TokengenError {
    /// The kind of trouble.
    pub const fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::ConfigMissing,
            Self::Yaml { .. } | Self::Misfit { .. } | Self::Token { .. } => Code::ConfigContent,
            Self::Secret { .. } | Self::SecretFile(_) | Self::NoSecretFile { .. } => Code::ConfigFile,
            Self::SecretArgument { .. } => Code::Usage,
        }
    }
}

/// Why a file that a secret names can't be used; where it is named is known of each.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It can't be read. Its path isn't shown: it may be no path, but a secret.
    #[error("this file can't be read: {why}{}", hint_named(why, "the directory of the file that names it"))]
    Read {
        /// The system's answer.
        why: io::Error,
    },
    /// It holds no secret.
    #[error("{}: {why}", file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: SecretError,
    },
}

/// Reads `file` and signs what it asks for. `now` is in seconds since 1970; `draw` gives the 128 random
/// bits that name a token whose `jti` the file leaves out.
///
/// # Errors
/// The operator's.
pub fn run(file: &Path, now: u64, mut draw: impl FnMut() -> [u8; 16]) -> Result<Generated, TokengenError> {
    let text = fs::read_to_string(file).map_err(|why| TokengenError::Read { file: file.into(), why })?;
    let yaml = |why| TokengenError::Yaml { file: file.into(), why };
    let document = Document::parse(&text).map_err(yaml)?;
    let input = Input::read(&document).map_err(yaml)?;
    let secret = secrets::read(&input.secret, file, || document.spot(file, &["secret".into()]))?;
    let fresh_jti = || format!("{:032x}", u128::from_be_bytes(draw()));
    let misfit = |why| TokengenError::Misfit { file: file.into(), why };
    let Drafts { drafts, warnings } = input.drafts(now, fresh_jti).map_err(misfit)?;
    let open = secrets::open_to_others(&input.secret, file);
    let mut warnings = [open.into_iter().collect(), oddities::of_secret(&secret), warnings].concat();
    if drafts.is_empty() {
        warnings.push("tokens holds none: nothing to sign".to_owned());
    }
    let keys = Keys::new(secret.as_bytes());
    let tokens = drafts.into_iter().map(|draft| sign(draft, &keys, file)).collect::<Result<_, _>>()?;
    Ok(Generated { tokens, warnings })
}

fn sign(Draft { spot, claims }: Draft, keys: &Keys, file: &Path) -> Result<Labelled, TokengenError> {
    let token = keys.sign(&claims).map_err(|why| TokengenError::Token { file: file.into(), spot, why })?;
    let (kind, uid, name) = (claims.kind, claims.uid, claims.name);
    Ok(Labelled { kind, uid, name, exp: claims.exp, jti: claims.jti, token })
}

/// A kind as the file's tags call it.
pub(crate) const fn tag(kind: Kind) -> &'static str {
    match kind {
        Kind::Client => "Client",
        Kind::Agent => "Agent",
        Kind::AgentPublish => "AgentPublish",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
fn as_tag<S: Serializer>(kind: &Kind, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(tag(*kind))
}
