//! Role: the limits that gateway.yaml may set, each by its name in `narrowlink_proto::limits`.
//! Invariants: only limits that this gateway keeps stand here: a number nobody obeys would be a lie.

use std::{fmt, num::NonZeroU32, time::Duration};

use narrowlink_proto::{limits::Limits, token::Allowance};
use serde::{Deserialize, Deserializer, de};

/// The longest time anybody may set; a limit of a day is none.
const SECONDS_MAX: f64 = 86_400.0;

/// A time in seconds, with fractions.
struct Seconds(Duration);

macro_rules! limits {
    ($($key:ident => $limit:ident: $kind:ty,)*) => {
        /// What the file says; the rest stays as it is.
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct LimitsInput {
            $($key: Option<$kind>,)*
        }

        impl LimitsInput {
            /// The defaults, with what the file says in their place.
            pub(super) fn into_limits(self) -> Limits {
                let mut limits = Limits::default();
                $(if let Some(value) = self.$key {
                    value.set(&mut limits.$limit);
                })*
                limits
            }
        }
    };
}

limits! {
    client_hello_timeout_s => client_hello_timeout: Seconds,
    tls_handshake_timeout_s => tls_handshake_timeout: Seconds,
    head_timeout_s => head_timeout: Seconds,
    dial_timeout_s => dial_timeout: Seconds,
    ping_interval_s => ping_interval: Seconds,
    pong_timeout_s => pong_timeout: Seconds,
    quiet_ping_interval_s => quiet_ping_interval: Seconds,
    orphan_lane_timeout_s => orphan_lane_timeout: Seconds,
    strangers_max => strangers_max: usize,
    strangers_per_source_max => strangers_per_source_max: usize,
    strangers_per_source_per_s => strangers_per_source_per_s: NonZeroU32,
    strangers_per_source_burst => strangers_per_source_burst: NonZeroU32,
    failed_logins_per_min => failed_logins_per_min: NonZeroU32,
    login_penalty_min_s => login_penalty_min: Seconds,
    login_penalty_max_s => login_penalty_max: Seconds,
    login_sources_max => login_sources_max: usize,
    agent_links_max => agent_links_max: u32,
    client_links_max => client_links_max: u32,
    agent_lanes_max => agent_lanes_max: u32,
    agent_lanes_per_s => agent_lanes_per_s: NonZeroU32,
    token => token: Merged,
    user => user: Merged,
}

/// What isn't said stays as it is.
#[derive(Deserialize)]
#[serde(transparent)]
struct Merged(Allowance);

/// A value of the file, and how it changes a default.
trait Set<T> {
    fn set(self, limit: &mut T);
}

impl Set<Duration> for Seconds {
    fn set(self, limit: &mut Duration) {
        *limit = self.0;
    }
}

macro_rules! set_as_it_is {
    ($($kind:ty),*) => {
        $(impl Set<Self> for $kind {
            fn set(self, limit: &mut Self) {
                *limit = self;
            }
        })*
    };
}

set_as_it_is!(usize, u32, NonZeroU32);

impl Set<Allowance> for Merged {
    fn set(self, limit: &mut Allowance) {
        *limit = self.0.or(*limit);
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_f64(SecondsVisitor)
    }
}

struct SecondsVisitor;

impl de::Visitor<'_> for SecondsVisitor {
    type Value = Seconds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seconds, more than 0 and at most {SECONDS_MAX}")
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Seconds, E> {
        if seconds > 0.0 && seconds <= SECONDS_MAX {
            Ok(Seconds(Duration::from_secs_f64(seconds)))
        } else {
            Err(E::invalid_value(de::Unexpected::Float(seconds), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// The sources of the crates that keep limits.
    fn sources(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if path != Path::new(file!()) && path.extension().is_some_and(|ext| ext == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_limit_is_read_where_it_is_kept() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let limits = fs::read_to_string(root.join("proto/src/limits.rs")).unwrap();
        let (_, fields) = limits.split_once("pub struct Limits {").unwrap();
        let (fields, _) = fields.split_once("\n}").unwrap();
        let names = fields.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
        let names: Vec<_> = names.map(|(name, _)| name).collect();
        assert!(names.len() > 20, "{names:?}");
        let mut text = String::new();
        for dir in ["dataplane/src", "control/src"] {
            sources(&root.join(dir), &mut text);
        }
        let unread: Vec<_> = names.iter().filter(|name| !text.contains(&format!("limits.{name}"))).collect();
        let unread: Vec<_> =
            unread.iter().filter(|name| !text.contains(&format!("limits().{name}"))).collect();
        assert!(unread.is_empty(), "a number that nobody obeys is a lie: {unread:?}");
    }
}
