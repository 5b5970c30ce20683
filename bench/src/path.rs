//! Role: one relayed session between two programs over socket pairs, for each way in which its two sides
//! can be framed, plain or in TLS.
//! Invariants: relay and programs may run on threads of their own, so that one can be counted without the
//! other · the relay is the gateway's, agent's or client's own.
//! See: `narrowlink_dataplane::relay`; [`crate::programs`]; narrowlink-count and tests/allocations.rs, which count.

use std::{io, os::fd::OwnedFd, os::unix::net::UnixStream, sync::Arc};

use futures_lite::future;
use narrowlink_dataplane::{
    net::plain::Plain,
    relay::{Traffic, relay},
    tls::{TlsStream, install_crypto},
    transport::wire::Wire,
    tunnel::conn::{Conn, Role},
    tunnel::end::End,
};
use narrowlink_proto::{ended::Ended, id::SessionId, upgrade::Framing};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use socket2::SockRef;

/// Asked for each socket; every kernel grants it (the default of `net.core.wmem_max`), so that a chunk
/// comes in as many reads everywhere.
const SOCKET_BYTES: usize = 212_992;
/// Whom the relay's certificate is for.
pub(crate) const NAME: &str = "gw.example";

/// What the relay has on its two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The gateway between two raw streams.
    PlainPlain,
    /// The gateway between two framed ones: unmasks, and writes new headers.
    FramedFramed,
    /// The agent: from the gateway's frames to its target, and back in masked frames.
    FramedPlain,
    /// The client: from a local program into masked frames, and back.
    PlainFramed,
    /// The gateway between two raw streams, each in TLS.
    TlsTls,
    /// The gateway between two framed streams, each in TLS, where masks are zero.
    TlsFramed,
}

/// One side of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) framing: Framing,
    pub(crate) role: Role,
    pub(crate) tls: bool,
}

impl Path {
    /// Every path without TLS.
    pub const PLAIN: [Self; 4] = [Self::PlainPlain, Self::FramedFramed, Self::FramedPlain, Self::PlainFramed];
    /// Every path with TLS.
    pub const TLS: [Self; 2] = [Self::TlsTls, Self::TlsFramed];

    /// As in records and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PlainPlain => "plain-plain",
            Self::FramedFramed => "framed-framed",
            Self::FramedPlain => "framed-plain",
            Self::PlainFramed => "plain-framed",
            Self::TlsTls => "tls-tls",
            Self::TlsFramed => "tls-framed",
        }
    }

    /// The client's side and the target's.
    pub(crate) const fn sides(self) -> (Side, Side) {
        let plain = Side { framing: Framing::Raw, role: Role::Gateway, tls: false };
        let gateway = Side { framing: Framing::Framed, role: Role::Gateway, tls: false };
        let peer = Side { framing: Framing::Framed, role: Role::Peer, tls: false };
        match self {
            Self::PlainPlain => (plain, plain),
            Self::FramedFramed => (gateway, gateway),
            Self::FramedPlain => (peer, plain),
            Self::PlainFramed => (plain, peer),
            Self::TlsTls => (Side { tls: true, ..plain }, Side { tls: true, ..plain }),
            Self::TlsFramed => (Side { tls: true, ..gateway }, Side { tls: true, ..gateway }),
        }
    }
}

/// The relay's two descriptors.
#[derive(Debug)]
pub struct Between {
    path: Path,
    client: OwnedFd,
    target: OwnedFd,
    tls: Option<Arc<ServerConfig>>,
}

/// The programs' two descriptors, which may go to another thread.
#[derive(Debug)]
pub struct Outside {
    pub(crate) path: Path,
    pub(crate) client: OwnedFd,
    pub(crate) target: OwnedFd,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// A new session: what the relay gets, and what the programs at its ends get.
///
/// # Errors
/// Out of descriptors; no certificate could be made.
pub fn session(path: Path) -> io::Result<(Between, Outside)> {
    let (client, near) = pair()?;
    let (target, far) = pair()?;
    let (ours, theirs) = match path {
        Path::TlsTls | Path::TlsFramed => tls_configs().map_err(io::Error::other)?,
        _ => (None, None),
    };
    Ok((
        Between { path, client: near, target: far, tls: ours },
        Outside { path, client, target, tls: theirs },
    ))
}

type Configs = (Option<Arc<ServerConfig>>, Option<Arc<ClientConfig>>);

fn tls_configs() -> Result<Configs, Box<dyn std::error::Error + Send + Sync>> {
    install_crypto();
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut ours =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
    let mut theirs = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    ours.enable_secret_extraction = true;
    theirs.enable_secret_extraction = true;
    Ok((Some(Arc::new(ours)), Some(Arc::new(theirs))))
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = UnixStream::pair()?;
    for end in [&one, &other] {
        end.set_nonblocking(true)?;
        SockRef::from(end).set_send_buffer_size(SOCKET_BYTES)?;
    }
    Ok((one.into(), other.into()))
}

impl Between {
    /// Relays on this thread's runtime until the session ends.
    ///
    /// # Errors
    /// How it ended, if not cleanly.
    ///
    /// # Panics
    /// A descriptor can't be registered, or a handshake fails.
    pub async fn relay(self) -> Result<(), Ended> {
        let (client, target) = self.path.sides();
        let wires = future::zip(accept(self.client, self.tls.clone()), accept(self.target, self.tls)).await;
        let client = Conn::new(wires.0, client.framing, client.role, 1);
        let target = Conn::new(wires.1, target.framing, target.role, 1);
        let id = SessionId::from_bytes([9; 32]);
        relay(End::of(&client, id), End::of(&target, id), &Traffic::default()).await
    }
}

#[expect(clippy::expect_used, reason = "without its connections nothing can be measured")]
async fn accept(fd: OwnedFd, tls: Option<Arc<ServerConfig>>) -> Wire {
    let socket = adopt(fd);
    let Some(config) = tls else { return socket.into() };
    TlsStream::accept(socket, config, &[]).await.expect("both sides speak the same TLS").into()
}

#[expect(clippy::expect_used, reason = "without its connections nothing can be measured")]
pub(crate) fn adopt(fd: OwnedFd) -> Plain {
    Plain::adopt(fd).expect("a socket pair can be waited for")
}
