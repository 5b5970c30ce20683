//! Role: the questions the data plane asks its operator, and the answers.
//! Invariants: every answer comes from memory and at once: these run on a worker · what a grant
//! means is the operator's business; it passes through here unseen.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_channel::Sender;
use narrowlink_proto::{
    ended::{Ended, Refused, Why},
    endpoint::SecretText,
    feature::Features,
    id::{LinkId, LinkSecret, Nonce, SessionId},
    message::{AgentInfo, Channel, Dial, Goodbye, Instance, Open},
    sniff::ClientHello,
    target::Target,
};
use rustls::ServerConfig;

use crate::gateway::{
    directory::{AgentEntry, LinkOrder},
    principal::Principal,
    service::Service,
};

/// A link that wants to be known.
pub struct LinkRequest {
    /// Who is behind it.
    pub principal: Arc<Principal>,
    /// Where it comes from.
    pub peer_addr: SocketAddr,
    /// What its program can do beyond the version.
    pub features: Features,
    /// What we asked the peer to sign.
    pub nonce: Nonce,
    /// The peer's proof of being the installation it was before.
    pub instance: Option<Instance>,
    /// Where the link takes orders.
    pub orders: Sender<LinkOrder>,
    /// Where the answer goes.
    pub answer: Sender<Result<LinkGrant, Goodbye>>,
}

/// A link that is known now: every worker's next look at the directory shows its agent.
pub struct LinkGrant {
    /// The link's name.
    pub link: LinkId,
    /// What its lanes prove themselves with.
    pub secret: LinkSecret,
    /// The agent's entry; clients have none.
    pub agent: Option<Arc<AgentEntry>>,
}

/// A login that was refused.
#[derive(Debug)]
pub struct Rejected {
    /// What the peer is told: the same words for every cause.
    pub refused: Refused,
    /// The cause, for the operator alone. It holds nothing of the token but what the gateway's own keys vouch for.
    pub cause: Option<String>,
}

impl From<Refused> for Rejected {
    /// A refusal that is its own cause.
    fn from(refused: Refused) -> Self {
        Self { refused, cause: None }
    }
}

/// Something that an operator wants to be able to look up later.
pub enum Event<'a> {
    /// Somebody's token was taken: a link, or a client's stream.
    LoggedIn {
        /// Who.
        who: &'a Principal,
        /// Where from.
        peer_addr: SocketAddr,
    },
    /// A login or a session was refused.
    Refused {
        /// Who, if a token said so.
        who: Option<&'a Principal>,
        /// Where from.
        peer_addr: SocketAddr,
        /// The session that was asked for.
        session: Option<SessionId>,
        /// What they were told.
        refused: &'a Refused,
        /// Why a login was refused; they are not told.
        cause: Option<&'a str>,
    },
    /// A session has opened.
    Opened {
        /// Whose.
        who: &'a Principal,
        /// Where from.
        peer_addr: SocketAddr,
        /// Which.
        session: SessionId,
        /// Through which agent.
        agent: &'a str,
        /// To what.
        target: &'a Target,
    },
    /// A session has ended.
    Closed {
        /// Whose.
        who: &'a Principal,
        /// Where from.
        peer_addr: SocketAddr,
        /// Which.
        session: SessionId,
        /// Through which agent.
        agent: &'a str,
        /// Bytes from the client to the target.
        up_bytes: u64,
        /// Bytes from the target to the client.
        down_bytes: u64,
        /// How long it was there.
        lasted: Duration,
        /// How it ended.
        ended: Ended,
    },
}

/// What a connection has shown itself to be.
pub enum First {
    /// TLS, with this first message.
    Tls(Box<ClientHello>),
    /// A request of HTTP.
    Http,
}

/// What becomes of a connection.
pub enum Route {
    /// TLS ends here, under these settings; what is inside is HTTP.
    Terminate(Arc<ServerConfig>),
    /// It is HTTP already: a request for a tunnel, or for a page.
    Http,
    /// It has no place at this service, and is answered as any web server answers that.
    Misplaced,
    /// Nobody here has the name that it asks for: it is closed without a word.
    Nothing,
}

/// The operator's side, called on workers.
pub trait Door: Send + Sync + 'static {
    /// What becomes of a connection that has just shown what it is.
    fn route(&self, service: &Service, first: &First) -> Route;

    /// Who holds this token, if it is good for `channel`.
    ///
    /// # Errors
    /// The peer's; the same words for every cause.
    fn login(&self, channel: Channel, token: &str) -> Result<Arc<Principal>, Rejected>;

    /// Whether `who` may have this session; the Dial that its agent is to get.
    ///
    /// # Errors
    /// The refusal for the client.
    fn permit(&self, who: &Principal, open: &Open, peer_addr: SocketAddr) -> Result<Dial, Refused>;

    /// Whether `who`, who was let in once, may still be here; else why not.
    fn standing(&self, who: &Principal) -> Result<(), Why>;

    /// Something has happened. Nothing may wait here.
    fn note(&self, event: &Event<'_>);

    /// The agents that `who` may know of, by name.
    fn list(&self, who: &Principal) -> Vec<AgentInfo>;

    /// Registers a link; the answer comes through the request.
    fn claim_link(&self, request: LinkRequest);

    /// A link is gone. Its sessions are not.
    fn release_link(&self, link: LinkId);

    /// An agent would publish what these tokens say, and no more what those said that it sent before. What becomes of that it
    /// is told through its entry.
    fn publish(&self, agent: &Arc<AgentEntry>, tokens: Vec<SecretText>);
}

/// Whether `who`, who was let in once, may still be here; else why not.
pub(crate) fn standing(door: &dyn Door, who: &Principal) -> Result<(), Why> {
    if who.vanished.load(Ordering::Acquire) { Err(Why::Vanished) } else { door.standing(who) }
}

/// A login or a session was refused: logs it, and hands it on. `cause` is for the operator alone.
pub(crate) fn note_refused(
    door: &dyn Door,
    (who, peer_addr): (Option<&Principal>, SocketAddr),
    refused: &Refused,
    cause: Option<&str>,
) {
    tracing::info!(
        peer = %peer_addr,
        uid = who.map(|who| display(who.uid)),
        name = who.map(|who| who.name.as_str()),
        code = refused.code.name(),
        "refused: {}",
        cause.unwrap_or(&refused.reason)
    );
    door.note(&Event::Refused { who, peer_addr, session: refused.session, refused, cause });
}
