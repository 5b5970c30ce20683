//! Role: the two ends of a connection: our own, in the kernel, and the library's.

use std::{
    fmt,
    io::{self, IoSlice, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
};

use narrowlink_dataplane::{net::plain::Plain, run::worker::run_alone, tls::TlsStream};
use rustls::{
    ClientConfig, ClientConnection, Connection, ProtocolVersion, RootCertStore, ServerConfig,
    ServerConnection, SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{PrivateKeyDer, ServerName},
};

/// Whose side the library has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Server,
}

/// A version and a cipher, and settings that allow no others.
pub(crate) struct Suite {
    suite: SupportedCipherSuite,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.suite.suite())
    }
}

impl Suite {
    /// Both versions with each of the three ciphers.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        use aws_lc_rs::cipher_suite as known;
        [
            known::TLS13_AES_128_GCM_SHA256,
            known::TLS13_AES_256_GCM_SHA384,
            known::TLS13_CHACHA20_POLY1305_SHA256,
            known::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            known::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            known::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ]
        .into_iter()
        .map(Self::new)
    }

    fn new(suite: SupportedCipherSuite) -> Self {
        let provider =
            Arc::new(CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() });
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        server.enable_secret_extraction = true;
        Self { suite, client: Arc::new(client), server: Arc::new(server) }
    }

    pub(crate) fn is_tls13(&self) -> bool {
        self.suite.version().version == ProtocolVersion::TLSv1_3
    }

    /// A connection between `ours`, which the kernel has taken over when it begins, and `theirs`, which
    /// begins behind that, each on a thread of its own; what they come to.
    pub(crate) fn between<O: Send, T: Send>(
        &self,
        peer: Peer,
        ours: impl AsyncFnOnce(TlsStream) -> O + Send,
        theirs: impl FnOnce(Library) -> T + Send,
    ) -> (O, T) {
        let (near, far) = pair();
        let (entered, go) = mpsc::channel();
        thread::scope(|scope| {
            let theirs = scope.spawn(move || {
                let library = self.library(peer, far);
                go.recv().ok().map(|()| theirs(library))
            });
            let ours = scope.spawn(|| {
                run_alone(false, |_| async move {
                    let tls = self.ours(peer, near).await;
                    enters(&tls);
                    entered.send(()).unwrap();
                    ours(tls).await
                })
                .unwrap()
            });
            (joined(ours), joined(theirs).unwrap())
        })
    }

    /// Our end, after its handshake.
    pub(crate) async fn ours(&self, peer: Peer, stream: TcpStream) -> TlsStream {
        stream.set_nonblocking(true).unwrap();
        let socket = Plain::adopt(stream.into()).unwrap();
        match peer {
            Peer::Client => TlsStream::accept(socket, self.server.clone(), &[]).await,
            Peer::Server => TlsStream::connect(socket, self.client.clone(), name()).await,
        }
        .unwrap()
    }

    /// The library's end, after its handshake.
    pub(crate) fn library(&self, peer: Peer, mut tcp: TcpStream) -> Library {
        let mut conn: Connection = match peer {
            Peer::Client => ClientConnection::new(self.client.clone(), name()).unwrap().into(),
            Peer::Server => ServerConnection::new(self.server.clone()).unwrap().into(),
        };
        while conn.is_handshaking() {
            conn.complete_io(&mut tcp).unwrap();
        }
        Library { conn, tcp }
    }
}

fn name() -> ServerName<'static> {
    "localhost".try_into().unwrap()
}

/// Goes over to the kernel, where nothing that was received stands in the way.
pub(crate) fn enters(tls: &TlsStream) {
    assert!(tls.enter_kernel(), "the kernel does not take it");
    assert!(tls.in_kernel(), "something stands in the way");
}

pub(crate) fn joined<R>(thread: thread::ScopedJoinHandle<'_, R>) -> R {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Two ends of a TCP connection over loopback.
pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// A stream of bytes that says at each place where it is.
pub(crate) fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|n| (n * 31 + n / 251 + n / 65_521) as u8).collect()
}

/// Said or heard at once by an end.
pub(crate) const CHUNK_BYTES: usize = 1 << 18;

/// The library's end, which waits.
pub(crate) struct Library {
    pub(crate) conn: Connection,
    pub(crate) tcp: TcpStream,
}

impl Library {
    /// Says `count` bytes of the stream from `from` on.
    pub(crate) fn say(&mut self, from: usize, count: usize) {
        for at in (from..from + count).step_by(CHUNK_BYTES) {
            self.say_these(&bytes(at, CHUNK_BYTES.min(from + count - at)));
        }
    }

    pub(crate) fn say_these(&mut self, mut said: &[u8]) {
        while !said.is_empty() {
            let taken = self.conn.writer().write(said).unwrap();
            said = &said[taken..];
            self.flush().unwrap();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.conn.wants_write() {
            self.conn.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }

    /// Takes a new key and asks for one.
    pub(crate) fn renew(&mut self) {
        self.conn.refresh_traffic_keys().unwrap();
        self.flush().unwrap();
    }

    pub(crate) fn end(&mut self) {
        self.conn.send_close_notify();
        self.flush().unwrap();
    }

    /// At least a byte; 0 is a clean end.
    pub(crate) fn hear(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.conn.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            self.conn.read_tls(&mut self.tcp)?;
            self.conn.process_new_packets().map_err(io::Error::other)?;
            self.flush()?;
        }
    }

    /// Hears `count` bytes of the stream from `from` on.
    pub(crate) fn hears(&mut self, from: usize, count: usize) {
        let mut buf = vec![0; CHUNK_BYTES];
        let mut at = from;
        while at < from + count {
            let room = buf.len().min(from + count - at);
            let heard = self.hear(&mut buf[..room]).unwrap();
            assert!(heard > 0, "the end came after {at} bytes");
            assert!(buf[..heard] == bytes(at, heard), "other bytes at {at}");
            at += heard;
        }
    }

    pub(crate) fn hears_end(&mut self) {
        assert_eq!(self.hear(&mut [0; 1]).unwrap(), 0);
    }
}

/// Reads from our end, waiting.
pub(crate) async fn read(tls: &TlsStream, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match tls.try_read(buf) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tls.readable().await?,
            other => return other,
        }
    }
}

/// Our end hears `count` bytes of the stream from `from` on, with so much room at a time.
pub(crate) async fn hears(tls: &TlsStream, from: usize, count: usize, room_bytes: usize) {
    let mut buf = vec![0; room_bytes];
    let mut at = from;
    while at < from + count {
        let room = buf.len().min(from + count - at);
        let heard = read(tls, &mut buf[..room]).await.unwrap();
        assert!(heard > 0, "the end came after {at} bytes");
        assert!(buf[..heard] == bytes(at, heard), "other bytes at {at}");
        at += heard;
    }
}

/// Our end says `count` bytes of the stream from `from` on.
pub(crate) async fn says(tls: &TlsStream, from: usize, count: usize) {
    for at in (from..from + count).step_by(CHUNK_BYTES) {
        let said = bytes(at, CHUNK_BYTES.min(from + count - at));
        let (head, tail) = said.split_at(said.len() / 3);
        let mut pieces = [IoSlice::new(head), IoSlice::new(tail)];
        let mut left = &mut pieces[..];
        while !left.is_empty() {
            match tls.try_write(left) {
                Ok(taken) => IoSlice::advance_slices(&mut left, taken),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => tls.plain().writable().await.unwrap(),
                Err(e) => panic!("at {at}: {e}"),
            }
        }
    }
    tls.flush().await.unwrap();
}

/// Our end says that it has said everything, and goes.
pub(crate) async fn leaves(tls: TlsStream) {
    tls.finish_write();
    tls.flush().await.unwrap();
    tls.into_parts().0.close_gently();
}
