//! Links of agents and clients at a running gateway, over real sockets: who may hold a name, who sees
//! whom, and what links hear when the gateway stops.
#![expect(clippy::unwrap_used, reason = "a test")]

mod kit;
#[path = "kit/peer.rs"]
mod peer;

use std::{net::SocketAddr, time::Duration};

use kit::{SECRET, start};
use narrowlink_dataplane::{
    peer::PeerLink,
    run::worker::run_alone,
    tunnel::{LinkError, TunnelError},
};
use narrowlink_proto::{
    ended::RefusalCode,
    id::Uid,
    limits::Limits,
    message::{AgentInfo, GoodbyeCode, Message},
    token::{Claims, Kind},
};
use peer::Peer;

const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds since 1970: in the year 9999.
const NEVER: u64 = 253_402_300_799;

fn peer(addr: SocketAddr, kind: Kind, uid: u128, name: &str, exp: u64) -> Peer {
    let jti = format!("{name} of {uid}");
    Peer::new(addr, &SECRET, Claims::new(kind, Uid::from_u128(uid), name, exp, &jti))
}

async fn list(client: &mut PeerLink) -> Vec<AgentInfo> {
    client.send(&Message::List).unwrap();
    match client.next().await.unwrap() {
        Message::Agents { agents, .. } => agents,
        other => panic!("{} instead of a list", other.name()),
    }
}

fn goodbye(error: LinkError) -> GoodbyeCode {
    match error {
        LinkError::Goodbye(goodbye) => goodbye.code,
        other => panic!("no goodbye: {other}"),
    }
}

#[test]
fn a_name_has_one_holder_and_its_own_space_sees_it() {
    let gateway = start(2, Limits::default());
    let addr = gateway.addresses()[0];
    let agent = peer(addr, Kind::Agent, 1, "home", NEVER);
    let stranger = peer(addr, Kind::Agent, 1, "home", NEVER);
    let client = peer(addr, Kind::Client, 1, "laptop", NEVER);
    let foreign = peer(addr, Kind::Client, 2, "laptop", NEVER);
    run_alone(false, |_| async {
        let (mut client, mut foreign) = (client.join().await.unwrap(), foreign.join().await.unwrap());
        assert!(list(&mut client).await.is_empty());
        let mut first = agent.join().await.unwrap();
        let seen = list(&mut client).await;
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].name.as_str(), seen[0].address.ip()), ("home", addr.ip()));
        assert!(list(&mut foreign).await.is_empty());

        assert_eq!(goodbye(stranger.join().await.err().unwrap()), GoodbyeCode::NameTaken);
        let second = agent.join().await.unwrap();
        assert_ne!(first.link, second.link);
        assert_eq!(goodbye(first.next().await.unwrap_err()), GoodbyeCode::Replaced);
        assert_eq!(list(&mut client).await.len(), 1);

        // Once the holder has gone, the stranger is as good as anybody.
        second.close();
        while !list(&mut client).await.is_empty() {}
        let _held = stranger.join().await.unwrap();
        assert_eq!(list(&mut client).await.len(), 1);
    })
    .unwrap();
    assert!(gateway.stop(PATIENCE));
}

#[test]
fn every_link_hears_that_the_gateway_stops() {
    let gateway = start(2, Limits::default());
    let addr = gateway.addresses()[0];
    let agent = peer(addr, Kind::Agent, 1, "home", NEVER);
    let client = peer(addr, Kind::Client, 1, "laptop", NEVER);
    run_alone(false, |_| async {
        let (mut agent, mut client) = (agent.join().await.unwrap(), client.join().await.unwrap());
        let stop = std::thread::spawn(move || gateway.stop(PATIENCE));
        assert_eq!(goodbye(agent.next().await.unwrap_err()), GoodbyeCode::Draining);
        assert_eq!(goodbye(client.next().await.unwrap_err()), GoodbyeCode::Draining);
        assert!(stop.join().unwrap());
    })
    .unwrap();
}

#[test]
fn an_expired_token_does_not_get_a_link() {
    let gateway = start(2, Limits::default());
    let client = peer(gateway.addresses()[0], Kind::Client, 1, "laptop", 1_000_000_000);
    let refused = run_alone(false, |_| async { client.join().await.err().unwrap() }).unwrap();
    match refused {
        LinkError::Tunnel(TunnelError::Refused(refused)) => {
            assert_eq!(refused.code, RefusalCode::Unauthenticated);
        }
        other => panic!("not refused: {other}"),
    }
    assert!(gateway.stop(PATIENCE));
}
