//! Role: every default limit in one place; the programs' configs may set others.
//! Invariants: no limit is unset, no queue or table without one.
//! See: SECURITY.md, "What we hold".

use std::{num::NonZeroU32, time::Duration};

use crate::token::Allowance;

/// A framed connection that was silent for so long is pinged; CDNs cut at 60 s.
pub const QUIET_PING_INTERVAL: Duration = Duration::from_secs(25);

/// The limits of one gateway, and of agents and clients where they have the same.
///
/// What no config may change stands with the format it belongs to:
/// [`TOKEN_BYTES_MAX`](crate::token::TOKEN_BYTES_MAX) (8 KiB),
/// [`CLAIMS_BYTES_MAX`](crate::token::CLAIMS_BYTES_MAX) (4 KiB),
/// [`ITEMS_MAX`](crate::policy::ITEMS_MAX) (256 policy items),
/// [`MESSAGE_BYTES_MAX`](crate::message::MESSAGE_BYTES_MAX) (64 KiB) and
/// [`EARLY_DATA_BYTES_MAX`](crate::message::EARLY_DATA_BYTES_MAX) (64 KiB),
/// [`HEAD_BYTES_MAX`](crate::upgrade::HEAD_BYTES_MAX) (16 KiB) and
/// [`HEADERS_MAX`](crate::upgrade::HEADERS_MAX) (64 headers).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A ClientHello must be complete this long after the accept.
    pub client_hello_timeout: Duration,
    /// A TLS handshake must be complete this long after the accept.
    pub tls_handshake_timeout: Duration,
    /// A request head must be complete this long after its connection stands, however slowly it comes.
    pub head_timeout: Duration,

    /// Strangers (connections that are neither authenticated nor routed to a published host), in all.
    pub strangers_max: usize,
    /// Strangers per source: an IPv4 address or an IPv6 /64.
    pub strangers_per_source_max: usize,
    /// New strangers per source and second.
    pub strangers_per_source_per_s: NonZeroU32,
    /// New strangers per source at once.
    pub strangers_per_source_burst: NonZeroU32,

    /// Failed logins per source and minute before the penalty begins.
    pub failed_logins_per_min: NonZeroU32,
    /// The first penalty; each further one is twice the last.
    pub login_penalty_min: Duration,
    /// The longest penalty.
    pub login_penalty_max: Duration,
    /// Sources that are remembered.
    pub login_sources_max: usize,

    /// Links per agent token.
    pub agent_links_max: u32,
    /// Links per client token.
    pub client_links_max: u32,
    /// Lanes per agent token.
    pub agent_lanes_max: u32,
    /// New lanes per agent token and second; those of 10 s may come at once.
    pub agent_lanes_per_s: NonZeroU32,
    /// What each client's token may use, where it says nothing itself. (Dials of 10 s may come at once: 10,000.
    /// One is 41 µs of a gateway's core, so a token at its rate takes 4 % of one. A browser without keep-alive,
    /// or a build that fetches file by file, opens some hundreds a second, and an office shares one forward.)
    pub token: Allowance,
    /// What all tokens of a user may use together.
    pub user: Allowance,

    /// A Dial must be answered within this.
    pub dial_timeout: Duration,

    /// Links are pinged this often.
    pub ping_interval: Duration,
    /// A link is dead when a ping has gone unanswered this long.
    pub pong_timeout: Duration,
    /// As [`QUIET_PING_INTERVAL`].
    pub quiet_ping_interval: Duration,
    /// Parked lanes outlive their link by this.
    pub orphan_lane_timeout: Duration,
    /// Streams may finish for this long after the gateway was told to stop.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_hello_timeout: Duration::from_secs(3),
            tls_handshake_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(5),

            strangers_max: 2_048,
            strangers_per_source_max: 64,
            strangers_per_source_per_s: count(50),
            strangers_per_source_burst: count(200),

            failed_logins_per_min: count(10),
            login_penalty_min: Duration::from_secs(1),
            login_penalty_max: Duration::from_secs(600),
            login_sources_max: 65_536,

            agent_links_max: 4,
            client_links_max: 64,
            agent_lanes_max: 1_024,
            agent_lanes_per_s: count(1_000),
            token: Allowance {
                sessions: NonZeroU32::new(1_024),
                streams: NonZeroU32::new(2_048),
                dials_per_s: NonZeroU32::new(1_000),
                ..Allowance::default()
            },
            user: Allowance::default(),

            dial_timeout: Duration::from_secs(10),

            ping_interval: Duration::from_secs(4),
            pong_timeout: Duration::from_secs(5),
            quiet_ping_interval: QUIET_PING_INTERVAL,
            orphan_lane_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

const fn count(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("no default is 0")
}
