//! Role: TLS over [`Plain`] bytes, driven by readiness: the handshake is rustls', the records are ours.
//! Invariants: never holds the session across an await · a byte is copied once on its way, by the
//! cipher · an idle connection holds no buffer · EOF without close_notify is an error, never an
//! end · what was accepted for writing is sent before more is accepted · where the kernel has
//! taken the keys, nothing is sealed or opened here.
//! See: RFC 8446; RFC 5246 for peers that have no TLS 1.3.

mod fault;
mod handshake;
mod held;
mod info;
mod kernel;
pub(crate) mod pinned;
mod post;
mod receive;
pub mod record;
pub mod secret;
mod send;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    sync::Arc,
};

use narrowlink_proto::id::ChannelBinding;
use rustls::{
    AlertDescription, ClientConfig, ServerConfig,
    pki_types::{CertificateDer, ServerName},
};

pub use fault::TlsError;
use handshake::{ClientShake, Established, ServerShake};
use kernel::{Kernel, System};
pub use kernel::{Ktls, KtlsState, choose_ktls};
use post::Post;
use receive::Receiver;
use record::{Opener, Sealer};
use secret::Secret;
use send::Sender;

use crate::net::plain::Plain;

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
    /// Counts work that received records have caused (see [`budget`](crate::run::budget)).
    fn spend(&self, work: usize);
}

impl Carrier for Plain {
    fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.try_read(buf)
    }
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(&[IoSlice::new(bytes)])
    }
    fn spend(&self, work: usize) {
        self.account().spend(work);
    }
}

/// A TLS connection after its handshake, without its socket: it can go to another thread.
pub struct Session {
    post: Post,
    engine: Engine,
}

/// Who seals and opens the records.
#[expect(clippy::large_enum_variant, reason = "nearly every connection is of the large kind")]
enum Engine {
    Own(Own),
    Kernel(Kernel),
}

/// Records of our own.
struct Own {
    receiver: Receiver,
    sender: Sender,
    /// The kernel is to take them over.
    leaving: bool,
}

impl Session {
    fn new(established: Established) -> Result<Self, TlsError> {
        let Established { secrets, library, rest } = established;
        let post = Post::new(library);
        let (rx_seq, rx) = &secrets.rx;
        let (tx_seq, tx) = &secrets.tx;
        let opener = Opener::new(post.version(), *rx_seq, &Secret::try_from(rx)?)?;
        let sealer = Sealer::new(post.version(), *tx_seq, post.seal_limit(), &Secret::try_from(tx)?)?;
        let own = Own { receiver: Receiver::new(opener, &rest), sender: Sender::new(sealer), leaving: false };
        Ok(Self { post, engine: Engine::Own(own) })
    }

    fn read(&mut self, io: &(impl Carrier + System), buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.engine {
            Engine::Own(own) => {
                let read = own.receiver.read(io, &mut self.post, &mut own.sender, buf);
                self.leave(io);
                read
            }
            Engine::Kernel(kernel) => kernel.read(io, &mut self.post, buf),
        }
    }

    fn write(&mut self, io: &(impl Carrier + System), pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.engine {
            Engine::Own(own) => {
                let written = own.sender.write(io, &mut self.post, pieces);
                self.leave(io);
                written
            }
            Engine::Kernel(kernel) => kernel.write(io, &mut self.post, pieces),
        }
    }

    fn more_to_come(&self) -> bool {
        match &self.engine {
            Engine::Own(own) => own.receiver.more_to_come(),
            Engine::Kernel(kernel) => kernel.more_to_come(),
        }
    }

    fn flush(&mut self, io: &(impl Carrier + System)) -> io::Result<bool> {
        match &mut self.engine {
            Engine::Own(own) => own.sender.flush(io),
            Engine::Kernel(kernel) => kernel.flush(io, &mut self.post),
        }
    }

    fn close(&mut self, why: AlertDescription) {
        match &mut self.engine {
            Engine::Own(own) => own.sender.close(why),
            Engine::Kernel(kernel) => kernel.close(why),
        }
    }

    /// Gives the connection to the kernel, if that is wanted and both directions are between two
    /// records.
    fn leave(&mut self, io: &(impl Carrier + System)) {
        let Engine::Own(own) = &mut self.engine else { return };
        if !own.leaving {
            return;
        }
        match kernel::allowed(self.post.version(), own.sender.cipher()) {
            Some(takes_new_keys) => self.leave_to(io, takes_new_keys),
            None => own.stay(),
        }
    }

    fn leave_to(&mut self, io: &(impl Carrier + System), takes_new_keys: bool) {
        let Engine::Own(own) = &mut self.engine else { return };
        if own.receiver.has_ended() || own.sender.has_ended() {
            return own.stay();
        }
        // While something is unsent, reads need not stop at boundaries.
        let Some(sealer) = own.sender.at_boundary(io) else { return own.receiver.keep() };
        let Some(opener) = own.receiver.at_boundary() else { return };
        match Kernel::take(io, &opener.info(), sealer, takes_new_keys) {
            Ok(Some(kernel)) => self.engine = Engine::Kernel(kernel),
            Ok(None) => own.stay(),
            Err(e) => {
                own.stay();
                own.receiver.fail(e, &mut own.sender);
            }
        }
    }
}

impl Own {
    fn stay(&mut self) {
        self.leaving = false;
        self.receiver.keep();
    }
}

/// A TLS session and the plain bytes below it.
pub struct TlsStream {
    plain: Plain,
    session: RefCell<Session>,
}

impl TlsStream {
    /// Makes the handshake as a server; `early` is what was read from the socket before. The
    /// settings must allow the extraction of secrets.
    ///
    /// # Errors
    /// The peer's (bad records, no common version, a certificate that does not hold) or the
    /// connection's end. The alert has been sent then, if the socket took it.
    pub async fn accept(plain: Plain, config: Arc<ServerConfig>, early: &[u8]) -> io::Result<Self> {
        Ok(Self::accept_bound(plain, config, early).await?.0)
    }

    /// As [`TlsStream::accept`]; also what the client at the other end has, and nobody between.
    ///
    /// # Errors
    /// As there.
    pub async fn accept_bound(
        plain: Plain,
        config: Arc<ServerConfig>,
        early: &[u8],
    ) -> io::Result<(Self, ChannelBinding)> {
        let shake = ServerShake::server(config, early).map_err(io::Error::other)?;
        let established = shake.over(&plain).await?;
        let binding = Secret::try_from(&established.secrets.rx.1)?.binding();
        Ok((Self::establish(plain, established)?, binding))
    }

    /// Makes the handshake as a client of the server `name`. The settings must allow the extraction
    /// of secrets.
    ///
    /// # Errors
    /// As [`TlsStream::accept`]; also a name that TLS can't ask for.
    pub async fn connect(
        plain: Plain,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        Ok(Self::connect_bound(plain, config, name).await?.0)
    }

    /// As [`TlsStream::connect`]; also what the server at the other end has, and nobody between.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_bound(
        plain: Plain,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<(Self, ChannelBinding)> {
        let shake =
            ClientShake::client(config, name).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let established = shake.over(&plain).await?;
        let binding = Secret::try_from(&established.secrets.tx.1)?.binding();
        Ok((Self::establish(plain, established)?, binding))
    }

    /// As [`TlsStream::connect`]; also the certificate that the server has shown for itself.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn connect_shown(
        plain: Plain,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<(Self, Option<CertificateDer<'static>>)> {
        let shake =
            ClientShake::client(config, name).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let (established, shown) = shake.over_shown(&plain).await?;
        Ok((Self::establish(plain, established)?, shown))
    }

    /// From here on the library is asked for new keys and for tickets only.
    fn establish(plain: Plain, established: Established) -> io::Result<Self> {
        Ok(Self { plain, session: RefCell::new(Session::new(established)?) })
    }

    /// Goes on with a session that was taken apart.
    pub fn from_parts(plain: Plain, session: Session) -> Self {
        Self { plain, session: RefCell::new(session) }
    }

    /// Takes it apart, to go on elsewhere.
    pub fn into_parts(self) -> (Plain, Session) {
        let mut session = self.session.into_inner();
        if let Engine::Own(own) = &mut session.engine {
            own.sender.detach();
        }
        (self.plain, session)
    }

    /// The bytes below, for waiting and for addresses.
    pub fn plain(&self) -> &Plain {
        &self.plain
    }

    /// Reads decrypted bytes, without waiting. `Ok(0)` is close_notify.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, `UnexpectedEof` when the connection ended without
    /// close_notify, `InvalidData` for what is not TLS.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.session.borrow_mut().read(&self.plain, buf)
    }

    /// Whether a read may have something to tell at once, whatever the socket says: decrypted bytes,
    /// whole records, an end; or a socket that was not read to its end.
    pub fn more_to_come(&self) -> bool {
        self.session.borrow().more_to_come()
    }

    /// Waits until a read would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn readable(&self) -> io::Result<()> {
        if !self.more_to_come() {
            return self.plain.readable().await;
        }
        self.plain.account().breathe().await;
        Ok(())
    }

    /// Accepts plaintext and sends what the socket takes.
    ///
    /// # Errors
    /// `WouldBlock` while earlier bytes still wait for the socket; else the connection's end.
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.session.borrow_mut().write(&self.plain, bufs)
    }

    /// Sends what was accepted; whether all of it is out.
    ///
    /// # Errors
    /// The connection's end.
    pub fn try_flush(&self) -> io::Result<bool> {
        self.session.borrow_mut().flush(&self.plain)
    }

    /// Waits until everything accepted is with the kernel.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn flush(&self) -> io::Result<()> {
        while !self.try_flush()? {
            self.plain.writable().await?;
        }
        Ok(())
    }

    /// Queues close_notify; [`TlsStream::flush`] sends it.
    pub fn finish_write(&self) {
        self.session.borrow_mut().close(AlertDescription::CloseNotify);
    }

    /// Asks the kernel to take the connection over (kTLS), for a session of plain bytes with bulk in
    /// it: the bytes need not pass through this process then. It comes about now or during one of
    /// the next reads or writes, where both directions are between two records; nothing else changes.
    /// `false`: it never will, because the kernel can't, the operator does not want it, or the
    /// connection has ended.
    pub fn enter_kernel(&self) -> bool {
        let mut session = self.session.borrow_mut();
        if let Engine::Own(own) = &mut session.engine {
            own.leaving = true;
        }
        session.leave(&self.plain);
        match &session.engine {
            Engine::Own(own) => own.leaving,
            Engine::Kernel(_) => true,
        }
    }

    /// Whether the kernel seals and opens the records: it goes on doing so.
    pub fn in_kernel(&self) -> bool {
        matches!(self.session.borrow().engine, Engine::Kernel(_))
    }

    /// Moves opened bytes into a pipe, without waiting. `None` when only [`TlsStream::try_read`] can
    /// say what is next: an end, a word of TLS's own, or everything while the kernel has not taken
    /// over.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, or the pipe is full.
    pub fn try_splice_out(&self, pipe: BorrowedFd<'_>, bytes_max: usize) -> io::Result<Option<usize>> {
        let Session { post, engine } = &mut *self.session.borrow_mut();
        match engine {
            Engine::Own(_) => Ok(None),
            Engine::Kernel(kernel) => kernel.splice_out(&self.plain, post, pipe, bytes_max),
        }
    }

    /// Moves bytes from a pipe into the connection, without waiting. `None` while the kernel has not
    /// taken over: they are to be written then.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full, or the pipe empty; else the connection's end.
    pub fn try_splice_in(&self, pipe: BorrowedFd<'_>, bytes_max: usize) -> io::Result<Option<usize>> {
        let Session { post, engine } = &mut *self.session.borrow_mut();
        match engine {
            Engine::Own(_) => Ok(None),
            Engine::Kernel(kernel) => kernel.splice_in(&self.plain, post, pipe, bytes_max).map(Some),
        }
    }

    /// How many records the kernel may still seal before it needs a new key; `None` while it seals
    /// none.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn kernel_records_left(&self) -> io::Result<Option<u64>> {
        match &self.session.borrow().engine {
            Engine::Own(_) => Ok(None),
            Engine::Kernel(kernel) => kernel.records_left(&self.plain).map(Some),
        }
    }
}
