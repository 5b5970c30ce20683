//! Role: a client's stream and its sessions, between a client and an agent in memory.

use std::{num::NonZeroU32, sync::Arc};

use futures_lite::future::poll_once;
use narrowlink_proto::{
    ended::{RefusalCode, Why},
    feature::{Feature, Features},
    limits::Limits,
    message::EARLY_DATA_BYTES_MAX,
    token::Allowance,
};

use super::*;
use crate::{
    gateway::{
        kit::{self, Agent, FRAMINGS, Peer, Worker, exchange, session, turns, until},
        principal::Principal,
    },
    tunnel::conn::CLOSE_RESET,
};

const SOON: Duration = Duration::from_millis(40);
/// Long enough for a session to open, on any machine.
const WHILE: Duration = Duration::from_millis(250);
const HOUR: Duration = Duration::from_secs(3600);

fn future_bytes<A, F>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_stream_s_own_task_is_small() {
    let bytes = future_bytes(|(visit, conn, first)| serve(visit, conn, first));
    assert!(bytes <= 256, "{bytes}");
}

/// A stream and a lane with a session that stands, over which 3 bytes have gone up.
async fn standing(worker: &Worker, agent: &Agent, who: &Arc<Principal>) -> (Peer, Peer) {
    let (lane, client) = (worker.park(agent, Framing::Framed), worker.stream(who, Framing::Framed));
    client.open(1).await;
    lane.accept().await;
    client.opened(1).await;
    client.give(b"one").await;
    assert_eq!(lane.take(1, 3).await, b"one");
    worker.door.events();
    (client, lane)
}

#[test]
fn a_stream_serves_one_session_after_the_other_over_the_same_lane() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let lane = worker.park(&agent, Framing::Framed);
        let client = worker.stream(&worker.laptop, Framing::Framed);
        for n in 1..=3 {
            client.open(n).await;
            assert_eq!(lane.accept().await.session, session(n));
            client.opened(n).await;
            assert_eq!([Kind::Session, Kind::Stream].map(|kind| worker.count(kind)), [1, 0]);
            exchange(&client, &lane, n).await;
            assert_eq!([Kind::Session, Kind::Stream].map(|kind| worker.count(kind)), [0, 1]);
            let said =
                [format!("laptop opened {n} at home"), format!("{n} ended: 2 up, 4 down, Here finished")];
            assert_eq!(worker.door.events(), said);
        }
        assert_eq!(agent.entry.richest_but(9), Some(0), "the lane is parked");
    });
}

#[test]
fn a_session_goes_through_whatever_the_framing_on_either_side() {
    kit::run(async {
        for (n, (stream, lane)) in FRAMINGS.into_iter().flat_map(|a| FRAMINGS.map(|b| (a, b))).enumerate() {
            let (worker, agent) = kit::setting(Limits::default());
            let n = u8::try_from(n).unwrap();
            let (lane, client) = (worker.park(&agent, lane), worker.stream(&worker.laptop, stream));
            client.open(n).await;
            lane.accept().await;
            client.opened(n).await;
            exchange(&client, &lane, n).await;
            // Plain bytes carry one session.
            let is_left = |framing| usize::from(framing == Framing::Framed);
            until(|| worker.count(Kind::Stream) + worker.count(Kind::Session) == is_left(stream)).await;
            assert_eq!(worker.count(Kind::Lane), is_left(lane.conn.framing()));
            let ended = format!("{n} ended: 2 up, 4 down, Here finished");
            assert_eq!(worker.door.events().last(), Some(&ended));
        }
    });
}

#[test]
fn who_is_refused_hears_why_and_the_stream_serves_on() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let lane = worker.park(&agent, Framing::Framed);
        let client = worker.stream(&worker.laptop, Framing::Framed);
        let no = Refused::new(RefusalCode::Policy, "not there");
        worker.door.known().refusal = Some(no.clone());
        client.open(1).await;
        assert_eq!(client.refused().await, no.clone().of(session(1)));
        worker.door.known().refusal = None;
        client.open(2).await;
        let dial = lane.dial().await;
        lane.say(&Message::refused(dial.session, RefusalCode::TargetRefused, "nobody listens")).await;
        assert_eq!(client.refused().await.code, RefusalCode::TargetRefused);
        assert_eq!([Kind::Session, Kind::Stream].map(|kind| worker.count(kind)), [0, 1]);
        client.open(3).await;
        lane.accept().await;
        client.opened(3).await;
        exchange(&client, &lane, 3).await;
        let events = worker.door.events();
        assert_eq!(events[..2], ["laptop refused: policy", "laptop refused: target_refused"]);
        // With plain bytes there is no next one.
        worker.door.known().refusal = Some(no);
        let client = worker.stream(&worker.laptop, Framing::Raw);
        client.open(4).await;
        assert_eq!(client.refused().await.code, RefusalCode::Policy);
        assert!(matches!(client.hear().await, Err(ConnError::Truncated)));
    });
}

#[test]
fn opens_behind_each_other_are_answered_in_their_order_and_others_have_their_turn_between() {
    kit::run(async {
        let worker = kit::worker(Limits::default());
        worker.door.known().refusal = Some(Refused::new(RefusalCode::Policy, "no"));
        let guest = Arc::new(kit::who(Speaker::Client, "guest", HOUR));
        let [many, one] = [&worker.laptop, &guest].map(|who| worker.stream(who, Framing::Framed));
        turns().await;
        for n in 1..=40 {
            many.open(n).await;
        }
        one.open(41).await;
        for n in 1..=40 {
            assert_eq!(many.refused().await.session, Some(session(n)));
        }
        assert_eq!(one.refused().await.session, Some(session(41)));
        let at = worker.door.events().iter().position(|event| event == "guest refused: policy").unwrap();
        // As many as fit between two turns of the ring.
        assert!(at <= 8, "{at} of the others' were decided first");
    });
}

#[test]
fn a_session_counts_until_it_has_ended() {
    let allowed = Allowance { sessions: NonZeroU32::new(1), ..Allowance::default() };
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let one = Principal { usage: kit::usage(&allowed), ..kit::who(Speaker::Client, "one", HOUR) };
        let one = Arc::new(one);
        let (client, lane) = standing(&worker, &agent, &one).await;
        let other = worker.stream(&one, Framing::Framed);
        other.open(2).await;
        assert_eq!(other.refused().await.code, RefusalCode::Limited);
        client.finish(1, 3).await;
        lane.finish(1, 0).await;
        assert!(client.take_all(1).await.unwrap().is_empty() && lane.take_all(1).await.unwrap().is_empty());
        lane.say(&Message::Ready { session: session(1) }).await;
        assert!(matches!(client.hear().await, Ok(Message::Ready { .. })));
        other.open(3).await;
        lane.accept().await;
        other.opened(3).await;
    });
}

#[test]
fn a_stream_and_a_lane_with_early_data_of_a_refused_session_serve_nothing_more() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let lane = worker.park(&agent, Framing::Framed);
        let client = worker.stream(&worker.laptop, Framing::Framed);
        client.open(1).await;
        client.give(b"early").await;
        let dial = lane.dial().await;
        assert_eq!(lane.take(1, 5).await, b"early");
        lane.say(&Message::refused(dial.session, RefusalCode::TargetRefused, "nobody listens")).await;
        // Bytes of the session that are still on their way overtake no word.
        client.give(b"more").await;
        assert_eq!(client.refused().await.code, RefusalCode::TargetRefused);
        let words = "this lane has served a session that was refused";
        assert_eq!(lane.close().await, (1000, words.to_owned()));
        client.open(2).await;
        client.conn.wire().finish_write().await.unwrap();
        let words = "this stream has served a session that was refused";
        assert_eq!(client.close().await, (1000, words.to_owned()));
        until(|| worker.count(Kind::Stream) + worker.count(Kind::Lane) == 0).await;
        assert_eq!(worker.door.events(), ["laptop refused: target_refused"]);
    });
}

#[test]
fn early_data_goes_on_before_the_answer_as_far_as_it_may() {
    const BYTES: usize = EARLY_DATA_BYTES_MAX + 40_000;
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let lane = worker.park(&agent, Framing::Framed);
        let client = worker.stream(&worker.laptop, Framing::Framed);
        client.open(1).await;
        client.give(&[7; BYTES]).await;
        client.finish(1, BYTES as u64).await;
        let dial = lane.dial().await;
        let early = async {
            for _ in 0..8 {
                turns().await;
            }
        };
        future::or(async { drop(lane.take_all(1).await) }, early).await;
        let early = lane.taken.get();
        assert!((1..=EARLY_DATA_BYTES_MAX as u64).contains(&early), "{early}");
        lane.say(&Message::Dialled { session: dial.session, e2ee: None }).await;
        client.opened(1).await;
        assert_eq!(early + lane.take_all(1).await.unwrap().len() as u64, BYTES as u64);
    });
}

#[test]
fn data_that_could_be_taken_for_something_else_waits_for_the_answer() {
    let (framed, raw) = (Framing::Framed, Framing::Raw);
    let sealed = Some("half".to_owned());
    kit::run(async {
        for (stream, lane, e2ee) in
            [(framed, framed, sealed), (framed, raw, None), (raw, framed, None), (raw, raw, None)]
        {
            let worker = kit::worker(Limits::default());
            let agent = worker.agent_as(&worker.home, Features::NONE.with(Feature::EndToEnd));
            let (lane, client) = (worker.park(&agent, lane), worker.stream(&worker.laptop, stream));
            client.say(&Message::Open(Open { e2ee, ..kit::open(1) })).await;
            client.give(b"early").await;
            let dial = lane.dial().await;
            turns().await;
            assert!(poll_once(lane.conn.wire().readable()).await.is_none(), "nothing follows the Dial");
            lane.say(&Message::Dialled { session: dial.session, e2ee: None }).await;
            client.opened(1).await;
            assert_eq!(lane.take(1, 5).await, b"early");
        }
    });
}

#[test]
fn early_data_of_a_session_that_was_never_dialled_reaches_nobody() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let lane = worker.park(&agent, Framing::Framed);
        for is_data in [true, false] {
            let client = worker.stream(&worker.laptop, Framing::Framed);
            worker.door.known().refusal = Some(Refused::new(RefusalCode::Policy, "no"));
            client.open(1).await;
            if is_data {
                client.give(b"early").await;
            } else {
                client.finish(1, 0).await;
            }
            assert_eq!(client.refused().await.code, RefusalCode::Policy);
            worker.door.known().refusal = None;
            client.open(2).await;
            client.conn.wire().finish_write().await.unwrap();
            assert_eq!(client.close().await, (1001, "nothing more is served on this stream".to_owned()));
        }
        assert!(poll_once(lane.hear()).await.is_none(), "nothing was dialled");
    });
}

#[test]
fn what_may_have_reached_a_target_is_reset_and_what_surely_has_not_is_refused() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let client = worker.stream(&worker.laptop, Framing::Framed);
        let lane = worker.park(&agent, Framing::Framed);
        client.open(1).await;
        lane.dial().await;
        drop(lane);
        assert_eq!(client.refused().await.code, RefusalCode::LaneLost);
        let lane = worker.park(&agent, Framing::Framed);
        client.open(2).await;
        client.give(b"early").await;
        lane.dial().await;
        lane.take(2, 5).await;
        drop(lane);
        let (code, words) = client.close().await;
        assert!(code == CLOSE_RESET && words.contains("was lost while it dialled"), "{code} {words}");
        assert_eq!(worker.door.events(), ["laptop refused: lane_lost"]);
    });
}

#[test]
fn an_agent_that_is_silent_costs_its_lane_and_the_time_that_it_had() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits { dial_timeout: SOON, ..Limits::default() });
        let client = worker.stream(&worker.laptop, Framing::Framed);
        let begun = Instant::now();
        client.open(1).await;
        let refused = client.refused().await;
        assert!(
            refused.code == RefusalCode::AgentTimeout && refused.reason.contains("offered no connection")
        );
        assert!(begun.elapsed() >= SOON);
        let lane = worker.park(&agent, Framing::Framed);
        client.open(2).await;
        let refused = client.refused().await;
        assert!(refused.code == RefusalCode::AgentTimeout && refused.reason.contains("does not answer"));
        assert_eq!(lane.dial().await.session, session(2));
        lane.cut().await;
        // With data behind its Open, the stream ends with the session.
        let lane = worker.park(&agent, Framing::Framed);
        client.open(3).await;
        client.give(b"early").await;
        assert_eq!(client.refused().await.code, RefusalCode::AgentTimeout);
        client.conn.wire().finish_write().await.unwrap();
        assert_eq!(client.close().await.0, 1000);
        drop(lane);
    });
}

#[test]
fn a_session_that_stands_ends_when_one_of_its_sides_must_go() {
    for (name, why, by, words) in [
        ("laptop", Why::Revoked, Side::Here, "the token was revoked"),
        ("home", Why::SecretRetired, Side::Here, "the secret that signed the token is in use no more"),
        ("home", Why::Vanished, Side::Target, "the target's side vanished"),
    ] {
        kit::run(async move {
            let (worker, agent) = kit::setting(Limits::default());
            let (client, lane) = standing(&worker, &agent, &worker.laptop).await;
            worker.expel(name, why);
            for peer in [&client, &lane] {
                assert_eq!(peer.close().await, (CLOSE_RESET, words.to_owned()));
            }
            let ended = format!("1 ended: 3 up, 0 down, {by:?} {}", why.name());
            assert_eq!(worker.door.events(), [ended]);
        });
    }
}

#[test]
fn a_session_ends_with_the_first_token_of_its_sides() {
    for (laptop, home) in [(WHILE, HOUR), (HOUR, WHILE)] {
        kit::run(async move {
            let worker = kit::worker(Limits::default());
            let who = |speaker, name: &str, lasts| Arc::new(kit::who(speaker, name, lasts));
            let home = who(Speaker::Agent, "home", home);
            let agent = worker.agent_as(&home, Features::NONE);
            let (lane, guest) = (worker.park(&agent, Framing::Framed), who(Speaker::Client, "guest", laptop));
            let client = worker.stream(&guest, Framing::Framed);
            client.open(1).await;
            lane.accept().await;
            client.opened(1).await;
            for peer in [&client, &lane] {
                assert_eq!(peer.close().await, (CLOSE_RESET, "the token expired".to_owned()));
            }
            assert!(Instant::now() >= guest.expires_at.min(home.expires_at));
            assert_eq!(worker.door.events()[1], "1 ended: 0 up, 0 down, Here expired");
        });
    }
}

#[test]
fn a_stream_without_a_session_ends_when_its_client_must_go_and_says_why() {
    kit::run(async {
        let worker = kit::worker(Limits::default());
        let client = worker.stream(&worker.laptop, Framing::Framed);
        turns().await;
        // What it has asked by then is not heard.
        client.open(1).await;
        worker.expel("laptop", Why::Revoked);
        assert_eq!(client.close().await, (1008, "the token does not hold any more".to_owned()));
        let guest = Arc::new(kit::who(Speaker::Client, "guest", SOON));
        let client = worker.stream(&guest, Framing::Framed);
        assert_eq!(client.close().await, (1008, "the token has expired".to_owned()));
        assert!(Instant::now() >= guest.expires_at);
        let client = worker.stream(&guest, Framing::Framed);
        worker.local.stop();
        let unread = client.refused().await;
        assert_eq!((unread.code, unread.session), (RefusalCode::Draining, None));
        assert_eq!(client.close().await, (1001, "the gateway shuts down".to_owned()));
        assert!(worker.door.events().is_empty());
    });
}

#[test]
fn a_client_that_breaks_the_protocol_hears_so() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let client = worker.stream(&worker.laptop, Framing::Framed);
        client.finish(1, 0).await;
        let (code, words) = client.close().await;
        assert!(code == 1002 && words.ends_with("a message where Open was due"), "{words}");
        let client = worker.stream(&worker.laptop, Framing::Framed);
        client.give(b"data").await;
        let (code, words) = client.close().await;
        assert!(code == 1002 && words.ends_with("data where a message was due"), "{words}");
        // Who miscounts: something may be missing, so it is no end.
        let (client, lane) = standing(&worker, &agent, &worker.laptop).await;
        client.finish(1, 4).await;
        assert_eq!(client.close().await.0, 1002);
        assert_eq!(lane.close().await, (CLOSE_RESET, "the client's side broke the protocol".to_owned()));
        assert_eq!(worker.door.events(), ["1 ended: 3 up, 0 down, Client protocol"]);
    });
}

#[test]
fn an_agent_that_does_not_say_that_it_is_ready_has_not_delivered() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let (client, lane) = standing(&worker, &agent, &worker.laptop).await;
        client.finish(1, 3).await;
        assert!(lane.take_all(1).await.unwrap().is_empty());
        lane.finish(1, 0).await;
        assert!(client.take_all(1).await.unwrap().is_empty());
        lane.say(&Message::Ready { session: session(2) }).await;
        assert_eq!(lane.close().await.0, CLOSE_RESET);
        assert_eq!(client.close().await, (CLOSE_RESET, "the target's side broke the protocol".to_owned()));
        drop(client);
        until(|| worker.count(Kind::Lane) + worker.count(Kind::Stream) == 0).await;
    });
}

#[test]
fn a_client_that_leaves_before_the_answer_is_waited_for_no_longer() {
    kit::run(async {
        let (worker, agent) = kit::setting(Limits::default());
        let client = worker.stream(&worker.laptop, Framing::Framed);
        client.open(1).await;
        until(|| agent.entry.waiting() == 1).await;
        drop(client);
        until(|| agent.entry.waiting() == 0).await;
        let lane = worker.park(&agent, Framing::Framed);
        let client = worker.stream(&worker.laptop, Framing::Framed);
        client.open(2).await;
        lane.dial().await;
        drop(client);
        assert_eq!(lane.close().await, (CLOSE_RESET, "the connection to the client's side broke".to_owned()));
        drop(lane);
        until(|| worker.count(Kind::Stream) + worker.count(Kind::Session) == 0).await;
        assert!(worker.door.events().is_empty(), "nothing has opened");
    });
}

#[test]
fn a_silent_stream_is_pinged_and_one_without_an_answer_is_closed() {
    kit::run(async {
        let limits = Limits { quiet_ping_interval: SOON, ..Limits::default() };
        let worker = kit::worker(limits);
        let framings = FRAMINGS.map(|framing| worker.stream(&worker.laptop, framing));
        let [framed, raw] = &framings;
        let (begun, mut got, mut buf) = (Instant::now(), Vec::new(), [0; 64]);
        // Read without a look: no ping is answered.
        while let n @ 1.. = framed.conn.wire().read(&mut buf).await.unwrap() {
            got.extend_from_slice(&buf[..n]);
        }
        assert!(begun.elapsed() >= SOON);
        assert!(got.starts_with(&[0x89, 0]), "{got:x?}");
        assert!(got.ends_with(b"nothing more is served on this stream"), "{got:x?}");
        raw.cut().await;
    });
}
