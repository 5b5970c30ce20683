//! Role: starts the real binaries for black-box tests, and takes them down again.
//! Invariants: knows the programs only by their command lines, files and sockets; ends no process but
//! those it started; waits for what it can see, never for a length of time.
//! See: CONTRIBUTING.md, "Tests".
#![allow(dead_code, reason = "each test target uses its own part of the kit")]

/// Makes of each function over a transport two tests: `name::over_ws` and `name::over_wss`.
macro_rules! over_ws_and_wss {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::kit::site::Transport;

            #[test]
            fn over_ws() {
                super::$name(Transport::Ws);
            }

            #[test]
            fn over_wss() {
                super::$name(Transport::Wss);
            }
        }
    )+};
}

pub(crate) mod asker;
pub(crate) mod conditions;
pub(crate) mod data;
pub(crate) mod delay;
pub(crate) mod deployment;
pub(crate) mod dns;
pub(crate) mod echo;
pub(crate) mod foe;
pub(crate) mod forged;
pub(crate) mod inside;
pub(crate) mod machine;
pub(crate) mod net;
pub(crate) mod process;
pub(crate) mod site;
pub(crate) mod spell;
pub(crate) mod timing;
pub(crate) mod tls_end;

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// How long a program may take to come up or to go: far more than it needs, so that only a hang meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `look` until it sees something; fails the test after `patience`.
pub(crate) fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    wait_until(what, patience, || look().ok_or("nothing"))
}

/// Asks for a number until it is `bound` at the most; fails the test after `patience`, with the last one.
pub(crate) fn wait_for_at_most(what: &str, bound: u64, patience: Duration, look: impl Fn() -> u64) -> u64 {
    let looked = || {
        let found = look();
        if found <= bound { Ok(found) } else { Err(found) }
    };
    wait_until(&format!("{what}, {bound} at the most"), patience, looked)
}

/// Until `look` sees something; what it found else, it says.
fn wait_until<T, E: Display>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        let found = match look() {
            Ok(seen) => return seen,
            Err(found) => found,
        };
        let is_in_vain = Instant::now() >= deadline;
        assert!(
            !is_in_vain,
            "waited {patience:?} in vain for {what}: there is {found}{}",
            conditions::trouble()
        );
        // The grain of the question, not a guess at the answer.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A number from the environment: the long forms of a test.
pub(crate) fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, it is {text:?}")),
        Err(_) => default,
    }
}
