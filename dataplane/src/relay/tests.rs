//! Role: sessions over every pair of ends, in memory: bytes, half-closes, resets, order.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_lite::future::{poll_once, zip};
use narrowlink_proto::{
    ended::Why,
    frame::{self, Opcode},
    message::{Channel, Message, Speaker},
    upgrade::Framing,
};
use proptest::prelude::*;

use super::*;
use crate::{
    net::memory::{self, Memory},
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, Role},
        far_end::{
            CALLS, FarEnd, OTHER, PAIRS, SESSION, Then, cases, fin, in_calls_of, never, pattern, room_for,
            run, tunnel,
        },
        linger,
    },
};

const SIDES: [Side; 2] = [Side::Client, Side::Target];

/// A session at its gateway: our two ends, and who plays the others.
struct Session {
    client: Conn,
    target: Conn,
    traffic: Traffic,
}

/// Between two connections and their far ends; those of the side that acts first come first.
fn session_of(
    acting: Side,
    (conn, far): (Conn, FarEnd),
    (other_conn, other_far): (Conn, FarEnd),
) -> (Session, FarEnd, FarEnd) {
    let is_client = acting == Side::Client;
    let (client, target) = if is_client { (conn, other_conn) } else { (other_conn, conn) };
    (Session { client, target, traffic: Traffic::default() }, far, other_far)
}

fn session(acting: Side, its: Framing, other: Framing) -> (Session, FarEnd, FarEnd) {
    let connect = |framing| tunnel(framing, Role::Gateway, memory::Room::default());
    session_of(acting, connect(its), connect(other))
}

fn session_in(client: Framing, target: Framing, room: memory::Room) -> (Session, FarEnd, FarEnd) {
    let connect = |framing| tunnel(framing, Role::Gateway, room);
    session_of(Side::Client, connect(client), connect(target))
}

impl Session {
    fn ends(&self) -> (End<'_>, End<'_>) {
        (End::of(&self.client, SESSION), End::of(&self.target, SESSION))
    }

    fn conn(&self, side: Side) -> &Conn {
        if side == Side::Client { &self.client } else { &self.target }
    }

    async fn relay(&self) -> Result<(), Ended> {
        let (client, target) = self.ends();
        relay(client, target, &self.traffic).await
    }

    /// Relays behind an answer.
    async fn relay_behind(
        &self,
        gate: &Gate,
        answer: impl Future<Output = Result<(), Unanswered>>,
    ) -> Result<(), Unanswered> {
        let (client, target) = self.ends();
        relay_behind(client, target, &self.traffic, gate, answer).await
    }
}

/// Why a session did not begin, or what it ended with.
#[derive(Debug, PartialEq, Eq)]
enum Unanswered {
    Refused,
    Ended(Ended),
}

impl From<Ended> for Unanswered {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// An answer that comes when it is given.
fn answer() -> (async_channel::Sender<bool>, impl Future<Output = Result<(), Unanswered>>) {
    let (give, given) = async_channel::bounded(1);
    let answer = async move { if given.recv().await.unwrap() { Ok(()) } else { Err(Unanswered::Refused) } };
    (give, answer)
}

fn broken(by: Side, why: Why) -> Result<(), Ended> {
    Err(Ended { by, why })
}

/// What a reset of this end is.
fn reset_of(framing: Framing) -> Why {
    if framing == Framing::Raw { Why::Reset } else { Why::Cut }
}

fn every_session() -> impl Iterator<Item = (Side, Framing, Framing)> {
    SIDES.into_iter().flat_map(|side| PAIRS.map(|(its, other)| (side, its, other)))
}

#[test]
fn a_session_that_stands_is_small() {
    run(async {
        let wire = Wire::from(Memory::pair(memory::Room::default()).0);
        let (end, traffic, gate) = (End::raw(&wire), Traffic::default(), Gate::opened());
        let answer = async { Ok::<(), Ended>(()) };
        let bytes = size_of_val(&relay_behind(end, end, &traffic, &gate, answer));
        assert!(bytes <= 1536, "{bytes} bytes");
        assert!(size_of::<Conn>() <= 320, "{} bytes", size_of::<Conn>());
    });
}

#[test]
fn no_shape_of_reads_and_writes_changes_a_byte_in_either_direction() {
    run(async {
        for (client, target) in PAIRS {
            for call_bytes in CALLS {
                let (session, near, far) = session_in(client, target, in_calls_of(call_bytes));
                let (up, down) = (pattern(7, 1000), pattern(9, 1500));
                let going_up = zip(near.say_session(&up, 300), far.hear_session());
                let going_down = zip(far.say_session(&down, 70), near.hear_session());
                let (ended, (((), heard_up), ((), heard_down))) =
                    zip(session.relay(), zip(going_up, going_down)).await;
                assert_eq!(ended, Ok(()), "{client:?} {target:?} {call_bytes}");
                assert!(heard_up == up && heard_down == down, "{client:?} {target:?} {call_bytes}");
                let traffic = &session.traffic;
                assert_eq!((traffic.up_bytes.get(), traffic.down_bytes.get()), (1000, 1500));
            }
        }
    });
}

#[test]
fn any_session_arrives_as_it_was_said() {
    let framing = || prop_oneof![Just(Framing::Framed), Just(Framing::Raw)];
    let room = (1..5000usize, 1..5000usize);
    let lens = (0..20_000usize, 0..20_000usize, 1..3000usize);
    run(async {
        for (client, target, (bytes, call_bytes), (up, down, piece)) in
            cases(&(framing(), framing(), room, lens), 100)
        {
            let (session, near, far) = session_in(client, target, memory::Room { bytes, call_bytes });
            let (up, down) = (pattern(7, up), pattern(9, down));
            let going_up = zip(near.say_session(&up, piece), far.hear_session());
            let going_down = zip(far.say_session(&down, piece), near.hear_session());
            let (ended, (((), heard_up), ((), heard_down))) =
                zip(session.relay(), zip(going_up, going_down)).await;
            let shape = (client, target, bytes, call_bytes, up.len(), down.len(), piece);
            assert_eq!(ended, Ok(()), "{shape:?}");
            assert!(heard_up == up && heard_down == down, "{shape:?}");
        }
    });
}

#[test]
fn either_side_may_finish_first_and_still_hears_the_other() {
    run(async {
        for (first, its, other) in every_session() {
            let (session, first_end, second_end) = session(first, its, other);
            let speaking = async {
                first_end.say_session(b"question", 3).await;
                assert_eq!(second_end.hear_session().await, b"question");
                assert_eq!(first_end.heard(), (Vec::new(), Then::Nothing), "the other direction goes on");
                second_end.say_session(b"a long answer", 3).await;
                assert_eq!(first_end.hear_session().await, b"a long answer");
            };
            assert_eq!(zip(session.relay(), speaking).await.0, Ok(()), "{first:?} {its:?} {other:?}");
            for side in SIDES {
                assert!(session.conn(side).is_quiet(), "it can serve another session");
            }
        }
    });
}

#[test]
fn what_a_side_said_before_it_broke_goes_on_and_no_end_behind_it() {
    run(async {
        for (side, its, other) in every_session() {
            let (session, breaking, hearing) = session(side, its, other);
            breaking.say(&breaking.payload(b"last words"));
            drop(breaking);
            assert_eq!(session.relay().await, broken(side, reset_of(its)), "{side:?} {its:?} {other:?}");
            assert_eq!(hearing.heard_session(), (b"last words".to_vec(), false));
        }
    });
}

#[test]
fn an_answer_goes_on_although_the_session_broke_at_a_word_to_who_gave_it() {
    run(async {
        for (side, its, other) in every_session() {
            let (session, breaking, hearing) = session(side, its, other);
            // An upload meets a side that has answered and is gone.
            hearing.say(&hearing.payload(&pattern(7, 100_000)));
            breaking.say(&breaking.payload(&pattern(9, 50_000)));
            drop(breaking);
            assert_eq!(session.relay().await, broken(side, reset_of(its)), "{side:?} {its:?} {other:?}");
            assert_eq!(hearing.heard_session(), (pattern(9, 50_000), false), "{side:?} {its:?} {other:?}");
        }
    });
}

#[test]
fn what_is_in_hand_of_a_side_that_broke_goes_on_as_the_other_takes_it() {
    run(async {
        for (side, its, other) in every_session() {
            let its_own = tunnel(its, Role::Gateway, memory::Room::default());
            let slow = tunnel(other, Role::Gateway, room_for(5000));
            let (session, breaking, hearing) = session_of(side, its_own, slow);
            let said = pattern(7, 100_000);
            breaking.say(&breaking.payload(&said));
            let mut relaying = pin!(session.relay());
            assert!(poll_once(relaying.as_mut()).await.is_none());
            drop(breaking);
            // A word to who is gone shows it.
            hearing.say(&hearing.payload(b"wait"));
            let (ended, heard) = zip(relaying, hearing.hear_payload(said.len())).await;
            assert_eq!(ended, broken(side, reset_of(its)), "{side:?} {its:?} {other:?}");
            assert!(heard == said, "{side:?} {its:?} {other:?}");
            assert_eq!(hearing.heard_session(), (Vec::new(), false));
        }
    });
}

#[test]
fn frames_that_are_cut_at_any_byte_end_cleanly_at_neither_side() {
    let said = |far: &FarEnd| {
        [far.payload(b"hello"), far.frame(Opcode::Ping, b"hi"), far.payload(b""), far.message(&fin(5))]
            .concat()
    };
    run(async {
        for (side, its, other) in every_session().filter(|(_, its, _)| *its == Framing::Framed) {
            let len = said(&session(side, its, other).1).len();
            for cut in 0..len {
                for is_reset in [false, true] {
                    let (session, cut_off, hearing) = session(side, its, other);
                    cut_off.say(&said(&cut_off)[..cut]);
                    let kept = (!is_reset).then_some(cut_off);
                    kept.iter().for_each(FarEnd::finish);
                    let ended = session.relay().await;
                    assert_eq!(ended, broken(side, Why::Cut), "{side:?} {other:?} cut at {cut}");
                    let (payload, is_clean) = hearing.heard_session();
                    assert!(b"hello".starts_with(&payload[..]) && !is_clean, "{other:?} cut at {cut}");
                    // And when its connection goes, that is a reset.
                    drop(session);
                    assert_eq!(hearing.heard().1, Then::Reset);
                }
            }
        }
    });
}

#[test]
fn a_broken_session_is_over_for_both_programs_and_is_never_an_end() {
    run(async {
        let (session, client, target) = session(Side::Client, Framing::Framed, Framing::Raw);
        client.say(&client.frame(Opcode::Close, &frame::close_payload(4000, "reset")));
        let ended = session.relay().await.unwrap_err();
        assert_eq!(ended, Ended { by: Side::Client, why: Why::Reset });
        let bare = session.target.into_bare().unwrap();
        client.finish();
        linger::reset_session(session.client, bare, ended).await;
        assert_eq!(target.heard(), (Vec::new(), Then::Reset));
        let (got, then) = client.heard();
        assert_eq!(client.frames(&got), [(Opcode::Close, frame::close_payload(4000, ""))]);
        assert_eq!(then, Then::End);
    });
}

#[test]
fn before_the_answer_no_more_goes_up_than_the_gate_lets_and_nothing_down() {
    run(async {
        for (client, target) in PAIRS {
            let (session, near, far) = session(Side::Client, client, target);
            let first = near.payload(b"question");
            let (gate, (give, answer)) = (Gate::closed(first.len()), answer());
            near.say(&[first, near.payload(b" and more")].concat());
            near.end_session(17);
            far.say(&far.payload(b"greeting"));
            let opened = async {
                answer.await?;
                gate.open();
                Ok(())
            };
            let mut relaying = pin!(session.relay_behind(&gate, opened));
            for _ in 0..3 {
                assert!(poll_once(relaying.as_mut()).await.is_none());
            }
            assert_eq!(far.heard_session(), (b"question".to_vec(), false), "{client:?} {target:?}");
            assert_eq!(near.heard(), (Vec::new(), Then::Nothing), "{client:?} {target:?}");
            give.try_send(true).unwrap();
            for _ in 0..3 {
                assert!(poll_once(relaying.as_mut()).await.is_none());
            }
            assert_eq!(far.heard_session(), (b" and more".to_vec(), true));
            assert_eq!(near.heard_session(), (b"greeting".to_vec(), false));
            far.end_session(8);
            assert_eq!(relaying.await, Ok(()));
            assert_eq!(near.heard_session(), (Vec::new(), true));
        }
    });
}

#[test]
fn a_refusal_is_what_the_client_hears_whatever_went_up_and_became_of_it() {
    run(async {
        for (client, target) in PAIRS {
            for breaks in [false, true] {
                let (session, near, far) = session(Side::Client, client, target);
                let (gate, (give, answer)) = (Gate::closed(1000), answer());
                near.say(&near.payload(b"question"));
                far.say(&far.payload(b"greeting"));
                // A word of the lane may break in front of its refusal.
                let kept = (!breaks).then_some(far);
                let mut relaying = pin!(session.relay_behind(&gate, answer));
                assert!(poll_once(relaying.as_mut()).await.is_none());
                give.try_send(false).unwrap();
                assert_eq!(relaying.await, Err(Unanswered::Refused), "{client:?} {target:?}");
                assert_eq!(near.heard(), (Vec::new(), Then::Nothing), "nothing has gone down");
                assert!(gate.was_used());
                drop(kept);
            }
        }
    });
}

#[test]
fn a_lane_that_broke_behind_its_answer_is_heard_out() {
    run(async {
        let (session, near, far) = session(Side::Client, Framing::Framed, Framing::Framed);
        let (gate, (give, answer)) = (Gate::closed(1000), answer());
        near.say(&near.payload(b"question"));
        far.say(&far.payload(b"last words"));
        drop(far);
        let opened = async {
            answer.await?;
            gate.open();
            Ok(())
        };
        let mut relaying = pin!(session.relay_behind(&gate, opened));
        assert!(poll_once(relaying.as_mut()).await.is_none(), "it waits for the answer");
        give.try_send(true).unwrap();
        let lost = Unanswered::Ended(Ended { by: Side::Target, why: Why::Cut });
        assert_eq!(relaying.await, Err(lost));
        assert_eq!(near.heard_session(), (b"last words".to_vec(), false));
    });
}

#[test]
fn an_answer_that_is_half_said_is_said_to_its_end_although_the_lane_breaks() {
    run(async {
        let (session, near, far) = session(Side::Client, Framing::Framed, Framing::Framed);
        let (gate, (give, rest)) = (Gate::closed(1000), answer());
        near.say(&near.payload(b"question"));
        far.say(&far.payload(b"last words"));
        drop(far);
        let said = Cell::new(false);
        let half_said = async {
            gate.open();
            rest.await?;
            said.set(true);
            Ok(())
        };
        let mut relaying = pin!(session.relay_behind(&gate, half_said));
        for _ in 0..3 {
            assert!(poll_once(relaying.as_mut()).await.is_none());
        }
        assert_eq!(near.heard(), (Vec::new(), Then::Nothing));
        give.try_send(true).unwrap();
        let lost = Unanswered::Ended(Ended { by: Side::Target, why: Why::Cut });
        assert_eq!((relaying.await, said.get()), (Err(lost), true));
        assert_eq!(near.heard_session(), (b"last words".to_vec(), false));
    });
}

#[test]
fn a_client_whose_data_must_wait_is_still_heard() {
    run(async {
        let closing = |far: &FarEnd| far.frame(Opcode::Close, &frame::close_payload(1000, ""));
        for (leaves, why) in [(true, Why::Reset), (false, Why::Cut)] {
            let (session, near, far) = session(Side::Client, Framing::Framed, Framing::Framed);
            let (gate, (_give, answer)) = (Gate::closed(0), answer());
            let mut relaying = pin!(session.relay_behind(&gate, answer));
            near.say(&near.frame(Opcode::Ping, b"hi"));
            assert!(poll_once(relaying.as_mut()).await.is_none());
            assert_eq!(near.frames(&near.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
            if leaves {
                near.say(&closing(&near));
            } else {
                near.finish();
            }
            let ended = Unanswered::Ended(Ended { by: Side::Client, why });
            assert_eq!(relaying.await, Err(ended));
            assert_eq!(far.heard(), (Vec::new(), Then::Nothing));
        }
        // What is read to hear it is passed on when the gate opens.
        let (session, near, far) = session(Side::Client, Framing::Framed, Framing::Framed);
        let (gate, (give, answer)) = (Gate::closed(0), answer());
        near.say(&near.payload(b"question"));
        near.end_session(8);
        far.end_session(0);
        let opened = async {
            answer.await?;
            gate.open();
            Ok(())
        };
        let mut relaying = pin!(session.relay_behind(&gate, opened));
        assert!(poll_once(relaying.as_mut()).await.is_none());
        assert_eq!(far.heard(), (Vec::new(), Then::Nothing));
        give.try_send(true).unwrap();
        assert_eq!(relaying.await, Ok(()));
        assert_eq!(far.heard_session(), (b"question".to_vec(), true));
    });
}

#[test]
fn who_has_finished_is_still_heard_and_must_not_go_on() {
    let data = |far: &FarEnd| far.payload(b"more");
    let close = |far: &FarEnd| far.frame(Opcode::Close, &frame::close_payload(1000, ""));
    type Said = fn(&FarEnd) -> Vec<u8>;
    let table: [(Said, Why, u16); 2] = [(data, Why::Protocol, 1002), (close, Why::Reset, 1000)];
    run(async {
        for side in SIDES {
            for (said, why, code) in table {
                let (session, finished, other) = session(side, Framing::Framed, Framing::Framed);
                let mut relaying = pin!(session.relay());
                finished.end_session(0);
                finished.say(&finished.frame(Opcode::Ping, b"hi"));
                assert!(poll_once(relaying.as_mut()).await.is_none());
                assert_eq!(finished.frames(&finished.heard().0), [(Opcode::Pong, b"hi".to_vec())]);
                other.say(&other.payload(b"still here"));
                assert!(poll_once(relaying.as_mut()).await.is_none());
                assert_eq!(finished.heard_session(), (b"still here".to_vec(), false));
                finished.say(&said(&finished));
                assert_eq!(relaying.await, broken(side, why), "{side:?}");
                let [(Opcode::Close, words)] = &finished.frames(&finished.heard().0)[..] else {
                    panic!("no Close");
                };
                assert_eq!(frame::parse_close(words).unwrap().unwrap().0, code);
                assert_eq!(other.heard_session(), (Vec::new(), true), "its end was one");
            }
            let (session, finished, _other) = session(side, Framing::Framed, Framing::Framed);
            finished.end_session(0);
            let mut relaying = pin!(session.relay());
            assert!(poll_once(relaying.as_mut()).await.is_none());
            drop(finished);
            assert_eq!(relaying.await, broken(side, Why::Cut), "a session needs both");
        }
    });
}

#[test]
fn a_message_behind_the_end_is_for_whoever_reads_next() {
    run(async {
        let (session, client, target) = session(Side::Client, Framing::Framed, Framing::Framed);
        let next = Message::Fin { session: OTHER, bytes: 7 };
        client.end_session(0);
        client.say(&client.message(&next));
        let mut relaying = pin!(session.relay());
        assert!(poll_once(relaying.as_mut()).await.is_none());
        target.say_session(b"the last answer", 4).await;
        assert_eq!(zip(relaying, client.hear_session()).await, (Ok(()), b"the last answer".to_vec()));
        let heard = session.client.recv(Speaker::Client, Channel::Stream).await.unwrap();
        assert_eq!(heard.encode(), next.encode());
    });
}

#[test]
fn a_session_that_is_dropped_at_rest_goes_on_in_another_relay() {
    run(async {
        for (client, target) in PAIRS {
            let (session, near, far) = session(Side::Client, client, target);
            for (up, down) in [(b"one, ", b"ONE, "), (b"two, ", b"TWO, ")] {
                near.say(&near.payload(up));
                far.say(&far.payload(down));
                assert!(poll_once(session.relay()).await.is_none());
                assert_eq!(far.heard_session(), (up.to_vec(), false));
                assert_eq!(near.heard_session(), (down.to_vec(), false));
            }
            near.end_session(10);
            far.end_session(10);
            assert_eq!(session.relay().await, Ok(()), "{client:?} {target:?}");
            assert_eq!((near.heard_session(), far.heard_session()), ((vec![], true), (vec![], true)));
        }
    });
}

#[test]
fn a_stalled_reader_stops_its_own_direction_and_not_the_other() {
    run(async {
        for (client, target) in PAIRS {
            let (session, near, far) =
                session_in(client, target, memory::Room { bytes: 5000, call_bytes: 999 });
            // More than there is room for anywhere on the way.
            let (up, down) = (pattern(7, 1 << 20), pattern(9, 60_000));
            let saying = never(near.say_session(&up, 1000));
            let answering = zip(far.say_session(&down, 1000), near.hear_session());
            let ((), heard) = future::or(never(session.relay()), future::or(saying, answering)).await;
            assert!(heard == down, "{client:?} {target:?}");
            assert!(session.traffic.up_bytes.get() < 100_000, "{client:?} {target:?}");
        }
    });
}

/// The share of a month that is used up after so many bytes.
struct Share(AtomicUsize);

impl Meter for Share {
    fn room(&self) -> Room {
        match self.0.load(Ordering::Relaxed) {
            0 => Room::UsedUp,
            left => Room::Now(left),
        }
    }

    fn spend(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[test]
fn a_month_s_bytes_are_both_directions_and_their_end_is_nobody_s_fin() {
    run(async {
        let (mut session, client, target) = session(Side::Client, Framing::Framed, Framing::Raw);
        session.traffic.meter = Some(Arc::new(Share(100.into())));
        let mut relaying = pin!(session.relay());
        client.say(&client.payload(&pattern(7, 40)));
        assert!(poll_once(relaying.as_mut()).await.is_none());
        target.say(&pattern(9, 1000));
        assert_eq!(relaying.await, broken(Side::Here, Why::UsedUp));
        assert_eq!(target.heard_session(), (pattern(7, 40), false));
        assert_eq!(client.heard_session(), (pattern(9, 60), false));
    });
}
