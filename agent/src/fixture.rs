//! Role: what the tests of an agent's parts have around them.

#[path = "../../dataplane/tests/kit/ends.rs"]
mod ends;

use std::{path::PathBuf, sync::Arc};

use narrowlink_dataplane::{
    peer::Gateway,
    run::{
        bell::{Gate, Opener, Tasks},
        crew::{Crew, Inbox},
    },
    tunnel::conn::{Conn, ConnError},
};
use narrowlink_proto::{
    endpoint::SelfHosted,
    id::{SessionId, Uid},
    message::{Channel, Dial, Message, Origin, Speaker},
    target::Target,
    token::{Claims, Keys, Kind},
};

pub(crate) use self::ends::{Port, exchange, id, read_all, run, send_data, tcp, tunnel_ends};
use crate::{Shared, config::Config, identity::Identity, ready::Ready};

/// An agent of one gateway, and what ends it.
pub(crate) struct Fixture {
    pub(crate) shared: Arc<Shared>,
    /// What its only worker is to begin.
    pub(crate) to_begin: Inbox<()>,
    pub(crate) endpoint: SelfHosted,
    /// Dropped, it tells the agent to stop.
    pub(crate) stop: Option<Opener>,
    /// Dropped, it cuts the agent's sessions off.
    pub(crate) cut: Option<Opener>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    /// An agent whose gateway nobody asks.
    pub(crate) fn new() -> Self {
        Self::with("gw.example:80".to_owned(), |_| {})
    }

    /// An agent of the gateway there, with another configuration. Its token lies in a file.
    pub(crate) fn with(gateway: String, set: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), token("first")).unwrap();
        let endpoint = serde_json::json!({ "gateway": gateway, "token_file": "token", "protocol": "Ws" });
        let endpoint: SelfHosted = serde_json::from_value(endpoint).unwrap();
        let mut config = Config::new(vec![endpoint.clone()], dir.path().to_owned());
        set(&mut config);
        let ((stop, stopped), (cut, cut_off)) = (Gate::new(), Gate::new());
        let (crew, mut to_begin) = Crew::new(1);
        let shared = Shared {
            config: Arc::new(config),
            crew,
            identity: Identity::obtain(Some((dir.path().to_owned(), "here".to_owned()))),
            ready: Arc::new(Ready::new(None)),
            stop: stopped,
            cut: cut_off,
            tasks: Arc::new(Tasks::default()),
        };
        let (shared, to_begin) = (Arc::new(shared), to_begin.remove(0));
        Self { shared, to_begin, endpoint, stop: Some(stop), cut: Some(cut), _dir: dir }
    }

    pub(crate) fn gateway(&self) -> Arc<Gateway> {
        Arc::new(self.shared.config.gateways().unwrap().remove(0))
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.shared.config.token_place(&self.endpoint).unwrap()
    }
}

/// An agent's token.
pub(crate) fn token(jti: &str) -> String {
    token_until(4_000_000_000, jti)
}

/// The same, with an end of its own.
pub(crate) fn token_until(exp: u64, jti: &str) -> String {
    Keys::new(&[7; 32]).sign(&Claims::new(Kind::Agent, Uid::nil(), "home", exp, jti)).unwrap()
}

/// A Dial for a client.
pub(crate) fn dial(session: SessionId, target: Target) -> Dial {
    let origin = Origin::Client { name: "c".to_owned(), peer_addr: "127.0.0.1:1".parse().unwrap() };
    Dial { session, origin, target, rules: None, e2ee: None }
}

/// A Dial that no agent serves: nothing is looked up, and nobody connected to.
pub(crate) fn denied(n: u8) -> Message {
    Message::Dial(dial(id(n), tcp("0.0.0.0", 1)))
}

/// What the agent says next on a lane.
pub(crate) async fn heard(gateway: &Conn) -> Result<Message, ConnError> {
    gateway.recv(Speaker::Agent, Channel::Lane).await
}

/// The agent refuses this session.
pub(crate) async fn expect_refusal(gateway: &Conn, n: u8) {
    match heard(gateway).await.unwrap() {
        Message::Refused(refused) => assert_eq!(refused.session, Some(id(n))),
        other => panic!("{} where a refusal was due", other.name()),
    }
}
