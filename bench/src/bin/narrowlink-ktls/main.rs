//! Role: shows whether TLS in this machine's kernel does all that our records do, case by case.
//! Invariants: every byte is looked at · the peer is always the library, with records of its own · a kernel
//! without TLS passes nothing: that has an exit code of its own.
//! See: `narrowlink_dataplane::tls`; CONTRIBUTING.md, "Tests".
#![expect(clippy::unwrap_used, reason = "a test: what fails is told by its panic")]

mod cases;
mod ends;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use narrowlink_dataplane::tls::{Ktls, choose_ktls, install_crypto};

use crate::ends::{Peer, Suite};

/// No case may take longer, even on an emulated machine.
const CASE_TIMEOUT: Duration = Duration::from_secs(240);
/// This kernel has no TLS.
const NOT_HERE: u8 = 77;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mib = words.next().map_or(Ok(64), |word| word.parse::<usize>());
    let wanted = words.next().unwrap_or_default();
    let (Ok(mib @ 2..), None) = (mib, words.next()) else {
        eprintln!(
            "usage: narrowlink-ktls [MIB [WORDS]]\n  MIB    what goes each way in the bulk cases, 2 or more; 64\n  \
             WORDS  only the cases with these in their names"
        );
        return ExitCode::from(2);
    };
    install_crypto();
    // TLS 1.3 is to be seen on every kernel that has it.
    let state = choose_ktls(Ktls::Always);
    println!("kTLS: {state}; by itself: {}", choose_ktls(Ktls::Auto));
    choose_ktls(Ktls::Always);
    if !state.is_there() {
        println!("nothing was checked: `modprobe tls`, or another kernel");
        return ExitCode::from(NOT_HERE);
    }
    let mut failed = 0;
    for suite in Suite::all() {
        for (name, case) in cases::CASES.iter().filter(|(name, _)| name.contains(&wanted)) {
            for peer in [Peer::Client, Peer::Server] {
                failed += u32::from(!passes(&format!("{suite}, peer is {peer:?}: {name}"), || {
                    case(&suite, peer, mib << 20)
                }));
            }
        }
    }
    println!("{}", if failed == 0 { "all passed".to_owned() } else { format!("{failed} failed") });
    // Runtimes may have operations in flight.
    std::process::exit(i32::from(failed > 0));
}

/// Runs one case, under the eye of a thread that ends the process if it hangs.
fn passes(name: &str, case: impl FnOnce() -> Option<String>) -> bool {
    let (done, watched) = mpsc::channel::<()>();
    let hung = format!("FAIL {name}: hangs");
    let watch = thread::spawn(move || {
        if watched.recv_timeout(CASE_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            println!("{hung}");
            std::process::exit(1);
        }
    });
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(case));
    drop(done);
    let _ = watch.join();
    match &outcome {
        Ok(Some(said)) => println!("PASS {name} ({:.2} s): {said}", start.elapsed().as_secs_f64()),
        Ok(None) => {}
        Err(_) => println!("FAIL {name}"),
    }
    outcome.is_ok()
}
