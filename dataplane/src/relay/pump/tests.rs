//! Role: one direction of a session, step by step, against ends in memory.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use futures_lite::future::{self, poll_once, zip};
use narrowlink_proto::{
    frame::{self, Opcode},
    message::Message,
    upgrade::Framing,
};

use super::*;
use crate::{
    net::{
        buffer::{BULK_READ_BYTES, SMALL_READ_BYTES},
        memory,
    },
    run::worker,
    tunnel::{
        conn::{Conn, Role},
        far_end::{
            CALLS, FRAMINGS, FarEnd, OTHER, PAIRS, SESSION, Then, fin, in_calls_of, never, pattern, room_for,
            run, tunnel,
        },
    },
};

/// What a direction has beside its ends.
struct Beside {
    moved: Cell<u64>,
    gate: Gate,
    joint: Joint,
}

impl Beside {
    fn new(gate: Gate) -> Self {
        Self { moved: Cell::new(0), gate, joint: Joint::default() }
    }

    /// A direction from the client's side.
    fn pump<'a>(&'a self, source: &'a End<'a>, sink: &'a End<'a>) -> Pump<'a> {
        Pump {
            source,
            sink,
            source_side: Side::Client,
            moved: &self.moved,
            gate: &self.gate,
            meter: None,
            joint: &self.joint,
            at_rest: Cell::new(true),
        }
    }
}

fn open() -> Beside {
    Beside::new(Gate::opened())
}

/// Where a direction comes from, and where it goes to.
fn way(source: Framing, sink: Framing) -> ((Conn, FarEnd), (Conn, FarEnd)) {
    let connect = |framing, role| tunnel(framing, role, memory::Room::default());
    (connect(source, Role::Gateway), connect(sink, Role::Peer))
}

/// Moves what comes from one connection to the other until it ends.
async fn pump_all(source: &Conn, sink: &Conn, beside: &Beside) -> Result<(), Ended> {
    beside.pump(&End::of(source, SESSION), &End::of(sink, SESSION)).run().await
}

fn by_client(why: Why) -> Result<(), Ended> {
    Err(Ended { by: Side::Client, why })
}

fn by_target(why: Why) -> Result<(), Ended> {
    Err(Ended { by: Side::Target, why })
}

#[test]
fn no_shape_of_reads_and_writes_changes_a_byte_or_the_end() {
    run(async {
        for (one, other) in PAIRS {
            for call_bytes in CALLS {
                let (source, from) = tunnel(one, Role::Gateway, in_calls_of(call_bytes));
                let (sink, to) = tunnel(other, Role::Peer, memory::Room { bytes: 500, call_bytes });
                let (beside, payload) = (open(), pattern(7, 2000));
                let speaking = zip(from.say_session(&payload, 300), to.hear_session());
                let (ended, ((), heard)) = zip(pump_all(&source, &sink, &beside), speaking).await;
                assert_eq!((ended, heard == payload), (Ok(()), true), "{one:?} to {other:?}, {call_bytes}");
                assert_eq!(beside.moved.get(), 2000);
            }
        }
    });
}

#[test]
fn bulk_arrives_unchanged_whatever_it_goes_through() {
    run(async {
        for (one, other) in PAIRS {
            let ((source, from), (sink, to)) = way(one, other);
            let (beside, payload) = (open(), pattern(7, 3 << 20));
            let speaking = zip(from.say_session(&payload, 100_000), to.hear_session());
            let (ended, ((), heard)) = zip(pump_all(&source, &sink, &beside), speaking).await;
            assert_eq!((ended, heard == payload), (Ok(()), true), "{one:?} to {other:?}");
        }
    });
}

#[test]
fn frames_that_are_cut_at_any_byte_are_never_a_clean_end() {
    let pieces = |far: &FarEnd| {
        [
            (far.frame(Opcode::Binary, b"hello"), &b"hello"[..]),
            (far.fragment(Opcode::Binary, b", "), b", "),
            (far.frame(Opcode::Ping, b"hi"), b""),
            (far.frame(Opcode::Continuation, b"you"), b"you"),
            (far.message(&fin(10)), b""),
        ]
    };
    run(async {
        for (is_reset, framing) in
            [false, true].into_iter().flat_map(|reset| FRAMINGS.map(|one| (reset, one)))
        {
            let pieces = pieces(&way(Framing::Framed, framing).0.1);
            let bytes: Vec<_> = pieces.iter().flat_map(|(frame, _)| frame).copied().collect();
            for cut in 0..=bytes.len() {
                let ((source, from), (sink, to)) = way(Framing::Framed, framing);
                let beside = open();
                from.say(&bytes[..cut]);
                let kept = (!is_reset).then_some(from);
                kept.iter().for_each(FarEnd::finish);
                let ended = pump_all(&source, &sink, &beside).await;
                let is_whole = cut == bytes.len();
                let expected = if is_whole { Ok(()) } else { by_client(Why::Cut) };
                assert_eq!(ended, expected, "cut at {cut}");
                // What came of it has gone on.
                let (mut left, mut came) = (cut, Vec::new());
                for (frame, payload) in &pieces {
                    let head = frame.len() - payload.len();
                    came.extend_from_slice(&payload[..left.saturating_sub(head).min(payload.len())]);
                    left = left.saturating_sub(frame.len());
                }
                assert_eq!(to.heard_session(), (came, is_whole), "{framing:?} cut at {cut}");
            }
        }
    });
}

#[test]
fn plain_bytes_end_where_their_program_ended_them_and_a_reset_is_none() {
    run(async {
        for framing in FRAMINGS {
            for len in [0, 1, 2, 1000, 100_000] {
                let ((source, from), (sink, to)) = way(Framing::Raw, framing);
                let beside = open();
                from.say(&pattern(7, len));
                from.finish();
                assert_eq!(pump_all(&source, &sink, &beside).await, Ok(()));
                assert_eq!(to.heard_session(), (pattern(7, len), true), "{framing:?} {len}");

                let ((source, from), (sink, to)) = way(Framing::Raw, framing);
                let beside = open();
                from.say(&pattern(7, len));
                drop(from);
                assert_eq!(pump_all(&source, &sink, &beside).await, by_client(Why::Reset));
                assert_eq!(to.heard_session(), (pattern(7, len), false), "{framing:?} {len}");
            }
        }
    });
}

#[test]
fn a_fin_that_counts_anything_else_than_what_came_is_no_end() {
    run(async {
        for framing in FRAMINGS {
            for counted in [0, 9, 11, u64::MAX] {
                let ((source, from), (sink, to)) = way(Framing::Framed, framing);
                let beside = open();
                from.say(&from.payload(b"hello, you"));
                from.say(&from.message(&fin(counted)));
                assert_eq!(pump_all(&source, &sink, &beside).await, by_client(Why::Protocol));
                assert_eq!(to.heard_session(), (b"hello, you".to_vec(), false), "{framing:?} {counted}");
                let [(Opcode::Close, words)] = &from.frames(&from.heard().0)[..] else { panic!("no Close") };
                assert_eq!(frame::parse_close(words).unwrap().unwrap().0, 1002);
            }
        }
    });
}

#[test]
fn what_a_source_must_not_say_ends_the_session_behind_what_it_said_before() {
    let other = |far: &FarEnd| far.message(&Message::Fin { session: OTHER, bytes: 4 });
    type Wrong = (fn(&FarEnd) -> Vec<u8>, Why, Option<u16>);
    let table: [Wrong; 6] = [
        (|_| vec![0x82, 0], Why::Protocol, Some(1002)),
        (|far| far.frame(Opcode::Text, b"{}"), Why::Protocol, Some(1002)),
        (other, Why::Protocol, Some(1002)),
        (|far| far.message(&Message::Retire), Why::Protocol, Some(1002)),
        (|far| far.frame(Opcode::Ping, b"").repeat(1000), Why::Protocol, Some(1008)),
        (|far| far.frame(Opcode::Close, &frame::close_payload(4000, "reset")), Why::Reset, Some(4000)),
    ];
    run(async {
        for (n, (wrong, why, code)) in table.into_iter().enumerate() {
            let ((source, from), (sink, to)) = way(Framing::Framed, Framing::Raw);
            let beside = open();
            from.say(&[from.payload(b"last"), wrong(&from)].concat());
            assert_eq!(pump_all(&source, &sink, &beside).await, by_client(why), "{n}");
            assert_eq!(to.heard(), (b"last".to_vec(), Then::Nothing), "{n}");
            let frames = from.frames(&from.heard().0);
            let (Opcode::Close, words) = frames.last().unwrap() else { panic!("{n}: no Close") };
            assert_eq!(frame::parse_close(words).unwrap().map(|(code, _)| code), code, "{n}");
        }
    });
}

#[test]
fn a_sink_that_breaks_is_the_other_side_s_and_how_depends_on_whose_it_is() {
    run(async {
        for (one, other) in PAIRS {
            let ((source, from), (sink, to)) = way(one, other);
            let beside = open();
            from.say(&from.payload(b"hello"));
            drop(to);
            let why = if other == Framing::Raw { Why::Reset } else { Why::Cut };
            assert_eq!(pump_all(&source, &sink, &beside).await, by_target(why), "{one:?} to {other:?}");
            assert!(!beside.joint.ended_before.get(), "its reset was news");
            assert_eq!(beside.moved.get(), 0, "nothing of it counts");

            // A reset that was met before is told as a broken pipe, as that of one that has ended before.
            let ((source, from), (sink, to)) = way(one, other);
            let beside = open();
            from.say(&from.payload(b"hello"));
            drop(to);
            assert!(sink.wire().try_read(&mut [0; 1]).is_err());
            assert_eq!(pump_all(&source, &sink, &beside).await, by_target(why), "{one:?} to {other:?}");
            assert!(beside.joint.ended_before.get());
        }
        // At the very end, too.
        let ((source, from), (sink, to)) = way(Framing::Raw, Framing::Framed);
        let beside = open();
        from.finish();
        drop(to);
        assert_eq!(pump_all(&source, &sink, &beside).await, by_target(Why::Cut));
    });
}

#[test]
fn behind_a_fault_of_the_session_an_end_counts_only_if_it_was_surely_said_before() {
    let fault = Ended { by: Side::Client, why: Why::Vanished };
    run(async {
        for (framing, ended_before, expected) in [
            (Framing::Raw, false, by_client(Why::Reset)),
            (Framing::Raw, true, Ok(())),
            (Framing::Framed, false, Ok(())),
        ] {
            let ((source, from), (sink, to)) = way(framing, Framing::Raw);
            let beside = open();
            beside.joint.break_off(fault);
            beside.joint.ended_before.set(ended_before);
            from.say(&from.payload(b"last words"));
            from.end_session(10);
            assert_eq!(pump_all(&source, &sink, &beside).await, expected, "{framing:?}");
            assert_eq!(to.heard_session(), (b"last words".to_vec(), expected.is_ok()), "{framing:?}");
            assert_eq!(beside.joint.fault(), Some(fault), "the first one");
        }
    });
}

#[test]
fn a_side_that_may_have_more_to_say_is_waited_for_but_not_for_long() {
    let fault = Ended { by: Side::Client, why: Why::Reset };
    run(async {
        let ((source, from), (sink, to)) = way(Framing::Raw, Framing::Raw);
        let beside = open();
        beside.joint.break_off(fault);
        from.say(b"last words");
        let begun = Instant::now();
        assert_eq!(pump_all(&source, &sink, &beside).await, Err(fault));
        assert!(begun.elapsed() >= LAST_WAIT);
        assert_eq!(to.heard(), (b"last words".to_vec(), Then::Nothing));
    });
}

#[test]
fn a_sink_that_takes_nothing_stops_its_source() {
    const HOLDS: usize = 1000;
    run(async {
        for (one, other) in PAIRS {
            let (source, from) = tunnel(one, Role::Gateway, room_for(1 << 20));
            let (sink, to) = tunnel(other, Role::Gateway, room_for(HOLDS));
            let (source_end, sink_end, beside) = (End::of(&source, SESSION), End::of(&sink, SESSION), open());
            let pump = beside.pump(&source_end, &sink_end);
            let mut moving = pin!(pump.run());
            // In frames, where there are any: what is left of the last one is said with the next.
            let mut unsaid = Vec::new();
            let mut said = 0;
            let mut fill = || loop {
                if unsaid.is_empty() {
                    unsaid = from.payload(&[7; 60_000]);
                }
                let now = from.try_say(&unsaid);
                unsaid.drain(..now);
                said += now;
                if !unsaid.is_empty() {
                    return said - (1 << 20);
                }
            };
            assert_eq!(fill(), 0);
            assert!(poll_once(moving.as_mut()).await.is_none());
            assert_eq!(fill(), SMALL_READ_BYTES, "one read's worth is in hand");
            for _ in 0..5 {
                worker::turn().await;
                assert!(poll_once(moving.as_mut()).await.is_none());
            }
            assert!(fill() == SMALL_READ_BYTES && !pump.at_rest.get());
            // And where it has seen that there is much, a read of bulk.
            let heard = future::or(to.hear(300_000), never(moving.as_mut())).await.len();
            for _ in 0..5 {
                worker::turn().await;
                assert!(poll_once(moving.as_mut()).await.is_none());
            }
            let in_hand = fill() - heard;
            assert!(in_hand <= BULK_READ_BYTES + HOLDS, "{one:?} to {other:?}: {in_hand}");
        }
    });
}

#[test]
fn a_direction_that_rests_may_be_dropped_and_begun_anew_at_every_byte() {
    run(async {
        for (one, other) in PAIRS {
            let ((source, from), (sink, to)) = way(one, other);
            let beside = open();
            let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
            for byte in from.payload(b"hello, you").chunks(1) {
                let pump = beside.pump(&source_end, &sink_end);
                from.say(byte);
                assert!(poll_once(pump.run()).await.is_none());
                assert!(pump.at_rest.get());
            }
            from.end_session(10);
            assert_eq!(pump_all(&source, &sink, &beside).await, Ok(()));
            assert_eq!(to.heard_session(), (b"hello, you".to_vec(), true), "{one:?} to {other:?}");
        }
    });
}

#[test]
fn a_gate_lets_its_limit_pass_and_what_is_behind_it_waits_in_the_source() {
    run(async {
        for keeps in [false, true] {
            let gate = if keeps { Gate::keeping(10) } else { Gate::closed(10) };
            let ((source, from), (sink, to)) = way(Framing::Raw, Framing::Raw);
            let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
            let beside = Beside::new(gate);
            let pump = beside.pump(&source_end, &sink_end);
            let mut moving = pin!(pump.run());
            assert!(poll_once(moving.as_mut()).await.is_none());
            assert!(!beside.gate.was_used());
            from.say(b"0123456789 and more");
            from.finish();
            assert!(poll_once(moving.as_mut()).await.is_none());
            assert_eq!(to.heard(), (b"0123456789".to_vec(), Then::Nothing));
            assert!(beside.gate.was_used() && source.wire().has_unread());
            assert_eq!(beside.gate.take_kept(), if keeps { &b"0123456789"[..] } else { b"" });
            beside.gate.open();
            assert_eq!(moving.await, Ok(()));
            assert_eq!(to.heard(), (b" and more".to_vec(), Then::End));
        }
    });
}

#[test]
fn an_end_without_a_byte_passes_a_closed_gate_and_is_remembered() {
    run(async {
        for (one, other) in PAIRS {
            let ((source, from), (sink, to)) = way(one, other);
            let beside = Beside::new(Gate::closed(200));
            from.end_session(0);
            assert_eq!(pump_all(&source, &sink, &beside).await, Ok(()));
            assert_eq!(to.heard_session(), (Vec::new(), true));
            assert!(beside.gate.was_used() && !beside.gate.is_open());
        }
    });
}

/// So many bytes are left; every other look says that the next ones come a little later.
struct Ration {
    left: AtomicUsize,
    looks: AtomicUsize,
}

impl Meter for Ration {
    fn room(&self) -> Room {
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        match self.left.load(Ordering::Relaxed) {
            0 => Room::UsedUp,
            _ if look % 2 == 1 => Room::Later(Duration::from_millis(1)),
            left => Room::Now(left.min(7)),
        }
    }

    fn spend(&self, bytes: usize) {
        self.left.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[test]
fn a_limited_session_goes_on_as_it_may_and_ends_where_its_share_is_used_up() {
    run(async {
        for framing in FRAMINGS {
            let ((source, from), (sink, to)) = way(Framing::Raw, framing);
            let beside = open();
            let (source_end, sink_end) = (End::of(&source, SESSION), End::of(&sink, SESSION));
            let ration = Ration { left: AtomicUsize::new(50), looks: AtomicUsize::new(0) };
            let pump = Pump { meter: Some(&ration), ..beside.pump(&source_end, &sink_end) };
            from.say(&pattern(7, 100));
            assert_eq!(pump.run().await, Err(Ended { by: Side::Here, why: Why::UsedUp }));
            assert_eq!((beside.moved.get(), ration.left.into_inner()), (50, 0));
            assert_eq!(to.heard_session(), (pattern(7, 50), false), "{framing:?}");
            assert!(source.wire().has_unread(), "nothing more was read");
        }
    });
}
