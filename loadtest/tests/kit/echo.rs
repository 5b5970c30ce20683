//! Role: a target that gives back what it gets.
//! Invariants: it serves as long as the test process lives, each connection until its end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread,
};

/// Starts one; where it is.
pub(crate) fn start(listener: TcpListener) -> SocketAddr {
    let addr = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    addr
}
