//! Role: a ticket becomes the configuration of an agent or a client: `narrowlink-agent join`, `narrowlink login`.
//! Invariants: the ticket is repeated nowhere · a token that its gateway refuses replaces none, and neither does somebody else's,
//! unless that was asked for · whether the gateway takes one that stands alone is for the caller to ask.
//! See: `install`, which writes; `peer::try_token`; `proto::ticket`.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    endpoint::{Endpoint, SecretText, SelfHosted},
    printable::printable,
    ticket::{Program, ProgramError, Ticket, TicketError},
    token::{Kind, Peek, peek_unverified},
};

use super::{
    install::{InstallError, Installed, install, is_there},
    process::{argument_or_input, own_config_dir},
};

/// Of a name so much is shown.
const NAME_CHARS_MAX: usize = 64;
/// More than any ticket has.
const TICKET_BYTES_MAX: u64 = 64 * 1024;

/// What gateways say of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// This one takes it.
    Taken(String),
    /// None takes it, and this one refuses it.
    Refused(String),
    /// None has answered as a gateway does.
    Unanswered,
}

/// What has become of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The name of its bearer.
    pub name: String,
    /// The configuration.
    pub config: PathBuf,
    /// What was written, in words.
    pub said: String,
    /// The same configuration was there, and only its token is new: what gateways say of that.
    pub renewed: Option<Trial>,
    /// What stands behind the program's name to run it with this configuration: nothing where it looks for it anyway.
    pub with: String,
}

/// Why nothing was written. The user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// Standard input can't be read.
    #[error("standard input: {0}")]
    Input(io::Error),
    /// It is no ticket.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It is another program's.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its gateway does not take it, and there is another token.
    #[error(
        "{gateway} does not accept the token in this ticket: it has expired, was taken back, or is another gateway's. Nothing \
         was changed: the token in {} is the one from before; ask for another ticket", token.display()
    )]
    Refused {
        /// Who refuses it.
        gateway: String,
        /// Where the other one is.
        token: PathBuf,
    },
    /// There is another one's token.
    #[error(
        "{} is the token of the {old}, and this ticket is for the {new}. Nothing was changed: say --dir DIR to have both, or \
         --replace to give the old one up", token.display()
    )]
    Another {
        /// Whose it is.
        old: String,
        /// Whose the ticket's is.
        new: String,
        /// Where the old one is.
        token: PathBuf,
    },
    /// Nowhere to write it to.
    #[error("there is no home directory: say --dir DIR")]
    Nowhere,
    /// It can't be written.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// Where a ticket's configuration goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// The directory; `None` is the usual one.
    pub dir: Option<&'a Path>,
    /// Whether the token of another agent or client may be given up for this one's.
    pub replace: bool,
}

/// Takes the ticket that stands in `argument`, or on standard input where that is `-`, and writes what it says to its
/// place; `env` reads the environment. Where a token is to be replaced, `try_token` asks gateways what they say of the new
/// one.
///
/// # Errors
/// See [`EnrollError`].
pub fn enroll(
    program: &Program,
    argument: &str,
    place: Place<'_>,
    env: impl Fn(&str) -> Option<OsString>,
    try_token: impl FnOnce(Vec<SelfHosted>) -> Trial,
) -> Result<Enrolled, EnrollError> {
    let text = argument_or_input(argument, TICKET_BYTES_MAX).map_err(EnrollError::Input)?;
    let ticket = Ticket::parse(text.expose())?;
    let (name, config) = program.configure(&ticket)?;
    let usual = own_config_dir(env);
    let dir = place.dir.or(usual.as_deref()).ok_or(EnrollError::Nowhere)?;
    let token = dir.join(program.token);
    let mut trial = None;
    if is_there(&dir.join(program.config), &config)? && token.exists() {
        if !place.replace {
            another(&token, &ticket)?;
        }
        let endpoints = ticket.endpoints().map(|Endpoint::SelfHosted(endpoint)| endpoint);
        match try_token(endpoints.collect()) {
            Trial::Refused(gateway) => return Err(EnrollError::Refused { gateway, token }),
            said => trial = Some(said),
        }
    }
    let token = ticket.token.expose();
    let Installed { config, secret, renewed } =
        install(dir, (program.config, &config), (program.token, token))?;
    let said = match renewed {
        true => format!("the token of {name} is replaced in {}", secret.display()),
        false => format!("written: {}", config.display()),
    };
    let with =
        if Some(dir) == usual.as_deref() { String::new() } else { format!(" -c {}", config.display()) };
    let renewed = renewed.then(|| trial.unwrap_or(Trial::Unanswered));
    Ok(Enrolled { name, config, said, renewed, with })
}

/// A token that is there and can be read may be given up for a newer one of the same bearer only.
fn another(token: &Path, ticket: &Ticket) -> Result<(), EnrollError> {
    let old = std::fs::read_to_string(token).ok().map(SecretText::new);
    let old = old.and_then(|text| peek_unverified(text.expose()));
    let (Some(old), Some(new)) = (old, peek_unverified(ticket.token.expose())) else { return Ok(()) };
    if (old.uid, &old.name) == (new.uid, &new.name) {
        return Ok(());
    }
    let is_other_user = old.uid != new.uid;
    let say = |peek: &Peek| {
        let kind = if peek.kind == Kind::Client { "client" } else { "agent" };
        let name = printable(&peek.name, NAME_CHARS_MAX);
        if is_other_user {
            format!("{kind} {name} of the user {}", peek.uid)
        } else {
            format!("{kind} {name}")
        }
    };
    Err(EnrollError::Another { old: say(&old), new: say(&new), token: token.to_owned() })
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        endpoint::SecretText,
        id::Uid,
        token::{Claims, Keys, Kind},
    };

    use super::*;

    fn ticket(kind: Kind) -> SecretText {
        ticket_of(kind, Uid::nil(), "home", "1")
    }

    fn ticket_of(kind: Kind, uid: Uid, name: &str, jti: &str) -> SecretText {
        let claims = Claims::new(kind, uid, name, 2_000_000_000, jti);
        let token = SecretText::new(Keys::new(&[7; 32]).sign(&claims).unwrap());
        Ticket { gateways: vec!["gw.example:443".to_owned()], domain: None, pin: None, token }.encode()
    }

    #[test]
    fn a_ticket_is_written_where_its_program_looks_or_where_one_says() {
        let home = tempfile::tempdir().unwrap();
        let env = |name: &str| (name == "XDG_CONFIG_HOME").then(|| home.path().into());
        let elsewhere = home.path().join("elsewhere");
        let ticket = ticket(Kind::Agent);
        let there = Place { dir: Some(&elsewhere), replace: false };
        let unanswered = |_| Trial::Unanswered;
        let own = enroll(&Program::AGENT, ticket.expose(), there, env, unanswered).unwrap();
        assert_eq!((own.name.as_str(), own.config), ("home", elsewhere.join("agent.yaml")));
        assert_eq!(own.with, format!(" -c {}", elsewhere.join("agent.yaml").display()));
        assert!(own.said.starts_with("written: "), "{}", own.said);
        assert_eq!(own.renewed, None);
        let again = enroll(&Program::AGENT, ticket.expose(), there, env, unanswered).unwrap();
        assert_eq!(again.renewed, Some(Trial::Unanswered));
        assert!(
            again.said.contains("the token of home is replaced in") && again.said.ends_with("agent.token")
        );
        if !rustix::process::geteuid().is_root() {
            let usual = enroll(&Program::AGENT, ticket.expose(), Place::default(), env, unanswered).unwrap();
            assert_eq!(usual.with, "");
        }
    }

    #[test]
    fn a_token_that_its_gateway_refuses_replaces_none() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("agent.token");
        let home = |says: Trial| {
            let place = Place { dir: Some(dir.path()), replace: false };
            enroll(&Program::AGENT, ticket(Kind::Agent).expose(), place, |_| None, |_| says)
        };
        let refused = || Trial::Refused("gw.example:443".to_owned());
        // Nothing is there that it could replace.
        home(refused()).unwrap();
        std::fs::write(&token, "good").unwrap();
        let said = home(refused()).unwrap_err().to_string();
        assert!(said.starts_with("gw.example:443 does not accept the token in this ticket"), "{said}");
        assert_eq!(std::fs::read_to_string(&token).unwrap(), "good");
        let taken = Trial::Taken("gw.example:443".to_owned());
        assert_eq!(home(taken.clone()).unwrap().renewed, Some(taken));
        assert_ne!(std::fs::read_to_string(&token).unwrap(), "good");
    }

    #[test]
    fn another_one_s_token_is_given_up_only_for_who_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let other_user = Uid::from_u128(7);
        let join = |uid, name: &str, jti: &str, replace| {
            let place = Place { dir: Some(dir.path()), replace };
            let ticket = ticket_of(Kind::Agent, uid, name, jti);
            enroll(&Program::AGENT, ticket.expose(), place, |_| None, |_| Trial::Unanswered)
        };
        join(Uid::nil(), "home", "1", false).unwrap();
        join(Uid::nil(), "home", "2", false).unwrap();
        let before = std::fs::read_to_string(dir.path().join("agent.token")).unwrap();
        let said = join(Uid::nil(), "office", "3", false).unwrap_err().to_string();
        assert!(
            said.contains("is the token of the agent home, and this ticket is for the agent office."),
            "{said}"
        );
        let said = join(other_user, "home", "4", false).unwrap_err().to_string();
        assert!(
            said.contains(&format!("for the agent home of the user {other_user}. Nothing was")),
            "{said}"
        );
        assert_eq!(std::fs::read_to_string(dir.path().join("agent.token")).unwrap(), before);
        join(other_user, "office", "5", true).unwrap();
        assert_ne!(std::fs::read_to_string(dir.path().join("agent.token")).unwrap(), before);
    }

    #[test]
    fn what_is_no_ticket_of_this_program_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let place = Place { dir: Some(&path), replace: false };
        let asked = |_| Trial::Unanswered;
        let other = enroll(&Program::AGENT, ticket(Kind::Client).expose(), place, |_| None, asked);
        assert!(matches!(other, Err(EnrollError::Program(_))));
        let none = enroll(&Program::AGENT, "nl1nonsense", place, |_| None, asked);
        assert!(matches!(none, Err(EnrollError::Ticket(_))));
        assert!(!path.exists());
    }
}
