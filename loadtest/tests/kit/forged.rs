//! Role: a gateway that says to its agent, or to its clients, whatever a test wants it to.
//! Invariants: links, lanes and streams are set up as by a real one, whoever asks for them · the words of a Dial are
//! the test's, byte for byte, and so is all that it says by itself, where the test wants that · what clients ask for it
//! dials without an agent.
//! See: ARCHITECTURE.md "The wire".

use std::{
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use async_channel::{Receiver, Sender};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_lite::future;
use narrowlink_dataplane::{
    net::{
        dial,
        listen::{Listener, accept_all},
        plain::Plain,
    },
    relay::{Traffic, relay},
    run::worker::{self, spawn},
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, ConnError, Role},
        end::End,
        settle::settle,
    },
};
use narrowlink_proto::{
    ended::Side,
    feature::Features,
    frame::{self, HEADER_BYTES_MAX, Header, Opcode},
    id::{LinkId, LinkSecret, Nonce, SessionId},
    message::{Channel, Message, Open, Speaker, VERSION},
    target::Target,
    upgrade::{Head, Request, encode_accept, parse_request},
};

use super::asker::{Answer, hear, random};

/// Longer than any dial takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it says by itself: to a link that has come (`None`), or to what its peer has said on a link or a stream. A
/// `refused` that comes first takes the place of the 101.
pub(crate) type Words = dyn Fn(Option<&Message>) -> Vec<String> + Send;

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
        Self::start_by(|heard| {
            let said = match heard {
                None => {
                    let nonce = Nonce::from_bytes(random());
                    Message::Hello { version: VERSION, features: Features::NONE, nonce }
                }
                Some(Message::Present { .. }) => {
                    let (link, secret) = (LinkId::from_bytes(random()), LinkSecret::from_bytes(random()));
                    Message::Welcome { link, secret }
                }
                Some(_) => return Vec::new(),
            };
            vec![String::from_utf8(said.encode()).expect("JSON is UTF-8")]
        })
    }

    /// Starts one with words of its own.
    pub(crate) fn start_by(words: impl Fn(Option<&Message>) -> Vec<String> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (questions, asked) = async_channel::unbounded();
        thread::spawn(move || worker::run_alone(false, |_| serve(listener, asked, Rc::new(words))));
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

async fn serve(listener: TcpListener, asked: Receiver<Question>, words: Rc<Words>) {
    let listener = Listener::adopt(listener).expect("a bound socket");
    let (park, parked) = async_channel::unbounded();
    spawn(async move {
        accept_all(&listener, |socket| {
            let (park, words) = (park.clone(), words.clone());
            // Agents and clients come and go as they like.
            spawn(async move { drop(meet(socket, park, &*words).await) });
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

/// A connection of the agent's or of a client's, from its first byte.
async fn meet(socket: Plain, park: Sender<Conn>, words: &Words) -> Result<(), ConnError> {
    let wire = Wire::from(socket);
    let Request { protocol, key, open, .. } = read_request(&wire).await?;
    let said = match (protocol.channel, &open) {
        (Channel::Link, _) => words(None),
        (_, Some(open)) => words(Some(&Message::Open(open.clone()))),
        (_, None) => Vec::new(),
    };
    if let Some(refused) = said.first().filter(|said| is(said, "refused")) {
        let no = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        wire.write_all(&with_header(no.as_bytes(), "NL-Refused", refused)).await?;
        wire.close_gently();
        return Ok(());
    }
    let mut accept = encode_accept(&key, protocol, None, None);
    if let (Some(_), Some(opened)) = (&open, said.first()) {
        accept = with_header(&accept, "NL-Opened", opened);
    }
    wire.write_all(&accept).await?;
    let conn = Conn::new(wire, protocol.framing, Role::Gateway, 0);
    match protocol.channel {
        Channel::Link => hold(&conn, said, words).await,
        Channel::Lane => park.send(conn).await.map_err(|_| ConnError::Truncated),
        Channel::Stream => serve_client(&conn, open, words).await,
    }
}

/// Whether a message has this name.
fn is(message: &str, name: &str) -> bool {
    let message: serde_json::Value = serde_json::from_str(message).expect("a gateway speaks JSON");
    message["type"] == name
}

/// A head with a message in one more header.
fn with_header(head: &[u8], name: &str, message: &str) -> Vec<u8> {
    let lines = head.strip_suffix(b"\r\n").expect("a head ends so");
    let header = format!("{name}: {}\r\n\r\n", URL_SAFE_NO_PAD.encode(message));
    [lines, header.as_bytes()].concat()
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

/// A link, until its peer leaves; pings are answered meanwhile.
async fn hold(conn: &Conn, mut said: Vec<String>, words: &Words) -> Result<(), ConnError> {
    loop {
        for message in said {
            say(conn, &message).await?;
        }
        // An agent says nothing there that a client may not.
        said = words(Some(&conn.recv(Speaker::Client, Channel::Link).await?));
    }
}

/// A client's stream, with one session after the other; `open` was answered in the head.
async fn serve_client(conn: &Conn, mut open: Option<Open>, words: &Words) -> Result<(), ConnError> {
    loop {
        let Open { session, target, .. } = match open.take() {
            Some(open) => open,
            None => {
                let asked = conn.recv(Speaker::Client, Channel::Stream).await?;
                let said = words(Some(&asked));
                for message in &said {
                    say(conn, message).await?;
                }
                match asked {
                    Message::Open(open) if said.iter().any(|said| is(said, "opened")) => open,
                    _ => continue,
                }
            }
        };
        let Target::Tcp { host, port } = target else { return Err(ConnError::Unexpected("another target")) };
        let host = host.parse().map_err(|_| ConnError::Unexpected("a name"))?;
        let target = Wire::from(dial::connect(SocketAddr::new(host, port), PATIENCE).await?);
        let ended = relay(End::of(conn, session), End::raw(&target), &Traffic::default()).await;
        ended.map_err(|_| ConnError::Truncated)?;
        target.close_gently();
        settle(conn, session, Side::Client).await.map_err(|_| ConnError::Truncated)?;
    }
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
