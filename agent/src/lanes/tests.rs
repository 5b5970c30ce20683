//! Role: an agent's lanes, against a gateway in memory.

use std::{cell::Cell, io};

use futures_lite::future::zip;
use narrowlink_dataplane::{
    run::{timer::sleep, worker::spawn},
    transport::wire::Wire,
};
use narrowlink_proto::ended::Refused;

use super::*;
use crate::{
    config::LaneRange,
    fixture::{
        Fixture, Port, denied, dial, exchange, expect_refusal, heard, id, read_all, run, send_data,
        tunnel_ends,
    },
};

const MS: Duration = Duration::from_millis(1);

/// A lane that lives from now on, as its gateway has it.
fn open(lanes: &Arc<Lanes>) -> Conn {
    let (ours, theirs) = tunnel_ends(Framing::Framed);
    let (lanes, running) = (lanes.clone(), lanes.shared.tasks.begin());
    spawn(async move {
        lanes.live(Opened { conn: ours, place: descriptors::place().ok() }).await;
        drop(running);
    });
    theirs
}

async fn expect_retirement(gateway: &Conn) {
    let said = heard(gateway).await.unwrap();
    assert!(matches!(said, Message::Retire), "{}", said.name());
}

/// Runs a test on a runtime of its own: an agent that keeps one lane ready, and has four at the most.
fn test(main: impl AsyncFnOnce(Fixture, Arc<Lanes>)) {
    run(async || {
        let range = LaneRange { min: 1, max: 4 };
        let at = Fixture::with("gw.example:80".to_owned(), |config| config.lanes = range);
        let link = (LinkId::from_bytes([1; 32]), LinkSecret::from_bytes([2; 32]));
        let lanes = Lanes::new(at.shared.clone(), at.gateway(), link, Count::default());
        main(at, lanes).await;
    });
}

#[test]
fn a_gateway_that_gives_no_more_lanes_is_asked_seldom_and_complained_of_once() {
    let full = TunnelError::Refused(Refused::new(RefusalCode::Limited, "this token has 2 lanes already"));
    let (mut said, start) = (Said::default(), Instant::now());
    let times = (0..100).filter(|n| said.news(&full, start + LIMITED_PAUSE * *n).is_some()).count();
    assert_eq!(times, 100 * 5 / 60 + 1);
    let gone = TunnelError::Refused(Refused::new(RefusalCode::Draining, "x"));
    assert!(Said::default().news(&gone, start).is_some());
    assert!(said.news(&gone, start + LIMITED_PAUSE * 100).is_some(), "another trouble");
    let short = TunnelError::Conn(ConnError::Io(io::Error::from_raw_os_error(24)));
    let words = Said::default().news(&short, start).unwrap();
    assert!(words.contains("out of descriptors"), "{words}");
    for (error, pause, least, most) in [
        (&full, MS, LIMITED_PAUSE, LIMITED_PAUSE),
        (&full, LIMITED_PAUSE * 2, LIMITED_PAUSE * 2, LIMITED_PAUSE * 2),
        (&gone, MS, MS, MS),
        (&short, MS, MS, MS),
        (&short, LIMITED_PAUSE, SHORT_PAUSE_MAX, SHORT_PAUSE_MAX),
    ] {
        let pause = pause_after(error, pause);
        assert!((least..=most).contains(&pause), "{error}: {pause:?}");
    }
}

#[test]
fn lanes_in_all_stay_within_the_range_whatever_the_gateway_asks_for() {
    test(async |_at, lanes| {
        let missing = || lanes.pool.missing(lanes.idle_and_busy());
        assert_eq!(missing(), 1, "without a word of the gateway's");
        lanes.need(u32::MAX);
        assert_eq!(missing(), 4);
        let _of_another_link = Counted::new(&lanes.busy);
        assert_eq!(missing(), 3);
        let idle = Parked::new(&lanes, Gate::new().0);
        let _opening = lanes.pool.begin();
        assert_eq!(missing(), 1);
        drop(idle);
        let _retired_but_not_closed = Counted::new(&lanes.retiring);
        assert_eq!(missing(), 1);
    });
}

#[test]
fn a_dial_that_crosses_the_retirement_of_its_lane_is_served() {
    test(async |at, lanes| {
        let gateway = open(&lanes);
        gateway.send(&denied(1)).await.unwrap();
        expect_refusal(&gateway, 1).await;
        assert_eq!(lanes.idle(), 1);
        lanes.close();
        expect_retirement(&gateway).await;
        gateway.send(&denied(2)).await.unwrap();
        expect_refusal(&gateway, 2).await;
        expect_retirement(&gateway).await;
        gateway.close(1001, "");
        at.shared.tasks.done().await;
    });
}

#[test]
fn of_lanes_that_lie_unused_the_oldest_are_let_go_and_their_gateway_closes_them() {
    test(async |at, lanes| {
        let [first, second, newest] = [(); 3].map(|()| open(&lanes));
        while lanes.idle() < 3 {
            sleep(MS).await;
        }
        lanes.retire_oldest(2);
        zip(expect_retirement(&first), expect_retirement(&second)).await;
        // Until they are closed they count, and nothing new takes their place.
        assert_eq!(lanes.idle_and_busy(), (1, 2));
        for gateway in [&first, &second, &newest] {
            assert!(future::poll_once(heard(gateway)).await.is_none());
        }
        [first, second].into_iter().for_each(|gateway| gateway.close(1001, ""));
        while lanes.idle_and_busy().1 > 0 {
            sleep(MS).await;
        }
        newest.send(&denied(1)).await.unwrap();
        expect_refusal(&newest, 1).await;
        newest.close(1001, "");
        at.shared.tasks.done().await;
    });
}

#[test]
fn a_lost_link_takes_its_idle_lanes_along_and_leaves_a_session_alone() {
    test(async |at, lanes| {
        let target = Port::listen();
        let (idle, busy) = (open(&lanes), open(&lanes));
        busy.send(&Message::Dial(dial(id(1), target.target()))).await.unwrap();
        let (dialled, wire) = zip(heard(&busy), target.accept()).await;
        assert!(matches!(dialled, Ok(Message::Dialled { session, .. }) if session == id(1)));
        lanes.close();
        expect_retirement(&idle).await;
        let serving = async {
            let heard = read_all(&wire).await.unwrap();
            wire.write_all(&heard).await.unwrap();
            wire.close_gently();
        };
        let (said, ()) = zip(exchange(&busy, id(1), b"still here"), serving).await;
        assert_eq!(said.unwrap(), b"still here");
        let ready = heard(&busy).await.unwrap();
        assert!(matches!(ready, Message::Ready { session } if session == id(1)));
        // Without its link it is of no use to anybody.
        expect_retirement(&busy).await;
        [idle, busy].into_iter().for_each(|gateway| gateway.close(1001, ""));
        at.shared.tasks.done().await;
    });
}

#[test]
fn a_gateway_that_dials_a_session_twice_is_sent_away() {
    test(async |at, lanes| {
        let gateway = open(&lanes);
        for n in [1, 2] {
            gateway.send(&denied(n)).await.unwrap();
            expect_refusal(&gateway, n).await;
        }
        gateway.send(&denied(2)).await.unwrap();
        let Err(ConnError::Closed { code: 1002, why }) = heard(&gateway).await else { panic!("not closed") };
        assert_eq!(why, "this session was dialled before");
        at.shared.tasks.done().await;
    });
}

#[test]
fn what_follows_a_refused_dial_reaches_no_session_and_ends_the_lane() {
    test(async |at, lanes| {
        let gateway = open(&lanes);
        gateway.send(&denied(1)).await.unwrap();
        send_data(&gateway, b"for the target of the first").await;
        gateway.send(&denied(2)).await.unwrap();
        expect_refusal(&gateway, 1).await;
        while lanes.idle() == 0 {
            sleep(MS).await;
        }
        assert!(future::poll_once(heard(&gateway)).await.is_none(), "the second is not answered");
        gateway.hang_up();
        at.shared.tasks.done().await;
    });
}

#[test]
fn a_lane_without_a_descriptor_for_its_target_retires_at_once() {
    test(async |_at, lanes| {
        let (ours, gateway) = tunnel_ends(Framing::Framed);
        let told = async {
            expect_retirement(&gateway).await;
            assert_eq!(lanes.idle_and_busy(), (0, 1));
            gateway.close(1001, "");
        };
        zip(lanes.live(Opened { conn: ours, place: None }), told).await;
    });
}

#[test]
fn a_silent_gateway_is_pinged_and_given_up_only_when_it_does_not_answer() {
    run(async || {
        let (ours, theirs) = tunnel_ends(Framing::Framed);
        let answered_at = Cell::new((0, Instant::now()));
        let answering = async {
            for n in 1..=3 {
                expect_ping(theirs.wire()).await;
                theirs.wire().write_all(&[0x8A, 0]).await.unwrap();
                answered_at.set((n, Instant::now()));
            }
            future::pending().await
        };
        // Looked after first: however late this thread is, the answers are in time.
        let ended = future::or(answering, listen(&ours, None, 20 * MS, 40 * MS)).await;
        let why = ended.unwrap_err().to_string();
        assert!(why.contains("silence where an answer to a ping was due"), "{why}");
        let (answers, last) = answered_at.get();
        // The clock of signs of life counts whole milliseconds.
        assert!(answers == 3 && last.elapsed() >= 58 * MS, "{answers}, {:?}", last.elapsed());
    });
}

#[test]
fn a_ping_that_goes_out_late_has_as_much_time_for_its_answer_as_any() {
    run(async || {
        let (ours, theirs) = tunnel_ends(Framing::Framed);
        let standing_still = async {
            std::thread::sleep(100 * MS);
            expect_ping(theirs.wire()).await;
            sleep(MS).await;
            theirs.send(&denied(1)).await.unwrap();
            future::pending().await
        };
        let heard = future::or(standing_still, listen(&ours, None, 20 * MS, 40 * MS)).await;
        assert_eq!(heard.unwrap().unwrap().session, id(1));
    });
}

async fn expect_ping(gateway: &Wire) {
    let mut ping = [0; 64];
    assert_eq!((gateway.read(&mut ping).await.unwrap(), ping[0]), (6, 0x89));
}

#[test]
fn what_is_no_dial_ends_a_lane_and_is_named() {
    run(async || {
        for framing in [Framing::Framed, Framing::Raw] {
            let (ours, theirs) = tunnel_ends(framing);
            theirs.send(&Message::Fin { session: id(1), bytes: 0 }).await.unwrap();
            let why = listen(&ours, None, PING_AFTER, PONG_TIMEOUT).await.unwrap_err().to_string();
            assert!(why.contains("another message where a Dial was due"), "{why}");
        }
    });
}
