//! Control frames that the network cuts in two: whoever has the lane by then reads the rest.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use narrowlink_dataplane::run::worker::{run_alone, spawn};
use narrowlink_loadtest::{lab::Lab, load::peer::Tunnel, site::Transport};
use narrowlink_proto::{
    message::{Channel, Message, Speaker},
    token::Kind,
};

use crate::alone;

const LANES: usize = 24;
/// A ping of four bytes, masked with zeros, and where it is cut: within its head, and within its payload.
const PING: [u8; 10] = [0x89, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g'];
const CUTS: [usize; 3] = [1, 4, 8];

async fn all_are_served(tunnel: Tunnel) -> usize {
    let mut lanes = Vec::new();
    for n in 0..LANES {
        let lane = tunnel.lane().await.unwrap();
        lane.wire().write_all(&PING[..CUTS[n % CUTS.len()]]).await.unwrap();
        lanes.push(lane);
    }
    // Long enough for the gateway to have read the first halves; if it has not, they come together.
    monoio::time::sleep(Duration::from_millis(100)).await;
    for (n, lane) in lanes.into_iter().enumerate() {
        spawn(async move {
            let Ok(Message::Dial(dial)) = lane.recv(Speaker::Gateway, Channel::Lane).await else { return };
            lane.wire().write_all(&PING[CUTS[n % CUTS.len()]..]).await.unwrap();
            lane.send(&Message::Dialled { session: dial.session, e2ee: None }).await.unwrap();
            // Until the session ends.
            let _ = lane.attend().await;
        });
    }
    let mut served = Vec::new();
    for _ in 0..LANES {
        match tunnel.stream(true).await {
            Ok(stream) => served.push(stream),
            Err(e) => println!("not served: {e}"),
        }
    }
    served.len()
}

#[test]
fn lanes_with_half_a_ping_on_them_serve_at_whichever_worker() {
    let _turn = alone();
    let transport = Transport { tls: false, raw: false };
    let lab = Lab::start(2).unwrap();
    let agent = lab.site.token(Kind::Agent, lab.uid, "cut", None).unwrap();
    let client = lab.site.token(Kind::Client, lab.uid, "laptop", None).unwrap();
    let file = |name: &str, token: &str, extra: &str| {
        lab.site.endpoint_yaml(name, lab.entry(transport), transport, token, extra).unwrap()
    };
    let state = format!("state_dir: \"{}\"\n", lab.site.dir().join("state-cut").display());
    let (agent, client) = (file("cut.yaml", &agent, &state), file("cut-client.yaml", &client, ""));
    let (say, heard) = mpsc::channel();
    let begun = Instant::now();
    thread::spawn(move || {
        let served = run_alone(false, |_| async move {
            all_are_served(Tunnel::join(&agent, &client).await.unwrap()).await
        });
        say.send(served.unwrap())
    });
    assert_eq!(heard.recv_timeout(crate::kit::PATIENCE * 2).unwrap(), LANES);
    println!("{LANES} of {LANES} in {:.1?}", begun.elapsed());
}
