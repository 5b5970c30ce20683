//! Role: TLS over a [`Socket`], driven by readiness: the handshake is rustls', the records are ours.
//! Invariants: never holds the session across an await · a byte is copied once on its way, by the
//! cipher · an idle connection holds no buffer · EOF without close_notify is an error, never an
//! end · what was accepted for writing is sent before more is accepted · the keys leave the
//! handshake in one value, so that the kernel could take them in our place.
//! See: RFC 8446; RFC 5246 for peers that have no TLS 1.3.

mod fault;
mod handshake;
mod held;
mod post;
mod receive;
pub mod record;
mod send;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustls::{AlertDescription, ClientConfig, ServerConfig, pki_types::ServerName};

pub use fault::TlsError;
use handshake::{ClientShake, Established, ServerShake};
use post::Post;
use receive::Receiver;
use record::{Opener, Sealer, Secret};
use send::Sender;

use crate::socket::Socket;

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

/// What carries records: a socket, or a test's memory. Neither call waits.
trait Carrier {
    /// `Ok(0)` is the end.
    fn recv(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl Carrier for Socket {
    fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.try_read(buf)
    }
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(&[IoSlice::new(bytes)])
    }
}

/// A TLS connection after its handshake, without its socket: it can go to another thread.
pub struct Session {
    receiver: Receiver,
    sender: Sender,
    post: Post,
}

impl Session {
    fn new(established: Established) -> Result<Self, TlsError> {
        let Established { secrets, library, rest } = established;
        let post = Post::new(library);
        let (rx_seq, rx) = &secrets.rx;
        let (tx_seq, tx) = &secrets.tx;
        let opener = Opener::new(post.version(), *rx_seq, &Secret::try_from(rx)?)?;
        let sealer = Sealer::new(post.version(), *tx_seq, post.seal_limit(), &Secret::try_from(tx)?)?;
        Ok(Self { receiver: Receiver::new(opener, &rest), sender: Sender::new(sealer), post })
    }

    fn read(&mut self, io: &impl Carrier, buf: &mut [u8]) -> io::Result<usize> {
        self.receiver.read(io, &mut self.post, &mut self.sender, buf)
    }

    fn write(&mut self, io: &impl Carrier, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.sender.write(io, &mut self.post, pieces)
    }
}

/// A TLS session and the socket below it.
pub struct TlsSocket {
    socket: Socket,
    session: RefCell<Session>,
}

impl TlsSocket {
    /// Makes the handshake as a server; `early` is what was read from the socket before. The
    /// settings must allow the extraction of secrets.
    ///
    /// # Errors
    /// The peer's (bad records, no common version, a certificate that does not hold) or the
    /// connection's end. The alert has been sent then, if the socket took it.
    pub async fn accept(socket: Socket, config: Arc<ServerConfig>, early: &[u8]) -> io::Result<Self> {
        let shake = ServerShake::server(config, early).map_err(io::Error::other)?;
        let established = shake.over(&socket).await?;
        Self::establish(socket, established)
    }

    /// Makes the handshake as a client of the server `name`. The settings must allow the extraction
    /// of secrets.
    ///
    /// # Errors
    /// As [`TlsSocket::accept`]; also a name that TLS can't ask for.
    pub async fn connect(
        socket: Socket,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let shake =
            ClientShake::client(config, name).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let established = shake.over(&socket).await?;
        Self::establish(socket, established)
    }

    /// From here on the library is asked for new keys and for tickets only. (The place for kTLS:
    /// the secrets could go to the socket instead.)
    fn establish(socket: Socket, established: Established) -> io::Result<Self> {
        Ok(Self { socket, session: RefCell::new(Session::new(established)?) })
    }

    /// Goes on with a session that came from another thread.
    ///
    /// # Errors
    /// As [`Socket::adopt`].
    pub fn adopt(fd: OwnedFd, session: Session) -> io::Result<Self> {
        Ok(Self { socket: Socket::adopt(fd)?, session: RefCell::new(session) })
    }

    /// Takes socket and session apart, to go on elsewhere.
    pub fn into_parts(self) -> (Socket, Session) {
        let mut session = self.session.into_inner();
        session.sender.detach();
        (self.socket, session)
    }

    /// The socket below, for waiting and for its addresses.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Reads decrypted bytes, without waiting. `Ok(0)` is close_notify.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, `UnexpectedEof` when the connection ended without
    /// close_notify, `InvalidData` for what is not TLS.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.session.borrow_mut().read(&self.socket, buf)
    }

    /// Whether a read may have something to tell at once, whatever the socket says: decrypted bytes,
    /// whole records, an end; or a socket that was not read to its end.
    pub fn more_to_come(&self) -> bool {
        self.session.borrow().receiver.more_to_come()
    }

    /// Waits until a read would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn readable(&self) -> io::Result<()> {
        if self.more_to_come() { Ok(()) } else { self.socket.readable().await }
    }

    /// Accepts plaintext and sends what the socket takes.
    ///
    /// # Errors
    /// `WouldBlock` while earlier bytes still wait for the socket; else the connection's end.
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.session.borrow_mut().write(&self.socket, bufs)
    }

    /// Sends what was accepted; whether all of it is out.
    ///
    /// # Errors
    /// The connection's end.
    pub fn try_flush(&self) -> io::Result<bool> {
        self.session.borrow_mut().sender.flush(&self.socket)
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
        self.session.borrow_mut().sender.close(AlertDescription::CloseNotify);
    }
}
