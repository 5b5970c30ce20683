//! Role: loopback addresses that no other test uses.
//! Invariants: an address is this process's own as long as it runs, and no outgoing connection can take
//! it: the kernel dials loopback from 127.0.0.1.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU8, Ordering},
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

/// Waits until somebody accepts at `addr`.
pub(crate) fn wait_for_server(what: &str, addr: SocketAddr, patience: Duration) {
    wait_for(what, patience, || TcpStream::connect(addr).ok());
}
