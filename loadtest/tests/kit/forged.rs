//! Role: a gateway that says to its agent whatever a test wants it to.
//! Invariants: links and lanes are set up as by a real one, whoever asks for them · the words of a Dial are
//! the test's, byte for byte.
//! See: ARCHITECTURE.md "The wire".

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use narrowlink_dataplane::{
    net::{
        listen::{Listener, accept_all},
        plain::Plain,
    },
    run::worker::{self, spawn},
    transport::wire::Wire,
    tunnel::conn::{Conn, ConnError, Role},
};
use narrowlink_proto::{
    feature::Features,
    frame::{self, HEADER_BYTES_MAX, Header, Opcode},
    id::{LinkId, LinkSecret, Nonce, SessionId},
    message::{Channel, Message, Speaker, VERSION},
    upgrade::{Head, Request, encode_accept, parse_request},
};

use super::asker::{Answer, hear, random};

/// Longer than any dial takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The gateway. It serves one agent.
pub(crate) struct Forged {
    /// Where it speaks `ws`.
    pub(crate) addr: SocketAddr,
    questions: Sender<Question>,
}

/// What to say on a lane, and who wants to know what comes of it.
enum Question {
    /// Once.
    Say { words: String, session: SessionId, reply: mpsc::Sender<Answer> },
    /// For ever, so many ahead of the answers, which are counted.
    Pour { words: fn(SessionId) -> String, ahead: usize, refused: Arc<AtomicU64> },
}

impl Forged {
    /// Starts one.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (questions, asked) = async_channel::unbounded();
        thread::spawn(move || worker::run_alone(false, |_| serve(listener, asked)));
        Self { addr, questions }
    }

    /// Says these words on a lane; what the agent made of them. It is asked about `session`.
    pub(crate) fn say(&self, session: SessionId, words: String) -> Answer {
        let (reply, answer) = mpsc::channel();
        self.questions.try_send(Question::Say { words, session, reply }).expect("the gateway runs");
        answer.recv_timeout(PATIENCE).expect("an agent answers")
    }

    /// Says such words on a lane from now on, so many times before it waits for a refusal; how many came.
    pub(crate) fn pour(&self, words: fn(SessionId) -> String, ahead: usize) -> Arc<AtomicU64> {
        let refused = Arc::new(AtomicU64::new(0));
        let question = Question::Pour { words, ahead, refused: refused.clone() };
        self.questions.try_send(question).expect("the gateway runs");
        refused
    }
}

async fn serve(listener: TcpListener, asked: Receiver<Question>) {
    let listener = Listener::adopt(listener).expect("a bound socket");
    let (park, parked) = async_channel::unbounded();
    spawn(async move {
        accept_all(&listener, |socket| {
            let park = park.clone();
            // Agents come and go as they like.
            spawn(async move { drop(meet(socket, park).await) });
        })
        .await;
    });
    let mut lane = None;
    while let Ok(question) = asked.recv().await {
        let conn: Conn = match lane.take() {
            Some(conn) => conn,
            None => parked.recv().await.expect("it accepts for ever"),
        };
        match question {
            Question::Say { words, session, reply } => {
                let answer = ask(&conn, session, &words).await;
                if !matches!(answer, Answer::Broke(_)) {
                    lane = Some(conn);
                }
                let _ = reply.send(answer);
            }
            Question::Pour { words, ahead, refused } => {
                // Until the agent ends it.
                let _ = pour(&conn, words, ahead, &refused).await;
            }
        }
    }
}

/// A connection of the agent's, from its first byte.
async fn meet(socket: Plain, park: Sender<Conn>) -> Result<(), ConnError> {
    let wire = Wire::from(socket);
    let Request { protocol, key, .. } = read_request(&wire).await?;
    wire.write_all(&encode_accept(&key, protocol, None, None)).await?;
    let conn = Conn::new(wire, protocol.framing, Role::Gateway, 0);
    match protocol.channel {
        Channel::Link => hold(&conn).await,
        Channel::Lane => park.send(conn).await.map_err(|_| ConnError::Truncated),
        Channel::Stream => Err(ConnError::Unexpected("an agent that asks for a session")),
    }
}

async fn read_request(wire: &Wire) -> io::Result<Request> {
    let mut got = Vec::new();
    loop {
        let mut buf = [0; 4096];
        let bytes = wire.read(&mut buf).await?;
        got.extend_from_slice(&buf[..bytes]);
        match parse_request(&got).map_err(io::Error::other)? {
            Head::Upgrade { request, .. } => return Ok(*request),
            Head::NeedMore if bytes > 0 => {}
            _ => return Err(io::Error::other("no agent")),
        }
    }
}

/// A link, until its agent leaves.
async fn hold(conn: &Conn) -> Result<(), ConnError> {
    let nonce = Nonce::from_bytes(random());
    conn.send(&Message::Hello { version: VERSION, features: Features::NONE, nonce }).await?;
    let Message::Present { .. } = conn.recv(Speaker::Agent, Channel::Link).await? else {
        return Err(ConnError::Unexpected("something else where Present was due"));
    };
    let (link, secret) = (LinkId::from_bytes(random()), LinkSecret::from_bytes(random()));
    conn.send(&Message::Welcome { link, secret }).await?;
    // Pings are answered meanwhile.
    conn.recv(Speaker::Agent, Channel::Link).await.map(drop)
}

async fn say(conn: &Conn, words: &str) -> io::Result<()> {
    let mut head = [0; HEADER_BYTES_MAX];
    let header = Header { fin: true, opcode: Opcode::Text, mask: None, payload_bytes: words.len() as u64 };
    let len = frame::encode(&header, &mut head);
    conn.wire().write_all(&[&head[..len], words.as_bytes()].concat()).await
}

async fn ask(conn: &Conn, session: SessionId, words: &str) -> Answer {
    if let Err(e) = say(conn, words).await {
        return Answer::Broke(e.to_string());
    }
    match conn.recv(Speaker::Agent, Channel::Lane).await {
        Ok(Message::Dialled { session: dialled, .. }) if dialled == session => {
            let said = hear(conn, session, Speaker::Agent).await;
            said.map_or_else(|ended| Answer::Broke(ended.to_string()), Answer::Said)
        }
        Ok(Message::Refused(refused)) if refused.session == Some(session) => Answer::Refused(refused),
        Ok(other) => Answer::Broke(format!("{} is no answer", other.name())),
        Err(e) => Answer::Broke(e.to_string()),
    }
}

async fn pour(
    conn: &Conn,
    words: fn(SessionId) -> String,
    ahead: usize,
    refused: &AtomicU64,
) -> Result<(), ConnError> {
    let (more, wanted) = async_channel::bounded(ahead);
    for _ in 0..ahead {
        more.try_send(()).expect("there is room");
    }
    let saying = async {
        while wanted.recv().await.is_ok() {
            say(conn, &words(SessionId::from_bytes(random()))).await?;
        }
        Ok(())
    };
    let hearing = async {
        while let Message::Refused(_) = conn.recv(Speaker::Agent, Channel::Lane).await? {
            refused.fetch_add(1, Ordering::Relaxed);
            more.try_send(()).expect("there is room");
        }
        Err(ConnError::Unexpected("no refusal"))
    };
    future::or(hearing, saying).await
}
