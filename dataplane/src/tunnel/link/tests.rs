//! Role: a link, against a peer in memory: its messages, its pings, its end.

use std::pin::pin;

use futures_lite::future::{poll_once, zip};
use narrowlink_proto::{
    feature::Features,
    frame::{self, Opcode},
    message::GoodbyeCode,
    upgrade::Framing,
};

use super::*;
use crate::{
    net::memory::{Memory, Room},
    tunnel::{
        conn,
        far_end::{CALLS, FarEnd, Then, in_calls_of, never, room_for, run, stuff},
    },
};

const ROLES: [Role; 2] = [Role::Server, Role::Client];

fn link_with(role: Role, room: Room, limits: &Limits) -> (Box<LinkSocket>, FarEnd) {
    let (near, far) = Memory::pair(room);
    let (speaker, ours) = match role {
        Role::Server => (Speaker::Client, conn::Role::Gateway),
        Role::Client => (Speaker::Gateway, conn::Role::Peer),
    };
    let socket = LinkSocket::new(near.into(), role, speaker, limits);
    (Box::new(socket), FarEnd::new(far, Framing::Framed, ours))
}

fn link(role: Role, room: Room) -> (Box<LinkSocket>, FarEnd) {
    link_with(role, room, &Limits::default())
}

/// A message to a side of this role that differs from others by its number.
fn word_to(role: Role, number: u32) -> Message {
    match role {
        Role::Server => Message::Present { version: number, features: Features::NONE, instance: None },
        Role::Client => Message::NeedLane { count: number },
    }
}

async fn recv_number(socket: &mut LinkSocket) -> u32 {
    match socket.recv().await.unwrap() {
        Message::Present { version: number, .. } | Message::NeedLane { count: number } => number,
        other => panic!("{other:?}"),
    }
}

fn ping(number: u64) -> (Opcode, Vec<u8>) {
    (Opcode::Ping, number.to_be_bytes().to_vec())
}

/// A close frame that says its code alone.
fn close(code: u16) -> (Opcode, Vec<u8>) {
    (Opcode::Close, frame::close_payload(code, ""))
}

#[test]
fn messages_are_heard_whole_however_little_comes_at_a_time() {
    run(async {
        for role in ROLES {
            for call_bytes in CALLS {
                let (mut socket, far) = link(role, in_calls_of(call_bytes));
                for number in 0..20 {
                    far.say(&far.message(&word_to(role, number)));
                }
                for number in 0..20 {
                    assert_eq!(recv_number(&mut socket).await, number, "{role:?} {call_bytes}");
                }
            }
        }
    });
}

#[test]
fn a_wait_may_be_given_up_at_every_byte() {
    run(async {
        for role in ROLES {
            let (mut socket, far) = link(role, Room::default());
            // Payload that looks like a frame's header is none.
            let text = word_to(role, 7).encode();
            let bytes = [
                far.frame(Opcode::Ping, &[0x88, 0x80, 0x89]),
                far.fragment(Opcode::Text, &text[..9]),
                far.frame(Opcode::Continuation, &text[9..]),
            ];
            for byte in bytes.concat().chunks(1) {
                assert!(poll_once(socket.recv()).await.is_none());
                far.say(byte);
            }
            assert_eq!(recv_number(&mut socket).await, 7);
            let answer = (Opcode::Pong, vec![0x88, 0x80, 0x89]);
            assert_eq!(far.frames(&far.heard().0), [ping(1), answer]);
        }
    });
}

#[test]
fn a_link_pings_at_once_and_takes_no_other_answer_than_its_own() {
    run(async {
        for role in ROLES {
            let (mut socket, far) = link(role, Room::default());
            far.say(&far.frame(Opcode::Pong, &2u64.to_be_bytes()));
            assert!(poll_once(socket.hear()).await.is_none());
            assert_eq!(far.frames(&far.heard().0), [ping(1)]);
            let pinged = Instant::now();
            far.say(&far.frame(Opcode::Pong, &1u64.to_be_bytes()));
            let least = pinged.elapsed();
            let Heard::Answered(round_trip) = socket.hear().await.unwrap() else { panic!("no answer") };
            assert!(round_trip >= least);
        }
    });
}

#[test]
fn a_peer_that_answers_is_pinged_again_and_again_and_its_link_stands() {
    run(async {
        let limits = Limits { ping_interval: Duration::from_millis(5), ..Limits::default() };
        let (mut socket, far) = link_with(Role::Server, Room::default(), &limits);
        let answering = async {
            let mut heard = Vec::new();
            while heard.len() < 5 {
                for (opcode, words) in far.hear_frames(1).await {
                    far.say(&far.frame(Opcode::Pong, &words));
                    heard.push((opcode, words));
                }
            }
            heard
        };
        let heard = future::or(answering, never(socket.recv())).await;
        assert_eq!(heard[..5], [1, 2, 3, 4, 5].map(ping));
    });
}

#[test]
fn a_peer_of_which_nothing_is_heard_is_gone_after_interval_and_timeout() {
    run(async {
        let [ping_interval, pong_timeout] = [20, 30].map(Duration::from_millis);
        let limits = Limits { ping_interval, pong_timeout, ..Limits::default() };
        let (mut socket, far) = link_with(Role::Server, Room::default(), &limits);
        let begun = Instant::now();
        let error = socket.recv().await.unwrap_err();
        let patience = ping_interval + pong_timeout;
        assert!(matches!(error, LinkError::Silent(waited) if waited == patience), "{error}");
        assert!(begun.elapsed() >= patience);
        far.heard();
        socket.end(error).await;
        assert_eq!(far.heard(), (Vec::new(), Then::Reset), "there is nobody to tell");
    });
}

#[test]
fn a_flood_of_frames_that_bring_nothing_ends_with_1008() {
    // What begins, and what comes again and again.
    type Flooding = fn(&FarEnd) -> [Vec<u8>; 2];
    let floods: [Flooding; 4] = [
        |far| [Vec::new(), far.frame(Opcode::Ping, b"hi")],
        |far| [Vec::new(), far.frame(Opcode::Pong, b"hi")],
        |far| [far.fragment(Opcode::Text, b""), far.fragment(Opcode::Continuation, b"")],
        |far| [Vec::new(), far.frame(Opcode::Text, br#"{"type":"of_a_later_version"}"#)],
    ];
    run(async {
        for (n, flood) in floods.into_iter().enumerate() {
            let (mut socket, far) = link(Role::Server, Room::default());
            let [first, each] = flood(&far);
            far.say(&[first, each.repeat(1000)].concat());
            far.finish();
            let error = socket.recv().await.unwrap_err();
            assert!(matches!(error, LinkError::Conn(ConnError::Flood(_))), "{n}: {error}");
            socket.end(error).await;
            assert_eq!(far.frames(&far.heard().0).last(), Some(&close(1008)), "{n}");
        }
    });
}

#[test]
fn a_peer_is_told_what_it_did_wrong_although_it_says_more() {
    type Wrong = (u16, fn(&FarEnd) -> Vec<u8>);
    let wrong: [Wrong; 10] = [
        (1002, |_| vec![0x81, 2]),
        (1002, |_| vec![0xC1]),
        (1002, |_| vec![0x09]),
        (1002, |far| far.frame(Opcode::Continuation, b"")),
        (1009, |far| far.frame(Opcode::Text, &[b' '; MESSAGE_BYTES_MAX + 1])),
        (1009, |far| {
            let text = [b' '; 40_000];
            [far.fragment(Opcode::Text, &text), far.frame(Opcode::Continuation, &text)].concat()
        }),
        (1007, |far| far.frame(Opcode::Text, &[0xFF])),
        (1002, |far| far.frame(Opcode::Binary, b"data")),
        (1002, |far| far.frame(Opcode::Text, b"{}")),
        (1002, |far| far.message(&word_to(Role::Client, 1))),
    ];
    run(async {
        for (n, (code, bytes)) in wrong.into_iter().enumerate() {
            let (mut socket, far) = link(Role::Server, Room::default());
            far.say(&bytes(&far));
            far.say(&far.frame(Opcode::Text, b"{}").repeat(20));
            far.finish();
            let error = socket.recv().await.unwrap_err();
            let words = error.to_string();
            socket.end(error).await;
            let (got, then) = far.heard();
            let mut frames = far.frames(&got);
            frames.retain(|frame| *frame != ping(1));
            assert_eq!((frames, then), (vec![close(code)], Then::End), "{n}: {words}");
        }
    });
}

#[test]
fn words_of_a_later_version_are_left_out() {
    run(async {
        for role in ROLES {
            let (mut socket, far) = link(role, Room::default());
            for number in 0..20 {
                far.say(&far.frame(Opcode::Text, br#"{"type":"call_back","soon":true}"#));
                far.say(&far.message(&word_to(role, number)));
                assert_eq!(recv_number(&mut socket).await, number);
            }
        }
    });
}

#[test]
fn a_close_is_answered_with_its_own_code_and_once() {
    run(async {
        for role in ROLES {
            let (mut socket, far) = link(role, Room::default());
            far.say(&far.frame(Opcode::Close, &frame::close_payload(4001, "bye")));
            let error = socket.recv().await.unwrap_err();
            assert!(matches!(error, LinkError::Closed), "{error}");
            socket.end(error).await;
            let (got, then) = far.heard();
            let [(Opcode::Close, payload)] = &far.frames(&got)[..] else { panic!("{got:?}") };
            assert_eq!(frame::parse_close(payload).unwrap().unwrap().0, 4001);
            assert_eq!(then, Then::End);
        }
    });
}

#[test]
fn a_link_that_is_cut_at_any_byte_has_not_said_goodbye() {
    run(async {
        let bytes = link(Role::Server, Room::default()).1.message(&word_to(Role::Server, 7));
        for cut in 0..bytes.len() {
            for is_reset in [false, true] {
                let (mut socket, far) = link(Role::Server, Room::default());
                far.say(&bytes[..cut]);
                let rest = (!is_reset).then_some(far);
                rest.iter().for_each(FarEnd::finish);
                let error = socket.recv().await.unwrap_err();
                assert!(matches!(error, LinkError::Broke(_)), "cut at {cut}: {error}");
                socket.end(error).await;
                if let Some(far) = rest {
                    assert_eq!(far.heard(), (Vec::new(), Then::Reset), "cut at {cut}");
                }
            }
        }
    });
}

#[test]
fn a_peer_that_reads_nothing_costs_its_own_buffer_and_nobody_s_time() {
    let (mut socket, far) = link(Role::Server, room_for(1024));
    let word = Message::Goodbye(Goodbye { code: GoodbyeCode::Limited, reason: "x".repeat(1000) });
    let len = word.encode().len();
    // Nothing here can wait.
    let said = (0..1000).take_while(|_| socket.send(&word).is_ok()).count() * len;
    let error = socket.send(&word).unwrap_err();
    assert!(matches!(error, LinkError::Broke(_)), "{error}");
    let bounds = WRITE_BYTES_MAX - 2 * len..=WRITE_BYTES_MAX + 1024;
    assert!(bounds.contains(&said), "{said}");
    drop(far);
}

#[test]
fn what_was_said_to_a_peer_that_had_paused_arrives_when_it_reads() {
    run(async {
        for role in ROLES {
            for call_bytes in CALLS {
                let (mut socket, far) = link(role, Room { bytes: 16, call_bytes });
                let words: Vec<_> = (0..5).map(|number| word_to(role, number)).collect();
                for word in &words {
                    socket.send(word).unwrap();
                }
                let heard = future::or(far.hear_frames(6), never(socket.recv())).await;
                let expected = words.iter().map(|word| (Opcode::Text, word.encode()));
                assert_eq!(heard, expected.chain([ping(1)]).collect::<Vec<_>>(), "{role:?} {call_bytes}");
            }
        }
    });
}

#[test]
fn an_answer_to_a_ping_is_said_as_soon_as_there_is_room_for_it() {
    run(async {
        for role in ROLES {
            let (mut socket, far) = link(role, room_for(512));
            assert!(poll_once(socket.recv()).await.is_none());
            assert_eq!(far.frames(&far.heard().0), [ping(1)]);
            let nonsense = stuff(socket.wire());
            far.say(&far.frame(Opcode::Ping, b"hi"));
            let mut receiving = pin!(socket.recv());
            assert!(poll_once(receiving.as_mut()).await.is_none());
            assert_eq!(far.heard().0.len(), nonsense);
            let heard = future::or(far.hear_frames(1), never(receiving)).await;
            assert_eq!(heard, [(Opcode::Pong, b"hi".to_vec())], "{role:?}");
        }
    });
}

#[test]
fn who_ends_a_link_says_why_and_ends_cleanly() {
    run(async {
        let goodbye = Goodbye { code: GoodbyeCode::Replaced, reason: "another one came".into() };
        let word = (Opcode::Text, Message::Goodbye(goodbye.clone()).encode());
        let (socket, far) = link(Role::Server, Room::default());
        socket.end(LinkError::Goodbye(goodbye.clone())).await;
        let (got, then) = far.heard();
        assert_eq!((far.frames(&got), then), (vec![word.clone(), close(1001)], Then::End));
        let (socket, far) = link(Role::Server, Room::default());
        socket.close(Some(goodbye), CloseCode::Policy);
        let (got, then) = far.heard();
        assert_eq!((far.frames(&got), then), (vec![word, close(1008)], Then::End));
        let (socket, far) = link(Role::Client, Room::default());
        socket.close(None, CloseCode::Normal);
        let (got, then) = far.heard();
        assert_eq!((far.frames(&got), then), (vec![close(1000)], Then::End));
    });
}

#[test]
fn both_sides_of_a_link_understand_each_other() {
    run(async {
        for call_bytes in CALLS {
            let (near, far) = Memory::pair(in_calls_of(call_bytes));
            let limits = Limits::default();
            let mut gateway = LinkSocket::new(near.into(), Role::Server, Speaker::Agent, &limits);
            let mut agent = LinkSocket::new(far.into(), Role::Client, Speaker::Gateway, &limits);
            for number in 0..3 {
                gateway.send(&word_to(Role::Client, number)).unwrap();
                agent.send(&word_to(Role::Server, number)).unwrap();
            }
            let hear = async |socket: &mut LinkSocket| {
                for number in 0..3 {
                    assert_eq!(recv_number(socket).await, number, "{call_bytes}");
                }
            };
            zip(hear(&mut gateway), hear(&mut agent)).await;
        }
    });
}
