//! Role: how often a relay in steady state asks for memory, and a refusal that the audit log only counts: never.
//! Invariants: everything on the relay's thread counts, the runtime included; the programs at its ends run
//! on another one.
//! See: ARCHITECTURE.md, "Readiness first"; docs/audit.md, `refused_more`.
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(unsafe_code, reason = "an allocator that counts is one")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use narrowlink_bench::{
    path::{Path, session},
    programs::{Programs, Shape},
};
use narrowlink_control::audit::Audit;
use narrowlink_dataplane::{
    gateway::{door::Event, principal::Principal},
    run::worker::{self, Driver},
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    id::Uid,
    message::Speaker,
};

/// The system's allocator, and a count of what watched threads ask it for.
struct Counting;

static ASKED: AtomicU64 = AtomicU64::new(0);
/// Held by the test that counts: all threads share the count.
static COUNTS: Mutex<()> = Mutex::new(());

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn note() {
    // Neither lazily made nor dropped, so this never allocates and works until the thread's end.
    if WATCHED.get() {
        ASKED.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to `System` as it came; counting allocates nothing and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note();
        // SAFETY: the caller keeps `realloc`'s contract; the block is `System`'s.
        unsafe { System.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract; the block is `System`'s.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Fills the pools, and brings a connection to its bulk buffers.
const WARM_UP: usize = 256;
const CHUNKS: usize = 2000;
/// A pool may still grow when a thread was late for once; who allocates per chunk does so every time.
const ROUNDS_MAX: usize = 5;

/// How often the relay's thread allocates while chunks go through, in its best round, and what it waits with.
fn allocations(path: Path, shape: Shape, epoll: bool) -> (u64, Driver) {
    let (between, outside) = session(path).unwrap();
    let relaying = thread::spawn(move || {
        let relay = |driver| async move {
            WATCHED.set(true);
            // The programs just leave: a clean end on a plain path, a broken one within frames.
            let _ = between.relay().await;
            WATCHED.set(false);
            driver
        };
        let ran = if epoll { worker::run_on_epoll(relay) } else { worker::run_alone(false, relay) };
        ran.unwrap()
    });
    let at_first = ASKED.load(Ordering::SeqCst);
    let asked = worker::run_on_epoll(|_| async {
        let mut programs = Programs::meet(outside, shape).await;
        programs.exchange(WARM_UP).await.unwrap();
        assert!(ASKED.load(Ordering::SeqCst) > at_first, "the pool's first buffers were not counted");
        let mut least = u64::MAX;
        for _ in 0..ROUNDS_MAX {
            let before = ASKED.load(Ordering::SeqCst);
            programs.exchange(CHUNKS).await.unwrap();
            least = least.min(ASKED.load(Ordering::SeqCst) - before);
            if least == 0 {
                break;
            }
        }
        least
    });
    (asked.unwrap(), relaying.join().unwrap())
}

#[test]
fn a_refusal_that_is_only_counted_allocates_nothing() {
    let _counts = COUNTS.lock().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(&dir.path().join("audit.log")).unwrap();
    let who = Principal::new(Speaker::Client, Uid::nil(), "laptop");
    let refused = Refused::new(RefusalCode::AgentNotFound, "no agent of this name is connected");
    let peer_addr = ([192, 0, 2, 1], 1000).into();
    let event = Event::Refused { who: Some(&who), peer_addr, session: None, refused: &refused, cause: None };
    let round = || {
        let before = ASKED.load(Ordering::SeqCst);
        WATCHED.set(true);
        (0..CHUNKS).for_each(|_| audit.note(&event));
        WATCHED.set(false);
        ASKED.load(Ordering::SeqCst) - before
    };
    assert!(round() > 0, "the first lines were not counted");
    // A second that begins in a round has lines of its own.
    assert_eq!((0..ROUNDS_MAX).map(|_| round()).min(), Some(0));
}

#[test]
fn a_relayed_chunk_allocates_nothing() {
    let _counts = COUNTS.lock().unwrap();
    let mut wrong = Vec::new();
    for path in Path::PLAIN.into_iter().chain(Path::TLS) {
        for shape in Shape::ALL {
            for epoll in [false, true] {
                let (asked, driver) = allocations(path, shape, epoll);
                println!(
                    "{} {} on {driver}: {asked} allocations in {CHUNKS} chunks",
                    path.name(),
                    shape.name()
                );
                if asked > 0 {
                    wrong.push((path, shape, driver, asked));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "allocations in {CHUNKS} chunks: {wrong:?}");
}
