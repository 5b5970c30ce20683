//! Role: the shape of a table of expectations.
//! Invariants: everything is looked at while the YAML reader still knows where it stands, so that every
//! error has its line and column: hence seeds, and a second reading for what refers to the first.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use narrowlink_proto::{
    id::Uid,
    policy::{Grant, Verdict},
    target::Target,
    token::{Claims, EXP_MAX, Kind},
    yaml::{Document, Fault},
};
use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, IgnoredAny, MapAccess, SeqAccess, VariantAccess,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::{Expectations, Row};
use crate::{
    config::Config,
    explain::{Bearer, Question, Rule, Trouble, read_token_file},
};

type Grants = BTreeMap<String, Result<Grant, Trouble>>;

const KEYS: &[&str] = &["tokens", "expect"];

/// Reads a table; paths are relative to `base`.
pub(super) fn parse(
    text: &str,
    base: &Path,
    config: Option<&Config>,
    now: u64,
) -> Result<Expectations, Fault> {
    let document = Document::parse(text)?;
    let grants = document.read_seed(Section { key: "tokens", seed: Tokens { base, config, now } })?;
    let rows = document.read_seed(Section { key: "expect", seed: Rows(&grants) })?;
    Ok(Expectations { grants, rows })
}

/// The value of one key of the file.
struct Section<S> {
    key: &'static str,
    seed: S,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Section<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<S::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> de::Visitor<'de> for Section<S> {
    type Value = S::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tokens: .. and expect: ..")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<S::Value, A::Error> {
        let (mut seed, mut value) = (Some(self.seed), None);
        while let Some(key) = map.next_key::<String>()? {
            if key == self.key {
                let seed = seed.take().ok_or_else(|| de::Error::duplicate_field(self.key))?;
                value = Some(map.next_value_seed(seed)?);
            } else if KEYS.contains(&key.as_str()) {
                map.next_value::<IgnoredAny>()?;
            } else {
                return Err(de::Error::unknown_field(&key, KEYS));
            }
        }
        value.ok_or_else(|| de::Error::missing_field(self.key))
    }

    /// An empty file.
    fn visit_unit<E: de::Error>(self) -> Result<S::Value, E> {
        Err(E::missing_field(self.key))
    }
}

/// Name -> token file, or policies written out.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    base: &'a Path,
    config: Option<&'a Config>,
    now: u64,
}

impl<'de> DeserializeSeed<'de> for Tokens<'_> {
    type Value = Grants;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Grants, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> de::Visitor<'de> for Tokens<'_> {
    type Value = Grants;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names, each with !File path or !Policies { permit, policies }")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Grants, A::Error> {
        let mut grants = Grants::new();
        while let Some(name) = map.next_key::<String>()? {
            let grant = map.next_value_seed(Token(self))?;
            if grants.contains_key(&name) {
                return Err(de::Error::custom("this name stands here twice"));
            }
            grants.insert(name, grant);
        }
        Ok(grants)
    }
}

struct Token<'a>(Tokens<'a>);

impl<'de> DeserializeSeed<'de> for Token<'_> {
    type Value = Result<Grant, Trouble>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Token<'_> {
    type Value = Result<Grant, Trouble>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "!File before a token's path, or !Policies before { permit, policies } or a list of these",
        )
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        enum Tag {
            File,
            Policies,
        }
        match data.variant()? {
            (Tag::File, content) => {
                self.0.read(&content.newtype_variant::<PathBuf>()?).map_err(de::Error::custom)
            }
            (Tag::Policies, content) => {
                let grant: Grant = content.newtype_variant()?;
                let policies = grant.clone();
                let claims = Claims::new(Kind::Client, Uid::nil(), "a", EXP_MAX, "a");
                Claims { policies, ..claims }.check().map_err(de::Error::custom)?;
                Ok(Ok(grant))
            }
        }
    }
}

impl Tokens<'_> {
    fn read(&self, path: &Path) -> Result<Result<Grant, Trouble>, String> {
        let path = self.base.join(path);
        let token = read_token_file(&path).map_err(|e| format!("this token file can't be read: {e}"))?;
        let bearer = Bearer::examine(&token, self.config, self.now);
        match (bearer.trouble, bearer.claims) {
            (Some(Trouble::Unreadable(e)), _) => Err(format!("in this file: {e}")),
            (Some(trouble), _) => Ok(Err(trouble)),
            (None, claims) => Ok(Ok(claims.map(|claims| claims.policies).unwrap_or_default())),
        }
    }
}

struct Rows<'a>(&'a Grants);

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = Vec<Row>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<Row>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Rows<'_> {
    type Value = Vec<Row>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of expectations such as [token, agent, target, verdict]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Row>, A::Error> {
        let mut rows = Vec::new();
        while let Some(row) = seq.next_element_seed(OneRow(self.0))? {
            rows.push(row);
        }
        if rows.is_empty() {
            return Err(de::Error::custom("empty: a table that expects nothing would always hold"));
        }
        Ok(rows)
    }
}

struct OneRow<'a>(&'a Grants);

impl<'de> DeserializeSeed<'de> for OneRow<'_> {
    type Value = Row;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Row, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for OneRow<'_> {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token, agent, target, verdict], or the same with names: { token: .., agent: .., .. }")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Row, A::Error> {
        self.make(RowInput::deserialize(SeqAccessDeserializer::new(seq))?)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Row, A::Error> {
        self.make(RowInput::deserialize(MapAccessDeserializer::new(map))?)
    }
}

/// As a list in this order, or with names.
#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "[token, agent, target, verdict], then resolved and rule if you like"
)]
struct RowInput {
    token: String,
    agent: String,
    target: Parsed<Target>,
    verdict: VerdictInput,
    #[serde(default)]
    resolved: Addresses,
    #[serde(default)]
    rule: Option<Parsed<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum VerdictInput {
    Allow,
    Deny,
    Depends,
}

impl OneRow<'_> {
    fn make<E: de::Error>(&self, input: RowInput) -> Result<Row, E> {
        let RowInput { token, agent, target: Parsed(target), verdict, resolved: Addresses(resolved), rule } =
            input;
        if !self.0.contains_key(&token) {
            let count = self.0.len();
            return Err(E::custom(format!("`tokens` has no token of this name; it has {count}")));
        }
        let question = Question::new(agent, target, resolved)
            .map_err(|_| E::custom("only a name resolves: leave `resolved` out, or ask for a name"))?;
        let verdict = match verdict {
            VerdictInput::Allow => Verdict::Allow,
            VerdictInput::Deny => Verdict::Deny,
            VerdictInput::Depends => Verdict::Depends,
        };
        Ok(Row { token, question, verdict, rule: rule.map(|Parsed(rule)| rule) })
    }
}

/// What a text stands for.
struct Parsed<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text<T>(std::marker::PhantomData<T>);

        impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for Text<T> {
            type Value = Parsed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Parsed<T>, E> {
                text.parse().map(Parsed).map_err(E::custom)
            }
        }

        d.deserialize_str(Text(std::marker::PhantomData))
    }
}

/// An address or a list of them.
#[derive(Default)]
struct Addresses(Vec<IpAddr>);

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(AddressesVisitor)
    }
}

struct AddressesVisitor;

impl<'de> de::Visitor<'de> for AddressesVisitor {
    type Value = Addresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an IP address or a list of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Addresses, E> {
        let ip = text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))?;
        Ok(Addresses(vec![ip]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Addresses, A::Error> {
        let mut all = Vec::new();
        while let Some(Parsed(ip)) = seq.next_element()? {
            all.push(ip);
        }
        Ok(Addresses(all))
    }
}
