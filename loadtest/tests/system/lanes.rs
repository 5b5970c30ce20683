//! Lanes come and go with the demand, and no session is lost over it.

use std::{cell::RefCell, collections::BTreeMap, net::Ipv4Addr, rc::Rc, time::Duration};

use monoio::time::sleep;
use narrowlink_dataplane::run::worker::{run_alone, spawn};
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{target::Target, token::Kind};

use crate::{
    alone, count, draw,
    kit::{
        asker::{Answer, Asker},
        net::Greeter,
    },
};

/// So often lanes are retired here. Half of them go at each tick without a session: six ticks after a burst few
/// are left, and the next burst begins among them.
const TICK: Duration = Duration::from_millis(2);

/// What came of so many questions that were asked at the same time.
async fn burst(asker: &Rc<Asker>, target: &Target, sessions: u64) -> Vec<Answer> {
    let (done, answers) = async_channel::unbounded();
    for _ in 0..sessions {
        let (asker, target, done) = (asker.clone(), target.clone(), done.clone());
        spawn(async move {
            let _ = done.try_send(asker.ask_anew("home", &target).await);
        });
    }
    drop(done);
    let all: RefCell<Vec<_>> = RefCell::default();
    while let Ok(answer) = answers.recv().await {
        all.borrow_mut().push(answer);
    }
    all.into_inner()
}

#[test]
fn a_lane_that_is_being_retired_is_never_dialled() {
    let _turn = alone();
    let (bursts, sessions) = (count("NARROWLINK_BURSTS", 60), count("NARROWLINK_BURST_SESSIONS", 20));
    let transport = Transport { tls: false, raw: false };
    let lab = Lab::start(2).unwrap();
    let token = lab.site.token(Kind::Agent, lab.uid, "home", None).unwrap();
    let agents = ["framed", "raw"].map(|framing| {
        // One name after the other: a second agent would be a stranger.
        (framing, Transport { raw: framing == "raw", ..transport })
    });
    for (framing, transport) in agents {
        let state = lab.site.dir().join(framing);
        let extra = format!("state_dir: \"{}\"\n", state.display());
        let path =
            lab.site.endpoint_yaml("agent.yaml", lab.entry(transport), transport, &token, &extra).unwrap();
        let config = narrowlink_loadtest::lab::agent_config(&path).unwrap();
        let agent =
            narrowlink_agent::start(narrowlink_agent::config::Config { lanes_tick: TICK, ..config }).unwrap();
        agent.wait_ready(crate::kit::PATIENCE).unwrap();
        let greeter = Greeter::start((Ipv4Addr::LOCALHOST, 0).into());
        let target = Target::Tcp { host: greeter.addr.ip().to_string(), port: greeter.addr.port() };
        let client = lab.site.token(Kind::Client, lab.uid, "laptop", None).unwrap();
        let asker = Asker::new(lab.entry(transport), &client);
        let mut came_of: BTreeMap<String, u64> = BTreeMap::new();
        run_alone(false, |_| async {
            let (asker, mut random) = (Rc::new(asker), 1);
            for _ in 0..bursts {
                for answer in burst(&asker, &target, sessions).await {
                    let word = match answer {
                        Answer::Said(said) if said == greeter.addr.to_string() => "served".to_owned(),
                        other => format!("{other:?}"),
                    };
                    *came_of.entry(word).or_default() += 1;
                }
                // Long enough for lanes to be retired, short enough for the next burst to meet it.
                sleep(Duration::from_micros(draw(&mut random) % 12_000)).await;
            }
        })
        .unwrap();
        println!("{framing}: {came_of:?}");
        assert_eq!(came_of.remove("served"), Some(bursts * sessions), "{came_of:?}");
        agent.stop();
    }
}
