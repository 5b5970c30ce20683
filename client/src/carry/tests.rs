//! Role: local connections from their accept to their end, against a gateway in memory.

use std::{convert::Infallible, io, pin::Pin};

use futures_lite::future::zip;
use narrowlink_dataplane::tunnel::{conn::Conn, settle::settle};
use narrowlink_proto::ended::{Refused, Side};

use super::*;
use crate::fixture::{
    Port, accept, asked, exchange, heard, no, opener, plain_ends, read_all, refuse, run, stream, tcp, unread,
};

const MS: Duration = Duration::from_millis(1);

/// A forward to a gateway at that place, and what stops it.
fn forward_to(gateway: &str) -> (Rc<Carrier>, Sender<Infallible>) {
    let target = tcp("db", 1);
    let plan = Plan { agent: "home".to_owned(), target, listen: "127.0.0.1:0".parse().unwrap() };
    let (held, stop) = Stop::new();
    (Carrier::new(Shared::new(plan, opener(&[gateway]), stop)), held)
}

/// A forward that is expected to ask on streams that stand, and on nothing else.
fn forward() -> (Rc<Carrier>, Sender<Infallible>) {
    forward_to("127.0.0.1:1")
}

/// Keeps a stream ready; the gateway's end of it.
fn keep(forward: &Carrier) -> Conn {
    let (stream, gateway) = stream(&forward.shared.opener, 0);
    forward.warm.keep(stream);
    gateway
}

/// A program connects; its end, and what serves it.
fn connect(forward: &Rc<Carrier>) -> (Wire, Pin<Box<dyn Future<Output = ()>>>) {
    let (local, program) = plain_ends();
    let arrival = Arrival::new(local, forward.shared.enter(), descriptors::place().unwrap());
    let this = forward.clone();
    (program, Box::pin(async move { this.carry(arrival).await }))
}

fn test(main: impl AsyncFnOnce()) {
    run(main);
}

/// Whether the gateway limits nothing.
fn is_open(forward: &Carrier) -> bool {
    forward.shared.queue.turn_at_once().is_some()
}

/// How a program hears that it was not served.
async fn is_reset(program: &Wire) -> bool {
    read_all(program).await.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}

/// A session in which the target hears `question` and answers it, to its end.
async fn serve(gateway: &Conn, question: &[u8]) {
    let session = asked(gateway).await;
    accept(gateway, session).await;
    assert_eq!(exchange(gateway, session, b"answer").await.unwrap(), question);
    settle(gateway, session, Side::Client).await.unwrap();
}

/// Says this, ends its direction, and hears the answer.
async fn ask(program: &Wire, question: &[u8]) {
    program.write_all(question).await.unwrap();
    program.finish_write().await.unwrap();
    assert_eq!(read_all(program).await.unwrap(), b"answer");
}

#[test]
fn one_stream_serves_one_connection_after_the_other_and_each_hears_its_own_answer() {
    test(async || {
        let (forward, _held) = forward();
        let gateway = keep(&forward);
        for question in [b"one".as_slice(), b"two", b""] {
            let (program, carrying) = connect(&forward);
            zip(carrying, zip(ask(&program, question), serve(&gateway, question))).await;
            // It is ready again when the gateway has said that all was delivered.
            let stream = loop {
                match forward.warm.take().await {
                    Some(stream) => break stream,
                    None => sleep(MS).await,
                }
            };
            forward.warm.keep(stream);
        }
    });
}

#[test]
fn what_may_have_reached_the_target_is_never_sent_twice() {
    test(async || {
        let (forward, _held) = forward();
        let (other, newest) = (keep(&forward), keep(&forward));
        let (program, carrying) = connect(&forward);
        program.write_all(b"pay 100").await.unwrap();
        let breaking = async move {
            asked(&newest).await;
            newest.attend().await.unwrap();
            drop(newest);
        };
        zip(carrying, breaking).await;
        assert!(is_reset(&program).await);
        assert_eq!(unread(&other), 0, "it was asked for again");
        let said: Vec<_> = lock(&forward.shared.said).keys().cloned().collect();
        assert!(said.len() == 1 && said[0].contains("so it is not sent again"), "{said:?}");
    });
}

#[test]
fn a_program_that_has_said_nothing_is_served_by_another_try_on_a_new_stream() {
    test(async || {
        let port = Port::listen();
        let (forward, _held) = forward_to(&port.addr.to_string());
        let (left, newest) = (keep(&forward), keep(&forward));
        let (program, carrying) = connect(&forward);
        let serving = async {
            let first = asked(&newest).await;
            drop(newest);
            let (gateway, request) = port.upgrade().await;
            let session = request.open.unwrap().session;
            assert_ne!(session, first, "every try has an id of its own");
            let serving = async {
                assert_eq!(exchange(&gateway, session, b"answer").await.unwrap(), b"question");
                settle(&gateway, session, Side::Client).await.unwrap();
            };
            zip(ask(&program, b"question"), serving).await;
        };
        zip(carrying, serving).await;
        assert!(heard(&left).await.is_err(), "the others are dead, most likely");
    });
}

#[test]
fn a_refusal_that_passes_is_tried_again_with_all_that_was_said_before_it() {
    for code in [RefusalCode::AgentNotFound, RefusalCode::Draining] {
        test(async move || {
            let (forward, _held) = forward();
            let (second, first) = (keep(&forward), keep(&forward));
            let (program, carrying) = connect(&forward);
            let serving = async {
                let session = asked(&first).await;
                first.attend().await.unwrap();
                refuse(&first, session, no(code)).await;
                serve(&second, b"question").await;
            };
            zip(carrying, zip(ask(&program, b"question"), serving)).await;
            assert!(lock(&forward.shared.said).is_empty(), "nobody needs to know");
        });
    }
}

#[test]
fn a_refusal_for_good_resets_each_connection_and_is_said_once() {
    test(async || {
        let (forward, _held) = forward();
        let gateway = keep(&forward);
        for _ in 0..2 {
            let (program, carrying) = connect(&forward);
            let refusing = async {
                let session = asked(&gateway).await;
                refuse(&gateway, session, no(RefusalCode::Policy)).await;
            };
            zip(carrying, refusing).await;
            assert!(is_reset(&program).await);
            assert_eq!(lock(&forward.shared.said).len(), 1);
        }
    });
}

#[test]
fn while_sessions_come_too_fast_a_connection_waits_for_the_time_that_the_gateway_names() {
    test(async || {
        let (forward, _held) = forward();
        let gateway = keep(&forward);
        let (program, carrying) = connect(&forward);
        let serving = async {
            let session = asked(&gateway).await;
            let limited = Refused::new(RefusalCode::Limited, "slowly").retry_after(30 * MS);
            refuse(&gateway, session, limited).await;
            let refused_at = Instant::now();
            gateway.attend().await.unwrap();
            assert!(refused_at.elapsed() >= 30 * MS);
            serve(&gateway, b"question").await;
        };
        let asking = async {
            // Nothing early: so the stream serves again.
            while is_open(&forward) {
                sleep(MS).await;
            }
            ask(&program, b"question").await;
        };
        zip(carrying, zip(asking, serving)).await;
    });
}

#[test]
fn a_program_that_leaves_while_it_waits_is_let_go() {
    test(async || {
        let (forward, _held) = forward();
        let gateway = keep(&forward);
        let (program, carrying) = connect(&forward);
        let leaving = async {
            let session = asked(&gateway).await;
            let limited = Refused::new(RefusalCode::Limited, "slowly").retry_after(AWAY_TIMEOUT - 500 * MS);
            refuse(&gateway, session, limited).await;
            while is_open(&forward) {
                sleep(MS).await;
            }
            drop(program);
        };
        let begun = Instant::now();
        zip(carrying, leaving).await;
        assert!(begun.elapsed() < AWAY_TIMEOUT / 2, "{:?}", begun.elapsed());
    });
}

#[test]
fn connections_ask_in_the_order_in_which_they_came() {
    test(async || {
        let (forward, _held) = forward();
        let (second, first) = (keep(&forward), keep(&forward));
        let ((one, carrying_one), (two, carrying_two)) = (connect(&forward), connect(&forward));
        let serving = Box::pin(zip(serve(&first, b"one"), serve(&second, b"two")));
        let asking = zip(ask(&two, b"two"), ask(&one, b"one"));
        // The later one has its turn first.
        zip(zip(carrying_two, carrying_one), zip(asking, serving)).await;
    });
}

#[test]
fn a_connection_begins_only_behind_the_one_before_however_long_its_worker_takes() {
    test(async || {
        let (forward, _held) = forward();
        let (mut one, mut two) = (forward.shared.enter(), forward.shared.enter());
        let mut waiting = Box::pin(two.wait());
        assert!(timeout(ORDER_TIMEOUT * 4, waiting.as_mut()).await.is_err());
        one.wait().await;
        waiting.await;
        let (gone, mut next) = (forward.shared.enter(), forward.shared.enter());
        drop(gone);
        next.wait().await;
    });
}

#[test]
fn a_forward_that_stops_resets_what_is_under_way() {
    test(async || {
        let (forward, held) = forward();
        let gateway = keep(&forward);
        let (program, carrying) = connect(&forward);
        let stopping = async {
            let session = asked(&gateway).await;
            accept(&gateway, session).await;
            program.write_all(b"half").await.unwrap();
            gateway.attend().await.unwrap();
            drop(held);
            let _ = read_all(gateway.wire()).await;
            drop(gateway);
            is_reset(&program).await
        };
        assert!(zip(carrying, stopping).await.1);
    });
}

#[test]
fn however_many_troubles_there_are_few_are_remembered() {
    let (forward, _held) = forward();
    for n in 0..SAID_MAX * 2 {
        forward.shared.say(&Failure::new(Exit::Unreachable, format!("trouble {n}")));
    }
    assert_eq!(lock(&forward.shared.said).len(), SAID_MAX);
}
