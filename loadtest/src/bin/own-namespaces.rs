//! Role: runs a program in namespaces of its own (network, mounts), for tests that need addresses, ports and
//! files that nobody else has.
//! Invariants: this process has one thread until it becomes the program.
//! See: `narrowlink_loadtest::namespace`; loadtest/tests/kit/inside.rs.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use narrowlink_loadtest::namespace::{become_root_inside, take_own_mounts, take_own_network};

const USAGE: &str = "\
Runs a program in namespaces of its own: its loopback interface is up, and nobody else sees what it mounts.

Usage: own-namespaces COMMAND [ARGUMENTS]...";

fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("own-namespaces: {error:#}");
    ExitCode::from(70)
}

fn run() -> Result<std::convert::Infallible> {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else { bail!("no command is given\n\n{USAGE}") };
    if !rustix::process::geteuid().is_root() {
        become_root_inside().map_err(explain).context("no user namespace")?;
    }
    take_own_network().map_err(explain).context("no network of its own")?;
    take_own_mounts().map_err(explain).context("no mounts of its own")?;
    let error = Command::new(&program).args(words).exec();
    Err(error).with_context(|| format!("can't run {}", program.display()))
}

/// What to do about it.
fn explain(error: io::Error) -> anyhow::Error {
    let refused = error.kind() == io::ErrorKind::PermissionDenied;
    let error = anyhow::Error::from(error);
    if !refused {
        return error;
    }
    error.context(
        "this machine lets this user have no namespaces: run it as root, in a container with CAP_SYS_ADMIN, or \
         allow users to (sysctl kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces)",
    )
}
