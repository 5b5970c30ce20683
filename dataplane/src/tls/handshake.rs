//! Role: the handshake, made by rustls; what it leaves: secrets, the library's rest, early bytes.
//! Invariants: the library sees one record more at a time, so that it never opens what comes
//! behind the handshake · everything it has to say is sent before more is waited for, and before
//! the handshake counts as done · when it fails, its alert is sent, if the socket takes it.
//! See: RFC 8446 §2; RFC 5246 §7.3.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, Error, ExtractedSecrets, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, ServerName},
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus},
};

use super::{post::Library, record::HEADER_BYTES};
use crate::net::plain::Plain;

/// What is received at once; certificates come in one or two.
const RECEIVE_BYTES: usize = 4096;

/// All that a handshake leaves. The secrets are in no other place: whoever moves the bytes, be it
/// our own records or the kernel's, takes them from here.
pub(super) struct Established {
    /// Keys and sequence numbers of both directions.
    pub(super) secrets: ExtractedSecrets,
    /// For key updates and tickets.
    pub(super) library: Library,
    /// What was received behind the handshake, as it came.
    pub(super) rest: Vec<u8>,
}

/// What the library wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Again,
    Receive,
}

/// The library's state machine, of either side.
pub(super) trait Machine {
    /// One step; returns how many bytes of `incoming` are done with, and appends what is to be sent.
    fn step(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) -> (usize, Result<Step, Error>);
    /// Whether both directions are open for data.
    fn is_done(&self) -> bool;
    /// Whether something waits that was not taken by a step.
    fn has_output(&self) -> bool;
    /// Takes a finished one apart.
    fn finish(self) -> Result<(ExtractedSecrets, Library), Error>;
}

impl Machine for UnbufferedServerConnection {
    fn step(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
        take(self.process_tls_records(incoming), outgoing)
    }
    fn is_done(&self) -> bool {
        !self.is_handshaking()
    }
    fn has_output(&self) -> bool {
        self.wants_write()
    }
    fn finish(self) -> Result<(ExtractedSecrets, Library), Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Library::Server(Box::new(kernel))))
    }
}

impl Machine for UnbufferedClientConnection {
    fn step(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
        take(self.process_tls_records(incoming), outgoing)
    }
    fn is_done(&self) -> bool {
        !self.is_handshaking()
    }
    fn has_output(&self) -> bool {
        self.wants_write()
    }
    fn finish(self) -> Result<(ExtractedSecrets, Library), Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Library::Client(Box::new(kernel))))
    }
}

fn take<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
) -> (usize, Result<Step, Error>) {
    let step = match status.state {
        Err(e) => Err(e),
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = outgoing.len();
            let mut encoded = data.encode(&mut []);
            if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = encoded {
                outgoing.resize(at + required_size, 0);
                encoded = data.encode(&mut outgoing[at..]);
            }
            encoded.map(|_| Step::Again).map_err(|e| Error::General(e.to_string()))
        }
        // What is in `outgoing` is sent before the next record is waited for.
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Step::Receive),
        Ok(other) => Err(Error::General(format!("a handshake does not lead to {other:?}"))),
    };
    (status.discard, step)
}

/// A handshake under way.
pub(super) struct Shake<M> {
    machine: M,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// So much of `incoming` are whole records that the machine has seen.
    seen: usize,
}

/// The server's side of a handshake.
pub(super) type ServerShake = Shake<UnbufferedServerConnection>;
/// The client's side of a handshake.
pub(super) type ClientShake = Shake<UnbufferedClientConnection>;

impl ServerShake {
    /// `early` was read from the connection before.
    pub(super) fn server(config: Arc<ServerConfig>, early: &[u8]) -> Result<Self, Error> {
        Ok(Self::new(UnbufferedServerConnection::new(config)?, early))
    }
}

impl ClientShake {
    pub(super) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::new(UnbufferedClientConnection::new(config, name)?, &[]))
    }

    /// As [`Shake::over`]; also the server's own certificate.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn over_shown(
        mut self,
        plain: &Plain,
    ) -> io::Result<(Established, Option<CertificateDer<'static>>)> {
        self.run(plain).await?;
        let shown = self.machine.peer_certificates().and_then(<[_]>::first);
        let shown = shown.map(|certificate| certificate.clone().into_owned());
        Ok((self.finish().map_err(invalid)?, shown))
    }
}

impl<M: Machine> Shake<M> {
    fn new(machine: M, early: &[u8]) -> Self {
        Self { machine, incoming: early.to_vec(), outgoing: Vec::new(), seen: 0 }
    }

    /// Goes as far as it can with what has come; whether the handshake is done. What is to be sent
    /// stands in `outgoing` then, an alert if it failed.
    pub(super) fn advance(&mut self) -> Result<bool, Error> {
        let mut shown = self.seen;
        loop {
            let (discard, step) = self.machine.step(&mut self.incoming[..shown], &mut self.outgoing);
            if step.is_err() {
                // The alert stands behind the failed step. One step for each output and no more:
                // another would look at the same bytes again.
                while self.machine.has_output() {
                    let _ = self.machine.step(&mut self.incoming[discard..shown], &mut self.outgoing);
                }
            }
            self.incoming.drain(..discard);
            self.seen = self.seen.saturating_sub(discard);
            shown -= discard;
            if step? == Step::Again {
                continue;
            }
            if self.machine.is_done() {
                return Ok(true);
            }
            match record_bytes(&self.incoming[self.seen..]) {
                Some(bytes) => {
                    self.seen += bytes;
                    shown = self.seen;
                }
                // The machine judges a header as soon as it is there.
                None if shown < self.incoming.len() => shown = self.incoming.len(),
                None => return Ok(false),
            }
        }
    }

    /// What is to be sent; whoever sends it empties it.
    #[cfg(test)]
    pub(super) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Takes what came.
    #[cfg(test)]
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
    }

    /// What a finished handshake leaves.
    pub(super) fn finish(self) -> Result<Established, Error> {
        let (secrets, library) = self.machine.finish()?;
        Ok(Established { secrets, library, rest: self.incoming })
    }

    /// Makes the handshake over plain bytes.
    ///
    /// # Errors
    /// The peer's (bad records, no common version, a certificate that does not hold) or the
    /// connection's end.
    pub(super) async fn over(mut self, plain: &Plain) -> io::Result<Established> {
        self.run(plain).await?;
        self.finish().map_err(invalid)
    }

    async fn run(&mut self, plain: &Plain) -> io::Result<()> {
        loop {
            let advanced = self.advance();
            if advanced.is_err() {
                let _ = plain.try_write(&[io::IoSlice::new(&self.outgoing)]);
            }
            let done = advanced.map_err(invalid)?;
            send_all(plain, &mut self.outgoing).await?;
            if done {
                return Ok(());
            }
            self.receive(plain).await?;
        }
    }

    async fn receive(&mut self, plain: &Plain) -> io::Result<()> {
        let at = self.incoming.len();
        loop {
            self.incoming.resize(at + RECEIVE_BYTES, 0);
            let got = plain.try_read(&mut self.incoming[at..]);
            self.incoming.truncate(at + got.as_ref().map_or(0, |&bytes| bytes));
            match got {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => plain.readable().await?,
                Err(e) => return Err(e),
            }
        }
    }
}

fn invalid(e: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

async fn send_all(plain: &Plain, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match plain.try_write(&[io::IoSlice::new(bytes)]) {
            Ok(sent) => drop(bytes.drain(..sent)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => plain.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The length of the record at the front, if it is whole.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let &[_, _, _, high, low] = bytes.first_chunk::<HEADER_BYTES>()?;
    let len = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
    (len <= bytes.len()).then_some(len)
}
