//! Role: real programs through the real binaries, over ws and wss.
//! Invariants: every program works through the tunnel as it does without; a program that is missing fails
//! its test, by the name of its Debian package.
//! See: CONTRIBUTING.md, "Tests".

#[path = "../kit/mod.rs"]
#[macro_use]
mod kit;

mod audit;
mod authority;
mod between;
mod curl;
mod doctor;
mod fronts;
mod hostile;
mod iperf;
mod measure;
mod migration;
mod names;
mod openssh;
mod policies;
mod postgres;
mod rebinding;
mod redis;
mod seed;
mod stdio;
mod tickets;
mod upgrade;
mod urgent;
