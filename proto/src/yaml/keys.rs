//! Role: which keys our files know, and where; what a mistyped one was meant to be, and one of 0.2.
//! Invariants: a key is repeated to the user only if it is, or is like, one that stands here.
//! See: docs/configuration.md, docs/tokens.md, docs/migration.md; a test holds this table against the programs' own.

use std::fmt;

const TOP: &str = "the top level of gateway.yaml";
const SERVICE: &str = "a service (!Ws or !Wss) of gateway.yaml";
const CERTIFICATE: &str = "the tls_config of a !Wss service of gateway.yaml";
const LIMITS: &str = "`limits` of gateway.yaml";
const ALLOWANCE: &str =
    "`limits.token` and `limits.user` of gateway.yaml, and `limits` of a !Client in tokens.yaml";
const ENDPOINT: &str = "an endpoint (!SelfHosted) of agent.yaml or client.yaml";
const ENDPOINTS: &str = "the top level of agent.yaml or client.yaml";
const AGENT: &str = "the top level of agent.yaml";
const LANES: &str = "`lanes` of agent.yaml";
const TOKENS: &str = "the top level of tokens.yaml";
const ENTRY: &str = "an entry of `tokens` in tokens.yaml";
const CLIENT: &str = "a !Client in tokens.yaml";
const POLICY: &str = "a !ClientPolicy in tokens.yaml";
const PUBLISH: &str = "an !AgentPublish in tokens.yaml";
const LIST: &str = "`policies` of a !Client in tokens.yaml";

/// Keys that say by themselves where they belong.
const PLACES: &[(&str, &[&str])] = &[
    (
        TOP,
        &[
            "old_secrets",
            "services",
            "pin",
            "drain_s",
            "users",
            "audit",
            "revocations",
            "allow_weak_secret",
            "allow_readable_secrets",
        ],
    ),
    (SERVICE, &["listen_addr", "tls_config"]),
    (CERTIFICATE, &["cert_path", "key_path"]),
    (
        LIMITS,
        &[
            "client_hello_timeout_s",
            "tls_handshake_timeout_s",
            "head_timeout_s",
            "dial_timeout_s",
            "ping_interval_s",
            "pong_timeout_s",
            "quiet_ping_interval_s",
            "orphan_lane_timeout_s",
            "strangers_max",
            "agent_links_max",
            "client_links_max",
        ],
    ),
    (ALLOWANCE, &["sessions", "streams", "dials_per_s", "bytes_per_s", "bytes_per_month"]),
    (ENDPOINT, &["gateway", "token_file", "ca_file", "ca_pin", "domain", "framing"]),
    (ENDPOINTS, &["endpoints"]),
    (AGENT, &["lanes", "allow", "deny"]),
    (LANES, &["min", "max"]),
    (TOKENS, &["tokens"]),
    (ENTRY, &["exp", "nbf"]),
    (CLIENT, &["policies"]),
    (POLICY, &["pid", "policy"]),
    (PUBLISH, &["publish_hosts"]),
    (LIST, &["permit"]),
    ("the top level of gateway.yaml, or tokens.yaml", &["secret"]),
    ("the top level of gateway.yaml or agent.yaml", &["state_dir"]),
    ("the top level of gateway.yaml, agent.yaml or client.yaml", &["workers"]),
    ("a service of gateway.yaml, or its tls_config", &["domains"]),
    ("an endpoint of agent.yaml or client.yaml", &["token", "protocol"]),
];

/// Keys that stand at several levels, so that nothing is said of where they belong.
const COMMON: &[&str] = &[
    "name",
    "uid",
    "jti",
    "limits",
    "user",
    "hosts",
    "connect",
    "host",
    "port",
    "addr",
    "type",
    "issued_before",
    "expect",
];

/// `key` itself, if our files know it anywhere.
pub(super) fn known(key: &str) -> Option<&'static str> {
    let all = PLACES.iter().flat_map(|(_, keys)| keys.iter()).chain(COMMON);
    all.copied().find(|known| *known == key)
}

const FLAT: &str = "this is how 0.1 wrote it: `gateway`, `token` and `protocol` belong to an endpoint now, `endpoints: [!SelfHosted { gateway: .., token: .. }]`";
const NO_PUBLISHING: &str =
    "`publish` is 0.2's: nothing can be published yet; take it out, or stay with 0.2 where you need it";
const NO_ENCRYPTION: &str = "this is 0.2's end-to-end encryption, which is not there yet: take it out, and have what goes through encrypt itself (ssh, TLS)";

/// Keys of 0.2 that none of our files has: beside which key of today each stood, and what to do about it.
const EARLIER: &[(&str, &str, &str)] = &[
    ("gateway", "endpoints", FLAT),
    ("token", "endpoints", FLAT),
    ("service_type", "endpoints", FLAT),
    ("publish", "endpoints", NO_PUBLISHING),
    ("publish", "token_file", NO_PUBLISHING),
    ("acl", "token_file", "`acl` is 0.2's: what a client may reach stands in its own token now; take it out"),
    ("e2ee", "endpoints", NO_ENCRYPTION),
    ("key", "endpoints", NO_ENCRYPTION),
    ("key_policy", "endpoints", NO_ENCRYPTION),
    ("map", "endpoints", "`map` is 0.2's: it was for tun and proxy, which are not there yet; take it out"),
];

/// A tag of 0.2, and what to do about it.
const EARLIER_TAGS: &[(&str, &str, &str)] = &[(
    "Acme",
    "File",
    "`!Acme` is 0.2's, and certificates are not fetched yet: let certbot do it, and write `!File { cert_path: .., key_path: .. }` \
     (`narrowlink-gateway init --from FILE` makes a new gateway of a file of 0.2)",
)];

/// What to do about a key of 0.2 where `here` can stand.
fn earlier_key(key: &str, here: &[&'static str]) -> Option<&'static str> {
    earlier(EARLIER, key, here)
}

/// What to do about a tag of 0.2 where `here` can stand.
pub(super) fn earlier_tag(tag: &str, here: &[&'static str]) -> Option<&'static str> {
    earlier(EARLIER_TAGS, tag, here)
}

fn earlier(of: &[(&str, &str, &'static str)], word: &str, here: &[&'static str]) -> Option<&'static str> {
    of.iter().find(|(known, beside, _)| *known == word && here.contains(beside)).map(|(_, _, words)| *words)
}

/// What an unknown key was probably meant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Like {
    /// One of 0.2, and what to do about it.
    Earlier(&'static str),
    /// One of those that can stand here.
    Here(&'static str),
    /// Known as it is written, but not here; one that can stand here may be like it.
    Elsewhere { key: &'static str, place: &'static str, here: Option<&'static str> },
    /// Like one that is known, but not here.
    Near { key: &'static str, place: &'static str },
}

/// What `key` was probably meant to be where `here` can stand.
pub(super) fn meant(key: &str, here: &[&'static str]) -> Option<Like> {
    if let Some(words) = earlier_key(key, here) {
        return Some(Like::Earlier(words));
    }
    let near = like(key, here);
    if let Some((key, place)) = belongs(key) {
        return Some(Like::Elsewhere { key, place, here: near });
    }
    let elsewhere = || {
        let all: Vec<_> = PLACES.iter().flat_map(|(_, keys)| keys.iter().copied()).collect();
        let (key, place) = belongs(like(key, &all)?)?;
        Some(Like::Near { key, place })
    };
    near.map(Like::Here).or_else(elsewhere)
}

/// The key, and where it belongs, if that is known.
fn belongs(key: &str) -> Option<(&'static str, &'static str)> {
    PLACES
        .iter()
        .find_map(|(place, keys)| keys.iter().find(|known| **known == key).map(|known| (*known, *place)))
}

/// The one of `known` that `word` was probably meant to be.
pub(super) fn like(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    let near = known.iter().map(|known| (distance(&word, &plain(known)), *known));
    let (distance, nearest) = near.min_by_key(|(distance, _)| *distance)?;
    // A third of its letters, or it is another word.
    (distance * 3 <= nearest.len()).then_some(nearest)
}

/// How many letters are to be put in, taken out, changed or swapped to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(LETTERS_MAX).collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, other) in b.iter().enumerate() {
            let changed = row[j] + usize::from(letter != other);
            let mut least = changed.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && *letter == b[j - 1] && a[i - 1] == *other {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

/// A longer word is like no key.
const LETTERS_MAX: usize = 64;

/// `a`, `b` or `c`.
pub(super) fn list(f: &mut fmt::Formatter<'_>, words: &[&str], mark: &str) -> fmt::Result {
    for (index, word) in words.iter().enumerate() {
        let between = match index {
            0 => "",
            _ if index + 1 == words.len() => " or ",
            _ => ", ",
        };
        write!(f, "{between}`{mark}{word}`")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_understood_and_another_word_is_not() {
        let known = &["workers", "pin", "listen_addr", "cert_path", "Wss"];
        for (word, meant) in [
            ("worker", Some("workers")),
            ("wrokers", Some("workers")),
            ("listen-addr", Some("listen_addr")),
            ("listenaddr", Some("listen_addr")),
            ("wss", Some("Wss")),
            ("pni", Some("pin")),
            ("hunter2", None),
            ("", None),
            ("p", None),
        ] {
            assert_eq!(like(word, known), meant, "{word}");
        }
    }

    #[test]
    fn no_key_stands_in_the_table_twice() {
        let mut all: Vec<_> = PLACES.iter().flat_map(|(_, keys)| keys.iter()).collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }
}
