//! What tokens must withstand at a running gateway: each kind in its role, whatever the secret; nothing altered,
//! and no answer that tells what was wrong.
#![expect(clippy::unwrap_used, reason = "a test")]

mod kit;
#[path = "kit/peer.rs"]
mod peer;
#[path = "kit/answer.rs"]
mod without;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::{hkdf, hmac};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use kit::SECRET;
use narrowlink_dataplane::{peer::PeerLink, run::worker::run_alone};
use narrowlink_proto::{
    id::{LaneId, Uid},
    limits::Limits,
    message::Channel,
    token::{Claims, Keys, Kind, PublishProtocol, Published, Services},
    upgrade::{Framing, LaneProof, Protocol, Request, Sight, Way, encode_request},
};
use peer::Peer;
use without::undated;

const PATIENCE: Duration = Duration::from_secs(30);
/// How long a login that fails takes at least, whatever it fails by.
const REFUSED_AFTER: Duration = Duration::from_millis(25);
const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;
/// [2, 0, 2, 3, ..] is the published example's; the others read the same from both ends, or are all alike.
const SECRETS: [&[u8]; 5] = [&[2, 0, 2, 3, 0, 8, 1, 8], b"abccba", &[0; 64], &[7], &[1, 2, 3, 2, 1]];

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn claims(kind: Kind) -> Claims {
    let service = Published {
        host: "a.example".to_owned(),
        port: 0,
        path: String::new(),
        addr: ("127.0.0.1".to_owned(), 80),
        protocol: PublishProtocol::Http,
    };
    let connect = (kind == Kind::AgentPublish).then(|| Services::new(vec![service]).unwrap());
    Claims { connect, ..Claims::new(kind, Uid::from_u128(1), "home", now() + 3600, "t1") }
}

/// A request for a role.
fn ask_for(protocol: Protocol, token: &str, lane: Option<LaneProof>) -> Vec<u8> {
    encode_request(&Request {
        protocol,
        token: token.to_owned(),
        key: [7; 16],
        open: None,
        lane,
        host: "gw.example".to_owned(),
        origin: None,
        way: Way::seen(Sight::default()),
    })
}

/// Those of a gateway that may be asked with bad tokens as often as a test likes.
fn patient() -> Limits {
    let many = NonZeroU32::MAX;
    Limits {
        strangers_per_source_per_s: many,
        strangers_per_source_burst: many,
        failed_logins_per_min: many,
        ..Limits::default()
    }
}

/// The head of the answer, and all that follows where the gateway closes.
fn answer(addr: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut got = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let bytes = stream.read(&mut buf).unwrap();
        got.extend_from_slice(&buf[..bytes]);
        let taken = got.starts_with(b"HTTP/1.1 101") && got.windows(4).any(|end| end == b"\r\n\r\n");
        if bytes == 0 || taken {
            return undated(&String::from_utf8_lossy(&got));
        }
    }
}

fn is_taken(addr: SocketAddr, request: &[u8]) -> bool {
    answer(addr, request).starts_with("HTTP/1.1 101 ")
}

fn stream_of(token: &str) -> Vec<u8> {
    ask_for(Protocol { channel: Channel::Stream, framing: Framing::Framed }, token, None)
}

/// A lane's proof by somebody who has the link's secret.
fn prove(link: &PeerLink) -> LaneProof {
    let mut id = [0; 32];
    getrandom::fill(&mut id).unwrap();
    let lane = LaneId::from_bytes(id);
    LaneProof { link: link.link, lane, proof: link.secret.prove_lane(&link.link, &lane) }
}

#[test]
fn each_kind_of_token_works_in_exactly_its_role_whatever_the_secret() {
    let (mut asked, mut taken) = (0, 0);
    for secret in SECRETS {
        let gateway = kit::start_with(secret, 1, patient());
        let addr = gateway.addresses()[0];
        let agent = Peer::new(addr, secret, claims(Kind::Agent));
        run_alone(false, |_| async {
            // A link that stands, so that a lane is refused for nothing but its token.
            let link = agent.join().await.unwrap();
            for kind in Kind::ALL {
                let token = Keys::new(secret).sign(&claims(kind)).unwrap();
                for channel in [Channel::Link, Channel::Lane, Channel::Stream] {
                    for framing in [Framing::Framed, Framing::Raw] {
                        let expected = match (kind, channel) {
                            // A link's messages are framed.
                            (Kind::Client | Kind::Agent, Channel::Link) => framing == Framing::Framed,
                            (Kind::Agent, Channel::Lane) | (Kind::Client, Channel::Stream) => true,
                            _ => false,
                        };
                        let lane = (channel == Channel::Lane).then(|| prove(&link));
                        let got = is_taken(addr, &ask_for(Protocol { channel, framing }, &token, lane));
                        assert_eq!(got, expected, "{kind:?} as {channel:?} {framing:?}, secret {secret:?}");
                        asked += 1;
                        taken += usize::from(got);
                    }
                }
            }
            link.close();
        })
        .unwrap();
        assert!(gateway.stop(PATIENCE));
    }
    println!("kinds x roles x framings x secrets: {asked} asked, {taken} taken, each as it should be");
    assert_eq!((asked, taken), (3 * 3 * 2 * 5, 6 * 5));
}

#[test]
fn no_altered_token_is_taken() {
    const FLIPS: usize = 2_000;
    const THREADS: usize = 16;
    let gateway = kit::start(1, patient());
    let addr = gateway.addresses()[0];
    let good: Vec<_> = [Kind::Client, Kind::Agent]
        .iter()
        .map(|kind| Keys::new(&SECRET).sign(&claims(*kind)).unwrap())
        .collect();
    let link = Protocol { channel: Channel::Link, framing: Framing::Framed };
    let next = AtomicUsize::new(0);
    let taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= FLIPS {
                        break;
                    }
                    let mut token = good[n % 2].clone().into_bytes();
                    // Every place in turn, and every bit of it: 7 and the lengths have no divisor in common.
                    let at = n % token.len();
                    token[at] ^= 1 << (n % 7);
                    let request = ask_for(link, &String::from_utf8(token).unwrap(), None);
                    taken.fetch_add(usize::from(is_taken(addr, &request)), Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} of {FLIPS} flipped tokens taken", taken.load(Ordering::Relaxed));
    assert_eq!(taken.into_inner(), 0);
    assert!(good.iter().all(|token| is_taken(addr, &ask_for(link, token, None))));
    assert!(gateway.stop(PATIENCE));
}

/// Signs whatever it is given, as only somebody with the secret can; not with the product's own code.
fn sign(header: &str, body: &str, kind: Kind) -> String {
    let mut key = [0; 32];
    let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, b"narrowlink token 1").extract(&SECRET);
    let info = [kind.name().as_bytes()];
    pseudorandom.expand(&info, hkdf::HKDF_SHA256).unwrap().fill(&mut key).unwrap();
    let message = [header, body].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Tokens that no client's stream is given for, by what is wrong with them.
fn bad_tokens() -> Vec<(String, String)> {
    let good = serde_json::to_string(&claims(Kind::Client)).unwrap();
    let token = sign(HEADER, &good, Kind::Client);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let client = |claims: &Claims| Keys::new(&SECRET).sign(claims).unwrap();
    let exp = format!(r#""exp":{}"#, claims(Kind::Client).exp);
    let with = |exp_says: &str| sign(HEADER, &good.replace(&exp, exp_says), Kind::Client);
    let header = |header: &str| sign(header, &good, Kind::Client);
    let stolen = Keys::new(&[8; 32]).sign(&claims(Kind::Client)).unwrap();
    let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#) + "." + &URL_SAFE_NO_PAD.encode(&good) + ".";
    let last = char::from(signature.bytes().last().unwrap() + 1);
    let nested = good.replacen('{', &format!(r#"{{"x":{}{},"#, "[".repeat(1_500), "]".repeat(1_500)), 1);
    [
        ("another secret", stolen),
        ("alg none, no signature", unsigned),
        ("alg none, signed", header(r#"{"alg":"none"}"#)),
        ("alg HS384", header(r#"{"alg":"HS384"}"#)),
        ("alg RS256", header(r#"{"alg":"RS256"}"#)),
        ("alg twice", header(r#"{"alg":"none","alg":"HS256"}"#)),
        ("no alg", header(r#"{"typ":"JWT"}"#)),
        ("jwk", header(r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}"#)),
        ("jku", header(r#"{"alg":"HS256","jku":"https://evil.example/"}"#)),
        ("crit", header(r#"{"alg":"HS256","crit":["exp"]}"#)),
        ("kid", header(r#"{"alg":"HS256","kid":"../../dev/null"}"#)),
        ("b64", header(r#"{"alg":"HS256","b64":false}"#)),
        ("padding", format!("{message}.{}", URL_SAFE.encode(&raw))),
        ("other alphabet", format!("{message}.{}+", &STANDARD_NO_PAD.encode(&raw)[..42])),
        ("trailing bits", format!("{message}.{}{last}", &signature[..42])),
        ("short signature", format!("{message}.{}", &signature[..40])),
        ("no signature", message.to_owned()),
        ("four parts", format!("{token}.{signature}")),
        ("no exp", with(r#""x":1"#)),
        ("exp in milliseconds", with(r#""exp":1800000000000"#)),
        ("exp of 20 digits", with(r#""exp":18446744073709551615"#)),
        ("exp as text", with(r#""exp":"2027""#)),
        ("exp below 0", with(r#""exp":-1"#)),
        ("exp twice", with(&format!("{exp},{exp}"))),
        ("expired", client(&Claims { exp: now() - 60, ..claims(Kind::Client) })),
        ("not yet", client(&Claims { nbf: Some(now() + 60), ..claims(Kind::Client) })),
        ("too long", sign(HEADER, &"x".repeat(7_000), Kind::Client)),
        ("claims too long", sign(HEADER, &format!("{good}{}", " ".repeat(4_096)), Kind::Client)),
        ("deep nesting", sign(HEADER, &nested, Kind::Client)),
        ("claims of no JSON", sign(HEADER, "{", Kind::Client)),
        ("an agent's", client(&claims(Kind::Agent))),
        ("a publisher's", client(&claims(Kind::AgentPublish))),
        ("an agent's claims, a client's key", {
            sign(HEADER, &serde_json::to_string(&claims(Kind::Agent)).unwrap(), Kind::Client)
        }),
        ("rubbish", "rubbish".to_owned()),
    ]
    .map(|(what, token)| (what.to_owned(), token))
    .to_vec()
}

#[test]
fn every_cause_has_the_same_answer_after_the_same_time() {
    const ROUNDS: usize = 5;
    let gateway = kit::start(1, patient());
    let addr = gateway.addresses()[0];
    assert!(is_taken(
        addr,
        &stream_of(&sign(HEADER, &serde_json::to_string(&claims(Kind::Client)).unwrap(), Kind::Client))
    ));
    let bad = bad_tokens();
    let mut answers = BTreeMap::<String, Vec<&str>>::new();
    let mut soonest = BTreeMap::<&str, Duration>::new();
    for _ in 0..ROUNDS {
        for (what, token) in &bad {
            let since = Instant::now();
            answers.entry(answer(addr, &stream_of(token))).or_default().push(what);
            let took = since.elapsed();
            soonest.entry(what).and_modify(|least| *least = took.min(*least)).or_insert(took);
        }
    }
    assert_eq!(answers.len(), 1, "{answers:#?}");
    let (only, _) = answers.first_key_value().unwrap();
    assert!(only.starts_with("HTTP/1.1 401 ") && only.contains("unauthenticated"), "{only}");
    // What was wrong is found in microseconds; nobody hears when. What else the machine does only adds time, so that
    // a cause which always takes longer shows in its least.
    let least = soonest.values().min().unwrap();
    let last = soonest.values().max().unwrap();
    println!(
        "{} causes, {} answers, all the same, the soonest of each after {least:?} to {last:?}",
        bad.len(),
        bad.len() * ROUNDS
    );
    assert!(*least >= REFUSED_AFTER, "{soonest:?}");
    assert!(*last < REFUSED_AFTER * 4, "{soonest:?}");
    assert!(gateway.stop(PATIENCE));
}

#[test]
fn a_token_in_a_query_is_none() {
    let gateway = kit::start(1, patient());
    let addr = gateway.addresses()[0];
    let token = Keys::new(&SECRET).sign(&claims(Kind::Client)).unwrap();
    let upgrade = |target: &str| {
        format!(
            "GET {target} HTTP/1.1\r\nHost: gw.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: nl1.stream.framed\r\n\r\n"
        )
    };
    let unknown = answer(addr, upgrade("/no/such/page").as_bytes());
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
    for target in ["/?token=", "/ws?token=", "/?access_token=", "/?authorization=Bearer%20", "/ws#"] {
        let target = format!("{target}{token}");
        let got = answer(addr, upgrade(&target).as_bytes());
        assert!(got == unknown || got.starts_with("HTTP/1.1 400 "), "{target}: {got}");
    }
    assert!(gateway.stop(PATIENCE));
}
