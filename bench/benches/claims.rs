//! Promise: claiming a session's id, once over all workers, costs an open 1 or 2 µs, with as many ids
//! remembered as 10,000 opens a second make.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

mod kit;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use narrowlink_dataplane::gateway::claims::{ClaimError, Claims, OwnId, Use};
use narrowlink_proto::id::Uid;

/// Between two opens: in the 60 s for which an id is remembered that makes 600,000 of them.
const PACE: Duration = Duration::from_micros(100);
const REMEMBERED: u64 = 600_000;

/// Ids as random ones spread, and each another one.
fn id(n: u64) -> OwnId {
    let mut id = [0; 32];
    id[0] = n as u8;
    id[24..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    (Uid::nil(), Use::Session, id)
}

struct Opens {
    claims: Arc<Claims>,
    now: Instant,
    next: u64,
}

impl Opens {
    fn open(&mut self) -> bool {
        self.next += 1;
        self.now += PACE;
        self.claims.claim(id(self.next), "the token's id", self.now).is_ok_and(|claim| claim.answer())
    }
}

fn claim(c: &mut Criterion) {
    let mut opens = Opens { claims: Arc::default(), now: Instant::now(), next: 0 };
    for _ in 0..REMEMBERED {
        assert!(opens.open());
    }
    let used = id(opens.next);
    assert_eq!(opens.claims.claim(used, "another", opens.now).err(), Some(ClaimError::Used));

    c.bench_function("claims/claim and answer a new id", |b| b.iter(|| opens.open()));
    let used = id(opens.next);
    c.bench_function("claims/refuse a used one", |b| {
        b.iter(|| opens.claims.claim(used, "another", opens.now).err().unwrap());
    });
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = claim
}
criterion_main!(benches);
