//! Role: a long way in one process: a TCP proxy on loopback that delays every byte by the same time.
//! Invariants: order and bandwidth stay as they are · an end goes through in each direction by itself,
//! behind the bytes before it · what breaks is a reset at both ends, as a cable that is cut would become.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks on their way: at 64 KiB and 25 ms more than loopback fills.
const CHUNKS_MAX: usize = 256;

/// The proxy.
pub(crate) struct Delay {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    way: Arc<Way>,
}

struct Way {
    to: SocketAddr,
    delay: Duration,
    /// Bytes that came from those who connect here.
    up_bytes: AtomicU64,
    standing: Mutex<Vec<Pair>>,
}

/// The two connections of one.
#[derive(Clone)]
struct Pair(Arc<TcpStream>, Arc<TcpStream>);

impl Pair {
    /// Resets both, at once and whatever is on its way.
    fn reset(&self) {
        for end in [&self.0, &self.1] {
            let _ = rustix::net::connect_unspec(end);
        }
    }
}

impl Delay {
    /// Starts one that leads to `to`.
    pub(crate) fn start(to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let way = Arc::new(Way { to, delay, up_bytes: AtomicU64::new(0), standing: Mutex::default() });
        let this = Self { addr, way: way.clone() };
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                way.join(near);
            }
        });
        this
    }

    /// How many bytes came from those who connect here.
    pub(crate) fn up_bytes(&self) -> u64 {
        self.way.up_bytes.load(Ordering::Acquire)
    }

    /// Resets every connection that stands; new ones are taken as before.
    pub(crate) fn cut(&self) {
        for pair in self.way.standing.lock().expect("no thread panics with it").drain(..) {
            pair.reset();
        }
    }
}

impl Way {
    fn join(self: &Arc<Self>, near: TcpStream) {
        let Ok(far) = TcpStream::connect(self.to) else { return };
        for end in [&near, &far] {
            let _ = end.set_nodelay(true);
        }
        let pair = Pair(Arc::new(near), Arc::new(far));
        self.standing.lock().expect("no thread panics with it").push(pair.clone());
        let back = Pair(pair.1.clone(), pair.0.clone());
        self.carry(&pair, true);
        self.carry(&back, false);
    }

    /// One direction, from the first of the pair to the second.
    fn carry(self: &Arc<Self>, pair: &Pair, up: bool) {
        let (late, due) = sync_channel(CHUNKS_MAX);
        let (way, from, to) = (self.clone(), pair.clone(), pair.clone());
        thread::spawn(move || {
            if way.take(&from.0, &late, up).is_err() {
                from.reset();
            }
        });
        thread::spawn(move || {
            if give(&to.1, &due).is_err() {
                to.reset();
            }
        });
    }

    fn take(&self, mut from: &TcpStream, late: &SyncSender<Chunk>, up: bool) -> std::io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = from.read(&mut chunk)?;
            if up {
                self.up_bytes.fetch_add(n as u64, Ordering::Release);
            }
            let sent = late.send((Instant::now() + self.delay, chunk[..n].to_vec()));
            if n == 0 || sent.is_err() {
                return Ok(());
            }
        }
    }
}

/// When it is due, and what; nothing is the end.
type Chunk = (Instant, Vec<u8>);

fn give(mut to: &TcpStream, due: &Receiver<Chunk>) -> std::io::Result<()> {
    for (at, chunk) in due {
        // The delay itself, not a guess at something else.
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if chunk.is_empty() {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(&chunk)?;
    }
    Ok(())
}
