//! Role: asks a gateway for a link, and reads of its answer who it is, what stands between, and whether it takes the token.
//! Invariants: one request, one answer · what no gateway of ours has said is never taken for its word.
//! See: ARCHITECTURE.md "The wire".

use std::{
    io,
    time::{Duration, Instant},
};

use narrowlink_proto::{
    ended::RefusalCode,
    finding::{Finding, Trouble},
    message::Channel,
    token::TokenError,
    upgrade::{self, Answer, Framing, Protocol, Trace, Way},
    when::{distance, show},
};

use super::{PENALTY, STEP_TIMEOUT, files::Held};
use crate::{
    peer::open::{Ask, Gateway},
    run::timer::timeout,
    transport::wire::Wire,
    tunnel::error::{cause_and_step, end_hint, garbage_words, status_words},
};

/// From so long before its end on a token is warned of: a week, as elsewhere.
const AHEAD_S: u64 = 7 * 24 * 60 * 60;

/// What is to be asked, and where.
pub(super) struct Request<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) wire: Wire,
}

/// An answer of a gateway's.
pub(super) struct Heard {
    pub(super) wire: Wire,
    pub(super) answer: Answer,
    pub(super) trace: Trace,
    /// From the request to the answer: a round trip, and the gateway's look at the token.
    pub(super) took: Duration,
}

impl Request<'_> {
    /// Asks.
    ///
    /// # Errors
    /// What was found in the place of a gateway.
    pub(super) async fn send(self) -> Result<Heard, Finding> {
        let began = Instant::now();
        let tls = self.gateway.is_tls();
        match timeout(STEP_TIMEOUT, self.exchange()).await {
            Ok(Ok((wire, answer, trace))) => Ok(Heard { wire, answer, trace, took: began.elapsed() }),
            Ok(Err(failed)) => Err(failed),
            Err(_) => {
                let found = format!("no answer within {} s", STEP_TIMEOUT.as_secs());
                let hint = if tls { "" } else { ", or a port of TLS (then write protocol: Wss)" };
                Err(not_a_gateway(&found, &format!("is this the gateway's port{hint}, and is it well?")))
            }
        }
    }

    async fn exchange(self) -> Result<(Wire, Answer, Trace), Finding> {
        let Self { gateway, wire } = self;
        let broke = |e: io::Error| {
            let hint = end_hint(gateway.is_tls()).trim_start_matches("; ");
            let next = if hint.is_empty() { "is this the gateway's port?" } else { hint };
            let found = format!("it ended the connection before it answered: {e}");
            not_a_gateway(&found, &format!("{next}; {PENALTY}"))
        };
        let protocol = Protocol { channel: Channel::Link, framing: Framing::Framed };
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(|e| broke(io::Error::other(e)))?;
        let request = gateway.request(protocol, key, Ask::Nothing, Way::default());
        wire.write_all(&request).await.map_err(broke)?;
        let mut got = Vec::new();
        loop {
            match wire.read_onto(&mut got).await {
                Ok(0) => return Err(broke(io::ErrorKind::UnexpectedEof.into())),
                read => read.map_err(broke)?,
            };
            let answer = upgrade::parse_response(&got, &key, protocol).map_err(|e| {
                let words = garbage_words(&got, e, gateway.is_tls());
                let (found, next) = cause_and_step(&words);
                not_a_gateway(found, next.unwrap_or("is this the gateway's port?"))
            })?;
            match answer {
                Answer::NeedMore => continue,
                Answer::Refused { status, refused: None, from, .. } => {
                    let words = status_words(status, &from, gateway.is_tls());
                    let (found, next) = cause_and_step(&words);
                    let found = format!("no Narrowlink gateway, but HTTP status {status}: {found}");
                    return Err(not_a_gateway(&found, next.unwrap_or("check host, port and protocol")));
                }
                Answer::Accepted { head_bytes, .. } | Answer::Refused { head_bytes, .. } => {
                    wire.unread(&got[head_bytes..]);
                }
            }
            let trace = Trace::of(&got);
            return Ok((wire, answer, trace));
        }
    }
}

fn not_a_gateway(found: &str, next: &str) -> Finding {
    Finding::fail("http", Trouble::Unreachable, found, next)
}

/// A gateway has answered; whether something stands between. `is_raw`: plain bytes are wanted, which need that nothing does.
pub(super) fn proxies(heard: &Heard, is_raw: bool) -> Finding {
    judge_proxies(&heard.trace.proxies, is_raw)
}

fn judge_proxies(proxies: &[String], is_raw: bool) -> Finding {
    if proxies.is_empty() {
        return Finding::ok("http", "a Narrowlink gateway answers, and nothing shows on the way");
    }
    let found =
        format!("a Narrowlink gateway answers through a proxy or CDN, which adds {}", proxies.join(", "));
    let next = match is_raw {
        true => "write framing: framed in place of raw, which is refused there",
        false => {
            "nothing if you have put it there, else ask who runs it: where it ends TLS, it can read all of it"
        }
    };
    Finding::warn("http", found, next)
}

/// A token, and what its gateway has said about it, if that was asked.
pub(super) fn token(held: &Held, heard: Option<&Heard>, now: u64) -> Finding {
    judge_token(held, heard.map(|heard| &heard.answer), now)
}

fn judge_token(held: &Held, answer: Option<&Answer>, now: u64) -> Finding {
    let claims = &held.claims;
    let (exp, name) = (claims.exp, claims.name.escape_debug());
    let end = format!("{} ({})", show(exp), distance(exp, now));
    let who = format!("{} {name}", claims.kind.name());
    let is_refused = matches!(answer, Some(Answer::Refused { refused: Some(refused), .. })
        if refused.code == RefusalCode::Unauthenticated);
    let is_taken = matches!(answer, Some(Answer::Accepted { .. }));
    match claims.hold_at(now) {
        // Its gateway has the last word: the clock is looked at next.
        Err(TokenError::Expired { .. }) if !is_taken => {
            let found = format!("{who}: it expired on {end}");
            return Finding::fail("token", Trouble::Token, found, "ask for a new one");
        }
        Err(TokenError::NotYet { nbf }) if !is_taken => {
            let found = format!("{who}: it is valid only from {} ({})", show(nbf), distance(nbf, now));
            return Finding::fail("token", Trouble::Token, found, "wait until then, or ask for a new one");
        }
        _ => {}
    }
    if is_refused {
        let found = format!("{who}: the gateway does not accept it, though it holds until {end}");
        let next = "it is another gateway's, or was revoked: ask for a new one";
        return Finding::fail("token", Trouble::Refused, found, next);
    }
    let verdict = match answer {
        Some(Answer::Accepted { .. }) => "the gateway accepts it",
        Some(_) => "the gateway says nothing against it",
        None => "the gateway was not asked",
    };
    if exp.saturating_sub(now) <= AHEAD_S {
        return Finding::warn("token", format!("{who}, until {end}: {verdict}"), "ask for a new one in time");
    }
    Finding::ok("token", format!("{who}, until {end}: {verdict}"))
}

/// Why a gateway gives no link; `None` where the token is the reason, which is said of that.
pub(super) fn refusal(answer: &Answer) -> Option<Finding> {
    let Answer::Refused { refused: Some(refused), .. } = answer else { return None };
    let next = match refused.code {
        RefusalCode::Unauthenticated => return None,
        RefusalCode::Limited | RefusalCode::Draining => "try again later",
        RefusalCode::Protocol | RefusalCode::Unsupported => {
            "update the older one of gateway and this program"
        }
        _ => "ask who runs the gateway what its log says",
    };
    // A gateway's own words, which may end in what to do; ours come behind them.
    Some(Finding::fail("link", Trouble::Unreachable, format!("refused: {}", refused.reason), next))
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        ended::Refused,
        endpoint::SecretText,
        finding::State,
        id::Uid,
        token::{Claims, Kind},
        upgrade::Stranger,
    };

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn held(exp: u64, nbf: Option<u64>) -> Held {
        let claims = Claims { nbf, ..Claims::new(Kind::Client, Uid::nil(), "laptop", exp, "1") };
        Held { text: SecretText::new("secret".to_owned()), claims }
    }

    fn refused(code: RefusalCode) -> Answer {
        let refused = Some(Refused::new(code, "no\u{1b}[2J"));
        Answer::Refused { status: 401, refused, from: Stranger::default(), head_bytes: 0 }
    }

    fn accepted() -> Answer {
        Answer::Accepted { opened: None, way: Way::default(), head_bytes: 0 }
    }

    #[test]
    fn a_token_is_judged_by_its_time_and_by_its_gateway() {
        let far = NOW + 99 * 86_400;
        let no = refused(RefusalCode::Unauthenticated);
        let busy = refused(RefusalCode::Limited);
        for (held, answer, state, trouble, words) in [
            (held(far, None), Some(accepted()), State::Ok, None, "accepts it"),
            (held(far, None), None, State::Ok, None, "was not asked"),
            (held(far, None), Some(busy), State::Ok, None, "nothing against it"),
            (held(NOW + 86_400, None), Some(accepted()), State::Warn, None, "accepts it"),
            (held(far, None), Some(no.clone()), State::Fail, Some(Trouble::Refused), "does not accept it"),
            (held(NOW - 9, None), Some(no.clone()), State::Fail, Some(Trouble::Token), "it expired on"),
            (held(NOW - 9, None), None, State::Fail, Some(Trouble::Token), "it expired on"),
            (held(far, Some(NOW + 60)), Some(no), State::Fail, Some(Trouble::Token), "only from"),
            (held(NOW - 9, None), Some(accepted()), State::Warn, None, "accepts it"),
        ] {
            let said = judge_token(&held, answer.as_ref(), NOW);
            assert_eq!((said.state, said.trouble), (state, trouble), "{}", said.found);
            assert!(said.found.contains(words) && said.found.contains("client laptop"), "{}", said.found);
            assert!(!said.line().contains("secret"));
        }
    }

    #[test]
    fn a_refusal_is_the_link_s_unless_the_token_is_its_reason() {
        assert_eq!(refusal(&accepted()), None);
        assert_eq!(refusal(&refused(RefusalCode::Unauthenticated)), None);
        let said = refusal(&refused(RefusalCode::Limited)).unwrap();
        assert_eq!((said.check, said.state), ("link", State::Fail));
        assert_eq!(said.found, "refused: no[2J");
    }

    #[test]
    fn a_proxy_is_warned_of_and_more_so_where_plain_bytes_are_wanted() {
        assert_eq!(judge_proxies(&[], true).state, State::Ok);
        let via = ["Via: 1.1 squid".to_owned()];
        let next = |is_raw| judge_proxies(&via, is_raw).next.unwrap();
        assert!(next(true).contains("framing: framed") && next(false).contains("ask who runs it"));
        assert!(judge_proxies(&via, false).found.ends_with("which adds Via: 1.1 squid"));
    }
}
