//! Role: the other ends of an agent's or a client's connections, in its own runtime: a gateway, a target, a program.
//! Invariants: tunnel connections lie in memory, unless they are to be upgraded · every port is the kernel's choice · a
//! test that waits in vain ends.
#![allow(dead_code, reason = "each crate uses its own part")]

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use futures_lite::future;
use narrowlink_dataplane::{
    net::{
        listen::Listener,
        memory::{Memory, Room},
    },
    relay::{Traffic, relay},
    run::{timer::timeout, worker::run_alone},
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, Role},
        end::End,
    },
};
use narrowlink_proto::{
    ended::{Ended, Refused},
    feature::Features,
    frame::{self, HEADER_BYTES_MAX, Header, Opcode},
    id::{LinkId, LinkSecret, Nonce, SessionId},
    message::{Channel, Message, Speaker},
    target::Target,
    upgrade::{Framing, Head, Opened, Request, encode_accept, encode_refusal, parse_request},
};

/// Far more than any test takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test in a runtime of its own.
pub(crate) fn run<T>(main: impl AsyncFnOnce() -> T) -> T {
    let ended = run_alone(false, |_| async { timeout(PATIENCE, Box::pin(main())).await });
    ended.unwrap().expect("it waits for what does not come")
}

pub(crate) fn id(n: u8) -> SessionId {
    SessionId::from_bytes([n; 32])
}

pub(crate) fn tcp(host: &str, port: u16) -> Target {
    Target::Tcp { host: host.to_owned(), port }
}

/// A tunnel connection: an agent's or a client's end, and the gateway's.
pub(crate) fn tunnel_ends(framing: Framing) -> (Conn, Conn) {
    let (near, far) = Memory::pair(Room::default());
    (Conn::new(near.into(), framing, Role::Peer, 1), Conn::new(far.into(), framing, Role::Gateway, 0))
}

/// Plain bytes: both ends.
pub(crate) fn plain_ends() -> (Wire, Wire) {
    let (near, far) = Memory::pair(Room::default());
    (near.into(), far.into())
}

/// Data of a session, as a gateway sends it.
pub(crate) async fn send_data(gateway: &Conn, data: &[u8]) {
    if gateway.framing() == Framing::Raw {
        return gateway.wire().write_all(data).await.unwrap();
    }
    let mut head = [0; HEADER_BYTES_MAX];
    let header = Header { fin: true, opcode: Opcode::Binary, mask: None, payload_bytes: data.len() as u64 };
    let len = frame::encode(&header, &mut head);
    gateway.wire().write_all(&[&head[..len], data].concat()).await.unwrap();
}

/// Has the other side of a session at the gateway say this and end its direction; all that it hears.
pub(crate) async fn exchange(gateway: &Conn, session: SessionId, data: &[u8]) -> Result<Vec<u8>, Ended> {
    let (near, far) = plain_ends();
    let using = async {
        far.write_all(data).await.unwrap();
        far.finish_write().await.unwrap();
        read_all(&far).await.ok()
    };
    let relaying = async {
        let ended = relay(End::raw(&near), End::of(gateway, session), &Traffic::default()).await;
        match &ended {
            Ok(()) => near.close_gently(),
            Err(_) => drop(near),
        }
        ended
    };
    let (ended, heard) = future::zip(relaying, using).await;
    ended.map(|()| heard.unwrap())
}

/// All that comes until the other side has ended its direction.
pub(crate) async fn read_all(wire: &Wire) -> io::Result<Vec<u8>> {
    let (mut all, mut buf) = (Vec::new(), [0; 4096]);
    loop {
        match wire.read(&mut buf).await? {
            0 => return Ok(all),
            n => all.extend_from_slice(&buf[..n]),
        }
    }
}

/// A port of loopback in this runtime: a target's, or a gateway's.
pub(crate) struct Port {
    pub(crate) addr: SocketAddr,
    listener: Listener,
}

impl Port {
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        Self { addr, listener: Listener::adopt(listener).unwrap() }
    }

    pub(crate) fn target(&self) -> Target {
        tcp(&self.addr.ip().to_string(), self.addr.port())
    }

    pub(crate) async fn accept(&self) -> Wire {
        self.listener.accept().await.unwrap().into()
    }

    /// Hears a session to its end, and gives back what it heard.
    pub(crate) async fn echo(&self) -> Vec<u8> {
        let wire = self.accept().await;
        let heard = read_all(&wire).await.unwrap();
        wire.write_all(&heard).await.unwrap();
        wire.finish_write().await.unwrap();
        wire.close_gently();
        heard
    }

    /// The next connection, and what it asks for.
    pub(crate) async fn request(&self) -> (Wire, Request) {
        let wire = self.accept().await;
        let (mut head, mut buf) = (Vec::new(), [0; 4096]);
        loop {
            let n = wire.read(&mut buf).await.unwrap();
            head.extend_from_slice(&buf[..n]);
            match parse_request(&head).unwrap() {
                Head::Upgrade { request, .. } => return (wire, *request),
                Head::NeedMore if n > 0 => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next connection, which gets what it asks for.
    pub(crate) async fn upgrade(&self) -> (Conn, Request) {
        let (wire, request) = self.request().await;
        let opened = request.open.as_ref().map(|open| Opened { session: open.session, e2ee: None });
        let accept = encode_accept(&request.key, request.protocol, opened.as_ref(), None);
        wire.write_all(&accept).await.unwrap();
        (Conn::new(wire, request.protocol.framing, Role::Gateway, 0), request)
    }

    /// The next connection, which is refused.
    pub(crate) async fn refuse(&self, refused: &Refused) -> Request {
        let (wire, request) = self.request().await;
        wire.write_all(&encode_refusal(refused)).await.unwrap();
        wire.close_gently();
        request
    }

    /// The next connection is a link, and welcome; with what was asked, and how it was presented.
    pub(crate) async fn link(&self, peer: Speaker, secret: LinkSecret) -> (Conn, Request, Message) {
        let (conn, request) = self.upgrade().await;
        assert_eq!(request.protocol.channel, Channel::Link);
        let nonce = Nonce::from_bytes([3; 32]);
        conn.send(&Message::Hello { version: 1, features: Features::NONE, nonce }).await.unwrap();
        let present = conn.recv(peer, Channel::Link).await.unwrap();
        conn.send(&Message::Welcome { link: LinkId::from_bytes([1; 32]), secret }).await.unwrap();
        (conn, request, present)
    }
}
