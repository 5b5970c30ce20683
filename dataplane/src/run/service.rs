//! Role: a program as a service of systemd: its unit, installed, looked at, taken away.
//! Invariants: the unit is the one of the source tree; what differs here is a drop-in beside it · a file that not everybody can
//! read reaches the service as a credential, so that nobody has to change its owner · configuration and state are never
//! taken away.
//! See: `control/systemd`, `agent/systemd`; docs/service.md; systemd.exec(5), `LoadCredential=`.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use narrowlink_proto::code::Code;

use super::{program::put, replace::Held};

/// Where a unit lies that a package has brought, or the tarball.
const PACKAGED: [&str; 3] =
    ["/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// Where an administrator's lie.
const UNITS: &str = "/etc/systemd/system";
/// The drop-in's name.
const DROP_IN: &str = "local.conf";
/// Where programs of an administrator's lie.
const PROGRAMS: &str = "/usr/local/bin";
/// What a service can't see, as its unit has it (`ProtectHome=`, `PrivateTmp=`).
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];
/// Exit codes, as sysexits.h and clap have them.
const USAGE: u8 = 2;
const CANT_CREATE: u8 = 73;
const CONFIGURATION: u8 = 78;
const PUBLIC: u32 = 0o644;
const EXECUTABLE: u32 = 0o755;
/// How long a service that was begun is watched.
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(100);

/// A program that can be a service.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    /// The program's name, and the service's.
    pub name: &'static str,
    /// The unit.
    pub text: &'static str,
    /// What stands behind `-c FILE`.
    pub arguments: &'static str,
    /// All that it may write below.
    pub writable: &'static [&'static str],
}

/// What a service is to be run with.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// What it reads.
    pub read: Vec<PathBuf>,
    /// What it writes, and by which key its configuration says so.
    pub written: Vec<(&'static str, PathBuf)>,
}

/// How a service stands, as `systemctl show` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// `active`, `activating`, `inactive`, `failed`.
    pub state: String,
    /// What the program says itself.
    pub words: String,
    /// Its process; 0 where there is none.
    pub pid: u32,
    /// How often it was begun anew by itself.
    pub restarts: u32,
    /// Since when it stands so, in systemd's words.
    pub since: String,
}

/// Why nothing was done. The user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Another init, or a container without.
    #[error("systemd does not run this machine: have whatever does run `{0}`, and send it SIGTERM to end it")]
    NoSystemd(String),
    /// Not root.
    #[error("services are root's to install: sudo {0}")]
    NotRoot(String),
    /// A file where no service can see it.
    #[error("{}: a service can't see {hidden}; move it to /etc/narrowlink", path.display())]
    Hidden {
        /// Which file.
        path: PathBuf,
        /// Below what.
        hidden: &'static str,
    },
    /// A file where no service can write.
    #[error("{key}: {}: this service may write below {may} alone", path.display())]
    Unwritable {
        /// What names it.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// Where it may.
        may: String,
    },
    /// Two credentials of one name.
    #[error("{} and {}: two files of one name, which are both for nobody else to read, can't both be credentials: rename one", .0.display(), .1.display())]
    SameName(PathBuf, PathBuf),
    /// It can't be written in a unit.
    #[error("{}: a path with a blank, a colon, a quote, $ or % can't stand in a unit: rename it", .0.display())]
    Path(PathBuf),
    /// Something else lies in the place of a file of the unit.
    #[error(
        "{} is a link, and nothing is written through one: remove it (systemctl unmask NAME, if it leads to /dev/null), and try \
         again", .0.display()
    )]
    Link(PathBuf),
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such service.
    #[error("{0} is not installed: {0} service install")]
    NotInstalled(&'static str),
    /// systemd says no.
    #[error("systemctl {what}: {said}")]
    Systemctl {
        /// What it was asked.
        what: String,
        /// What it says.
        said: String,
    },
    /// The service was begun and does not run.
    #[error("{name} does not run ({state}): journalctl -u {name} -n 20 says why{}{words}", if words.is_empty() { "" } else { "; " })]
    Down {
        /// Which.
        name: &'static str,
        /// As systemd calls it.
        state: String,
        /// What it said last.
        words: String,
    },
}

impl ServiceError {
    /// The kind of trouble.
    pub const fn code(&self) -> Code {
        match self {
            Self::NoSystemd(_)
            | Self::NotRoot(_)
            | Self::Hidden { .. }
            | Self::Unwritable { .. }
            | Self::SameName(..)
            | Self::Path(_)
            | Self::Systemctl { .. } => Code::Service,
            Self::File { .. } | Self::Link(_) => Code::Unmade,
            Self::NotInstalled(_) | Self::Down { .. } => Code::ServiceDown,
        }
    }

    /// What a program ends with.
    pub const fn exit(&self) -> u8 {
        match self {
            Self::NoSystemd(_) | Self::NotRoot(_) | Self::Systemctl { .. } => USAGE,
            Self::Hidden { .. } | Self::Unwritable { .. } | Self::SameName(..) | Self::Path(_) => {
                CONFIGURATION
            }
            Self::File { .. } | Self::Link(_) => CANT_CREATE,
            Self::NotInstalled(_) => Unit::NOT_INSTALLED,
            Self::Down { .. } => Unit::DOWN,
        }
    }
}

impl Unit {
    /// Installs the service of `config`, which names `files`, and begins it; one that runs is begun anew. What was done, in
    /// words.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn install(&self, config: &Path, files: &Files) -> Result<String, ServiceError> {
        let config = fs::canonicalize(config).map_err(failed(config))?;
        self.require_systemd(&format!("{} -c {}", self.name, config.display()))?;
        self.require_root("install")?;
        let read: Vec<_> =
            files.read.iter().map(|file| fs::canonicalize(file).unwrap_or_else(|_| file.clone())).collect();
        for path in read.iter().chain([&config]).filter(|path| path.exists()) {
            visible(path)?;
        }
        for (key, path) in &files.written {
            self.require_writable(key, path)?;
        }
        let [own, dir, drop_in_file] = self.places(Path::new(UNITS))?;
        let (program, copied) = self.settle_program()?;
        let drop_in = self.drop_in(&program, &config, &read)?;
        let mut said = copied.map(|words| format!("{words}\n")).unwrap_or_default();
        if !PACKAGED.iter().any(|dir| Path::new(dir).join(self.file()).exists()) {
            write(&own, self.text)?;
        }
        DirBuilder::new().recursive(true).mode(EXECUTABLE).create(&dir).map_err(failed(&dir))?;
        write(&drop_in_file, &drop_in)?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--quiet", self.name])?;
        systemctl(&["restart", "--no-block", self.name])?;
        let Status { state, words, .. } = self.settle()?;
        said += &match &state[..] {
            "active" => format!("{} runs, and will after each boot: {words}\n", self.name),
            // An agent whose gateway is away.
            _ => format!("{} is installed, and tries: {words}\n", self.name),
        };
        Ok(said)
    }

    /// Ends the service and takes its unit away. What was done, in words.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn uninstall(&self) -> Result<String, ServiceError> {
        self.require_systemd(self.name)?;
        self.require_root("uninstall")?;
        if self.status()?.is_none() {
            return Err(ServiceError::NotInstalled(self.name));
        }
        let [own, dir, drop_in] = self.places(Path::new(UNITS))?;
        systemctl(&["disable", "--now", "--quiet", self.name])?;
        for path in [own, drop_in] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(e)),
                _ => {}
            }
        }
        // Only if nobody else has put something there.
        let _ = fs::remove_dir(dir);
        systemctl(&["daemon-reload"])?;
        Ok(format!(
            "{} runs no more, now or after a boot; /etc/narrowlink and what it keeps in /var/lib stay\n",
            self.name
        ))
    }

    /// How the service stands; `None` where it is not installed.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn status(&self) -> Result<Option<Status>, ServiceError> {
        self.require_systemd(self.name)?;
        let said = systemctl(&[
            "show",
            self.name,
            "--property=LoadState,ActiveState,StatusText,MainPID,NRestarts,StateChangeTimestamp",
        ])?;
        Ok(read_status(&said))
    }

    /// Exit code: it is installed and does not run, as systemctl has it.
    pub const DOWN: u8 = 3;
    /// Exit code: it is not installed, as systemctl has it.
    pub const NOT_INSTALLED: u8 = 4;

    /// What `service status` ends with.
    pub fn code(status: Option<&Status>) -> u8 {
        match status {
            Some(status) if status.state == "active" => 0,
            Some(_) => Self::DOWN,
            None => Self::NOT_INSTALLED,
        }
    }

    /// How it stands, for people.
    pub fn words(&self, status: Option<&Status>) -> String {
        let Some(Status { state, words, pid, restarts, since }) = status else {
            return format!("{} is not installed: {} service install\n", self.name, self.name);
        };
        let process = if *pid == 0 { String::new() } else { format!(", process {pid}") };
        let again = match restarts {
            0 => String::new(),
            n => format!(", begun anew by itself {n} times: journalctl -u {} says why", self.name),
        };
        let words = if words.is_empty() { String::new() } else { format!("{words}\n") };
        format!("{} is {state} since {since}{process}{again}\n{words}", self.name)
    }

    /// The same as one JSON object, in one line.
    pub fn json(status: Option<&Status>) -> String {
        let said = match status {
            Some(Status { state, words, pid, restarts, since }) => serde_json::json!({
                "installed": true, "state": state, "status": words, "pid": pid, "restarts": restarts, "since": since,
            }),
            None => serde_json::json!({ "installed": false }),
        };
        format!("{said}\n")
    }

    fn file(&self) -> String {
        format!("{}.service", self.name)
    }

    /// The unit, the directory of its drop-ins, and ours there; none of them is a link.
    fn places(&self, units: &Path) -> Result<[PathBuf; 3], ServiceError> {
        let dir = units.join(format!("{}.d", self.file()));
        let places = [units.join(self.file()), dir.clone(), dir.join(DROP_IN)];
        match places.iter().find(|place| place.is_symlink()) {
            Some(link) => Err(ServiceError::Link(link.clone())),
            None => Ok(places),
        }
    }

    /// Whether whoever runs this may install it here.
    pub fn can_be_installed() -> bool {
        rustix::process::geteuid().is_root() && sd_notify::booted().unwrap_or(false)
    }

    fn require_systemd(&self, by_hand: &str) -> Result<(), ServiceError> {
        let is_there = sd_notify::booted().unwrap_or(false);
        if is_there { Ok(()) } else { Err(ServiceError::NoSystemd(by_hand.to_owned())) }
    }

    fn require_root(&self, what: &str) -> Result<(), ServiceError> {
        let is_root = rustix::process::geteuid().is_root();
        if is_root { Ok(()) } else { Err(ServiceError::NotRoot(format!("{} service {what}", self.name))) }
    }

    fn require_writable(&self, key: &'static str, path: &Path) -> Result<(), ServiceError> {
        match self.writable.iter().any(|dir| path.starts_with(dir)) {
            true => Ok(()),
            false => {
                Err(ServiceError::Unwritable { key, path: path.to_owned(), may: self.writable.join(" and ") })
            }
        }
    }

    /// Where the program lies that is to run: a copy, if this one lies where no service sees it. What was done, in words.
    fn settle_program(&self) -> Result<(PathBuf, Option<String>), ServiceError> {
        let own = std::env::current_exe().map_err(failed(Path::new(self.name)))?;
        if visible(&own).is_ok() {
            return Ok((own, None));
        }
        let program = Path::new(PROGRAMS).join(self.name);
        put(&own, &program, self.name).map_err(failed(&program))?.keep();
        let said = format!("{} is copied to {}, where services see it", own.display(), program.display());
        Ok((program, Some(said)))
    }

    /// What differs from the unit on this machine.
    fn drop_in(&self, program: &Path, config: &Path, files: &[PathBuf]) -> Result<String, ServiceError> {
        let mut credentials: Vec<&Path> = Vec::new();
        for file in files.iter().map(PathBuf::as_path).chain([config]) {
            spelled(file)?;
            if !file.exists() || is_for_everybody(file) || credentials.contains(&file) {
                continue;
            }
            if let Some(other) = credentials.iter().find(|other| other.file_name() == file.file_name()) {
                return Err(ServiceError::SameName((*other).to_owned(), file.to_owned()));
            }
            credentials.push(file);
        }
        Ok(render(self, (spelled(program)?, spelled(config)?), &credentials))
    }

    /// Waits until the service has begun or failed, but not for long.
    fn settle(&self) -> Result<Status, ServiceError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?.ok_or(ServiceError::NotInstalled(self.name))?;
            let is_over = Instant::now() >= deadline;
            match &status.state[..] {
                "active" => return Ok(status),
                // Between two tries.
                "activating" if status.restarts == 0 && is_over => return Ok(status),
                _ if is_over || status.state == "failed" => {
                    let Status { state, words, .. } = status;
                    return Err(ServiceError::Down { name: self.name, state, words });
                }
                _ => thread::sleep(TICK),
            }
        }
    }
}

fn render(unit: &Unit, (program, config): (&str, &str), credentials: &[&Path]) -> String {
    let Unit { name, arguments, .. } = unit;
    let behind = if arguments.is_empty() { String::new() } else { format!(" {arguments}") };
    let mut text = format!(
        "# Written by {name} service install; it is written anew by the next one.\n[Service]\nExecStart=\n\
         ExecStart={program} -c {config}{behind}\n"
    );
    for path in credentials {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        text += &format!("LoadCredential={name}:{}\n", path.display());
    }
    text
}

/// Whether every user can read it, and get there.
fn is_for_everybody(path: &Path) -> bool {
    let mode = |path: &Path| fs::metadata(path).map_or(0, |there| there.permissions().mode());
    let dirs = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
    mode(path) & 0o004 != 0 && dirs.into_iter().all(|dir| mode(dir) & 0o001 != 0)
}

fn visible(path: &Path) -> Result<(), ServiceError> {
    match HIDDEN.iter().find(|hidden| path.starts_with(hidden)) {
        Some(hidden) => Err(ServiceError::Hidden { path: path.to_owned(), hidden }),
        None => Ok(()),
    }
}

/// A path as a unit has it; none that would need quotes there.
fn spelled(path: &Path) -> Result<&str, ServiceError> {
    let plain =
        |text: &&str| text.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"\"'\\:;$%".contains(c));
    path.to_str().filter(plain).ok_or_else(|| ServiceError::Path(path.to_owned()))
}

fn read_status(said: &str) -> Option<Status> {
    let value = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().to_owned()
    };
    (value("LoadState") == "loaded").then(|| Status {
        state: value("ActiveState"),
        words: value("StatusText"),
        pid: value("MainPID").parse().unwrap_or(0),
        restarts: value("NRestarts").parse().unwrap_or(0),
        since: value("StateChangeTimestamp"),
    })
}

fn systemctl(arguments: &[&str]) -> Result<String, ServiceError> {
    let what = || arguments.join(" ");
    let Output { status, stdout, stderr } = Command::new("systemctl")
        .args(arguments)
        .output()
        .map_err(|e| ServiceError::Systemctl { what: what(), said: e.to_string() })?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr).trim().replace('\n', "; ");
        return Err(ServiceError::Systemctl { what: what(), said });
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

fn write(path: &Path, text: &str) -> Result<(), ServiceError> {
    Held::wait_for(path).and_then(|held| held.replace(text, PUBLIC)).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ServiceError + use<> {
    let path = path.to_owned();
    |source| ServiceError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Unit = Unit {
        name: "narrowlink-gateway",
        text: "",
        arguments: "--keeper",
        writable: &["/var/lib/narrowlink", "/var/log/narrowlink"],
    };

    fn file(dir: &Path, name: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn what_not_everybody_can_read_is_a_credential() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = file(dir.path(), "gateway.yaml", 0o644);
        let (secret, chain) = (file(dir.path(), "secret", 0o600), file(dir.path(), "chain.pem", 0o644));
        let files = [secret.clone(), chain, secret.clone(), dir.path().join("not-there")];
        let text = UNIT.drop_in(Path::new("/usr/bin/narrowlink-gateway"), &config, &files).unwrap();
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "[Service]".to_owned(),
                "ExecStart=".to_owned(),
                format!("ExecStart=/usr/bin/narrowlink-gateway -c {} --keeper", config.display()),
                format!("LoadCredential=secret:{}", secret.display()),
            ]
        );
        // Where nobody gets in, nothing is for everybody.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let text = UNIT.drop_in(Path::new("/usr/bin/x"), &config, &files).unwrap();
        assert_eq!(text.matches("LoadCredential=").count(), 3, "{text}");
    }

    #[test]
    fn what_no_unit_can_say_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = file(dir.path(), "gateway.yaml", 0o600);
        let program = Path::new("/usr/bin/x");
        let twins = [file(dir.path(), "a/key", 0o600), file(dir.path(), "b/key", 0o600)];
        assert!(matches!(UNIT.drop_in(program, &config, &twins), Err(ServiceError::SameName(..))));
        for name in ["a b", "a:b", "50%", "$HOME", "a\"b", "a\nb"] {
            let odd = [file(dir.path(), name, 0o600)];
            assert!(matches!(UNIT.drop_in(program, &config, &odd), Err(ServiceError::Path(_))), "{name}");
        }
        let said = visible(Path::new("/root/agent.yaml")).unwrap_err().to_string();
        assert_eq!(said, "/root/agent.yaml: a service can't see /root; move it to /etc/narrowlink");
        visible(Path::new("/roots/agent.yaml")).unwrap();
        let said =
            UNIT.require_writable("state_dir", Path::new("/etc/narrowlink/state")).unwrap_err().to_string();
        assert_eq!(
            said,
            "state_dir: /etc/narrowlink/state: this service may write below /var/lib/narrowlink and /var/log/narrowlink alone"
        );
        UNIT.require_writable("audit", Path::new("/var/log/narrowlink/audit.log")).unwrap();
    }

    #[test]
    fn a_link_that_lies_in_a_unit_s_place_is_refused_and_nothing_is_written_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let units = dir.path().join("units");
        let dropped = units.join("narrowlink-gateway.service.d");
        fs::create_dir_all(&dropped).unwrap();
        assert_eq!(UNIT.places(&units).unwrap()[2], dropped.join(DROP_IN));
        let elsewhere = dir.path().join("elsewhere");
        let plant = |place: &Path| {
            std::os::unix::fs::symlink(&elsewhere, place).unwrap();
            let refused = UNIT.places(&units).unwrap_err();
            assert!(refused.to_string().starts_with(&format!("{} is a link", place.display())), "{refused}");
            assert_eq!((refused.exit(), refused.code()), (CANT_CREATE, Code::Unmade));
            fs::remove_file(place).unwrap();
        };
        plant(&units.join("narrowlink-gateway.service"));
        plant(&dropped.join(DROP_IN));
        fs::remove_dir(&dropped).unwrap();
        plant(&dropped);
    }

    #[test]
    fn a_status_is_read_as_systemctl_shows_it() {
        let said = "MainPID=74\nNRestarts=2\nStatusText=listening on wss://[::]:443\nLoadState=loaded\n\
                    ActiveState=active\nStateChangeTimestamp=Mon 2026-11-30 18:14:18 UTC\n";
        let status = read_status(said).unwrap();
        assert_eq!((status.state.as_str(), status.pid, status.restarts), ("active", 74, 2));
        assert_eq!(status.words, "listening on wss://[::]:443");
        assert_eq!(read_status("LoadState=not-found\nActiveState=inactive\n"), None);
    }
}
