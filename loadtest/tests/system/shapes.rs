//! Whatever shape a hostile peer's traffic has, the gateway lives, and another user's keystrokes wait hardly
//! longer than beside ordinary bulk.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use narrowlink_dataplane::run::worker;
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    frame::Opcode,
    id::Uid,
    message::{Channel, Message},
    target::Target,
    token::Kind,
};

use crate::{
    alone, count,
    kit::{
        asker::open,
        foe::{Entry, Foe, frame_of, text},
    },
    start_echo,
};

/// Hostile connections at a time.
const FOES: usize = 2;
/// Said at once.
const BATCH_BYTES: usize = 128 * 1024;
/// The victim's keystroke.
const KEY_BYTES: usize = 64;
/// A median below this is not compared: a busy machine alone makes as much.
const FLOOR: Duration = Duration::from_millis(10);
/// A shape is slower than bulk if it is so in each of these.
const TRIES: usize = 3;

/// What a hostile peer sends, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Ordinary bulk in a session: what the others are compared with.
    Bulk,
    /// Data frames of one byte in a session.
    ShortFrames,
    /// Frames that bring nothing, in a session, on a stream without one, on a lane, on a link.
    Empty(On),
    Pongs(On),
    Pings(On),
    /// Empty continuations of a text message.
    EmptyParts(On),
    /// A text message in pieces of one byte.
    ShortParts(On),
    /// Questions, one behind the other, that are refused or answered.
    Questions(On),
    /// Lanes that come and go.
    Lanes,
    /// What comes behind a request that was answered by an ordinary page.
    Garbage,
    /// TLS records of one byte, in a session.
    ShortRecords,
    /// A new key every 64 bytes, in a session.
    NewKeys,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Session,
    Stream,
    Lane,
    Link,
}

const SHAPES: [Shape; 23] = [
    Shape::ShortFrames,
    Shape::Empty(On::Session),
    Shape::Empty(On::Stream),
    Shape::Empty(On::Lane),
    Shape::Empty(On::Link),
    Shape::Pongs(On::Session),
    Shape::Pongs(On::Stream),
    Shape::Pongs(On::Lane),
    Shape::Pongs(On::Link),
    Shape::Pings(On::Session),
    Shape::Pings(On::Stream),
    Shape::Pings(On::Link),
    Shape::EmptyParts(On::Stream),
    Shape::EmptyParts(On::Lane),
    Shape::EmptyParts(On::Link),
    Shape::ShortParts(On::Stream),
    Shape::ShortParts(On::Link),
    Shape::Questions(On::Stream),
    Shape::Questions(On::Link),
    Shape::Lanes,
    Shape::Garbage,
    Shape::ShortRecords,
    Shape::NewKeys,
];

/// What the hostile user has.
#[derive(Clone)]
struct Camp {
    entry: Entry,
    client: String,
    agent: String,
    /// Where its own agent leads: something that reads and says nothing.
    sink: SocketAddr,
}

impl Shape {
    fn is_of_tls(self) -> bool {
        matches!(self, Self::ShortRecords | Self::NewKeys)
    }

    const fn on(self) -> On {
        match self {
            Self::Empty(on)
            | Self::Pongs(on)
            | Self::Pings(on)
            | Self::EmptyParts(on)
            | Self::ShortParts(on)
            | Self::Questions(on) => on,
            Self::Lanes => On::Lane,
            Self::Garbage => On::Stream,
            Self::Bulk | Self::ShortFrames | Self::ShortRecords | Self::NewKeys => On::Session,
        }
    }

    /// As it is said again and again.
    fn batch(self) -> Vec<u8> {
        let frame = match self {
            Self::Bulk | Self::ShortRecords | Self::NewKeys => {
                frame_of(Opcode::Binary, true, &[0; 64 * 1024])
            }
            Self::ShortFrames => frame_of(Opcode::Binary, true, b"x"),
            Self::Empty(_) => frame_of(Opcode::Binary, true, b""),
            Self::Pongs(_) => frame_of(Opcode::Pong, true, b""),
            Self::Pings(_) => frame_of(Opcode::Ping, true, b""),
            Self::EmptyParts(_) => frame_of(Opcode::Continuation, false, b""),
            Self::ShortParts(_) => frame_of(Opcode::Continuation, false, b" "),
            Self::Questions(On::Link) => text(&Message::List.encode()),
            Self::Questions(_) => text(&Message::Open(open("nobody", &nowhere())).encode()),
            Self::Lanes | Self::Garbage => vec![b'x'; 1024],
        };
        frame.repeat((BATCH_BYTES / frame.len()).max(1))
    }

    /// Attacks until the gateway ends it, or `over`.
    fn attack(self, camp: &Camp, over: &AtomicBool, said: &AtomicU64) -> io::Result<()> {
        let Camp { entry, client, agent, .. } = camp;
        if self == Self::Lanes {
            let (_link, link, secret) = Foe::link(entry, agent)?;
            while !over.load(Ordering::Relaxed) {
                drop(Foe::lane(entry, agent, link, &secret)?);
                said.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(());
        }
        let mut link = None;
        let mut foe = match self.on() {
            _ if self == Self::Garbage => Foe::connect(entry)?,
            On::Session => camp.session()?,
            On::Stream => Foe::upgrade(entry, Channel::Stream, client, None)?,
            On::Link => Foe::link(entry, client)?.0,
            On::Lane => {
                let (foe, name, secret) = Foe::link(entry, agent)?;
                link = Some(foe);
                Foe::lane(entry, agent, name, &secret)?
            }
        };
        match self {
            Self::EmptyParts(_) | Self::ShortParts(_) => foe.say(&frame_of(Opcode::Text, false, b" "))?,
            Self::Garbage => foe.say(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?,
            _ => {}
        }
        let batch = self.batch();
        while !over.load(Ordering::Relaxed) {
            match self {
                Self::ShortRecords => foe.say_in_records(&batch[..8 * 1024], false)?,
                Self::NewKeys => foe.say_in_records(&batch[..batch.len() / 8], true)?,
                _ => foe.say(&batch)?,
            }
            said.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        drop(link);
        Ok(())
    }
}

fn nowhere() -> Target {
    Target::Tcp { host: "198.51.100.1".to_owned(), port: 22 }
}

impl Camp {
    fn session(&self) -> io::Result<Foe> {
        let mut foe = Foe::upgrade(&self.entry, Channel::Stream, &self.client, None)?;
        let target = Target::Tcp { host: self.sink.ip().to_string(), port: self.sink.port() };
        foe.say(&text(&Message::Open(open("den", &target)).encode()))?;
        match foe.read_message(Channel::Stream)? {
            Message::Opened { .. } => Ok(foe),
            other => Err(io::Error::other(format!("{} is no session", other.name()))),
        }
    }

    /// Attacks from several connections while `meanwhile` runs; what was said.
    fn besiege<R>(&self, shape: Shape, meanwhile: impl FnOnce() -> R) -> (R, u64, u64) {
        let (over, said, tries) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let result = thread::scope(|scope| {
            for _ in 0..FOES {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        tries.fetch_add(1, Ordering::Relaxed);
                        // The gateway may end each attack; then the next begins.
                        let _ = shape.attack(self, &over, &said);
                    }
                });
            }
            while said.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            let result = meanwhile();
            over.store(true, Ordering::Relaxed);
            result
        });
        (result, said.into_inner(), tries.into_inner())
    }
}

/// Reads what comes and says nothing.
fn start_sink() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || io::copy(&mut &stream, &mut io::sink()));
        }
    });
    addr
}

/// How long keystrokes of another user's session took.
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() - 1) * percent / 100]
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, max] = [50, 99, 100].map(|percent| self.at(percent));
        write!(f, "{:5} keys, p50 {p50:8.2?}, p99 {p99:8.2?}, max {max:8.2?}", self.0.len())
    }
}

fn type_keys(session: &mut TcpStream, time: Duration) -> Times {
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time || times.len() < 50 {
        let mut key = [0; KEY_BYTES];
        let sent = Instant::now();
        session.write_all(&[7; KEY_BYTES]).unwrap();
        session.read_exact(&mut key).unwrap();
        times.push(sent.elapsed());
        // Not faster than a person's terminal repeats: a victim that always has something to say would measure
        // its own throughput.
        thread::sleep(Duration::from_millis(1));
    }
    times.sort_unstable();
    Times(times)
}

/// Whether keystrokes took much longer than beside bulk; and how much longer.
fn slower(times: &Times, bulk: &Times, time: Duration) -> Option<String> {
    let percent = if time >= Duration::from_secs(5) { 99 } else { 50 };
    let bound = (bulk.at(percent) * 3).max(FLOOR);
    let took = times.at(percent);
    (took > bound).then(|| format!("p{percent} {took:?} is above {bound:?}"))
}

fn matrix(tls: bool, workers: usize) {
    let _turn = alone();
    let time = Duration::from_millis(count("NARROWLINK_SHAPE_MS", 150));
    let transport = Transport { tls, raw: false };
    // What is refused and what is opened is written down, as where it matters.
    let lab = Lab::start_audited(workers).unwrap();
    let home = lab.agent("home", transport).unwrap();
    let uid = Uid::from_u128(8);
    let den = lab.agent_with(uid, "den", transport, "").unwrap();
    let forward = lab.forward("home", start_echo(), transport).unwrap();
    let mut session = TcpStream::connect(forward.local_addr).unwrap();
    session.set_nodelay(true).unwrap();
    let ca_file = lab.site.dir().join("ca.pem");
    let token = |kind, name| lab.site.token(kind, uid, name, None).unwrap();
    let camp = Camp {
        entry: Entry::new(lab.entry(transport), tls.then_some(ca_file.as_path())),
        client: token(Kind::Client, "foe"),
        agent: token(Kind::Agent, "foe"),
        sink: start_sink(),
    };
    type_keys(&mut session, time);
    println!("{transport}, {workers} worker(s): {}  alone", type_keys(&mut session, time));
    let panics = worker::panics();
    let mut slow = Vec::new();
    let mut beside = |shape: Shape, time| {
        let (times, said, tries) = camp.besiege(shape, || type_keys(&mut session, time));
        println!("{times}  beside {shape:?}, {said} B in {tries} attacks");
        times
    };
    let bulk = beside(Shape::Bulk, time * 2);
    for shape in SHAPES.into_iter().filter(|shape| tls || !shape.is_of_tls()) {
        let mut too_slow = slower(&beside(shape, time), &bulk, time);
        // The machine itself may have been slow just then: the two are compared anew, one right behind the other.
        for _ in 1..TRIES {
            if too_slow.is_none() {
                break;
            }
            let bulk = beside(Shape::Bulk, time * 2);
            too_slow = slower(&beside(shape, time), &bulk, time);
        }
        slow.extend(too_slow.map(|why| format!("{shape:?}: {why}, {TRIES} times in a row")));
    }
    assert_eq!(worker::panics(), panics, "a task panicked");
    assert!(slow.is_empty(), "{slow:#?}");
    drop(session);
    drop(forward);
    home.stop();
    den.stop();
}

#[test]
fn no_shape_of_traffic_starves_another_user_over_ws_on_one_worker() {
    matrix(false, 1);
}

#[test]
fn no_shape_of_traffic_starves_another_user_over_ws_on_two_workers() {
    matrix(false, 2);
}

#[test]
fn no_shape_of_traffic_starves_another_user_over_wss_on_one_worker() {
    matrix(true, 1);
}

#[test]
fn no_shape_of_traffic_starves_another_user_over_wss_on_two_workers() {
    matrix(true, 2);
}
