//! Role: runs a program for which the kernel seems to have no io_uring.
//! Invariants: the refusal holds for the program and everything it starts, and can't be taken back;
//! all other system calls pass untouched.
//! See: seccomp(2), ARCHITECTURE.md on io_uring and epoll.
#![expect(unsafe_code, reason = "prctl is called with pointers; each block says why it holds")]

use std::{
    ffi::OsString,
    fmt, io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

const USAGE: &str = "\
Runs a program with io_uring refused by seccomp, as containers and old kernels do.

Usage: without-io-uring [--errno EPERM|ENOSYS|ENOMEM] [--] COMMAND [ARGUMENTS]...

EPERM (the default) is what container runtimes answer, ENOSYS what an old kernel answers,
ENOMEM what a kernel out of locked memory answers.

Example: without-io-uring --errno ENOSYS cargo test --workspace";

/// io_uring_setup, io_uring_enter, io_uring_register: the same numbers on every architecture.
const REFUSED_CALLS: [u32; 3] = [425, 426, 427];

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    errno: i32,
    program: OsString,
    arguments: Vec<OsString>,
}

#[derive(Debug, PartialEq, Eq)]
enum UsageError {
    Help,
    UnknownErrno(OsString),
    UnknownOption(OsString),
    NoCommand,
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Help => f.write_str("help was asked for"),
            Self::UnknownErrno(given) => {
                write!(f, "--errno takes EPERM, ENOSYS or ENOMEM, not {}", given.display())
            }
            Self::UnknownOption(given) => write!(f, "unknown option {}", given.display()),
            Self::NoCommand => f.write_str("no command is given"),
        }
    }
}

fn main() -> ExitCode {
    let Arguments { errno, program, arguments } = match parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(UsageError::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("without-io-uring: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = refuse_io_uring(errno) {
        eprintln!("without-io-uring: can't install the filter: {error}");
        return ExitCode::from(70);
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("without-io-uring: can't run {}: {error}", program.display());
    // As shells answer.
    ExitCode::from(127)
}

fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Arguments, UsageError> {
    let mut errno = libc::EPERM;
    loop {
        let word = words.next().ok_or(UsageError::NoCommand)?;
        match word.to_str() {
            Some("-h" | "--help") => return Err(UsageError::Help),
            Some("--errno") => errno = parse_errno(words.next().ok_or(UsageError::NoCommand)?)?,
            Some("--") => {
                let program = words.next().ok_or(UsageError::NoCommand)?;
                return Ok(Arguments { errno, program, arguments: words.collect() });
            }
            Some(option) if option.starts_with('-') => return Err(UsageError::UnknownOption(word)),
            _ => return Ok(Arguments { errno, program: word, arguments: words.collect() }),
        }
    }
}

fn parse_errno(word: OsString) -> Result<i32, UsageError> {
    match word.to_str() {
        Some("EPERM") => Ok(libc::EPERM),
        Some("ENOSYS") => Ok(libc::ENOSYS),
        Some("ENOMEM") => Ok(libc::ENOMEM),
        _ => Err(UsageError::UnknownErrno(word)),
    }
}

/// The filter: load the call's number, compare with each refused one, allow what is left.
///
/// The architecture isn't looked at: on x86-64 a 32-bit program's numbers 425 to 427 are io_uring too.
fn filter(errno: i32) -> Vec<libc::sock_filter> {
    let number_offset = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number_offset)];
    for (i, call) in REFUSED_CALLS.into_iter().enumerate() {
        // A match jumps over the comparisons that are left and over the RET ALLOW behind them.
        let to_refusal = (REFUSED_CALLS.len() - i) as u8;
        let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.push(libc::sock_filter { jt: to_refusal, ..statement(code, call) });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let refusal = libc::SECCOMP_RET_ERRNO | (errno as u32 & libc::SECCOMP_RET_DATA);
    program.push(statement(libc::BPF_RET | libc::BPF_K, refusal));
    program
}

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    // Every code of classic BPF fits 16 bits.
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn refuse_io_uring(errno: i32) -> io::Result<()> {
    let mut filter = filter(errno);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes no pointer; the unused arguments must be zero and are.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `program` points at `filter`, which outlives the call; the kernel copies and checks it.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Arguments, UsageError> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let seen = parsed(&["--errno", "ENOSYS", "cargo", "test", "--errno", "x"]).unwrap();
        assert_eq!(seen.errno, libc::ENOSYS);
        assert_eq!(seen.program, "cargo");
        assert_eq!(seen.arguments, ["test", "--errno", "x"]);
        assert_eq!(parsed(&["--", "-odd"]).unwrap().program, "-odd");
        assert_eq!(parsed(&["true"]).unwrap().errno, libc::EPERM);
    }

    #[test]
    fn a_wrong_call_is_told_what_is_wrong() {
        assert_eq!(parsed(&[]), Err(UsageError::NoCommand));
        assert_eq!(parsed(&["--errno"]), Err(UsageError::NoCommand));
        assert_eq!(parsed(&["--errno", "EINVAL", "true"]), Err(UsageError::UnknownErrno("EINVAL".into())));
        assert_eq!(parsed(&["-k", "true"]), Err(UsageError::UnknownOption("-k".into())));
        assert_eq!(parsed(&["--help"]), Err(UsageError::Help));
    }

    /// What the kernel would decide, by the little of classic BPF that the filter uses.
    fn verdict(filter: &[libc::sock_filter], call: u32) -> u32 {
        let mut at = 1;
        loop {
            let step = filter[at];
            if u32::from(step.code) == libc::BPF_RET | libc::BPF_K {
                return step.k;
            }
            at += 1 + usize::from(if step.k == call { step.jt } else { step.jf });
        }
    }

    #[test]
    fn exactly_the_three_calls_are_refused() {
        let filter = filter(libc::ENOMEM);
        for call in 0..1_000 {
            let expected = if (425..=427).contains(&call) {
                libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32
            } else {
                libc::SECCOMP_RET_ALLOW
            };
            assert_eq!(verdict(&filter, call), expected, "call {call}");
        }
    }
}
