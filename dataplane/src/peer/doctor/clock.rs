//! Role: whether this machine's clock is right, as far as the gateway's answer tells.
//! Invariants: pure: both times are parameters · a clock that is off is a failure only where the token or the certificate
//! holds by one of the two and not by the other.

use narrowlink_proto::{
    finding::{Finding, Trouble},
    token::{Claims, LEEWAY_S},
    when::show,
};

/// Clocks that are kept differ by less, and nothing of ours minds it.
const OFF_MAX_S: u64 = 30;
const SET_IT: &str =
    "set this machine's clock (timedatectl set-ntp true), or the gateway's if that one is wrong";

/// A time during which something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) what: &'static str,
    pub(super) from: u64,
    pub(super) until: u64,
    pub(super) trouble: Trouble,
}

impl Span {
    pub(super) fn of_token(claims: &Claims) -> Self {
        let from = claims.nbf.unwrap_or(0).saturating_sub(LEEWAY_S);
        Self { what: "token", from, until: claims.exp.saturating_add(LEEWAY_S), trouble: Trouble::Token }
    }

    const fn holds_at(&self, now: u64) -> bool {
        self.from <= now && now < self.until
    }
}

/// What is known of two clocks.
pub(super) struct Clock<'a> {
    pub(super) here: u64,
    /// What the answer said; a gateway by itself says nothing.
    pub(super) there: Option<u64>,
    /// What depends on it.
    pub(super) spans: &'a [Span],
    /// The gateway has taken the token.
    pub(super) is_taken: bool,
}

impl Clock<'_> {
    pub(super) fn judge(&self) -> Finding {
        match self.there {
            Some(there) => self.compare(there),
            None => self.infer(),
        }
    }

    fn compare(&self, there: u64) -> Finding {
        let off = self.here.abs_diff(there);
        if off <= OFF_MAX_S {
            return Finding::ok("clock", format!("within {OFF_MAX_S} s of the answer's date"));
        }
        let side = if self.here > there { "ahead of" } else { "behind" };
        let found = format!("this machine's clock is {off} s {side} the answer's date, {}", show(there));
        match self.spans.iter().find(|span| span.holds_at(self.here) != span.holds_at(there)) {
            Some(span) => {
                let found = format!("{found}, and the {} holds by one of them only", span.what);
                Finding::fail("clock", span.trouble, found, SET_IT)
            }
            None => Finding::warn("clock", found, SET_IT),
        }
    }

    /// A certificate that holds here was verified just now; what is left is the token.
    fn infer(&self) -> Finding {
        let token = self.spans.iter().find(|span| !span.holds_at(self.here));
        match token.filter(|_| self.is_taken) {
            Some(span) => {
                let what = span.what;
                let found = format!(
                    "by this machine's clock, {}, the {what} does not hold, and the gateway takes it",
                    show(self.here)
                );
                Finding::fail("clock", span.trouble, found, SET_IT)
            }
            None => {
                Finding::ok("clock", "the gateway says no date; nothing contradicts this machine's clock")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::finding::State;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn judged(there: Option<u64>, until: u64, is_taken: bool) -> Finding {
        let token = Span { what: "token", from: 0, until, trouble: Trouble::Token };
        let certificate =
            Span { what: "certificate", from: 0, until: u64::MAX, trouble: Trouble::Unreachable };
        Clock { here: NOW, there, spans: &[token, certificate], is_taken }.judge()
    }

    #[test]
    fn a_clock_that_is_off_fails_only_where_something_depends_on_it() {
        let far = NOW + 86_400;
        for (there, until, state, words) in [
            (NOW, far, State::Ok, "within 30 s"),
            (NOW + 30, far, State::Ok, "within 30 s"),
            (NOW + 31, far, State::Warn, "31 s behind"),
            (NOW - 3600, far, State::Warn, "3600 s ahead of"),
            (NOW - 3600, NOW - 1800, State::Fail, "the token holds by one of them only"),
            (NOW + 3600, NOW + 1800, State::Fail, "the token holds by one of them only"),
        ] {
            let said = judged(Some(there), until, true);
            assert_eq!(said.state, state, "{}", said.found);
            assert!(said.found.contains(words), "{}", said.found);
        }
    }

    #[test]
    fn without_a_date_the_token_tells() {
        assert_eq!(judged(None, NOW + 1, true).state, State::Ok);
        assert_eq!(judged(None, NOW - 9, false).state, State::Ok, "the token is at fault then");
        let off = judged(None, NOW - 9, true);
        assert_eq!((off.state, off.trouble), (State::Fail, Some(Trouble::Token)));
        assert!(off.found.contains("the gateway takes it") && off.next.is_some());
    }

    #[test]
    fn a_token_holds_as_long_as_gateways_take_it() {
        let claims = Claims::new(
            narrowlink_proto::token::Kind::Client,
            narrowlink_proto::id::Uid::nil(),
            "laptop",
            NOW,
            "1",
        );
        for nbf in [None, Some(NOW - 60)] {
            let claims = Claims { nbf, ..claims.clone() };
            for now in [NOW - 70, NOW - 62, NOW - 60, NOW, NOW + 1, NOW + 2] {
                assert_eq!(Span::of_token(&claims).holds_at(now), claims.hold_at(now).is_ok(), "{now}");
            }
        }
    }
}
