//! Role: what a program can do beyond the protocol's version, as both sides of a link tell each other.
//! Invariants: a feature is used only with a peer that has named it · a name that this version does not know is no
//! error: it is a later one's.
//! See: `message`, Hello and Present; ARCHITECTURE.md "Versions".

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Names of one peer that are looked at; the rest is not.
const NAMES_MAX: usize = 256;

/// Something that not every program of this version can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// An agent that takes part in end-to-end handshakes.
    EndToEnd,
    /// Sessions of datagrams.
    Datagrams,
    /// Sessions that measure the way (`measure`), and of a gateway, the question what its bearer uses.
    Measure,
    /// Hosts for visitors: of an agent that it dials for them, of a gateway that it takes tokens that claim hosts.
    Publish,
}

impl Feature {
    const ALL: [Self; 4] = [Self::EndToEnd, Self::Datagrams, Self::Measure, Self::Publish];

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndToEnd => "e2ee",
            Self::Datagrams => "datagrams",
            Self::Measure => "measure",
            Self::Publish => "publish",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|feature| feature.name() == name)
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Those of one program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// None beyond the version.
    pub const NONE: Self = Self(0);

    /// Whether this one is among them.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// These and one more.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.bit())
    }
}

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(Feature::ALL.into_iter().filter(|feature| self.has(*feature)).map(Feature::name))
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> de::Visitor<'de> for Names {
            type Value = Features;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut names: A) -> Result<Features, A::Error> {
                let (mut features, mut count) = (Features::NONE, 0);
                while let Some(name) = names.next_element::<std::borrow::Cow<'_, str>>()? {
                    count += 1;
                    if let Some(feature) = Feature::parse(&name).filter(|_| count <= NAMES_MAX) {
                        features = features.with(feature);
                    }
                }
                Ok(features)
            }
        }
        from.deserialize_seq(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_read_back_and_names_of_later_versions_are_no_error() {
        let all = Features::NONE.with(Feature::EndToEnd).with(Feature::Datagrams);
        assert_eq!(serde_json::to_string(&all).unwrap(), r#"["e2ee","datagrams"]"#);
        for features in [Features::NONE, all, Features::NONE.with(Feature::Datagrams)] {
            let text = serde_json::to_string(&features).unwrap();
            assert_eq!(serde_json::from_str::<Features>(&text).unwrap(), features);
        }
        let later: Features = serde_json::from_str(r#"["telepathy","datagrams","E2EE",""]"#).unwrap();
        assert_eq!(later, Features::NONE.with(Feature::Datagrams));
        assert!(serde_json::from_str::<Features>(r#"["a",7]"#).is_err());
        assert!(serde_json::from_str::<Features>(r#"{"e2ee":true}"#).is_err());
    }

    #[test]
    fn of_a_peer_that_names_very_many_only_the_first_are_looked_at() {
        let many = vec!["later"; NAMES_MAX].join("\",\"");
        let text = format!("[\"{many}\",\"e2ee\"]");
        assert_eq!(serde_json::from_str::<Features>(&text).unwrap(), Features::NONE);
    }
}
