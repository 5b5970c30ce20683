//! Role: what this machine grants: open files, and io_uring.
//! Invariants: what is judged is what was read, so that each case can be played.
//! See: `run::process`, which raises the limit at every start; io_uring(7).

use std::{fs, io};

use narrowlink_proto::finding::{Finding, Trouble};
use rustix::process::{Resource, getrlimit};

use super::Subject;
use crate::run::worker::try_io_uring;

/// Fewer open files than this are soon all taken: a connection takes two, and a forward keeps some ready.
const DESCRIPTORS_MIN: u64 = 256;
/// What the administrator says about io_uring, from Linux 6.6 on.
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

pub(super) fn look(subject: &Subject<'_>) -> [Finding; 2] {
    let limit = getrlimit(Resource::Nofile);
    let switch = fs::read_to_string(SWITCH).ok().and_then(|text| text.trim().parse().ok());
    let ring = try_io_uring();
    [descriptors(limit.current, limit.maximum), io_uring(ring, switch, subject.require_io_uring)]
}

/// `None` is no limit.
fn descriptors(soft: Option<u64>, hard: Option<u64>) -> Finding {
    let shown = |limit: Option<u64>| limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
    let found = format!("{} open files (hard limit: {})", shown(soft), shown(hard));
    match soft {
        Some(soft) if soft < DESCRIPTORS_MIN => Finding::warn(
            "descriptors",
            format!("{found}, and each connection takes two"),
            "allow more: LimitNOFILE= of a systemd unit, or ulimit -n before the start",
        ),
        _ => Finding::ok("descriptors", found),
    }
}

fn io_uring(ring: io::Result<()>, switch: Option<u8>, is_required: bool) -> Finding {
    let Err(error) = ring else { return Finding::ok("io_uring", "used") };
    let (why, next) = refusal(&error, switch);
    if is_required {
        return Finding::fail("io_uring", Trouble::Internal, format!("required, and refused: {why}"), next);
    }
    let found = format!("refused, so epoll is used in its place, which costs more CPU: {why}");
    Finding::warn("io_uring", found, next)
}

fn refusal(error: &io::Error, switch: Option<u8>) -> (String, &'static str) {
    match (error.raw_os_error(), switch) {
        (Some(libc::EPERM), Some(2)) => (
            "EPERM: it is switched off (kernel.io_uring_disabled = 2)".to_owned(),
            "sysctl kernel.io_uring_disabled=0, or leave it so: everything works",
        ),
        (Some(libc::EPERM), Some(1)) => (
            "EPERM: it is for a group of users alone (kernel.io_uring_disabled = 1)".to_owned(),
            "join the group in kernel.io_uring_group, or leave it so: everything works",
        ),
        (Some(libc::EPERM), _) => (
            "EPERM: a seccomp filter forbids it, as containers have one".to_owned(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in its profile, or leave it so: everything works",
        ),
        (Some(libc::ENOSYS), _) => (
            "ENOSYS: this kernel has none, or a seccomp filter says so".to_owned(),
            "Linux 5.19 or later has it; or leave it so: everything works",
        ),
        (Some(libc::ENOMEM), _) => (
            "ENOMEM: too little memory may be locked".to_owned(),
            "allow more: LimitMEMLOCK= of a systemd unit, or ulimit -l; or leave it so: everything works",
        ),
        _ => (error.to_string(), "leave it so: everything works"),
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::finding::State;

    use super::*;

    #[test]
    fn a_low_limit_on_open_files_is_warned_of() {
        let low = descriptors(Some(64), Some(64));
        assert_eq!(low.state, State::Warn);
        assert!(low.found.starts_with("64 open files (hard limit: 64)"), "{}", low.found);
        assert_eq!(descriptors(Some(1024), None).found, "1024 open files (hard limit: any number)");
        assert_eq!(descriptors(None, None).state, State::Ok);
    }

    #[test]
    fn why_io_uring_is_refused_is_told_apart() {
        let say =
            |errno, switch, required| io_uring(Err(io::Error::from_raw_os_error(errno)), switch, required);
        for (errno, switch, words) in [
            (libc::EPERM, Some(2), "kernel.io_uring_disabled = 2"),
            (libc::EPERM, Some(1), "kernel.io_uring_disabled = 1"),
            (libc::EPERM, Some(0), "seccomp"),
            (libc::EPERM, None, "seccomp"),
            (libc::ENOSYS, None, "this kernel has none"),
            (libc::ENOMEM, Some(0), "locked"),
            (libc::EMFILE, None, "Too many open files"),
        ] {
            let (warned, failed) = (say(errno, switch, false), say(errno, switch, true));
            assert!(warned.found.contains(words) && warned.found.contains("epoll"), "{}", warned.found);
            assert_eq!((warned.state, warned.trouble), (State::Warn, None));
            assert_eq!((failed.state, failed.trouble), (State::Fail, Some(Trouble::Internal)));
        }
        assert_eq!(io_uring(Ok(()), Some(0), true).state, State::Ok);
    }
}
