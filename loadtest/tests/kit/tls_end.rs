//! Role: what a CDN or a reverse proxy does to a connection: ends TLS, passes the bytes on in the clear, and makes clean
//! ends of whatever becomes of either side.
//! Invariants: not a byte of what it passes on is changed · an end, be it a cut, is close_notify and FIN on both sides.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// How often a connection looks whether it is to be cut.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// The proxy.
pub(crate) struct TlsEnd {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    cut: Arc<AtomicBool>,
}

/// A server's settings for the certificate and key in a PEM file.
pub(crate) fn server_config(pem: &Path) -> Arc<ServerConfig> {
    narrowlink_dataplane::tls::install_crypto();
    let pem = std::fs::read(pem).expect("a certificate");
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).map(|cert| cert.expect("PEM")).collect();
    let key = PrivateKeyDer::from_pem_slice(&pem).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Arc::new(config.expect("they fit together"))
}

impl TlsEnd {
    /// Starts one that shows the certificate in `pem` and leads to `to`.
    pub(crate) fn start(listener: TcpListener, pem: &Path, to: SocketAddr) -> Self {
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (config, cut) = (server_config(pem), Arc::new(AtomicBool::new(false)));
        let this = Self { addr, cut: cut.clone() };
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (config, cut) = (config.clone(), cut.clone());
                thread::spawn(move || join(&near, to, config, &cut));
            }
        });
        this
    }

    /// Ends every connection that stands, and every one that comes.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

fn join(near: &TcpStream, to: SocketAddr, config: Arc<ServerConfig>, cut: &AtomicBool) {
    let Ok(far) = TcpStream::connect(to) else { return };
    let Ok(mut tls) = ServerConnection::new(config) else { return };
    // What breaks it makes no difference: that is what such a thing is like.
    let _ = pass_on(near, &far, &mut tls, cut);
    tls.send_close_notify();
    let _ = flush(&mut tls, near);
    let _ = near.shutdown(Shutdown::Write);
    let _ = far.shutdown(Shutdown::Write);
}

fn pass_on(
    near: &TcpStream,
    far: &TcpStream,
    tls: &mut ServerConnection,
    cut: &AtomicBool,
) -> io::Result<()> {
    let mut chunk = vec![0; 16 * 1024];
    while !cut.load(Ordering::SeqCst) {
        let mut fds = [PollFd::new(near, PollFlags::IN), PollFd::new(far, PollFlags::IN)];
        poll(&mut fds, Some(&LOOK_EVERY))?;
        let [from_near, from_far] = [fds[0].revents(), fds[1].revents()].map(|events| !events.is_empty());
        if from_near {
            let mut socket = near;
            if tls.read_tls(&mut socket)? == 0 {
                return Ok(());
            }
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            tls.reader().read_exact(&mut plain)?;
            let mut socket = far;
            socket.write_all(&plain)?;
        }
        if from_far {
            let mut socket = far;
            let n = socket.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            tls.writer().write_all(&chunk[..n])?;
        }
        flush(tls, near)?;
    }
    Ok(())
}

fn flush(tls: &mut ServerConnection, mut near: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut near)?;
    }
    Ok(())
}
