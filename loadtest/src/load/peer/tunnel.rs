//! Role: connections through a Narrowlink gateway: an agent with its lanes, a client with its streams.
//! Invariants: what is said is what agent and client say; only what costs them time (resolving, dialling,
//! a second relay) is left out, so that what is measured is the gateway.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use narrowlink_agent::config::Config as AgentConfig;
use narrowlink_client::config::Config as ClientConfig;
use narrowlink_dataplane::{
    peer::{self, Ask, Gateway, PeerLink},
    run::worker::spawn,
    transport::wire::Wire,
    tunnel::{
        TunnelError,
        conn::{Conn, ConnError},
        quiet::Quiet,
    },
};
use narrowlink_proto::{
    endpoint::FramingChoice,
    feature::Features,
    id::{LaneId, LinkId, LinkSecret, SessionId},
    message::{Channel, Message, Open, Speaker},
    target::Target,
    token::peek_unverified,
    upgrade::{Framing, LaneProof, Protocol},
};

use super::{End, Ends, PATIENCE};

/// Links that are set up side by side: each waits for the gateway several times.
const JOINING: usize = 32;

/// An agent whose link stands, and a client.
pub struct Tunnel {
    agent: Gateway,
    client: Gateway,
    name: String,
    link: LinkId,
    secret: LinkSecret,
}

impl Tunnel {
    /// Joins as the agent of the first endpoint in `agent`'s file.
    ///
    /// # Errors
    /// A file can't be used, or the gateway doesn't welcome us.
    pub async fn join(agent: &Path, client: &Path) -> Result<Self> {
        let agent = first(AgentConfig::load(agent)?.gateways()?)?;
        let client = first(ClientConfig::load(client)?.gateways()?)?;
        let peek = peek_unverified(agent.token()).context("the agent's token is none")?;
        let link = peer::join(&agent, Features::NONE, None, PATIENCE).await?;
        let (id, secret) = (link.link, link.secret.clone());
        keep(link);
        Ok(Self { agent, client, name: peek.name, link: id, secret })
    }

    /// How data travels.
    pub fn framing(&self) -> Framing {
        framing(&self.client)
    }

    /// Opens so many sessions, each on a lane and a stream of its own.
    ///
    /// # Errors
    /// The gateway does not do its part.
    pub async fn pairs(&self, count: usize) -> Result<Ends> {
        let (stand, standing) = async_channel::unbounded();
        for n in 0..count {
            let lane = self.lane().await.with_context(|| format!("lane {n}"))?;
            let stand = stand.clone();
            spawn(async move {
                let _ = stand.try_send(answer(lane).await);
            });
        }
        let mut ends = Ends::default();
        for n in 0..count {
            let stream = self.stream(true).await.with_context(|| format!("session {n}"))?;
            ends.near.push(end(stream, Channel::Stream)?);
            ends.far.push(end(standing.recv().await??, Channel::Lane)?);
        }
        Ok(ends)
    }

    /// A lane, parked at the gateway.
    ///
    /// # Errors
    /// The gateway's refusal, or the connection's end.
    pub async fn lane(&self) -> Result<Conn, TunnelError> {
        let lane = LaneId::from_bytes(random()?);
        let proof = self.secret.prove_lane(&self.link, &lane);
        let ask = Ask::Lane(LaneProof { link: self.link, lane, proof });
        let protocol = Protocol { channel: Channel::Lane, framing: framing(&self.agent) };
        Ok(peer::open(&self.agent, protocol, ask, PATIENCE).await?.0)
    }

    /// A stream, with a session on it or without.
    ///
    /// # Errors
    /// The gateway's refusal, or the connection's end.
    pub async fn stream(&self, with_session: bool) -> Result<Conn, TunnelError> {
        let protocol = Protocol { channel: Channel::Stream, framing: self.framing() };
        let ask = if with_session { Ask::Open(self.ask()?) } else { Ask::Nothing };
        Ok(peer::open(&self.client, protocol, ask, PATIENCE).await?.0)
    }

    /// Asks for a session with a new id. The target is never dialled.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn ask(&self) -> Result<Open, ConnError> {
        let session = SessionId::from_bytes(random()?);
        let target = Target::Tcp { host: "127.0.0.1".to_owned(), port: 9 };
        Ok(Open { session, agent: self.name.clone(), target, e2ee: None })
    }
}

/// Sets up so many links of the client in `client`'s file, and keeps them.
///
/// # Errors
/// The gateway doesn't welcome one.
pub async fn join_many(client: &Path, count: usize) -> Result<()> {
    let (stand, standing) = async_channel::unbounded();
    for part in 0..JOINING {
        let gateway = first(ClientConfig::load(client)?.gateways()?)?;
        let stand = stand.clone();
        spawn(async move {
            for _ in (part..count).step_by(JOINING) {
                let joined = peer::join(&gateway, Features::NONE, None, PATIENCE).await.map(keep);
                let _ = stand.try_send(joined);
            }
        });
    }
    for n in 0..count {
        standing.recv().await?.with_context(|| format!("link {n}"))?;
    }
    Ok(())
}

/// Answers a link's pings for as long as it stands.
fn keep(mut link: PeerLink) {
    spawn(async move {
        let error = loop {
            if let Err(error) = link.next().await {
                break error;
            }
        };
        crate::load::word::fail(&anyhow!("a link ended: {error}"));
    });
}

/// Waits for the Dial on a lane and says yes to it.
async fn answer(lane: Conn) -> Result<Conn> {
    // Connections may take longer to make than anybody waits for one.
    let heard = monoio::time::timeout(PATIENCE + Duration::from_secs(110), async {
        lane.recv(Speaker::Gateway, Channel::Lane).await
    });
    let Message::Dial(dial) = heard.await.map_err(|_| super::late("a Dial"))?? else {
        bail!("the gateway said something else where Dial was due")
    };
    lane.send(&Message::Dialled { session: dial.session, e2ee: None }).await?;
    Ok(lane)
}

fn end(conn: Conn, channel: Channel) -> Result<End> {
    Ok(End { framed: conn.framing() == Framing::Framed, wire: bare(conn)?, channel })
}

/// The bytes below a connection on which nothing is under way.
///
/// # Errors
/// The gateway has begun to say something already.
pub fn bare(conn: Conn) -> Result<Wire> {
    let wire = Quiet::of(Box::new(conn)).ok().and_then(Quiet::into_wire);
    wire.context("the gateway has said something already")
}

fn framing(gateway: &Gateway) -> Framing {
    match gateway.framing() {
        FramingChoice::Raw => Framing::Raw,
        FramingChoice::Auto | FramingChoice::Framed => Framing::Framed,
    }
}

fn first(gateways: Vec<Gateway>) -> Result<Gateway> {
    gateways.into_iter().next().context("the configuration names no gateway")
}

fn random() -> Result<[u8; 32], ConnError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| ConnError::Io(std::io::Error::other(e)))?;
    Ok(bytes)
}
