//! Role: two user programs that talk through a tunnel and check every byte and every ending.
//! Invariants: what is sent is a function of seed and offset, so nothing is compared with itself ·
//! an ending is judged by both programs: each direction is either whole and cleanly ended, or
//! reset. Short and clean is the failure this exists to find.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread::ScopedJoinHandle,
    time::{Duration, Instant},
};

use rustix::net::sockopt;

/// How a program ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The client finishes writing; the target sees the end and sends half of its bytes after it.
    ClientFirst,
    /// The other way round.
    TargetFirst,
    /// Both write everything and finish without waiting.
    Both,
    /// The client resets after so many of its bytes.
    ClientResets(u64),
    /// The target resets after so many of its bytes.
    TargetResets(u64),
}

/// How a program reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it can.
    Fast,
    /// Reads at about 25 MB/s.
    SlowReader,
    /// Writes single bytes.
    OneByteWrites,
}

/// One transfer.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What the bytes are made of.
    pub seed: u64,
    /// From client to target.
    pub up_bytes: u64,
    /// From target to client.
    pub down_bytes: u64,
    /// How it ends.
    pub ending: Ending,
    /// How both read and write.
    pub pace: Pace,
}

/// How one direction ended for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A clean end after so many bytes, all of them right.
    End(u64),
    /// A reset (or a failed connection) after so many bytes, all of them right.
    Reset(u64),
    /// A wrong byte at this offset.
    Wrong(u64),
    /// Nothing came for too long after so many bytes.
    Stuck(u64),
}

/// What both programs saw.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// What the target read.
    pub up: Seen,
    /// What the client read.
    pub down: Seen,
}

/// A transfer that broke the promise.
#[derive(Debug)]
pub struct Broken {
    plan: Plan,
    outcome: Outcome,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} gave {:?}", self.plan, self.outcome)
    }
}

impl std::error::Error for Broken {}

const CHUNK: usize = 64 * 1024;
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Eight bytes of the stream `seed` at block `block` (splitmix64).
fn block(seed: u64, block: u64) -> [u8; 8] {
    let mut x = seed.wrapping_add(block.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)).to_le_bytes()
}

/// Fills `out` with the bytes of stream `seed` from `offset` on.
pub fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let mut at = 0;
    while at < out.len() {
        let here = offset + at as u64;
        let bytes = block(seed, here / 8);
        let skip = (here % 8) as usize;
        let n = (8 - skip).min(out.len() - at);
        out[at..at + n].copy_from_slice(&bytes[skip..skip + n]);
        at += n;
    }
}

/// Runs one transfer: connects to `entry`, takes the next connection of `target`, and judges.
///
/// # Errors
/// The promise was broken; the plan is in the error, to be run again.
///
/// # Panics
/// When the test's own sockets fail.
pub fn run(plan: Plan, entry: SocketAddr, target: &TcpListener) -> Result<Outcome, Broken> {
    let outcome = std::thread::scope(|scope| {
        let client = scope.spawn(move || {
            #[expect(clippy::expect_used, reason = "the local port is the test's own")]
            let stream = TcpStream::connect(entry).expect("the forwarded port takes connections");
            play(&stream, plan, Role::Client)
        });
        let target = scope.spawn(move || match accept(target) {
            Ok(stream) => play(&stream, plan, Role::Target),
            // The session was reset before it got so far.
            Err(_) => Seen::Reset(0),
        });
        #[expect(clippy::expect_used, reason = "a panic of a test program is the test's failure")]
        let (up, down) =
            (target.join().expect("the target's program"), client.join().expect("the client's program"));
        Outcome { up, down }
    });
    judge(plan, outcome)
}

/// Runs several transfers at the same time: all their connections stand before the first of them begins. Over each its
/// client says first which one it is.
///
/// # Errors
/// The first that broke the promise.
///
/// # Panics
/// When the test's own sockets fail, or a connection does not reach the target.
#[expect(clippy::expect_used, reason = "a failure of these is the test's")]
pub fn run_at_once(plans: &[Plan], entry: SocketAddr, target: &TcpListener) -> Result<(), Broken> {
    let connect = |index: u64| {
        let mut stream = TcpStream::connect(entry).expect("the forwarded port takes connections");
        stream.write_all(&index.to_le_bytes()).expect("a fresh connection takes eight bytes");
        stream
    };
    let clients: Vec<_> = (0..).map(connect).take(plans.len()).collect();
    let meet = |_: &Plan| {
        let mut stream = accept(target).expect("every connection reaches the target");
        let mut index = [0; 8];
        stream.read_exact(&mut index).expect("every client says which one it is");
        (u64::from_le_bytes(index), stream)
    };
    let targets: BTreeMap<_, _> = plans.iter().map(meet).collect();
    assert!(targets.keys().copied().eq(0..plans.len() as u64), "one connection of each: {targets:?}");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let playing: Vec<_> = plans
            .iter()
            .zip(clients.iter().zip(targets.values()))
            .map(|(&plan, (client, target))| {
                let down = scope.spawn(move || play(client, plan, Role::Client));
                (scope.spawn(move || play(target, plan, Role::Target)), down)
            })
            .collect();
        let seen = |(up, down): (ScopedJoinHandle<'_, Seen>, ScopedJoinHandle<'_, Seen>)| Outcome {
            up: up.join().expect("the target's program"),
            down: down.join().expect("the client's program"),
        };
        playing.into_iter().map(seen).collect()
    });
    plans.iter().zip(outcomes).try_for_each(|(&plan, outcome)| judge(plan, outcome).map(drop))
}

fn judge(plan: Plan, outcome: Outcome) -> Result<Outcome, Broken> {
    let kept = match plan.ending {
        Ending::ClientFirst | Ending::TargetFirst | Ending::Both => {
            outcome.up == Seen::End(plan.up_bytes) && outcome.down == Seen::End(plan.down_bytes)
        }
        // Whoever resets has stopped reading; the other must see a reset and no wrong byte.
        Ending::ClientResets(_) => matches!(outcome.up, Seen::Reset(_)),
        Ending::TargetResets(_) => matches!(outcome.down, Seen::Reset(_)),
    };
    if kept { Ok(outcome) } else { Err(Broken { plan, outcome }) }
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    // A bounded wait: the connection may never come.
    sockopt::set_socket_timeout(listener, sockopt::Timeout::Recv, Some(Duration::from_secs(5)))?;
    Ok(listener.accept()?.0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Target,
}

/// One program: writes its bytes, reads the other's; returns what it read.
fn play(stream: &TcpStream, plan: Plan, role: Role) -> Seen {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(STUCK_AFTER));
    let _ = stream.set_write_timeout(Some(STUCK_AFTER));
    let (mine, theirs) = match role {
        Role::Client => (plan.up_bytes, plan.down_bytes),
        Role::Target => (plan.down_bytes, plan.up_bytes),
    };
    let (my_seed, their_seed) =
        if role == Role::Client { (plan.seed, !plan.seed) } else { (!plan.seed, plan.seed) };
    let resets_after = match (plan.ending, role) {
        (Ending::ClientResets(n), Role::Client) | (Ending::TargetResets(n), Role::Target) => Some(n),
        _ => None,
    };
    let waits = matches!(
        (plan.ending, role),
        (Ending::ClientFirst, Role::Target) | (Ending::TargetFirst, Role::Client)
    );
    let (ended, end_seen) = std::sync::mpsc::channel::<()>();
    // Whoever resets reads in short turns, so that nothing is left in the kernel when it closes.
    let stop = AtomicBool::new(false);
    if resets_after.is_some() {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
    }
    let stop = &stop;
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let seen = read_all(stream, their_seed, theirs, plan.pace, resets_after.map(|_| stop));
            drop(ended);
            seen
        });
        let written = if let Some(after) = resets_after {
            let written = write_range(stream, my_seed, 0..after, plan.pace);
            stop.store(true, Ordering::Relaxed);
            // The close that follows is a reset then.
            let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
            written
        } else {
            let half = if waits { mine / 2 } else { mine };
            let first = write_range(stream, my_seed, 0..half, plan.pace);
            if waits {
                // Returns when the other direction has ended.
                let _ = end_seen.recv();
            }
            first
                .and_then(|()| write_range(stream, my_seed, half..mine, plan.pace))
                .and_then(|()| stream.shutdown(Shutdown::Write))
        };
        #[expect(clippy::expect_used, reason = "a panic of a test program is the test's failure")]
        let seen = reading.join().expect("the reader");
        match (seen, written) {
            // The kernel reports a reset once: if the writer met it, the reader sees an end.
            (Seen::End(bytes), Err(_)) => Seen::Reset(bytes),
            (seen, _) => seen,
        }
    })
}

fn write_range(mut stream: &TcpStream, seed: u64, range: std::ops::Range<u64>, pace: Pace) -> io::Result<()> {
    let mut buf = vec![0; CHUNK];
    let mut at = range.start;
    while at < range.end {
        let n = (range.end - at).min(CHUNK as u64) as usize;
        fill(seed, at, &mut buf[..n]);
        if pace == Pace::OneByteWrites {
            for byte in &buf[..n] {
                stream.write_all(std::slice::from_ref(byte))?;
            }
        } else {
            stream.write_all(&buf[..n])?;
        }
        at += n as u64;
    }
    Ok(())
}

fn read_all(mut stream: &TcpStream, seed: u64, expected: u64, pace: Pace, stop: Option<&AtomicBool>) -> Seen {
    const SLOW_BYTES_PER_S: f64 = 25e6;
    let (mut buf, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut got, started) = (0, Instant::now());
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return Seen::End(got),
            Ok(n) => {
                fill(seed, got, &mut right[..n]);
                if buf[..n] != right[..n] || got + n as u64 > expected {
                    return Seen::Wrong(got);
                }
                got += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => match stop {
                None => return Seen::Stuck(got),
                Some(stop) if stop.load(Ordering::Relaxed) => return Seen::Reset(got),
                Some(_) => {}
            },
            Err(_) => return Seen::Reset(got),
        }
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Seen::Reset(got);
        }
        if pace == Pace::SlowReader {
            let due = Duration::from_secs_f64(got as f64 / SLOW_BYTES_PER_S);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two directly joined programs: the judge itself must be right.
    #[test]
    fn programs_that_talk_directly_keep_every_promise() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = target.local_addr().unwrap();
        for ending in [
            Ending::ClientFirst,
            Ending::TargetFirst,
            Ending::Both,
            Ending::ClientResets(700),
            Ending::TargetResets(70_000),
        ] {
            for pace in [Pace::Fast, Pace::SlowReader, Pace::OneByteWrites] {
                let plan = Plan { seed: 7, up_bytes: 100_000, down_bytes: 90_001, ending, pace };
                run(plan, entry, &target).unwrap();
            }
        }
    }

    #[test]
    fn a_short_but_clean_end_is_found() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let cutter = TcpListener::bind("127.0.0.1:0").unwrap();
        let (entry, beyond) = (cutter.local_addr().unwrap(), target.local_addr().unwrap());
        std::thread::scope(|scope| {
            // A forwarder that loses the last byte and ends cleanly.
            scope.spawn(move || {
                let (mut near, _) = cutter.accept().unwrap();
                let mut far = TcpStream::connect(beyond).unwrap();
                let mut all = Vec::new();
                near.read_to_end(&mut all).unwrap();
                far.write_all(&all[..all.len() - 1]).unwrap();
                far.shutdown(Shutdown::Write).unwrap();
                let mut back = Vec::new();
                far.read_to_end(&mut back).unwrap();
                near.write_all(&back).unwrap();
            });
            let plan = Plan { seed: 1, up_bytes: 10, down_bytes: 10, ending: Ending::Both, pace: Pace::Fast };
            assert!(run(plan, entry, &target).is_err());
        });
    }

    #[test]
    fn the_stream_is_the_same_however_it_is_cut() {
        let mut whole = [0; 100];
        fill(3, 5, &mut whole);
        let mut parts = [0; 100];
        for (n, byte) in parts.iter_mut().enumerate() {
            fill(3, 5 + n as u64, std::slice::from_mut(byte));
        }
        assert_eq!(whole, parts);
    }
}
