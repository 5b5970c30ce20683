//! Role: a client of the test's own, which asks a gateway for a session with a host spelt as the test spells
//! it, and hears what the target says.
//! Invariants: nothing is normalised or looked at before it is sent · each session has an id of its own ·
//! an answer is complete: a target has been heard to its end.
//! See: ARCHITECTURE.md "Open".

use std::{
    io::Read as _,
    net::{Shutdown, SocketAddr},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use narrowlink_dataplane::{
    net::plain::Plain,
    peer::{self, Ask, Gateway},
    relay::{Traffic, relay},
    transport::wire::Wire,
    tunnel::{TunnelError, conn::Conn, end::End, settle::settled},
};
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused, Side},
    id::SessionId,
    message::{Channel, Message, Open, Speaker},
    target::Target,
    upgrade::{Framing, Protocol},
};

/// Far more than an answer needs.
const PATIENCE: Duration = Duration::from_secs(30);
const STREAM: Protocol = Protocol { channel: Channel::Stream, framing: Framing::Framed };

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The session opened; all that its target said.
    Said(String),
    /// It was refused.
    Refused(Refused),
    /// There was neither: why.
    Broke(String),
}

impl Answer {
    /// Why it was refused, if it was.
    pub(crate) fn code(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused(refused) => Some(refused.code),
            Self::Said(_) | Self::Broke(_) => None,
        }
    }
}

/// The client.
pub(crate) struct Asker {
    gateway: Gateway,
    stream: Option<Conn>,
}

impl Asker {
    /// Of a gateway that speaks `ws` at `addr`.
    pub(crate) fn new(addr: SocketAddr, token: &str) -> Self {
        let endpoint = serde_json::json!({ "gateway": addr.to_string(), "token": token, "protocol": "Ws" });
        let endpoint = serde_json::from_value(endpoint).expect("an endpoint");
        Self { gateway: Gateway::load(&endpoint, Path::new("")).expect("it names no files"), stream: None }
    }

    /// Asks over a stream of its own: the Open goes with the upgrade.
    pub(crate) async fn ask_anew(&self, agent: &str, target: &Target) -> Answer {
        let open = open(agent, target);
        let id = open.session;
        match peer::open(&self.gateway, STREAM, Ask::Open(open), PATIENCE).await {
            Ok((conn, Some(opened))) if opened.session == id => {
                heard(hear(&conn, id, Speaker::Gateway).await)
            }
            Ok(_) => Answer::Broke("another session than the one that was asked for".to_owned()),
            Err(TunnelError::Refused(refused)) => Answer::Refused(refused),
            Err(e) => Answer::Broke(e.to_string()),
        }
    }

    /// Asks on the stream of the question before, as long as it stands.
    pub(crate) async fn ask_on(&mut self, agent: &str, target: &Target) -> Answer {
        let conn = match self.stream.take() {
            Some(conn) => conn,
            None => match peer::open(&self.gateway, STREAM, Ask::Nothing, PATIENCE).await {
                Ok((conn, _)) => conn,
                Err(e) => return Answer::Broke(e.to_string()),
            },
        };
        let answer = ask(&conn, open(agent, target)).await;
        if !matches!(answer, Answer::Broke(_)) {
            self.stream = Some(conn);
        }
        answer
    }

    /// The stream on which the next question will be asked.
    pub(crate) fn stream(&self) -> Option<&Conn> {
        self.stream.as_ref()
    }
}

/// 32 bytes that nobody else has.
pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// An Open with an id of its own.
pub(crate) fn open(agent: &str, target: &Target) -> Open {
    let session = SessionId::from_bytes(random());
    Open { session, agent: agent.to_owned(), target: target.clone(), e2ee: None }
}

async fn ask(conn: &Conn, open: Open) -> Answer {
    let id = open.session;
    if let Err(e) = conn.send(&Message::Open(open)).await {
        return Answer::Broke(e.to_string());
    }
    let answer = monoio::time::timeout(PATIENCE, conn.recv(Speaker::Gateway, Channel::Stream)).await;
    match answer.expect("a question is answered") {
        Ok(Message::Opened { session, .. }) if session == id => heard(hear(conn, id, Speaker::Gateway).await),
        Ok(Message::Refused(refused)) if refused.session == Some(id) => Answer::Refused(refused),
        Ok(other) => Answer::Broke(format!("{} is no answer", other.name())),
        Err(e) => Answer::Broke(e.to_string()),
    }
}

fn heard(said: Result<String, Ended>) -> Answer {
    said.map_or_else(|ended| Answer::Broke(ended.to_string()), Answer::Said)
}

/// Says nothing in a session that stands, and hears the target to its end; the connection can serve
/// another session then.
pub(crate) async fn hear(conn: &Conn, session: SessionId, peer: Speaker) -> Result<String, Ended> {
    let (near, mut far) = UnixStream::pair().expect("descriptors are free");
    far.shutdown(Shutdown::Write).expect("it stands");
    {
        let near = Wire::from(Plain::adopt(near.into()).expect("a runtime is here"));
        let session = async {
            relay(End::raw(&near), End::of(conn, session), &Traffic::default()).await?;
            settled(conn, session, peer, Side::Target).await
        };
        monoio::time::timeout(PATIENCE, session).await.expect("a target ends")?;
    }
    let mut said = String::new();
    far.read_to_string(&mut said).expect("it was ended");
    Ok(said)
}
