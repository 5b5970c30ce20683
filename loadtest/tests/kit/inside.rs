//! Role: tests in namespaces of their own (network, mounts): addresses, names and ports that are there for
//! them alone.
//! Invariants: what is done inside is never seen outside · a test that did not run inside has failed.

use std::{fs, io::ErrorKind, path::Path, process::Command, sync::Once, time::Duration};

use rustix::mount::{MountFlags, mount, mount_move};
use tempfile::TempDir;

use super::{
    PATIENCE, conditions,
    process::{foreign, ours, run},
};

/// Set where the namespaces are.
const INSIDE: &str = "NARROWLINK_TEST_INSIDE";

/// Runs `body`, which is the test of this name (`module::function`), in namespaces where nothing is but a
/// loopback interface. What it prints is printed.
pub(crate) fn inside(test: &str, patience: Duration, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut command = Command::new(ours("own-namespaces"));
    command.arg(std::env::current_exe().expect("a test knows its program"));
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let done = run(command, b"", patience);
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(
        done.status.success(),
        "in its namespaces: {}\n{}{}",
        done.status,
        done.stderr,
        conditions::trouble()
    );
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

/// Programs that read the file `place`, which is one of `/etc`, read `file` from now on, be it that there was none.
pub(crate) fn put_in_place_of(place: &str, file: &Path) {
    assert!(
        std::env::var_os(INSIDE).is_some() && place.starts_with("/etc/"),
        "{place}: only inside, only in /etc"
    );
    static COPIED: Once = Once::new();
    COPIED.call_once(take_own_etc);
    // What is there may be a link to somewhere outside.
    if let Err(e) = fs::remove_file(place) {
        assert_eq!(e.kind(), ErrorKind::NotFound, "{place}: {e}");
    }
    fs::copy(file, place).unwrap_or_else(|e| panic!("{place}: {e}"));
}

/// A copy of `/etc` in memory, gone with the namespace, in the place of `/etc`.
fn take_own_etc() {
    let dir = TempDir::with_prefix("narrowlink-etc-").expect("a temporary directory can be made");
    mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"mode=755"))
        .expect("a tmpfs can be mounted");
    let mut copy = Command::new(foreign("cp", "coreutils"));
    copy.args(["-a", "/etc/."]).arg(dir.path());
    // Not all of it may be read by each user, nor be needed.
    let _ = run(copy, b"", PATIENCE);
    mount_move(dir.path(), "/etc").expect("it can be moved");
}
