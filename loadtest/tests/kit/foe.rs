//! Role: a hostile peer of the gateway: it upgrades as a real one does, and sends whatever bytes a test wants.
//! Invariants: it never waits for the gateway to read, and throws away what the gateway says · over TLS it
//! chooses the records, too.
//! See: RFC 6455; RFC 8446 section 5.1.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use narrowlink_proto::{
    feature::Features,
    frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode},
    id::{LaneId, LinkId, LinkSecret},
    message::{Channel, Message, Place, Speaker, VERSION},
    upgrade::{self, Answer, Framing, LaneProof, Protocol, Request},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject,
};
use socket2::{Domain, Socket, Type};

use super::asker::random;

/// For one answer of the gateway's.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of each upgrade; nothing here depends on its being drawn anew.
const KEY: [u8; 16] = [7; 16];
/// A call on the socket waits no longer than this: then it is the other direction's turn.
const CALL_TIMEOUT: Duration = Duration::from_millis(20);

/// Where a gateway is, and how it is spoken to.
#[derive(Clone)]
pub(crate) struct Entry {
    addr: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    /// Where connections come from, unless the system chooses.
    source: Option<IpAddr>,
}

impl Entry {
    /// A gateway's plain or TLS port; its authority's certificate lies at `ca_file`.
    pub(crate) fn new(addr: SocketAddr, ca_file: Option<&Path>) -> Self {
        let tls = ca_file.map(|ca_file| {
            let mut roots = RootCertStore::empty();
            for cert in CertificateDer::pem_file_iter(ca_file).expect("the authority's file") {
                roots.add(cert.expect("a certificate")).expect("a usable certificate");
            }
            Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
        });
        Self { addr, tls, source: None }
    }

    /// The same gateway, seen from this address.
    pub(crate) fn from(&self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self.clone() }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        match self.source {
            None => TcpStream::connect(self.addr),
            Some(source) => connect_from(source, self.addr),
        }
    }

    /// What a client says first over TLS: the same bytes serve any number of times.
    pub(crate) fn client_hello(&self) -> Vec<u8> {
        let config = self.tls.clone().expect("a port of TLS");
        let mut tls = ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("TLS");
        let mut hello = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut hello).expect("a buffer");
        }
        hello
    }
}

/// A connection from an address of this machine's.
pub(crate) fn connect_from(source: IpAddr, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect(&addr.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One connection of a hostile peer.
pub(crate) struct Foe {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    heard: Vec<u8>,
}

impl Foe {
    /// Connects, and says nothing of HTTP yet.
    pub(crate) fn connect(entry: &Entry) -> io::Result<Self> {
        let socket = entry.connect()?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(CALL_TIMEOUT))?;
        let mut this = Self { socket, tls: None, heard: Vec::new() };
        if let Some(config) = &entry.tls {
            let name = "localhost".try_into().expect("a name");
            let mut tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
            while tls.is_handshaking() {
                tls.complete_io(&mut this.socket)?;
            }
            this.tls = Some(Box::new(tls));
        }
        Ok(this)
    }

    /// What the bearer of `token` asks with.
    pub(crate) fn head(channel: Channel, token: &str, lane: Option<LaneProof>) -> String {
        let protocol = Protocol { channel, framing: Framing::Framed };
        let (host, token) = ("localhost".to_owned(), token.to_owned());
        let way = upgrade::Way::default();
        let request = Request { protocol, token, key: KEY, open: None, lane, host, origin: None, way };
        String::from_utf8(upgrade::encode_request(&request)).expect("a head is ASCII")
    }

    /// Connects and upgrades as the bearer of `token`.
    pub(crate) fn upgrade(
        entry: &Entry,
        channel: Channel,
        token: &str,
        lane: Option<LaneProof>,
    ) -> io::Result<Self> {
        Self::ask(entry, channel, &Self::head(channel, token, lane))
    }

    /// The same, by a head of the caller's own.
    pub(crate) fn ask(entry: &Entry, channel: Channel, head: &str) -> io::Result<Self> {
        let mut this = Self::connect(entry)?;
        let protocol = Protocol { channel, framing: Framing::Framed };
        // Its answer, and the end behind it, may be there before all was said.
        let _ = this.say(head.as_bytes());
        loop {
            let answer = upgrade::parse_response(&this.heard, &KEY, protocol).map_err(io::Error::other)?;
            match answer {
                Answer::NeedMore => this.hear()?,
                Answer::Accepted { head_bytes, .. } => {
                    this.heard.drain(..head_bytes);
                    return Ok(this);
                }
                Answer::Refused { status, refused, .. } => {
                    let why = refused.map_or_else(|| "without a word".to_owned(), |refused| refused.reason);
                    return Err(io::Error::other(format!("refused with {status}: {why}")));
                }
            }
        }
    }

    /// A link that stands, its name and what its lanes prove themselves with.
    pub(crate) fn link(entry: &Entry, token: &str) -> io::Result<(Self, LinkId, LinkSecret)> {
        let present = Message::Present { version: VERSION, features: Features::NONE, instance: None };
        Self::link_by(entry, token, &[present.encode()])
    }

    /// The same, by these messages in the place of Present.
    pub(crate) fn link_by(
        entry: &Entry,
        token: &str,
        messages: &[impl AsRef<[u8]>],
    ) -> io::Result<(Self, LinkId, LinkSecret)> {
        let mut this = Self::upgrade(entry, Channel::Link, token, None)?;
        this.read_message(Channel::Link)?;
        // Who is sent away for one of them may be cut off before the next.
        let _ = this.say_all(messages);
        match this.read_message(Channel::Link)? {
            Message::Welcome { link, secret } => Ok((this, link, secret)),
            Message::Goodbye(goodbye) => Err(io::Error::other(format!("sent away: {}", goodbye.reason))),
            other => Err(io::Error::other(format!("{} is no welcome", other.name()))),
        }
    }

    /// Says each of these messages.
    pub(crate) fn say_all(&mut self, messages: &[impl AsRef<[u8]>]) -> io::Result<()> {
        messages.iter().try_for_each(|message| self.say(&text(message.as_ref())))
    }

    /// A lane of such a link.
    pub(crate) fn lane(entry: &Entry, token: &str, link: LinkId, secret: &LinkSecret) -> io::Result<Self> {
        let lane = LaneId::from_bytes(random());
        let proof = LaneProof { link, lane, proof: secret.prove_lane(&link, &lane) };
        Self::upgrade(entry, Channel::Lane, token, Some(proof))
    }

    /// The gateway's next message; pings of its are passed over.
    pub(crate) fn read_message(&mut self, channel: Channel) -> io::Result<Message> {
        loop {
            match self.read_frame()? {
                (Opcode::Text, text) => {
                    return Message::decode(&text, Speaker::Gateway, channel).map_err(io::Error::other);
                }
                (Opcode::Close, payload) => return Err(closed(&payload)?),
                _ => {}
            }
        }
    }

    /// What comes in a session that stands, to its clean end.
    pub(crate) fn read_session(&mut self) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            match self.read_frame()? {
                (Opcode::Binary | Opcode::Continuation, payload) => data.extend(payload),
                (Opcode::Text, text) => {
                    let fin = Message::decode(&text, Speaker::Gateway, Place::Session);
                    return match fin.map_err(io::Error::other)? {
                        Message::Fin { bytes, .. } if bytes == data.len() as u64 => Ok(data),
                        other => Err(io::Error::other(format!("{other:?} behind {} bytes", data.len()))),
                    };
                }
                (Opcode::Close, payload) => return Err(closed(&payload)?),
                _ => {}
            }
        }
    }

    fn read_frame(&mut self) -> io::Result<(Opcode, Vec<u8>)> {
        loop {
            let header = frame::decode(&self.heard, Expect::Unmasked, 1 << 20).map_err(io::Error::other)?;
            if let Some((header, at)) = header
                && self.heard.len() >= at + header.payload_bytes as usize
            {
                let payload = self.heard.drain(..at + header.payload_bytes as usize).skip(at).collect();
                return Ok((header.opcode, payload));
            }
            self.hear()?;
        }
    }

    /// Every Close frame that comes before the gateway ends the connection, its code, or 1005 for none.
    pub(crate) fn closes(&mut self) -> Vec<u16> {
        let mut closes = Vec::new();
        loop {
            match self.read_message(Channel::Link) {
                Err(e) if e.kind() == io::ErrorKind::Other => {
                    let words = e.to_string();
                    let code = words.strip_prefix("closed with ").and_then(|words| words.split(':').next());
                    let code = code.unwrap_or_else(|| panic!("{words}"));
                    closes.push(match code.parse().expect("a number") {
                        0 => 1005,
                        code => code,
                    });
                }
                Ok(_) => {}
                Err(_) => return closes,
            }
        }
    }

    /// Waits for something and keeps it.
    fn hear(&mut self) -> io::Result<()> {
        let mut buf = [0; 16 * 1024];
        let n = match &mut self.tls {
            None => self.socket.read(&mut buf)?,
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.socket).read(&mut buf)?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.heard.extend_from_slice(&buf[..n]);
        Ok(())
    }

    /// Says these bytes; what the gateway says meanwhile is thrown away where it would be in the way.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return self.send(bytes) };
        let mut sealed = Vec::new();
        for part in bytes.chunks(16 * 1024) {
            tls.writer().write_all(part)?;
            while tls.wants_write() {
                tls.write_tls(&mut sealed)?;
            }
        }
        self.send(&sealed)
    }

    /// Says these bytes in records of one byte each; `keys` takes a new key before each.
    pub(crate) fn say_in_records(&mut self, bytes: &[u8], keys: bool) -> io::Result<()> {
        let tls = self.tls.as_mut().expect("a shape of TLS");
        let mut sealed = Vec::new();
        for part in bytes.chunks(if keys { 64 } else { 1 }) {
            if keys {
                tls.refresh_traffic_keys().map_err(io::Error::other)?;
            }
            tls.writer().write_all(part)?;
            while tls.wants_write() {
                tls.write_tls(&mut sealed)?;
            }
        }
        self.send(&sealed)
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if is_timeout(&e) => {}
                Err(e) => return Err(e),
            }
            self.throw_away()?;
        }
        Ok(())
    }

    /// Takes what has come off the socket, so that the gateway can go on talking.
    fn throw_away(&mut self) -> io::Result<()> {
        let mut buf = [0; 64 * 1024];
        loop {
            match rustix::net::recv(&self.socket, &mut buf, rustix::net::RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((n, _)) => match &mut self.tls {
                    // Kept: the upgrade's answer is yet to be read.
                    None => self.heard.extend_from_slice(&buf[..n]),
                    Some(tls) => {
                        let mut rest = &buf[..n];
                        while !rest.is_empty() {
                            tls.read_tls(&mut rest)?;
                            let state = tls.process_new_packets().map_err(io::Error::other)?;
                            let mut plain = vec![0; state.plaintext_bytes_to_read()];
                            tls.reader().read_exact(&mut plain)?;
                            self.heard.extend_from_slice(&plain);
                        }
                    }
                },
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            if self.heard.len() > 1 << 20 {
                self.heard.clear();
            }
        }
    }
}

/// What a Close says, as an error.
fn closed(payload: &[u8]) -> io::Result<io::Error> {
    let (code, why) = frame::parse_close(payload).map_err(io::Error::other)?.unwrap_or((0, ""));
    Ok(io::Error::other(format!("closed with {code}: {why}")))
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A masked frame of a client's or an agent's.
pub(crate) fn frame_of(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut head = [0; HEADER_BYTES_MAX];
    let header = Header { fin, opcode, mask: Some([0; 4]), payload_bytes: payload.len() as u64 };
    let len = frame::encode(&header, &mut head);
    [&head[..len], payload].concat()
}

/// A text message.
pub(crate) fn text(payload: &[u8]) -> Vec<u8> {
    frame_of(Opcode::Text, true, payload)
}
