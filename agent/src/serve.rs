//! Role: one dial of the gateway: may it, resolve, connect, answer, relay.
//! Invariants: only addresses that the client's rules and the agent's own both permit are dialled, each
//! checked as it is dialled · the answer comes before the gateway stops waiting · a session ends for the
//! target as it ended for the client: cleanly or with a reset.
//! See: ARCHITECTURE.md "Open".

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_dataplane::{
    net::{
        dial::{Unconnected, connect_first},
        plain::Plain,
        resolve::{Asker, ResolveError, resolve},
    },
    relay::{Traffic, relay},
    run::{
        descriptors::{self, Place},
        timer::timeout,
    },
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, ConnError},
        end::End,
        linger::reset_session,
        measure::far_end,
        settle::settle,
        watch::gone,
    },
};
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused, Side, Why},
    measure::{Measure, Station},
    message::{Dial, Message, Origin},
    target::{Destination, Target, Transport},
    upgrade::Framing,
};

use crate::{Shared, rules::Rules};

/// For a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// For name and connection together: the gateway waits 10 s.
const DIAL_TIMEOUT: Duration = Duration::from_secs(8);
/// For a message to a gateway that may have stopped reading.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one dial; gives the lane back when it can serve another. `place` is the target's descriptor.
pub(crate) async fn serve(shared: &Shared, conn: Conn, dial: &Dial, place: Option<Place>) -> Option<Conn> {
    let session = dial.session;
    match dial_for(&conn, &shared.config.rules, dial, place).await {
        Ok(Ok(socket)) => {
            send(&conn, &Message::Dialled { session, e2ee: None }).await?;
            join(shared, conn, socket.into(), dial).await
        }
        Ok(Err(refused)) => {
            tracing::debug!(?session, target = %dial.target, "refused: {}", refused.reason);
            refuse(conn, refused.of(session)).await
        }
        Err(e) => {
            tracing::debug!(?session, target = %dial.target, "given up while dialling: {e}");
            None
        }
    }
}

/// Dials for a gateway that may go away meanwhile.
async fn dial_for(
    conn: &Conn,
    rules: &Rules,
    dial: &Dial,
    place: Option<Place>,
) -> Result<Result<Plain, Refused>, ConnError> {
    let left = async {
        match conn.attend().await {
            // What comes early stays where it is: it is for the target, or a word that whoever reads
            // next will judge.
            Ok(_) => {
                gone(conn, Side::Client).await;
                Err(ConnError::Truncated)
            }
            Err(e) => Err(e),
        }
    };
    let dialling = async { Ok(dial_target(rules, dial, place).await) };
    match conn.framing() {
        Framing::Framed => future::or(left, dialling).await,
        // Nothing is read ahead on a raw lane: the session's bytes come right behind the dial.
        Framing::Raw => dialling.await,
    }
}

/// Joins a lane and its target until the session has ended.
async fn join(shared: &Shared, conn: Conn, target: Wire, dial: &Dial) -> Option<Conn> {
    let session = dial.session;
    tracing::debug!(?session, origin = ?dial.origin, target = %dial.target, "session");
    let traffic = Traffic::default();
    let moving = relay(End::of(&conn, session), End::raw(&target), &traffic);
    let ended = future::or(moving, cut_off(shared)).await;
    let (up_bytes, down_bytes) = (traffic.up_bytes.get(), traffic.down_bytes.get());
    match &ended {
        Ok(()) => tracing::debug!(?session, up_bytes, down_bytes, "session finished"),
        Err(ended) => tracing::debug!(?session, up_bytes, down_bytes, "session reset: {ended}"),
    }
    match (ended, conn.framing()) {
        (Ok(()), Framing::Framed) => {
            target.close_gently();
            let settled = future::or(settle(&conn, session, Side::Client), cut_off(shared)).await;
            settled.is_ok().then_some(conn)
        }
        (Ok(()), Framing::Raw) => {
            target.close_gently();
            conn.close_gently();
            None
        }
        (Err(ended), _) => {
            Box::pin(reset_session(conn, target, ended)).await;
            None
        }
    }
}

/// Returns when sessions have to end because the agent stops.
async fn cut_off(shared: &Shared) -> Result<(), Ended> {
    shared.cut.wait().await;
    Err(Ended { by: Side::Here, why: Why::Shutdown })
}

/// A refusal ends a raw lane; a framed one waits for its next dial.
async fn refuse(conn: Conn, refused: Refused) -> Option<Conn> {
    send(&conn, &Message::Refused(refused)).await?;
    match conn.framing() {
        Framing::Framed => {
            // The next dial may be there, and the one behind it: no other lane or gateway waits until there is none.
            conn.has_asked();
            Some(conn)
        }
        Framing::Raw => {
            conn.close_gently();
            None
        }
    }
}

async fn send(conn: &Conn, message: &Message) -> Option<()> {
    timeout(SEND_TIMEOUT, conn.send(message)).await.ok()?.ok()
}

async fn dial_target(rules: &Rules, dial: &Dial, place: Option<Place>) -> Result<Plain, Refused> {
    let started = Instant::now();
    let client = match &dial.origin {
        Origin::Client { name, .. } => name,
        Origin::Visitor { .. } => {
            let reason = format!("this agent publishes nothing, so also not {}", dial.target);
            return Err(Refused::new(RefusalCode::DeniedByAgent, reason));
        }
        Origin::Unknown { kind } => {
            let reason = format!("this agent does not know how to dial for a {kind}; update it");
            return Err(Refused::new(RefusalCode::Unsupported, reason));
        }
    };
    if dial.e2ee.is_some() {
        let reason = "this agent has no end-to-end encryption";
        return Err(Refused::new(RefusalCode::Unsupported, reason));
    }
    if let Target::Measure(Measure { at: Station::Agent, how }) = dial.target {
        return Ok(far_end(how));
    }
    let Target::Tcp { port, .. } = dial.target else {
        let reason = format!("this agent dials TCP only, not {}", dial.target);
        return Err(Refused::new(RefusalCode::Unsupported, reason));
    };
    let asked = dial.target.destination().map_err(|e| {
        Refused::new(RefusalCode::TargetUnresolvable, format!("{} names no place: {e}", dial.target))
    })?;
    let addrs = match &asked {
        Destination::Ip(ip) => vec![SocketAddr::new(*ip, port)],
        Destination::Name(name) => {
            let asker = Asker::Client(client.as_str().into());
            // A look-up takes descriptors for a moment.
            let _room = descriptors::lend();
            resolve(asker, name, port, RESOLVE_TIMEOUT).await.map_err(unresolvable)?
        }
        Destination::Unix(_) => Vec::new(),
    };
    let addrs = permitted(rules, dial, &asked, addrs)?;
    let left = DIAL_TIMEOUT.saturating_sub(started.elapsed());
    drop(place);
    connect_first(&asked.to_string(), &addrs, left).await.map_err(|e| unconnected(&e, &asked, port))
}

/// Those of a target's addresses that may be dialled, in their order.
fn permitted(
    rules: &Rules,
    dial: &Dial,
    asked: &Destination,
    addrs: Vec<SocketAddr>,
) -> Result<Vec<SocketAddr>, Refused> {
    let mut refused = None;
    let mut permitted = Vec::new();
    for addr in addrs {
        let (ip, port) = (addr.ip().to_canonical(), addr.port());
        let by_policy = dial.rules.as_ref();
        if by_policy.is_some_and(|rules| !rules.permit_addr(ip, port, Transport::Tcp).allowed()) {
            let reason =
                format!("the policy of this token does not allow {ip} port {port}, which is {asked}");
            refused.get_or_insert(Refused::new(RefusalCode::Policy, reason));
        } else if let Err(denied) = rules.permit(asked, ip, port) {
            let reason = format!("this agent does not dial {ip} port {port}: {denied}");
            tracing::info!(target = %dial.target, "denied by this agent's own rules: {denied}");
            refused = Some(Refused::new(RefusalCode::DeniedByAgent, reason));
        } else {
            permitted.push(SocketAddr::new(ip, port));
        }
    }
    match refused {
        Some(refused) if permitted.is_empty() => Err(refused),
        _ => Ok(permitted),
    }
}

fn unresolvable(e: ResolveError) -> Refused {
    let code = match &e {
        ResolveError::Busy => RefusalCode::Limited,
        ResolveError::Failed { .. } | ResolveError::TimedOut { .. } => RefusalCode::TargetUnresolvable,
    };
    Refused::new(code, format!("{e}, as the agent sees it"))
}

/// Of several addresses' errors the one that says most has the word, and all are named.
fn unconnected(e: &Unconnected, asked: &Destination, port: u16) -> Refused {
    use io::ErrorKind as Kind;
    let place = match asked {
        Destination::Ip(ip) => SocketAddr::new(*ip, port).to_string(),
        name => format!("{name}:{port}"),
    };
    let tried = if e.addrs().count() > 1 { format!(" ({e})") } else { String::new() };
    let (code, reason) = match e.telling() {
        Some(e) if descriptors::ran_out(e) => {
            (RefusalCode::Limited, format!("the agent can't open another connection: {e}"))
        }
        Some(e) if e.kind() == Kind::ConnectionRefused => (
            RefusalCode::TargetRefused,
            format!("{place} refused the connection; is the service running?{tried}"),
        ),
        Some(e) if e.kind() != Kind::TimedOut => {
            let why = if tried.is_empty() { format!(": {e}") } else { tried };
            (RefusalCode::TargetUnreachable, format!("{place} can't be reached from the agent{why}"))
        }
        _ => (
            RefusalCode::TargetTimeout,
            format!("{place} did not answer the agent; is the host up, or a firewall between?{tried}"),
        ),
    };
    Refused::new(code, reason)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::zip;
    use narrowlink_dataplane::tunnel::settle::settled;
    use narrowlink_proto::{
        message::Speaker,
        policy::{Cidr, Grant, Item, Policies, Ports, Protocol},
        token::ServiceName,
    };

    use super::*;
    use crate::fixture::{
        self, Fixture, Port, dial, exchange, heard, id, read_all, run, send_data, tunnel_ends,
    };

    fn dial_of(target: Target) -> Dial {
        dial(id(1), target)
    }

    fn tcp(host: &str, port: u16) -> Dial {
        dial_of(fixture::tcp(host, port))
    }

    fn dialled(rules: Rules, dial: Dial) -> Result<(), Refused> {
        run(async move || dial_target(&rules, &dial, None).await.map(drop))
    }

    /// A port on loopback where nobody listens, for as long as the socket lives.
    fn deaf() -> (std::net::UdpSocket, u16) {
        let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        (held, port)
    }

    #[test]
    fn a_target_that_listens_is_reached_by_address_and_by_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "127.1", "0x7f000001", "::ffff:127.0.0.1", "localhost", "LOCALHOST."] {
            assert_eq!(dialled(Rules::default(), tcp(host, port)), Ok(()), "{host}");
        }
    }

    #[test]
    fn what_is_in_the_way_has_its_code_and_a_sentence() {
        let (_held, port) = deaf();
        let udp = dial_of(Target::Udp { host: "127.0.0.1".to_owned(), port });
        let sealed = Dial { e2ee: Some("x".to_owned()), ..tcp("127.0.0.1", port) };
        let guest = Dial { origin: Origin::Unknown { kind: "guest".to_owned() }, ..tcp("127.0.0.1", port) };
        let peer_addr = "192.0.2.1:1".parse().unwrap();
        let visitor = Dial { origin: Origin::Visitor { peer_addr, request: None }, ..tcp("127.0.0.1", port) };
        let name = ServiceName { host: "app.example".to_owned(), port: 0, path: String::new() };
        let published = dial_of(Target::Published(name));
        let nothing = Rules::new(Some(Vec::new()), Vec::new());
        let cases = [
            (Rules::default(), tcp("127.0.0.1", port), RefusalCode::TargetRefused, "is the service running?"),
            (Rules::default(), tcp("no-such-host.invalid", port), RefusalCode::TargetUnresolvable, "invalid"),
            (Rules::default(), tcp("a b", port), RefusalCode::TargetUnresolvable, "names no place"),
            (Rules::default(), tcp("169.254.169.254", 80), RefusalCode::DeniedByAgent, "metadata"),
            (Rules::default(), tcp("0.0.0.0", port), RefusalCode::DeniedByAgent, "unspecified"),
            (nothing, tcp("localhost", port), RefusalCode::DeniedByAgent, "allow list"),
            (Rules::default(), udp, RefusalCode::Unsupported, "TCP only"),
            (Rules::default(), sealed, RefusalCode::Unsupported, "end-to-end"),
            (Rules::default(), guest, RefusalCode::Unsupported, "for a guest; update it"),
            (Rules::default(), visitor, RefusalCode::DeniedByAgent, "publishes nothing"),
            (Rules::default(), published, RefusalCode::Unsupported, "published://app.example"),
        ];
        for (rules, dial, code, says) in cases {
            let target = dial.target.clone();
            let refused = dialled(rules, dial).unwrap_err();
            assert_eq!(refused.code, code, "{target}: {}", refused.reason);
            assert!(refused.reason.contains(says), "{target}: {}", refused.reason);
        }
    }

    #[test]
    fn errors_of_the_system_have_their_codes() {
        let addr: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let failed = |codes: &[i32]| {
            let tried = codes.iter().map(|code| (addr, io::Error::from_raw_os_error(*code)));
            unconnected(&tried.collect(), &Destination::parse("h").unwrap(), 1)
        };
        let code = |os| failed(&[os]).code;
        assert_eq!(code(111), RefusalCode::TargetRefused);
        assert_eq!(code(113), RefusalCode::TargetUnreachable);
        assert_eq!(code(101), RefusalCode::TargetUnreachable);
        assert_eq!(code(13), RefusalCode::TargetUnreachable);
        assert_eq!(code(110), RefusalCode::TargetTimeout);
        assert_eq!(code(24), RefusalCode::Limited);
        let told = failed(&[110, 111]);
        assert_eq!(told.code, RefusalCode::TargetRefused);
        assert_eq!(
            told.reason,
            "h:1 refused the connection; is the service running? (10.0.0.1:1: no answer, 10.0.0.1:1: connection refused)"
        );
        assert_eq!(failed(&[]).code, RefusalCode::TargetTimeout);
    }

    #[test]
    fn addresses_that_are_not_allowed_are_dropped_and_the_rest_dialled_in_order() {
        let net: Cidr = "10.0.0.0/8".parse().unwrap();
        let policies =
            Policies { permit: true, policies: vec![Item::Ip(None, net, Ports::any(), Protocol::Any)] };
        let policies = Grant::new(vec![policies]);
        let mut dial = tcp("many.lan", 22);
        dial.rules = Some(policies.address_rules("home", &dial.target));
        let asked = dial.target.destination().unwrap();
        let addrs = |ips: &[&str]| ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 22)).collect();
        let own = Rules::new(None, vec!["10.0.0.3".parse().unwrap()]);
        let all = addrs(&["192.168.0.1", "10.0.0.2", "10.0.0.3", "::ffff:10.0.0.1"]);
        assert_eq!(permitted(&own, &dial, &asked, all), Ok(addrs(&["10.0.0.2", "10.0.0.1"])));
        let code = |ips: &[&str]| permitted(&own, &dial, &asked, addrs(ips)).unwrap_err().code;
        assert_eq!(code(&["192.168.0.1"]), RefusalCode::Policy);
        assert_eq!(code(&["192.168.0.1", "10.0.0.3"]), RefusalCode::DeniedByAgent);
    }
    /// A Dial of that target is served on a lane, whose gateway's end is here.
    fn served(at: &Fixture, framing: Framing, target: Target) -> (impl Future<Output = Option<Conn>>, Conn) {
        let (ours, theirs) = tunnel_ends(framing);
        let (shared, dial) = (at.shared.clone(), dial_of(target));
        (async move { serve(&shared, ours, &dial, None).await }, theirs)
    }

    async fn expect_dialled(gateway: &Conn) {
        let said = heard(gateway).await.unwrap();
        assert!(matches!(said, Message::Dialled { session, .. } if session == id(1)), "{}", said.name());
    }

    /// How the other side sees the end of a session that was reset.
    async fn expect_reset(gateway: &Conn, words: &str) {
        let Err(ConnError::Closed { code: 4000, why }) = heard(gateway).await else { panic!("no reset") };
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn a_refusal_keeps_a_framed_lane_and_ends_a_raw_one() {
        run(async || {
            let at = Fixture::new();
            for (framing, stays) in [(Framing::Framed, true), (Framing::Raw, false)] {
                let (serving, gateway) = served(&at, framing, fixture::tcp("0.0.0.0", 1));
                let (lane, said) = zip(serving, heard(&gateway)).await;
                match said.unwrap() {
                    Message::Refused(refused) => {
                        assert_eq!(
                            (refused.session, refused.code),
                            (Some(id(1)), RefusalCode::DeniedByAgent)
                        );
                    }
                    other => panic!("{} is no refusal", other.name()),
                }
                assert_eq!(lane.is_some(), stays, "{framing:?}");
                if !stays {
                    assert_eq!(gateway.wire().read(&mut [0; 1]).await.unwrap(), 0, "a clean end behind it");
                }
            }
        });
    }

    #[test]
    fn a_session_goes_both_ways_to_its_clean_end_and_a_framed_lane_serves_again() {
        run(async || {
            let (at, target) = (Fixture::new(), Port::listen());
            for (framing, again) in [(Framing::Framed, true), (Framing::Raw, false)] {
                let (serving, gateway) = served(&at, framing, target.target());
                let using = async {
                    expect_dialled(&gateway).await;
                    let said = exchange(&gateway, id(1), b"hello").await;
                    if again {
                        settled(&gateway, id(1), Speaker::Agent, Side::Target).await.unwrap();
                    }
                    said.unwrap()
                };
                let ((lane, said), heard) = zip(zip(serving, using), target.echo()).await;
                assert_eq!((heard, said), (b"hello".to_vec(), b"hello".to_vec()));
                assert_eq!(lane.is_some(), again, "{framing:?}");
            }
        });
    }

    #[test]
    fn what_comes_with_a_dial_is_for_the_target_and_waits_for_it() {
        run(async || {
            let (at, target) = (Fixture::new(), Port::listen());
            for framing in [Framing::Framed, Framing::Raw] {
                let (serving, gateway) = served(&at, framing, target.target());
                send_data(&gateway, b"early, ").await;
                send_data(&gateway, b"and more").await;
                match framing {
                    Framing::Framed => {
                        gateway.send(&Message::Fin { session: id(1), bytes: 15 }).await.unwrap();
                    }
                    Framing::Raw => gateway.wire().finish_write().await.unwrap(),
                }
                let (_, heard) = zip(serving, target.echo()).await;
                assert_eq!(heard, b"early, and more", "{framing:?}");
                expect_dialled(&gateway).await;
            }
        });
    }

    #[test]
    fn nothing_is_dialled_for_a_gateway_that_has_left() {
        run(async || {
            let (at, target) = (Fixture::new(), Port::listen());
            let (serving, gateway) = served(&at, Framing::Framed, target.target());
            drop(gateway);
            assert!(serving.await.is_none());
            assert!(future::poll_once(target.accept()).await.is_none());
        });
    }

    #[test]
    fn a_session_that_breaks_on_one_side_is_reset_on_the_other() {
        run(async || {
            let (at, target) = (Fixture::new(), Port::listen());
            let (serving, gateway) = served(&at, Framing::Framed, target.target());
            let breaking = async {
                expect_dialled(&gateway).await;
                send_data(&gateway, b"half").await;
                let wire = target.accept().await;
                assert_eq!(wire.read(&mut [0; 8]).await.unwrap(), 4);
                drop(gateway);
                read_all(&wire).await.unwrap_err().kind()
            };
            let (lane, kind) = zip(serving, breaking).await;
            assert_eq!((lane.is_none(), kind), (true, io::ErrorKind::ConnectionReset));

            let (serving, gateway) = served(&at, Framing::Framed, target.target());
            let breaking = async {
                expect_dialled(&gateway).await;
                drop(target.accept().await);
                expect_reset(&gateway, "reset").await;
                drop(gateway);
            };
            assert!(zip(serving, breaking).await.0.is_none());
        });
    }

    #[test]
    fn a_session_that_outlasts_its_agent_is_reset_on_both_sides_and_told_why() {
        run(async || {
            let (mut at, target) = (Fixture::new(), Port::listen());
            let cut = at.cut.take();
            let (serving, gateway) = served(&at, Framing::Framed, target.target());
            let stopping = async {
                expect_dialled(&gateway).await;
                let wire = target.accept().await;
                drop(cut);
                expect_reset(&gateway, "shut down").await;
                drop(gateway);
                read_all(&wire).await.unwrap_err().kind()
            };
            let (lane, kind) = zip(serving, stopping).await;
            assert_eq!((lane.is_none(), kind), (true, io::ErrorKind::ConnectionReset));
        });
    }
}
