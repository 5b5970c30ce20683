//! An agent takes a new token up without losing a session.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use narrowlink_client::agents;
use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::token::Kind;

use crate::{
    alone,
    kit::{PATIENCE, wait_for},
    start_echo,
    visitor::{ask, connect},
};

#[test]
fn an_agent_logs_in_anew_when_its_token_file_changes_and_no_session_is_lost() {
    let _turn = alone();
    let transport = Transport { tls: true, raw: false };
    let lab = Lab::start(2).unwrap();
    let token = || lab.site.token(Kind::Agent, lab.uid, "home", None).unwrap();
    let (first, file) = (token(), lab.site.dir().join("agent.token"));
    fs::write(&file, &first).unwrap();
    let extra = format!("state_dir: \"{}\"\n", lab.site.dir().join("state").display());
    let path = lab.site.endpoint_yaml("agent.yaml", lab.entry(transport), transport, &first, &extra).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&format!("token: {first}"), "token_file: agent.token")).unwrap();
    let agent = narrowlink_agent::start(narrowlink_loadtest::lab::agent_config(&path).unwrap()).unwrap();
    agent.wait_ready(PATIENCE).unwrap();
    let forward = lab.forward("home", start_echo(), transport).unwrap();
    let client = lab.client(lab.uid, "onlooker", transport, None).unwrap();
    let stands_for = || agents(&client).unwrap().first().map(|agent| agent.connected_s);
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut standing = connect(forward.local_addr);
    ask(&mut standing).unwrap();
    let asker = {
        let (over, asked, addr) = (over.clone(), asked.clone(), forward.local_addr);
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                ask(&mut connect(addr)).unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    wait_for("a link that has stood for some seconds", PATIENCE, || (stands_for() >= Some(2)).then_some(()));
    // What is no token is not taken, and harms nobody.
    fs::write(&file, "\n").unwrap();
    thread::sleep(Duration::from_millis(2500));
    let replaced_at = Instant::now();
    fs::write(&file, token()).unwrap();
    wait_for("another link", PATIENCE, || (stands_for()? < 2).then_some(()));
    println!("logged in anew after {:?}", replaced_at.elapsed());
    let seen = asked.load(Ordering::Relaxed);
    wait_for("sessions over it", PATIENCE, || (asked.load(Ordering::Relaxed) > seen + 20).then_some(()));
    over.store(true, Ordering::Relaxed);
    asker.join().expect("no session was refused or reset");
    ask(&mut standing).unwrap();
    forward.stop();
    agent.stop();
}
