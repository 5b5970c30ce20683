//! Role: tests in namespaces of their own (network, mounts): addresses, names and ports that are there for
//! them alone.
//! Invariants: what is done inside is never seen outside · a test that did not run inside has failed.

use std::{path::Path, process::Command, time::Duration};

use super::{
    PATIENCE,
    process::{foreign, run},
};

/// Set where the namespaces are.
const INSIDE: &str = "NARROWLINK_TEST_INSIDE";

/// Runs `body`, which is the test of this name (`module::function`), in namespaces where nothing is but a
/// loopback interface. What it prints is printed.
pub(crate) fn inside(test: &str, patience: Duration, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        system("ip", "iproute2", &["link", "set", "lo", "up"]);
        return body();
    }
    let mut command = Command::new(foreign("unshare", "util-linux"));
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "--mount", "--"]);
    command.arg(std::env::current_exe().expect("a test knows its program"));
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let done = run(command, b"", patience);
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(done.status.success(), "in its namespaces: {}\n{}", done.status, done.stderr);
    assert!(said.contains("1 passed"), "there is no test {test}");
}

/// Runs a program of the system, which must succeed.
pub(crate) fn system(program: &str, package: &str, args: &[&str]) {
    let mut command = Command::new(foreign(program, package));
    command.args(args);
    run(command, b"", PATIENCE).succeeded();
}

/// Addresses of the loopback interface from now on.
pub(crate) fn add_addresses(addresses: &[&str]) {
    for addr in addresses {
        let (bits, more) = if addr.contains(':') { (128, &["nodad"][..]) } else { (32, &[][..]) };
        let addr = format!("{addr}/{bits}");
        let mut args = vec!["addr", "add", addr.as_str(), "dev", "lo"];
        args.extend(more);
        system("ip", "iproute2", &args);
    }
}

/// Programs that read the file `place` read `file` from now on.
pub(crate) fn put_in_place_of(place: &str, file: &Path) {
    system("mount", "mount", &["--bind", &file.display().to_string(), place]);
}
