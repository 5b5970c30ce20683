//! The whole system in one process, on loopback: bytes, endings, reuse, isolation.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../kit/mod.rs"]
#[expect(unused_macros, reason = "those of other targets")]
mod kit;

mod another_tls;
mod busy;
mod cut_frames;
mod early;
mod expiry;
mod far;
mod floods;
mod heard_out;
mod integrity;
mod isolation;
mod lanes;
mod limits;
mod manners;
mod once;
mod renewal;
mod reuse;
mod revocation;
mod shapes;
mod spaces;
mod spellings;
mod verdicts;
mod versions;
mod visitor;
mod whoami;
mod workers;

use kit::{delay, number_from_env as count};

/// These tests fill both cores or measure times: one at a time.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // RUST_LOG=debug shows what the programs say.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    // Another test's failure is no reason for this one's.
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Starts a target that gives back what it gets.
fn start_echo() -> std::net::SocketAddr {
    kit::echo::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
}

/// The next of a sequence of random numbers (splitmix64): a seed replays the run.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
