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
pub const HASTE: Duration = Duration::from_millis(500);
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
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use narrowlink_proto::frame;

    use super::*;
    use crate::{net::plain::Plain, run::worker::run_alone, tunnel::conn::Role};

    fn pair() -> (TcpStream, Wire) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        (near, Wire::from(Plain::adopt(ours.into()).unwrap()))
    }

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

    #[test]
    fn a_reset_comes_behind_what_a_slow_peer_has_still_to_take() {
        run_alone(false, |_| async {
            let (mut peer, wire) = pair();
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
        })
        .unwrap();
    }

    #[test]
    fn a_peer_that_takes_nothing_is_waited_for_no_longer_than_that() {
        run_alone(false, |_| async {
            let (peer, wire) = pair();
            fill(&wire);
            let begun = Instant::now();
            reset(wire, HASTE).await;
            assert!((HASTE..HASTE * 10).contains(&begun.elapsed()), "{:?}", begun.elapsed());
            drop(peer);
            let (peer, wire) = pair();
            fill(&wire);
            drop(peer);
            let begun = Instant::now();
            reset(wire, PATIENCE).await;
            assert!(begun.elapsed() < PATIENCE / 2, "a dead one isn't waited for at all");
        })
        .unwrap();
    }

    #[test]
    fn a_framed_peer_gets_everything_then_one_close_although_it_never_stops_sending() {
        run_alone(false, |_| async {
            let (peer, wire) = pair();
            let conn = Conn::new(wire, Framing::Framed, Role::Gateway, 0);
            let mut writer = peer.try_clone().unwrap();
            let writing = std::thread::spawn(move || while writer.write_all(&[0; 4096]).is_ok() {});
            let reading = std::thread::spawn(move || {
                let (mut reader, mut got) = (peer, Vec::new());
                let end = reader.read_to_end(&mut got);
                drop(reader);
                (got, end.is_ok())
            });
            reset_conn(conn, "over", PATIENCE).await;
            finished(&reading).await;
            let (got, clean) = reading.join().unwrap();
            let payload = frame::close_payload(CLOSE_RESET, "over");
            assert_eq!(got[0], 0x88);
            assert_eq!(&got[2..], payload);
            assert!(clean, "our direction ended behind it");
            finished(&writing).await;
            writing.join().unwrap();
        })
        .unwrap();
    }
}
