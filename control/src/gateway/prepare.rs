//! Role: what a start needs of the system, looked at before anything is begun; `--check` looks at the same.
//! Invariants: a check leaves nothing behind, and takes no connection from a gateway that runs.
//! See: `open`, which binds for good.

use std::{
    fs::{self, DirBuilder},
    io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use narrowlink_dataplane::{
    net::listen,
    run::file::{open_to_append, probe_directory},
};

use super::{StartError, holder::listens, open::explain, rules_of};
use crate::{config::Config, pid_file};

/// Why it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To start: what is missing is made. Addresses are bound right after this.
    Start,
    /// To say whether a start would succeed.
    Check,
}

/// Whether a gateway of this config could start here.
///
/// # Errors
/// Why it could not.
pub fn check(config: &Config) -> Result<(), StartError> {
    look(config, Purpose::Check)
}

pub(super) fn look(config: &Config, purpose: Purpose) -> Result<(), StartError> {
    if config.services.is_empty() {
        return Err(StartError::Incomplete("no service to serve"));
    }
    if purpose == Purpose::Check {
        rules_of(config)?;
        for (service, listened) in config.services.iter().enumerate() {
            let addr = listened.listen_addr;
            let failed = |e| StartError::Listen { service, addr, source: explain(addr, e) };
            listen::probe(addr)
                .or_else(|e| if is_our_own(config, addr) { Ok(()) } else { Err(e) })
                .map_err(failed)?;
        }
    }
    if let Some(path) = &config.state_dir {
        let failed = |source| StartError::StateDir { path: path.clone(), source };
        directory(path, purpose).map_err(failed)?;
    }
    if let Some(path) = &config.audit {
        let failed = |source| StartError::Audit { path: path.clone(), source };
        if purpose == Purpose::Check {
            file(path).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether the gateway of this config listens there now, perhaps as another user: who is begun next has the address from it.
fn is_our_own(config: &Config, addr: SocketAddr) -> bool {
    let noted = config.state_dir.as_ref().map(|dir| pid_file::read(&dir.join(pid_file::FILE)));
    noted.is_some_and(|pid| pid.and_then(|pid| listens(pid, addr)).unwrap_or_default())
}

/// A directory that can be written into; a check only looks whether it could be made.
fn directory(path: &Path, purpose: Purpose) -> io::Result<()> {
    if purpose == Purpose::Start {
        // For nobody else to look into.
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    } else if let Err(e) = fs::metadata(path)
        && !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    {
        // No directory can have such a path, whatever may be written into where it would be made: too long, or with a NUL.
        return Err(e);
    }
    probe_directory(path)
}

/// A file that can be added to, or made.
fn file(path: &Path) -> io::Result<()> {
    let is_new = !path.exists();
    // A pipe without a reader is one that a start takes, too.
    open_to_append(path)?;
    if is_new { fs::remove_file(path) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;
    use crate::gateway::{
        start,
        tests::{any, ask, config, service},
    };

    #[test]
    fn a_check_beside_a_running_gateway_succeeds_and_takes_none_of_its_connections() {
        let gateway = start(config(any())).unwrap();
        let addr = gateway.addresses()[0];
        for _ in 0..20 {
            check(&config(addr)).unwrap();
            assert!(ask(addr).unwrap().starts_with("HTTP/1.1 404"));
        }
        assert!(gateway.stop(std::time::Duration::from_secs(10)));
    }

    #[test]
    fn an_address_that_the_gateway_of_this_config_has_is_free_for_its_next_one() {
        let dir = tempfile::tempdir().unwrap();
        // As if another user's: nobody may listen beside it.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let config = Config { state_dir: Some(dir.path().to_owned()), ..config(addr) };
        let note = |pid: u32| fs::write(dir.path().join(pid_file::FILE), format!("{pid}\n/x\n")).unwrap();
        assert!(check(&config).is_err());
        note(1);
        assert!(check(&config).is_err(), "another process has it");
        note(std::process::id());
        check(&config).unwrap();
    }

    #[test]
    fn a_check_refuses_what_a_start_refuses_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let occupied = config(taken.local_addr().unwrap());
        fs::write(dir.path().join("file"), "").unwrap();
        let with = |change: fn(&mut Config, std::path::PathBuf), path: &str| {
            let mut config = config(any());
            change(&mut config, dir.path().join(path));
            config
        };
        let state_dir = |config: &mut Config, path| config.state_dir = Some(path);
        let audit = |config: &mut Config, path| config.audit = Some(path);
        let too_long = &"n".repeat(300);
        let bad = [
            (occupied, "shows which"),
            (with(state_dir, "file/state"), "state_dir: "),
            (with(state_dir, "file"), "state_dir: "),
            (with(state_dir, too_long), "File name too long"),
            (with(state_dir, "a\0b"), "state_dir: "),
            (with(audit, "none/audit.log"), "audit: "),
            (with(audit, "."), "audit: "),
            (Config { secrets: vec![], ..config(any()) }, "no secret"),
            (Config { services: vec![], ..config(any()) }, "no service"),
        ];
        for (config, says) in bad {
            let checked = check(&config).unwrap_err().to_string();
            let Err(started) = start(config) else { panic!("{says}: it started") };
            assert!(checked.contains(says) && started.to_string().contains(says), "{checked}, {started}");
        }
        for good in [
            with(state_dir, "a/b/c"),
            with(audit, "audit.log"),
            Config { services: vec![service(any())], ..config(any()) },
        ] {
            check(&good).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the file of this test");
    }

    #[test]
    fn neither_a_check_nor_a_start_waits_for_the_reader_of_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.pipe");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let config = Config { audit: Some(path), ..config(any()) };
        check(&config).unwrap();
        assert!(start(config).unwrap().stop(std::time::Duration::from_secs(10)));
    }

    #[test]
    fn a_directory_that_can_not_be_written_is_refused_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o500)).unwrap();
        // Root may write everywhere.
        let may = fs::write(state.join("probe"), "").is_ok();
        let config = Config { state_dir: Some(state), ..config(any()) };
        assert_eq!(check(&config).is_ok(), may);
    }
}
