//! Role: what is checked, for each version, cipher and side. `None`: the case is not for these.

use std::{io, net::Shutdown, os::fd::AsFd as _, sync::mpsc, thread, time::Instant};

use futures_lite::future::zip;
use narrowlink_dataplane::{
    net::plain::Plain,
    relay::{Traffic, relay},
    run::worker::{run_alone, run_on_epoll},
    tls::{Ktls, TlsStream, choose_ktls},
    transport::wire::Wire,
    tunnel::end::End,
};
use rustls::HandshakeKind;

use crate::ends::{CHUNK_BYTES, Peer, Suite, bytes, hears, joined, leaves, pair, read, says};

type Case = fn(&Suite, Peer, usize) -> Option<String>;

pub(crate) const CASES: [(&str, Case); 12] = [
    ("bulk both ways, half-close, close_notify", bulk),
    ("the same on epoll, entered while bytes flow", entered_in_the_middle),
    ("EOF without close_notify is an error", truncated),
    ("EOF within a record is an error", cut),
    ("a bent record is an error", bent),
    ("tickets are kept", tickets),
    ("new keys, or a clear end", new_keys),
    ("the middle of a stream on another thread", handed_over),
    ("a session of the relay", relayed),
    ("spliced up to an EOF without close_notify", spliced_and_truncated),
    ("records are counted", counted),
    ("a reset ends a wait for the last byte", reset),
];

fn bulk(suite: &Suite, peer: Peer, count: usize) -> Option<String> {
    let ours = async |tls: TlsStream| {
        let heard = async {
            hears(&tls, 0, count, CHUNK_BYTES).await;
            assert_eq!(read(&tls, &mut [0; 9]).await.unwrap(), 0);
            assert_eq!(read(&tls, &mut [0; 9]).await.unwrap(), 0);
        };
        zip(heard, says(&tls, 7, count)).await;
        says(&tls, 7 + count, 1000).await;
        leaves(tls).await;
    };
    suite.between(peer, ours, |mut library| {
        library.say(0, count);
        library.end();
        library.hears(7, count + 1000);
        library.hears_end();
    });
    Some(format!("{} MiB each way", count >> 20))
}

fn entered_in_the_middle(suite: &Suite, peer: Peer, count: usize) -> Option<String> {
    let (near, far) = pair();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut library = suite.library(peer, far);
            library.say(0, count);
            library.end();
            library.hears(0, count);
            library.hears_end();
        });
        let ours = scope.spawn(|| {
            run_on_epoll(|_| async {
                let tls = suite.ours(peer, near).await;
                hears(&tls, 0, count / 2 + 1234, 50_001).await;
                assert!(tls.enter_kernel());
                hears(&tls, count / 2 + 1234, count - count / 2 - 1234, 70_001).await;
                assert!(tls.in_kernel(), "there was a boundary between two records");
                assert_eq!(read(&tls, &mut [0; 9]).await.unwrap(), 0);
                says(&tls, 0, count).await;
                leaves(tls).await;
            })
            .unwrap();
        });
        joined(ours);
    });
    Some(format!("{} MiB each way", count >> 20))
}

fn truncated(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    let ours = async |tls: TlsStream| {
        hears(&tls, 0, 1000, 64).await;
        for _ in 0..2 {
            assert_eq!(read(&tls, &mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    };
    let (_, library) = suite.between(peer, ours, |mut library| {
        library.say(0, 1000);
        library.tcp.shutdown(Shutdown::Write).unwrap();
        library
    });
    drop(library);
    Some("UnexpectedEof, again and again".into())
}

fn cut(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    use std::io::Write as _;
    let ours = async |tls: TlsStream| {
        hears(&tls, 0, 1000, 64).await;
        assert_eq!(read(&tls, &mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    };
    let (_, library) = suite.between(peer, ours, |mut library| {
        library.say(0, 1000);
        library.tcp.write_all(&[23, 3, 3, 1, 0, 1, 2, 3]).unwrap();
        library.tcp.shutdown(Shutdown::Write).unwrap();
        library
    });
    drop(library);
    Some("UnexpectedEof".into())
}

fn bent(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    use std::io::Write as _;
    let ours = async |tls: TlsStream| {
        hears(&tls, 0, 1000, 4096).await;
        let error = read(&tls, &mut [0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert_eq!(read(&tls, &mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        error.to_string()
    };
    let (error, library) = suite.between(peer, ours, |mut library| {
        library.say(0, 1000);
        library.tcp.write_all(&[23, 3, 3, 0, 40]).unwrap();
        library.tcp.write_all(&[9; 40]).unwrap();
        library
    });
    drop(library);
    Some(error)
}

fn tickets(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    if !suite.is_tls13() || peer == Peer::Client {
        return None;
    }
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let ours = async |tls: TlsStream| {
            hears(&tls, 0, 100, 3).await;
            leaves(tls).await;
        };
        let (_, kind) = suite.between(peer, ours, |mut library| {
            library.say(0, 100);
            library.hears_end();
            library.conn.handshake_kind()
        });
        kinds.push(kind.unwrap());
    }
    assert_eq!(kinds[1], HandshakeKind::Resumed, "{kinds:?}");
    Some("the second handshake is resumed".into())
}

fn new_keys(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    const ROUNDS: usize = 20;
    if !suite.is_tls13() {
        return None;
    }
    let can = choose_ktls(Ktls::Always).takes_new_keys();
    let ours = async |tls: TlsStream| {
        hears(&tls, 0, 1000, CHUNK_BYTES).await;
        if !can {
            let error = read(&tls, &mut [0; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            return error.to_string();
        }
        for round in 0..ROUNDS {
            // The message comes in pieces where there is little room.
            let room_bytes = if round % 2 == 0 { 2 } else { CHUNK_BYTES };
            hears(&tls, round, 1000, room_bytes).await;
            says(&tls, round, 50_000).await;
        }
        leaves(tls).await;
        format!("{ROUNDS} times in both directions")
    };
    let (said, _) = suite.between(peer, ours, |mut library| {
        library.say(0, 1000);
        if !can {
            library.renew();
            library.say(0, 1000);
            assert!(library.hear(&mut [0; 1]).is_err());
            return;
        }
        for round in 0..ROUNDS {
            library.renew();
            library.say(round, 1000);
            library.hears(round, 50_000);
        }
        library.hears_end();
    });
    Some(said)
}

fn handed_over(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    const COUNT: usize = 4 << 20;
    let ours = async |tls: TlsStream| {
        hears(&tls, 0, 777_777, 10_000).await;
        says(&tls, 0, 333_333).await;
        let (plain, session) = tls.into_parts();
        let parts = plain.into_parts().unwrap();
        let elsewhere = move || {
            run_alone(false, |_| async move {
                let tls = TlsStream::from_parts(Plain::from_parts(parts).unwrap(), session);
                assert!(tls.in_kernel());
                let heard = hears(&tls, 777_777, COUNT - 777_777, 10_000);
                zip(heard, says(&tls, 333_333, COUNT - 333_333)).await;
                leaves(tls).await;
            })
            .unwrap();
        };
        thread::spawn(elsewhere)
    };
    let (elsewhere, ()) = suite.between(peer, ours, |mut library| {
        library.say(0, COUNT);
        library.hears(0, COUNT);
        library.hears_end();
    });
    elsewhere.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Some("4 MiB each way".into())
}

/// From one peer over two connections of ours to another peer, and a word back.
fn relayed(suite: &Suite, peer: Peer, count: usize) -> Option<String> {
    const BACK: usize = 1000;
    let mut seconds = Vec::new();
    for ktls in [Ktls::Never, Ktls::Always] {
        choose_ktls(ktls);
        let renews = suite.is_tls13() && choose_ktls(ktls).takes_new_keys();
        let ((near_in, far_in), (near_out, far_out)) = (pair(), pair());
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut source = suite.library(peer, far_in);
                source.say(0, count / 2);
                if renews {
                    source.renew();
                }
                source.say(count / 2, count - count / 2);
                source.end();
                source.hears(7, BACK);
                source.hears_end();
            });
            scope.spawn(|| {
                let mut sink = suite.library(peer, far_out);
                sink.hears(0, count);
                sink.hears_end();
                sink.say(7, BACK);
                sink.end();
                sink
            });
            let relay = async move || {
                let (from, to) = zip(suite.ours(peer, near_in), suite.ours(peer, near_out)).await;
                let (from, to) = (Wire::from(from), Wire::from(to));
                let traffic = Traffic::default();
                relay(End::raw(&from), End::raw(&to), &traffic).await.unwrap();
                assert_eq!((traffic.up_bytes.get(), traffic.down_bytes.get()), (count as u64, BACK as u64));
                assert_eq!((from.in_kernel(), to.in_kernel()), (ktls == Ktls::Always, ktls == Ktls::Always));
                from.close_gently();
                to.close_gently();
            };
            joined(scope.spawn(|| run_alone(false, |_| relay()).unwrap()));
        });
        seconds.push(start.elapsed().as_secs_f64());
    }
    choose_ktls(Ktls::Always);
    Some(format!("{} MiB; {:.2} s, through our records {:.2} s", count >> 20, seconds[1], seconds[0]))
}

fn spliced_and_truncated(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    let ours = async |tls: TlsStream| {
        let (_out, into) = io::pipe().unwrap();
        let mut spliced = 0;
        let error = loop {
            match tls.try_splice_out(into.as_fd(), 1 << 16) {
                Ok(Some(bytes)) => spliced += bytes,
                // Tickets, and the end.
                Ok(None) => match tls.try_read(&mut [0; 1]) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => break e,
                    Ok(bytes) => spliced += bytes,
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => tls.readable().await.unwrap(),
                Err(e) => break e,
            }
        };
        assert_eq!((spliced, error.kind()), (1000, io::ErrorKind::UnexpectedEof));
    };
    let (_, library) = suite.between(peer, ours, |mut library| {
        library.say(0, 1000);
        library.tcp.shutdown(Shutdown::Write).unwrap();
        library
    });
    drop(library);
    Some("UnexpectedEof".into())
}

fn counted(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    let ours = async |tls: TlsStream| {
        let before = tls.kernel_records_left().unwrap().unwrap();
        says(&tls, 0, 1 << 20).await;
        let used = before - tls.kernel_records_left().unwrap().unwrap();
        leaves(tls).await;
        used
    };
    let (used, _) = suite.between(peer, ours, |mut library| {
        library.hears(0, 1 << 20);
        library.hears_end();
    });
    // 64 full ones, and a short one where the socket was full.
    assert!((64..=128).contains(&used), "{used}");
    Some(format!("{used} for 1 MiB"))
}

fn reset(suite: &Suite, peer: Peer, _: usize) -> Option<String> {
    let (go, full) = mpsc::channel::<()>();
    let ours = async move |tls: TlsStream| {
        let said = bytes(0, CHUNK_BYTES);
        while tls.try_write(&[io::IoSlice::new(&said)]).is_ok() {}
        tls.finish_write();
        assert!(!tls.try_flush().unwrap());
        go.send(()).unwrap();
        tls.flush().await.unwrap_err().to_string()
    };
    let (error, ()) = suite.between(peer, ours, move |library| {
        full.recv().unwrap();
        // With bytes unread this is a reset.
        drop(library);
    });
    Some(error)
}
