//! A program works together with one of the version before it and of the version after it: what it does not know is passed
//! over, or refused by its name where somebody waits for an answer.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use narrowlink_agent::Agent;
use narrowlink_client::{Plan, config::Config, exit::Exit, start_forward};
use narrowlink_dataplane::{peer, run::worker};
use narrowlink_loadtest::{
    lab::Lab,
    site::{Site, Transport},
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    feature::Features,
    frame::Opcode,
    id::{LinkId, LinkSecret, Nonce, SessionId, Uid},
    message::{Channel, Message},
    target::Target,
    token::Kind,
};
use serde_json::{Value, json};

use crate::{
    alone,
    kit::{
        PATIENCE,
        asker::{Answer, random},
        foe::{Entry, Foe, frame_of, text},
        forged::Forged,
        net::{Greeter, echo, private_ip, start_echo},
        timing::assert_once_within,
    },
};

const WS: Transport = Transport { tls: false, raw: false };
/// For anything here: nobody waits for what does not come.
const SOON: Duration = Duration::from_secs(1);
/// A message that this version does not know.
const LATER: &str = r#"{"type":"telepathy","thought":{"of":["fish",1]},"session":7}"#;
/// What is said of it.
const UNKNOWN: &str = r#"the message "telepathy" is not known to this version"#;

/// Who is at the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// Knows no features.
    Before,
    /// Has features, fields and messages that nobody knows.
    After,
}

impl Version {
    const ALL: [Self; 2] = [Self::Before, Self::After];

    /// A message in the words of this version.
    fn write(self, mut message: Value) -> String {
        if self == Self::After {
            message["later"] = json!({ "type": "open", "more": [null] });
            if let "hello" | "present" = message["type"].as_str().unwrap() {
                message["features"] = json!(["telepathy", "datagrams", "", "e2ee\u{202e}"]);
            }
        }
        message.to_string()
    }

    /// The same, among what else this version says on a link.
    fn say(self, message: Value) -> Vec<String> {
        let more = match self {
            Self::Before => Vec::new(),
            Self::After => vec![LATER.to_owned()],
        };
        [more.as_slice(), &[self.write(message)], &more].concat()
    }
}

fn present(version: u32) -> Value {
    json!({ "type": "present", "version": version })
}

fn hello(version: u32) -> Value {
    json!({ "type": "hello", "version": version, "nonce": Nonce::from_bytes(random()) })
}

fn welcome() -> Value {
    let (link, secret) = (LinkId::from_bytes(random()), LinkSecret::from_bytes(random()));
    json!({ "type": "welcome", "link": link, "secret": secret })
}

fn session() -> SessionId {
    SessionId::from_bytes(random())
}

fn tcp(addr: SocketAddr) -> Value {
    json!({ "tcp": { "host": addr.ip().to_string(), "port": addr.port() } })
}

/// For an agent that does not look at what it should dial.
fn open(session: SessionId, agent: &str) -> Value {
    let target = json!({ "tcp": { "host": "192.0.2.1", "port": 7 } });
    json!({ "type": "open", "session": session, "agent": agent, "target": target })
}

fn of_session(kind: &str, session: SessionId) -> Value {
    json!({ "type": kind, "session": session })
}

fn fin(session: SessionId, bytes: usize) -> Value {
    json!({ "type": "fin", "session": session, "bytes": bytes })
}

/// What `ask` is refused with; it does not take long.
fn refused<T>(what: &str, ask: impl FnOnce() -> io::Result<T>) -> String {
    let since = Instant::now();
    let why = ask().err().unwrap_or_else(|| panic!("{what}: not refused")).to_string();
    assert_once_within(what, SOON, since.elapsed());
    why
}

/// A gateway, and who comes to it.
struct Door {
    lab: Lab,
    entry: Entry,
    client: String,
}

impl Door {
    fn open() -> Self {
        let lab = Lab::start(1).unwrap();
        let client = lab.site.token(Kind::Client, lab.uid, "laptop", None).unwrap();
        Self { entry: Entry::new(lab.entry(WS), None), lab, client }
    }

    fn agents_token(&self, name: &str) -> String {
        self.lab.site.token(Kind::Agent, self.lab.uid, name, None).unwrap()
    }

    /// An agent's link and a lane of it. Each has a name of its own: a second one would be a stranger.
    fn agent(&self, name: &str, version: Version) -> (Foe, Foe) {
        let token = self.agents_token(name);
        let (link, id, secret) = Foe::link_by(&self.entry, &token, &version.say(present(1))).unwrap();
        (link, Foe::lane(&self.entry, &token, id, &secret).unwrap())
    }

    fn stream(&self) -> Foe {
        Foe::upgrade(&self.entry, Channel::Stream, &self.client, None).unwrap()
    }
}

/// A session of an agent of that version: hears `ping`, says `pong`.
fn serve(lane: &mut Foe, version: Version) {
    let Message::Dial(dial) = lane.read_message(Channel::Lane).unwrap() else { panic!("no Dial") };
    let id = dial.session;
    let say = |lane: &mut Foe, message| lane.say(&text(version.write(message).as_bytes())).unwrap();
    say(lane, of_session("dialled", id));
    lane.say(&frame_of(Opcode::Binary, true, b"pong")).unwrap();
    say(lane, fin(id, 4));
    assert_eq!(lane.read_session().unwrap(), b"ping");
    say(lane, of_session("ready", id));
}

/// The same session as a client of that version sees it, once it has opened.
fn use_session(stream: &mut Foe, id: SessionId, version: Version) {
    stream.say(&frame_of(Opcode::Binary, true, b"ping")).unwrap();
    stream.say(&text(version.write(fin(id, 4)).as_bytes())).unwrap();
    assert_eq!(stream.read_session().unwrap(), b"pong");
    let ready = stream.read_message(Channel::Stream).unwrap();
    assert!(matches!(ready, Message::Ready { session } if session == id), "{}", ready.name());
}

#[test]
fn a_gateway_serves_clients_and_agents_of_the_version_before_and_after() {
    let _turn = alone();
    let door = Door::open();
    for (client, agent) in Version::ALL.into_iter().flat_map(|one| Version::ALL.map(|other| (one, other))) {
        let (since, name) = (Instant::now(), format!("{client:?}-{agent:?}"));
        let (agents_link, mut lane) = door.agent(&name, agent);
        let (mut link, ..) = Foe::link_by(&door.entry, &door.client, &client.say(present(1))).unwrap();
        link.say_all(&client.say(json!({ "type": "list" }))).unwrap();
        match link.read_message(Channel::Link).unwrap() {
            Message::Agents { agents, more: false } => assert!(agents.iter().any(|one| one.name == name)),
            other => panic!("{} is no list", other.name()),
        }
        thread::scope(|scope| {
            let serving = scope.spawn(|| (0..3).for_each(|_| serve(&mut lane, agent)));
            let mut stream = door.stream();
            for _ in 0..2 {
                let id = session();
                stream.say(&text(client.write(open(id, &name)).as_bytes())).unwrap();
                let opened = stream.read_message(Channel::Stream).unwrap();
                assert!(matches!(opened, Message::Opened { session, .. } if session == id));
                use_session(&mut stream, id, client);
            }
            let id = session();
            let asked = URL_SAFE_NO_PAD.encode(client.write(open(id, &name)));
            let head = Foe::head(Channel::Stream, &door.client, None);
            let head = head.replace("\r\n\r\n", &format!("\r\nNL-Open: {asked}\r\nNL-Later: 1\r\n\r\n"));
            use_session(&mut Foe::ask(&door.entry, Channel::Stream, &head).unwrap(), id, client);
            serving.join().unwrap();
        });
        let what = format!("three sessions of a client ({client:?}) and an agent ({agent:?})");
        assert_once_within(&what, SOON, since.elapsed());
        drop(agents_link);
    }
}

#[test]
fn a_gateway_says_which_version_it_speaks_to_whoever_speaks_another() {
    let _turn = alone();
    let door = Door::open();
    let agents = door.agents_token("home");
    for token in [&door.client, &agents] {
        for version in Version::ALL {
            let why = refused("version 2", || Foe::link_by(&door.entry, token, &version.say(present(2))));
            assert_eq!(why, "sent away: this gateway speaks version 1 of the protocol, not 2");
        }
    }
    for (channel, token) in
        [(Channel::Link, &door.client), (Channel::Lane, &agents), (Channel::Stream, &door.client)]
    {
        let head = Foe::head(channel, token, None).replace("nl1.", "nl2.");
        let why = refused("nl2", || Foe::ask(&door.entry, channel, &head));
        let words = "this gateway speaks version 1 of the protocol (nl1), not nl2; update the older program";
        assert_eq!(why, format!("refused with 501: {words}"));
        let stranger = head.replace("Bearer", "Basic");
        let why = refused("nl2 without a token", || Foe::ask(&door.entry, channel, &stranger));
        assert_eq!(why, "refused with 404: without a word");
    }
    let head = Foe::head(Channel::Stream, &door.client, None);
    let both = head.replace("Protocol: nl1", "Protocol: nl2.stream.framed, nl1");
    Foe::ask(&door.entry, Channel::Stream, &both).unwrap();
}

#[test]
fn a_gateway_refuses_an_unknown_message_by_its_name_where_an_answer_is_due() {
    let _turn = alone();
    let door = Door::open();
    let is_named = |why: &str| assert!(why.contains(UNKNOWN), "{why}");
    let is_closed =
        |why: &str| assert!(why.starts_with("closed with 1002: ") && why.contains(UNKNOWN), "{why}");
    let ask = |stream: &mut Foe, agent: &str| {
        stream.say(&text(open(session(), agent).to_string().as_bytes())).unwrap();
    };
    // The answer, and the end behind it, may be there before it is all said.
    let say_later = |foe: &mut Foe| drop(foe.say(&text(LATER.as_bytes())));

    let mut idle = door.stream();
    say_later(&mut idle);
    is_closed(&refused("on a stream", || idle.read_message(Channel::Stream)));

    let (_link, mut lane) = door.agent("idle", Version::After);
    say_later(&mut lane);
    is_closed(&refused("on a lane", || lane.read_message(Channel::Lane)));

    let (_link, mut lane) = door.agent("dials", Version::After);
    let mut stream = door.stream();
    ask(&mut stream, "dials");
    lane.read_message(Channel::Lane).unwrap();
    say_later(&mut lane);
    match stream.read_message(Channel::Stream).unwrap() {
        Message::Refused(Refused { code: RefusalCode::LaneLost, reason, .. }) => is_named(&reason),
        other => panic!("{other:?}"),
    }

    let (_link, mut lane) = door.agent("serves", Version::After);
    ask(&mut stream, "serves");
    let Message::Dial(dial) = lane.read_message(Channel::Lane).unwrap() else { panic!("no Dial") };
    lane.say(&text(of_session("dialled", dial.session).to_string().as_bytes())).unwrap();
    let opened = stream.read_message(Channel::Stream).unwrap();
    assert!(matches!(opened, Message::Opened { .. }), "{}", opened.name());
    say_later(&mut stream);
    is_closed(&refused("in a session", || stream.read_session()));
}

#[test]
fn a_refusal_by_an_agent_of_a_later_version_reaches_the_client_with_its_reason() {
    let _turn = alone();
    let door = Door::open();
    let (_link, mut lane) = door.agent("home", Version::After);
    let mut stream = door.stream();
    for _ in 0..2 {
        stream.say(&text(open(session(), "home").to_string().as_bytes())).unwrap();
        let Message::Dial(dial) = lane.read_message(Channel::Lane).unwrap() else { panic!("no Dial") };
        let no = json!({ "type": "refused", "session": dial.session, "code": "too_loud", "reason": "hush" });
        lane.say(&text(Version::After.write(no).as_bytes())).unwrap();
        let answer = stream.read_message(Channel::Stream).unwrap();
        let Message::Refused(refused) = answer else { panic!("{} is no refusal", answer.name()) };
        assert_eq!((refused.code, refused.reason.as_str()), (RefusalCode::Other, "hush"));
    }
}

/// What a gateway of that version says by itself.
fn gateway(version: Version) -> impl Fn(Option<&Message>) -> Vec<String> + Send {
    move |heard| match heard {
        None => version.say(hello(1)),
        Some(Message::Present { .. }) => {
            [version.say(welcome()), version.say(json!({ "type": "need_lane", "count": 1 }))].concat()
        }
        Some(Message::List) => {
            let list = |name: &str, more: bool| {
                let mut one =
                    json!({ "name": name, "address": "192.0.2.1:5", "ping_us": null, "connected_s": 1 });
                if version == Version::After {
                    one["mood"] = json!("good");
                }
                version.say(json!({ "type": "agents", "agents": [one], "more": more }))
            };
            [list("home", true), list("office", false)].concat()
        }
        Some(Message::Open(open)) => vec![version.write(of_session("opened", open.session))],
        Some(other) => panic!("{} is asked of no gateway", other.name()),
    }
}

/// A site without a gateway of its own.
fn site() -> (tempfile::TempDir, Site) {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::create(dir.path()).unwrap();
    (dir, site)
}

fn agent_config(site: &Site, gateway: &Forged) -> narrowlink_agent::config::Config {
    let token = site.token(Kind::Agent, Uid::from_u128(7), "home", None).unwrap();
    let extra = format!("state_dir: \"{}\"\nlanes: {{ min: 0 }}\n", site.dir().display());
    let path = site.endpoint_yaml("agent.yaml", gateway.addr, WS, &token, &extra).unwrap();
    narrowlink_agent::config::Config::load(&path).unwrap()
}

/// One that opens lanes only when it is asked for them. Nobody waits for its end: no lane that it lets go is closed.
fn start_agent(site: &Site, gateway: &Forged) -> Agent {
    narrowlink_agent::start(agent_config(site, gateway)).unwrap()
}

fn client_config(site: &Site, gateway: &Forged) -> Config {
    let token = site.token(Kind::Client, Uid::from_u128(7), "laptop", None).unwrap();
    Config::load(&site.endpoint_yaml("client.yaml", gateway.addr, WS, &token, "").unwrap()).unwrap()
}

/// A Dial for a client, or for whom else.
fn dial(version: Version, session: SessionId, origin: Value, target: Value) -> String {
    let mut dial = of_session("dial", session);
    (dial["origin"], dial["target"]) = (origin, target);
    version.write(dial)
}

fn client(version: Version) -> Value {
    let mut client = json!({ "name": "laptop", "peer_addr": "192.0.2.1:1" });
    if version == Version::After {
        client["mood"] = json!("good");
    }
    json!({ "client": client })
}

#[test]
fn an_agent_serves_gateways_of_the_version_before_and_after() {
    let _turn = alone();
    let target = Greeter::start((private_ip(), 0).into());
    for version in Version::ALL {
        let (_dir, site) = site();
        let forged = Forged::start_by(gateway(version));
        let _agent = start_agent(&site, &forged);
        let said = Answer::Said(target.addr.to_string());
        let ask = |origin: Value| {
            let (id, since) = (session(), Instant::now());
            let answer = forged.say(id, dial(version, id, origin, tcp(target.addr)));
            assert_once_within("an answer to a Dial", SOON, since.elapsed());
            answer
        };
        assert_eq!(ask(client(version)), said, "{version:?}");
        // The next ones come on the same lane.
        match ask(json!({ "guest": { "host": "app.example" } })) {
            Answer::Refused(Refused { code: RefusalCode::Unsupported, reason, .. }) => {
                assert_eq!(reason, "this agent does not know how to dial for a guest; update it");
            }
            other => panic!("{version:?}: {other:?}"),
        }
        assert_eq!(ask(client(version)), said, "{version:?}");
    }
    assert_eq!(target.count(), 4);
}

#[test]
fn an_agent_ends_a_lane_by_the_name_of_an_unknown_message_and_opens_another() {
    let _turn = alone();
    let target = Greeter::start((private_ip(), 0).into());
    let (_dir, site) = site();
    let forged = Forged::start_by(gateway(Version::After));
    let _agent = start_agent(&site, &forged);
    let id = session();
    let since = Instant::now();
    let answer = forged.say(id, LATER.to_owned());
    let Answer::Broke(why) = &answer else { panic!("{answer:?}") };
    assert!(why.contains("1002") && why.contains(UNKNOWN), "{why}");
    let answer = forged.say(id, dial(Version::After, id, client(Version::After), tcp(target.addr)));
    assert_eq!(answer, Answer::Said(target.addr.to_string()));
    assert_once_within("a lane in the place of another", SOON, since.elapsed());
}

#[test]
fn an_agent_whose_gateway_speaks_another_version_says_so_and_joins_once_that_is_mended() {
    let _turn = alone();
    let (_dir, site) = site();
    let mended = Arc::new(AtomicBool::new(false));
    let forged = Forged::start_by({
        let (mended, ours) = (mended.clone(), gateway(Version::After));
        move |heard| match heard {
            None if !mended.load(Ordering::SeqCst) => Version::After.say(hello(2)),
            heard => ours(heard),
        }
    });
    let config = agent_config(&site, &forged);
    let gateway = config.gateways().unwrap().remove(0);
    let joined = worker::run_alone(false, |_| async {
        peer::join(&gateway, Features::NONE, None, PATIENCE).await.err().unwrap().to_string()
    });
    let words = "the gateway speaks version 2 of the protocol, this program version 1: update the older one";
    assert_eq!(joined.unwrap(), words);
    let agent = narrowlink_agent::start(config).unwrap();
    assert_eq!(agent.wait_ready(Duration::from_millis(50)), None);
    mended.store(true, Ordering::SeqCst);
    assert_eq!(agent.wait_ready(PATIENCE), Some(forged.addr.to_string()));
}

#[test]
fn a_client_works_with_gateways_of_the_version_before_and_after() {
    let _turn = alone();
    for version in Version::ALL {
        let (_dir, site) = site();
        let forged = Forged::start_by(gateway(version));
        let config = client_config(&site, &forged);
        let since = Instant::now();
        let agents = narrowlink_client::agents(&config).unwrap();
        let names: Vec<_> = agents.iter().map(|agent| agent.name.as_str()).collect();
        assert_eq!(names, ["home", "office"], "{version:?}");
        let to = start_echo();
        let target = Target::Tcp { host: to.ip().to_string(), port: to.port() };
        let plan = Plan { agent: "home".to_owned(), target, listen: "127.0.0.1:0".parse().unwrap() };
        let forward = start_forward(&config, plan).unwrap();
        // The first may ask in the head of a stream of its own, the others on streams that stand.
        (0..3).for_each(|_| echo(forward.local_addr));
        assert_once_within("a list and three connections", SOON, since.elapsed());
        forward.stop();
    }
}

/// The words that a client ends with when it wants something of a gateway that says this.
fn failed<T>(
    words: impl Fn(Option<&Message>) -> Vec<String> + Send + 'static,
    ask: impl Fn(&Config) -> Result<T, narrowlink_client::exit::Failure>,
) -> String {
    let (_dir, site) = site();
    let forged = Forged::start_by(words);
    let since = Instant::now();
    let failure = ask(&client_config(&site, &forged)).err().expect("it is refused");
    assert_once_within("a failure", SOON, since.elapsed());
    assert_eq!(failure.exit, Exit::Unreachable, "{failure}");
    failure.to_string()
}

#[test]
fn a_client_says_what_a_gateway_of_another_version_refuses_or_says() {
    let _turn = alone();
    let list = |config: &Config| narrowlink_client::agents(config).map(drop);
    let connect = |path: &str| {
        let target = Target::Unix { path: format!("/{path}") };
        move |config: &Config| narrowlink_client::connect(config, "home", &target)
    };
    // So long a target asks in a message.
    let (in_head, in_message) = (connect("x"), connect(&"x".repeat(4096)));

    let said = failed(|_| Version::After.say(hello(2)), list);
    assert_eq!(
        said,
        "the gateway speaks version 2 of the protocol, this program version 1: update the older one"
    );

    let words = "this gateway speaks version 2 of the protocol (nl2), not nl1; update the older program";
    let no = move |_: Option<&Message>| {
        let no =
            json!({ "type": "refused", "code": "unsupported_version", "reason": words, "versions": [2, 3] });
        vec![no.to_string()]
    };
    assert_eq!(failed(no, list), words);
    assert_eq!(failed(no, &in_head), words);

    let moved = |heard: Option<&Message>| match heard {
        None => Version::After.say(hello(1)),
        _ => {
            let to = "gw2.example";
            Version::After
                .say(json!({ "type": "goodbye", "code": "moved", "reason": "ask gw2.example", "to": to }))
        }
    };
    assert_eq!(failed(moved, list), "ask gw2.example");

    let later = |heard: Option<&Message>| match heard {
        Some(Message::Open(_)) => vec![LATER.to_owned()],
        heard => gateway(Version::After)(heard),
    };
    let said = failed(later, &in_message);
    assert!(said.contains(UNKNOWN), "{said}");

    let loud = |heard: Option<&Message>| match heard {
        Some(Message::Open(open)) => {
            let no =
                json!({ "type": "refused", "session": open.session, "code": "too_loud", "reason": "hush" });
            vec![Version::After.write(no)]
        }
        heard => gateway(Version::After)(heard),
    };
    assert_eq!(failed(loud, &in_head), "hush");
    assert_eq!(failed(loud, &in_message), "hush");
}
