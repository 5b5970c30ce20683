//! Role: why something was refused or ended; the same value in answer, log, metric and test.
//! Invariants: a code is for programs and never changes meaning; a reason is for people.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{id::SessionId, printable};

/// Why a request was refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No token, or one that does not hold; every cause looks the same.
    Unauthenticated,
    /// The client's policy does not allow this target.
    Policy,
    /// The agent's own rules do not allow this target.
    DeniedByAgent,
    /// No agent of that name is connected (or it is not yours).
    AgentNotFound,
    /// A limit was reached; later may work.
    Limited,
    /// The agent is there but gave no lane or no answer in time.
    AgentTimeout,
    /// The lane broke after the Dial was written; open again with a new session id.
    LaneLost,
    /// The target's host answered: nobody listens there.
    TargetRefused,
    /// The target's name does not resolve.
    TargetUnresolvable,
    /// The target's host or net can't be reached.
    TargetUnreachable,
    /// The target did not answer in time.
    TargetTimeout,
    /// What was asked is not served here (another kind of target, a feature not built in).
    Unsupported,
    /// The host is published already, by another user.
    HostTaken,
    /// A newer Open of the same session took this one's place.
    Superseded,
    /// The gateway shuts down.
    Draining,
    /// The request breaks the protocol.
    Protocol,
    /// Our own fault.
    Internal,
    /// From a newer peer.
    #[serde(other)]
    Other,
}

impl RefusalCode {
    /// As it is written everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Policy => "policy",
            Self::DeniedByAgent => "denied_by_agent",
            Self::AgentNotFound => "agent_not_found",
            Self::Limited => "limited",
            Self::AgentTimeout => "agent_timeout",
            Self::LaneLost => "lane_lost",
            Self::TargetRefused => "target_refused",
            Self::TargetUnresolvable => "target_unresolvable",
            Self::TargetUnreachable => "target_unreachable",
            Self::TargetTimeout => "target_timeout",
            Self::Unsupported => "unsupported",
            Self::HostTaken => "host_taken",
            Self::Superseded => "superseded",
            Self::Draining => "draining",
            Self::Protocol => "protocol",
            Self::Internal => "internal",
            Self::Other => "other",
        }
    }

    /// The HTTP status that carries this code when the refusal answers an upgrade.
    pub(crate) const fn http_status(self) -> u16 {
        match self {
            Self::Protocol => 400,
            Self::Unauthenticated => 401,
            Self::Policy | Self::DeniedByAgent => 403,
            Self::AgentNotFound => 404,
            Self::Superseded | Self::HostTaken => 409,
            Self::Limited => 429,
            Self::Internal => 500,
            Self::Unsupported => 501,
            Self::LaneLost
            | Self::TargetRefused
            | Self::TargetUnresolvable
            | Self::TargetUnreachable
            | Self::Other => 502,
            Self::Draining => 503,
            Self::AgentTimeout | Self::TargetTimeout => 504,
        }
    }
}

/// A refusal: one line of JSON in a message, a header (`NL-Refused`) or a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// The session that was asked for, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// For programs.
    pub code: RefusalCode,
    /// For people: what, where, and what to do next.
    #[serde(deserialize_with = "printable::deserialize")]
    pub reason: String,
    /// After so many milliseconds the same request may succeed; absent where nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
}

impl Refused {
    /// A refusal without a session.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self { session: None, code, reason: reason.into(), retry_after_ms: None }
    }

    /// The same refusal, saying when to try again. A wait below a millisecond counts as one.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after_ms = Some(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1));
        self
    }

    /// The same refusal, naming the session it answers.
    #[must_use]
    pub fn of(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }
}

/// Which side of a session something came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Towards the client: the user's program, the client, or its connection.
    Client,
    /// Towards the target: the agent, its connection, or the target.
    Target,
    /// This process.
    Here,
}

/// How a session ended. Anything but [`Why::Finished`] is a reset for both programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Both directions ended, every byte was delivered.
    Finished,
    /// The connection was reset.
    Reset,
    /// The connection ended without the mark of a clean end.
    Truncated,
    /// The peer's own connection, over which sessions come, broke: its process was ended, or something between.
    Cut,
    /// The peer broke the protocol.
    Protocol,
    /// The peer vanished: nothing came back in time.
    Vanished,
    /// The token expired.
    Expired,
    /// The session was revoked.
    Revoked,
    /// The secret that signed the token is in use no more at the gateway.
    SecretRetired,
    /// What the token, or its user, may use is used up.
    UsedUp,
    /// This process shuts down.
    Shutdown,
    /// Our own fault (a panic was caught).
    Internal,
}

impl Why {
    /// As it is written everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::Truncated => "truncated",
            Self::Cut => "cut",
            Self::Protocol => "protocol",
            Self::Vanished => "vanished",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::SecretRetired => "secret_retired",
            Self::UsedUp => "used_up",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }
}

/// Who ended a session, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ended {
    /// Where it came from.
    pub by: Side,
    /// What happened.
    pub why: Why,
}

impl Ended {
    /// The same in a sentence, in which this process is called `here`.
    pub fn by_name(&self, here: &str) -> String {
        let by = match self.by {
            Side::Client => "the client's side",
            Side::Target => "the target's side",
            Side::Here => here,
        };
        let did = match self.why {
            // These are nobody's deed.
            Why::Finished => return "both sides finished, and every byte was delivered".to_owned(),
            Why::Expired => return "the token expired".to_owned(),
            Why::Revoked => return "the token was revoked".to_owned(),
            Why::SecretRetired => return "the secret that signed the token is in use no more".to_owned(),
            Why::UsedUp => {
                return "nothing is left of what this token, or its user, may use this month".to_owned();
            }
            Why::Cut => return format!("the connection to {by} broke"),
            Why::Reset => "reset the connection",
            Why::Truncated => "ended without finishing",
            Why::Protocol => "broke the protocol",
            Why::Vanished => "vanished",
            Why::Shutdown => "shut down",
            Why::Internal => "failed: this is a bug",
        };
        format!("{by} {did}")
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by_name("this program"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Channel, Message, Speaker};

    #[test]
    fn a_refusal_reads_back_and_a_newer_code_is_still_a_refusal() {
        let refused =
            Refused::new(RefusalCode::AgentNotFound, "no agent home").of(SessionId::from_bytes([1; 32]));
        let text = serde_json::to_string(&refused).unwrap();
        assert_eq!(serde_json::from_str::<Refused>(&text).unwrap(), refused);
        let newer: Refused = serde_json::from_str(r#"{"code":"too_loud","reason":"hush"}"#).unwrap();
        assert_eq!((newer.code, newer.retry_after_ms), (RefusalCode::Other, None));
        let limited = Refused::new(RefusalCode::Limited, "later").retry_after(Duration::from_micros(1));
        assert_eq!(serde_json::to_value(&limited).unwrap()["retry_after_ms"], 1);
        assert!(!text.contains("retry_after_ms"), "{text}");
    }

    #[test]
    fn a_code_reads_back_from_its_name() {
        let codes = include_str!("../../docs/audit.md").split("## Codes").nth(1).unwrap();
        let (of_refusals, of_ends) = codes.split_once("Of `close`").unwrap();
        let names = |table: &'static str| -> Vec<&str> {
            table.split("\n| `").skip(1).filter_map(|row| row.split('`').next()).collect()
        };
        let (of_refusals, of_ends) = (names(of_refusals), names(of_ends));
        assert_eq!((of_refusals.len(), of_ends.len()), (17, 12), "{of_refusals:?} {of_ends:?}");
        for name in of_refusals {
            let code: RefusalCode = serde_json::from_value(name.into()).unwrap();
            assert_eq!((code.name(), serde_json::to_value(code).unwrap().as_str()), (name, Some(name)));
        }
        for name in of_ends {
            let why: Why = serde_json::from_value(name.into()).unwrap();
            assert_eq!((why.name(), serde_json::to_value(why).unwrap().as_str()), (name, Some(name)));
        }
    }

    #[test]
    fn an_end_is_said_as_what_happened_and_only_a_deed_has_its_doer() {
        let said = |by, why| Ended { by, why }.by_name("this gateway");
        for why in [Why::Finished, Why::Expired, Why::Revoked, Why::SecretRetired, Why::UsedUp] {
            let words = said(Side::Here, why);
            assert!(!words.contains("this gateway") && words == said(Side::Client, why), "{words}");
        }
        assert_eq!(said(Side::Here, Why::Revoked), "the token was revoked");
        assert_eq!(said(Side::Here, Why::Shutdown), "this gateway shut down");
        assert_eq!(said(Side::Target, Why::Reset), "the target's side reset the connection");
        assert_eq!(said(Side::Target, Why::Cut), "the connection to the target's side broke");
        assert_eq!(Ended { by: Side::Here, why: Why::Shutdown }.to_string(), "this program shut down");
    }

    #[test]
    fn a_peer_s_words_are_printable_before_anybody_reads_them() {
        let text = r#"{"code":"policy","reason":"no\u202e\u001b[2J\n way"}"#;
        assert_eq!(serde_json::from_str::<Refused>(text).unwrap().reason, "no[2J way");
        let text = r#"{"type":"goodbye","code":"draining","reason":"bye\u2066\u0007"}"#;
        let goodbye = Message::decode(text.as_bytes(), Speaker::Gateway, Channel::Link).unwrap();
        assert!(matches!(goodbye, Message::Goodbye(goodbye) if goodbye.reason == "bye"));
        let text = r#"{"type":"agents","agents":[{"name":"h\u202eome","address":"1.2.3.4:5","ping_us":null,"connected_s":1}],"more":false}"#;
        let agents = Message::decode(text.as_bytes(), Speaker::Gateway, Channel::Link).unwrap();
        assert!(matches!(agents, Message::Agents { agents, .. } if agents[0].name == "home"));
    }
}
