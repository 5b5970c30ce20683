//! An agent that hangs: its kernel goes on answering for it, so that nothing but its silence tells.

use std::{
    io::{ErrorKind, Read as _},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    alone,
    kit::{
        PATIENCE, net,
        site::{Transport, Tunnel},
        wait_for,
    },
};

/// Silence is judged after 9 s: a ping every 4 s, and 5 s for its answer.
const LOST_WITHIN: Duration = Duration::from_secs(12);
/// A dial for an agent that was found lost is refused at once; most of this is a busy machine's.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
const BACK_WITHIN: Duration = Duration::from_secs(3);

fn an_agent_that_hangs_takes_its_sessions_along_and_is_back_when_it_goes_on(transport: Transport) {
    let _alone = alone();
    let mut tunnel = Tunnel::start(transport);
    let forward = tunnel.forward(net::start_echo());
    let mut session = wait_for("a session", PATIENCE, || net::try_echo(forward.local).ok());
    tunnel.agent.signal(Signal::STOP);
    let stopped = Instant::now();
    let waiting = thread::spawn(move || net::try_echo(forward.local).map(drop));
    let ended = session.read(&mut [0]).expect_err("a hung agent is no clean end");
    let lost = stopped.elapsed();
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{ended}");
    // What was asked for meanwhile does not wait longer.
    let early = waiting.join().expect("an attempt").expect_err("nobody could answer");
    assert_eq!(early.kind(), ErrorKind::ConnectionReset, "{early}");
    let answered = stopped.elapsed();
    let asked = Instant::now();
    let refused = net::try_echo(forward.local).expect_err("the agent is lost");
    let refused_after = asked.elapsed();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{refused}");
    tunnel.agent.signal(Signal::CONT);
    let going_on = Instant::now();
    wait_for("the agent to be back", PATIENCE, || net::try_echo(forward.local).ok());
    let back = going_on.elapsed();
    println!(
        "its session was reset after {lost:?}, a connection made meanwhile after {answered:?}, the next one after \
         {refused_after:?}; it served again {back:?} after it went on"
    );
    assert!(lost <= LOST_WITHIN && answered <= LOST_WITHIN, "{lost:?}, {answered:?}");
    assert!(refused_after <= REFUSED_WITHIN && back <= BACK_WITHIN, "{refused_after:?}, {back:?}");
    tunnel.gateway.assert_running();
    tunnel.agent.assert_running();
}

over_ws_and_wss!(an_agent_that_hangs_takes_its_sessions_along_and_is_back_when_it_goes_on);
