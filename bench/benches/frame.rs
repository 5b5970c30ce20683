//! Promise: framing costs nothing beside the kernel. Header codec in ns, masking in GB/s.

mod kit;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use narrowlink_proto::frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode};

fn header(c: &mut Criterion) {
    let header =
        Header { fin: true, opcode: Opcode::Binary, mask: Some([1, 2, 3, 4]), payload_bytes: 128 * 1024 };
    let mut bytes = [0; HEADER_BYTES_MAX];
    let len = frame::encode(&header, &mut bytes);
    assert_eq!(frame::decode(&bytes[..len], Expect::Masked, 1 << 20), Ok(Some((header, len))));
    c.bench_function("frame header, encode", |b| {
        b.iter(|| frame::encode(black_box(&header), &mut bytes));
    });
    c.bench_function("frame header, decode", |b| {
        b.iter(|| frame::decode(black_box(&bytes[..len]), Expect::Masked, 1 << 20));
    });
}

fn mask(c: &mut Criterion) {
    let mut group = c.benchmark_group("mask");
    for bytes in [64, 16 * 1024, 256 * 1024] {
        let key = [1, 2, 3, 4];
        let mut payload = vec![7; bytes];
        frame::mask(&mut payload, key, 1);
        assert!(payload.iter().enumerate().all(|(at, byte)| *byte == 7 ^ key[(at + 1) % 4]));
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes} B"), |b| {
            b.iter(|| frame::mask(black_box(&mut payload), key, 1));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = header, mask
}
criterion_main!(benches);
