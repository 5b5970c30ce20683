//! Role: proof that `without-io-uring` does what it says.
//! Invariants: what is asked is a child's own system call, never the filter's text.
#![expect(
    unsafe_code,
    reason = "io_uring_setup is asked for directly, so that no library's fallback is seen"
)]

use std::{io, process::Command};

const PROBE: &str = "NARROWLINK_TEST_PROBE";

/// The errno of an io_uring_setup that no kernel could grant: no parameters are given.
fn io_uring_errno() -> i32 {
    let no_params = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the kernel checks both arguments; a null pointer is answered with EFAULT.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, no_params) };
    assert_eq!(result, -1, "io_uring_setup without parameters must fail");
    io::Error::last_os_error().raw_os_error().expect("a failed call leaves an errno")
}

/// Runs this very test again, behind the filter, as the child that looks.
fn errno_behind(arguments: &[&str], test: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_without-io-uring"))
        .args(arguments)
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", test, "--nocapture"])
        .env(PROBE, "1")
        .output()
        .expect("without-io-uring is built with this test");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    let seen = stdout.split("errno=").nth(1).and_then(|rest| rest.split_whitespace().next());
    seen.unwrap_or_else(|| panic!("the child printed no errno: {stdout}")).to_owned()
}

#[test]
fn a_child_sees_the_errno_that_was_asked_for() {
    if std::env::var_os(PROBE).is_some() {
        println!(" errno={} ", io_uring_errno());
        return;
    }
    let seen = |arguments: &[&str]| errno_behind(arguments, "a_child_sees_the_errno_that_was_asked_for");
    assert_eq!(seen(&[]), libc::EPERM.to_string());
    assert_eq!(seen(&["--errno", "EPERM"]), libc::EPERM.to_string());
    assert_eq!(seen(&["--errno", "ENOSYS", "--"]), libc::ENOSYS.to_string());
    assert_eq!(seen(&["--errno", "ENOMEM"]), libc::ENOMEM.to_string());
}

#[test]
fn an_unknown_errno_is_a_usage_error_and_a_missing_program_is_127() {
    let code = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_without-io-uring")).args(arguments).output();
        output.expect("without-io-uring is built with this test").status.code()
    };
    assert_eq!(code(&["--errno", "EBADF", "true"]), Some(2));
    assert_eq!(code(&[]), Some(2));
    assert_eq!(code(&["/nonexistent/program"]), Some(127));
    assert_eq!(code(&["sh", "-c", "exit 5"]), Some(5));
}
