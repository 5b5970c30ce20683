//! Role: an agent's or client's way to its gateway: connect, TLS, upgrade.
//! Invariants: the gateway's name is always verified over TLS, there is no insecure default · the
//! token travels in the Authorization header alone · names are looked up anew at each try · plain bytes follow an
//! upgrade only where nothing stands between.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use narrowlink_proto::{
    code::Code,
    endpoint::{self, EndpointError, FramingChoice, SecretText, SelfHosted},
    id::ChannelBinding,
    message::Open,
    pin::Pin,
    target::Destination,
    unread::hint_named,
    upgrade::{self, Answer, Framing, LaneProof, Opened, Request, Sight, Way},
    yaml::Located,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::ConfigVerifierExt as _;

use crate::{
    net::{
        dial::{connect_first, patience_for},
        plain::Plain,
        resolve::{Asker, resolve},
    },
    run::{
        descriptors,
        file::{self, Reading},
        timer::timeout,
    },
    tls::{TlsStream, pinned::Pinned},
    transport::wire::Wire,
    tunnel::{
        conn::{Conn, Role},
        error::{self, Authority, TunnelError},
    },
};

/// A token's file at the most; a gateway takes no request that is longer.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;
/// A file of authorities at the most: a system's whole bundle has 0.2 MiB.
const CA_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A gateway and how to reach it.
#[derive(Clone)]
pub struct Gateway {
    described: String,
    host: String,
    port: u16,
    /// For the Host header.
    host_header: String,
    tls: Option<Tls>,
    token: SecretText,
    framing: FramingChoice,
}

/// How a gateway is verified.
#[derive(Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    authority: Authority,
}

/// Why an endpoint of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// What is written there makes no sense.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A file that it names can't be read.
    #[error(
        "{} can't be read: {source}{}",
        shown(path),
        hint_named(source, "the directory of the configuration file")
    )]
    File {
        /// Which key names it.
        key: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that it names does not hold what it should.
    #[error("{} {problem}", shown(path))]
    Content {
        /// Which key names it.
        key: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The gateway's name can't stand in a certificate.
    #[error(
        "TLS can't verify the name of the gateway; give the name that stands in its certificate with `domain`"
    )]
    ServerName,
    /// TLS can't be set up.
    #[error("the system's certificate authorities can't be used ({0}); name your own with ca_file")]
    Tls(rustls::Error),
}

impl LoadError {
    /// The kind of trouble.
    pub const fn code(&self) -> Code {
        match self {
            Self::Endpoint(_) | Self::ServerName => Code::ConfigContent,
            Self::File { .. } | Self::Content { .. } | Self::Tls(_) => Code::ConfigFile,
        }
    }

    /// The key that it is about; `None` for the endpoint as a whole.
    pub(super) const fn key(&self) -> Option<&'static str> {
        match self {
            Self::Endpoint(e) => e.key(),
            Self::File { key, .. } | Self::Content { key, .. } => Some(key),
            Self::ServerName => Some("domain"),
            Self::Tls(_) => None,
        }
    }
}

/// A path in an error: only that of a file that is there, for what is none may be anything, a secret too.
fn shown(path: &Path) -> String {
    if path.exists() { path.display().to_string() } else { "this file".to_owned() }
}

/// What to ask for in the upgrade.
pub enum Ask {
    /// Nothing yet: a link.
    Nothing,
    /// A session.
    Open(Open),
    /// To be parked as a lane.
    Lane(LaneProof),
}

impl Gateway {
    /// Reads what an endpoint names, at the start of a program; relative paths are relative to `base`.
    ///
    /// # Errors
    /// The user's configuration; see [`LoadError`].
    pub fn load(endpoint: &SelfHosted, base: &Path) -> Result<Self, Located<LoadError>> {
        Self::read(endpoint, base, Reading::First).map_err(|e| endpoint.spot(e.key()).about(e))
    }

    /// As [`load`](Self::load), not for the first time: what its files have become may keep nobody waiting.
    ///
    /// # Errors
    /// As there.
    pub fn load_again(endpoint: &SelfHosted, base: &Path) -> Result<Self, Located<LoadError>> {
        Self::read(endpoint, base, Reading::Again).map_err(|e| endpoint.spot(e.key()).about(e))
    }

    fn read(endpoint: &SelfHosted, base: &Path, reading: Reading) -> Result<Self, LoadError> {
        endpoint.validate()?;
        let (host, port) = endpoint.host_port()?;
        let server = endpoint.server_name()?;
        let token = read_token(endpoint, base, reading)?;
        let tls = match endpoint.protocol {
            endpoint::Protocol::Ws => None,
            endpoint::Protocol::Wss => {
                let ca_file = endpoint.ca_file.as_ref().map(|file| base.join(file));
                let (config, authority) = tls_config(ca_file.as_deref(), endpoint.ca_pin, reading)?;
                let (config, name) = (Arc::new(config), tls_name(&server)?);
                Some(Tls { config, name, authority })
            }
        };
        let bare = match &server {
            Destination::Ip(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
            Destination::Ip(ip) => ip.to_string(),
            Destination::Name(name) | Destination::Unix(name) => name.clone(),
        };
        let usual = if tls.is_some() { 443 } else { 80 };
        let host_header = if port == usual { bare } else { format!("{bare}:{port}") };
        let described = endpoint.gateway.clone();
        Ok(Self { described, host, port, host_header, tls, token, framing: endpoint.framing })
    }

    /// The same gateway, to be asked with another token; everything else is as it was read.
    #[must_use]
    pub fn with_token(&self, token: SecretText) -> Self {
        Self { token, ..self.clone() }
    }

    /// Host and port, as the user wrote them.
    pub fn describe(&self) -> &str {
        &self.described
    }

    /// The bearer token.
    pub fn token(&self) -> &str {
        self.token.expose()
    }

    /// How payload is to travel.
    pub fn framing(&self) -> FramingChoice {
        self.framing
    }

    /// Connects; what the connection has in common with its other end alone, if it is TLS.
    async fn connect(&self, patience: Duration) -> Result<(Wire, Option<ChannelBinding>), TunnelError> {
        let asker = Asker::Gateway(self.host.as_str().into());
        // A program that is out of descriptors still reaches its gateway.
        let _room = descriptors::lend();
        let addrs = resolve(asker, &self.host, self.port, patience).await?;
        let connect = async || {
            connect_first(&self.host, &addrs, patience_for(addrs.len()).min(patience))
                .await
                .map_err(|source| TunnelError::Connect { gateway: self.described.clone(), source })
        };
        let socket = connect().await?;
        let Some(Tls { config, name, .. }) = &self.tls else { return Ok((socket.into(), None)) };
        let mut shaken = TlsStream::connect_bound(socket, config.clone(), name.clone()).await;
        if shaken.as_ref().is_err_and(was_cut) {
            // A gateway that is flooded makes room among those that have said nothing yet: once more.
            shaken = TlsStream::connect_bound(connect().await?, config.clone(), name.clone()).await;
        }
        let (socket, binding) = shaken
            .map_err(|e| TunnelError::Tls { gateway: self.described.clone(), why: self.tls_words(&e) })?;
        Ok((socket.into(), Some(binding)))
    }

    /// Makes the handshake that its protocol asks for, if any; and the certificate that the gateway has shown.
    ///
    /// # Errors
    /// As [`TlsStream::connect`]; [`tls_words`](Self::tls_words) says what to do about it.
    pub(super) async fn shake(&self, socket: Plain) -> io::Result<(Wire, Option<CertificateDer<'static>>)> {
        let Some(Tls { config, name, .. }) = &self.tls else { return Ok((socket.into(), None)) };
        let (socket, shown) = TlsStream::connect_shown(socket, config.clone(), name.clone()).await?;
        Ok((socket.into(), shown))
    }

    /// Why a handshake failed, and what to do about it.
    pub(super) fn tls_words(&self, error: &io::Error) -> String {
        match &self.tls {
            Some(Tls { name, authority, .. }) => {
                error::tls_words(error, &error::Expected { name, authority: *authority })
            }
            None => error.to_string(),
        }
    }

    /// Whether it is spoken to over TLS.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The request that `key` belongs to; `way` is for gateways that are to compare it.
    pub(super) fn request(&self, protocol: upgrade::Protocol, key: [u8; 16], ask: Ask, way: Way) -> Vec<u8> {
        let (open, lane) = match ask {
            Ask::Nothing => (None, None),
            Ask::Open(open) => (Some(open), None),
            Ask::Lane(proof) => (None, Some(proof)),
        };
        upgrade::encode_request(&Request {
            protocol,
            token: self.token.expose().to_owned(),
            key,
            open,
            lane,
            host: self.host_header.clone(),
            origin: None,
            way,
        })
    }

    fn broke(&self, source: io::Error) -> TunnelError {
        let hint = error::end_hint(self.tls.is_some());
        TunnelError::Broke { gateway: self.described.clone(), source, hint }
    }
}

/// Whether a handshake ended without a word.
pub(super) fn was_cut(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe)
}

/// The gateways of these endpoints as they are now, not for the first time, and of those with the same token one; what
/// can't be read is left out.
pub fn load_distinct<'a>(endpoints: &'a [SelfHosted], base: &Path) -> Vec<(&'a SelfHosted, Gateway)> {
    let mut distinct: Vec<(&SelfHosted, Gateway)> = Vec::new();
    for endpoint in endpoints {
        let Ok(gateway) = Gateway::load_again(endpoint, base) else { continue };
        if distinct.iter().all(|(_, before)| before.token() != gateway.token()) {
            distinct.push((endpoint, gateway));
        }
    }
    distinct
}

/// An endpoint's token as it is now, for [`Gateway::with_token`]; what its file has become keeps nobody waiting.
///
/// # Errors
/// The user's: the file can't be read, or holds no token. See [`LoadError`].
pub fn read_token_again(endpoint: &SelfHosted, base: &Path) -> Result<SecretText, Located<LoadError>> {
    read_token(endpoint, base, Reading::Again).map_err(|e| endpoint.spot(e.key()).about(e))
}

fn read_token(endpoint: &SelfHosted, base: &Path, reading: Reading) -> Result<SecretText, LoadError> {
    match (&endpoint.token, &endpoint.token_file) {
        (Some(token), _) => Ok(token.clone()),
        (None, Some(file)) => read_token_file(&base.join(file), reading),
        (None, None) => Err(EndpointError::NoToken.into()),
    }
}

fn read_token_file(path: &Path, reading: Reading) -> Result<SecretText, LoadError> {
    const KEY: &str = "token_file";
    let text = file::read_text(path, reading, TOKEN_BYTES_MAX).map_err(|source| LoadError::File {
        key: KEY,
        path: path.to_owned(),
        source,
    })?;
    let token = SecretText::new(text.trim().to_owned());
    if token.expose().is_empty() || !token.is_one_word() {
        let problem = "should hold one token and nothing else".to_owned();
        return Err(LoadError::Content { key: KEY, path: path.to_owned(), problem });
    }
    Ok(token)
}

fn tls_name(server: &Destination) -> Result<ServerName<'static>, LoadError> {
    match server {
        Destination::Ip(ip) => Ok(ServerName::IpAddress((*ip).into())),
        Destination::Name(name) | Destination::Unix(name) => {
            ServerName::try_from(name.clone()).map_err(|_| LoadError::ServerName)
        }
    }
}

fn tls_config(
    ca_file: Option<&Path>,
    ca_pin: Option<Pin>,
    reading: Reading,
) -> Result<(ClientConfig, Authority), LoadError> {
    let builder = ClientConfig::builder();
    let (mut config, authority) = match (ca_file, ca_pin) {
        (Some(path), _) => {
            let roots = read_roots(path, reading)?;
            (builder.with_root_certificates(roots).with_no_client_auth(), Authority::File)
        }
        (None, Some(pin)) => {
            let verifier = Pinned::new(pin, builder.crypto_provider().clone());
            let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
            (builder.with_no_client_auth(), Authority::Pin)
        }
        (None, None) => {
            // The system's authorities are read once a process.
            static SYSTEM: OnceLock<Result<ClientConfig, rustls::Error>> = OnceLock::new();
            let config = SYSTEM.get_or_init(ClientConfig::with_platform_verifier).clone();
            (config.map_err(LoadError::Tls)?, Authority::System)
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // The library makes the handshake, the records are ours.
    config.enable_secret_extraction = true;
    Ok((config, authority))
}

fn read_roots(path: &Path, reading: Reading) -> Result<RootCertStore, LoadError> {
    const KEY: &str = "ca_file";
    let content = |problem: String| LoadError::Content { key: KEY, path: path.to_owned(), problem };
    let pem = file::read(path, reading, CA_BYTES_MAX).map_err(|source| LoadError::File {
        key: KEY,
        path: path.to_owned(),
        source,
    })?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem.bytes) {
        let cert = cert.map_err(|e| content(format!("is no PEM file: {e}")))?;
        roots.add(cert).map_err(|e| content(format!("holds a certificate that can't be used: {e}")))?;
    }
    if roots.is_empty() {
        return Err(content("holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// Opens a tunnel connection; `patience` is for all of it.
///
/// # Errors
/// See [`TunnelError`].
pub async fn open(
    gateway: &Gateway,
    protocol: upgrade::Protocol,
    ask: Ask,
    patience: Duration,
) -> Result<(Conn, Option<Opened>), TunnelError> {
    timeout(patience, attempt(gateway, protocol, ask, patience))
        .await
        .unwrap_or_else(|_| Err(TunnelError::TimedOut { gateway: gateway.described.clone(), patience }))
}

async fn attempt(
    gateway: &Gateway,
    protocol: upgrade::Protocol,
    ask: Ask,
    patience: Duration,
) -> Result<(Conn, Option<Opened>), TunnelError> {
    let (wire, tls) = gateway.connect(patience).await?;
    let broke = |source| gateway.broke(source);
    let seed = getrandom::u64().map_err(|e| broke(io::Error::other(e)))?;
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|e| broke(io::Error::other(e)))?;
    let here = Sight { tls, peer_addr: None };
    let raw = protocol.framing == Framing::Raw;
    let way = if raw { Way::seen(here.clone()) } else { Way::default() };
    wire.write_all(&gateway.request(protocol, key, ask, way)).await.map_err(broke)?;
    let (opened, way) = read_answer(gateway, &wire, &key, protocol).await?;
    if raw {
        say_the_address(&wire, &way);
        let not_direct = |between| TunnelError::NotDirect { gateway: gateway.described.clone(), between };
        way.is_direct(&here).map_err(not_direct)?;
    }
    Ok((Conn::new(wire, protocol.framing, Role::Peer, seed), opened))
}

/// NAT changes an address and breaks nothing, so that it is another says little.
fn say_the_address(wire: &Wire, way: &Way) {
    let theirs = way.seen.as_ref().and_then(|seen| seen.peer_addr);
    if let (Some(theirs), Ok(ours)) = (theirs, wire.local_addr())
        && theirs != ours
    {
        tracing::debug!(%ours, %theirs, "the gateway sees another address than ours: NAT, or a proxy between");
    }
}

async fn read_answer(
    gateway: &Gateway,
    wire: &Wire,
    key: &[u8; 16],
    protocol: upgrade::Protocol,
) -> Result<(Option<Opened>, Way), TunnelError> {
    let name = || gateway.described.clone();
    let tls = gateway.tls.is_some();
    let mut got = Vec::new();
    loop {
        let read = match wire.read_onto(&mut got).await {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        read.map_err(|source| gateway.broke(source))?;
        let answer = upgrade::parse_response(&got, key, protocol).map_err(|e| TunnelError::Protocol {
            gateway: name(),
            problem: error::garbage_words(&got, e, tls),
        })?;
        match answer {
            Answer::NeedMore => {}
            Answer::Accepted { opened, way, head_bytes } => {
                wire.unread(&got[head_bytes..]);
                return Ok((opened, way));
            }
            Answer::Refused { refused: Some(refused), .. } => return Err(TunnelError::Refused(refused)),
            Answer::Refused { status, refused: None, from, .. } => {
                let why = error::status_words(status, &from, tls);
                return Err(TunnelError::NotAGateway { gateway: name(), status, why });
            }
        }
    }
}
