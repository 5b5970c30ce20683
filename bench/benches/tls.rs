//! Promise: TLS costs the cipher and hardly more. Sealing and opening 256 KiB through memory, GB/s.

mod kit;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use narrowlink_dataplane::tls::{
    record::{Opener, PLAIN_BYTES_MAX, Sealer},
    secret::{Cipher, Secret, Version},
};
use rustls::ContentType;

const BYTES: usize = 256 * 1024;

fn pair(cipher: Cipher) -> Option<(Sealer, Opener)> {
    let key = if cipher == Cipher::Aes128Gcm { &[7; 32][..16] } else { &[7; 32][..] };
    let secret = Secret::new(cipher, key, [9; 12]);
    let sealer = Sealer::new(Version::Tls13, 0, u64::MAX, &secret).ok()?;
    Some((sealer, Opener::new(Version::Tls13, 0, &secret).ok()?))
}

/// Records behind each other; returns where the last one ends.
fn seal(sealer: &mut Sealer, plain: &[u8], out: &mut [u8]) -> usize {
    plain.chunks(PLAIN_BYTES_MAX).fold(0, |at, chunk| {
        at + sealer.seal(ContentType::ApplicationData, chunk, &mut out[at..]).unwrap_or_default()
    })
}

fn open(opener: &mut Opener, mut records: &[u8], out: &mut [u8]) -> usize {
    let mut filled = 0;
    while let Ok(Some(len)) = opener.record_bytes(records) {
        filled += opener.open(&records[..len], &mut out[filled..]).map_or(0, |(_, bytes)| bytes);
        records = &records[len..];
    }
    filled
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("tls records");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let plain = vec![1; BYTES];
    let mut sealed = vec![0; BYTES + 4096];
    let mut opened = vec![0; BYTES + 1];
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        let Some((mut sealer, _)) = pair(cipher) else { continue };
        group.bench_function(format!("seal, {cipher:?}"), |b| {
            b.iter(|| seal(&mut sealer, black_box(&plain), &mut sealed));
        });
        let Some((mut sealer, mut opener)) = pair(cipher) else { continue };
        // A record opens once, so each round seals anew: opening alone is the difference.
        group.bench_function(format!("seal and open, {cipher:?}"), |b| {
            b.iter(|| {
                let len = seal(&mut sealer, black_box(&plain), &mut sealed);
                assert_eq!(open(&mut opener, &sealed[..len], &mut opened), BYTES);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = records
}
criterion_main!(benches);
