//! Role: a ticket becomes the configuration of an agent or a client: `narrowlink-agent join`, `narrowlink login`.
//! Invariants: the ticket is repeated nowhere · a token that its gateway refuses replaces none · whether the gateway takes one
//! that stands alone is for the caller to ask.
//! See: `install`, which writes; `peer::who_refuses`; `proto::ticket`.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    endpoint::{Endpoint, SelfHosted},
    ticket::{Program, ProgramError, Ticket, TicketError},
};

use super::{
    install::{InstallError, Installed, install, is_there},
    process::{argument_or_input, own_config_dir},
};

/// More than any ticket has.
const TICKET_BYTES_MAX: u64 = 64 * 1024;

/// What has become of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The name of its bearer.
    pub name: String,
    /// The configuration.
    pub config: PathBuf,
    /// What was written, in words.
    pub said: String,
    /// The same configuration was there: only its token is new.
    pub renewed: bool,
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
    /// Nowhere to write it to.
    #[error("there is no home directory: say --dir DIR")]
    Nowhere,
    /// It can't be written.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// Takes the ticket that stands in `argument`, or on standard input where that is `-`, and writes what it says into `dir`,
/// or the usual place; `env` reads the environment. Where a token is to be replaced, `who_refuses` asks whether a gateway
/// refuses the new one.
///
/// # Errors
/// See [`EnrollError`].
pub fn enroll(
    program: &Program,
    argument: &str,
    dir: Option<&Path>,
    env: impl Fn(&str) -> Option<OsString>,
    who_refuses: impl FnOnce(Vec<SelfHosted>) -> Option<String>,
) -> Result<Enrolled, EnrollError> {
    let text = argument_or_input(argument, TICKET_BYTES_MAX).map_err(EnrollError::Input)?;
    let ticket = Ticket::parse(text.expose())?;
    let (name, config) = program.configure(&ticket)?;
    let usual = own_config_dir(env);
    let dir = dir.or(usual.as_deref()).ok_or(EnrollError::Nowhere)?;
    let token = dir.join(program.token);
    if is_there(&dir.join(program.config), &config)? && token.exists() {
        let endpoints = ticket.endpoints().map(|Endpoint::SelfHosted(endpoint)| endpoint);
        if let Some(gateway) = who_refuses(endpoints.collect()) {
            return Err(EnrollError::Refused { gateway, token });
        }
    }
    let token = ticket.token.expose();
    let Installed { config, secret, renewed } =
        install(dir, (program.config, &config), (program.token, token))?;
    let said = match renewed {
        true => format!("the token is replaced in {}", secret.display()),
        false => format!("written: {}", config.display()),
    };
    let with =
        if Some(dir) == usual.as_deref() { String::new() } else { format!(" -c {}", config.display()) };
    Ok(Enrolled { name, config, said, renewed, with })
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
        let claims = Claims::new(kind, Uid::nil(), "home", 2_000_000_000, "1");
        let token = SecretText::new(Keys::new(&[7; 32]).sign(&claims).unwrap());
        Ticket { gateways: vec!["gw.example:443".to_owned()], domain: None, pin: None, token }.encode()
    }

    #[test]
    fn a_ticket_is_written_where_its_program_looks_or_where_one_says() {
        let home = tempfile::tempdir().unwrap();
        let env = |name: &str| (name == "XDG_CONFIG_HOME").then(|| home.path().into());
        let elsewhere = home.path().join("elsewhere");
        let ticket = ticket(Kind::Agent);
        let own = enroll(&Program::AGENT, ticket.expose(), Some(&elsewhere), env, |_| None).unwrap();
        assert_eq!((own.name.as_str(), own.config), ("home", elsewhere.join("agent.yaml")));
        assert_eq!(own.with, format!(" -c {}", elsewhere.join("agent.yaml").display()));
        assert!(own.said.starts_with("written: "), "{}", own.said);
        let again = enroll(&Program::AGENT, ticket.expose(), Some(&elsewhere), env, |_| None).unwrap();
        assert!(again.said.contains("the token is replaced in") && again.said.ends_with("agent.token"));
        if !rustix::process::geteuid().is_root() {
            let usual = enroll(&Program::AGENT, ticket.expose(), None, env, |_| None).unwrap();
            assert_eq!(usual.with, "");
        }
    }

    #[test]
    fn a_token_that_its_gateway_refuses_replaces_none() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("agent.token");
        let home = |refuses: Option<&str>| {
            let refuses = refuses.map(str::to_owned);
            enroll(&Program::AGENT, ticket(Kind::Agent).expose(), Some(dir.path()), |_| None, |_| refuses)
        };
        // Nothing is there that it could replace.
        home(Some("gw.example:443")).unwrap();
        std::fs::write(&token, "good").unwrap();
        let said = home(Some("gw.example:443")).unwrap_err().to_string();
        assert!(said.starts_with("gw.example:443 does not accept the token in this ticket"), "{said}");
        assert_eq!(std::fs::read_to_string(&token).unwrap(), "good");
        assert!(home(None).unwrap().renewed);
        assert_ne!(std::fs::read_to_string(&token).unwrap(), "good");
    }

    #[test]
    fn what_is_no_ticket_of_this_program_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let other = enroll(&Program::AGENT, ticket(Kind::Client).expose(), Some(&path), |_| None, |_| None);
        assert!(matches!(other, Err(EnrollError::Program(_))));
        let none = enroll(&Program::AGENT, "nl1nonsense", Some(&path), |_| None, |_| None);
        assert!(matches!(none, Err(EnrollError::Ticket(_))));
        assert!(!path.exists());
    }
}
