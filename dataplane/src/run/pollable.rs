//! Role: a descriptor of this thread's runtime, to wait until it is ready.
//! Invariants: no operation on bytes is ever in flight, so dropping any future here loses none.
//! See: ARCHITECTURE.md "Readiness first".
#![expect(unsafe_code, reason = "borrows the descriptor that monoio owns")]

use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use monoio::net::TcpStream;

/// monoio's type serves any descriptor that can be polled: of it we use only the readiness calls.
#[derive(Debug)]
pub(crate) struct Pollable(TcpStream);

impl Pollable {
    /// Takes a descriptor that does not block into this thread's runtime.
    ///
    /// # Errors
    /// The system's, when it can't be registered.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        TcpStream::from_std(fd.into()).map(Self)
    }

    /// Waits until a read would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub(crate) fn readable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.0.readable(false)
    }

    /// Waits until a write would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub(crate) fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.0.writable(false)
    }

    /// The peer's address.
    ///
    /// # Errors
    /// The peer is gone already, or this is no TCP socket.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    /// Our address.
    ///
    /// # Errors
    /// The system's, or this is no TCP socket.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl AsFd for Pollable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor and lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
