//! Role: the items of a list, with agents written plain (`null`, `home`) or tagged (`!Any`, `!Agent home`).
//! Invariants: a list has one form; an error stands at the item that brought the other one.
//! See: docs/tokens.md "Policies", docs/policy.md.

use std::fmt;

use narrowlink_proto::policy::{Cidr, Item, NamePattern, Ports, Protocol, looks_like_pattern};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, Unexpected, value::EnumAccessDeserializer},
};

use crate::name::Name;

/// Policy ids and items are two things.
pub(crate) const IDS_AND_ITEMS: &str = "policy ids and items met in one `policies`: keep the ids, and move the \
     items into the `policy` of a !ClientPolicy with an id of its own";

const PLAIN_AND_TAGGED: &str = "agents are plain (null or a name) and tagged (!Any or !Agent name) in one list: keep \
     the plain form: null for !Any, the name alone for !Agent name";

const WHOLE_AND_TAGGED: &str = "an item `!Any [agent, true or false]` belongs to the plain form, and this list has \
     tagged agents (!Any or !Agent name): keep the plain form: null for !Any, the name alone for !Agent name";

const PATTERN: &str = "there are no patterns for agents: write null (or !Any in the tagged form) for every agent, or an \
     item for each name";

/// The items of one list.
#[derive(Debug)]
pub(crate) struct Items(pub(crate) Vec<Item>);

/// An item as the file writes it.
#[derive(Deserialize)]
enum ItemInput {
    Ip(IpInput),
    Domain(DomainInput),
    Any(AnyInput),
}

#[derive(Deserialize)]
#[serde(expecting = "[agent, net, ports, protocol]")]
struct IpInput(Agent, Cidr, Ports, Protocol);

#[derive(Deserialize)]
#[serde(expecting = "[agent, name, ports, protocol]")]
struct DomainInput(Agent, NamePattern, Ports, Protocol);

#[derive(Deserialize)]
#[serde(expecting = "[agent, true or false]")]
struct AnyInput(Agent, bool);

/// Which agents an item is about, in either form.
enum Agent {
    Plain(Option<Name>),
    Tagged(Option<Name>),
}

/// What a list's items have shown so far.
#[derive(Default)]
struct Forms {
    plain: bool,
    tagged: bool,
    whole: bool,
}

impl Forms {
    fn take(&mut self, item: ItemInput) -> Result<Item, &'static str> {
        let item = match item {
            ItemInput::Ip(IpInput(agent, net, ports, protocol)) => {
                Item::Ip(self.agent(agent), net, ports, protocol)
            }
            ItemInput::Domain(DomainInput(agent, name, ports, protocol)) => {
                Item::Domain(self.agent(agent), name, ports, protocol)
            }
            ItemInput::Any(AnyInput(agent, allow)) => {
                self.whole = true;
                Item::Any(self.agent(agent), allow)
            }
        };
        match self {
            Self { tagged: true, whole: true, .. } => Err(WHOLE_AND_TAGGED),
            Self { tagged: true, plain: true, .. } => Err(PLAIN_AND_TAGGED),
            Self { .. } => Ok(item),
        }
    }

    fn agent(&mut self, agent: Agent) -> Option<String> {
        let (form, name) = match agent {
            Agent::Plain(name) => (&mut self.plain, name),
            Agent::Tagged(name) => (&mut self.tagged, name),
        };
        *form = true;
        name.map(|Name(name)| name)
    }
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> de::Visitor<'de> for ItemsVisitor {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items such as `- !Ip [home, 10.0.0.0/8, 22, TCP]`; [] for none")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Items, A::Error> {
        let (mut forms, mut items) = (Forms::default(), Vec::new());
        while let Some(item) = seq.next_element_seed(ItemSeed(&mut forms))? {
            items.push(item);
        }
        Ok(Items(items))
    }
}

struct ItemSeed<'a>(&'a mut Forms);

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Item, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for ItemSeed<'_> {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tag: `- !Ip`, `- !Domain` or `- !Any`")
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<Item, A::Error> {
        let item = ItemInput::deserialize(EnumAccessDeserializer::new(tagged))?;
        self.0.take(item).map_err(de::Error::custom)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Item, E> {
        Err(E::custom(IDS_AND_ITEMS))
    }
}

impl<'de> Deserialize<'de> for Agent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(AgentVisitor)
    }
}

struct AgentVisitor;

impl<'de> de::Visitor<'de> for AgentVisitor {
    type Value = Agent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "an agent: null or !Any for each, or a name, in quotes if YAML takes it for something else",
        )
    }

    fn visit_unit<E: de::Error>(self) -> Result<Agent, E> {
        Ok(Agent::Plain(None))
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Agent, E> {
        one_agent(Name::parse(name)?).map(Some).map(Agent::Plain)
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<Agent, A::Error> {
        #[derive(Deserialize)]
        enum Tag {
            Any,
            Agent,
        }
        let (tag, content) = tagged.variant()?;
        match tag {
            Tag::Any => de::VariantAccess::unit_variant(content).map(|()| Agent::Tagged(None)).map_err(
                |_: A::Error| de::Error::custom("!Any stands alone: write !Agent name for one agent"),
            ),
            Tag::Agent => {
                one_agent(de::VariantAccess::newtype_variant(content)?).map(|name| Agent::Tagged(Some(name)))
            }
        }
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Agent, E> {
        Err(E::invalid_type(Unexpected::Bool(value), &self))
    }
}

/// A name, which no pattern is: it would be nobody's, and refuse nothing.
fn one_agent<E: de::Error>(name: Name) -> Result<Name, E> {
    if looks_like_pattern(&name.0) { Err(E::custom(PATTERN)) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(yaml: &str) -> Result<Vec<Item>, String> {
        narrowlink_proto::yaml::read(yaml).map(|Items(items)| items).map_err(|e| e.to_string())
    }

    #[test]
    fn plain_and_tagged_agents_say_the_same() {
        let plain = "[!Ip [null, 192.168.0.1/24, 22, TCP], !Domain [home, narrow.host, [80, 443], TLS]]";
        let tagged =
            "[!Ip [!Any, 192.168.0.1/24, 22, TCP], !Domain [!Agent home, narrow.host, [80, 443], TLS]]";
        let read = items(plain).unwrap();
        assert_eq!(items(tagged).unwrap(), read);
        assert_eq!(read, narrowlink_proto::yaml::read::<Vec<Item>>(plain).unwrap());
        let whole = "[!Any [null, true], !Any [home, false], !Ip [~, 10.0.0.1, 0, ANY]]";
        assert_eq!(items(whole).unwrap(), narrowlink_proto::yaml::read::<Vec<Item>>(whole).unwrap());
        assert_eq!(items("[]").unwrap(), []);
    }

    #[test]
    fn a_list_in_two_forms_is_refused_at_the_item_that_brings_the_second() {
        for (yaml, says) in [
            (
                "- !Ip [!Any, 10.0.0.1, 22, TCP]\n- !Ip [null, 10.0.0.1, 22, TCP]",
                "[1]: agents are plain (null or a name) and tagged (!Any or !Agent name) in one list: keep the \
                 plain form: null for !Any, the name alone for !Agent name",
            ),
            ("- !Ip [home, 10.0.0.1, 22, TCP]\n- !Domain [!Agent home, x, 22, TCP]", "[1]: agents are plain"),
            (
                "- !Ip [!Agent home, 10.0.0.1, 22, TCP]\n- !Any [home, true]",
                "[1]: an item `!Any [agent, true or false]` belongs to the plain form, and this list has tagged \
                 agents (!Any or !Agent name): keep the plain form: null for !Any, the name alone for !Agent \
                 name",
            ),
            ("- !Any [null, true]\n- !Ip [!Any, 10.0.0.1, 22, TCP]", "[1]: an item `!Any [agent"),
            ("- !Any [!Agent home, true]", "[0]: an item `!Any [agent"),
            (
                "- !Any [home, true]\n- 1025",
                "[1]: policy ids and items met in one `policies`: keep the ids, and move the items into the \
                 `policy` of a !ClientPolicy with an id of its own",
            ),
        ] {
            let why = items(yaml).unwrap_err();
            assert!(why.contains(says), "{yaml}\n{why}");
        }
    }

    #[test]
    fn an_item_that_is_none_says_what_is_expected() {
        for (yaml, says) in [
            ("- Any", "[0]: expected a tag: `- !Ip`, `- !Domain` or `- !Any`"),
            ("- !Ipp [a]", "[0]: unknown "),
            ("- !Ip [a, 10.0.0.1, 22]", "[0]: expected [agent, net, ports, protocol], found 3 of them"),
            ("- !Any [a]", "[0]: expected [agent, true or false], found 1 of them"),
            ("- !Any", "[0]: expected [agent, true or false], found 0 of them"),
            ("- !Any [7, true]", "[0][0]: expected an agent: null or !Any for each, or a name"),
            ("- !Any [true, true]", "[0][0]: expected an agent"),
            ("- !Any [!Each, true]", "[0][0]: unknown "),
            ("- !Any ['*', false]", "[0][0]: there are no patterns for agents: write null"),
            ("- !Ip [!Agent 'lab-*', 10.0.0.1, 22, TCP]", "[0][0]: there are no patterns for agents"),
            ("- !Any [!Any x, true]", "[0][0]: !Any stands alone: write !Agent name for one agent"),
            ("- !Any [!Agent, true]", "[0][0]: expected 1 to 128 printable bytes"),
            ("- !Any [' a', true]", "[0][0]: expected 1 to 128 printable bytes"),
            ("~", "expected a list of items"),
            ("a: 1", "expected a list of items"),
        ] {
            let why = items(yaml).unwrap_err();
            assert!(why.contains(says), "{yaml}\n{why}");
        }
    }
}
