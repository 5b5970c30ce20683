//! What every program and every worker runs on: threads with a runtime each and their turns, deadlines, the log,
//! files that are read and written, the process itself.

pub mod aside;
pub mod backoff;
pub mod bell;
pub(crate) mod budget;
pub(crate) mod caught;
pub mod crew;
pub mod descriptors;
pub mod enroll;
pub mod file;
pub mod install;
pub mod journal;
pub mod lock;
pub mod log;
pub mod notify;
pub(crate) mod pollable;
pub mod process;
pub mod program;
pub mod ready_file;
pub mod replace;
pub mod service;
pub mod source;
pub mod timer;
pub mod watch;
pub mod worker;
