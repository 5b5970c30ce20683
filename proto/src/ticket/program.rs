//! Role: the program that a ticket is for, and the configuration that the ticket becomes there.
//! Invariants: the token stands in a file of its own, never in the configuration · an agent's ticket is no client's.
//! See: `endpoint`, which reads what is written here.

use super::Ticket;
use crate::token::{Kind, peek_unverified};

/// A program that has a ticket's bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// An agent or a client.
    pub kind: Kind,
    /// Its command that takes a ticket.
    pub command: &'static str,
    /// The name of its configuration's file.
    pub config: &'static str,
    /// The name of its token's file, beside it.
    pub token: &'static str,
}

/// A ticket that this program can't take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// It is the other one's.
    #[error("this ticket is for {}: {} takes it", if *.0 == Program::CLIENT { "a client" } else { "an agent" }, .0.command)]
    Other(Program),
    /// Its token says nothing that this version understands.
    #[error("the token in this ticket can't be read: update this program, or ask for another ticket")]
    Token,
}

impl Program {
    /// `narrowlink-agent`.
    pub const AGENT: Self = Self {
        kind: Kind::Agent,
        command: "narrowlink-agent join",
        config: "agent.yaml",
        token: "agent.token",
    };
    /// `narrowlink`.
    pub const CLIENT: Self = Self {
        kind: Kind::Client,
        command: "narrowlink login",
        config: "client.yaml",
        token: "client.token",
    };

    /// The one whose bearer has tokens of this kind.
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Client => Self::CLIENT,
            Kind::Agent | Kind::AgentPublish => Self::AGENT,
        }
    }

    /// Its command, as its user types it: an agent is made a service, which is root's to do.
    pub const fn typed(&self) -> &'static str {
        match self.kind {
            Kind::Client => Self::CLIENT.command,
            Kind::Agent | Kind::AgentPublish => "sudo narrowlink-agent join",
        }
    }

    /// The name of the ticket's bearer, and the text of the configuration that it becomes.
    ///
    /// # Errors
    /// It is for another program.
    pub fn configure(&self, ticket: &Ticket) -> Result<(String, String), ProgramError> {
        let said = peek_unverified(ticket.token.expose()).ok_or(ProgramError::Token)?;
        if said.kind != self.kind {
            return Err(ProgramError::Other(Self::of(said.kind)));
        }
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut text = format!("# Made by {} from a ticket.\nendpoints:\n", self.command);
        for gateway in &ticket.gateways {
            text += &format!("  - !SelfHosted {{ gateway: {}, token_file: {}", quoted(gateway), self.token);
            if let Some(domain) = &ticket.domain {
                text += &format!(", domain: {}", quoted(domain));
            }
            if let Some(pin) = &ticket.pin {
                text += &format!(", ca_pin: {}", quoted(&pin.to_string()));
            }
            text += " }\n";
        }
        Ok((said.name, text))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;
    use crate::{
        endpoint::{self, Endpoint, SecretText},
        id::Uid,
        pin::Pin,
        token::{Claims, Keys},
        yaml::Document,
    };

    fn ticket(kind: Kind) -> Ticket {
        let claims = Claims::new(kind, Uid::nil(), "home", 2_000_000_000, "1");
        let token = SecretText::new(Keys::new(&[7; 32]).sign(&claims).unwrap());
        let pin = Some(Pin::of(b"a key"));
        Ticket { gateways: vec!["gw.example:443".to_owned()], domain: Some("gw.test".to_owned()), pin, token }
    }

    #[derive(Deserialize)]
    struct Config {
        endpoints: Vec<Endpoint>,
    }

    #[test]
    fn a_configuration_says_what_the_ticket_said_and_no_token() {
        for program in [Program::AGENT, Program::CLIENT] {
            let ticket = ticket(program.kind);
            let (name, text) = program.configure(&ticket).unwrap();
            assert_eq!(name, "home");
            assert!(!text.contains(ticket.token.expose()));
            let document = Document::parse(&text).unwrap();
            let Config { endpoints } = document.read().unwrap();
            let read = endpoint::settle(&document, Path::new(program.config), endpoints).unwrap();
            let Some(Endpoint::SelfHosted(wanted)) = ticket.endpoints().next() else { panic!("one gateway") };
            assert_eq!(
                (&read[0].gateway, &read[0].domain, read[0].ca_pin, read[0].protocol),
                (&wanted.gateway, &wanted.domain, wanted.ca_pin, wanted.protocol)
            );
            assert_eq!(read[0].token_file.as_deref(), Some(Path::new(program.token)));
        }
    }

    #[test]
    fn a_ticket_of_the_other_program_says_who_takes_it() {
        let said = Program::AGENT.configure(&ticket(Kind::Client)).unwrap_err().to_string();
        assert_eq!(said, "this ticket is for a client: narrowlink login takes it");
        let said = Program::CLIENT.configure(&ticket(Kind::Agent)).unwrap_err().to_string();
        assert_eq!(said, "this ticket is for an agent: narrowlink-agent join takes it");
    }
}
