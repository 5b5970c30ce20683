//! Promise: telling TLS from HTTP, and which name a ClientHello asks for, is lost beside its handshake
//! (about 80 µs): below 1 µs, in however many pieces the hello comes.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

mod kit;

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use narrowlink_dataplane::tls::install_crypto;
use narrowlink_proto::sniff::{Sniffed, Sniffer, sniff};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

const NAME: &str = "gw.example";

/// What our own client sends.
fn hello() -> Vec<u8> {
    install_crypto();
    let mut config =
        ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut session = ClientConnection::new(Arc::new(config), NAME.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    bytes
}

/// The verdict on what comes in pieces that end here.
fn in_pieces(early: &[u8], ends: &[usize]) -> Sniffed {
    let mut sniffer = Sniffer::default();
    let mut verdict = Sniffed::NeedMore;
    for end in ends {
        assert_eq!(verdict, Sniffed::NeedMore);
        verdict = sniffer.sniff(&early[..*end]).unwrap();
    }
    verdict
}

fn client_hello(c: &mut Criterion) {
    let hello = hello();
    let thirds = [hello.len() / 3, hello.len() * 2 / 3, hello.len()];
    let whole = sniff(&hello).unwrap();
    let Sniffed::Tls(found) = &whole else { panic!("a ClientHello is TLS") };
    assert_eq!(found.server_name.as_deref(), Some(NAME));
    assert!(found.alpn.offers(b"http/1.1"));
    assert_eq!(in_pieces(&hello, &thirds), whole);

    let mut group = c.benchmark_group("sniff");
    group.bench_function(format!("ClientHello of {} B, whole", hello.len()), |b| {
        b.iter(|| sniff(black_box(&hello)));
    });
    group.bench_function(format!("ClientHello of {} B, in 3 pieces", hello.len()), |b| {
        b.iter(|| in_pieces(black_box(&hello), &thirds));
    });
    group.finish();
}

fn http(c: &mut Criterion) {
    let request = b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n";
    assert_eq!(sniff(request), Ok(Sniffed::Http));
    assert!(sniff(b"SSH-2.0-OpenSSH_9.2\r\n").is_err());
    c.bench_function("sniff/HTTP", |b| b.iter(|| sniff(black_box(request))));
    c.bench_function("sniff/neither", |b| b.iter(|| sniff(black_box(b"SSH-2.0-OpenSSH_9.2\r\n"))));
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = client_hello, http
}
criterion_main!(benches);
