//! Role: the one file that knows YAML: what to sign, with which secret.
//! Invariants: an unknown key or tag is an error that names the known ones, with its place in the file.
//! See: tests/seed.yaml, the published example.

use std::{fmt, marker::PhantomData};

use narrowlink_proto::{
    id::Uid,
    policy::{Item, Policies},
    token::{Claims, Kind, SecretSource, Services, is_name},
};
use serde::{
    Deserialize, Deserializer,
    de::{
        self,
        value::{EnumAccessDeserializer, MapAccessDeserializer},
    },
};

use crate::when::When;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The gateway's secret.
    pub secret: SecretSource,
    /// What to sign.
    pub tokens: Vec<Tagged<Token>>,
}

/// One token; the tag says for whom.
#[derive(Debug, Deserialize)]
pub enum Token {
    /// For a client.
    Client(ClientToken),
    /// For an agent.
    Agent(AgentToken),
    /// What an agent may publish.
    AgentPublish(AgentPublishToken),
}

/// `!Client`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientToken {
    uid: Uid,
    name: Name,
    exp: When,
    #[serde(default)]
    nbf: Option<When>,
    #[serde(default)]
    jti: Option<Name>,
    /// Without this key there is no restriction; with it, there must be a value.
    #[serde(default, deserialize_with = "policies")]
    policies: Option<Policies>,
}

/// `!Agent`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentToken {
    uid: Uid,
    name: Name,
    exp: When,
    #[serde(default)]
    nbf: Option<When>,
    #[serde(default)]
    jti: Option<Name>,
}

/// `!AgentPublish`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentPublishToken {
    uid: Uid,
    name: Name,
    exp: When,
    #[serde(default)]
    nbf: Option<When>,
    #[serde(default)]
    jti: Option<Name>,
    connect: Services,
}

impl Input {
    /// Reads a whole file.
    ///
    /// # Errors
    /// The writer's, with path, line and column.
    pub fn parse(yaml: &str) -> Result<Self, serde_yaml::Error> {
        serde_yaml::from_str(yaml)
    }
}

impl Token {
    /// The tag.
    pub const fn tag(&self) -> &'static str {
        match self {
            Self::Client(_) => "Client",
            Self::Agent(_) => "Agent",
            Self::AgentPublish(_) => "AgentPublish",
        }
    }

    /// The agent's or client's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Client(token) => &token.name.0,
            Self::Agent(token) => &token.name.0,
            Self::AgentPublish(token) => &token.name.0,
        }
    }

    /// What the token will say. `fresh_jti` names it if the file does not.
    pub fn claims(&self, now: u64, fresh_jti: impl FnOnce() -> String) -> Claims {
        let (kind, uid, exp, nbf, jti) = match self {
            Self::Client(t) => (Kind::Client, t.uid, t.exp, t.nbf, &t.jti),
            Self::Agent(t) => (Kind::Agent, t.uid, t.exp, t.nbf, &t.jti),
            Self::AgentPublish(t) => (Kind::AgentPublish, t.uid, t.exp, t.nbf, &t.jti),
        };
        let (policies, connect) = match self {
            Self::Client(token) => (token.policies.clone(), None),
            Self::Agent(_) => (None, None),
            Self::AgentPublish(token) => (None, Some(token.connect.clone())),
        };
        Claims {
            kind,
            uid,
            name: self.name().to_owned(),
            exp: exp.seconds(now),
            nbf: nbf.map(|nbf| nbf.seconds(now)),
            iat: Some(now),
            jti: jti.as_ref().map_or_else(fresh_jti, |jti| jti.0.clone()),
            policies,
            connect,
        }
    }
}

/// A name, checked here and not only when signing, so that the error has a line and a column.
#[derive(Debug)]
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl de::Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("1 to 128 printable bytes without space at the ends")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
        if is_name(text) {
            return Ok(Name(text.to_owned()));
        }
        Err(E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// Something with a tag. Read by way of `deserialize_any`: of an unknown tag serde_yaml would otherwise
/// give the place of the list it is in, not its own.
#[derive(Debug)]
pub struct Tagged<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tagged<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(TaggedVisitor(PhantomData))
    }
}

struct TaggedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for TaggedVisitor<T> {
    type Value = Tagged<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tag (`- !Client`, `- !Ip` and so on)")
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<Tagged<T>, A::Error> {
        T::deserialize(EnumAccessDeserializer::new(tagged)).map(Tagged)
    }
}

/// [`Policies`], with the place of what is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoliciesInput {
    permit: bool,
    policies: Vec<Tagged<Item>>,
}

fn policies<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Policies>, D::Error> {
    d.deserialize_any(PoliciesVisitor).map(Some)
}

struct PoliciesVisitor;

impl<'de> de::Visitor<'de> for PoliciesVisitor {
    type Value = Policies;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the keys `permit` and `policies`")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Policies, A::Error> {
        let PoliciesInput { permit, policies } = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Policies { permit, policies: policies.into_iter().map(|Tagged(item)| item).collect() })
    }

    fn visit_unit<E: de::Error>(self) -> Result<Policies, E> {
        Err(E::custom("empty, which could mean everything or nothing: leave the key out for no restriction"))
    }
}
