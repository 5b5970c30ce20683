//! Role: a stable code for each kind of trouble that a person meets, and what to do about it.
//! Invariants: a number never changes its meaning and is never used again · a message ends with its code, in brackets.
//! See: docs/errors.md "Codes", which is written from this table; `help CODE` of each program.

use std::fmt;

use crate::{ended::RefusalCode, message::GoodbyeCode};

macro_rules! codes {
    ($($name:ident = $number:literal, $title:literal, $means:literal, $next:literal;)*) => {
        /// A kind of trouble.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Code {
            $(
                #[doc = $title]
                $name = $number,
            )*
        }

        impl Code {
            /// Each, by its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// In a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// What it means.
            pub const fn means(self) -> &'static str {
                match self { $(Self::$name => $means,)* }
            }

            /// What to do about it.
            pub const fn next(self) -> &'static str {
                match self { $(Self::$name => $next,)* }
            }
        }
    };
}

codes! {
    Usage = 1, "the command line is wrong",
        "An option, a command or a value is missing, unknown, or does not fit the others.",
        "The message names it. Add --help behind the command to see all that it takes.";
    Unmade = 2, "what was to be made is there, or can't be written",
        "A file or directory that the command makes is there already, or the system refuses to write it. Nothing was overwritten.",
        "Choose another directory with --dir, or remove what is there; else look at its permissions and at the space on the disk.";
    Unwritten = 3, "the answer can't be written",
        "Standard output, or the file in its place, could not be written: the disk is full, or it is closed.",
        "Make space, or write the answer somewhere else.";
    Stdio = 4, "standard input or output broke",
        "What the command reads or writes there ended with an error, or is not open.",
        "Look at the program at the other end of the pipe.";
    Internal = 5, "the system failed the program, or the program itself has a fault",
        "The kernel or a library refused what every start needs, such as a thread or random numbers; or this is a bug.",
        "If the message names a limit of the system, raise it. Else report the message, with the version of the program.";
    Listen = 6, "a local address can't be listened on",
        "Another program listens there, the address is not one of this machine, or the port needs a privilege.",
        "Choose another address or port, or end the other program: ss -ltnp shows it.";
    Book = 7, "the book of tickets or the list of revocations can't be used",
        "The gateway keeps both beside its configuration. One can't be read or written, or has an entry that makes no sense.",
        "Run the command as the user who owns these files, and look at the space on the disk; the message names a wrong entry.";
    Service = 8, "the program can't be made a service here",
        "systemd does not run this machine, you are not root, or the service could not see or write what its configuration names.",
        "The message says which. A service has its files in /etc/narrowlink and keeps its own in /var/lib.";
    ServiceDown = 9, "the service does not run",
        "It is not installed, or ends as soon as it is begun.",
        "narrowlink-gateway service status, or narrowlink-agent service status, shows it; journalctl -u NAME says why it ended.";
    NotReplaced = 10, "the gateway that runs was not replaced",
        "None runs, it is a service, or the new one did not come to serve. The one that runs goes on.",
        "Look at its log; --check says whether the configuration can be used; a service is replaced by systemctl restart.";

    ConfigMissing = 101, "the configuration is not there or can't be read",
        "No file was found in the usual places, or the one behind -c is not there or not readable for you.",
        "Name it with -c FILE, or make one: narrowlink-gateway init, narrowlink-agent join, narrowlink login.";
    ConfigContent = 102, "something in the configuration is wrong",
        "The file is no YAML, has an unknown key, or says what makes no sense. Of a gateway's: or a file that it names can't be used.",
        "The message has line and column. docs/configuration.md lists every key; --check of gateway and agent looks again.";
    ConfigFile = 103, "a file that the configuration names can't be used",
        "A token, secret, certificate or authority is not there, not readable, or something else.",
        "Mend the path, which is relative to the configuration's directory, or the file.";
    StateFile = 104, "what the program keeps can't be written",
        "state_dir or the audit log is not there, or not writable for the program.",
        "Make the directory, and give it to the user who runs the program.";
    NoToken = 105, "no token stands where one belongs",
        "The text is no token or a part of one: often it was cut off when it was copied. It was sent to nobody.",
        "Copy the whole token anew; it is one line that begins with ey.";

    Token = 201, "the token is not accepted",
        "It has expired, was revoked, is not valid yet, or is another gateway's. A gateway tells nobody which.",
        "narrowlink whoami shows its dates. Ask the operator of the gateway for a new one.";
    WrongKind = 202, "the token is for the other program",
        "A client's token was given to an agent, or an agent's to a client.",
        "Ask for a token of the right kind: !Client for narrowlink, !Agent for narrowlink-agent.";
    Ticket = 203, "this is no ticket that the program can take",
        "It was cut off or changed on its way, is for the other program, or was made by a newer gateway.",
        "Copy the whole line anew; the message says what is wrong with it.";
    BadToken = 204, "the token that was looked at is broken",
        "Nothing in it could be read as a token, or there is more than one.",
        "Give inspect one whole token, or a file that holds one.";

    Policy = 301, "the token's policy does not allow this target",
        "The operator has said which agents, addresses, names and ports this token reaches. This is none of them.",
        "narrowlink whoami shows what it allows; narrowlink-gateway explain shows the operator which rule decides.";
    DeniedByAgent = 302, "the agent's own rules do not allow this target",
        "agent.yaml says what the agent dials at all, whatever a gateway says.",
        "Ask whoever runs the agent to allow it in agent.yaml.";

    AgentNotFound = 401, "no agent of this name is connected",
        "It is switched off, has lost its gateway, or belongs to another user.",
        "narrowlink list shows those that are connected. Start the agent, or correct the name.";
    AgentTimeout = 402, "the agent did not answer in time",
        "It is connected, but has opened no connection for the session, or has not answered.",
        "Try again. If it stays so, look at the agent's log and its way to the gateway.";
    LaneLost = 403, "the connection to the agent broke before it answered",
        "Whether the target was reached is not known.",
        "Try again.";
    Limited = 404, "a limit is reached",
        "The token, its user or the gateway has as many sessions, dials or bytes as it may.",
        "Wait, or end other sessions; the operator sets limits in gateway.yaml and in tokens.";
    Draining = 405, "the gateway is shutting down",
        "It takes nothing new, and will be back if it is restarted.",
        "Try again a little later.";
    Unsupported = 406, "the gateway or the agent does not serve this",
        "The kind of target, a feature or a framing is not served there, or not on this way.",
        "The message says which. Write it otherwise, or update the older program.";
    Superseded = 407, "another one has taken this one's place",
        "A newer request of the same session, which a proxy between repeats; or another installation has the name of this one.",
        "Try again; if it stays so, look at the proxy, and at who else uses the token.";
    Protocol = 408, "one of the programs broke the protocol",
        "What came is not what this version expects.",
        "Update the older program. If both are of one version, report it.";
    GatewayInternal = 409, "the gateway or the agent failed",
        "It has a fault, or its system refused what it needs.",
        "Look at its log, and try again.";
    Other = 410, "refused for a reason that this version does not know",
        "The gateway is newer than this program.",
        "Read the message, and update this program.";
    HostTaken = 411, "the host is published by another user",
        "A gateway gives a host to the user who was first, for as long as one of their agents is there and ten minutes longer.",
        "Publish another host, or ask the operator whose it is: narrowlink-gateway hosts shows it.";

    TargetRefused = 501, "nobody listens at the target",
        "Its host has answered that the port is closed.",
        "Start the service, or correct the port. The target is as the agent sees it.";
    TargetUnresolvable = 502, "the target's name does not resolve",
        "The agent's machine knows no address of it.",
        "Correct the name, or write an address; names are looked up where the agent is.";
    TargetUnreachable = 503, "the target's host or network can't be reached",
        "The agent's machine has no way there.",
        "Look from the agent's machine: ping, ip route, firewalls.";
    TargetTimeout = 504, "the target did not answer in time",
        "Its host is off, or a firewall drops what is sent there.",
        "Look from the agent's machine whether the host is on and the port open.";

    Unreachable = 601, "the gateway can't be reached",
        "Nothing answered at its address, or the connection broke.",
        "Check host and port, this machine's network, and whether the gateway runs.";
    Unresolved = 602, "the gateway's name does not resolve",
        "This machine knows no address of it.",
        "Correct the name in the configuration, or look whether this machine is online.";
    Tls = 603, "TLS with the gateway failed",
        "Its certificate is not one that this machine believes, is for another name, or is out of its time; or the port speaks no TLS.",
        "The message says which. docs/certificates.md shows how a gateway has an authority of its own.";
    NotAGateway = 604, "something else than a gateway answered",
        "A web server, proxy or captive portal is at that address, or one between drops the upgrade to WebSocket.",
        "Check host and port; have the proxy pass WebSocket on; sign in to the portal.";
    NotDirect = 605, "framing: raw is not possible here",
        "Something between ends TLS, and would make a clean end of a cut connection.",
        "Write framing: framed, or leave framing out.";
    Version = 606, "the gateway speaks another version of the protocol",
        "One of the two programs is older.",
        "Update the older one.";
    NotWelcomed = 607, "the gateway has not welcomed the agent",
        "What the ticket said is written, but the gateway did not answer as it should. Why is said above the message.",
        "Mend that; narrowlink-agent tries again by itself.";

    Reset = 701, "the session broke after it had opened",
        "The target, the agent, the gateway or the network ended it without a clean end. What came before is whole; what was under way may be lost.",
        "Connect again. The message says whose side it was.";
}

impl Code {
    /// The number.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The code that is written so: `NL-E0401`, also in small letters, and without `NL-` or `E`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_uppercase();
        let text = text.strip_prefix("NL-").unwrap_or(&text);
        let digits = text.strip_prefix('E').unwrap_or(text);
        let is_number = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit());
        let number: u16 = digits.parse().ok().filter(|_| is_number)?;
        Self::ALL.iter().copied().find(|code| code.number() == number)
    }

    /// A message of this kind, as a program says it.
    pub fn mark(self, message: &str) -> String {
        format!("{message} ({self})")
    }

    /// All that there is to say, for people.
    pub fn page(self) -> String {
        format!("{self}: {}\n\n{}\n\nWhat to do: {}\n", self.title(), self.means(), self.next())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NL-E{:04}", self.number())
    }
}

impl From<RefusalCode> for Code {
    fn from(code: RefusalCode) -> Self {
        match code {
            RefusalCode::Unauthenticated => Self::Token,
            RefusalCode::Policy => Self::Policy,
            RefusalCode::DeniedByAgent => Self::DeniedByAgent,
            RefusalCode::AgentNotFound => Self::AgentNotFound,
            RefusalCode::Limited => Self::Limited,
            RefusalCode::AgentTimeout => Self::AgentTimeout,
            RefusalCode::LaneLost => Self::LaneLost,
            RefusalCode::TargetRefused => Self::TargetRefused,
            RefusalCode::TargetUnresolvable => Self::TargetUnresolvable,
            RefusalCode::TargetUnreachable => Self::TargetUnreachable,
            RefusalCode::TargetTimeout => Self::TargetTimeout,
            RefusalCode::Unsupported => Self::Unsupported,
            RefusalCode::HostTaken => Self::HostTaken,
            RefusalCode::Superseded => Self::Superseded,
            RefusalCode::Draining => Self::Draining,
            RefusalCode::Protocol => Self::Protocol,
            RefusalCode::Internal => Self::GatewayInternal,
            RefusalCode::Other => Self::Other,
        }
    }
}

impl From<GoodbyeCode> for Code {
    fn from(code: GoodbyeCode) -> Self {
        match code {
            GoodbyeCode::Replaced | GoodbyeCode::NameTaken => Self::Superseded,
            GoodbyeCode::Draining => Self::Draining,
            GoodbyeCode::Unauthenticated => Self::Token,
            GoodbyeCode::Protocol => Self::Protocol,
            GoodbyeCode::Limited => Self::Limited,
            GoodbyeCode::Other => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_code_stands_once_in_order_and_says_what_to_do() {
        let numbers: Vec<_> = Code::ALL.iter().map(|code| code.number()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        let titles: BTreeSet<_> = Code::ALL.iter().map(|code| code.title()).collect();
        assert_eq!(titles.len(), Code::ALL.len(), "two of one title");
        for code in Code::ALL {
            let title_is_bare = !code.title().ends_with('.') && !code.title().contains('\n');
            let sentences = [code.means(), code.next()].iter().all(|words| words.ends_with('.'));
            assert!(title_is_bare && sentences, "{code}: {}", code.page());
        }
    }

    #[test]
    fn a_code_reads_back_however_it_is_written() {
        for code in Code::ALL {
            let full = code.to_string();
            for text in [&full[..], &full.to_lowercase(), &full[3..], &full[4..]] {
                assert_eq!(Code::parse(text), Some(*code), "{text}");
            }
        }
        for text in ["", "NL-E", "NL-E9999", "E1", "1", "NL-E00001", "NL-E+001", "list"] {
            assert_eq!(Code::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_message_ends_with_its_code() {
        assert_eq!(Code::AgentNotFound.mark("no agent home"), "no agent home (NL-E0401)");
        assert!(Code::Policy.page().starts_with("NL-E0301: the token's policy does not allow this target\n"));
    }
}
