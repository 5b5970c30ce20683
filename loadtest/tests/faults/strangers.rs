//! Role: what a client may meet in a gateway's place: other servers, proxies, portals, certificates that don't hold.
//! Invariants: each is a real server on a loopback address of its own · nothing here speaks our protocol.
//! See: `errors`, which writes down what a user is told.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{ServerConnection, Stream};

use crate::kit::{
    net,
    site::{AGENT, Site, Transport, Tunnel},
    tls_end::{TlsEnd, server_config},
};

/// Of the strangers' own authority.
const CA: &str = "stranger-ca.pem";

/// Servers that are no gateway's.
pub(super) struct Strangers {
    /// What it is, and where.
    plain: Vec<(&'static str, SocketAddr)>,
    /// The same of those that show a certificate of [`CA`].
    certified: Vec<(&'static str, SocketAddr)>,
    /// Passes the bytes on to the gateway, in the clear.
    ending: TlsEnd,
    /// No name server knows it.
    nowhere: &'static str,
}

const ANSWERS: [(&str, &str); 7] = [
    (
        "a captive portal answers",
        "HTTP/1.1 302 Found\r\nServer: portal/1.0\r\nLocation: http://login.test/\r\n\r\n",
    ),
    ("a proxy forbids the way", "HTTP/1.1 403 Forbidden\r\nServer: squid/6\r\nContent-Length: 0\r\n\r\n"),
    ("another web server answers", "HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n"),
    ("a proxy drops the Upgrade header", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"),
    (
        "a proxy can't reach the gateway",
        "HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n",
    ),
    ("a proxy can't reach the gateway", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    ("another service answers", "SSH-2.0-OpenSSH_9.6\r\n"),
];

impl Strangers {
    pub(super) fn start(site: &Site) -> Self {
        let plain = ANSWERS.map(|(what, answer)| (what, start_plain(answer)));
        let certified = write_certificates(site).into_iter();
        let certified = certified.map(|(what, pem)| (what, start_certified(&pem)));
        let ending =
            TlsEnd::start(net::listen().0, &site.path("gateway.pem"), site.gateway_addr(Transport::Ws));
        Self {
            plain: plain.into(),
            certified: certified.collect(),
            ending,
            nowhere: "no-such-gateway.invalid:443",
        }
    }

    /// Where they are.
    pub(super) fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.plain.iter().chain(&self.certified).map(|(_, addr)| *addr).chain([self.ending.addr])
    }

    /// What is wrong, and the `list` that meets it.
    pub(super) fn cases(&self, site: &Site) -> Vec<(&'static str, Command)> {
        let (wss, ws) = (site.gateway_addr(Transport::Wss), site.gateway_addr(Transport::Ws));
        let own_ca = format!("ca_file: {}", site.path("ca.pem").display());
        let stranger_ca = format!("domain: gw.test, ca_file: {}", site.path(CA).display());
        let list = |gateway: &dyn ToString, more: &str| list(site, &gateway.to_string(), more);
        let mut forgotten = list(&wss, "domain: gw.test");
        // The system's authorities are others on each machine.
        forgotten.env("SSL_CERT_FILE", site.path(CA)).env_remove("SSL_CERT_DIR");
        let mut cases = vec![
            ("the gateway's name does not resolve", list(&self.nowhere, &own_ca)),
            ("ca_file is forgotten", forgotten),
            ("ca_file is another authority's", list(&wss, &stranger_ca)),
            ("an address in place of the gateway's name", list(&wss, &own_ca)),
            ("not the gateway's name", list(&wss, &format!("domain: other.test, {own_ca}"))),
            ("protocol: Ws at a port of TLS", list(&wss, "protocol: Ws")),
            ("http:// at a port of TLS", list(&format!("http://{wss}"), own_ca.as_str())),
            ("protocol: Wss at a plain port", list(&ws, &format!("domain: gw.test, {own_ca}"))),
        ];
        cases.extend(self.certified.iter().map(|(what, addr)| (*what, list(addr, &stranger_ca))));
        cases.extend(self.plain.iter().map(|(what, addr)| (*what, list(addr, "protocol: Ws"))));
        cases
    }

    /// The options of an endpoint whose raw sessions a proxy would make clean ends of.
    pub(super) fn raw_through_a_proxy(&self, site: &Site) -> Command {
        let more = format!("framing: raw, domain: gw.test, ca_file: {}", site.path("ca.pem").display());
        command(site, &self.ending.addr.to_string(), &more)
    }
}

fn list(site: &Site, gateway: &str, more: &str) -> Command {
    let mut command = command(site, gateway, more);
    command.arg("list");
    command
}

fn command(site: &Site, gateway: &str, more: &str) -> Command {
    let token = site.path("Free.token");
    let text = format!(
        "endpoints: [!SelfHosted {{ gateway: \"{gateway}\", token_file: {}, {more} }}]\n",
        token.display()
    );
    // Each case has a file of its own: they are all written before the first is run.
    let name = (0..).map(|n| format!("stranger-{n}.yaml")).find(|name| !site.path(name).exists());
    let mut command = site.command("narrowlink");
    command.arg("-c").arg(site.write_secret(&name.expect("there is always a next number"), &text));
    command
}

/// Reads what comes to the end of a head and says the same to everybody.
fn start_plain(answer: &'static str) -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut got, mut byte) = (Vec::new(), [0]);
            while !got.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                got.push(byte[0]);
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    addr
}

/// Shows its certificate to everybody, whatever name they ask for.
fn start_certified(pem: &std::path::Path) -> SocketAddr {
    let (config, (listener, addr)) = (server_config(pem), net::listen());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Ok(mut tls) = ServerConnection::new(config.clone()) else { return };
            // Nobody gets beyond the handshake.
            let _ = Stream::new(&mut tls, &mut stream).read(&mut [0]);
        }
    });
    addr
}

fn write_certificates(site: &Site) -> Vec<(&'static str, PathBuf)> {
    let mut ca = CertificateParams::default();
    // An authority is found by its name, and the gateway's own has the library's usual one.
    ca.distinguished_name.push(DnType::CommonName, "a stranger's authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key can be made");
    let ca_cert = ca.self_signed(&ca_key).expect("a CA signs itself");
    site.write_secret(CA, &ca_cert.pem());
    let own = format!("{}{}", ca_cert.pem(), ca_key.serialize_pem());
    let own = ("the gateway shows its authority's certificate", site.write_secret("own.pem", &own));
    let namesake = Issuer::new(ca.clone(), KeyPair::generate().expect("a key can be made"));
    let issuer = Issuer::new(ca, ca_key);
    let (then, now_or_so, far) =
        (date_time_ymd(2001, 2, 3), date_time_ymd(2020, 1, 1), date_time_ymd(4000, 1, 1));
    let made = [
        ("the gateway's certificate is for another name", "other.example", (now_or_so, far), &issuer),
        ("the gateway's certificate has expired", "gw.test", (date_time_ymd(2000, 1, 1), then), &issuer),
        ("the gateway's certificate is not valid yet", "gw.test", (date_time_ymd(3000, 1, 1), far), &issuer),
        ("the gateway's authority was made anew", "gw.test", (now_or_so, far), &namesake),
    ]
    .map(|(what, name, (not_before, not_after), issuer)| {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a DNS name");
        (params.not_before, params.not_after) = (not_before, not_after);
        let cert = params.signed_by(&key, issuer).expect("the CA signs");
        let file = format!("{}.pem", what.replace([' ', '\''], "-"));
        (what, site.write_secret(&file, &format!("{}{}", cert.pem(), key.serialize_pem())))
    });
    made.into_iter().chain([own]).collect()
}

/// Cuts its first connection at once, as a gateway does whose places for strangers are all taken, and passes the others on.
fn start_cutting(gateway: SocketAddr) -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        drop(listener.accept());
        for mut near in listener.incoming().flatten() {
            let mut far = TcpStream::connect(gateway).expect("the gateway listens");
            let (mut near_too, mut far_too) =
                (near.try_clone().expect("a descriptor"), far.try_clone().expect("one more"));
            thread::spawn(move || io::copy(&mut near_too, &mut far_too));
            thread::spawn(move || io::copy(&mut far, &mut near));
        }
    });
    addr
}

#[test]
fn a_newcomer_that_was_cut_off_before_it_could_say_a_word_comes_again() {
    let tunnel = Tunnel::start(Transport::Wss);
    let site = &tunnel.site;
    let through = start_cutting(site.gateway_addr(Transport::Wss)).to_string();
    let own_ca = format!("ca_file: {}, domain: gw.test", site.path("ca.pem").display());
    let listed = list(site, &through, &own_ca).output().expect("it starts");
    let said = String::from_utf8_lossy(&listed.stderr);
    assert!(listed.status.success() && said.is_empty(), "{said}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains(AGENT));
}
