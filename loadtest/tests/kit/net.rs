//! Role: loopback addresses that no other test uses.
//! Invariants: an address is this process's own as long as it runs, and no outgoing connection can take
//! it: the kernel dials loopback from 127.0.0.1.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{echo, wait_for};

/// A loopback address of this process's own. With 127.0.0.1, a port that was picked and released (or
/// whose server was killed) could be the next one that the kernel gives to somebody's connection.
pub(crate) fn private_ip() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(n < 250, "one test process has more than 249 addresses");
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 | high & 63, low, n))
}

/// An address for a server that can't be asked which port it got.
pub(crate) fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind((private_ip(), 0)).expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address")
}

/// A listener for a target of our own.
pub(crate) fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((private_ip(), 0)).expect("a loopback port is free");
    let addr = listener.local_addr().expect("a bound socket has an address");
    (listener, addr)
}

/// Starts a target that gives back what it gets.
pub(crate) fn start_echo() -> SocketAddr {
    echo::start(listen().0)
}

/// Has [`start_echo`] answer through a forward.
pub(crate) fn echo(local: SocketAddr) {
    try_echo(local).expect("an echo through the tunnel");
}

/// As [`echo`]; the connection stays.
pub(crate) fn try_echo(local: SocketAddr) -> io::Result<TcpStream> {
    const SAID: &[u8] = b"are you there?";
    let mut stream = TcpStream::connect(local)?;
    stream.set_read_timeout(Some(super::PATIENCE))?;
    stream.write_all(SAID)?;
    let mut answer = [0; SAID.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, SAID);
    Ok(stream)
}

/// Waits until somebody accepts at `addr`.
pub(crate) fn wait_for_server(what: &str, addr: SocketAddr, patience: Duration) {
    wait_for(what, patience, || TcpStream::connect(addr).ok());
}

/// Says where it is to whoever connects, and counts them.
pub(crate) struct Greeter {
    /// Where it is.
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Greeter {
    /// Starts one at an address that nobody else has; with port 0 it takes any.
    pub(crate) fn start(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).unwrap_or_else(|e| panic!("{addr}: {e}"));
        let addr = listener.local_addr().expect("a bound socket has an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(addr.to_string().as_bytes());
            }
        });
        Self { addr, accepted }
    }

    /// How many have connected, this question not counted. It queues behind all of them.
    pub(crate) fn count(&self) -> usize {
        let mut said = String::new();
        let mut stream = TcpStream::connect(self.addr).expect("it listens");
        stream.read_to_string(&mut said).expect("it says where it is");
        assert_eq!(said, self.addr.to_string());
        self.accepted.fetch_sub(1, Ordering::SeqCst) - 1
    }
}

/// Waits until the peer's kernel has everything: a reset throws away what our own still holds.
pub(crate) fn wait_until_delivered(stream: &TcpStream) {
    let port = |addr: SocketAddr| format!(":{:04X}", addr.port());
    let ours = port(stream.local_addr().expect("it has an address"));
    let Ok(theirs) = stream.peer_addr().map(port) else { return };
    wait_for("everything to be delivered", super::PATIENCE, || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel says what its sockets hold");
        let unsent = table.lines().any(|line| {
            // Number, local address, remote address, state, queues to send and to read.
            let words: Vec<_> = line.split_whitespace().skip(1).take(4).collect();
            let [local, remote, _, queues] = words[..] else { return false };
            local.ends_with(&ours) && remote.ends_with(&theirs) && !queues.starts_with("00000000:")
        });
        (!unsent).then_some(())
    });
}
