//! Users are apart: no byte that one of them gets says anything of another, and what isn't there and what isn't
//! theirs are the same answer.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use narrowlink_client::{Forward, Plan, config::Config, start_forward};
use narrowlink_loadtest::{
    lab::{Lab, agent_config, client_config},
    site::{Transport, now},
};
use narrowlink_proto::{
    id::{LaneId, LinkId, LinkSecret, SessionId, Uid},
    message::{Channel, Open},
    target::Target,
    token::{Claims, Kind},
    upgrade::{Framing, LaneProof, Protocol, Request, Way, encode_request},
};

use crate::{alone, count, kit::PATIENCE, start_echo, visitor::connect};

const WS: Transport = Transport { tls: false, raw: false };

/// A way to the gateway that keeps every byte which comes from there.
struct Tap {
    addr: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn start(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let keep = heard.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (near, far) = (Arc::new(near), Arc::new(TcpStream::connect(gateway).unwrap()));
                let (up, down, keep) = ((near.clone(), far.clone()), (far, near), keep.clone());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut &*up.0, &mut &*up.1);
                    let _ = up.1.shutdown(Shutdown::Write);
                });
                thread::spawn(move || {
                    let mut buf = vec![0; 64 * 1024];
                    while let Ok(bytes @ 1..) = (&*down.0).read(&mut buf) {
                        keep.lock().unwrap().extend_from_slice(&buf[..bytes]);
                        if (&*down.1).write_all(&buf[..bytes]).is_err() {
                            break;
                        }
                    }
                    let _ = down.1.shutdown(Shutdown::Write);
                });
            }
        });
        Self { addr, heard }
    }

    fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

/// Somebody with an agent or two and a client, all of them behind a tap.
struct User {
    uid: Uid,
    mark: &'static str,
    tap: Tap,
}

impl User {
    fn new(lab: &Lab, uid: Uid, mark: &'static str) -> Self {
        Self { uid, mark, tap: Tap::start(lab.entry(WS)) }
    }

    fn token(&self, lab: &Lab, kind: Kind, name: &str) -> String {
        let jti = format!("{}-jti-{name}", self.mark);
        lab.site.sign(&Claims::new(kind, self.uid, name, now() + 3_600, &jti)).unwrap()
    }

    fn agent(&self, lab: &Lab, name: &str) -> narrowlink_agent::Agent {
        let state = lab.site.dir().join(format!("state-{}-{name}", self.mark));
        let extra = format!("state_dir: \"{}\"\n", state.display());
        let token = self.token(lab, Kind::Agent, name);
        let file = format!("agent-{}-{name}.yaml", self.mark);
        let path = lab.site.endpoint_yaml(&file, self.tap.addr, WS, &token, &extra).unwrap();
        let agent = narrowlink_agent::start(agent_config(&path).unwrap()).unwrap();
        agent.wait_ready(PATIENCE).unwrap();
        agent
    }

    fn client(&self, lab: &Lab) -> Config {
        let name = format!("{}-laptop", self.mark);
        let token = self.token(lab, Kind::Client, &name);
        let path = lab.site.endpoint_yaml(&format!("{name}.yaml"), self.tap.addr, WS, &token, "").unwrap();
        client_config(&path).unwrap()
    }

    fn forward(&self, lab: &Lab, agent: &str, target: SocketAddr) -> Forward {
        let listen = "127.0.0.1:0".parse().unwrap();
        let target = Target::Tcp { host: target.ip().to_string(), port: target.port() };
        start_forward(&self.client(lab), Plan { agent: agent.to_owned(), target, listen }).unwrap()
    }

    /// Everything that people do: sessions with bytes in them, targets that aren't there, agents that aren't, lists.
    fn live(&self, lab: &Lab, agent: &str, target: SocketAddr) {
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let forwards = [(agent, target), (agent, nowhere), ("nobody", target)]
            .map(|(agent, target)| self.forward(lab, agent, target));
        for _ in 0..10 {
            let mut stream = connect(forwards[0].local_addr);
            let said = format!("{}-payload", self.mark);
            stream.write_all(said.as_bytes()).unwrap();
            let mut answer = vec![0; said.len()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, said.as_bytes());
        }
        for forward in &forwards[1..] {
            let mut stream = connect(forward.local_addr);
            assert!(!matches!(stream.read(&mut [0; 1]), Ok(1..)));
        }
        let agents = narrowlink_client::agents(&self.client(lab)).unwrap();
        assert!(agents.iter().any(|one| one.name == agent));
        forwards.into_iter().for_each(Forward::stop);
    }
}

/// All the ways in which bytes may stand in others: as they are, as hexadecimal digits, in base64 at any offset.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![bytes.to_vec(), hex.into_bytes()];
    for offset in 0..3 {
        let padded = [&[0; 2][..offset], bytes].concat();
        // Only whole groups of three bytes that are all ours look the same everywhere.
        let (start, end) = (offset.div_ceil(3) * 4, padded.len() / 3 * 4);
        for encoded in [STANDARD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
            forms.push(encoded.as_bytes()[start..end].to_vec());
        }
    }
    assert!(forms.iter().all(|form| form.len() >= 4), "too short to be searched for");
    forms
}

fn is_in(record: &[u8], bytes: &[u8]) -> bool {
    forms(bytes).iter().any(|form| record.windows(form.len()).any(|window| window == form))
}

/// The values of a JSON field in what was heard: ids are 43 characters of base64url.
fn ids(record: &[u8], field: &str) -> Vec<String> {
    let key = format!("\"{field}\":\"");
    let starts = record.windows(key.len()).enumerate().filter(|(_, window)| *window == key.as_bytes());
    let ids = starts.filter_map(|(at, _)| record.get(at + key.len()..)?.get(..43));
    ids.map(|id| String::from_utf8_lossy(id).into_owned()).collect()
}

#[test]
fn no_byte_of_one_user_reaches_another() {
    let _alone = alone();
    let lab = Lab::start(2).unwrap();
    let target = start_echo();
    let alpha = User::new(&lab, Uid::from_u128(0xa1fa_a1fa_a1fa_a1fa_a1fa_a1fa_a1fa_a1fa), "alpha");
    let bravo = User::new(&lab, Uid::from_u128(0xb0b0_b0b0_b0b0_b0b0_b0b0_b0b0_b0b0_b0b0), "bravo");
    let rounds = count("NARROWLINK_SPACES", 1);
    for _ in 0..rounds {
        // Both have an agent of this name, and one more that comes and goes.
        let agents = [&alpha, &bravo].map(|user| user.agent(&lab, "home"));
        thread::scope(|scope| {
            for user in [&alpha, &bravo] {
                let lab = &lab;
                scope.spawn(move || {
                    let other = format!("{}-office", user.mark);
                    let office = user.agent(lab, &other);
                    user.live(lab, "home", target);
                    user.live(lab, &other, target);
                    office.stop();
                });
            }
        });
        agents.into_iter().for_each(narrowlink_agent::Agent::stop);
    }
    let mut searched = 0;
    for (user, other) in [(&alpha, &bravo), (&bravo, &alpha)] {
        let (heard, others) = (user.tap.heard(), other.tap.heard());
        let mut secrets: Vec<Vec<u8>> = vec![other.mark.into(), other.uid.to_string().into()];
        let found = ["session", "link", "secret"].map(|field| ids(&others, field));
        assert!(found.iter().all(|ids| !ids.is_empty()), "{found:?}");
        secrets.extend(found.iter().flatten().map(|id| id.clone().into_bytes()));
        secrets.extend(found.iter().flatten().map(|id| URL_SAFE_NO_PAD.decode(id).unwrap()));
        secrets.sort_unstable();
        secrets.dedup();
        // The search finds what is there.
        assert!(is_in(&heard, user.mark.as_bytes()) && is_in(&others, other.mark.as_bytes()));
        for secret in &secrets {
            assert!(!is_in(&heard, secret), "{} has heard {:?}", user.mark, String::from_utf8_lossy(secret));
        }
        searched += secrets.len();
        println!(
            "{} bytes that {} has heard: nothing of the {} names and ids of {}",
            heard.len(),
            user.mark,
            secrets.len(),
            other.mark
        );
    }
    assert!(searched > 40, "{searched}");
}

/// What the gateway answers to a request that it refuses, and how soon.
fn refusal(gateway: SocketAddr, request: &[u8]) -> (String, Duration) {
    let mut stream = connect(gateway);
    let since = Instant::now();
    stream.write_all(request).unwrap();
    let mut answer = vec![0; 4096];
    let bytes = stream.read(&mut answer).unwrap();
    let took = since.elapsed();
    let answer = String::from_utf8_lossy(&answer[..bytes]).into_owned();
    assert!(!answer.starts_with("HTTP/1.1 101 "), "{answer}");
    // The header says what the body says, and hides it from the replacing of names.
    let header = answer.lines().find_map(|line| line.strip_prefix("NL-Refused: ")).unwrap();
    let body = URL_SAFE_NO_PAD.decode(header).unwrap();
    assert!(answer.ends_with(&format!("\r\n\r\n{}\n", String::from_utf8(body).unwrap())), "{answer}");
    // Nor does it matter when it was given.
    let undated: String = answer.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect();
    (undated.replace(header, "THE BODY"), took)
}

fn request(channel: Channel, token: &str, open: Option<Open>, lane: Option<LaneProof>) -> Vec<u8> {
    encode_request(&Request {
        protocol: Protocol { channel, framing: Framing::Framed },
        token: token.to_owned(),
        key: [1; 16],
        open,
        lane,
        host: "localhost".to_owned(),
        origin: None,
        way: Way::default(),
    })
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

fn open(agent: &str, session: SessionId) -> Open {
    let target = Target::Tcp { host: "127.0.0.1".to_owned(), port: 9 };
    Open { session, agent: agent.to_owned(), target, e2ee: None }
}

/// The middle one.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn what_is_not_there_and_what_is_not_ones_own_are_the_same_answer_in_the_same_time() {
    let _alone = alone();
    let lab = Lab::start(2).unwrap();
    let alpha = User::new(&lab, Uid::from_u128(1), "alpha");
    let bravo = User::new(&lab, Uid::from_u128(2), "bravo");
    let agents = [alpha.agent(&lab, "mine"), bravo.agent(&lab, "bravos-home")];
    let bravos = bravo.forward(&lab, "bravos-home", start_echo());
    let mut session = connect(bravos.local_addr);
    session.write_all(b"x").unwrap();
    session.read_exact(&mut [0; 1]).unwrap();

    let gateway = lab.entry(WS);
    let client = alpha.token(&lab, Kind::Client, "laptop");
    let ask = |agent: &str| {
        let session = SessionId::from_bytes(random());
        let (answer, took) =
            refusal(gateway, &request(Channel::Stream, &client, Some(open(agent, session)), None));
        (answer.replace(agent, "AGENT").replace(&session.to_string(), "SESSION"), took)
    };
    let rounds = usize::try_from(count("NARROWLINK_ANSWERS", 200)).unwrap();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let (absent, foreign) = (ask("nobody-home"), ask("bravos-home"));
        assert_eq!(absent.0, foreign.0);
        assert!(absent.0.contains("agent_not_found"), "{}", absent.0);
        times[0].push(absent.1);
        times[1].push(foreign.1);
    }
    let [absent, foreign] = times.each_mut().map(|times| median(times));
    println!(
        "{rounds} times each, medians: an agent that isn't there {absent:?}, another user's {foreign:?}"
    );
    // Classes, not microseconds: what waits for something is ten times slower than what doesn't.
    assert!(absent < foreign * 2 && foreign < absent * 2, "{absent:?} {foreign:?}");

    // A link of another user's is as good as none, even with all of its secrets.
    let heard = bravo.tap.heard();
    let bytes =
        |field| -> [u8; 32] { URL_SAFE_NO_PAD.decode(&ids(&heard, field)[0]).unwrap().try_into().unwrap() };
    let (link, secret) = (LinkId::from_bytes(bytes("link")), LinkSecret::from_bytes(bytes("secret")));
    let token = alpha.token(&lab, Kind::Agent, "mine");
    let offer = |link: LinkId, secret: &LinkSecret| {
        let lane = LaneId::from_bytes(random());
        let lane = LaneProof { link, lane, proof: secret.prove_lane(&link, &lane) };
        refusal(gateway, &request(Channel::Lane, &token, None, Some(lane))).0
    };
    let theirs = offer(link, &secret);
    let nobodys = offer(LinkId::from_bytes(random()), &LinkSecret::from_bytes(random()));
    assert_eq!(theirs, nobodys);

    // An id that another user has used is not used up: nobody learns that it was.
    let used = SessionId::from_bytes(bytes("session"));
    let fresh = SessionId::from_bytes(random());
    let [used, fresh] = [used, fresh].map(|id| {
        let (answer, _) = refusal(gateway, &request(Channel::Stream, &client, Some(open("mine", id)), None));
        answer.replace(&id.to_string(), "SESSION")
    });
    assert_eq!(used, fresh);
    assert!(used.contains("target_refused"), "{used}");
    drop(session);
    bravos.stop();
    agents.into_iter().for_each(narrowlink_agent::Agent::stop);
}
