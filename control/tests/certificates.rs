//! Certificates and names of a running gateway change with its configuration: the next handshake has the new ones,
//! who is there already notices nothing.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use narrowlink_control::{
    certificate::{Certificate, Held},
    config::{Config, Service},
    gateway,
};
use narrowlink_proto::{target::Destination, token::Secret};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A certificate that signs itself, as PEM with its key.
fn certificate(name: &str) -> String {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    made.cert.pem() + &made.signing_key.serialize_pem()
}

/// A gateway that shows this for these names.
fn config(pem: &str, names: &[&str], listen_addr: SocketAddr) -> Config {
    let service = Service {
        domains: names.iter().map(|name| Destination::parse(name).unwrap()).collect(),
        listen_addr,
        tls: Some(Certificate::from_pem(pem.as_bytes()).unwrap().into_settings().unwrap()),
    };
    let secrets = vec![Secret::from_bytes(vec![7; 32]).unwrap()];
    Config { workers: Some(1), pin: false, ..Config::new("test", secrets, vec![service]) }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Asks for `name`, and believes in this certificate alone; the first answer of the web server.
fn visit(addr: SocketAddr, name: &str, believed: &str) -> Result<Tls, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(believed.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).map_err(|e| e.to_string())?;
    }
    Ok(tls)
}

fn ask(tls: &mut Tls) -> String {
    tls.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_new_certificate_is_shown_to_the_next_and_who_is_there_stays() {
    narrowlink_dataplane::tls::install_crypto();
    let (old, new) = (certificate("gw.example"), certificate("gw.example"));
    let gateway = gateway::start(config(&old, &["gw.example"], "127.0.0.1:0".parse().unwrap())).unwrap();
    let addr = gateway.addresses()[0];
    let mut before = visit(addr, "gw.example", &old).unwrap();
    let unchanged = gateway.reload(&config(&new, &["gw.example"], addr)).unwrap();
    assert!(unchanged.opened.is_empty() && unchanged.closed.is_empty(), "{unchanged:?}");
    let refused = visit(addr, "gw.example", &old).err().unwrap();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    for tls in [&mut visit(addr, "gw.example", &new).unwrap(), &mut before] {
        assert!(ask(tls).starts_with("HTTP/1.1 404"));
    }

    // Names come and go in the same way; of one that isn't there no certificate is shown.
    let other = certificate("other.example");
    gateway.reload(&config(&other, &["other.example"], addr)).unwrap();
    assert!(ask(&mut visit(addr, "other.example", &other).unwrap()).starts_with("HTTP/1.1 404"));
    for believed in [&old, &new, &other] {
        let closed = visit(addr, "gw.example", believed).err().unwrap();
        assert!(!closed.contains("certificate"), "{closed}");
    }
    assert!(gateway.stop(PATIENCE));
}

/// As [`config`], with how the certificate stands.
fn standing(pem: &str, names: &[&str], listen_addr: SocketAddr) -> Config {
    let names_owned: Vec<_> = names.iter().map(ToString::to_string).collect();
    let standing = Certificate::from_pem(pem.as_bytes()).unwrap().standing(&names_owned).unwrap();
    Config {
        certificates: vec![Held { service: 0, place: String::new(), standing }],
        ..config(pem, names, listen_addr)
    }
}

#[test]
fn a_reload_never_gives_up_a_certificate_that_is_valid_for_one_that_is_not() {
    narrowlink_dataplane::tls::install_crypto();
    let expired = || {
        let mut params = rcgen::CertificateParams::new(vec!["gw.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
    };
    let (good, other, old) = (certificate("gw.example"), certificate("other.example"), expired());
    let names = &["gw.example"][..];
    let gateway = gateway::start(standing(&good, names, "127.0.0.1:0".parse().unwrap())).unwrap();
    let addr = gateway.addresses()[0];
    for bad in [&old, &other] {
        gateway.reload(&standing(bad, names, addr)).unwrap();
        assert!(visit(addr, "gw.example", &good).is_ok(), "the valid one is still shown");
    }
    let renewed = certificate("gw.example");
    gateway.reload(&standing(&renewed, names, addr)).unwrap();
    assert!(visit(addr, "gw.example", &renewed).is_ok());
    assert!(gateway.stop(PATIENCE));
    // One that starts with an expired certificate serves on, and takes what comes.
    let gateway = gateway::start(standing(&old, names, "127.0.0.1:0".parse().unwrap())).unwrap();
    let addr = gateway.addresses()[0];
    gateway.reload(&standing(&good, names, addr)).unwrap();
    assert!(visit(addr, "gw.example", &good).is_ok());
    assert!(gateway.stop(PATIENCE));
}
