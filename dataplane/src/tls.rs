//! Role: TLS over a [`Socket`], driven by readiness.
//! Invariants: never holds the session across an await · a read that reports fewer bytes than it
//! was given room for has drained both the socket and the session · EOF without close_notify is
//! an error, never an end · what was accepted for writing is sent before more is accepted.
//! See: RFC 8446 §6.1 (close_notify).

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice, Read, Write},
    os::fd::OwnedFd,
};

use rustls::Connection;

use crate::socket::Socket;

/// Plaintext accepted before the socket has taken what came earlier.
const SEND_BYTES_MAX: usize = 128 * 1024;

/// The process's crypto: aws-lc-rs, AES-128-GCM first (its records cost a quarter less than those
/// of AES-256-GCM, and nobody breaks either). Called once, before the first connection.
pub fn install_crypto() {
    use rustls::CipherSuite;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 2,
        _ => 3,
    });
    // Another part of the process may have been first; one provider is as good as the other then.
    let _ = provider.install_default();
}

/// A TLS session and the socket below it.
pub struct TlsSocket {
    socket: Socket,
    session: RefCell<Connection>,
    /// A read came back with bytes while an end or an error waits behind them: no event on the
    /// socket will tell.
    more_to_tell: Cell<bool>,
}

/// The socket as rustls wants it: `WouldBlock` where nothing can be done.
struct Io<'a>(&'a Socket);

impl Read for Io<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Io<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(&[IoSlice::new(buf)])
    }
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write(bufs)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsSocket {
    /// Completes the handshake; `early` is what was read from the socket before.
    ///
    /// # Errors
    /// The peer's (bad records, no common version, a certificate that does not hold) or the
    /// connection's end. The alert has been sent then, if the socket took it.
    pub async fn handshake(socket: Socket, mut session: Connection, mut early: &[u8]) -> io::Result<Self> {
        session.set_buffer_limit(Some(SEND_BYTES_MAX));
        while !early.is_empty() {
            session.read_tls(&mut early)?;
            if let Err(e) = session.process_new_packets() {
                let _ = session.write_tls(&mut Io(&socket));
                return Err(io::Error::new(io::ErrorKind::InvalidData, e));
            }
        }
        let this = Self { socket, session: RefCell::new(session), more_to_tell: Cell::new(false) };
        while this.session.borrow().is_handshaking() {
            this.flush().await?;
            if !this.session.borrow().is_handshaking() {
                break;
            }
            if this.pull()? == Pulled::Nothing {
                this.socket.readable().await?;
            }
        }
        this.flush().await?;
        Ok(this)
    }

    /// Goes on with a session that came from another thread.
    ///
    /// # Errors
    /// As [`Socket::adopt`].
    pub fn adopt(fd: OwnedFd, session: Connection) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::adopt(fd)?,
            session: RefCell::new(session),
            more_to_tell: Cell::new(false),
        })
    }

    /// Takes socket and session apart, to go on elsewhere.
    pub fn into_parts(self) -> (Socket, Connection) {
        (self.socket, self.session.into_inner())
    }

    /// The socket below, for waiting and for its addresses.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Reads decrypted bytes until `buf` is full or nothing is left. `Ok(0)` is close_notify.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, `UnexpectedEof` when the connection ended without
    /// close_notify, `InvalidData` for what is not TLS.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.more_to_tell.set(false);
        let mut filled = 0;
        let end = loop {
            let got = self.session.borrow_mut().reader().read(&mut buf[filled..]);
            match got {
                Ok(0) => break Ok(0),
                Ok(n) => {
                    filled += n;
                    if filled == buf.len() {
                        return Ok(filled);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => match self.pull() {
                    Ok(Pulled::Something) => {}
                    Ok(Pulled::Nothing) if filled > 0 => return Ok(filled),
                    Ok(Pulled::Nothing) => return Err(io::ErrorKind::WouldBlock.into()),
                    Err(e) => break Err(e),
                },
                Err(e) => break Err(e),
            }
        };
        // What was decrypted before the end is still good: it is told first, the end (which the
        // session tells again) at the next call.
        self.more_to_tell.set(filled > 0);
        if filled > 0 { Ok(filled) } else { end }
    }

    /// Makes the next [`TlsSocket::readable`] say yes: somebody looked past what is in here.
    pub(crate) fn look_again(&self) {
        self.more_to_tell.set(true);
    }

    /// Waits until a read would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn readable(&self) -> io::Result<()> {
        if self.more_to_tell.get() { Ok(()) } else { self.socket.readable().await }
    }

    /// One read from the socket into the session.
    fn pull(&self) -> io::Result<Pulled> {
        let mut session = self.session.borrow_mut();
        match session.read_tls(&mut Io(&self.socket)) {
            // rustls turns this EOF into `UnexpectedEof` at the reader unless close_notify came.
            Ok(0) if session.is_handshaking() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Pulled::Nothing),
            Err(e) => return Err(e),
        }
        if let Err(e) = session.process_new_packets() {
            let _ = session.write_tls(&mut Io(&self.socket));
            return Err(io::Error::new(io::ErrorKind::InvalidData, e));
        }
        // A key update or an alert to answer; if the socket is full, the next write takes it along.
        if session.wants_write() {
            match session.write_tls(&mut Io(&self.socket)) {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
        }
        Ok(Pulled::Something)
    }

    /// Accepts plaintext and sends what the socket takes.
    ///
    /// # Errors
    /// `WouldBlock` while earlier bytes still wait for the socket; else the connection's end.
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.try_flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let accepted = self.session.borrow_mut().writer().write_vectored(bufs)?;
        self.try_flush()?;
        Ok(accepted)
    }

    /// Sends what was accepted; whether all of it is out.
    ///
    /// # Errors
    /// The connection's end.
    pub fn try_flush(&self) -> io::Result<bool> {
        let mut session = self.session.borrow_mut();
        while session.wants_write() {
            match session.write_tls(&mut Io(&self.socket)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Waits until everything accepted is with the kernel.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn flush(&self) -> io::Result<()> {
        while !self.try_flush()? {
            self.socket.writable().await?;
        }
        Ok(())
    }

    /// Queues close_notify; [`TlsSocket::flush`] sends it.
    pub fn finish_write(&self) {
        self.session.borrow_mut().send_close_notify();
    }
}

#[derive(PartialEq, Eq)]
enum Pulled {
    Something,
    Nothing,
}
