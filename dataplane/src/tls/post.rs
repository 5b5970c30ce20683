//! Role: what TLS says beside data after the handshake: alerts, key updates, tickets.
//! Invariants: everything that can be repeated without data between is bounded · a message may
//! come in parts and several in one record, but nothing comes between its parts, and a key update
//! ends its record · memory is held only while a message is incomplete.
//! See: RFC 8446 §4.6, §5.1, §6; RFC 5246 §7.2.2, §7.4.1.1.

use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, HandshakeType, ProtocolVersion,
    SupportedCipherSuite, client::ClientConnectionData, kernel::KernelConnection,
    server::ServerConnectionData,
};

use super::{
    fault::TlsError,
    info::{Direction, Info},
    record::{Opener, Sealer},
    secret::{Secret, Version},
};

/// The longest message; the library takes no longer one in a handshake either.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Of each of key updates, tickets and empty records, so many may come without data between.
const IDLE_RECORDS_MAX: u8 = 32;
/// Warnings that a connection may see, and refused renegotiations.
const WARNINGS_MAX: u8 = 4;
const FATAL: u8 = 2;

/// What the handshake left of the library: it makes new keys and keeps tickets.
pub(super) enum Library {
    /// Ours is the server's side.
    Server(Box<KernelConnection<ServerConnectionData>>),
    /// Ours is the client's side.
    Client(Box<KernelConnection<ClientConnectionData>>),
}

/// What a record asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Nothing more.
    Nothing,
    /// The peer's next record has a new key.
    NewKey {
        /// We shall take a new one too.
        answer: bool,
    },
    /// A renegotiation is to be refused.
    Refuse,
    /// The peer's direction ends here.
    End,
}

/// The conversation after the handshake.
pub(super) struct Post {
    library: Library,
    version: Version,
    /// A message whose rest has not come.
    part: Vec<u8>,
    key_updates: u8,
    tickets: u8,
    empty_records: u8,
    warnings: u8,
}

impl Post {
    /// Goes on where the library stopped.
    pub(super) fn new(library: Library) -> Self {
        let version = match library.protocol_version() {
            ProtocolVersion::TLSv1_3 => Version::Tls13,
            _ => Version::Tls12,
        };
        Self { library, version, part: Vec::new(), key_updates: 0, tickets: 0, empty_records: 0, warnings: 0 }
    }

    /// The version that was agreed.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Records that one key may seal. At half of what the suite allows the next key takes over,
    /// where there is one: for AES-GCM, every 128 GiB.
    pub(super) fn seal_limit(&self) -> u64 {
        match self.library.suite() {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit / 2,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        }
    }

    /// The key for what comes next.
    pub(super) fn next_opener(&mut self) -> Result<Opener, TlsError> {
        let (seq, secrets) = self.next_rx()?;
        Opener::new(self.version, seq, &Secret::try_from(&secrets)?)
    }

    /// The key for what goes out next.
    pub(super) fn next_sealer(&mut self, limit: u64) -> Result<Sealer, TlsError> {
        let (seq, secrets) = self.next_tx()?;
        Sealer::new(self.version, seq, limit, &Secret::try_from(&secrets)?)
    }

    /// The same two, for the kernel.
    pub(super) fn next_info(&mut self, direction: Direction) -> Result<Info, TlsError> {
        let (seq, secrets) = match direction {
            Direction::In => self.next_rx(),
            Direction::Out => self.next_tx(),
        }?;
        Ok(Info::new(self.version, &Secret::try_from(&secrets)?, seq))
    }

    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match &mut self.library {
            Library::Server(kernel) => kernel.update_rx_secret(),
            Library::Client(kernel) => kernel.update_rx_secret(),
        }
    }

    fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match &mut self.library {
            Library::Server(kernel) => kernel.update_tx_secret(),
            Library::Client(kernel) => kernel.update_tx_secret(),
        }
    }

    /// A record of data came.
    pub(super) fn on_data(&mut self, bytes: usize) -> Result<(), TlsError> {
        self.check_whole()?;
        if bytes == 0 {
            return count(&mut self.empty_records, IDLE_RECORDS_MAX, "empty records");
        }
        (self.key_updates, self.tickets, self.empty_records) = (0, 0, 0);
        Ok(())
    }

    /// A record of another type came.
    pub(super) fn on_record(&mut self, kind: ContentType, payload: &[u8]) -> Result<Ask, TlsError> {
        match kind {
            ContentType::Alert => {
                self.check_whole()?;
                self.on_alert(payload)
            }
            ContentType::Handshake => self.on_handshake(payload),
            ContentType::ChangeCipherSpec => Err(TlsError::Unexpected("a change of ciphers")),
            _ => Err(TlsError::Unexpected("a record of this type")),
        }
    }

    fn check_whole(&self) -> Result<(), TlsError> {
        if self.part.is_empty() { Ok(()) } else { Err(TlsError::Unexpected("a record within a message")) }
    }

    fn on_alert(&mut self, payload: &[u8]) -> Result<Ask, TlsError> {
        let &[level, description] = payload else { return Err(TlsError::Malformed("an alert")) };
        let description = AlertDescription::from(description);
        if description == AlertDescription::CloseNotify {
            return Ok(Ask::End);
        }
        // TLS 1.3 has no warnings but this one, and gives the level no meaning.
        let warning = match self.version {
            Version::Tls12 => level != FATAL,
            Version::Tls13 => description == AlertDescription::UserCanceled,
        };
        if !warning {
            return Err(TlsError::Alert(description));
        }
        count(&mut self.warnings, WARNINGS_MAX, "warnings")?;
        Ok(Ask::Nothing)
    }

    fn on_handshake(&mut self, payload: &[u8]) -> Result<Ask, TlsError> {
        if payload.is_empty() {
            return Err(TlsError::Unexpected("an empty message"));
        }
        if self.part.is_empty() {
            let (asked, rest) = self.on_messages(payload)?;
            self.part = rest.to_vec();
            return Ok(asked);
        }
        let mut joined = std::mem::take(&mut self.part);
        joined.extend_from_slice(payload);
        let (asked, rest) = self.on_messages(&joined)?;
        let done = joined.len() - rest.len();
        joined.drain(..done);
        self.part = joined;
        Ok(asked)
    }

    /// Takes the whole messages at the front; returns the rest.
    fn on_messages<'a>(&mut self, mut bytes: &'a [u8]) -> Result<(Ask, &'a [u8]), TlsError> {
        let mut asked = Ask::Nothing;
        while let Some((&[kind, a, b, c], rest)) = bytes.split_first_chunk::<4>() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if len > MESSAGE_BYTES_MAX {
                return Err(TlsError::Malformed("a message of such a length"));
            }
            let Some((body, rest)) = rest.split_at_checked(len) else { break };
            asked = self.on_message(HandshakeType::from(kind), body)?;
            bytes = rest;
            // What follows would be under the new key.
            if !bytes.is_empty() && matches!(asked, Ask::NewKey { .. }) {
                return Err(TlsError::Unexpected("a message behind a key update"));
            }
        }
        Ok((asked, bytes))
    }

    fn on_message(&mut self, kind: HandshakeType, body: &[u8]) -> Result<Ask, TlsError> {
        match (self.version, kind, &mut self.library) {
            (Version::Tls13, HandshakeType::KeyUpdate, _) => {
                let answer = match body {
                    [0] => false,
                    [1] => true,
                    _ => return Err(TlsError::Malformed("a key update")),
                };
                count(&mut self.key_updates, IDLE_RECORDS_MAX, "key updates")?;
                Ok(Ask::NewKey { answer })
            }
            (Version::Tls13, HandshakeType::NewSessionTicket, Library::Client(kernel)) => {
                count(&mut self.tickets, IDLE_RECORDS_MAX, "tickets")?;
                kernel.handle_new_session_ticket(body)?;
                Ok(Ask::Nothing)
            }
            (Version::Tls12, HandshakeType::HelloRequest, Library::Client(_))
            | (Version::Tls12, HandshakeType::ClientHello, Library::Server(_)) => {
                count(&mut self.warnings, 1, "renegotiations")?;
                Ok(Ask::Refuse)
            }
            _ => Err(TlsError::Unexpected("a message of a handshake")),
        }
    }
}

impl Library {
    fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Server(kernel) => kernel.negotiated_cipher_suite(),
            Self::Client(kernel) => kernel.negotiated_cipher_suite(),
        }
    }

    fn protocol_version(&self) -> ProtocolVersion {
        match self {
            Self::Server(kernel) => kernel.protocol_version(),
            Self::Client(kernel) => kernel.protocol_version(),
        }
    }
}

fn count(counter: &mut u8, max: u8, of: &'static str) -> Result<(), TlsError> {
    *counter += 1;
    if *counter > max { Err(TlsError::Flood(of)) } else { Ok(()) }
}
