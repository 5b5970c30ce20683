//! Role: a gateway in memory for this wing's tests: a door that answers from memory, workers, and what agents
//! and clients have at the other end of a connection.
//! Invariants: no socket, no file · what is waited for can be seen · a test that hangs fails.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Deref,
    rc::Rc,
    slice,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use narrowlink_proto::{
    ended::{RefusalCode, Refused, Why},
    endpoint::SecretText,
    feature::Features,
    frame::HEADER_BYTES_MAX,
    id::{LinkId, LinkSecret, SessionId, Uid},
    limits::Limits,
    message::{AgentInfo, Channel, Dial, Goodbye, Instance, Message, Open, Origin, Speaker},
    target::Target,
    token::Allowance,
    upgrade::{Framing, Opened},
};

use crate::{
    gateway::{
        directory::{AgentEntry, Directory, LinkOrder},
        door::{Door, Event, First, LinkGrant, LinkRequest, Rejected, Route},
        lane::Lane,
        link,
        local::Local,
        parking,
        principal::Principal,
        service::Service,
        session::{Owner, Session},
        shared::Shared,
        shares::Descriptors,
        stream::{self, Visit},
        table::{Kind, Seat},
        usage::{Account, Usage},
    },
    net::memory::{Memory, Room},
    run::{
        timer::timeout,
        worker::{self, run_alone, spawn},
    },
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, ConnError, Role},
        end::{End, Unframed},
    },
};

/// Where everybody comes from.
pub(super) const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 5);
pub(super) const FRAMINGS: [Framing; 2] = [Framing::Framed, Framing::Raw];
/// Only a test that hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on a thread's only worker.
pub(super) fn run(test: impl Future<Output = ()>) {
    run_alone(false, |_| timeout(PATIENCE, test)).unwrap().expect("this test hangs");
}

/// Waits for what can be seen.
pub(super) async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        worker::turn().await;
    }
}

/// Lets everybody do what they can do now.
pub(super) async fn turns() {
    for _ in 0..8 {
        worker::turn().await;
    }
}

pub(super) fn session(n: u8) -> SessionId {
    SessionId::from_bytes([n; 32])
}

pub(super) fn open(n: u8) -> Open {
    let target = Target::Tcp { host: "127.0.0.1".into(), port: 22 };
    Open { session: session(n), agent: "home".into(), target, e2ee: None }
}

/// Somebody whose token has its own id, and holds for so long.
pub(super) fn who(speaker: Speaker, name: &str, lasts: Duration) -> Principal {
    let expires_at = Instant::now() + lasts;
    Principal { token_id: name.to_owned(), expires_at, ..Principal::new(speaker, Uid::nil(), name) }
}

/// The accounts of a token that may use so much, and of its user, who may use everything.
pub(super) fn usage(allowed: &Allowance) -> Usage {
    let [token, user] = [("this token", allowed), ("this user", &Allowance::default())]
        .map(|(whose, allowed)| Arc::new(Account::new(whose, allowed)));
    Usage::new(token, user, Arc::new(Descriptors::of(1_000)))
}

/// An operator who knows by heart who holds which token, and what they may.
pub(super) struct TestDoor {
    directory: Arc<Directory>,
    workers: usize,
    known: Mutex<Known>,
    events: (Sender<String>, Receiver<String>),
}

#[derive(Default)]
pub(super) struct Known {
    tokens: HashMap<&'static str, Arc<Principal>>,
    /// What every Open is told.
    pub(super) refusal: Option<Refused>,
    /// Who may not stay.
    pub(super) expelled: HashMap<&'static str, Why>,
    /// What every list has.
    pub(super) agents: Vec<AgentInfo>,
    /// What every new link is told.
    pub(super) goodbye: Option<Goodbye>,
    /// What the last link has said of itself.
    pub(super) presented: Option<(Features, Option<Instance>)>,
    links: u8,
    /// A link ends when nobody can give it any.
    orders: Vec<Sender<LinkOrder>>,
}

impl TestDoor {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn knows(&self, token: &'static str, who: Principal) -> Arc<Principal> {
        let who = Arc::new(who);
        self.known().tokens.insert(token, who.clone());
        who
    }

    /// What has happened since this was asked last.
    pub(super) fn events(&self) -> Vec<String> {
        std::iter::from_fn(|| self.events.1.try_recv().ok()).collect()
    }

    /// What happens next.
    pub(super) async fn event(&self) -> String {
        self.events.1.recv().await.unwrap()
    }

    fn say(&self, event: String) {
        self.events.0.try_send(event).unwrap();
    }

    fn next_link(&self) -> LinkId {
        let mut known = self.known();
        known.links += 1;
        LinkId::from_bytes([known.links; 32])
    }

    /// Every worker finds this agent from now on.
    fn publish(
        &self,
        (who, link): (&Arc<Principal>, LinkId),
        features: Features,
        orders: Sender<LinkOrder>,
    ) -> Arc<AgentEntry> {
        let secret = LinkSecret::from_bytes(*link.as_bytes());
        let entry = AgentEntry::new(who.clone(), link, secret, (PEER, features), orders, self.workers);
        let entry = Arc::new(entry);
        let mut agents = (*self.directory.snapshot()).clone();
        agents.insert(entry.key.clone(), entry.clone());
        self.directory.publish(agents);
        entry
    }
}

impl Door for TestDoor {
    fn route(&self, service: &Service, first: &First) -> Route {
        match first {
            First::Http if !service.tls => Route::Http,
            // There is no certificate here.
            First::Tls(_) if service.tls => Route::Nothing,
            First::Tls(_) | First::Http => Route::Misplaced,
        }
    }

    fn login(&self, channel: Channel, token: &str) -> Result<Arc<Principal>, Rejected> {
        let who = self.known().tokens.get(token).cloned();
        let cause = match (who.as_ref().map(|who| who.speaker), channel) {
            (None, _) => "nobody has this token",
            (Some(Speaker::Agent), Channel::Stream) | (Some(Speaker::Client), Channel::Lane) => {
                "another role's"
            }
            _ => return Ok(who.unwrap()),
        };
        let refused = Refused::new(RefusalCode::Unauthenticated, "the token does not hold");
        Err(Rejected { refused, cause: Some(cause.to_owned()) })
    }

    fn permit(&self, who: &Principal, open: &Open, peer_addr: SocketAddr) -> Result<Dial, Refused> {
        match &self.known().refusal {
            Some(refused) => Err(refused.clone()),
            None => Ok(Dial {
                session: open.session,
                origin: Origin::Client { name: who.name.clone(), peer_addr },
                target: open.target.clone(),
                rules: None,
                e2ee: open.e2ee.clone(),
            }),
        }
    }

    fn standing(&self, who: &Principal) -> Result<(), Why> {
        self.known().expelled.get(&*who.name).map_or(Ok(()), |why| Err(*why))
    }

    fn note(&self, event: &Event<'_>) {
        let number = |session: &SessionId| session.as_bytes()[0];
        self.say(match event {
            Event::LoggedIn { who, .. } => format!("{} logged in", who.name),
            Event::Refused { who, refused, cause, .. } => {
                let name = who.map_or("somebody", |who| who.name.as_str());
                let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
                format!("{name} refused: {}{cause}", refused.code.name())
            }
            Event::Opened { who, session, agent, .. } => {
                format!("{} opened {} at {agent}", who.name, number(session))
            }
            Event::Closed { session, up_bytes, down_bytes, ended, .. } => {
                let (by, why) = (ended.by, ended.why.name());
                format!("{} ended: {up_bytes} up, {down_bytes} down, {by:?} {why}", number(session))
            }
        });
    }

    fn list(&self, _: &Principal) -> Vec<AgentInfo> {
        self.known().agents.clone()
    }

    fn claim_link(&self, request: LinkRequest) {
        let LinkRequest { principal, features, instance, orders, answer, .. } = request;
        self.known().presented = Some((features, instance));
        let goodbye = self.known().goodbye.clone();
        let granted = match goodbye {
            Some(goodbye) => Err(goodbye),
            None => {
                let link = self.next_link();
                self.known().orders.push(orders.clone());
                let is_agent = principal.speaker == Speaker::Agent;
                let agent = is_agent.then(|| self.publish((&principal, link), features, orders));
                Ok(LinkGrant { link, secret: LinkSecret::from_bytes(*link.as_bytes()), agent })
            }
        };
        let _ = answer.try_send(granted);
    }

    fn publish(&self, agent: &Arc<AgentEntry>, tokens: Vec<SecretText>) {
        let tokens: Vec<_> = tokens.iter().map(SecretText::expose).collect();
        self.say(format!("{} publishes {}", agent.key.name, tokens.join(", ")));
    }

    fn release_link(&self, link: LinkId) {
        self.say(format!("link {} released", link.as_bytes()[0]));
    }
}

/// What all workers of a gateway share, the door, and two whom it knows.
#[derive(Clone)]
pub(super) struct Gateway {
    pub(super) door: Arc<TestDoor>,
    pub(super) shared: Arc<Shared>,
    /// Has the token `client`.
    pub(super) laptop: Arc<Principal>,
    /// Has the token `agent`.
    pub(super) home: Arc<Principal>,
}

/// An agent whose link stands.
pub(super) struct Agent {
    pub(super) entry: Arc<AgentEntry>,
    pub(super) orders: Receiver<LinkOrder>,
}

impl Gateway {
    pub(super) fn new(limits: Limits, workers: usize) -> Self {
        let directory = Arc::new(Directory::default());
        let (known, events) = (Mutex::default(), async_channel::unbounded());
        let door = Arc::new(TestDoor { directory: directory.clone(), workers, known, events });
        let hour = Duration::from_secs(3600);
        let laptop = door.knows("client", who(Speaker::Client, "laptop", hour));
        let home = door.knows("agent", who(Speaker::Agent, "home", hour));
        let shared = Arc::new(Shared::new(door.clone(), directory, limits, workers));
        Self { door, shared, laptop, home }
    }

    pub(super) fn worker(&self, index: usize) -> Worker {
        Worker { gateway: self.clone(), local: Local::new(index, self.shared.clone()) }
    }

    /// The agent that is home, on a new link: the next one takes its place.
    pub(super) fn agent(&self) -> Agent {
        self.agent_as(&self.home, Features::NONE)
    }

    pub(super) fn agent_as(&self, who: &Arc<Principal>, features: Features) -> Agent {
        let (order, orders) = async_channel::bounded(4);
        Agent { entry: self.door.publish((who, self.door.next_link()), features, order), orders }
    }
}

/// One worker, on the test's own thread.
pub(super) struct Worker {
    gateway: Gateway,
    pub(super) local: Rc<Local>,
}

impl Deref for Worker {
    type Target = Gateway;
    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

/// The only worker of a gateway.
pub(super) fn worker(limits: Limits) -> Worker {
    Gateway::new(limits, 1).worker(0)
}

/// The same, and the agent that is home.
pub(super) fn setting(limits: Limits) -> (Worker, Agent) {
    let worker = worker(limits);
    let agent = worker.agent();
    (worker, agent)
}

impl Worker {
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.local.table.count(kind)
    }

    /// Whoever the door does not let stay has to go.
    pub(super) fn expel(&self, name: &'static str, why: Why) {
        self.door.known().expelled.insert(name, why);
        self.local.table.judge();
    }

    fn seat(&self, who: &Arc<Principal>, kind: Kind) -> Seat {
        let seat = Seat::for_stranger(&self.local.table);
        seat.belongs_to(who);
        seat.becomes(kind);
        seat
    }

    /// A lane that is nowhere yet, and its agent's end.
    pub(super) fn lane(&self, agent: &Agent, framing: Framing) -> (Lane, Peer) {
        let (ours, theirs) = Memory::pair(Room::default());
        (self.lane_over(ours, agent, framing), Peer::new(theirs.into(), framing, Channel::Lane))
    }

    pub(super) fn lane_over(&self, ours: Memory, agent: &Agent, framing: Framing) -> Lane {
        let entry = agent.entry.clone();
        let seat = Seat::for_lane(&self.local.table, &entry.principal);
        let slot = entry.principal.usage.lane(&self.shared.limits()).unwrap();
        Lane { conn: Box::new(Conn::new(ours.into(), framing, Role::Gateway, 0)), entry, seat, slot }
    }

    /// A lane that is parked here; its agent's end.
    pub(super) fn park(&self, agent: &Agent, framing: Framing) -> Peer {
        let (lane, peer) = self.lane(agent, framing);
        parking::park(&self.local, lane.idle().ok().unwrap());
        peer
    }

    /// Somebody who asks for sessions here.
    pub(super) fn owner(&self, who: &Arc<Principal>) -> Rc<Owner> {
        let (local, seat) = (self.local.clone(), self.seat(who, Kind::Stream));
        Rc::new(Owner { local, who: who.clone(), peer_addr: PEER, seat })
    }

    /// Asks for a session, and waits for its answer.
    pub(super) async fn ask(
        &self,
        who: &Arc<Principal>,
        open: Open,
    ) -> Result<(Box<Session>, Opened), Refused> {
        self.owner(who).ask(open).await?.answered().await
    }

    /// The same for the laptop.
    pub(super) async fn asked(&self, n: u8) -> Result<(Box<Session>, Opened), Refused> {
        self.ask(&self.laptop, open(n)).await
    }

    /// The refusal of a session for which nothing is dialled, or which the lane's end meets as `answer` does.
    pub(super) async fn refused(&self, n: u8, answer: impl Future<Output = ()>) -> Refused {
        let (got, ()) = future::zip(self.asked(n), answer).await;
        let refused = got.err().unwrap();
        assert_eq!(refused.session, Some(session(n)), "a refusal says of what");
        refused
    }

    /// A stream that is served here; its client's end.
    pub(super) fn stream(&self, who: &Arc<Principal>, framing: Framing) -> Peer {
        let (ours, theirs) = Memory::pair(Room::default());
        let visit = Visit { owner: self.owner(who), _slot: who.usage.stream().unwrap() };
        let conn = Box::new(Conn::new(ours.into(), framing, Role::Gateway, 0));
        spawn(stream::serve(visit, conn, None));
        Peer::new(theirs.into(), framing, Channel::Stream)
    }

    /// A link that is served here; its peer's end.
    pub(super) fn link(&self, who: &Arc<Principal>) -> Peer {
        let (ours, theirs) = Memory::pair(Room::default());
        let seat = self.seat(who, Kind::Link);
        let slot = who.usage.link(who.speaker, &self.shared.limits()).unwrap();
        spawn(link::serve(self.local.clone(), ours.into(), who.clone(), PEER, (seat, slot)));
        Peer::new(theirs.into(), Framing::Framed, Channel::Link)
    }
}

/// What an agent or a client has at the other end of a connection.
pub(super) struct Peer {
    pub(super) conn: Conn,
    channel: Channel,
    /// Payload that has come of the session that is under way.
    pub(super) taken: Cell<u64>,
}

impl Peer {
    pub(super) fn new(wire: Wire, framing: Framing, channel: Channel) -> Self {
        Self { conn: Conn::new(wire, framing, Role::Peer, 7), channel, taken: Cell::new(0) }
    }

    pub(super) async fn say(&self, message: &Message) {
        self.conn.send(message).await.unwrap();
    }

    /// Bytes that are no message.
    pub(super) async fn write(&self, bytes: &[u8]) {
        self.conn.wire().write_all(bytes).await.unwrap();
    }

    pub(super) async fn open(&self, n: u8) {
        self.say(&Message::Open(open(n))).await;
    }

    pub(super) async fn hear(&self) -> Result<Message, ConnError> {
        self.conn.recv(Speaker::Gateway, self.channel).await
    }

    pub(super) async fn opened(&self, n: u8) {
        match self.hear().await {
            Ok(Message::Opened { session: opened, .. }) => assert_eq!(opened, session(n)),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn refused(&self) -> Refused {
        match self.hear().await {
            Ok(Message::Refused(refused)) => refused,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn dial(&self) -> Dial {
        match self.hear().await {
            Ok(Message::Dial(dial)) => dial,
            other => panic!("{other:?}"),
        }
    }

    /// Does what it is asked to, as an agent whose target answers.
    pub(super) async fn accept(&self) -> Dial {
        let dial = self.dial().await;
        self.say(&Message::Dialled { session: dial.session, e2ee: None }).await;
        dial
    }

    /// With which code and words the gateway closes, if it says nothing before but data.
    pub(super) async fn close(&self) -> (u16, String) {
        match self.take_all(0).await.map(|payload| payload.len()) {
            Err(ConnError::Closed { code, why }) => (code, why),
            other => panic!("{other:?}"),
        }
    }

    /// The gateway has reset the connection, if that comes next.
    pub(super) async fn cut(&self) {
        match self.hear().await {
            Err(ConnError::Io(e)) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
            other => panic!("{other:?}"),
        }
    }

    /// Payload of a session.
    pub(super) async fn give(&self, payload: &[u8]) {
        let (conn, bytes) = (&self.conn, payload.len());
        if conn.framing() == Framing::Framed {
            assert!(conn.begin_frame().unwrap(), "nothing waits before it");
            let mut frame = [payload, &[0; HEADER_BYTES_MAX][..]].concat();
            let header_bytes = conn.write_header(slice::from_ref(&(0..bytes)), &mut frame, bytes);
            self.write(&frame[bytes..][..header_bytes]).await;
            self.write(&frame[..bytes]).await;
            conn.end_frame().unwrap();
        } else {
            self.write(payload).await;
        }
    }

    /// Ends its direction of a session, after so many bytes.
    pub(super) async fn finish(&self, n: u8, bytes: u64) {
        End::of(&self.conn, session(n)).finish_write(bytes).await.unwrap();
    }

    /// So much of a session's payload.
    pub(super) async fn take(&self, n: u8, bytes: usize) -> Vec<u8> {
        self.payload(session(n), bytes).await.unwrap()
    }

    /// All of a session's payload, once its direction has ended.
    pub(super) async fn take_all(&self, n: u8) -> Result<Vec<u8>, ConnError> {
        self.payload(session(n), usize::MAX).await
    }

    pub(super) async fn payload(&self, session: SessionId, bytes: usize) -> Result<Vec<u8>, ConnError> {
        let (wire, end) = (self.conn.wire(), End::of(&self.conn, session));
        let (mut got, mut buf) = (Vec::new(), [0; 512]);
        loop {
            let n = wire.read(&mut buf).await?;
            if n == 0 {
                return if end.ends_with_transport() { Ok(got) } else { Err(ConnError::Truncated) };
            }
            let mut at = 0;
            while let Some(next) = end.unframe(&mut buf[..n], &mut at)? {
                match next {
                    Unframed::Payload { range, .. } => {
                        self.taken.set(self.taken.get() + range.len() as u64);
                        got.extend_from_slice(&buf[range]);
                    }
                    Unframed::Fin { bytes } => {
                        assert_eq!(bytes, self.taken.take(), "a Fin counts what came before it");
                        return Ok(got);
                    }
                    Unframed::Control => {}
                }
                if got.len() >= bytes {
                    wire.unread(&buf[at..n]);
                    return Ok(got);
                }
            }
        }
    }
}

/// What is left of a session that stands: 2 bytes up and 4 down, and both ends have everything.
pub(super) async fn exchange(client: &Peer, lane: &Peer, n: u8) {
    client.give(b"up").await;
    client.finish(n, 2).await;
    assert_eq!(lane.take_all(n).await.unwrap(), b"up");
    lane.give(b"down").await;
    lane.finish(n, 4).await;
    assert_eq!(client.take_all(n).await.unwrap(), b"down");
    if lane.conn.framing() == Framing::Framed {
        lane.say(&Message::Ready { session: session(n) }).await;
    }
    if client.conn.framing() == Framing::Framed {
        match client.hear().await {
            Ok(Message::Ready { session: ready }) => assert_eq!(ready, session(n)),
            other => panic!("{other:?}"),
        }
    }
}
