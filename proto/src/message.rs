//! Role: every message two programs exchange, and who may say which where.
//! Invariants: a message outside [`Message::allowed`] never parses; no message leads from an agent
//! to a client unasked, because none exists · a message or an origin of a later version is told apart from a broken
//! one: its receiver can ignore or refuse it by its name. Data is never JSON.
//! See: ARCHITECTURE.md, "The wire".

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeSeq};

use crate::{
    ended::{RefusalCode, Refused},
    endpoint::SecretText,
    feature::Features,
    id::{LinkId, LinkSecret, Nonce, SessionId},
    policy::AddressRules,
    printable::{self, printable},
    target::Target,
    token::ServiceName,
};

/// The protocol's version, in the sub-protocol's name and in both Hellos.
pub const VERSION: u32 = 1;

/// A message's bytes at the most; a longer one ends the connection.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Of a message that can't be read so much is repeated.
const WORDS_CHARS_MAX: usize = 200;
/// Of a name that this version does not know, so much is.
const NAME_CHARS_MAX: usize = 40;

/// Payload that a client may send behind its Open, before the answer, on a framed stream.
pub const EARLY_DATA_BYTES_MAX: usize = 64 * 1024;

/// The kinds of connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The control connection of one process.
    Link,
    /// An agent's stream, parked at the gateway.
    Lane,
    /// A client's stream.
    Stream,
}

/// Where a message is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// On a connection, between two sessions where it serves such.
    On(Channel),
    /// Within a session, on the lane or stream that carries it.
    Session,
}

impl From<Channel> for Place {
    fn from(channel: Channel) -> Self {
        Self::On(channel)
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// The gateway.
    Gateway,
    /// An agent.
    Agent,
    /// A client.
    Client,
}

/// A client asks for a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Drawn by the client; used once.
    pub session: SessionId,
    /// The agent that is to dial.
    pub agent: String,
    /// What it is to dial, exactly as the user wrote it.
    pub target: Target,
    /// The client's half of the end-to-end handshake, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2ee: Option<String>,
}

/// On whose behalf an agent dials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A client's Open, its fields verbatim beside this.
    Client {
        /// The client's name, as its token gives it.
        name: String,
        /// Where the client came from, as the gateway saw it.
        peer_addr: SocketAddr,
    },
    /// Somebody who visits a published host. It is dialled what the agent's own token has behind the target's name.
    Visitor {
        /// Where the visitor came from, as the gateway saw it, or as a proxy that it trusts says.
        peer_addr: SocketAddr,
        /// The request for which this is dialled, as its origin is told in X-Request-Id. Others may follow on the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<String>,
    },
    /// Somebody of whom only a later version knows: an agent refuses to dial for them.
    #[serde(skip)]
    Unknown {
        /// What they are called, fit to be shown.
        kind: String,
    },
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Client {
            name: String,
            peer_addr: SocketAddr,
        }
        #[derive(Deserialize)]
        struct Visitor {
            peer_addr: SocketAddr,
            #[serde(default)]
            request: Option<String>,
        }
        struct Kind;
        impl<'de> de::Visitor<'de> for Kind {
            type Value = Origin;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an origin, such as {\"client\": {..}}")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Origin, A::Error> {
                let kind =
                    map.next_key::<String>()?.ok_or_else(|| de::Error::custom("an origin of no kind"))?;
                let origin = match &*kind {
                    "client" => {
                        let Client { name, peer_addr } = map.next_value()?;
                        Origin::Client { name, peer_addr }
                    }
                    "visitor" => {
                        let Visitor { peer_addr, request } = map.next_value()?;
                        let request = request.map(|id| printable(&id, NAME_CHARS_MAX));
                        Origin::Visitor { peer_addr, request }
                    }
                    _ => {
                        map.next_value::<de::IgnoredAny>()?;
                        Origin::Unknown { kind: printable(&kind, NAME_CHARS_MAX) }
                    }
                };
                if map.next_key::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::custom("an origin of two kinds"));
                }
                Ok(origin)
            }
        }
        from.deserialize_map(Kind)
    }
}

/// The gateway asks an agent to dial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// The session's name, as the client drew it.
    pub session: SessionId,
    /// On whose behalf.
    pub origin: Origin,
    /// What to dial, exactly as the user wrote it.
    pub target: Target,
    /// The rules that depend on the resolved address; `None` when the name alone decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<AddressRules>,
    /// The client's half of the end-to-end handshake, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2ee: Option<String>,
}

/// What became of a claim to a published service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Which.
    pub service: ServiceName,
    /// Why visitors do not come to it; `None`: they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// One agent in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// The agent's name.
    #[serde(deserialize_with = "printable::deserialize")]
    pub name: String,
    /// Where its link comes from, as the gateway saw it.
    pub address: SocketAddr,
    /// The last measured round trip between gateway and agent; `None` before the first.
    pub ping_us: Option<u64>,
    /// How long the link has stood.
    pub connected_s: u64,
}

/// What is used at one moment, of how much. What is not limited, and of a user what is not, is not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Used {
    /// Sessions that stand, and how many may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Share>,
    /// Streams that stand, and how many may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<Share>,
    /// Payload of this calendar month (UTC), and how much there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub month_bytes: Option<Share>,
    /// New sessions a second at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dials_per_s_max: Option<u64>,
    /// Payload a second at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s_max: Option<u64>,
}

/// So much of so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// What is used.
    pub used: u64,
    /// How much there may be.
    pub max: u64,
}

/// Proof that a link's peer is the installation it was before: an Ed25519 key and its signature
/// over [`crate::id::instance_statement`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The public key, base64url.
    pub key: String,
    /// The signature, base64url.
    pub signature: String,
}

/// Every message of this version. Fields of a later one are ignored; for its messages, see [`MessageError::Unknown`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Gateway to link: the first word.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// What the gateway can do beyond the version.
        #[serde(default)]
        features: Features,
        /// To be signed by an agent's instance key.
        nonce: Nonce,
    },
    /// Link to gateway: the answer to Hello.
    Present {
        /// [`VERSION`].
        version: u32,
        /// What the peer can do beyond the version.
        #[serde(default)]
        features: Features,
        /// An agent's proof of being the same installation; clients have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<Instance>,
    },
    /// Gateway to link: every worker knows you now.
    Welcome {
        /// The link's name.
        link: LinkId,
        /// What lanes of this link prove themselves with.
        secret: LinkSecret,
    },
    /// Gateway to agent's link: that many lanes are wanted beyond those that stand.
    NeedLane {
        /// How many.
        count: u32,
    },
    /// Client's link to gateway: which agents are there?
    List,
    /// Gateway to client's link: the answer to List.
    Agents {
        /// The agents of the client's own space, by name.
        agents: Vec<AgentInfo>,
        /// Whether another such message follows: one alone could be too long.
        #[serde(default)]
        more: bool,
    },
    /// Client's link to gateway: what do I use of what I may? Asked of those alone that have `Feature::Measure`.
    Usage,
    /// Gateway to client's link: the answer to Usage.
    Used {
        /// By the bearers of this token.
        token: Used,
        /// By all tokens of the user together.
        user: Used,
    },
    /// Agent's link to gateway: these publish tokens hold from now on, in the place of those that it sent before. Said to those
    /// alone that have `Feature::Publish`.
    Publish {
        /// The tokens.
        #[serde(serialize_with = "expose")]
        tokens: Vec<SecretText>,
        /// Whether another such message follows, which belongs to the same set: one alone could be too long.
        #[serde(default)]
        more: bool,
    },
    /// Gateway to agent's link: what has become of the services that its tokens claim; again, whenever that changes.
    Published {
        /// Each that has changed since the last such message.
        claims: Vec<Claimed>,
        /// Tokens that are not taken at all, by their number in the set, and why.
        #[serde(default)]
        refused: Vec<(usize, Refused)>,
    },
    /// Gateway to link: this link ends, and why.
    Goodbye(Goodbye),
    /// Client's stream to gateway.
    Open(Open),
    /// Gateway to client's stream: data may flow.
    Opened {
        /// The session asked for.
        session: SessionId,
        /// The agent's half of the end-to-end handshake, base64url.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        e2ee: Option<String>,
    },
    /// Gateway to client's stream, agent's lane to gateway: no.
    Refused(Refused),
    /// Gateway to agent's lane.
    Dial(Dial),
    /// Agent's lane to gateway: this parked lane is not needed any more. The gateway hands it out no more and
    /// closes it; a Dial that crosses this word is served, and the word is void then.
    Retire,
    /// Agent's lane to gateway: the target answered.
    Dialled {
        /// The session asked for.
        session: SessionId,
        /// The agent's half of the end-to-end handshake, base64url.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        e2ee: Option<String>,
    },
    /// Whoever finished its direction of a framed session: nothing more will come.
    Fin {
        /// The session.
        session: SessionId,
        /// How many bytes of payload went before; a wrong count is a reset.
        bytes: u64,
    },
    /// Towards the client: both directions have ended cleanly, the connection may serve again.
    Ready {
        /// The session that has ended.
        session: SessionId,
    },
}

/// Why a gateway ends a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// For programs.
    pub code: GoodbyeCode,
    /// For people.
    #[serde(deserialize_with = "printable::deserialize")]
    pub reason: String,
}

/// Why a gateway ends a link, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoodbyeCode {
    /// A newer link of the same installation took over.
    Replaced,
    /// Another installation holds this name.
    NameTaken,
    /// The gateway shuts down; come back.
    Draining,
    /// The token has expired or was revoked.
    Unauthenticated,
    /// The peer broke the protocol.
    Protocol,
    /// A limit was reached.
    Limited,
    /// From a newer gateway; treated like Protocol.
    #[serde(other)]
    Other,
}

/// A message that can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`MESSAGE_BYTES_MAX`].
    #[error("a message of {bytes} bytes; at most {MESSAGE_BYTES_MAX} are taken")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// One that this version does not know: to be ignored where nothing waits for its answer, else refused by its name.
    #[error("the message {name:?} is not known to this version")]
    Unknown {
        /// Its name, fit to be shown.
        name: String,
    },
    /// Not one of ours.
    #[error("not a message of this protocol: {}", printable(&.0.to_string(), WORDS_CHARS_MAX))]
    Malformed(#[from] serde_json::Error),
    /// One of ours, said by the wrong side or in the wrong place.
    #[error("a {speaker:?} may not say {name} {}", place.words())]
    NotAllowed {
        /// The message's name.
        name: &'static str,
        /// Who said it.
        speaker: Speaker,
        /// Where.
        place: Place,
    },
}

impl Place {
    fn words(self) -> &'static str {
        match self {
            Self::On(Channel::Link) => "on a link",
            Self::On(Channel::Lane) => "on a lane",
            Self::On(Channel::Stream) => "on a stream",
            Self::Session => "within a session",
        }
    }
}

impl Message {
    /// Reads one message that `speaker` sent.
    ///
    /// # Errors
    /// A message of a later version ([`MessageError::Unknown`]); else it is the peer's fault, and the connection is to be
    /// closed.
    pub fn decode(text: &[u8], speaker: Speaker, place: impl Into<Place>) -> Result<Self, MessageError> {
        if text.len() > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLong { bytes: text.len() });
        }
        let message: Self =
            serde_json::from_slice(text).map_err(|e| unknown(text).unwrap_or_else(|| e.into()))?;
        let place = place.into();
        if !message.allowed(speaker, place) {
            return Err(MessageError::NotAllowed { name: message.name(), speaker, place });
        }
        Ok(message)
    }

    /// The message as JSON.
    pub fn encode(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "no map with foreign keys, no failing Serialize")]
        serde_json::to_vec(self).expect("every message is plain data")
    }

    /// The one table: who may say what where.
    pub fn allowed(&self, speaker: Speaker, place: impl Into<Place>) -> bool {
        use Channel::{Lane, Link, Stream};
        use Speaker::{Agent, Client, Gateway};
        let channel = match place.into() {
            Place::On(channel) => channel,
            // Fin is the only message within a session, whoever says it.
            Place::Session => return matches!(self, Self::Fin { .. }),
        };
        match self {
            Self::Hello { .. } | Self::Welcome { .. } | Self::Goodbye(_) => {
                matches!((speaker, channel), (Gateway, Link))
            }
            Self::Present { .. } => matches!((speaker, channel), (Agent | Client, Link)),
            // That the link is an agent's is the receiver's to know: both roles' links are Link.
            Self::NeedLane { .. } | Self::Agents { .. } | Self::Used { .. } | Self::Published { .. } => {
                matches!((speaker, channel), (Gateway, Link))
            }
            Self::List | Self::Usage => matches!((speaker, channel), (Client, Link)),
            Self::Publish { .. } => matches!((speaker, channel), (Agent, Link)),
            Self::Open(_) => matches!((speaker, channel), (Client, Stream)),
            Self::Opened { .. } => matches!((speaker, channel), (Gateway, Stream)),
            Self::Refused(_) => matches!((speaker, channel), (Gateway, Stream) | (Agent, Lane)),
            Self::Dial(_) => matches!((speaker, channel), (Gateway, Lane)),
            Self::Retire | Self::Dialled { .. } => matches!((speaker, channel), (Agent, Lane)),
            Self::Fin { .. } => {
                matches!((speaker, channel), (Gateway, Lane | Stream) | (Agent, Lane) | (Client, Stream))
            }
            Self::Ready { .. } => matches!((speaker, channel), (Agent, Lane) | (Gateway, Stream)),
        }
    }

    /// The names of all that this version knows.
    const NAMES: [&str; 19] = [
        "hello",
        "present",
        "welcome",
        "need_lane",
        "list",
        "agents",
        "usage",
        "used",
        "publish",
        "published",
        "goodbye",
        "open",
        "opened",
        "refused",
        "dial",
        "retire",
        "dialled",
        "fin",
        "ready",
    ];

    /// The message's name, as on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Present { .. } => "present",
            Self::Welcome { .. } => "welcome",
            Self::NeedLane { .. } => "need_lane",
            Self::List => "list",
            Self::Agents { .. } => "agents",
            Self::Usage => "usage",
            Self::Used { .. } => "used",
            Self::Publish { .. } => "publish",
            Self::Published { .. } => "published",
            Self::Goodbye(_) => "goodbye",
            Self::Open(_) => "open",
            Self::Opened { .. } => "opened",
            Self::Refused(_) => "refused",
            Self::Dial(_) => "dial",
            Self::Retire => "retire",
            Self::Dialled { .. } => "dialled",
            Self::Fin { .. } => "fin",
            Self::Ready { .. } => "ready",
        }
    }

    /// A refusal of `session`.
    pub fn refused(session: SessionId, code: RefusalCode, reason: impl Into<String>) -> Self {
        Self::Refused(Refused::new(code, reason).of(session))
    }
}

/// To the one peer that they are for.
fn expose<S: Serializer>(tokens: &[SecretText], s: S) -> Result<S::Ok, S::Error> {
    let mut list = s.serialize_seq(Some(tokens.len()))?;
    for token in tokens {
        list.serialize_element(token.expose())?;
    }
    list.end()
}

/// Whether these are the words of a later version.
fn unknown(text: &[u8]) -> Option<MessageError> {
    #[derive(Deserialize)]
    struct Tag<'a> {
        #[serde(rename = "type", borrow)]
        name: std::borrow::Cow<'a, str>,
    }
    let Tag { name } = serde_json::from_slice(text).ok()?;
    let is_known = Message::NAMES.contains(&&*name);
    (!is_known).then(|| MessageError::Unknown { name: printable(&name, NAME_CHARS_MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Open {
        Open {
            session: SessionId::from_bytes([1; 32]),
            agent: "home".into(),
            target: Target::Tcp { host: "127.0.0.1".into(), port: 22 },
            e2ee: None,
        }
    }

    fn service() -> ServiceName {
        ServiceName { host: "a.example".into(), port: 0, path: String::new() }
    }

    /// One of each, so that a table below can't forget one.
    fn every() -> Vec<Message> {
        let session = SessionId::from_bytes([1; 32]);
        vec![
            Message::Hello { version: 1, features: Features::NONE, nonce: Nonce::from_bytes([2; 32]) },
            Message::Present { version: 1, features: Features::NONE, instance: None },
            Message::Welcome { link: LinkId::from_bytes([3; 32]), secret: LinkSecret::from_bytes([4; 32]) },
            Message::NeedLane { count: 2 },
            Message::List,
            Message::Agents { agents: vec![], more: false },
            Message::Usage,
            Message::Used { token: Used::default(), user: Used::default() },
            Message::Publish { tokens: vec![SecretText::new("ey.a.b".into())], more: true },
            Message::Published {
                claims: vec![
                    Claimed { service: service(), refused: None },
                    Claimed {
                        service: service(),
                        refused: Some(Refused::new(RefusalCode::HostTaken, "taken")),
                    },
                ],
                refused: vec![(1, Refused::new(RefusalCode::Unauthenticated, "no"))],
            },
            Message::Goodbye(Goodbye { code: GoodbyeCode::Draining, reason: String::new() }),
            Message::Open(open()),
            Message::Opened { session, e2ee: None },
            Message::refused(session, RefusalCode::Policy, "no"),
            Message::Dial(Dial {
                session,
                origin: Origin::Client { name: "c".into(), peer_addr: "127.0.0.1:1".parse().unwrap() },
                target: open().target,
                rules: None,
                e2ee: None,
            }),
            Message::Retire,
            Message::Dialled { session, e2ee: None },
            Message::Fin { session, bytes: 7 },
            Message::Ready { session },
        ]
    }

    #[test]
    fn every_message_reads_back_where_it_is_allowed_and_nowhere_else() {
        for message in every() {
            let text = message.encode();
            let mut places = 0;
            for speaker in [Speaker::Gateway, Speaker::Agent, Speaker::Client] {
                for channel in [Channel::Link, Channel::Lane, Channel::Stream] {
                    match Message::decode(&text, speaker, channel) {
                        Ok(back) => {
                            places += 1;
                            assert_eq!(back.encode(), text);
                        }
                        Err(MessageError::NotAllowed { .. }) => {}
                        Err(other) => panic!("{} does not read back: {other}", message.name()),
                    }
                }
            }
            assert!((1..=4).contains(&places), "{} is allowed in {places} places", message.name());
        }
    }

    #[test]
    fn no_message_of_an_agent_is_allowed_towards_a_client() {
        for message in every() {
            assert!(!message.allowed(Speaker::Agent, Channel::Stream), "{}", message.name());
            assert!(!message.allowed(Speaker::Client, Channel::Lane), "{}", message.name());
        }
    }

    #[test]
    fn names_are_those_on_the_wire() {
        for message in every() {
            let value: serde_json::Value = serde_json::from_slice(&message.encode()).unwrap();
            assert_eq!(value["type"], message.name());
        }
        assert_eq!(every().iter().map(Message::name).collect::<Vec<_>>(), Message::NAMES);
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_messages_have_a_name() {
        let text = br#"{"type":"need_lane","count":1,"later":true}"#;
        assert!(Message::decode(text, Speaker::Gateway, Channel::Link).is_ok());
        let text = br#"{"type":"call_back"}"#;
        let unknown = Message::decode(text, Speaker::Agent, Channel::Link).unwrap_err();
        assert!(matches!(&unknown, MessageError::Unknown { name } if name == "call_back"), "{unknown}");
        for broken in [&br#"{"type":"call_back""#[..], br#"{"type":"fin"}"#, br#"{"type":7}"#, b"{}", b"[]"] {
            let e = Message::decode(broken, Speaker::Agent, Channel::Lane).unwrap_err();
            assert!(matches!(e, MessageError::Malformed(_)), "{e}");
        }
        // What can't be read is repeated, and shown to people.
        for text in ["{\"type\":\"\u{202e}LONG\"}", "\"\u{202e}LONG\""] {
            let text = text.replace("LONG", &"x".repeat(9_999));
            let said =
                Message::decode(text.as_bytes(), Speaker::Gateway, Channel::Link).unwrap_err().to_string();
            assert!(said.len() < 300 && !said.contains('\u{202e}'), "{said}");
        }
    }

    #[test]
    fn within_a_session_only_its_end_is_said() {
        for message in every() {
            for speaker in [Speaker::Gateway, Speaker::Agent, Speaker::Client] {
                assert_eq!(message.allowed(speaker, Place::Session), message.name() == "fin");
            }
        }
    }

    #[test]
    fn an_origin_of_a_later_version_is_told_from_a_broken_one() {
        let origin = |text: &str| serde_json::from_str::<Origin>(text);
        let client = Origin::Client { name: "c".into(), peer_addr: "127.0.0.1:1".parse().unwrap() };
        assert_eq!(origin(&serde_json::to_string(&client).unwrap()).unwrap(), client);
        let visitor = Origin::Visitor { peer_addr: "[::1]:1".parse().unwrap(), request: Some("7f".into()) };
        assert_eq!(origin(&serde_json::to_string(&visitor).unwrap()).unwrap(), visitor);
        let later = origin(r#"{"guest":{"host":"app.example","addr":[1,2]}}"#).unwrap();
        assert_eq!(later, Origin::Unknown { kind: "guest".into() });
        for broken in [
            "{}",
            r#"{"client":{"name":"c"}}"#,
            r#"{"client":7}"#,
            r#"{"visitor":{}}"#,
            r#"{"a":1,"b":2}"#,
            "7",
            "\"client\"",
        ] {
            assert!(origin(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn tokens_that_an_agent_sends_are_written_for_the_gateway_alone() {
        let message = Message::Publish { tokens: vec![SecretText::new("ey.a.b".into())], more: false };
        assert_eq!(message.encode(), br#"{"type":"publish","tokens":["ey.a.b"],"more":false}"#);
        assert!(!format!("{message:?}").contains("ey.a"), "{message:?}");
    }

    #[test]
    fn an_over_long_message_is_refused_before_it_is_parsed() {
        let text = vec![b' '; MESSAGE_BYTES_MAX + 1];
        assert!(matches!(
            Message::decode(&text, Speaker::Client, Channel::Stream),
            Err(MessageError::TooLong { .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn bent_bytes_never_panic(
            which in 0usize..19, at in 0usize..400, byte: u8
        ) {
            let mut text = every()[which].encode();
            let at = at % text.len();
            text[at] = byte;
            for speaker in [Speaker::Gateway, Speaker::Agent, Speaker::Client] {
                let _ = Message::decode(&text, speaker, Channel::Stream);
            }
        }
    }
}
