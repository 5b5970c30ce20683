//! Role: `policies` of a client and `policy` of a !ClientPolicy, in every shape they are published in.
//! Invariants: a list says its mode once; nothing at all is neither everything nor nothing.
//! See: docs/tokens.md "Policies".

use std::fmt;

use narrowlink_proto::policy::Policies;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, Unexpected, VariantAccess as _},
};

use crate::items::{IDS_AND_ITEMS, Items};

const EMPTY: &str = "empty, which could mean everything or nothing: leave the key out for no restriction";

const NO_MODE: &str = "items need a mode: write `{ permit: true, policies: [..] }` (only these) or \
     `{ permit: false, policies: [..] }` (all but these)";

const TWO_MODES: &str = "`permit` and `type` both say the mode: keep `permit`";

/// What a client's `policies` says.
#[derive(Debug)]
pub(crate) enum Restriction {
    /// A list of its own.
    List(Policies),
    /// The `pid`s of lists that stand elsewhere; each must allow. Never empty, none twice.
    Ids(Vec<u32>),
}

/// A list with its mode: `{ permit, policies }`, `{ type, policies }` or `!WhiteList [..]`.
#[derive(Debug)]
pub(crate) struct List(pub(crate) Policies);

/// The number by which clients name a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Pid(pub(crate) u32);

#[derive(Deserialize)]
enum Mode {
    WhiteList,
    BlackList,
}

/// The keys of a list.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Permit,
    Type,
    Policies,
}

impl Mode {
    const fn permits(&self) -> bool {
        matches!(self, Self::WhiteList)
    }
}

fn from_map<'de, A: de::MapAccess<'de>>(mut map: A) -> Result<Policies, A::Error> {
    let (mut permit, mut kind, mut items) = (None, None, None);
    while let Some(key) = map.next_key()? {
        let known = match key {
            Key::Permit => permit.replace(map.next_value::<bool>()?).map(|_| "permit"),
            Key::Type => kind.replace(map.next_value::<Mode>()?).map(|_| "type"),
            Key::Policies => items.replace(map.next_value::<Items>()?).map(|_| "policies"),
        };
        if let Some(known) = known {
            return Err(de::Error::duplicate_field(known));
        }
    }
    let permit = match (permit, kind) {
        (Some(_), Some(_)) => return Err(de::Error::custom(TWO_MODES)),
        (Some(permit), None) => permit,
        (None, Some(mode)) => mode.permits(),
        (None, None) => return Err(de::Error::custom("`permit` is missing, or `type` in its place")),
    };
    let Items(policies) = items.ok_or_else(|| de::Error::missing_field("policies"))?;
    Ok(Policies { permit, policies })
}

fn from_tag<'de, A: de::EnumAccess<'de>>(tagged: A) -> Result<Policies, A::Error> {
    let (mode, items) = tagged.variant::<Mode>()?;
    let Items(policies) = items.newtype_variant()?;
    Ok(Policies { permit: mode.permits(), policies })
}

impl<'de> Deserialize<'de> for Restriction {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(RestrictionVisitor)
    }
}

struct RestrictionVisitor;

impl<'de> de::Visitor<'de> for RestrictionVisitor {
    type Value = Restriction;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the keys `permit` and `policies`, or a list of policy ids such as [1025, 1026]")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Restriction, A::Error> {
        from_map(map).map(Restriction::List)
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<Restriction, A::Error> {
        from_tag(tagged).map(Restriction::List)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Restriction, A::Error> {
        let mut ids = Vec::new();
        while let Some(Pid(id)) = seq.next_element_seed(IdSeed { known: &ids })? {
            ids.push(id);
        }
        if ids.is_empty() { Err(de::Error::custom(EMPTY)) } else { Ok(Restriction::Ids(ids)) }
    }

    fn visit_unit<E: de::Error>(self) -> Result<Restriction, E> {
        Err(E::custom(EMPTY))
    }
}

/// One id of a client's list.
struct IdSeed<'a> {
    known: &'a [u32],
}

impl<'de> DeserializeSeed<'de> for IdSeed<'_> {
    type Value = Pid;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Pid, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for IdSeed<'_> {
    type Value = Pid;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PidVisitor.expecting(f)
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Pid, E> {
        let Pid(id) = PidVisitor.visit_u64(id)?;
        if self.known.contains(&id) {
            return Err(E::custom(format_args!("policy id {id} comes twice")));
        }
        Ok(Pid(id))
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<Pid, A::Error> {
        Err(de::Error::custom(if self.known.is_empty() { NO_MODE } else { IDS_AND_ITEMS }))
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ListVisitor)
    }
}

struct ListVisitor;

impl<'de> de::Visitor<'de> for ListVisitor {
    type Value = List;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the keys `type` (!WhiteList or !BlackList) and `policies`")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<List, A::Error> {
        from_map(map).map(List)
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<List, A::Error> {
        from_tag(tagged).map(List)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<List, A::Error> {
        Err(de::Error::custom(NO_MODE))
    }
}

impl<'de> Deserialize<'de> for Pid {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(PidVisitor)
    }
}

struct PidVisitor;

impl de::Visitor<'_> for PidVisitor {
    type Value = Pid;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a policy id from 0 to {}", u32::MAX)
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Pid, E> {
        u32::try_from(id).map(Pid).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: &str = "[!Ip [null, 10.0.0.0/8, 22, TCP]]";

    fn list(yaml: &str) -> Result<Policies, String> {
        narrowlink_proto::yaml::read(yaml).map(|List(list)| list).map_err(|e| e.to_string())
    }

    fn restriction(yaml: &str) -> Result<Restriction, String> {
        narrowlink_proto::yaml::read(yaml).map_err(|e| e.to_string())
    }

    #[test]
    fn every_spelling_of_a_mode_means_the_same() {
        for (permit, tag) in [(true, "WhiteList"), (false, "BlackList")] {
            let want = Policies { permit, policies: narrowlink_proto::yaml::read(ITEMS).unwrap() };
            for yaml in [
                format!("{{permit: {permit}, policies: {ITEMS}}}"),
                format!("{{policies: {ITEMS}, type: !{tag} }}"),
                format!("{{type: {tag}, policies: {ITEMS}}}"),
                format!("type: !{tag}\npolicies: {ITEMS}"),
                format!("!{tag} {ITEMS}"),
            ] {
                assert_eq!(list(&yaml), Ok(want.clone()), "{yaml}");
                let Ok(Restriction::List(list)) = restriction(&yaml) else { panic!("{yaml}") };
                assert_eq!(list, want, "{yaml}");
            }
        }
    }

    #[test]
    fn ids_are_read_up_to_the_largest() {
        let Ok(Restriction::Ids(ids)) = restriction("[1025, 0, 4294967295]") else { panic!() };
        assert_eq!(ids, [1025, 0, u32::MAX]);
    }

    #[test]
    fn a_list_that_is_none_says_what_is_expected() {
        for (yaml, says) in [
            (format!("{{permit: true, type: !WhiteList , policies: {ITEMS}}}"), TWO_MODES),
            (format!("{{type: BlackList, policies: {ITEMS}, permit: false}}"), TWO_MODES),
            (format!("{{policies: {ITEMS}}}"), "`permit` is missing, or `type` in its place"),
            ("{permit: true}".into(), "`policies` is missing"),
            ("{permit: true, permit: true, policies: []}".into(), "this key stands twice"),
            ("{type: !Whitelist , policies: []}".into(), "unknown "),
            ("{type: grey, policies: []}".into(), "type: unknown "),
            ("!GreyList []".into(), "unknown "),
            ("{permit: true, policies: [], until: 1}".into(), "unknown key"),
            ("{permit: false, policies: }".into(), "policies: expected a list of items"),
            ("!BlackList".into(), "expected a list of items"),
            ("{permit: true, policies: [1025]}".into(), "policies[0]: policy ids and items met"),
        ] {
            for why in [list(&yaml).unwrap_err(), restriction(&yaml).unwrap_err()] {
                assert!(why.contains(says), "{yaml}\n{why}");
            }
        }
        for (yaml, says) in [
            (ITEMS, "items need a mode: write `{ permit: true, policies: [..] }`"),
            ("[1025]", "items need a mode"),
            ("~", "expected the keys `type` (!WhiteList or !BlackList) and `policies`"),
        ] {
            let why = list(yaml).unwrap_err();
            assert!(why.contains(says), "{yaml}\n{why}");
        }
    }

    #[test]
    fn a_clients_policies_that_are_none_say_what_is_expected() {
        for (yaml, says) in [
            ("~", "empty, which could mean everything or nothing: leave the key out for no restriction"),
            ("[]", "empty, which could"),
            ("1025", "expected the keys `permit` and `policies`, or a list of policy ids"),
            (ITEMS, "[0]: items need a mode"),
            (
                "- 1025\n- !Any [home, true]",
                "[1]: policy ids and items met in one `policies`: keep the ids, ",
            ),
            ("[1, 2, 1]", "[2]: policy id 1 comes twice"),
            ("[-1]", "[0]: expected a policy id from 0 to 4294967295"),
            ("[4294967296]", "[0]: expected a policy id from 0 to 4294967295"),
            ("[office]", "[0]: expected a policy id"),
        ] {
            let why = restriction(yaml).unwrap_err();
            assert!(why.contains(says), "{yaml}\n{why}");
        }
    }
}
