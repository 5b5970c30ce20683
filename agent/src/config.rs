//! Role: agent.yaml: where it is looked for, what it may say, what is wrong with it.
//! Invariants: an unknown key is an error and never ignored; every error names the file, and the line
//! where it has one: what is no [`Fault`] of YAML is an [`Unfit`], which there is no way to say without its place; a token
//! never shows.
//! See: docs/configuration.md.

use std::{
    ffi::OsString,
    fs, io,
    num::{NonZeroU32, NonZeroUsize},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use narrowlink_dataplane::{
    peer::{Gateway, LoadError, demand::TICK, load_distinct},
    run::{
        file::{self, Reading},
        process::NoConfig,
    },
};
use narrowlink_proto::{
    code::Code,
    endpoint::{self, Endpoint, SelfHosted},
    limits::Limits,
    token::{Kind, peek_unverified},
    unread::hint,
    yaml::{Document, Fault, Located, Outline, Spot},
};
use serde::Deserialize;

use crate::{
    identity::{IdentityError, default_state_dir},
    rules::{Rule, Rules},
};

/// The file's name.
pub const FILE_NAME: &str = "agent.yaml";
/// Workers at the most.
pub(crate) const WORKERS_MAX: usize = 1024;
/// It at the most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How what an endpoint names is read.
type Load = fn(&SelfHosted, &Path) -> Result<Gateway, Located<LoadError>>;

/// What an agent is to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its gateways; it holds a link to each.
    pub endpoints: Vec<SelfHosted>,
    /// How many lanes each gateway gets.
    pub lanes: LaneRange,
    /// How many threads carry them; `None` is one per core, 4 at the most.
    pub workers: Option<NonZeroUsize>,
    /// How often lanes that nobody needs are retired; tests do it more often.
    pub lanes_tick: Duration,
    /// Where the instance key is kept; `None` for the system's usual place.
    pub state_dir: Option<PathBuf>,
    /// What may be dialled at all.
    pub rules: Rules,
    /// What relative paths are relative to.
    pub base: PathBuf,
    /// Where all of it stands.
    pub outline: Outline,
    /// Refuse to run on epoll.
    pub require_io_uring: bool,
    /// Sessions may finish for so long once the agent was told to stop.
    pub drain: Duration,
    /// What is allowed but unwise; for the log.
    pub warnings: Vec<String>,
}

/// How many connections an agent has to one gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LaneRange {
    /// Idle lanes that are always there.
    pub min: u32,
    /// Lanes in all, idle and busy: so also the sessions at the same time.
    pub max: u32,
}

impl Default for LaneRange {
    /// As many sessions as a gateway gives one token by default.
    fn default() -> Self {
        Self { min: 1, max: Limits::default().token.sessions.map_or(u32::MAX, NonZeroU32::get) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    lanes: LaneRange,
    #[serde(default)]
    workers: Option<usize>,
    #[serde(default)]
    state_dir: Option<PathBuf>,
    #[serde(default)]
    allow: Option<Vec<Rule>>,
    #[serde(default)]
    deny: Vec<Rule>,
}

/// A configuration that can't be used: the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error(transparent)]
    NotFound(#[from] NoConfig),
    /// It can't be read.
    #[error("{path} can't be read: {source}{}", hint(source))]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what agent.yaml looks like.
    #[error("{}: {source}", path.display())]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// What, and in which line and column.
        source: Fault,
    },
    /// Something that it says can't be used.
    #[error(transparent)]
    Unfit(#[from] Located<Unfit>),
}

/// What can't be used though it is written as it should be; where that stands is known of each.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// A file that an endpoint names, or the endpoint itself.
    #[error(transparent)]
    Load(LoadError),
    /// A token that no gateway takes any more.
    #[error("{0}")]
    Ended(String),
    /// The instance key can't be kept where it should be.
    #[error("{0}; without it no gateway can tell a restart of this agent from a stranger")]
    StateDir(IdentityError),
    /// Something else stands where the token should.
    #[error(
        "what stands here, or in the file that is named here, is no token, or a part of one; it is sent to nobody. Give the \
         token that narrowlink-tokengen made, whole"
    )]
    NoToken,
    /// With a client's token this would be a client.
    #[error("this token is not an agent's; ask for a token of kind !Agent")]
    NotAnAgent,
}

impl ConfigError {
    /// The kind of trouble.
    pub const fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::Read { .. } => Code::ConfigMissing,
            Self::Yaml { .. } => Code::ConfigContent,
            Self::Unfit(Located { what, .. }) => match what {
                Unfit::Load(load) => load.code(),
                Unfit::Ended(_) => Code::Token,
                Unfit::StateDir(_) => Code::StateFile,
                Unfit::NoToken => Code::NoToken,
                Unfit::NotAnAgent => Code::WrongKind,
            },
        }
    }
}

impl Config {
    /// A configuration with defaults for all but the endpoints.
    pub fn new(endpoints: Vec<SelfHosted>, base: PathBuf) -> Self {
        Self {
            endpoints,
            lanes: LaneRange::default(),
            workers: None,
            lanes_tick: TICK,
            state_dir: None,
            rules: Rules::default(),
            base,
            outline: Outline::default(),
            require_io_uring: false,
            drain: Limits::default().drain_timeout,
            warnings: Vec::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = file::read_text(path, Reading::First, FILE_BYTES_MAX)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text, path)?;
        config.warn_of_readable_tokens(path);
        Ok(config)
    }

    /// Reads a file's text; `path` is for messages and for what is relative to it.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let yaml = |source| ConfigError::Yaml { path: path.to_owned(), source };
        let document = Document::parse(text).map_err(yaml)?;
        let file: File = document.read().map_err(yaml)?;
        let endpoints = endpoint::settle(&document, path, file.endpoints).map_err(yaml)?;
        let range = file.lanes;
        if range.max == 0 || range.min > range.max {
            let no_room = "no room: max must be at least 1 and at least min";
            return Err(yaml(document.fault(&["lanes".into()], no_room)));
        }
        let workers = match file.workers.map(|count| (count, NonZeroUsize::new(count))) {
            None => None,
            Some((count, Some(workers))) if count <= WORKERS_MAX => Some(workers),
            Some(_) => {
                let what =
                    format!("expected 1 to {WORKERS_MAX}, or no such line for one per core (4 at the most)");
                return Err(yaml(document.fault(&["workers".into()], what)));
            }
        };
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        let config = Self { outline: document.outline(path), ..Self::new(endpoints, base) };
        let state_dir = file.state_dir.map(|dir| config.base.join(dir));
        Ok(Self { lanes: range, workers, state_dir, rules: Rules::new(file.allow, file.deny), ..config })
    }

    /// Reads again what one of the endpoints names, while the agent runs.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`].
    pub(crate) fn gateway_again(&self, endpoint: &SelfHosted) -> Result<Gateway, ConfigError> {
        self.gateway(endpoint, Gateway::load_again)
    }

    fn gateway(&self, endpoint: &SelfHosted, load: Load) -> Result<Gateway, ConfigError> {
        let gateway = load(endpoint, &self.base).map_err(|e| e.map(Unfit::Load))?;
        let unfit = match peek_unverified(gateway.token()) {
            Some(peek) if peek.kind == Kind::Agent => return Ok(gateway),
            Some(_) => Unfit::NotAnAgent,
            // It may be a secret: nobody is shown it, and no gateway is sent it.
            None => Unfit::NoToken,
        };
        Err(endpoint.token_spot().about(unfit).into())
    }

    /// The file that an endpoint's token lies in; `None` when it stands in the configuration itself.
    pub fn token_place(&self, endpoint: &SelfHosted) -> Option<PathBuf> {
        endpoint.token_file.as_ref().map(|file| self.base.join(file))
    }

    /// Every file that it names.
    pub fn files(&self) -> Vec<PathBuf> {
        let of = |endpoint: &SelfHosted| {
            let ca = endpoint.ca_file.as_ref().map(|file| self.base.join(file));
            [self.token_place(endpoint), ca].into_iter().flatten().collect::<Vec<_>>()
        };
        self.endpoints.iter().flat_map(of).collect()
    }

    /// How an endpoint gets another token, for whoever has to see to it: its file is read again at each try, and looked at
    /// while a link stands; this configuration is not.
    pub(crate) fn next_token(&self, endpoint: &SelfHosted) -> String {
        match self.token_place(endpoint) {
            Some(file) => {
                format!("ask for a new one, which this agent takes as soon as it is in {}", file.display())
            }
            None => format!(
                "ask for a new one, write it to {} and start this agent again; from a token_file it would be taken at once",
                endpoint.token_spot()
            ),
        }
    }

    /// Reads what all the endpoints name, at a start.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`].
    pub fn gateways(&self) -> Result<Vec<Gateway>, ConfigError> {
        self.endpoints.iter().map(|endpoint| self.gateway(endpoint, Gateway::load)).collect()
    }

    /// What is to be known at `now` (seconds since 1970) of tokens that have ended (true) or soon will, once of each; a token
    /// that can't be read is said elsewhere.
    pub fn endings(&self, now: u64) -> Vec<(Located<String>, bool)> {
        // A start has read them before; a pipe has no second reading.
        let gateways = load_distinct(&self.endpoints, &self.base);
        let ending = |(endpoint, gateway): (&SelfHosted, Gateway)| {
            let (words, has_ended) = peek_unverified(gateway.token())?.ending(now)?;
            Some((endpoint.token_spot().about(words), has_ended))
        };
        gateways.into_iter().filter_map(ending).collect()
    }

    /// Where the instance key is kept, and how a message calls that place; `None` where nothing says. `env` reads the
    /// environment.
    pub(crate) fn state_place(&self, env: impl Fn(&str) -> Option<OsString>) -> Option<(PathBuf, String)> {
        match &self.state_dir {
            Some(dir) => Some((dir.clone(), self.state_spot().to_string())),
            None => default_state_dir(env).map(|dir| (dir.clone(), dir.display().to_string())),
        }
    }

    /// Where `state_dir` stands.
    pub(crate) fn state_spot(&self) -> Spot {
        self.outline.spot(&["state_dir".into()])
    }

    fn warn_of_readable_tokens(&mut self, path: &Path) {
        for endpoint in &self.endpoints {
            let holder = self.token_place(endpoint).unwrap_or_else(|| path.to_owned());
            let warning = format!(
                "{} holds a token and can be read by every user of this machine: chmod 600 it",
                holder.display()
            );
            if is_readable_by_others(&holder) && !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }
}

fn is_readable_by_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "endpoints: [!SelfHosted { gateway: 'gw.example:443', token: abc }]\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("etc/agent.yaml"))
    }

    #[test]
    fn the_published_example_is_taken_and_its_paths_are_relative_to_the_file() {
        let text = "endpoints:
  - !SelfHosted { gateway: 'gw.example:443', token: eyJ.a.b, protocol: Wss }
  - !SelfHosted { gateway: 'gw.example:80', token_file: t, protocol: Ws, framing: raw }
lanes: { min: 0, max: 8 }
state_dir: state
allow: [10.0.0.0/8, '*.lan:22']
deny: ['10.0.0.1']
";
        let config = parse(text).unwrap();
        assert_eq!(config.endpoints.len(), 2);
        assert_eq!(config.lanes, LaneRange { min: 0, max: 8 });
        assert_eq!(config.state_dir.as_deref(), Some(Path::new("etc/state")));
        assert_eq!(config.base, Path::new("etc"));
        let config = parse(&format!("{ONE}lanes: {{ min: 3 }}\n")).unwrap();
        assert_eq!(config.lanes, LaneRange { min: 3, max: 1024 });
    }

    #[test]
    fn a_file_of_0_2_is_told_line_by_line_what_to_change_until_it_is_taken() {
        let mend = |text: &str, steps: &[(&str, &str, &str)]| {
            let mut text = text.to_owned();
            for (says, old, new) in steps {
                let error = parse(&text).unwrap_err().to_string();
                assert!(error.contains(says), "{error}");
                assert!(text.contains(old), "{old:?} in {text}");
                text = text.replace(old, new);
            }
            let config = parse(&text).unwrap();
            assert_eq!(config.endpoints[0].gateway, "gateway.domain.tld:443");
        };
        let publish = "publish: eyJ0eX....kNHYQ_4 # token for publishing webserver (optional)\n";
        mend(
            include_str!("../tests/earlier/flat.yaml"),
            &[
                (
                    "line 1 column 1: this is how 0.1 wrote it",
                    "gateway: gateway.domain.tld:443 # address of the gateway\ntoken: eyJ0eX....kNHYQ_4 # token for authentication\n",
                    "endpoints: [!SelfHosted { gateway: gateway.domain.tld:443, token: eyJ0eX....kNHYQ_4 }]\n",
                ),
                ("line 2 column 1: `publish` is 0.2's", publish, ""),
                ("line 2 column 1: this is how 0.1 wrote it", "service_type: Wss", ""),
            ],
        );
        let e2ee = "e2ee:\n  - !PassPhrase # Enabling end to end encryption (optional)\n    phrase: \"your_key\" # key for end to end encryption\n    \
                    policy: Lax # Lax or Strict (default: Lax) Lax allows clients to connect without a key, while Strict requires a key\n";
        mend(
            include_str!("../tests/earlier/endpoints.yaml"),
            &[
                ("line 5 column 5: endpoints[0]: `publish` is 0.2's", &format!("    {publish}"), ""),
                ("line 6 column 1: this is 0.2's end-to-end encryption", e2ee, ""),
            ],
        );
        let error = parse(&format!("{ONE}key: \"your_key\"\n")).unwrap_err().to_string();
        assert!(error.contains("end-to-end encryption") && !error.contains("your_key"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_with_file_line_and_what_is_valid() {
        let cases = [
            ("", &["etc/agent.yaml: ", "line 1 column 1: `endpoints` is missing"][..]),
            (
                "endpoints: []\n",
                &["etc/agent.yaml: line 1 column 12: endpoints: ", "name at least one gateway"],
            ),
            ("endpoints: [!Selfhosted {}]\n", &["line 1", "did you mean `!SelfHosted`?"]),
            (
                "endpoints:\n  - !SelfHosted { gateway: a:1, tokn: x }\n",
                &["line 2 column 33: endpoints[0]: unknown key, did you mean `token`?"],
            ),
            (
                "endpoints: [!SelfHosted { gateway: gw, token: x }]\n",
                &["endpoints[0].gateway: ", "HOST:PORT"],
            ),
            ("endpoints: [!SelfHosted { gateway: 'gw:1' }]\n", &["one of `token` and `token_file`"]),
            (
                "endpoints: [!SelfHosted { gateway: 'gw:1', token: x, protocol: wss }]\n",
                &["did you mean `Wss`?"],
            ),
        ];
        for (text, parts) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{text:?} gave {error:?}");
        }
        let more = [
            ("lane: { min: 1 }\n", &["did you mean `lanes`?", "line 2 column 1: "][..]),
            ("lanes: { min: 2, max: 1 }\n", &["line 2 column 8: lanes: no room"]),
            ("lanes: { max: 0 }\n", &["max must be at least 1"]),
            ("lanes: { min: -1 }\n", &["line 2 column 15: lanes.min: ", "from 0 to 4294967295"]),
            ("deny: ['10.0.0.0/33']\n", &["line 2 column 7: deny[0]: this is neither"]),
            ("allow: ['a b']\n", &["allow[0]: ", "a host can't contain ' '"]),
            ("workers: 0\n", &["line 2 column 10: workers: ", "expected 1 to 1024"]),
            ("workers: 1025\n", &["expected 1 to 1024, or no such line for one per core"]),
            ("pin: true\n", &["`pin` does not belong here but to the top level of gateway.yaml"]),
        ];
        for (line, parts) in more {
            let error = parse(&format!("{ONE}{line}")).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{line:?} gave {error:?}");
        }
    }

    #[test]
    fn a_client_can_not_pass_for_an_agent_by_mistake() {
        let keys = narrowlink_proto::token::Keys::new(&[7; 32]);
        let token = |kind: &str| {
            let claims = format!(
                r#"{{"kind":"{kind}","uid":"0d9c1a52-6d5f-4f0b-9c55-2f3c8b1e7a10","name":"n","jti":"j","exp":9}}"#
            );
            keys.sign(&serde_json::from_str(&claims).unwrap()).unwrap()
        };
        let gateways = |token: &str| {
            let endpoint = format!("{{ gateway: 'gw:1', protocol: Ws, token: {token} }}");
            parse(&format!("endpoints: [!SelfHosted {endpoint}]")).unwrap().gateways()
        };
        assert!(gateways(&token("agent")).is_ok());
        for other in ["anything", "eyJhbGciOiJIUzI1NiJ9.eyJr", &token("agent")[..60]] {
            let error = gateways(other).err().unwrap().to_string();
            assert!(error.contains("is no token"), "{error}");
        }
        let error = gateways(&token("client")).err().unwrap().to_string();
        assert!(error.contains("!Agent"), "{error}");
    }

    #[test]
    fn what_only_the_system_refuses_is_said_with_file_and_line_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(dir.path().join("t"), "two words").unwrap();
        let wrong = |endpoint: &str| {
            let text = format!(
                "endpoints:\n  - !SelfHosted {{ gateway: 'ws://gw', token: x }}\n  - !SelfHosted\n{endpoint}"
            );
            let config = Config::parse(&text, &path).unwrap();
            let error = config.gateway(&config.endpoints[1], Gateway::load).err().unwrap().to_string();
            error.strip_prefix(&format!("{}: ", path.display())).map(str::to_owned).expect(&error)
        };
        let (ws, wss) = ("    gateway: ws://gw.example\n", "    gateway: wss://gw.example\n");
        for (gateway, key, says) in [
            (
                ws,
                "    token_file: none",
                "line 5 column 17: endpoints[1].token_file: this file can't be read: No such",
            ),
            (ws, "    token_file: t", "line 5 column 17: endpoints[1].token_file: "),
            (ws, "    token: x", "line 5 column 12: endpoints[1].token: what stands here"),
            (wss, "    token: x\n    ca_file: t", "line 6 column 14: endpoints[1].ca_file: "),
        ] {
            let said = wrong(&format!("{gateway}{key}\n"));
            assert!(said.starts_with(says), "{key:?}: {said}");
        }
    }

    #[test]
    fn a_token_that_everybody_can_read_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, ONE).unwrap();
        for (mode, warnings) in [(0o644, 1), (0o640, 0), (0o600, 0)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Config::load(&path).unwrap().warnings.len(), warnings, "{mode:o}");
        }
        let missing = Config::load(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none can't be read: No such file"), "{missing}");
    }
}
