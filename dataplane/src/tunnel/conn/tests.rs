//! Role: what comes and goes over a connection, framed and raw, against a peer in memory.

use std::{collections::BTreeSet, pin::pin, thread};

use futures_lite::future::{self, poll_once, zip};

use super::*;
use crate::{
    net::memory::{Memory, Room},
    tunnel::deframe::DATA_FRAME_BYTES_MAX,
    tunnel::far_end::{
        CALLS, FRAMINGS, FarEnd, OTHER, ROLES, SESSION, Then, attend_to_all, fin, in_calls_of, never,
        room_for, run, say_the_rest, stuff, tunnel,
    },
};

async fn recv(conn: &Conn) -> Result<Message, ConnError> {
    let speaker = if conn.role() == Role::Gateway { Speaker::Client } else { Speaker::Gateway };
    conn.recv(speaker, Channel::Stream).await
}

/// Which of the messages that differ by their number comes next.
async fn recv_number(conn: &Conn) -> u64 {
    match recv(conn).await.unwrap() {
        Message::Fin { session: SESSION, bytes } => bytes,
        other => panic!("{other:?}"),
    }
}

/// A message with this number, of this length.
fn padded(number: u64, len: usize) -> Vec<u8> {
    let mut text = fin(number).encode();
    assert!(text.len() <= len);
    text.resize(len, b' ');
    text
}

/// The payload that comes next.
async fn read_data(conn: &Conn) -> Vec<u8> {
    let mut buf = [0; READ_BYTES];
    let n = conn.wire().read(&mut buf).await.unwrap();
    match conn.next_event(&mut buf[..n], &mut 0).unwrap() {
        Some(Event::Data { range, .. }) => buf[range].to_vec(),
        other => panic!("{other:?}"),
    }
}

/// How long a frame of ours is.
fn frame_len(role: Role, payload: usize) -> usize {
    frame::header_bytes(payload as u64, role == Role::Peer) + payload
}

fn every_side() -> impl Iterator<Item = (Framing, Role)> {
    FRAMINGS.into_iter().flat_map(|framing| ROLES.map(|role| (framing, role)))
}

#[test]
fn messages_are_read_whole_however_little_comes_at_a_time() {
    run(async {
        for (framing, role) in every_side() {
            for call_bytes in CALLS {
                let (conn, far) = tunnel(framing, role, in_calls_of(call_bytes));
                // Shorter than a read, and longer than two.
                for (number, len) in [(1, 150), (2, 2 * READ_BYTES + 1), (3, 150)] {
                    far.say(&far.text(&padded(number, len)));
                }
                for number in 1..=3 {
                    assert_eq!(recv_number(&conn).await, number, "{framing:?} {role:?} {call_bytes}");
                }
            }
        }
    });
}

#[test]
fn a_message_that_is_cut_anywhere_waits_for_its_rest() {
    run(async {
        for (framing, role) in every_side() {
            let bytes = tunnel(framing, role, Room::default()).1.message(&fin(7));
            for cut in 0..bytes.len() {
                let (conn, far) = tunnel(framing, role, Room::default());
                let mut receiving = pin!(recv_number(&conn));
                far.say(&bytes[..cut]);
                assert!(poll_once(receiving.as_mut()).await.is_none(), "{framing:?} cut at {cut}");
                far.say(&bytes[cut..]);
                assert_eq!(receiving.await, 7, "{framing:?} cut at {cut}");
            }
        }
    });
}

#[test]
fn a_wait_for_a_framed_message_may_be_given_up_at_every_byte() {
    run(async {
        for role in ROLES {
            let (conn, far) = tunnel(Framing::Framed, role, Room::default());
            let bytes = [far.frame(Opcode::Ping, b"hi"), far.message(&fin(7))].concat();
            for byte in bytes.chunks(1) {
                assert!(poll_once(recv(&conn)).await.is_none());
                far.say(byte);
            }
            assert_eq!(recv_number(&conn).await, 7);
            assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
        }
    });
}

#[test]
fn what_comes_behind_a_message_is_left_for_whoever_reads_next() {
    run(async {
        for (framing, role) in every_side() {
            let (conn, far) = tunnel(framing, role, Room::default());
            far.say(&[far.message(&fin(7)), far.payload(b"payload")].concat());
            assert_eq!(recv_number(&conn).await, 7);
            match framing {
                Framing::Raw => {
                    let mut buf = [0; 64];
                    let n = conn.wire().try_read(&mut buf).unwrap();
                    assert_eq!(&buf[..n], b"payload");
                }
                Framing::Framed => assert_eq!(read_data(&conn).await, b"payload"),
            }
        }
    });
}

#[test]
fn what_one_program_says_the_other_hears_through_the_narrowest_room() {
    run(async {
        for framing in FRAMINGS {
            for call_bytes in CALLS {
                let (near, far) = Memory::pair(Room { bytes: 8, call_bytes });
                let gateway = Conn::new(near.into(), framing, Role::Gateway, 0);
                let peer = Conn::new(far.into(), framing, Role::Peer, 5);
                let say = async |conn: &Conn| {
                    for number in 0..5 {
                        conn.send(&fin(number)).await.unwrap();
                    }
                };
                let hear = async |conn: &Conn| {
                    for number in 0..5 {
                        assert_eq!(recv_number(conn).await, number, "{framing:?} {call_bytes}");
                    }
                };
                zip(zip(say(&gateway), hear(&peer)), zip(say(&peer), hear(&gateway))).await;
            }
        }
    });
}

#[test]
fn no_control_frame_stands_within_a_frame_wherever_that_is_half_written() {
    run(async {
        let text = fin(7).encode();
        for role in ROLES {
            let len = frame_len(role, text.len());
            for room in 1..len {
                let (conn, far) = tunnel(Framing::Framed, role, room_for(room));
                let mut sending = pin!(conn.send_text(&text));
                assert!(poll_once(sending.as_mut()).await.is_none());
                // As if it had come.
                conn.wire().unread(&far.frame(Opcode::Ping, b"hi"));
                // Room that is made is the frame's.
                let mut got = far.heard().0;
                assert!(poll_once(conn.attend()).await.is_none());
                conn.ping().unwrap();
                let saying = async {
                    sending.await.unwrap();
                    say_the_rest(&conn).await;
                };
                let all = len + frame_len(role, 2) + frame_len(role, 0);
                got.extend(zip(saying, far.hear(all - room)).await.1);
                let expected = [
                    (Opcode::Text, text.clone()),
                    (Opcode::Pong, b"hi".to_vec()),
                    (Opcode::Ping, Vec::new()),
                ];
                assert_eq!(far.frames(&got), expected, "{role:?}, {room} bytes of {len} were out");
            }
        }
    });
}

#[test]
fn a_frame_that_its_writer_left_half_way_is_the_connection_s_end() {
    run(async {
        for (framing, role) in every_side() {
            let (conn, far) = tunnel(framing, role, room_for(30));
            assert!(poll_once(conn.send(&fin(7))).await.is_none());
            assert!(conn.is_mid_frame() && !conn.is_quiet() && !conn.has_said_all());
            assert_eq!(far.heard().0.len(), 30);
            let refused = conn.send(&fin(8)).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
            conn.ping().unwrap();
            conn.say_close(1000, "bye");
            conn.hang_up();
            assert_eq!(far.heard(), (Vec::new(), Then::Reset), "{framing:?} {role:?}");
        }
    });
}

#[test]
fn who_gave_up_before_the_first_byte_of_a_frame_has_broken_nothing() {
    run(async {
        let (conn, far) = tunnel(Framing::Framed, Role::Peer, room_for(4));
        conn.ping().unwrap();
        assert!(!conn.has_said_all(), "two bytes of it wait");
        assert!(poll_once(conn.send(&fin(7))).await.is_none());
        assert!(conn.is_quiet() && !conn.is_mid_frame());
        let text = fin(8).encode();
        let all = frame_len(Role::Peer, 0) + frame_len(Role::Peer, text.len());
        let (sent, got) = zip(conn.send_text(&text), far.hear(all)).await;
        sent.unwrap();
        assert_eq!(far.frames(&got), [(Opcode::Ping, Vec::new()), (Opcode::Text, text.clone())]);
    });
}

#[test]
fn a_ping_is_answered_with_its_own_words() {
    run(async {
        for role in ROLES {
            for call_bytes in CALLS {
                let (conn, far) = tunnel(Framing::Framed, role, in_calls_of(call_bytes));
                let words = [0, 1, 4, 125].map(|len| vec![b'x'; len]);
                let pings: Vec<_> = words.iter().map(|words| far.frame(Opcode::Ping, words)).collect();
                far.say(&pings.concat());
                let all = words.iter().map(|words| frame_len(role, words.len())).sum();
                let got = future::or(far.hear(all), never(conn.attend())).await;
                let expected: Vec<_> = words.map(|words| (Opcode::Pong, words)).into();
                assert_eq!(far.frames(&got), expected, "{role:?} {call_bytes}");
            }
        }
    });
}

#[test]
fn a_peer_that_pings_and_reads_nothing_makes_nothing_grow() {
    run(async {
        for role in ROLES {
            let (conn, far) = tunnel(Framing::Framed, role, room_for(16 * 1024));
            let nonsense = stuff(conn.wire());
            far.say(&far.frame(Opcode::Ping, &[b'x'; 125]).repeat(90));
            attend_to_all(&conn).await;
            let answers = conn.control.borrow().len();
            assert!((1..=CONTROL_BYTES_MAX).contains(&answers), "{answers} bytes of answers wait");
            let flood = (0..1000).find_map(|_| conn.ping().err()).expect("an end of it");
            assert!(matches!(flood, ConnError::Flood(_)), "{flood}");
            assert!(conn.control.borrow().len() <= CONTROL_BYTES_MAX);
            // What was left out leaves no trace.
            let before = far.heard().0;
            say_the_rest(&conn).await;
            let got = [before, far.heard().0].concat();
            let frames = far.frames(&got[nonsense..]);
            assert!(frames.contains(&(Opcode::Pong, vec![b'x'; 125])));
            assert!(frames.contains(&(Opcode::Ping, Vec::new())));
        }
    });
}

#[test]
fn a_flood_of_frames_that_bring_nothing_ends_with_1008() {
    // What begins, and what comes again and again.
    type Flooding = fn(&FarEnd) -> [Vec<u8>; 2];
    let floods: [Flooding; 5] = [
        |far| [Vec::new(), far.frame(Opcode::Ping, b"")],
        |far| [Vec::new(), far.frame(Opcode::Pong, b"")],
        |far| [Vec::new(), far.frame(Opcode::Binary, b"")],
        |far| [far.fragment(Opcode::Binary, b""), far.fragment(Opcode::Continuation, b"")],
        |far| [far.fragment(Opcode::Text, b""), far.fragment(Opcode::Continuation, b"")],
    ];
    run(async {
        for (n, flood) in floods.into_iter().enumerate() {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            let [first, each] = flood(&far);
            far.say(&[first, each.repeat(1000)].concat());
            let error = recv(&conn).await.unwrap_err();
            assert!(matches!(error, ConnError::Flood(_)), "{n}: {error}");
            assert_eq!(error.why(), Why::Protocol);
            let close = (Opcode::Close, frame::close_payload(1008, &error.to_string()));
            assert_eq!(far.frames(&far.heard().0).last(), Some(&close), "{n}");
        }
    });
}

#[test]
fn what_a_busy_program_may_send_is_no_flood() {
    run(async {
        let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
        far.say(&far.frame(Opcode::Ping, b"still there?").repeat(100));
        far.say(&far.message(&fin(7)));
        assert_eq!(recv_number(&conn).await, 7);
        assert_eq!(far.frames(&far.heard().0).len(), 100);
    });
}

#[test]
fn a_close_is_answered_with_its_own_code_once_and_nothing_is_said_behind_it() {
    run(async {
        for role in ROLES {
            for (said, code, why) in [
                (frame::close_payload(1000, ""), 1000, ""),
                (frame::close_payload(1001, "\u{1b}[2Jgoing"), 1001, "[2Jgoing"),
                (frame::close_payload(4000, "reset"), 4000, "reset"),
                (Vec::new(), 1005, ""),
            ] {
                let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                far.say(&far.frame(Opcode::Close, &said));
                let error = recv(&conn).await.unwrap_err();
                let ConnError::Closed { code: heard, why: words } = &error else { panic!("{error}") };
                assert_eq!((*heard, &**words), (code, why));
                assert_eq!((error.why(), error.close_code()), (Why::Reset, None));
                assert_eq!((conn.farewell().as_deref(), conn.farewell()), (Some(why), None));
                conn.say_close(1002, "me too");
                conn.ping().unwrap();
                far.say(&far.frame(Opcode::Ping, b"hi"));
                attend_to_all(&conn).await;
                let refused = conn.send(&fin(7)).await.unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
                assert!(!conn.is_quiet());
                let answer = if said.is_empty() { said } else { frame::close_payload(code, "") };
                assert_eq!(far.frames(&far.heard().0), [(Opcode::Close, answer)], "{role:?} {code}");
            }
        }
    });
}

#[test]
fn who_has_said_close_does_not_answer_the_other_s() {
    run(async {
        for role in ROLES {
            let (conn, far) = tunnel(Framing::Framed, role, Room::default());
            conn.say_close(4000, "over");
            conn.say_close(1000, "said before");
            far.say(&far.frame(Opcode::Close, &frame::close_payload(1000, "bye")));
            assert!(matches!(recv(&conn).await, Err(ConnError::Closed { code: 1000, .. })));
            let ours = (Opcode::Close, frame::close_payload(4000, "over"));
            assert_eq!(far.frames(&far.heard().0), [ours]);
        }
    });
}

#[test]
fn a_peer_is_told_once_what_it_did_wrong() {
    let too_long = |far: &FarEnd| {
        let mut bytes = far.frame(Opcode::Binary, &vec![0; DATA_FRAME_BYTES_MAX as usize]);
        // A byte more than is taken.
        bytes[9] += 1;
        bytes
    };
    let endless = |far: &FarEnd| {
        let text = vec![b' '; 40_000];
        [far.fragment(Opcode::Text, &text), far.frame(Opcode::Continuation, &text)].concat()
    };
    type Wrong = (u16, fn(&FarEnd) -> Vec<u8>);
    let wrong: [Wrong; 11] = [
        (1002, |_| vec![0x81, 2]),
        (1002, |_| vec![0xC1]),
        (1002, |far| far.frame(Opcode::Continuation, b"")),
        (1009, too_long),
        (1009, endless),
        (1002, |far| far.frame(Opcode::Close, &[3])),
        (1007, |far| far.frame(Opcode::Close, &[3, 0xE8, 0xFF])),
        (1002, |far| far.frame(Opcode::Text, b"{}")),
        (1002, |far| far.frame(Opcode::Text, br#"{"type":"call_back"}"#)),
        (1002, |far| far.message(&Message::Ready { session: SESSION })),
        (1002, |far| far.frame(Opcode::Binary, b"data")),
    ];
    run(async {
        for (n, (code, bytes)) in wrong.into_iter().enumerate() {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            far.say(&bytes(&far));
            let error = recv(&conn).await.unwrap_err();
            assert_eq!((error.why(), error.close_code()), (Why::Protocol, Some(code)), "{n}: {error}");
            let close = (Opcode::Close, frame::close_payload(code, &error.to_string()));
            assert_eq!(far.frames(&far.heard().0), [close], "{n}");
        }
    });
}

#[test]
fn a_raw_message_that_is_too_long_is_refused_by_its_length_and_nothing_is_said() {
    run(async {
        let (conn, far) = tunnel(Framing::Raw, Role::Gateway, Room::default());
        far.say(&(MESSAGE_BYTES_MAX as u32 + 1).to_be_bytes());
        let error = recv(&conn).await.unwrap_err();
        assert!(matches!(error, ConnError::Message(MessageError::TooLong { .. })), "{error}");
        conn.ping().unwrap();
        conn.close(1009, "too long");
        assert_eq!(far.heard(), (Vec::new(), Then::Reset), "plain bytes have no word for it");

        let (conn, far) = tunnel(Framing::Raw, Role::Gateway, Room::default());
        far.say(&far.text(&padded(7, MESSAGE_BYTES_MAX)));
        assert_eq!(recv_number(&conn).await, 7, "so much is taken");
    });
}

#[test]
fn an_end_in_front_of_a_message_s_last_byte_is_never_a_message() {
    run(async {
        for (framing, role) in every_side() {
            let bytes = tunnel(framing, role, Room::default()).1.message(&fin(7));
            for cut in 0..bytes.len() {
                let (conn, far) = tunnel(framing, role, Room::default());
                far.say(&bytes[..cut]);
                far.finish();
                let error = recv(&conn).await.unwrap_err();
                assert!(matches!(error, ConnError::Truncated), "{framing:?} cut at {cut}: {error}");
                assert_eq!(error.why(), Why::Cut);
                let (conn, far) = tunnel(framing, role, Room::default());
                far.say(&bytes[..cut]);
                drop(far);
                let error = recv(&conn).await.unwrap_err();
                assert!(matches!(error, ConnError::Io(_)), "{framing:?} cut at {cut}: {error}");
                assert_eq!((error.why(), error.close_code()), (Why::Cut, None));
            }
            let (conn, far) = tunnel(framing, role, Room::default());
            far.say(&bytes);
            drop(far);
            assert_eq!(recv_number(&conn).await, 7, "what was said before a reset is heard");
        }
    });
}

#[test]
fn a_peer_s_frames_have_a_new_mask_each_and_a_gateway_s_have_none() {
    run(async {
        let masks = async |role, seed| {
            let (near, far) = Memory::pair(Room::default());
            let conn = Conn::new(near.into(), Framing::Framed, role, seed);
            for _ in 0..20 {
                conn.send(&fin(7)).await.unwrap();
                conn.ping().unwrap();
                assert!(conn.begin_frame().unwrap());
                let mut head = [0; HEADER_BYTES_MAX];
                let len = conn.write_header(&[], &mut head, 0);
                conn.wire().write_all(&head[..len]).await.unwrap();
                conn.end_frame().unwrap();
            }
            let far = FarEnd::new(far, Framing::Framed, role);
            let frames = far.take_apart(&far.heard().0);
            assert_eq!(frames.len(), 60);
            frames.into_iter().map(|(header, _)| header.mask).collect::<Vec<_>>()
        };
        assert!(masks(Role::Gateway, 1).await.iter().all(Option::is_none));
        let (some, others) = (masks(Role::Peer, 0).await, masks(Role::Peer, 2).await);
        let distinct: BTreeSet<_> = some.iter().chain(&others).flatten().collect();
        assert_eq!(distinct.len(), 120);
        assert!(!distinct.contains(&[0; 4]));
    });
}

#[test]
fn a_connection_goes_to_another_thread_with_what_it_has_half_read_and_not_yet_said() {
    run(async {
        let mut moving = Vec::new();
        for role in ROLES {
            let far = tunnel(Framing::Framed, role, Room::default()).1;
            let (ping, message) = (far.frame(Opcode::Ping, b"hi"), far.message(&fin(7)));
            // Up to the last byte of the message's header.
            let heads = ping.len() + message.len() - fin(7).encode().len();
            let bytes = [ping, message].concat();
            for cut in 0..heads {
                let (conn, far) = tunnel(Framing::Framed, role, room_for(512));
                let nonsense = stuff(conn.wire());
                conn.ping().unwrap();
                far.say(&bytes[..cut]);
                attend_to_all(&conn).await;
                assert!(conn.is_quiet(), "{role:?} cut at {cut}");
                let masked = conn.mask_state.get();
                let parts = conn.into_parts().unwrap();
                moving.push((parts, far, nonsense, bytes[cut..].to_vec(), masked));
            }
        }
        let there = move || {
            run(async {
                for (parts, far, nonsense, rest, masked) in moving {
                    let conn = Conn::from_parts(parts).unwrap();
                    assert_eq!(conn.mask_state.get(), masked, "no mask is used twice");
                    far.say(&rest);
                    assert_eq!(recv_number(&conn).await, 7);
                    let mut got = far.heard().0;
                    say_the_rest(&conn).await;
                    got.extend(far.heard().0);
                    let expected = [(Opcode::Ping, Vec::new()), (Opcode::Pong, b"hi".to_vec())];
                    assert_eq!(far.frames(&got[nonsense..]), expected);
                }
            });
        };
        thread::spawn(there).join().unwrap();
    });
}

#[test]
fn the_bytes_below_are_given_out_only_where_nothing_of_a_frame_is_elsewhere() {
    run(async {
        let fresh = || tunnel(Framing::Framed, Role::Peer, Room::default());
        let (conn, far) = fresh();
        far.say(&[far.message(&fin(7)), b"another protocol".to_vec()].concat());
        assert_eq!(recv_number(&conn).await, 7);
        let (wire, mut buf) = (conn.into_bare().unwrap(), [0; 64]);
        let n = wire.try_read(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"another protocol");

        let (conn, far) = fresh();
        far.say(&far.frame(Opcode::Ping, b"hi")[..1]);
        attend_to_all(&conn).await;
        assert!(conn.into_bare().is_none(), "half a header was read");

        let (conn, _far) = tunnel(Framing::Framed, Role::Peer, room_for(4));
        conn.ping().unwrap();
        assert!(conn.into_bare().is_none(), "half a ping was said");
    });
}

#[test]
fn behind_a_refused_session_its_data_is_thrown_away_and_the_next_message_is_not() {
    run(async {
        let data = |far: &FarEnd| far.frame(Opcode::Binary, &[7; 3000]).repeat(20);
        let end = |far: &FarEnd| far.message(&fin(60_000));
        let other = |far: &FarEnd| far.message(&Message::Fin { session: OTHER, bytes: 7 });
        type Said = fn(&FarEnd) -> Vec<u8>;
        let cases: [(Said, bool); 3] = [(data, false), (end, false), (other, true)];
        for (n, (said, is_next)) in cases.into_iter().enumerate() {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            far.say(&far.frame(Opcode::Ping, b"hi"));
            far.say(&said(&far));
            far.say(&data(&far));
            far.finish();
            let next = conn.recv_after(SESSION, Speaker::Client, Channel::Stream).await.unwrap();
            assert_eq!(next.is_some(), is_next, "{n}");
            assert_eq!(conn.wire().has_unread(), is_next, "{n}");
            assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())], "{n}");
        }
    });
}

#[test]
fn of_a_refused_session_no_more_is_read_than_a_client_may_send_early() {
    run(async {
        let (conn, far) = tunnel(Framing::Framed, Role::Gateway, room_for(16 * 1024));
        let said = Cell::new(0);
        let saying = async {
            loop {
                far.say_all(&[7; 1000]).await;
                said.set(said.get() + 1000);
            }
        };
        future::or(conn.drain(), saying).await;
        let most = DRAIN_BYTES_MAX + 16 * 1024 + READ_BYTES;
        assert!((DRAIN_BYTES_MAX - 1000..=most).contains(&said.get()), "{}", said.get());
    });
}

#[test]
fn who_only_attends_leaves_what_comes_to_whoever_reads_next() {
    run(async {
        for role in ROLES {
            for len in [100, 125, 126, 65_535, MESSAGE_BYTES_MAX] {
                let (conn, far) = tunnel(Framing::Framed, role, Room::default());
                let text = padded(7, len);
                far.say(&far.fragment(Opcode::Text, &text[..10]));
                far.say(&far.frame(Opcode::Ping, b"hi"));
                far.say(&far.frame(Opcode::Continuation, &text[10..]));
                far.say(&far.frame(Opcode::Binary, b"data"));
                for _ in 0..3 {
                    assert_eq!(conn.attend().await.unwrap(), Ahead::Message, "{role:?} {len}");
                }
                assert_eq!(recv_number(&conn).await, 7);
                for _ in 0..3 {
                    assert_eq!(conn.attend().await.unwrap(), Ahead::Data);
                }
                assert_eq!(read_data(&conn).await, b"data");
                assert_eq!(far.frames(&far.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
            }
        }
    });
}

#[test]
fn a_close_arrives_with_a_clean_end_where_there_is_a_place_for_it() {
    run(async {
        let close = |framing, room| {
            let (conn, far) = tunnel(framing, Role::Gateway, room);
            conn.close(4000, "over");
            far.heard()
        };
        let (got, then) = close(Framing::Framed, Room::default());
        assert_eq!((&got[2..], then), (&*frame::close_payload(4000, "over"), Then::End));
        assert_eq!(close(Framing::Framed, room_for(5)).1, Then::Reset, "half of it is none");
        assert_eq!(close(Framing::Raw, Room::default()), (Vec::new(), Then::Reset));
    });
}

#[test]
fn what_a_peer_has_asked_for_is_paid_before_it_is_heard_again() {
    run(async {
        let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
        far.say(&far.message(&fin(7)));
        conn.has_asked();
        let refused = conn.wire().try_read(&mut [0; 1]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(recv_number(&conn).await, 7);
    });
}
