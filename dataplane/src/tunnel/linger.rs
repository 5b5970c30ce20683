//! Role: ends a broken session's connections: by a reset that does not overtake what was sent before it.
//! Invariants: a connection that ends here never looks as if it had ended cleanly · a peer that takes nothing for
//! [`PATIENCE`] is waited for no longer, and one whose right is gone hardly at all · nothing is held meanwhile
//! but the connection.
//! See: RFC 9293 §3.6; RFC 6455 §7.1.1; `socket`, which resets by default.

use std::{
    io,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_proto::{
    ended::{Ended, Side},
    upgrade::Framing,
};

use crate::{
    run::timer::sleep,
    transport::wire::Wire,
    tunnel::conn::{CLOSE_RESET, Conn},
};

/// How long a peer may take nothing of what is left of a broken session. A program that pauses longer than this
/// loses the rest. Without us between, its host would have got what the network had in flight, and no more.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The same, where this program ends the session: a right is gone, or it stops.
pub(crate) const HASTE: Duration = Duration::from_millis(500);
/// How long a peer may take to close after it has got everything.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks at what was delivered: at first (on most paths all of it is there before), ..
const LOOK_MIN: Duration = Duration::from_millis(1);
/// .. and, doubled each time, at the most.
const LOOK_MAX: Duration = Duration::from_millis(64);

/// A program that waits for an answer has read it in this time.
const READ_GRACE: Duration = Duration::from_millis(20);

/// How long the peers of a session that ended so are waited for.
pub fn patience(ended: Ended) -> Duration {
    if ended.by == Side::Here { HASTE } else { PATIENCE }
}

/// Ends both connections of a session that broke.
pub async fn reset_session(framed_or_raw: Conn, bare: Wire, ended: Ended) {
    let (words, patience) = (ended.to_string(), patience(ended));
    future::zip(reset_conn(framed_or_raw, &words, patience), reset(bare, patience)).await;
}

/// Resets a connection of plain bytes once its peer's host has taken what was sent: no byte says "reset" here, and a
/// reset throws away what its sender's kernel still holds.
pub async fn reset(wire: Wire, patience: Duration) {
    stall(&wire, patience, Until::Delivered).await;
    // What its host has, the program may not have read yet: one that sends when the reset comes hears of nothing else.
    sleep(READ_GRACE.min(patience)).await;
}

/// Ends a session's connection, telling the peer that it was reset, behind everything that was sent.
pub async fn reset_conn(conn: Conn, words: &str, patience: Duration) {
    if conn.framing() == Framing::Raw || !finish(&conn, words, patience).await {
        return stall(conn.wire(), patience, Until::Delivered).await;
    }
    // What the peer still sends is read: bytes unread at a close would be a reset, which overtakes.
    let delivered = async {
        stall(conn.wire(), patience, Until::Delivered).await;
        sleep(GRACE.min(patience)).await;
        false
    };
    if future::or(conn.wire().discard(usize::MAX), delivered).await {
        conn.hang_up();
    }
}

/// Says Close, behind what is under way, and ends our direction; whether that went out.
async fn finish(conn: &Conn, words: &str, patience: Duration) -> bool {
    conn.say_close(CLOSE_RESET, words);
    let said = async {
        conn.try_flush_control()?;
        while !conn.has_said_all() {
            if conn.is_mid_frame() {
                // A frame that nobody will finish: there is no place for a word.
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            conn.wire().writable().await?;
            conn.try_flush_control()?;
        }
        conn.wire().finish_write().await
    };
    let stalled = async {
        stall(conn.wire(), patience, Until::Stalled).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    future::or(said, stalled).await.is_ok()
}

/// What a wait for a peer ends with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Everything delivered, or nothing taken for too long.
    Delivered,
    /// The latter only.
    Stalled,
}

/// Waits for a peer that takes what was sent; not for one that is dead.
async fn stall(wire: &Wire, patience: Duration, until: Until) {
    let (mut stall, mut pause) = (Stall::new(patience), LOOK_MIN);
    while let Some(bytes) = wire.undelivered() {
        let over = bytes == 0 && until == Until::Delivered;
        // Where nothing waits, nobody is late.
        if over || (stall.goes_on(bytes as u64) && bytes > 0) {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// Whether something has stood still for too long.
pub(crate) struct Stall {
    patience: Duration,
    last: u64,
    since: Instant,
}

impl Stall {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, last: u64::MAX, since: Instant::now() }
    }

    /// Whether `mark` has been the same for too long.
    pub(crate) fn goes_on(&mut self, mark: u64) -> bool {
        let now = Instant::now();
        if mark != self.last {
            (self.last, self.since) = (mark, now);
        }
        now.saturating_duration_since(self.since) >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        io::Read as _,
        net::{TcpListener, TcpStream},
        pin::pin,
    };

    use futures_lite::future::{poll_once, zip};
    use narrowlink_proto::{
        ended::Why,
        frame::{self, Opcode},
    };

    use super::*;
    use crate::{
        net::{memory::Room, plain::Plain},
        tunnel::{
            conn::Role,
            far_end::{ROLES, Then, fin, in_calls_of, never, room_for, run, stuff, tunnel},
        },
    };

    /// A patience that a test can have.
    const SHORT: Duration = Duration::from_millis(50);

    /// As much as the kernel takes, and how much that was.
    fn fill(wire: &Wire) -> usize {
        let (chunk, mut sent) = (vec![7; 65_536], 0);
        while let Ok(n) = wire.try_write(&[io::IoSlice::new(&chunk)]) {
            sent += n;
        }
        sent
    }

    /// A descriptor is closed in a turn of the ring: its thread must not be blocked.
    async fn finished<T>(thread: &std::thread::JoinHandle<T>) {
        while !thread.is_finished() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// What is under way in a kernel is TCP's alone.
    #[test]
    fn a_reset_comes_behind_what_a_slow_peer_s_host_has_still_to_take() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let wire = Wire::from(Plain::adopt(listener.accept().unwrap().0.into()).unwrap());
            let sent = fill(&wire);
            assert!(wire.undelivered().unwrap() > 0);
            let reading = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                let (mut buf, mut got) = (vec![0; 65_536], 0);
                loop {
                    match peer.read(&mut buf) {
                        Ok(n) if n > 0 => got += n,
                        end => return (got, end.map_err(|e| e.kind())),
                    }
                }
            });
            reset(wire, PATIENCE).await;
            finished(&reading).await;
            assert_eq!(reading.join().unwrap(), (sent, Err(io::ErrorKind::ConnectionReset)));
        });
    }

    #[test]
    fn a_reset_of_plain_bytes_comes_behind_them_and_is_no_end() {
        run(async {
            let (conn, far) = tunnel(Framing::Raw, Role::Gateway, in_calls_of(7));
            conn.wire().write_all(b"the last words").await.unwrap();
            reset_conn(conn, "over", PATIENCE).await;
            assert_eq!(far.heard(), (b"the last words".to_vec(), Then::Reset));
        });
    }

    #[test]
    fn a_peer_that_takes_nothing_is_waited_for_no_longer_than_that() {
        run(async {
            for framing in [Framing::Framed, Framing::Raw] {
                let (conn, far) = tunnel(framing, Role::Gateway, room_for(512));
                stuff(conn.wire());
                far.cable().unplug();
                let begun = Instant::now();
                reset_conn(conn, "over", SHORT).await;
                assert!((SHORT..PATIENCE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
                // A dead one isn't waited for at all.
                let (conn, far) = tunnel(framing, Role::Gateway, room_for(512));
                stuff(conn.wire());
                drop(far);
                let begun = Instant::now();
                reset_conn(conn, "over", PATIENCE).await;
                assert!(begun.elapsed() < PATIENCE / 2, "{framing:?}");
            }
        });
    }

    #[test]
    fn a_framed_peer_gets_everything_then_one_close_although_it_never_stops_sending() {
        run(async {
            for role in ROLES {
                let (conn, far) = tunnel(Framing::Framed, role, room_for(4096));
                conn.send(&fin(7)).await.unwrap();
                let told = Cell::new(false);
                let hearing = async {
                    let heard = far.hear_to_the_end().await;
                    told.set(true);
                    heard
                };
                let sending = async {
                    while !told.get() {
                        far.say_all(&[7; 1000]).await;
                    }
                    far.finish();
                };
                let resetting = zip(reset_conn(conn, "over", PATIENCE), sending);
                let (_, (got, then)) = zip(resetting, hearing).await;
                let close = (Opcode::Close, frame::close_payload(CLOSE_RESET, "over"));
                assert_eq!(far.frames(&got), [(Opcode::Text, fin(7).encode()), close]);
                assert_eq!(then, Then::End, "our direction ended behind it");
            }
        });
    }

    #[test]
    fn a_close_waits_for_a_peer_that_reads_slowly() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, room_for(64));
            let nonsense = stuff(conn.wire());
            let mut resetting = pin!(reset_conn(conn, "over", PATIENCE));
            assert!(poll_once(resetting.as_mut()).await.is_none(), "there is no room for it");
            let hearing = async {
                let heard = far.hear_to_the_end().await;
                far.finish();
                heard
            };
            let ((), (got, then)) = zip(resetting, hearing).await;
            let close = (Opcode::Close, frame::close_payload(CLOSE_RESET, "over"));
            assert_eq!((far.frames(&got[nonsense..]), then), (vec![close], Then::End));
        });
    }

    #[test]
    fn a_peer_that_does_not_close_when_it_has_everything_is_reset_in_the_end() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            reset_conn(conn, "over", SHORT).await;
            let (got, then) = far.heard();
            assert_eq!(far.frames(&got), [(Opcode::Close, frame::close_payload(CLOSE_RESET, "over"))]);
            assert_eq!(then, Then::Reset);
        });
    }

    #[test]
    fn within_a_frame_there_is_no_place_for_a_word() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, room_for(30));
            assert!(poll_once(conn.send(&fin(7))).await.is_none());
            reset_conn(conn, "over", PATIENCE).await;
            let (got, then) = far.heard();
            assert_eq!((got.len(), then), (30, Then::Reset));
        });
    }

    #[test]
    fn who_has_closed_is_told_no_more_than_the_answer() {
        run(async {
            let (conn, far) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            far.say(&far.frame(Opcode::Close, &frame::close_payload(1000, "bye")));
            far.finish();
            assert!(conn.attend().await.is_err());
            reset_conn(conn, "over", PATIENCE).await;
            let (got, then) = far.heard();
            assert_eq!(far.frames(&got), [(Opcode::Close, frame::close_payload(1000, ""))]);
            assert_eq!(then, Then::End);
        });
    }

    #[test]
    fn both_connections_of_a_broken_session_end_and_neither_waits_for_the_other() {
        run(async {
            let (conn, near) = tunnel(Framing::Framed, Role::Gateway, Room::default());
            let (target, far) = tunnel(Framing::Raw, Role::Gateway, Room::default());
            let ended = Ended { by: Side::Target, why: Why::Reset };
            let mut resetting = pin!(reset_session(conn, target.into_bare().unwrap(), ended));
            // The first one does not close yet.
            let hearing = zip(near.hear_to_the_end(), far.hear_to_the_end());
            let ((words, _), (_, then)) = future::or(hearing, never(resetting.as_mut())).await;
            let close = (Opcode::Close, frame::close_payload(CLOSE_RESET, &ended.to_string()));
            assert_eq!((near.frames(&words), then), (vec![close], Then::Reset));
            near.finish();
            resetting.await;
        });
    }

    #[test]
    fn who_has_broken_it_is_waited_for_longer_than_who_must_go() {
        let of = |by| patience(Ended { by, why: Why::Reset });
        assert_eq!([Side::Client, Side::Target, Side::Here].map(of), [PATIENCE, PATIENCE, HASTE]);
    }

    #[test]
    fn what_moves_does_not_stand_still() {
        let mut at_once = Stall::new(Duration::ZERO);
        assert!(at_once.goes_on(7));
        let mut stall = Stall::new(SHORT);
        let begun = Instant::now();
        while begun.elapsed() < SHORT * 2 {
            let mark = u64::try_from(begun.elapsed().as_nanos()).unwrap();
            assert!(!stall.goes_on(mark), "it has just moved");
        }
        let stands = Instant::now();
        while !stall.goes_on(7) {}
        assert!(stands.elapsed() >= SHORT);
    }
}
