//! Role: a session of ours in memory, against rustls' own or against another of ours.
//! Invariants: no socket, no clock; what a test draws at random it draws from a seed.

mod interop;
mod kernel;
mod malice;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{self, IoSlice, Read as _, Write as _},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, Connection, Error, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{PrivateKeyDer, ServerName},
};

use super::{
    Carrier, Engine, Own, Session,
    handshake::{ClientShake, Machine, ServerShake, Shake},
};

/// The way between two ends, in memory.
#[derive(Default)]
struct Line {
    to_us: RefCell<VecDeque<u8>>,
    from_us: RefCell<Vec<u8>>,
    /// After what is in `to_us` comes the end.
    ended: Cell<bool>,
    /// No call moves more; 0 sends nothing.
    recv_max: Cell<usize>,
    send_max: Cell<usize>,
    /// What a kernel would have, where it seals and opens.
    keys: RefCell<kernel::Keys>,
}

impl Line {
    fn new() -> Self {
        let line = Self::default();
        line.recv_max.set(usize::MAX);
        line.send_max.set(usize::MAX);
        line
    }

    fn give(&self, bytes: &[u8]) {
        self.to_us.borrow_mut().extend(bytes);
    }

    fn take(&self) -> Vec<u8> {
        self.from_us.take()
    }
}

impl Carrier for Line {
    fn spend(&self, _: usize) {}
    fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        let room = buf.len().min(self.recv_max.get());
        match self.to_us.borrow_mut().read(&mut buf[..room])? {
            0 if !self.ended.get() => Err(io::ErrorKind::WouldBlock.into()),
            bytes => Ok(bytes),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.len().min(self.send_max.get()) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            bytes_now => {
                self.from_us.borrow_mut().extend_from_slice(&bytes[..bytes_now]);
                Ok(bytes_now)
            }
        }
    }
}

/// A library's connection as the peer.
struct Peer(Connection);

impl Peer {
    /// What it sends, records and all.
    fn sends(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut out).unwrap();
        }
        out
    }

    fn says(&mut self, plain: &[u8]) -> Vec<u8> {
        self.0.set_buffer_limit(None);
        self.0.writer().write_all(plain).unwrap();
        self.sends()
    }

    /// What it makes of what we sent: plaintext, and whether it saw the end.
    fn hears(&mut self, mut bytes: &[u8]) -> Result<(Vec<u8>, bool), Error> {
        let (mut plain, mut ended) = (Vec::new(), false);
        while !bytes.is_empty() {
            if self.0.read_tls(&mut bytes).unwrap() == 0 {
                break;
            }
            ended |= self.0.process_new_packets()?.peer_has_closed();
            let _ = self.0.reader().read_to_end(&mut plain);
        }
        Ok((plain, ended))
    }
}

/// What the two ends are set up with.
struct Setup {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn name() -> ServerName<'static> {
    "localhost".try_into().unwrap()
}

impl Setup {
    fn new(suites: Vec<SupportedCipherSuite>) -> Self {
        let provider = Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() });
        // An RSA suite of TLS 1.2 wants an RSA key; the others want the usual one.
        let rsa = provider.cipher_suites.iter().any(|suite| format!("{suite:?}").contains("_RSA_"));
        let kind = if rsa { &rcgen::PKCS_RSA_SHA256 } else { &rcgen::PKCS_ECDSA_P256_SHA256 };
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let cert =
            rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        server.enable_secret_extraction = true;
        server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        Self { client: Arc::new(client), server: Arc::new(server) }
    }

    fn tls13() -> Self {
        Self::new(vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256])
    }

    fn tls12() -> Self {
        Self::new(vec![aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256])
    }

    fn our_server(&self) -> ServerShake {
        ServerShake::server(self.server.clone(), &[]).unwrap()
    }

    fn our_client(&self) -> ClientShake {
        ClientShake::client(self.client.clone(), name()).unwrap()
    }

    fn peer_client(&self) -> Peer {
        Peer(ClientConnection::new(self.client.clone(), name()).unwrap().into())
    }

    fn peer_server(&self) -> Peer {
        Peer(ServerConnection::new(self.server.clone()).unwrap().into())
    }

    /// Our server or client, and the library's other side.
    fn connect(&self, we_serve: bool) -> (Session, Line, Peer) {
        if we_serve {
            let mut peer = self.peer_client();
            let session = meet(self.our_server(), &mut peer, b"").unwrap();
            (session, Line::new(), peer)
        } else {
            let mut peer = self.peer_server();
            let session = meet(self.our_client(), &mut peer, b"").unwrap();
            (session, Line::new(), peer)
        }
    }

    /// Both sides ours: client and server.
    fn connect_ours(&self) -> (Session, Session) {
        let (mut client, mut server) = (self.our_client(), self.our_server());
        loop {
            let done = client.advance().unwrap();
            server.take(&std::mem::take(client.outgoing()));
            let both = server.advance().unwrap() && done;
            client.take(&std::mem::take(server.outgoing()));
            if both {
                break;
            }
        }
        (Session::new(client.finish().unwrap()).unwrap(), Session::new(server.finish().unwrap()).unwrap())
    }
}

/// A handshake of ours with the library's; behind its last word the peer says `early` at once.
fn meet<M: Machine>(mut ours: Shake<M>, peer: &mut Peer, early: &[u8]) -> Result<Session, Error> {
    let mut early = Some(early);
    loop {
        let done = ours.advance();
        peer.hears(&std::mem::take(ours.outgoing()))?;
        if done? {
            break;
        }
        let mut bytes = peer.sends();
        if !peer.0.is_handshaking()
            && let Some(early) = early.take()
        {
            bytes.extend(peer.says(early));
        }
        assert!(!bytes.is_empty(), "both wait");
        ours.take(&bytes);
    }
    ours.take(&peer.sends());
    ours.take(&early.map(|early| peer.says(early)).unwrap_or_default());
    Ok(Session::new(ours.finish()?).unwrap())
}

impl Session {
    fn own(&mut self) -> &mut Own {
        match &mut self.engine {
            Engine::Own(own) => own,
            Engine::Kernel(_) => panic!("the kernel has it"),
        }
    }

    /// Reads until nothing more comes.
    fn drain(&mut self, line: &Line, room: usize) -> io::Result<Vec<u8>> {
        let (mut all, mut buf) = (Vec::new(), vec![0; room]);
        loop {
            match self.read(line, &mut buf) {
                Ok(0) => return Ok(all),
                Ok(bytes) => all.extend_from_slice(&buf[..bytes]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(e) => return Err(e),
            }
        }
    }

    fn write_all(&mut self, line: &Line, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let accepted = self.write(line, &[IoSlice::new(rest)]).unwrap();
            rest = &rest[accepted..];
        }
        assert!(self.own().sender.flush(line).unwrap());
    }

    fn holds_memory(&mut self) -> bool {
        self.own().receiver.holds_memory() || self.own().sender.holds_memory()
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}
