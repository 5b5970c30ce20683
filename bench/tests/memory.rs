//! Role: what an id that was used once costs in memory, and that it is given back.
//! See: `dataplane::gateway::claims`.
#![expect(unsafe_code, reason = "an allocator that counts is one")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use narrowlink_dataplane::gateway::claims::{Claims, OwnId, Use};
use narrowlink_proto::id::Uid;

/// The system's allocator, and a count of the bytes that are in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` as it came; counting allocates nothing and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract; the block is `System`'s.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const IDS: u64 = 100_000;
/// Above this the table has become another one: it is below 37 in a table that has just grown.
const BYTES_PER_ID_MAX: usize = 50;

fn nth(uid: u64, n: u64) -> OwnId {
    let mut id = [0; 32];
    id[24..].copy_from_slice(&n.to_be_bytes());
    (Uid::from_u128(uid.into()), Use::Session, id)
}

fn in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

#[test]
fn a_used_id_costs_less_than_50_bytes_and_gives_them_back() {
    // All of one user; and of a thousand.
    for users in [1, 1_000] {
        let (claims, mut now) = (Arc::new(Claims::default()), Instant::now());
        let before = in_use();
        for n in 0..IDS {
            // 1,300 a second: all are remembered when the last one comes.
            now += Duration::from_micros(750);
            let claim = claims.claim(nth(n % users, n), "a token's id", now);
            assert!(claim.unwrap().answer());
            if n % 1_300 == 0 {
                claims.sweep(now);
            }
        }
        let remembered = claims.len();
        let per_id = (in_use() - before) / remembered;
        println!("{users} users: {remembered} ids of {per_id} bytes");
        assert!(remembered > 70_000 && per_id <= BYTES_PER_ID_MAX, "{per_id}");
        claims.sweep(now + Duration::from_secs(80));
        let left = in_use().saturating_sub(before);
        assert!(claims.is_empty() && left <= 1_024, "{left} bytes were not given back");
    }
}
