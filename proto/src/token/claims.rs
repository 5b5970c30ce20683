//! Role: what a token claims, and which claims make sense.
//! Invariants: claims have at most [`CLAIMS_BYTES_MAX`] bytes; an unknown or repeated key makes them
//! unreadable, because it might be a restriction.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Allowance, EXP_MAX, LEEWAY_S, Services, TokenError};
use crate::{
    id::Uid,
    policy::{Grant, ITEMS_MAX},
    printable::is_printable,
    when::show_from,
};

/// A token's claims at the most, as JSON.
pub const CLAIMS_BYTES_MAX: usize = 4 * 1024;

/// The name of an agent or client, or a token's id, at the most.
const NAME_BYTES_MAX: usize = 128;

/// What a token is for. Each kind has its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A client's link and streams.
    Client,
    /// An agent's link and lanes.
    Agent,
    /// What an agent may publish; only inside a link of the same uid and name.
    AgentPublish,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// What it is for.
    pub kind: Kind,
    /// The user's space.
    pub uid: Uid,
    /// The agent's or client's name.
    pub name: String,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// When it begins, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// When it was issued, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// Its own name, for revocation.
    pub jti: String,
    /// What a client may reach.
    #[serde(default, skip_serializing_if = "Grant::is_unrestricted")]
    pub policies: Grant,
    /// How much a client may use.
    #[serde(default, skip_serializing_if = "Allowance::is_silent")]
    pub limits: Allowance,
    /// What an agent may publish.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub connect: Option<Services>,
}

/// What a bearer may read of its own token, unverified: [`super::peek_unverified`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Peek {
    /// What it is for.
    pub kind: Kind,
    /// The user's space.
    pub uid: Uid,
    /// The agent's or client's name.
    pub name: String,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// When it begins, in seconds since 1970.
    #[serde(default)]
    pub nbf: Option<u64>,
}

/// From so long before its end on a token's bearer is told: a week, to ask somebody for a new one.
const AHEAD_S: u64 = 7 * 24 * 60 * 60;

impl Peek {
    /// What its bearer should know at `now` (seconds since 1970) about its end, and whether that has come.
    pub fn ending(&self, now: u64) -> Option<(String, bool)> {
        let at = show_from(self.exp, now);
        if self.exp <= now {
            return Some((format!("the token expired on {at}: ask for a new one"), true));
        }
        let is_soon = self.exp - now <= AHEAD_S;
        is_soon.then(|| (format!("the token expires on {at}: ask for a new one"), false))
    }
}

/// Claims that no token may carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// Not the JSON of [`Claims`]: missing, unknown or repeated keys, or other types.
    #[error("{0}")]
    Unreadable(String),
    /// Over [`CLAIMS_BYTES_MAX`].
    #[error("the claims have {bytes} bytes; at most {CLAIMS_BYTES_MAX} are taken")]
    TooLong {
        /// Their length.
        bytes: usize,
    },
    /// Of another kind than its key.
    #[error("the kind does not match the key")]
    Kind,
    /// A name or jti that is empty, too long, or can't be printed.
    #[error("{claim} must have 1 to {NAME_BYTES_MAX} bytes, all printable, and no space at its ends")]
    Name {
        /// `name` or `jti`.
        claim: &'static str,
    },
    /// Beyond the year 9999.
    #[error("exp {exp} is beyond the year 9999: are these milliseconds?")]
    Exp {
        /// What it said.
        exp: u64,
    },
    /// Over [`ITEMS_MAX`].
    #[error("{count} policy items; at most {ITEMS_MAX} are taken")]
    TooManyItems {
        /// How many.
        count: usize,
    },
    /// `policies` or `limits` in a token that is no client's, `connect` in one that publishes nothing, or
    /// the other way round.
    #[error("{claim} does not belong into a token of kind {}, or is missing there", kind.name())]
    Foreign {
        /// `policies`, `limits` or `connect`.
        claim: &'static str,
        /// The token's kind.
        kind: Kind,
    },
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Client, Self::Agent, Self::AgentPublish];

    /// As in the claim, and what its key is derived with.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Agent => "agent",
            Self::AgentPublish => "agent_publish",
        }
    }
}

impl Claims {
    /// The claims of a token without restrictions that holds until `exp` (seconds since 1970).
    pub fn new(kind: Kind, uid: Uid, name: &str, exp: u64, jti: &str) -> Self {
        Self {
            kind,
            uid,
            name: name.to_owned(),
            exp,
            nbf: None,
            iat: None,
            jti: jti.to_owned(),
            policies: Grant::default(),
            limits: Allowance::default(),
            connect: None,
        }
    }

    /// Reads claims. Whether their signature holds is not known here.
    pub(super) fn parse(json: &[u8]) -> Result<Self, ClaimsError> {
        if json.len() > CLAIMS_BYTES_MAX {
            return Err(ClaimsError::TooLong { bytes: json.len() });
        }
        let claims: Self =
            serde_json::from_slice(json).map_err(|e| ClaimsError::Unreadable(e.to_string()))?;
        claims.check_sense()?;
        Ok(claims)
    }

    /// Whether a token may carry these claims.
    ///
    /// # Errors
    /// The operator's.
    pub fn check(&self) -> Result<(), ClaimsError> {
        self.check_sense()?;
        let json = serde_json::to_vec(self).map_err(|e| ClaimsError::Unreadable(e.to_string()))?;
        if json.len() > CLAIMS_BYTES_MAX {
            return Err(ClaimsError::TooLong { bytes: json.len() });
        }
        Ok(())
    }

    /// Whether it is their time, at `now` (seconds since 1970).
    ///
    /// # Errors
    /// The bearer's: too late or too early.
    pub const fn hold_at(&self, now: u64) -> Result<(), TokenError> {
        if now >= self.exp.saturating_add(LEEWAY_S) {
            return Err(TokenError::Expired { exp: self.exp });
        }
        match self.nbf {
            Some(nbf) if nbf > now.saturating_add(LEEWAY_S) => Err(TokenError::NotYet { nbf }),
            _ => Ok(()),
        }
    }

    fn check_sense(&self) -> Result<(), ClaimsError> {
        for (claim, text) in [("name", &self.name), ("jti", &self.jti)] {
            if !is_name(text) {
                return Err(ClaimsError::Name { claim });
            }
        }
        if self.exp > EXP_MAX {
            return Err(ClaimsError::Exp { exp: self.exp });
        }
        if !self.policies.is_unrestricted() && self.kind != Kind::Client {
            return Err(ClaimsError::Foreign { claim: "policies", kind: self.kind });
        }
        if !self.limits.is_silent() && self.kind != Kind::Client {
            return Err(ClaimsError::Foreign { claim: "limits", kind: self.kind });
        }
        if self.connect.is_some() != (self.kind == Kind::AgentPublish) {
            return Err(ClaimsError::Foreign { claim: "connect", kind: self.kind });
        }
        let count = self.policies.lists().iter().map(|list| list.policies.len()).sum();
        if count > ITEMS_MAX { Err(ClaimsError::TooManyItems { count }) } else { Ok(()) }
    }
}

/// Whether a token may give this name to an agent or client: names end up in logs, tables and command
/// lines.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.trim() == text
        && !text.chars().any(|c| !is_printable(c))
}

/// A key that is there has a value.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    use crate::{
        policy::Policies,
        token::{PublishProtocol, Published},
    };

    fn agent() -> Claims {
        Claims::new(Kind::Agent, Uid::nil(), "home", 2_000_000_000, "0123456789abcdef")
    }

    fn publish(host: &str, addr: &str, port: u16) -> Claims {
        let service = Published {
            host: host.to_owned(),
            port: 0,
            path: String::new(),
            addr: (addr.into(), port),
            protocol: PublishProtocol::Http,
        };
        let connect = Some(Services::new(vec![service]).unwrap());
        Claims { kind: Kind::AgentPublish, connect, ..agent() }
    }

    #[test]
    fn claims_read_back_what_they_write() {
        let policies = Grant::new(vec![Policies { permit: true, policies: vec![] }]);
        let limits = Allowance { sessions: NonZeroU32::new(1), ..Allowance::default() };
        let client = Claims { kind: Kind::Client, policies, limits, nbf: Some(1), iat: Some(2), ..agent() };
        for claims in [agent(), client, publish("narrow.host", "127.0.0.1", 8080)] {
            claims.check().unwrap();
            let json = serde_json::to_vec(&claims).unwrap();
            assert_eq!(Claims::parse(&json), Ok(claims));
        }
    }

    #[test]
    fn names_that_deceive_a_reader_are_refused() {
        for bad in ["", " a", "a ", "a\nb", "a\0", "\u{202e}a", "a\u{200b}", "\u{1b}[2J", &"a".repeat(129)] {
            let claims = Claims { name: bad.into(), ..agent() };
            assert_eq!(claims.check(), Err(ClaimsError::Name { claim: "name" }), "{bad:?}");
            let claims = Claims { jti: bad.into(), ..agent() };
            assert_eq!(claims.check(), Err(ClaimsError::Name { claim: "jti" }), "{bad:?}");
        }
        for good in ["a", "my laptop", "Büro", "घर", "家", &"a".repeat(128)] {
            Claims { name: good.into(), ..agent() }.check().unwrap();
        }
    }

    #[test]
    fn each_kind_has_its_own_claims() {
        let policies = Grant::new(vec![Policies { permit: true, policies: vec![] }]);
        let limits = Allowance { sessions: NonZeroU32::new(1), ..Allowance::default() };
        let bad = [
            Claims { policies: policies.clone(), ..agent() },
            Claims { policies, ..publish("narrow.host", "a", 1) },
            Claims { limits, ..agent() },
            Claims { connect: publish("narrow.host", "a", 1).connect, ..agent() },
            Claims { kind: Kind::Client, ..publish("narrow.host", "a", 1) },
            Claims { connect: None, ..publish("narrow.host", "a", 1) },
        ];
        for claims in bad {
            assert!(matches!(claims.check(), Err(ClaimsError::Foreign { .. })), "{claims:?}");
        }
    }

    #[test]
    fn an_exp_in_milliseconds_is_refused() {
        assert!(Claims { exp: EXP_MAX, ..agent() }.check().is_ok());
        let exp = 1_710_227_806_000;
        assert_eq!(Claims { exp, ..agent() }.check(), Err(ClaimsError::Exp { exp }));
    }

    #[test]
    fn unknown_repeated_and_lost_keys_are_refused() {
        let rest = r#""uid":"00000000-0000-0000-0000-000000000000","name":"n","jti":"j""#;
        let service = r#"{"host":"a","addr":["a",1],"protocol":"HTTP"}"#;
        let check = |json: String, good: bool| {
            let got = Claims::parse(json.as_bytes());
            assert_eq!(got.is_ok(), good, "{json}: {got:?}");
        };
        check(format!(r#"{{"kind":"agent","exp":9,{rest}}}"#), true);
        check(format!(r#"{{"kind":"agent",{rest}}}"#), false);
        check(format!(r#"{{"kind":"agent","exp":9,"exp":99,{rest}}}"#), false);
        check(format!(r#"{{"kind":"agent","exp":9,"only_on_mondays":true,{rest}}}"#), false);
        check(format!(r#"{{"kind":"root","exp":9,{rest}}}"#), false);
        for exp in ["-1", "9.0", "1e3", "\"9\"", "null", "18446744073709551616"] {
            check(format!(r#"{{"kind":"agent","exp":{exp},{rest}}}"#), false);
        }
        check(format!(r#"{{"kind":"client","exp":9,"policies":null,{rest}}}"#), false);
        check(format!(r#"{{"kind":"client","exp":9,"policies":{{"permit":true}},{rest}}}"#), false);
        check(
            format!(r#"{{"kind":"client","exp":9,"policies":{{"permit":true,"policies":[]}},{rest}}}"#),
            true,
        );
        let twice = r#"{"permit":true,"policies":[],"permit":false}"#;
        check(format!(r#"{{"kind":"client","exp":9,"policies":{twice},{rest}}}"#), false);
        check(format!(r#"{{"kind":"agent_publish","exp":9,"connect":[{service}],{rest}}}"#), true);
        check(format!(r#"{{"kind":"agent_publish","exp":9,"connect":null,{rest}}}"#), false);
        check(format!(r#"{{"kind":"client","exp":9,"limits":{{"sessions":1}},{rest}}}"#), true);
        check(format!(r#"{{"kind":"client","exp":9,"limits":{{"session":1}},{rest}}}"#), false);
        let twice = format!("[{service},{service}]");
        check(format!(r#"{{"kind":"agent_publish","exp":9,"connect":{twice},{rest}}}"#), false);
    }

    #[test]
    fn over_long_and_deeply_nested_claims_are_refused() {
        let long = " ".repeat(CLAIMS_BYTES_MAX + 1);
        assert_eq!(Claims::parse(long.as_bytes()), Err(ClaimsError::TooLong { bytes: CLAIMS_BYTES_MAX + 1 }));
        let deep = format!(r#"{{"policies":{}"#, "[".repeat(4000));
        assert!(matches!(Claims::parse(deep.as_bytes()), Err(ClaimsError::Unreadable(_))));
    }
}
