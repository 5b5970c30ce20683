//! TLS against an independent asynchronous peer, monoio-rustls: both sides, both versions, bulk both ways at once, and
//! each direction's end by itself.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use futures_lite::future::zip;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt as _, Split, Splitable as _};
use monoio_rustls::{TlsAcceptor, TlsConnector};
use narrowlink_dataplane::{net::plain::Plain, run::worker, tls::TlsStream, transport::wire::Wire};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{PrivateKeyDer, ServerName},
    version::{TLS12, TLS13},
};

const BYTES: usize = 3 << 20;
/// Records of odd lengths.
const CHUNK_BYTES: usize = 10_007;

fn name() -> ServerName<'static> {
    "localhost".try_into().unwrap()
}

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    narrowlink_dataplane::tls::install_crypto();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_protocol_versions(&[version])
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut client = ClientConfig::builder_with_protocol_versions(&[version])
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

/// What each side says.
fn bytes(seed: usize) -> Vec<u8> {
    (0..BYTES).map(|n| (n * seed + n / 251) as u8).collect()
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn theirs(stream: TcpStream) -> monoio::net::TcpStream {
    stream.set_nonblocking(true).unwrap();
    monoio::net::TcpStream::from_std(stream).unwrap()
}

fn ours(stream: TcpStream) -> Plain {
    Plain::adopt(stream.into()).unwrap()
}

/// The library says everything, ends its direction, and hears everything meanwhile.
async fn library(stream: impl AsyncReadRent + AsyncWriteRent + Split + 'static, seed: usize) -> Vec<u8> {
    let (mut reading, mut writing) = stream.into_split();
    let saying = async {
        for chunk in bytes(seed).chunks(CHUNK_BYTES) {
            writing.write_all(chunk.to_vec()).await.0.unwrap();
        }
        writing.flush().await.unwrap();
        writing.shutdown().await.unwrap();
    };
    let hearing = async {
        let (mut heard, mut buf) = (Vec::new(), vec![0; 16 * 1024]);
        loop {
            let (read, back) = reading.read(buf).await;
            buf = back;
            match read.unwrap() {
                0 => return heard,
                n => heard.extend_from_slice(&buf[..n]),
            }
        }
    };
    zip(saying, hearing).await.1
}

/// We do the same.
async fn own(tls: TlsStream, seed: usize) -> Vec<u8> {
    let wire = Wire::from(tls);
    let saying = async {
        for chunk in bytes(seed).chunks(CHUNK_BYTES) {
            wire.write_all(chunk).await.unwrap();
        }
        wire.finish_write().await.unwrap();
    };
    let hearing = async {
        let (mut heard, mut buf) = (Vec::new(), vec![0; 16 * 1024]);
        loop {
            match wire.read(&mut buf).await.unwrap() {
                0 => return heard,
                n => heard.extend_from_slice(&buf[..n]),
            }
        }
    };
    let heard = zip(saying, hearing).await.1;
    wire.close_gently();
    heard
}

#[test]
fn bulk_goes_both_ways_at_once_between_us_and_another_library_whoever_is_the_server() {
    for version in [&TLS12, &TLS13] {
        let (client, server) = configs(version);
        let (from_us, from_them) = worker::run_alone(false, |_| async {
            let (near, far) = pair();
            let connecting = TlsStream::connect(ours(near), client.clone(), name());
            let acceptor = TlsAcceptor::from(server.clone());
            let (near, far) = zip(connecting, acceptor.accept(theirs(far))).await;
            zip(own(near.unwrap(), 31), library(far.unwrap(), 17)).await
        })
        .unwrap();
        assert!(from_us == bytes(17) && from_them == bytes(31), "{version:?}, we are the client");

        let (from_us, from_them) = worker::run_alone(false, |_| async {
            let (near, far) = pair();
            let connector = TlsConnector::from(client.clone());
            let accepting = TlsStream::accept(ours(far), server.clone(), &[]);
            let (near, far) = zip(connector.connect(name(), theirs(near)), accepting).await;
            zip(own(far.unwrap(), 31), library(near.unwrap(), 17)).await
        })
        .unwrap();
        assert!(from_us == bytes(17) && from_them == bytes(31), "{version:?}, we are the server");
    }
}
