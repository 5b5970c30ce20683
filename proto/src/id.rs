//! Role: the identifiers of users, links and sessions, and the proofs made from them.
//! Invariants: ids that grant anything are 256 random bits; a secret never shows in `Debug`.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Sha256;
use zeroize::Zeroize;

/// A user's space: agents and clients of one uid see each other and nobody else.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(uuid::Uuid);

/// A text that is no uid; says what one is, and repeats nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {UID}")]
pub struct NotAUid;

/// Fits behind "expected".
const UID: &str = "a UUID, 8-4-4-4-12 hex digits (`uuidgen` or `cat /proc/sys/kernel/random/uuid` makes one)";

impl Uid {
    /// The uid of this number.
    pub const fn from_u128(number: u128) -> Self {
        Self(uuid::Uuid::from_u128(number))
    }

    /// The uid that is all zeros.
    pub const fn nil() -> Self {
        Self(uuid::Uuid::nil())
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for Uid {
    type Err = NotAUid;

    fn from_str(text: &str) -> Result<Self, NotAUid> {
        // The library's own error quotes a character of the text, and doesn't say what would be right.
        text.parse().map(Self).map_err(|_| NotAUid)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(UidVisitor)
    }
}

struct UidVisitor;

impl de::Visitor<'_> for UidVisitor {
    type Value = Uid;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(UID)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Uid, E> {
        text.parse().map_err(|NotAUid| E::invalid_value(de::Unexpected::Other("another text"), &self))
    }
}

/// An agent as the gateway knows it: unique per user space and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AgentKey {
    /// The user's space.
    pub uid: Uid,
    /// The agent's name within that space.
    pub name: String,
}

/// A text that is not the base64url form of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 bytes in base64url without padding")]
pub struct NotAnId;

macro_rules! id256 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes that the caller drew from the system's random source.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Reads the base64url form (43 characters, no padding).
            ///
            /// # Errors
            /// The sender's: any other text.
            pub fn parse(text: &str) -> Result<Self, NotAnId> {
                let mut bytes = [0; 32];
                match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
                    Ok(32) if text.len() == 43 => Ok(Self(bytes)),
                    _ => Err(NotAnId),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
            }
        }

        /// Four bytes tell two ids apart in a log.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let [a, b, c, d, ..] = self.0;
                write!(f, concat!(stringify!($name), "({:02x}{:02x}{:02x}{:02x}..)"), a, b, c, d)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    };
}

id256! {
    /// One session, named by the client that opens it; used once.
    SessionId
}
id256! {
    /// One link, named by the gateway.
    LinkId
}
id256! {
    /// One lane, named by the agent that offers it; used once.
    LaneId
}
id256! {
    /// What the gateway asks a link's peer to sign.
    Nonce
}
id256! {
    /// What both ends of one TLS connection can make of its keys, and nobody else.
    ChannelBinding
}
id256! {
    /// A digest of a request's or an answer's head, as it was sent.
    HeadDigest
}

impl ChannelBinding {
    /// Of the key, and the initial vector, that the client's records are sealed with first. It tells nothing about
    /// them.
    pub fn new(key: &[u8], iv: &[u8]) -> Self {
        #[expect(clippy::expect_used, reason = "HMAC takes any key length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes any key length");
        mac.update(b"narrowlink channel binding 1");
        mac.update(iv);
        Self(mac.finalize().into_bytes().into())
    }
}

/// The secret that a gateway gives a link in its Welcome; lanes prove themselves with it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkSecret(#[serde(with = "secret_text")] [u8; 32]);

impl LinkSecret {
    /// Wraps 32 bytes that the caller drew from the system's random source.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The proof a lane brings: HMAC-SHA256 over the link's and the lane's id. The secret itself
    /// travels once, in the Welcome.
    pub fn prove_lane(&self, link: &LinkId, lane: &LaneId) -> [u8; 32] {
        self.mac(link, lane).finalize().into_bytes().into()
    }

    /// Whether `proof` is this link's for that lane; compared in constant time.
    pub fn permits_lane(&self, link: &LinkId, lane: &LaneId, proof: &[u8; 32]) -> bool {
        self.mac(link, lane).verify_slice(proof).is_ok()
    }

    fn mac(&self, link: &LinkId, lane: &LaneId) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key length");
        mac.update(b"narrowlink lane 1");
        mac.update(link.as_bytes());
        mac.update(lane.as_bytes());
        mac
    }
}

impl Drop for LinkSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for LinkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkSecret(..)")
    }
}

mod secret_text {
    use super::{Deserializer, Serializer, SessionId};
    use serde::{Deserialize as _, Serialize as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        SessionId::from_bytes(*bytes).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        SessionId::deserialize(d).map(|id| *id.as_bytes())
    }
}

/// What an agent signs with its instance key at link set-up, so that a restart of the same
/// installation can be told from a stranger who holds a copy of the token.
pub fn instance_statement(nonce: &Nonce, uid: &Uid, agent: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + 32 + 16 + agent.len());
    out.extend_from_slice(b"narrowlink instance 1");
    out.extend_from_slice(nonce.as_bytes());
    out.extend_from_slice(uid.as_bytes());
    out.extend_from_slice(agent.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints() {
        let id = SessionId::from_bytes([7; 32]);
        assert_eq!(SessionId::parse(&id.to_string()), Ok(id));
        assert_eq!(format!("{id:?}"), "SessionId(07070707..)");
    }

    #[test]
    fn other_spellings_of_an_id_are_refused() {
        let text = SessionId::from_bytes([0xff; 32]).to_string();
        for bad in [format!("{text}="), text[1..].to_owned(), format!("{text}A"), text.replace('_', "/")] {
            assert_eq!(SessionId::parse(&bad), Err(NotAnId), "{bad}");
        }
        // Trailing bits that mean nothing must be zero, or one id had several spellings.
        let mut bent = text.clone();
        bent.pop();
        bent.push('9');
        assert_eq!(SessionId::parse(&bent), Err(NotAnId));
    }

    #[test]
    fn what_is_no_uid_is_told_what_one_is_and_how_to_make_one_and_not_repeated() {
        let uid = Uid::from_u128(0x6f1c_0b7e_57c8_4a6e_9a3c_2f8f_5a1d_7e10);
        let text = "6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10";
        assert_eq!(
            (uid.to_string().as_str(), text.parse(), crate::yaml::read(text)),
            (text, Ok(uid), Ok(uid))
        );
        assert_eq!(serde_json::to_string(&uid).unwrap(), format!("\"{text}\""));
        let says = "expected a UUID, 8-4-4-4-12 hex digits (`uuidgen` or `cat /proc/sys/kernel/random/uuid` makes one)";
        assert_eq!("bob".parse::<Uid>().unwrap_err().to_string(), says);
        for (yaml, found) in [("bob", ""), ("6f1c0b7e-57c8", ""), ("12", ""), ("[a]", ", found a list")] {
            let why = crate::yaml::read::<Uid>(yaml).unwrap_err().to_string();
            assert_eq!(why, format!("line 1 column 1: {says}{found}"), "{yaml}");
        }
        let key = crate::yaml::read::<std::collections::HashMap<Uid, u8>>("bob: 1").unwrap_err().to_string();
        assert_eq!(key, format!("line 1 column 1: {says}"));
    }

    #[test]
    fn a_lane_proof_is_bound_to_link_and_lane() {
        let secret = LinkSecret::from_bytes([1; 32]);
        let (link, lane) = (LinkId::from_bytes([2; 32]), LaneId::from_bytes([3; 32]));
        let proof = secret.prove_lane(&link, &lane);
        assert!(secret.permits_lane(&link, &lane, &proof));
        assert!(!secret.permits_lane(&LinkId::from_bytes([9; 32]), &lane, &proof));
        assert!(!secret.permits_lane(&link, &LaneId::from_bytes([9; 32]), &proof));
        assert!(!LinkSecret::from_bytes([9; 32]).permits_lane(&link, &lane, &proof));
        assert_eq!(format!("{secret:?}"), "LinkSecret(..)");
    }
}
