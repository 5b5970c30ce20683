//! Role: connections through any TCP forwarder: ours to it, and its to our target.
//! Invariants: one at a time, so that both ends of each stand before the next is begun.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use futures_lite::future;
use monoio::time::timeout;
use narrowlink_dataplane::{
    net::{
        dial,
        listen::{self, Listener},
    },
    tls::TlsStream,
    transport::wire::Wire,
};
use narrowlink_proto::message::Channel;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::{End, Ends, PATIENCE, late};
use crate::load::plan::{FarTls, NearTls, Way};

/// A forwarder, seen from both sides.
pub struct Forwarder {
    listen: SocketAddr,
    listener: Listener,
    near_tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    far_tls: Option<Arc<ServerConfig>>,
}

impl Forwarder {
    /// Listens at the target's address, in this thread's runtime.
    ///
    /// # Errors
    /// The address is taken, or a certificate can't be read.
    pub fn new(way: &Way) -> Result<Self> {
        let Way::Forwarder { listen, target, near_tls, far_tls } = way else {
            bail!("this traffic is not measured through a gateway")
        };
        let (_, mut sockets) = listen::bind(*target, 1).with_context(|| format!("the target {target}"))?;
        let listener = Listener::adopt(sockets.remove(0))?;
        let near_tls = near_tls.as_ref().map(client_config).transpose()?;
        let far_tls = far_tls.as_ref().map(server_config).transpose()?;
        Ok(Self { listen: *listen, listener, near_tls, far_tls })
    }

    /// Makes so many connections.
    ///
    /// # Errors
    /// The forwarder does not do its part.
    pub async fn pairs(&self, count: usize) -> Result<Ends> {
        let mut ends = Ends::default();
        for n in 0..count {
            let near =
                async { self.near().await.with_context(|| format!("connection {n} to the forwarder")) };
            let far =
                async { self.far().await.with_context(|| format!("the forwarder's connection {n} to us")) };
            // Side by side: with nothing in between one end's handshake needs the other's.
            let (near, far) = future::try_zip(near, far).await?;
            ends.near.push(End { wire: near, framed: false, channel: Channel::Stream });
            ends.far.push(End { wire: far, framed: false, channel: Channel::Lane });
        }
        Ok(ends)
    }

    /// One connection to the forwarder.
    ///
    /// # Errors
    /// The connection's or the handshake's.
    pub async fn near(&self) -> io::Result<Wire> {
        let socket = dial::connect(self.listen, PATIENCE).await?;
        let Some((config, name)) = &self.near_tls else { return Ok(socket.into()) };
        secured(TlsStream::connect(socket, config.clone(), name.clone())).await
    }

    /// The next connection that the forwarder makes.
    ///
    /// # Errors
    /// It makes none, or the handshake's.
    pub async fn far(&self) -> io::Result<Wire> {
        let socket = self.listener.accept();
        let socket = timeout(PATIENCE, socket).await.map_err(|_| late("the forwarder's connection"))??;
        let Some(config) = &self.far_tls else { return Ok(socket.into()) };
        secured(TlsStream::accept(socket, config.clone(), &[])).await
    }
}

async fn secured(handshake: impl Future<Output = io::Result<TlsStream>>) -> io::Result<Wire> {
    Ok(timeout(PATIENCE, handshake).await.map_err(|_| late("the TLS handshake"))??.into())
}

fn client_config(tls: &NearTls) -> Result<(Arc<ClientConfig>, ServerName<'static>)> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(&tls.ca_file)? {
        roots.add(cert)?;
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.enable_secret_extraction = true;
    Ok((Arc::new(config), ServerName::try_from(tls.name.clone())?))
}

fn server_config(tls: &FarTls) -> Result<Arc<ServerConfig>> {
    let key = PrivateKeyDer::from_pem_file(&tls.cert_file)?;
    let certificates = certificates(&tls.cert_file)?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<_, _> = CertificateDer::pem_file_iter(path)?.collect();
    all.with_context(|| format!("{}", path.display()))
}
