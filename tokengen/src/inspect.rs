//! Role: what a token says, and whether a secret signed it.
//! Invariants: nothing read here is believed: what is shown of a token without its secret, anybody could have
//! written.

use std::{
    fs,
    io::{self, Read},
};

use narrowlink_proto::{
    printable::escaped,
    token::{Claims, KeyId, Keys, Kind, TokenError, read_unverified},
};
use serde::Serialize;

use crate::secrets::Candidate;

/// A file that holds one token and a few words about it at the most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a token says, and who may have said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// All it claims.
    pub claims: Claims,
    /// What is known of its signature.
    pub signature: Signature,
}

/// What is known of a token's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// Nothing: no secret was given.
    Unknown,
    /// A secret signed it as what it claims to be.
    Holds {
        /// Where the secret stood.
        by: String,
        /// Its name.
        id: KeyId,
    },
    /// A secret signed it, with the key of another kind.
    OtherKind {
        /// Where the secret stood.
        by: String,
        /// The key's kind.
        kind: Kind,
    },
    /// None of these.
    Foreign {
        /// Where the secrets stood.
        tried: Vec<String>,
    },
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Neither a file nor a token.
    #[error("the argument names no file that can be read: {why}{}", hint(why))]
    Argument {
        /// The system's answer.
        why: io::Error,
    },
    /// Standard input can't be read.
    #[error("standard input: {why}")]
    Stdin {
        /// The system's answer.
        why: io::Error,
    },
    /// A file of something else.
    #[error("{}: {}", escaped(source_name), if *is_input { INPUT } else { NO_TOKEN })]
    NoToken {
        /// Which file.
        source_name: String,
        /// It is what tokens are made from.
        is_input: bool,
    },
    /// A file with several tokens.
    #[error("{}: {count} tokens in it, where one is expected", escaped(source_name))]
    Count {
        /// Which file.
        source_name: String,
        /// How many.
        count: usize,
    },
    /// No gateway could read it.
    #[error("{}", escaped(&why.to_string()))]
    Broken {
        /// What is broken.
        why: TokenError,
    },
}

const NO_TOKEN: &str = "no token in it; a token begins with `ey`";
const INPUT: &str = "no token in it, but what tokens are made from: sign it, and look at what comes out";

fn hint(why: &io::Error) -> &'static str {
    if why.kind() == io::ErrorKind::NotFound { "; and a token would begin with `ey`" } else { "" }
}

/// The token that `argument` stands for: itself, a file with it, or `-` for standard input. Lines that begin
/// with `#` are labels.
///
/// # Errors
/// The user's.
pub fn fetch(argument: &str, stdin: impl Read) -> Result<String, InspectError> {
    if argument == "-" {
        let text = read_text(stdin).map_err(|why| InspectError::Stdin { why })?;
        return only_token(&text, "standard input");
    }
    match fs::File::open(argument).and_then(read_text) {
        Ok(text) => only_token(&text, argument),
        Err(_) if argument.starts_with("ey") => Ok(argument.trim_end().to_owned()),
        Err(why) => Err(InspectError::Argument { why }),
    }
}

fn read_text(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(FILE_BYTES_MAX).read_to_string(&mut text).map(|_| text)
}

fn only_token(text: &str, source_name: &str) -> Result<String, InspectError> {
    let lines: Vec<_> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let source_name = source_name.to_owned();
    match lines[..] {
        [token] => Ok(token.to_owned()),
        _ => match lines.iter().filter(|line| line.starts_with("ey")).count() {
            0 => {
                let is_input = lines.iter().any(|line| line.starts_with("tokens:"));
                Err(InspectError::NoToken { source_name, is_input })
            }
            count => Err(InspectError::Count { source_name, count }),
        },
    }
}

/// Reads `token` and holds it against `secrets`, if there are any.
///
/// # Errors
/// The writer's: what no gateway could read.
pub fn inspect(token: &str, secrets: Option<&[Candidate]>) -> Result<Inspection, InspectError> {
    let claims = read_unverified(token).map_err(|why| InspectError::Broken { why })?;
    let Some(secrets) = secrets else { return Ok(Inspection { claims, signature: Signature::Unknown }) };
    for Candidate { place, secret } in secrets {
        let keys = Keys::new(secret.as_bytes());
        if let Some(kind) = keys.signer(token).map_err(|why| InspectError::Broken { why })? {
            let (by, id) = (place.clone(), keys.id());
            let holds = kind == claims.kind;
            let signature =
                if holds { Signature::Holds { by, id } } else { Signature::OtherKind { by, kind } };
            return Ok(Inspection { claims, signature });
        }
    }
    let tried = secrets.iter().map(|candidate| candidate.place.clone()).collect();
    Ok(Inspection { claims, signature: Signature::Foreign { tried } })
}

impl Inspection {
    /// Whether all that was asked for came out well: `false` if a secret was given that did not sign it.
    pub const fn is_well(&self) -> bool {
        matches!(self.signature, Signature::Unknown | Signature::Holds { .. })
    }

    /// The claims as JSON, `verified_by`: where the secret stood that signed it, and `key`: its id; or null.
    ///
    /// # Errors
    /// Our own: claims that were read can be written.
    pub fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            claims: &'a Claims,
            verified_by: Option<&'a str>,
            key: Option<String>,
        }
        let (verified_by, key) = match &self.signature {
            Signature::Holds { by, id } => (Some(by.as_str()), Some(id.to_string())),
            Signature::Unknown | Signature::OtherKind { .. } | Signature::Foreign { .. } => (None, None),
        };
        serde_json::to_string_pretty(&Shown { claims: &self.claims, verified_by, key })
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        id::Uid,
        policy::{Grant, Item, Policies},
        token::{Allowance, PublishProtocol, Published, Secret, Services},
    };
    use proptest::prelude::*;

    use super::*;

    fn candidates(secrets: &[&[u8]]) -> Vec<Candidate> {
        let candidate = |(index, bytes): (usize, &&[u8])| Candidate {
            place: format!("secret {index}"),
            secret: Secret::from_bytes(bytes.to_vec()).unwrap(),
        };
        secrets.iter().enumerate().map(candidate).collect()
    }

    fn agent() -> Claims {
        Claims::new(Kind::Agent, Uid::nil(), "home", 2_000_000_000, "j")
    }

    #[test]
    fn the_secret_that_signed_is_named_whatever_the_time() {
        let token = Keys::new(b"two").sign(&Claims { exp: 1, ..agent() }).unwrap();
        let signature = |secrets| inspect(&token, secrets).unwrap().signature;
        assert_eq!(signature(None), Signature::Unknown);
        let both = candidates(&[b"one", b"two"]);
        assert_eq!(
            signature(Some(&both)),
            Signature::Holds { by: "secret 1".into(), id: Keys::new(b"two").id() }
        );
        let tried = vec!["secret 0".to_owned()];
        assert_eq!(signature(Some(&both[..1])), Signature::Foreign { tried });
    }

    #[test]
    fn a_token_comes_from_the_command_line_a_file_or_standard_input() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t").display().to_string();
        let none = io::empty();
        for text in ["eyJ.a.b", "eyJ.a.b\n", "# Agent home\neyJ.a.b\n\n", "\r\n eyJ.a.b \r\n"] {
            fs::write(&file, text).unwrap();
            assert_eq!(fetch(&file, none).unwrap(), "eyJ.a.b", "{text:?}");
            assert_eq!(fetch("-", text.as_bytes()).unwrap(), "eyJ.a.b", "{text:?}");
        }
        assert_eq!(fetch("eyJ.a.b", none).unwrap(), "eyJ.a.b");
        let long = format!("eyJ.{}.b", "a".repeat(5000));
        assert_eq!(fetch(&long, none).unwrap(), long);
        for (argument, stdin, says) in [
            (
                "nowhere",
                "",
                "the argument names no file that can be read: No such file or directory (os error 2); and a token would begin with `ey`",
            ),
            ("\u{1b}[2J", "", "the argument names no file"),
            ("-", "# nothing\n", "standard input: no token in it; a token begins with `ey`"),
            (
                "-",
                "secret: x\ntokens:\n  - !Agent\n",
                "standard input: no token in it, but what tokens are made from",
            ),
            ("-", "eya\neyb\n", "standard input: 2 tokens in it"),
        ] {
            let why = fetch(argument, stdin.as_bytes()).unwrap_err().to_string();
            assert!(why.starts_with(says), "{argument}: {why}");
        }
        assert!(matches!(fetch("-", &[0xff][..]), Err(InspectError::Stdin { .. })));
    }

    #[test]
    fn json_has_every_claim_and_says_who_signed() {
        let token = Keys::new(b"two").sign(&agent()).unwrap();
        let json = |secrets: Option<&[Candidate]>| -> serde_json::Value {
            serde_json::from_str(&inspect(&token, secrets).unwrap().json().unwrap()).unwrap()
        };
        let verified = json(Some(&candidates(&[b"two"])));
        assert_eq!((&verified["kind"], &verified["name"]), (&"agent".into(), &"home".into()));
        assert_eq!(verified["verified_by"], "secret 0");
        for secrets in [None, Some(&candidates(&[b"one"])[..])] {
            assert!(json(secrets)["verified_by"].is_null());
        }
    }

    fn items() -> impl Strategy<Value = Item> {
        let agent = prop::option::of("[a-z]{1,8}");
        let ports = prop_oneof![Just("0"), Just("22"), Just("8000-8100"), Just("[22, 80-90]")];
        let protocol = prop::sample::select(vec!["TCP", "UDP", "ANY", "HTTP", "HTTPS", "TLS"]);
        let yaml = (agent, any::<u32>(), 0u8..=32, ports, protocol, any::<bool>(), 0..3).prop_map(
            |(agent, ip, bits, ports, protocol, allow, kind)| {
                let agent = agent.map_or("null".to_owned(), |name| format!("'{name}'"));
                let ip = std::net::Ipv4Addr::from(ip);
                match kind {
                    0 => format!("!Ip [{agent}, {ip}/{bits}, {ports}, {protocol}]"),
                    1 => format!("!Domain [{agent}, '*.a{bits}.example', {ports}, {protocol}]"),
                    _ => format!("!Any [{agent}, {allow}]"),
                }
            },
        );
        yaml.prop_map(|yaml| narrowlink_proto::yaml::read(&yaml).unwrap_or_else(|e| panic!("{yaml}: {e}")))
    }

    fn claims() -> impl Strategy<Value = Claims> {
        let lists = prop::collection::vec((any::<bool>(), prop::collection::vec(items(), 0..6)), 0..4);
        let limits = prop::option::of((1u32.., 1u64..));
        let hosts = prop::collection::btree_map("[a-z]{1,9}\\.example", (any::<u16>(), 1u16..), 0..4);
        let who = (prop::sample::select(Kind::ALL.to_vec()), any::<u128>(), "[a-zA-Zäß家 ._-]{0,20}z");
        let when =
            (0..=2_000_000_000u64, prop::option::of(0..=2_000_000_000u64), prop::option::of(any::<u64>()));
        (who, when, lists, limits, hosts).prop_map(
            |((kind, uid, name), (exp, nbf, iat), lists, limits, hosts)| {
                let mut claims = Claims::new(kind, Uid::from_u128(uid), name.trim(), exp, "j");
                (claims.nbf, claims.iat) = (nbf, iat);
                if kind == Kind::Client {
                    let list = |(permit, policies)| Policies { permit, policies };
                    claims.policies = Grant::new(lists.into_iter().map(list).collect());
                    if let Some((sessions, bytes)) = limits {
                        let (sessions, bytes_per_s) = (sessions.try_into().ok(), bytes.try_into().ok());
                        claims.limits = Allowance { sessions, bytes_per_s, ..Allowance::default() };
                    }
                }
                if kind == Kind::AgentPublish {
                    let host = |(host, (port, to))| Published {
                        host,
                        port,
                        path: String::new(),
                        addr: ("::1".into(), to),
                        protocol: PublishProtocol::Tls,
                    };
                    claims.connect = Some(Services::new(hosts.into_iter().map(host).collect()).unwrap());
                }
                claims
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn whatever_is_signed_reads_back_the_same(claims in claims(), secret in prop::collection::vec(any::<u8>(), 1..64)) {
            let token = Keys::new(&secret).sign(&claims).unwrap();
            let read = inspect(&token, Some(&candidates(&[&secret]))).unwrap();
            prop_assert_eq!(&read.claims, &claims);
            prop_assert!(read.is_well() && read.signature != Signature::Unknown);
            let page = crate::show::inspection(&read, claims.exp);
            prop_assert!(!page.contains(|c: char| c != '\n' && c.is_control()));
            let mut json: serde_json::Value = serde_json::from_str(&read.json().unwrap()).unwrap();
            json.as_object_mut().unwrap().retain(|key, _| !["verified_by", "key"].contains(&key.as_str()));
            prop_assert_eq!(serde_json::from_value::<Claims>(json).unwrap(), claims);
        }

        #[test]
        fn bent_texts_never_panic(text in "ey[A-Za-z0-9_=. -]{0,200}|.{0,60}") {
            prop_assert!(inspect(&text, None).is_err());
        }
    }
}
