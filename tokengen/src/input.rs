//! Role: the file as its author writes it: a secret, and what to sign with it.
//! Invariants: an unknown key or tag is an error that names the known ones, with its place in the file; two
//! forms of one thing never stand in one entry.
//! See: docs/tokens.md; tests/seed.yaml, tests/between.yaml and tests/later.yaml, the published examples.

use std::fmt;

use narrowlink_proto::{
    id::Uid,
    token::{Allowance, SecretSource, Services},
    when::When,
    yaml::{Document, Fault},
};
use serde::{Deserialize, Deserializer};

use crate::{
    hosts::{Connect, PublishHosts},
    name::Name,
    policies::{List, Pid, Restriction},
    tagged::{Expected, Mapping, Tagged},
};

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The gateway's secret.
    pub(crate) secret: SecretSource,
    /// What to sign, and the policies that it names.
    tokens: Vec<Tagged<Entry>>,
    /// Where each begins, from 1.
    #[serde(skip)]
    lines: Vec<usize>,
}

/// An entry as messages call it.
#[derive(Debug, Clone)]
pub struct Spot {
    pub(crate) index: usize,
    line: usize,
    /// Tag and name.
    label: String,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, line, label } = self;
        write!(f, "tokens[{index}] ({label}, line {line})")
    }
}

/// One entry of `tokens`; the tag says what it is.
#[derive(Debug, Deserialize)]
pub(crate) enum Entry {
    /// A token for a client.
    Client(ClientToken),
    /// No token: a list that clients name by its id.
    ClientPolicy(ClientPolicy),
    /// A token for an agent.
    Agent(AgentToken),
    /// A token that says what an agent may publish.
    AgentPublish(AgentPublishToken),
}

impl Expected for Entry {
    const EXPECTED: &'static str = "a tag: `- !Client`, `- !ClientPolicy`, `- !Agent` or `- !AgentPublish`";
}

/// `!Client`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientToken {
    pub(crate) uid: Uid,
    pub(crate) name: Name,
    pub(crate) exp: When,
    #[serde(default)]
    pub(crate) nbf: Option<When>,
    #[serde(default)]
    pub(crate) jti: Option<Name>,
    /// Without this key there is no restriction; with it, there must be a value.
    #[serde(default, deserialize_with = "present")]
    pub(crate) policies: Option<Restriction>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) limits: Option<Mapping<Allowance>>,
}

impl Expected for Allowance {
    const EXPECTED: &'static str =
        "a mapping with `sessions`, `streams`, `dials_per_s`, `bytes_per_s` or `bytes_per_month`";
}

/// `!ClientPolicy`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientPolicy {
    pub(crate) uid: Uid,
    pub(crate) name: Name,
    pub(crate) exp: When,
    #[serde(default)]
    pub(crate) nbf: Option<When>,
    pub(crate) pid: Pid,
    pub(crate) policy: List,
}

/// `!Agent`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentToken {
    pub(crate) uid: Uid,
    pub(crate) name: Name,
    pub(crate) exp: When,
    #[serde(default)]
    pub(crate) nbf: Option<When>,
    #[serde(default)]
    pub(crate) jti: Option<Name>,
}

/// `!AgentPublish`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "AgentPublishInput")]
pub(crate) struct AgentPublishToken {
    pub(crate) uid: Uid,
    pub(crate) name: Name,
    pub(crate) exp: When,
    pub(crate) nbf: Option<When>,
    pub(crate) jti: Option<Name>,
    pub(crate) hosts: Services,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentPublishInput {
    uid: Uid,
    name: Name,
    exp: When,
    #[serde(default)]
    nbf: Option<When>,
    #[serde(default)]
    jti: Option<Name>,
    #[serde(default, deserialize_with = "present")]
    publish_hosts: Option<PublishHosts>,
    #[serde(default, deserialize_with = "present")]
    connect: Option<Connect>,
}

impl TryFrom<AgentPublishInput> for AgentPublishToken {
    type Error = &'static str;

    fn try_from(input: AgentPublishInput) -> Result<Self, &'static str> {
        let AgentPublishInput { uid, name, exp, nbf, jti, publish_hosts, connect } = input;
        let hosts = match (publish_hosts, connect) {
            (Some(PublishHosts(hosts)), None) => {
                hosts.ok_or("`publish_hosts` is empty: [] publishes nothing")
            }
            (None, Some(Connect(hosts))) => hosts.ok_or("`connect` is empty: {} publishes nothing"),
            (Some(_), Some(_)) => Err(
                "`connect` and `publish_hosts` are two forms of one thing: keep `publish_hosts`, leave `connect` out",
            ),
            (None, None) => Err("`publish_hosts` is missing, or `connect` in its place"),
        };
        Ok(Self { uid, name, exp, nbf, jti, hosts: hosts? })
    }
}

impl Input {
    /// Reads a whole file.
    ///
    /// # Errors
    /// The writer's, with path, line and column.
    pub fn parse(yaml: &str) -> Result<Self, Fault> {
        Self::read(&Document::parse(yaml)?)
    }

    /// What a whole file says.
    ///
    /// # Errors
    /// The writer's, with path, line and column.
    pub fn read(document: &Document) -> Result<Self, Fault> {
        let mut input: Self = document.read()?;
        let line = |index: usize| document.place(&["tokens".into(), index.into()]).line;
        input.lines = (0..input.tokens.len()).map(line).collect();
        Ok(input)
    }

    /// All entries, in their order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Spot, &Entry)> {
        let spots = self.tokens.iter().zip(&self.lines).enumerate();
        spots.map(|(index, (Tagged(entry), line))| (Spot { index, line: *line, label: entry.label() }, entry))
    }
}

impl Entry {
    /// The tag.
    pub(crate) const fn tag(&self) -> &'static str {
        match self {
            Self::Client(_) => "Client",
            Self::ClientPolicy(_) => "ClientPolicy",
            Self::Agent(_) => "Agent",
            Self::AgentPublish(_) => "AgentPublish",
        }
    }

    /// Tag and name, as messages call it.
    fn label(&self) -> String {
        let (Self::Client(ClientToken { name, .. })
        | Self::ClientPolicy(ClientPolicy { name, .. })
        | Self::Agent(AgentToken { name, .. })
        | Self::AgentPublish(AgentPublishToken { name, .. })) = self;
        format!("{} {}", self.tag(), name.0)
    }
}

/// A key that is there has a value.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}
