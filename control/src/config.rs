//! Role: what a gateway is to be, as gateway.yaml or a test says it; nothing else here knows YAML.
//! Invariants: every error names the file, the place in it and what is expected there · secrets and keys
//! that others can read are refused unless the operator says otherwise.
//! See: docs/configuration.md "gateway.yaml".

mod complaint;
mod input;
mod limits;
mod places;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use narrowlink_dataplane::run::file::{self, Contents, Reading};
use narrowlink_proto::{
    code::Code,
    id::Uid,
    limits::Limits,
    target::Destination,
    token::{Allowance, Secret},
    unread::{hint, hint_named},
    yaml::{Document, Fault},
};
use rustls::ServerConfig;
use zeroize::Zeroizing;

use self::input::{Input, Refusal};
pub use self::places::Places;
use crate::{
    accounts::Allowances,
    certificate::{Certificate, Held, holds_key, key_alone},
    revocations::{RevocationError, Revocations},
};

/// A config, certificate or secret file at the most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a gateway is to be.
#[derive(Clone)]
pub struct Config {
    /// Its name, for logs.
    pub name: String,
    /// What tokens are signed with: the one in force, then those that are still believed.
    pub secrets: Vec<Secret>,
    /// Where it listens, and for which names.
    pub services: Vec<Service>,
    /// How many workers; `None` is one per core.
    pub workers: Option<usize>,
    /// Whether each worker stays on a core of its own.
    pub pin: bool,
    /// Whether to refuse to start where the kernel refuses io_uring.
    pub require_io_uring: bool,
    /// What nobody may exceed.
    pub limits: Limits,
    /// What some users may use, in place of what the limits say of each.
    pub users: HashMap<Uid, Allowance>,
    /// Where the audit log is written.
    pub audit: Option<PathBuf>,
    /// Where it keeps what it has counted.
    pub state_dir: Option<PathBuf>,
    /// How the certificates of its services stand.
    pub certificates: Vec<Held>,
    /// Tokens that are not to be taken.
    pub revocations: Revocations,
    /// Where that list is kept.
    pub revocations_path: Option<PathBuf>,
    /// What the operator may not have meant, to be said once all of this is taken.
    pub remarks: Vec<Remark>,
    /// Where in its file stands what may be refused later.
    pub places: Places,
    /// The files that all of this was read from: whoever changes one changes the gateway.
    pub files: Vec<PathBuf>,
}

/// What is allowed, but perhaps not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// Usual where everything is new.
    Info(String),
    /// Hardly ever meant.
    Warning(String),
}

impl Remark {
    /// Says it.
    pub fn say(&self) {
        match self {
            Self::Info(words) => tracing::info!("{words}"),
            Self::Warning(words) => tracing::warn!("{words}"),
        }
    }
}

/// One listening address.
#[derive(Clone)]
pub struct Service {
    /// The names it answers to, in Host headers and in TLS.
    pub domains: Vec<Destination>,
    /// Where it listens; port 0 lets the system choose.
    pub listen_addr: SocketAddr,
    /// The certificate and settings of `wss`; `None` is `ws`.
    pub tls: Option<Arc<ServerConfig>>,
}

impl Config {
    /// A gateway with these services and the defaults for everything else; read from no file.
    pub fn new(name: &str, secrets: Vec<Secret>, services: Vec<Service>) -> Self {
        Self {
            name: name.to_owned(),
            secrets,
            services,
            workers: None,
            pin: true,
            require_io_uring: false,
            limits: Limits::default(),
            users: HashMap::new(),
            audit: None,
            state_dir: None,
            certificates: Vec::new(),
            revocations: Revocations::default(),
            revocations_path: None,
            remarks: Vec::new(),
            places: Places::default(),
            files: Vec::new(),
        }
    }
}

impl Config {
    /// Says what the operator may not have meant: to be called once it is taken, for what is refused is not so.
    pub fn say_remarks(&self) {
        self.remarks.iter().for_each(Remark::say);
    }

    /// What tokens and users may use.
    pub(crate) fn allowances(&self) -> Allowances {
        Allowances { token: self.limits.token, user: self.limits.user, users: self.users.clone() }
    }
}

impl Service {
    /// `wss` or `ws`.
    pub const fn kind(&self) -> &'static str {
        if self.tls.is_some() { "wss" } else { "ws" }
    }
}

/// A config that can't be taken. The operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: {source}{}", path.display(), hint(source))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it says, and where.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong at which line and column.
        source: Fault,
    },
    /// What its list of revoked tokens says, and where.
    #[error(transparent)]
    Revocations(RevocationError),
}

impl ConfigError {
    /// The kind of trouble.
    pub const fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::ConfigMissing,
            Self::Content { .. } => Code::ConfigContent,
            Self::Revocations(_) => Code::Book,
        }
    }
}

impl Config {
    /// Reads a config file and the files it names, at the start of a program; their paths are relative to its directory.
    ///
    /// # Errors
    /// The operator's, see [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, Reading::First)
    }

    /// As [`load`](Self::load), while a gateway of it runs: what its files have become may keep nobody waiting.
    ///
    /// # Errors
    /// As there.
    pub fn load_again(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, Reading::Again)
    }

    fn read(path: &Path, reading: Reading) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let content = |source| ConfigError::Content { path: path.to_owned(), source };
        let Contents { bytes: text, mode } = file::read(path, reading, FILE_BYTES_MAX).map_err(read)?;
        let text =
            String::from_utf8(text).map_err(|e| read(io::Error::new(io::ErrorKind::InvalidData, e)))?;
        let document = Document::parse(&text).map_err(content)?;
        let input: Input = document.read().map_err(content)?;
        let is_open = input.holds_secret() && open_to_others(mode);
        let base = Base { dir: path.parent().unwrap_or(Path::new("")), reading };
        let mut config = input.into_config(base).map_err(|refusal| match refusal {
            Refusal::Complaint(complaint) => content(complaint.locate(&document)),
            Refusal::List(source) => ConfigError::Revocations(source),
        })?;
        if is_open {
            let words = format!("{} holds the secret and others can read it: chmod 600 it", path.display());
            config.remarks.push(Remark::Warning(words));
        }
        config.places = Places::of(path, &document, config.services.len());
        for held in &mut config.certificates {
            config.places.tls_config(held.service).clone_into(&mut held.place);
        }
        config.files.push(path.to_owned());
        Ok(config)
    }
}

/// Where the files lie that a config names, and when they are read.
#[derive(Clone, Copy)]
struct Base<'a> {
    dir: &'a Path,
    reading: Reading,
}

impl Base<'_> {
    fn join(self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }

    /// Reads a file that others must not read if `is_secret` says so of what is in it: of another one something else is
    /// wrong, and that is what its owner has to hear.
    fn read_private(
        self,
        path: &Path,
        allow_readable: bool,
        is_secret: fn(&[u8]) -> bool,
    ) -> Result<Vec<u8>, String> {
        let read = file::read(&self.join(path), self.reading, FILE_BYTES_MAX);
        let Contents { bytes, mode } = read.map_err(|e| no_file(&e))?;
        if open_to_others(mode) && !allow_readable && is_secret(&bytes) {
            return Err(format!(
                "everybody on this machine can read or change this file (mode {:04o}): chmod 640 it, or set \
                 allow_readable_secrets: true",
                mode & 0o7777
            ));
        }
        Ok(bytes)
    }

    /// Reads the files of a chain and of its key.
    fn read_pair(
        self,
        (chain, key): (&Path, &Path),
        allow_readable: bool,
    ) -> Result<Certificate, WrongOfPair> {
        // One file for both may be named twice.
        if chain == key {
            let pem = self.read_private(key, allow_readable, holds_key).map(Zeroizing::new);
            let pem = pem.map_err(WrongOfPair::Key)?;
            return Certificate::from_pem(&pem).map_err(|e| WrongOfPair::Chain(e.to_string()));
        }
        // A chain without its key is public.
        let mut pem = Zeroizing::new(self.read_private(chain, true, holds_key).map_err(WrongOfPair::Chain)?);
        let key = self.read_private(key, allow_readable, holds_key).map(Zeroizing::new);
        let key = key.and_then(|key| key_alone(&key).map(|()| key).map_err(|e| e.to_string()));
        pem.push(b'\n');
        pem.extend_from_slice(&key.map_err(WrongOfPair::Key)?);
        Certificate::from_pem(&pem).map_err(|e| WrongOfPair::Chain(e.to_string()))
    }
}

/// Which of a chain and its key can't be used, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WrongOfPair {
    /// The chain, or the two together.
    Chain(String),
    /// The key.
    Key(String),
}

/// The certificate of two files, as a start reads it that is told of them.
///
/// # Errors
/// One can't be used.
pub(crate) fn read_pair(chain: &Path, key: &Path) -> Result<Certificate, WrongOfPair> {
    Base { dir: Path::new(""), reading: Reading::Again }.read_pair((chain, key), false)
}

/// Why a file that is named in the config can't be read; it stands at that line, so it needn't be named again.
fn no_file(e: &io::Error) -> String {
    format!("this file can't be read: {e}{}", hint_named(e, "the config's directory"))
}

const fn open_to_others(mode: u32) -> bool {
    mode & 0o006 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

    const SECRET: &str = "hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    /// A directory with one certificate in it.
    fn site() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["gw.example".to_owned()]).unwrap();
        let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
        private(&dir.path().join("gw.pem"), pem.as_bytes());
        fs::write(dir.path().join("open.pem"), pem).unwrap();
        fs::set_permissions(dir.path().join("open.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(dir.path().join("open-chain.pem"), made.cert.pem()).unwrap();
        fs::set_permissions(dir.path().join("open-chain.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        private(&dir.path().join("key-less.pem"), made.cert.pem().as_bytes());
        private(&dir.path().join("secret"), format!("{SECRET}\n").as_bytes());
        dir
    }

    fn private(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn load(dir: &tempfile::TempDir, text: &str) -> Result<Config, ConfigError> {
        let path = dir.path().join("gateway.yaml");
        private(&path, text.as_bytes());
        Config::load(&path)
    }

    #[test]
    fn the_published_format_is_taken() {
        let dir = site();
        let text = r#"
name: my-gateway
secret: [1, 2, 3]          # bytes; also "hex:..", "base64:..", or !File path
allow_weak_secret: true
services:
  - !Wss { domains: [gw.example], listen_addr: "0.0.0.0:443", tls_config: !File { domains: [gw.example], cert_path: gw.pem } }
  - !Ws  { domains: [gw.example, 127.0.0.1], listen_addr: "[::]:80" }
workers: 2
"#;
        let config = load(&dir, text).unwrap();
        assert_eq!((config.name.as_str(), config.workers, config.pin), ("my-gateway", Some(2), true));
        assert_eq!(config.secrets[0].as_bytes(), [1, 2, 3]);
        let kinds: Vec<_> = config.services.iter().map(Service::kind).collect();
        assert_eq!(kinds, ["wss", "ws"]);
        assert_eq!(config.services[1].listen_addr, "[::]:80".parse().unwrap());
        assert_eq!(config.services[1].domains[1], Destination::Ip([127, 0, 0, 1].into()));
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn what_is_not_taken_of_a_file_of_0_2_is_said_with_what_to_do() {
        let dir = site();
        let error = load(&dir, include_str!("../tests/earlier/acme.yaml")).err().unwrap().to_string();
        assert!(error.contains("line 7 column 15: services[0].tls_config: `!Acme` is 0.2's"), "{error}");
        assert!(error.contains("init --from"), "{error}");
    }

    #[test]
    fn what_is_optional_is_taken() {
        let dir = site();
        let text = "name: a\nsecret: !File secret\nold_secrets: [\"base64:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"]\n\
                    services:\n  - !Ws { domains: [], listen_addr: 127.0.0.1:0 }\ndrain_s: 5\npin: false\n\
                    limits: { dial_timeout_s: 2.5, head_timeout_s: 3, client_links_max: 7 }\n";
        let config = load(&dir, text).unwrap();
        assert_eq!(config.secrets.len(), 2);
        assert!(config.secrets[0] == config.secrets[1]);
        let limits = Limits {
            drain_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_millis(2500),
            head_timeout: Duration::from_secs(3),
            client_links_max: 7,
            ..Limits::default()
        };
        assert_eq!(config.limits, limits);
        assert!(!config.pin);
    }

    #[test]
    fn a_running_gateway_waits_for_no_pipe_in_the_place_of_a_file() {
        let dir = site();
        let text = "name: a\nsecret: !File secret\nservices:\n  - !Wss { domains: [gw.example], listen_addr: 127.0.0.1:0, \
                    tls_config: !File { cert_path: gw.pem } }\nrevocations: revoked.yaml\n";
        fs::write(dir.path().join("revoked.yaml"), "[]").unwrap();
        load(&dir, text).unwrap();
        let path = dir.path().join("gateway.yaml");
        for (file, place) in [
            ("secret", "secret: this file can't be read: it is a pipe"),
            ("gw.pem", "cert_path: this file can't be read: it is a pipe"),
            ("revoked.yaml", "revocations: this list can't be read: it is a pipe"),
            ("gateway.yaml", "gateway.yaml: it is a pipe"),
        ] {
            let (file, aside) = (dir.path().join(file), dir.path().join("aside"));
            Config::load_again(&path).unwrap();
            fs::rename(&file, &aside).unwrap();
            assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
            let Err(error) = Config::load_again(&path) else { panic!("{place}: it was taken") };
            let error = error.to_string();
            assert!(error.contains(place) && error.contains("regular files only"), "{error}");
            fs::rename(&aside, &file).unwrap();
        }
    }

    /// One change to a good file, and the words it must bring up.
    fn check(from: &str, to: &str, words: &[&str]) {
        let good = format!(
            "name: my-gateway\nsecret: \"{SECRET}\"\nservices:\n  - !Wss\n    domains: [gw.example]\n    \
             listen_addr: 127.0.0.1:443\n    tls_config: !File {{ cert_path: gw.pem }}\n  - !Ws {{ domains: [gw.example], \
             listen_addr: 127.0.0.1:80 }}\nworkers: 2\n"
        );
        assert!(good.contains(from), "{from:?} is not in the file");
        let dir = site();
        load(&dir, &good).unwrap();
        let Err(error) = load(&dir, &good.replacen(from, to, 1)) else { panic!("{to:?} was taken") };
        let error = error.to_string();
        for word in words.iter().chain(&["gateway.yaml: "]) {
            assert!(error.contains(word), "{to:?}: {error:?} lacks {word:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_what_would_be_right() {
        let place = |line, path| [format!("line {line} column "), format!(": {path}: ")];
        let table: &[(&str, &str, u32, &str, &[&str])] = &[
            ("workers: 2", "worker: 2", 9, "", &["unknown key, did you mean `workers`?"]),
            ("workers: 2", "workers: 0", 9, "workers", &["1 to 1024"]),
            ("workers: 2", "workers: two", 9, "workers", &["a whole number, 0 or more, found a text"]),
            ("workers: 2", "drain_s: 99999", 9, "drain_s", &["0 to 3600"]),
            ("workers: 2", "limits: { dial_timeout_s: 0 }", 9, "limits.dial_timeout_s", &["more than 0"]),
            (
                "workers: 2",
                "limits: { sesions: 1 }",
                9,
                "limits",
                &["did you mean `sessions`? That does not belong here but to `limits.token`"],
            ),
            (
                "workers: 2",
                "limits: { token: { sesions: 1 } }",
                9,
                "limits.token",
                &["unknown key, did you mean `sessions`?"],
            ),
            (
                "domains: [gw.example]\n",
                "domain: [gw.example]\n",
                5,
                "services[0]",
                &["`domain` does not belong here but to an endpoint", "did you mean `domains`?"],
            ),
            ("workers: 2", "limits: { dial_timeout: 1 }", 9, "limits", &["did you mean `dial_timeout_s`?"]),
            ("name: my-gateway", "name: \"\"", 1, "name", &["1 to 128 bytes"]),
            (
                "- !Ws ",
                "- !Wsx ",
                8,
                "services[1]",
                &["unknown tag, did you mean `!Wss`? Expected `!Wss` or `!Ws`"],
            ),
            (
                "- !Ws {",
                "- {",
                8,
                "services[1]",
                &["expected !Wss or !Ws before the service, found keys and values"],
            ),
            ("- !Ws {", "- !Ws { tls: 1,", 8, "services[1]", &["unknown key; expected `domains`"]),
            ("127.0.0.1:80", "127.0.0.1", 8, "services[1].listen_addr", &["expected IP:PORT, such as"]),
            (
                "127.0.0.1:80",
                "127.0.0.1:443",
                8,
                "services[1].listen_addr",
                &["services[0] listens there already"],
            ),
            ("[gw.example]", "[]", 5, "services[0].domains", &["expected the names"]),
            (
                "[gw.example]",
                "[\"gw .example\"]",
                5,
                "services[0].domains[0]",
                &["expected a host name such as gw.example"],
            ),
            ("!File", "!Fetch", 7, "services[0].tls_config", &["unknown tag; expected `!File`"]),
            ("!File", "!Acme", 7, "services[0].tls_config", &["`!Acme` is 0.2's"]),
            (
                "gw.pem",
                "no.pem",
                7,
                "services[0].tls_config.cert_path",
                &["this file can't be read: No such file"],
            ),
            ("gw.pem", "open.pem", 7, "services[0].tls_config.cert_path", &["mode 0644", "chmod 640"]),
            ("gw.pem", "open-chain.pem", 7, "services[0].tls_config.cert_path", &["no private key"]),
            ("gw.pem", "key-less.pem", 7, "services[0].tls_config.cert_path", &["no private key"]),
            (
                "cert_path",
                "domains: [other.example], cert_path",
                5,
                "services[0].domains[0]",
                &["tls_config.domains does not name this one"],
            ),
            (
                SECRET,
                "hex:00",
                2,
                "secret",
                &["a secret of 1 bytes", "at least 32", "allow_weak_secret: true"],
            ),
            (SECRET, "hex:zz", 2, "secret", &["not hexadecimal"]),
            (SECRET, "hunter2", 2, "secret", &["\"hex:..\", \"base64:..\" or !File path"]),
        ];
        for (from, to, line, path, words) in table {
            let place = place(line, path);
            let mut words = words.to_vec();
            words.push(&place[0]);
            if !path.is_empty() {
                words.push(&place[1]);
            }
            check(from, to, &words);
        }
    }

    #[test]
    fn a_missing_part_is_named() {
        check("name: my-gateway\n", "", &["`name` is missing"]);
        check("    listen_addr: 127.0.0.1:443\n", "", &["services[0]", "`listen_addr` is missing"]);
        check("workers: 2\n", "workers: \"2\n", &["line 9 column 10", "not YAML"]);
        check("workers: 2\n", "pin: 2\n", &["pin: ", "expected true or false, found a number"]);
    }

    #[test]
    fn files_that_others_can_read_are_taken_when_the_operator_says_so() {
        let dir = site();
        let text = format!(
            "name: a\nsecret: \"{SECRET}\"\nallow_readable_secrets: true\nservices:\n  - !Wss {{ domains: [gw.example], \
             listen_addr: 127.0.0.1:0, tls_config: !File {{ cert_path: open.pem }} }}\n"
        );
        assert!(load(&dir, &text).is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let Err(error) = Config::load(Path::new("/nowhere/gateway.yaml")) else { panic!("it is there") };
        assert!(error.to_string().starts_with("/nowhere/gateway.yaml: No such file"));
        let dir = site();
        private(&dir.path().join("gateway.yaml"), &[0xff, 0xfe]);
        let Err(error) = Config::load(&dir.path().join("gateway.yaml")) else { panic!("it is text") };
        assert!(error.to_string().contains("utf-8"), "{error}");
    }
}
