//! Role: a token as the gateway would take it, with what is wrong with it.
//! Invariants: whoever has no config checks no signature, and says so; a token is never repeated in a message.
//! See: `auth`, which decides while the gateway runs, and tells no bearer why.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    policy::Grant,
    token::{Claims, KeyId, Keys, Kind, Secret, TokenError, read_unverified},
    when::show_from,
};

use crate::{
    config::Config,
    revocations::{self, Entry},
};

/// A token, a line end and some spaces at the most.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A token that was looked at.
#[derive(Debug)]
pub struct Bearer {
    /// What it says, if that can be read.
    pub claims: Option<Claims>,
    /// Who signed it.
    pub signature: Signature,
    /// Why it opens no session.
    pub trouble: Option<Trouble>,
}

/// Whose signature a token has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// Nobody has looked.
    Unchecked,
    /// This secret's.
    Secret {
        /// Its place: 0 is the one in force, then come the old ones.
        place: usize,
        /// Its name.
        id: KeyId,
    },
    /// None of the secrets'.
    Unknown,
}

/// Why a token opens no session.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Not a token, or with claims that this version does not take.
    #[error("no gateway takes this: {0}")]
    Unreadable(TokenError),
    /// None of the secrets signed it.
    #[error("its signature is of no secret of this gateway: another gateway's token, or altered")]
    Signature,
    /// An agent's.
    #[error("only a client's token opens sessions; this one is of kind {}", .0.name())]
    Kind(Kind),
    /// Too late.
    #[error("the token expired on {}", show_from(*.exp, *.now))]
    Expired {
        /// When, in seconds since 1970.
        exp: u64,
        /// What time it is.
        now: u64,
    },
    /// Too early.
    #[error("the token is valid only from {}", show_from(*.nbf, *.now))]
    NotYet {
        /// From when on, in seconds since 1970.
        nbf: u64,
        /// What time it is.
        now: u64,
    },
    /// On the gateway's list.
    #[error("revoked by {}: {entry}", list.display())]
    Revoked {
        /// Where the list is kept.
        list: PathBuf,
        /// What it says of this token.
        entry: Box<Entry>,
    },
}

impl Bearer {
    /// Looks at a token at `now` (seconds since 1970) as the gateway of `config` would; without one at
    /// everything but its signature, and no list says that it is revoked.
    pub fn examine(token: &str, config: Option<&Config>, now: u64) -> Self {
        let claims = read_unverified(token);
        let kind = claims.as_ref().ok().map(|claims| claims.kind);
        let signature = match config {
            None => Signature::Unchecked,
            Some(Config { secrets, .. }) => signer(token, kind, secrets).unwrap_or(Signature::Unknown),
        };
        match claims {
            Ok(claims) => {
                let trouble = trouble(&claims, signature, now)
                    .or_else(|| config.and_then(|config| revoked(&claims, config)));
                Self { claims: Some(claims), signature, trouble }
            }
            Err(e) => Self { claims: None, signature, trouble: Some(Trouble::Unreadable(e)) },
        }
    }

    /// What it grants.
    ///
    /// # Errors
    /// Why it grants nothing.
    pub fn grant(&self) -> Result<&Grant, &Trouble> {
        match (&self.claims, &self.trouble) {
            (_, Some(trouble)) => Err(trouble),
            (Some(claims), None) => Ok(&claims.policies),
            (None, None) => unreachable!("claims that can't be read are a trouble"),
        }
    }
}

fn trouble(claims: &Claims, signature: Signature, now: u64) -> Option<Trouble> {
    if signature == Signature::Unknown {
        return Some(Trouble::Signature);
    }
    if claims.kind != Kind::Client {
        return Some(Trouble::Kind(claims.kind));
    }
    match claims.hold_at(now) {
        Ok(()) => None,
        Err(TokenError::Expired { exp }) => Some(Trouble::Expired { exp, now }),
        Err(TokenError::NotYet { nbf }) => Some(Trouble::NotYet { nbf, now }),
        Err(e) => Some(Trouble::Unreadable(e)),
    }
}

fn revoked(claims: &Claims, config: &Config) -> Option<Trouble> {
    let Claims { jti, uid, name, iat, .. } = claims;
    let bearer = revocations::Bearer { jti, uid: *uid, name, iat: *iat };
    let entry = Box::new(config.revocations.find(bearer)?.entry(bearer));
    Some(Trouble::Revoked { list: config.revocations_path.clone().unwrap_or_default(), entry })
}

/// Which of the secrets signed the token, as what it says it is: each kind has its own key, and another one's
/// is no signature. What can't be read may be of any kind.
fn signer(token: &str, kind: Option<Kind>, secrets: &[Secret]) -> Option<Signature> {
    let mut keys = secrets.iter().map(|secret| Keys::new(secret.as_bytes())).enumerate();
    let (place, keys) = keys.find(|(_, keys)| match keys.signer(token) {
        Ok(Some(signed_as)) => kind.is_none_or(|kind| kind == signed_as),
        Ok(None) | Err(_) => false,
    })?;
    Some(Signature::Secret { place, id: keys.id() })
}

/// A token as a command line names it: `-` is standard input, an existing file holds it, anything else is
/// the token.
///
/// # Errors
/// The caller's: the file can't be read, or the text is neither; it is not repeated, for it may be half a token.
pub fn find_token(spec: &str) -> Result<String, String> {
    if spec == "-" {
        return read_token(io::stdin().lock()).map_err(|e| format!("standard input: {e}"));
    }
    let path = Path::new(spec);
    if path.exists() {
        return read_token_file(path).map_err(|e| format!("{}: {e}", path.display()));
    }
    match read_unverified(spec) {
        Ok(_) | Err(TokenError::Claims(_)) => Ok(spec.to_owned()),
        Err(_) => Err("what --token says is neither a file that is there nor a token".to_owned()),
    }
}

/// The token in a file.
///
/// # Errors
/// The file system's, or the file holds far more than a token.
pub fn read_token_file(path: &Path) -> io::Result<String> {
    read_token(File::open(path)?)
}

fn read_token(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "far too long for a token"));
    }
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{hkdf, hmac};
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use narrowlink_proto::id::Uid;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn secrets() -> Vec<Secret> {
        [[7; 32], [8; 32], [9; 32]].map(|bytes| Secret::from_bytes(bytes.to_vec()).unwrap()).to_vec()
    }

    fn config() -> Config {
        Config::new("gw", secrets(), Vec::new())
    }

    fn claims(kind: Kind) -> Claims {
        Claims::new(kind, Uid::from_u128(1), "laptop", NOW + 60, "t1")
    }

    /// The signature of one of the config's secrets.
    fn by(place: u8) -> Signature {
        Signature::Secret { place: place.into(), id: Keys::new(&[7 + place; 32]).id() }
    }

    fn sign(secret: u8, claims: &Claims) -> String {
        Keys::new(&[secret; 32]).sign(claims).unwrap()
    }

    fn check(token: &str, signature: Signature, says: &str) {
        let bearer = Bearer::examine(token, Some(&config()), NOW);
        let trouble = bearer.trouble.map(|trouble| trouble.to_string()).unwrap_or_default();
        assert_eq!(bearer.signature, signature, "{trouble}");
        assert_eq!(trouble.is_empty(), says.is_empty(), "{trouble}");
        assert!(trouble.contains(says), "{trouble}");
    }

    #[test]
    fn whoever_signed_a_token_is_found_also_when_it_holds_no_more() {
        let client = claims(Kind::Client);
        check(&sign(7, &client), by(0), "");
        check(&sign(9, &client), by(2), "");
        check(&sign(6, &client), Signature::Unknown, "another gateway's token, or altered");
        let expired = Claims { exp: NOW - 7200, ..client.clone() };
        check(&sign(8, &expired), by(1), "expired on 2027-01-15 06:00:00 UTC (2 hours ago)");
        let early = Claims { nbf: Some(NOW + 50), ..client.clone() };
        check(&sign(7, &early), by(0), "only from 2027-01-15 08:00:50 UTC (in 50 seconds)");
        check(&sign(7, &claims(Kind::Agent)), by(0), "of kind agent");
        check("eyJ.eyJ.x", Signature::Unknown, "no gateway takes this");
        // Of another gateway, and too late: its claims are only looked at once its signature holds.
        check(&sign(6, &expired), Signature::Unknown, "another gateway's token");
    }

    #[test]
    fn what_examines_says_is_what_the_gateway_does() {
        for (token, kind) in [(7, Kind::Client), (9, Kind::Client), (6, Kind::Client), (7, Kind::Agent)] {
            for exp in [NOW - 60, NOW - 2, NOW - 1, NOW, NOW + 60] {
                for nbf in [None, Some(NOW + 2), Some(NOW + 3)] {
                    let token = sign(token, &Claims { exp, nbf, ..claims(kind) });
                    let keys = secrets().into_iter().map(|secret| Keys::new(secret.as_bytes()));
                    let taken = keys.into_iter().any(|keys| keys.verify(&token, Kind::Client, NOW).is_ok());
                    let bearer = Bearer::examine(&token, Some(&config()), NOW);
                    assert_eq!(bearer.grant().is_ok(), taken, "{kind:?} {exp} {nbf:?}");
                }
            }
        }
    }

    /// A token that says what it is, signed with another kind's key.
    fn pretend(secret: u8, claims: &Claims, signed_as: Kind) -> String {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"narrowlink token 1");
        let mut key = [0; 32];
        let info = [signed_as.name().as_bytes()];
        let pseudorandom = salt.extract(&[secret; 32]);
        pseudorandom.expand(&info, hkdf::HKDF_SHA256).unwrap().fill(&mut key).unwrap();
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims).unwrap());
        let message = format!("{}.{body}", URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"HS256"}"#));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    #[test]
    fn a_token_signed_as_something_else_than_it_says_opens_nothing() {
        let client = claims(Kind::Client);
        check(&pretend(7, &client, Kind::Client), by(0), "");
        for signed_as in [Kind::Agent, Kind::AgentPublish] {
            let token = pretend(7, &client, signed_as);
            assert!(Keys::new(&[7; 32]).verify(&token, Kind::Client, NOW).is_err());
            check(&token, Signature::Unknown, "another gateway's token, or altered");
        }
    }

    #[test]
    fn a_revoked_token_opens_nothing_and_the_entry_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("revoked.yaml");
        let revoked_by = |claims: &Claims| {
            let revocations = revocations::Revocations::load(&list).unwrap().unwrap();
            let config = Config { revocations, revocations_path: Some(list.clone()), ..config() };
            let trouble = Bearer::examine(&sign(7, claims), Some(&config), NOW).trouble;
            trouble.map(|trouble| trouble.to_string()).unwrap_or_default()
        };
        let client = Claims { iat: Some(NOW), ..claims(Kind::Client) };
        let says = |entry: &str| format!("revoked by {}: {entry}", list.display());
        std::fs::write(&list, format!("- issued_before: {NOW}\n- jti: t2\n")).unwrap();
        assert_eq!(revoked_by(&client), "");
        assert_eq!(revoked_by(&Claims { jti: "t2".to_owned(), ..client.clone() }), says("jti t2"));
        // Who doesn't say when it was issued is older than any time.
        let undated = Claims { iat: None, ..client.clone() };
        assert_eq!(revoked_by(&undated), says("issued before 2027-01-15 08:00:00 UTC"));
        std::fs::write(&list, format!("- {{uid: {}, name: laptop}}\n", client.uid)).unwrap();
        assert_eq!(revoked_by(&client), says(&format!("name \"laptop\" of {}", client.uid)));
        let tablet = Claims { name: "tablet".to_owned(), ..client };
        assert_eq!(revoked_by(&tablet), "");
    }

    #[test]
    fn without_a_config_everything_else_is_looked_at() {
        let at = |claims: &Claims| Bearer::examine(&sign(6, claims), None, NOW);
        let good = at(&claims(Kind::Client));
        assert!(good.signature == Signature::Unchecked && good.grant().is_ok());
        assert!(at(&Claims { exp: NOW - 60, ..claims(Kind::Client) }).grant().is_err());
        assert!(at(&claims(Kind::Agent)).grant().is_err());
    }

    #[test]
    fn a_token_is_found_in_a_file_or_in_the_argument_and_never_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("laptop.token");
        let token = sign(7, &claims(Kind::Client));
        std::fs::write(&path, format!("  {token}\n")).unwrap();
        assert_eq!(find_token(path.to_str().unwrap()), Ok(token.clone()));
        assert_eq!(find_token(&token), Ok(token.clone()));
        let half = find_token(&token[..token.len() / 2]).unwrap_err();
        assert!(half.contains("neither a file") && !half.contains(&token[..8]), "{half}");
        assert!(find_token(dir.path().to_str().unwrap()).unwrap_err().contains("directory"));
        std::fs::write(&path, vec![b'a'; 70_000]).unwrap();
        assert!(find_token(path.to_str().unwrap()).unwrap_err().contains("far too long"));
    }
}
