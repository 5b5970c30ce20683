//! Promise: a token is verified in a few µs, and a forged one costs us no more than a good one.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

mod kit;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use narrowlink_proto::{
    id::Uid,
    policy::{Grant, Item, Policies, Protocol},
    token::{Claims, KeyRing, Keys, Kind, TokenError, peek_unverified},
};

/// Seconds since 1970, for every clock here.
const NOW: u64 = 1_800_000_000;

fn claims(rules: usize) -> Claims {
    let rule = |n| {
        Item::Ip(Some("home".to_owned()), format!("10.0.{n}.0/24").parse().unwrap(), 22.into(), Protocol::Tcp)
    };
    let policies = Policies { permit: true, policies: (0..rules).map(rule).collect() };
    let uid = Uid::from_u128(0x6f1c_0b7e_57c8_4a6e_9a3c_2f8f_5a1d_7e10);
    let jti = "0123456789abcdef0123456789abcdef";
    Claims {
        iat: Some(NOW),
        policies: Grant::new(vec![policies]),
        ..Claims::new(Kind::Client, uid, "laptop", NOW + 3600, jti)
    }
}

/// The same token with another signature of the right length.
fn forge(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{signed}.{first}{}", &signature[1..])
}

fn verify(c: &mut Criterion) {
    let keys = Keys::new(&[7; 32]);
    let mut group = c.benchmark_group("token");
    for rules in [1, 16] {
        let claims = claims(rules);
        let token = keys.sign(&claims).unwrap();
        let forged = forge(&token);
        assert_eq!(keys.verify(&token, Kind::Client, NOW).unwrap(), claims);
        let refused = |token| matches!(keys.verify(token, Kind::Client, NOW), Err(TokenError::Signature));
        assert!(refused(&forged) && !refused(&token));

        group.bench_function(format!("verify, {rules} rules, {} B", token.len()), |b| {
            b.iter(|| keys.verify(black_box(&token), Kind::Client, NOW));
        });
        group.bench_function(format!("verify a forged one, {rules} rules"), |b| {
            b.iter(|| keys.verify(black_box(&forged), Kind::Client, NOW));
        });
    }
    group.finish();
}

/// What a link costs: either kind of token may come, under either of two secrets.
fn rotation(c: &mut Criterion) {
    let (old, new) = (Keys::new(&[7; 32]), Keys::new(&[8; 32]));
    let token = old.sign(&claims(1)).unwrap();
    let ring = KeyRing::new(new, vec![old]);
    assert!(ring.verify(&token, Kind::Client, NOW).is_ok());
    assert!(ring.verify(&token, Kind::Agent, NOW).is_err());
    c.bench_function("token/verify under the second secret", |b| {
        b.iter(|| ring.verify(black_box(&token), Kind::Client, NOW));
    });
}

fn read_and_write(c: &mut Criterion) {
    let (keys, claims) = (Keys::new(&[7; 32]), claims(1));
    let token = keys.sign(&claims).unwrap();
    assert_eq!(peek_unverified(&token).unwrap().exp, claims.exp);
    c.bench_function("token/peek, unverified", |b| b.iter(|| peek_unverified(black_box(&token))));
    c.bench_function("token/sign", |b| b.iter(|| keys.sign(black_box(&claims))));
    c.bench_function("token/derive the keys of a secret", |b| b.iter(|| Keys::new(black_box(&[7; 32]))));
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = verify, rotation, read_and_write
}
criterion_main!(benches);
