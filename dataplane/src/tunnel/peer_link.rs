//! Role: a link as an agent or a client has it: set-up, what the gateway says, the end.
//! See: `link`; ARCHITECTURE.md "The wire".

use std::time::Duration;

use narrowlink_proto::{
    feature::Features,
    id::{LinkId, LinkSecret, Nonce},
    limits::Limits,
    message::{Channel, Instance, Message, Speaker, VERSION},
    upgrade::{Framing, Protocol},
};
use tungstenite::protocol::{Role, frame::coding::CloseCode};

use crate::{
    run::timer::timeout,
    transport::wire::Wire,
    tunnel::{
        link::{LinkError, LinkSocket},
        open::{self, Ask, Gateway},
        quiet::Quiet,
    },
};

/// A link as an agent or a client holds it.
pub struct PeerLink {
    /// The link's name.
    pub link: LinkId,
    /// What lanes of this link prove themselves with.
    pub secret: LinkSecret,
    /// What the gateway can do beyond the version.
    pub features: Features,
    socket: LinkSocket,
}

/// Sets a link up, for a program that can do this much beyond the version; an agent signs the gateway's nonce with its
/// instance key.
///
/// # Errors
/// See [`LinkError`].
pub async fn join(
    gateway: &Gateway,
    own: Features,
    sign: Option<&dyn Fn(&Nonce) -> Instance>,
    patience: Duration,
) -> Result<PeerLink, LinkError> {
    let protocol = Protocol { channel: Channel::Link, framing: Framing::Framed };
    let (conn, _) = open::open(gateway, protocol, Ask::Nothing, patience).await?;
    let wire = Quiet::of(Box::new(conn)).ok().and_then(Quiet::into_wire);
    let wire = wire.ok_or(LinkError::Unexpected("a frame before it was asked"))?;
    introduce(wire, own, sign, patience).await
}

/// Hello, Present, Welcome.
async fn introduce(
    wire: Wire,
    own: Features,
    sign: Option<&dyn Fn(&Nonce) -> Instance>,
    patience: Duration,
) -> Result<PeerLink, LinkError> {
    let mut socket = LinkSocket::new(wire, Role::Client, Speaker::Gateway, &Limits::default());
    let welcome = async {
        let Message::Hello { version, features, nonce } = expect(&mut socket).await? else {
            return Err(LinkError::Unexpected("something else where Hello was due"));
        };
        if version != VERSION {
            return Err(LinkError::Version { theirs: version });
        }
        let instance = sign.map(|sign| sign(&nonce));
        socket.send(&Message::Present { version: VERSION, features: own, instance })?;
        match expect(&mut socket).await? {
            Message::Welcome { link, secret } => Ok((link, secret, features)),
            _ => Err(LinkError::Unexpected("something else where Welcome was due")),
        }
    };
    let welcomed = timeout(patience, welcome).await.map_err(|_| LinkError::Silent(patience))?;
    let (link, secret, features) = welcomed?;
    Ok(PeerLink { link, secret, features, socket })
}

async fn expect(socket: &mut LinkSocket) -> Result<Message, LinkError> {
    match socket.recv().await? {
        Message::Goodbye(goodbye) => Err(LinkError::Goodbye(goodbye)),
        other => Ok(other),
    }
}

impl PeerLink {
    /// The next message of the gateway; pings are seen to meanwhile. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// The link is no more: [`LinkError::Goodbye`] when the gateway said why.
    pub async fn next(&mut self) -> Result<Message, LinkError> {
        expect(&mut self.socket).await
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The link is no more.
    pub fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.socket.send(message)
    }

    /// The last measured round trip to the gateway.
    pub fn round_trip(&self) -> Option<Duration> {
        self.socket.round_trip()
    }

    /// Ends the link in good order.
    pub fn close(self) {
        self.socket.close(None, CloseCode::Normal);
    }
}
