//! Role: what the gateway remembers of a token that holds, beside what the data plane knows of its bearer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use narrowlink_dataplane::gateway::principal::{FOR_EVER, Principal};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    message::Speaker,
    policy::Grant,
    token::{Claims, KeyId, Kind, LEEWAY_S},
};

/// What the operator remembers of a bearer.
pub(crate) struct Credentials {
    pub(crate) grant: Grant,
    /// When the token was issued.
    pub(crate) iat: Option<u64>,
    /// What it was signed with.
    pub(crate) key: KeyId,
    /// When it holds no more, in seconds since 1970.
    pub(crate) ends_s: u64,
}

/// What the token of somebody who was let in is signed with.
pub(crate) fn signer(who: &Principal) -> Option<KeyId> {
    who.grant.downcast_ref().map(|Credentials { key, .. }| *key)
}

/// What a client's token grants; an agent's grants nothing here.
pub(crate) fn granted(who: &Principal) -> Result<&Grant, Refused> {
    match (who.speaker, who.grant.downcast_ref()) {
        (Speaker::Client, Some(Credentials { grant, .. })) => Ok(grant),
        _ => Err(Refused::new(RefusalCode::Policy, "only a client's token may ask for this")),
    }
}

/// Somebody whose token holds.
pub(crate) fn principal(claims: Claims, key: KeyId, since_1970: Duration, now: Instant) -> Principal {
    let ends_s = claims.exp.saturating_add(LEEWAY_S);
    let left = Duration::from_secs(ends_s).saturating_sub(since_1970);
    let speaker = if claims.kind == Kind::Client { Speaker::Client } else { Speaker::Agent };
    Principal {
        token_id: claims.jti,
        expires_at: now + left.min(FOR_EVER),
        grant: Arc::new(Credentials { grant: claims.policies, iat: claims.iat, key, ends_s }),
        ..Principal::new(speaker, claims.uid, &claims.name)
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{id::Uid, token::Keys};

    use super::*;

    #[test]
    fn a_token_ends_when_it_says() {
        let (now, key) = (Instant::now(), Keys::new(&[7; 32]).id());
        let at = |exp: u64, millis: u64| {
            let claims = Claims::new(Kind::Client, Uid::nil(), "laptop", exp, "t1");
            principal(claims, key, Duration::from_millis(millis), now).expires_at - now
        };
        assert_eq!(at(1000, 900_500), Duration::from_millis(99_500 + LEEWAY_S * 1000));
        assert_eq!(at(1000, 5_000_000), Duration::ZERO);
        assert_eq!(at(u64::MAX, 0), FOR_EVER);
    }
}
