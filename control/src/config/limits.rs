//! Role: the limits that gateway.yaml may set, each by its name in `narrowlink_proto::limits`.
//! Invariants: only limits that this gateway keeps stand here: a number nobody obeys would be a lie.

use std::{fmt, time::Duration};

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
    agent_links_max => agent_links_max: usize,
    client_links_max => client_links_max: usize,
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

impl Set<Self> for usize {
    fn set(self, limit: &mut Self) {
        *limit = self;
    }
}

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
