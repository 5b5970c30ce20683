//! Role: kill -9 in the middle of a transfer.
//! Invariants: the user's program and the target both see a reset, whichever of the three was killed.
//! `NARROWLINK_KILLS` says how often each is killed.

use crate::{
    alone,
    kit::{
        net, number_from_env,
        site::{Forward, Transport, Tunnel},
    },
    pair::{Endings, Pair, SHAPES},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Client,
    Gateway,
    Agent,
}

/// Brings a killed process back; the other two are those that were there before.
fn restart(victim: Victim, tunnel: &mut Tunnel, forward: &mut Forward, target: std::net::SocketAddr) {
    match victim {
        Victim::Client => *forward = tunnel.site.start_forward_at(tunnel.transport, forward.local, target),
        Victim::Gateway => tunnel.gateway = tunnel.site.start_gateway(),
        Victim::Agent => tunnel.agent = tunnel.site.start_agent(tunnel.transport),
    }
}

fn check(transport: Transport, victim: Victim) {
    let _alone = alone();
    let (listener, target) = net::listen();
    let mut tunnel = Tunnel::start(transport);
    let mut forward = tunnel.forward(target);
    let kills = number_from_env("NARROWLINK_KILLS", 3);
    for (round, shape) in (0..kills).zip(SHAPES.into_iter().cycle()) {
        let pair = Pair::open(forward.local, &listener);
        let endings = pair.talk_until(shape, || match victim {
            Victim::Client => forward.running.kill_9(),
            Victim::Gateway => tunnel.gateway.kill_9(),
            Victim::Agent => tunnel.agent.kill_9(),
        });
        assert_eq!(endings, Endings::RESET, "{victim:?} killed, round {round}, {shape:?}, {transport:?}");
        restart(victim, &mut tunnel, &mut forward, target);
    }
    println!("{victim:?} killed {kills} times over {transport:?}: both sides saw a reset each time");
}

fn a_killed_client_is_a_reset_on_both_sides(transport: Transport) {
    check(transport, Victim::Client);
}

fn a_killed_gateway_is_a_reset_on_both_sides(transport: Transport) {
    check(transport, Victim::Gateway);
}

fn a_killed_agent_is_a_reset_on_both_sides(transport: Transport) {
    check(transport, Victim::Agent);
}

over_ws_and_wss!(
    a_killed_client_is_a_reset_on_both_sides,
    a_killed_gateway_is_a_reset_on_both_sides,
    a_killed_agent_is_a_reset_on_both_sides,
);
