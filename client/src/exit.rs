//! Role: how `narrowlink` ends: one exit code and one sentence for each kind of trouble.
//! Invariants: a code never changes its meaning; every sentence says what, where, and what next.
//! See: docs/errors.md; sysexits.h, whose numbers these are.

use std::{fmt, io};

use narrowlink_dataplane::{
    run::{enroll::EnrollError, worker},
    tunnel::{LinkError, TunnelError},
};
use narrowlink_manual::PageError;
use narrowlink_proto::{
    code::Code,
    ended::{Ended, RefusalCode, Refused, Side, Why},
    finding::Trouble,
    message::GoodbyeCode,
    printable::printable,
    yaml::Located,
};

use crate::config::{ConfigError, Unfit};

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The command line can't be understood.
    Usage = 2,
    /// The token's policy or the agent's own rules do not allow it.
    Policy = 65,
    /// The gateway, the agent or the target can't be reached.
    Unreachable = 69,
    /// Our own fault, or the system's.
    Internal = 70,
    /// What was to be written can't be.
    CantCreate = 73,
    /// The session was reset after it had opened, or standard input or output broke.
    Reset = 74,
    /// The token does not hold.
    Authentication = 77,
    /// The configuration can't be used.
    Configuration = 78,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// For what `doctor` has found.
    pub const fn of_trouble(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Configuration => Self::Configuration,
            Trouble::Token | Trouble::Refused => Self::Authentication,
            Trouble::Unreachable => Self::Unreachable,
            Trouble::Internal => Self::Internal,
        }
    }

    /// The kind of trouble, where no more is known of it.
    const fn kind(self) -> Code {
        match self {
            Self::Usage => Code::Usage,
            Self::Policy => Code::Policy,
            Self::Unreachable => Code::Unreachable,
            // Who is done has no trouble.
            Self::Internal | Self::Done => Code::Internal,
            Self::CantCreate => Code::Unmade,
            Self::Reset => Code::Reset,
            Self::Authentication => Code::Token,
            Self::Configuration => Code::ConfigContent,
        }
    }

    /// For a refusal.
    pub const fn of(code: RefusalCode) -> Self {
        match code {
            RefusalCode::Unauthenticated => Self::Authentication,
            RefusalCode::Policy | RefusalCode::DeniedByAgent => Self::Policy,
            RefusalCode::AgentNotFound
            | RefusalCode::Limited
            | RefusalCode::AgentTimeout
            | RefusalCode::LaneLost
            | RefusalCode::TargetRefused
            | RefusalCode::TargetUnresolvable
            | RefusalCode::TargetUnreachable
            | RefusalCode::TargetTimeout
            | RefusalCode::Unsupported
            | RefusalCode::HostTaken
            | RefusalCode::Superseded
            | RefusalCode::Draining
            | RefusalCode::Protocol
            | RefusalCode::Internal
            | RefusalCode::Other => Self::Unreachable,
        }
    }
}

/// Why a command did not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub exit: Exit,
    /// What `help` says more about.
    pub code: Code,
    /// For people; empty where there is nothing to say.
    pub message: String,
}

impl Failure {
    /// A failure; what can't be printed is left out of its sentence, which may hold a peer's words.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        let message = printable(&message.to_string(), usize::MAX);
        Self { exit, code: exit.kind(), message }
    }

    /// The same, of this kind.
    #[must_use]
    pub fn of_kind(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// The sentence with its code; nothing where there is nothing to say.
    pub fn said(&self) -> Option<String> {
        (!self.message.is_empty()).then(|| self.code.mark(&self.message))
    }

    /// A session that had opened and did not end well. `farewell` is what the gateway said of it.
    pub fn reset(ended: Ended, farewell: Option<&str>) -> Self {
        let why = match (farewell, ended) {
            (Some(words), _) if !words.is_empty() => words.to_owned(),
            // A gateway that can says why.
            (_, Ended { by: Side::Target, why: Why::Cut }) => {
                "the connection to the gateway broke".to_owned()
            }
            (_, ended) => ended.to_string(),
        };
        Self::new(Exit::Reset, format!("the session was reset: {why}"))
    }

    /// Standard input or output broke: `what` of it, and why. Whoever read the output and has left has seen enough.
    pub fn broken(what: &str, error: &io::Error) -> Self {
        let message = match error.kind() {
            io::ErrorKind::BrokenPipe => String::new(),
            _ => format!("{what}: {error}"),
        };
        Self::new(Exit::Reset, message).of_kind(Code::Stdio)
    }

    /// A refusal, with what the user can do about it. `token` says why the token does not hold.
    pub fn refused(refused: &Refused, token: &str) -> Self {
        let reason = &refused.reason;
        let message = match refused.code {
            RefusalCode::Unauthenticated => token.to_owned(),
            RefusalCode::AgentNotFound => format!("{reason}; `narrowlink list` shows those that are"),
            RefusalCode::Policy => format!("{reason}; `narrowlink whoami` shows what it allows"),
            RefusalCode::Limited | RefusalCode::Draining => format!("{reason}; try again later"),
            RefusalCode::LaneLost => format!("{reason}; try again"),
            _ => reason.clone(),
        };
        Self::new(Exit::of(refused.code), message).of_kind(refused.code.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<EnrollError> for Failure {
    fn from(e: EnrollError) -> Self {
        let (exit, code) = match e {
            EnrollError::Input(_) => (Exit::Reset, Code::Stdio),
            EnrollError::Ticket(_) | EnrollError::Program(_) => (Exit::Usage, Code::Ticket),
            EnrollError::Refused { .. } => (Exit::Authentication, Code::Token),
            EnrollError::Nowhere => (Exit::Usage, Code::Usage),
            EnrollError::Install(_) | EnrollError::Another { .. } => (Exit::CantCreate, Code::Unmade),
        };
        Self::new(exit, e).of_kind(code)
    }
}

impl From<PageError> for Failure {
    fn from(e: PageError) -> Self {
        Self::new(Exit::CantCreate, e)
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Self {
        let (exit, code) = match &e {
            ConfigError::NotFound(_) | ConfigError::Read { .. } => (Exit::Configuration, Code::ConfigMissing),
            ConfigError::Yaml { .. } => (Exit::Configuration, Code::ConfigContent),
            ConfigError::Unfit(Located { what, .. }) => match what {
                Unfit::NotAClient => (Exit::Authentication, Code::WrongKind),
                Unfit::NoToken => (Exit::Configuration, Code::NoToken),
                Unfit::Load(load) => (Exit::Configuration, load.code()),
            },
        };
        Self::new(exit, e).of_kind(code)
    }
}

impl From<worker::StartError> for Failure {
    fn from(e: worker::StartError) -> Self {
        Self::new(Exit::Internal, e)
    }
}

impl From<TunnelError> for Failure {
    fn from(e: TunnelError) -> Self {
        match &e {
            TunnelError::Refused(refused) => Self::refused(refused, &refused.reason),
            _ => {
                let code = e.code();
                Self::new(Exit::Unreachable, e).of_kind(code)
            }
        }
    }
}

impl From<LinkError> for Failure {
    fn from(e: LinkError) -> Self {
        match e {
            LinkError::Tunnel(e) => e.into(),
            LinkError::Goodbye(goodbye) => match goodbye.code {
                GoodbyeCode::Unauthenticated => {
                    Self::new(Exit::Authentication, format!("{}; ask for a new token", goodbye.reason))
                }
                code => Self::new(Exit::Unreachable, goodbye.reason).of_kind(code.into()),
            },
            e => {
                let code = e.code();
                Self::new(Exit::Unreachable, e).of_kind(code)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{message::Goodbye, yaml::Outline};

    use super::*;

    #[test]
    fn every_trouble_has_its_documented_exit_code() {
        use RefusalCode as Code;
        let refused = |code| Failure::refused(&Refused::new(code, "no"), "the token has expired");
        let goodbye = |code| Failure::from(LinkError::Goodbye(Goodbye { code, reason: "bye".to_owned() }));
        let table = [
            (refused(Code::Unauthenticated), 77),
            (refused(Code::Policy), 65),
            (refused(Code::DeniedByAgent), 65),
            (refused(Code::AgentNotFound), 69),
            (refused(Code::AgentTimeout), 69),
            (refused(Code::LaneLost), 69),
            (refused(Code::Draining), 69),
            (refused(Code::Limited), 69),
            (refused(Code::TargetRefused), 69),
            (refused(Code::TargetUnresolvable), 69),
            (refused(Code::TargetUnreachable), 69),
            (refused(Code::TargetTimeout), 69),
            (refused(Code::Unsupported), 69),
            (goodbye(GoodbyeCode::Unauthenticated), 77),
            (goodbye(GoodbyeCode::Draining), 69),
            (LinkError::Closed.into(), 69),
            (
                TunnelError::NotAGateway { gateway: "gw:1".to_owned(), status: 200, why: String::new() }
                    .into(),
                69,
            ),
            (
                ConfigError::from(
                    narrowlink_dataplane::run::process::find_config("no-such.yaml", |_| None).unwrap_err(),
                )
                .into(),
                78,
            ),
            (ConfigError::from(Outline::default().spot(&[]).about(Unfit::NotAClient)).into(), 77),
            (Failure::reset(Ended { by: Side::Target, why: Why::Reset }, None), 74),
        ];
        for (failure, code) in table {
            assert_eq!(failure.exit.code(), code, "{failure}");
        }
    }

    #[test]
    fn a_sentence_says_what_to_do_next_and_no_peer_can_paint_the_terminal() {
        let none = Refused::new(RefusalCode::AgentNotFound, "no agent named home is connected");
        assert_eq!(
            Failure::refused(&none, "").to_string(),
            "no agent named home is connected; `narrowlink list` shows those that are"
        );
        let painted = Refused::new(RefusalCode::Policy, "no\u{1b}[31m\r\n\u{202e}root#");
        let said = Failure::refused(&painted, "").to_string();
        assert_eq!(said, "no[31mroot#; `narrowlink whoami` shows what it allows");
        let reset = |why, farewell| Failure::reset(Ended { by: Side::Target, why }, farewell).to_string();
        for (why, farewell, words) in [
            (Why::Vanished, None, "the target's side vanished"),
            (Why::Reset, Some("the token was revoked"), "the token was revoked"),
            (Why::Reset, None, "the target's side reset the connection"),
            (Why::Cut, None, "the connection to the gateway broke"),
        ] {
            assert_eq!(reset(why, farewell), format!("the session was reset: {words}"));
        }
    }
}
