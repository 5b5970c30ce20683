//! Role: tokens: what they claim, how they are signed and what makes one hold.
//! Invariants: HS256 only; a key per kind, so that no token can serve as another kind; sizes are checked
//! before any HMAC, claims parsed only after it; one token has one spelling; `now` is a parameter.
//! See: RFC 7519 (JWT), RFC 8725 (its best practices), RFC 5869 (HKDF).

mod allowance;
mod claims;
mod secret;
mod services;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto};
use serde::Deserialize;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{
    hex,
    when::{LAST_S, show},
};

pub use allowance::Allowance;
pub use claims::{CLAIMS_BYTES_MAX, Claims, ClaimsError, Kind, Peek, is_name};
pub use secret::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, Secret, SecretError, SecretSource};
pub use services::{PublishProtocol, Published, ServiceError, ServiceName, Services};

/// A token at the most.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Our own header has 27 bytes of JSON; nobody's needs more than this in base64url.
const HEADER_BYTES_MAX: usize = 128;

/// How far the clocks of token generator and gateway may be apart.
pub const LEEWAY_S: u64 = 2;

/// The last second of the year 9999: a later `exp` is a mistake (milliseconds, say), not a date.
pub const EXP_MAX: u64 = LAST_S;

/// Why a token does not hold; for the log only, the peer learns nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Over [`TOKEN_BYTES_MAX`], or its claims over [`CLAIMS_BYTES_MAX`].
    #[error("the token is too long")]
    TooLong,
    /// Not three parts in canonical base64url.
    #[error("not a token: {0}")]
    Malformed(&'static str),
    /// A header with anything but `alg: HS256` and `typ: JWT`.
    #[error("the token's header asks for something else than plain HS256")]
    Header,
    /// Another secret, another kind, or altered.
    #[error("the signature does not match: another secret, another kind of token, or altered")]
    Signature,
    /// Signed by us, yet not what this version takes.
    #[error("the token's claims can't be taken: {0}")]
    Claims(#[from] ClaimsError),
    /// `exp` is past.
    #[error("the token expired at {}", show(*exp))]
    Expired {
        /// Seconds since 1970.
        exp: u64,
    },
    /// `nbf` is to come.
    #[error("the token is not valid before {}", show(*nbf))]
    NotYet {
        /// Seconds since 1970.
        nbf: u64,
    },
    /// The signing library failed: our own fault.
    #[error("signing failed: {0}")]
    Signing(#[source] jsonwebtoken::errors::Error),
}

/// Names a secret without giving it away: the same at the gateway and at the token generator. (Whoever sees
/// the id of a secret that can be guessed can tell when the guess is right, as whoever has a token can.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

/// As 8 hexadecimal digits, its first half.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

/// The keys of one secret, one per [`Kind`].
#[derive(Clone)]
pub struct Keys {
    id: KeyId,
    client: Key,
    agent: Key,
    agent_publish: Key,
}

#[derive(Clone)]
struct Key {
    sign: EncodingKey,
    verify: DecodingKey,
}

/// The keys of all secrets in force; two of them allow rotation. The first one signs.
#[derive(Clone, Debug)]
pub struct KeyRing {
    first: Keys,
    rest: Vec<Keys>,
}

impl Keys {
    /// Derives the keys. How long the secret must be is the caller's to say: see [`SECRET_BYTES_MIN`].
    pub fn new(secret: &[u8]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"narrowlink token 1"), secret);
        Self {
            id: KeyId(expand(&hkdf, "id")),
            client: Key::derive(&hkdf, Kind::Client),
            agent: Key::derive(&hkdf, Kind::Agent),
            agent_publish: Key::derive(&hkdf, Kind::AgentPublish),
        }
    }

    /// The secret's name.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Signs claims with the key of their kind.
    ///
    /// # Errors
    /// The operator's: claims that [`verify`](Self::verify) would not take.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        claims.check()?;
        let key = &self.key(claims.kind).sign;
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, key);
        let token = token.map_err(TokenError::Signing)?;
        Parts::split(&token)?;
        Ok(token)
    }

    /// The claims of a token of that kind which holds at `now` (seconds since 1970).
    ///
    /// # Errors
    /// The bearer's, with the cause for the log.
    pub fn verify(&self, token: &str, kind: Kind, now: u64) -> Result<Claims, TokenError> {
        let parts = Parts::split(token)?;
        if !self.signed(&parts, kind) {
            return Err(TokenError::Signature);
        }
        parts.claims_at(kind, now)
    }

    /// The kind whose key signed `token`, whatever it claims and whether or not it holds: for people who
    /// look at a token.
    ///
    /// # Errors
    /// The writer's: what is no token at all.
    pub fn signer(&self, token: &str) -> Result<Option<Kind>, TokenError> {
        let parts = Parts::split(token)?;
        Ok(Kind::ALL.into_iter().find(|&kind| self.signed(&parts, kind)))
    }

    fn signed(&self, parts: &Parts<'_>, kind: Kind) -> bool {
        let key = &self.key(kind).verify;
        crypto::verify(parts.signature, parts.message.as_bytes(), key, Algorithm::HS256).unwrap_or(false)
    }

    const fn key(&self, kind: Kind) -> &Key {
        match kind {
            Kind::Client => &self.client,
            Kind::Agent => &self.agent,
            Kind::AgentPublish => &self.agent_publish,
        }
    }
}

impl Key {
    fn derive(hkdf: &Hkdf<Sha256>, kind: Kind) -> Self {
        let key = Zeroizing::new(expand::<32>(hkdf, kind.name()));
        Self { sign: EncodingKey::from_secret(&*key), verify: DecodingKey::from_secret(&*key) }
    }
}

fn expand<const N: usize>(hkdf: &Hkdf<Sha256>, what: &str) -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::expect_used, reason = "HKDF-SHA256 gives up to 255 * 32 bytes")]
    hkdf.expand(what.as_bytes(), &mut bytes).expect("32 bytes are within HKDF's reach");
    bytes
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl KeyRing {
    /// The keys that sign, then those that are only still believed.
    pub const fn new(first: Keys, rest: Vec<Keys>) -> Self {
        Self { first, rest }
    }

    /// Signs with the first keys; see [`Keys::sign`].
    ///
    /// # Errors
    /// The operator's, as there.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        self.first.sign(claims)
    }

    /// Like [`Keys::verify`], with whichever keys fit.
    ///
    /// # Errors
    /// The bearer's, as there.
    pub fn verify(&self, token: &str, kind: Kind, now: u64) -> Result<Claims, TokenError> {
        self.verify_and_name(token, kind, now).map(|(claims, _)| claims)
    }

    /// As [`verify`](Self::verify), and which secret it was.
    ///
    /// # Errors
    /// The bearer's, as there.
    pub fn verify_and_name(&self, token: &str, kind: Kind, now: u64) -> Result<(Claims, KeyId), TokenError> {
        let parts = Parts::split(token)?;
        let mut keys = std::iter::once(&self.first).chain(&self.rest);
        let keys = keys.find(|keys| keys.signed(&parts, kind)).ok_or(TokenError::Signature)?;
        Ok((parts.claims_at(kind, now)?, keys.id))
    }

    /// The secrets' names, the one that signs first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        std::iter::once(self.first.id).chain(self.rest.iter().map(|keys| keys.id))
    }

    /// Whether it has this secret's keys.
    pub fn knows(&self, id: KeyId) -> bool {
        self.ids().any(|known| known == id)
    }
}

/// Reads a token's claims without any key, for a bearer who wants to know when its own token expires.
/// Nothing may be decided on the answer.
pub fn peek_unverified(token: &str) -> Option<Peek> {
    serde_json::from_slice(&Parts::split(token).ok()?.claims).ok()
}

/// All that a token says, without any key, for people who look at one. Nothing may be decided on the answer.
///
/// # Errors
/// The writer's: what no gateway would take, however it were signed.
pub fn read_unverified(token: &str) -> Result<Claims, TokenError> {
    Ok(Claims::parse(&Parts::split(token)?.claims)?)
}

/// A token cut up: of a size and shape that is worth an HMAC.
struct Parts<'a> {
    /// What is signed: header, dot, claims.
    message: &'a str,
    signature: &'a str,
    claims: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let few = TokenError::Malformed("it has fewer than three parts, joined by dots");
        let Some((message, signature)) = token.rsplit_once('.') else { return Err(few) };
        let Some((header, claims)) = message.split_once('.') else { return Err(few) };
        if claims.len() > base64::encoded_len(CLAIMS_BYTES_MAX, false).unwrap_or(0) {
            return Err(TokenError::TooLong);
        }
        if claims.contains('.') {
            return Err(TokenError::Malformed("it has more than three parts"));
        }
        if header.len() > HEADER_BYTES_MAX {
            return Err(TokenError::Header);
        }
        let header = decode(header, "its header is not base64url")?;
        let header: HeaderOnly = serde_json::from_slice(&header).map_err(|_| TokenError::Header)?;
        let HeaderOnly { alg: OnlyAlgorithm::HS256, typ: None | Some(OnlyType::Jwt) } = header;
        let cut_off = "its signature is not 32 bytes in base64url: was it cut off?";
        if decode(signature, cut_off)?.len() != 32 {
            return Err(TokenError::Malformed(cut_off));
        }
        let claims = decode(claims, "its claims are not base64url")?;
        Ok(Self { message, signature, claims })
    }

    /// To be called once the signature holds.
    fn claims_at(&self, kind: Kind, now: u64) -> Result<Claims, TokenError> {
        let claims = Claims::parse(&self.claims)?;
        if claims.kind != kind {
            return Err(ClaimsError::Kind.into());
        }
        claims.hold_at(now)?;
        Ok(claims)
    }
}

/// Decodes the one spelling that encodes back to itself.
fn decode(part: &str, otherwise: &'static str) -> Result<Vec<u8>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok().filter(|bytes| URL_SAFE_NO_PAD.encode(bytes) == part);
    bytes.ok_or(TokenError::Malformed(otherwise))
}

/// The only header there is: `jwk`, `jku`, `kid`, `crit` and all others make a token somebody else's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderOnly {
    alg: OnlyAlgorithm,
    #[serde(default)]
    typ: Option<OnlyType>,
}

#[derive(Deserialize)]
enum OnlyAlgorithm {
    HS256,
}

#[derive(Deserialize)]
enum OnlyType {
    #[serde(rename = "JWT")]
    Jwt,
}

#[cfg(test)]
mod tests;
