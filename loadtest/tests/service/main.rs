//! Role: gateway and agent as services of a real systemd, on machines that are thrown away.
//! Invariants: what is typed there is what the programs printed, or what docs/service.md says · systemd is process 1, and the units
//! are those of the source tree.
//! See: docs/service.md; `kit::machine`.

#[path = "../kit/mod.rs"]
#[expect(unused_macros, reason = "these have no transport")]
mod kit;

mod deploy;
mod life;
mod package;
mod quick_start;
mod real_host;
mod restart;
mod user_unit;
