//! Role: client.yaml: where it is looked for, what it may say, what is wrong with it.
//! Invariants: an unknown key is an error and never ignored; every error names the file, and the line
//! where it has one: what is no [`Fault`] of YAML is an [`Unfit`], which there is no way to say without its place; a token
//! never shows.
//! See: docs/configuration.md.

use std::{
    fs, io,
    num::NonZeroUsize,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use narrowlink_dataplane::{
    peer::{Gateway, LoadError, load_distinct, read_token_again},
    run::{
        file::{self, Reading},
        process::NoConfig,
    },
};
use narrowlink_proto::{
    endpoint::{self, Endpoint, FramingChoice, SecretText, SelfHosted},
    token::{Kind, peek_unverified},
    unread::hint,
    yaml::{Document, Fault, Located},
};
use serde::Deserialize;

/// The file's name.
pub const FILE_NAME: &str = "client.yaml";
/// Workers at the most.
const WORKERS_MAX: usize = 1024;
/// It at the most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Which gateways a client may use.
#[derive(Debug, Clone)]
pub struct Config {
    /// In the order in which they are tried.
    pub endpoints: Vec<SelfHosted>,
    /// The file, for messages; what relative paths are relative to is its directory.
    pub path: PathBuf,
    /// How many threads carry a forward's connections; `None` is one.
    pub workers: Option<NonZeroUsize>,
    /// Refuse to run on epoll.
    pub require_io_uring: bool,
    /// What is allowed but unwise; for the log.
    pub warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    workers: Option<usize>,
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
    /// It is not what client.yaml looks like.
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
    /// Something else stands where a token stood when the program started.
    #[error(
        "what stands in the file that is named here is no token, or a part of one; it is sent to nobody: write the new token \
         there, whole"
    )]
    NoToken,
    /// With an agent's token this would be an agent.
    #[error("this token is not a client's; ask for a token of kind !Client")]
    NotAClient,
}

impl Config {
    /// A configuration of these endpoints; `path` is for messages and for what is relative to it.
    pub fn new(endpoints: Vec<SelfHosted>, path: PathBuf) -> Self {
        Self { endpoints, path, workers: None, require_io_uring: false, warnings: Vec::new() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = file::read_text(path, Reading::First, FILE_BYTES_MAX)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text, path)?;
        config.warn_of_readable_tokens();
        Ok(config)
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let yaml = |source| ConfigError::Yaml { path: path.clone(), source };
        let document = Document::parse(text).map_err(yaml)?;
        let file: File = document.read().map_err(yaml)?;
        let endpoints = endpoint::settle(&document, &path, file.endpoints).map_err(yaml)?;
        let workers = match file.workers.map(|count| (count, NonZeroUsize::new(count))) {
            None => None,
            Some((count, Some(workers))) if count <= WORKERS_MAX => Some(workers),
            Some(_) => {
                let what = format!("expected 1 to {WORKERS_MAX}, or no such line for one");
                return Err(yaml(document.fault(&["workers".into()], what)));
            }
        };
        Ok(Self { workers, ..Self::new(endpoints, path) })
    }

    /// How payload is to travel, whatever the file says.
    #[must_use]
    pub fn with_framing(mut self, framing: FramingChoice) -> Self {
        for endpoint in &mut self.endpoints {
            endpoint.framing = framing;
        }
        self
    }

    /// Reads what the endpoints name.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`].
    pub fn gateways(&self) -> Result<Vec<Gateway>, ConfigError> {
        self.endpoints.iter().map(|endpoint| self.gateway(endpoint)).collect()
    }

    /// Reads the token of the endpoint at `index` again, while a forward runs.
    ///
    /// # Errors
    /// The user's; see [`ConfigError`]. What is no client's token is one, so that it is sent to nobody.
    pub(crate) fn token_again(&self, index: usize) -> Result<SecretText, ConfigError> {
        let endpoint = &self.endpoints[index];
        let token = read_token_again(endpoint, self.base()).map_err(|e| e.map(Unfit::Load))?;
        let unfit = match peek_unverified(token.expose()) {
            Some(peek) if peek.kind == Kind::Client => return Ok(token),
            Some(_) => Unfit::NotAClient,
            None => Unfit::NoToken,
        };
        Err(endpoint.token_spot().about(unfit).into())
    }

    fn gateway(&self, endpoint: &SelfHosted) -> Result<Gateway, ConfigError> {
        let gateway = Gateway::load(endpoint, self.base()).map_err(|e| e.map(Unfit::Load))?;
        // What is no token at all is for the gateway to say.
        match peek_unverified(gateway.token()) {
            Some(peek) if peek.kind != Kind::Client => {
                Err(endpoint.token_spot().about(Unfit::NotAClient).into())
            }
            _ => Ok(gateway),
        }
    }

    /// What is to be known at `now` (seconds since 1970) of tokens that have ended or soon will, once of each; a token that
    /// can't be read is said elsewhere, and an end of the first by whatever fails for it.
    pub fn endings(&self, now: u64) -> Vec<Located<String>> {
        // A pipe is read once, and that is for what is asked.
        let gateways = load_distinct(&self.endpoints, self.base()).into_iter().enumerate();
        let ending = |(index, (endpoint, gateway)): (usize, (&SelfHosted, Gateway))| {
            let (words, has_ended) = peek_unverified(gateway.token())?.ending(now)?;
            (index > 0 || !has_ended).then(|| endpoint.token_spot().about(words))
        };
        gateways.filter_map(ending).collect()
    }

    /// The file that holds an endpoint's token.
    pub fn token_place(&self, endpoint: &SelfHosted) -> PathBuf {
        endpoint.token_file.as_ref().map_or_else(|| self.path.clone(), |file| self.base().join(file))
    }

    fn base(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn warn_of_readable_tokens(&mut self) {
        let mut readable: Vec<_> = self.endpoints.iter().map(|endpoint| self.token_place(endpoint)).collect();
        readable.dedup();
        readable.retain(|path| is_readable_by_others(path));
        self.warnings.extend(readable.iter().map(|path| {
            format!(
                "{} holds a token and can be read by every user of this machine: chmod 600 it",
                path.display()
            )
        }));
    }
}

fn is_readable_by_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        id::Uid,
        token::{Claims, Keys},
    };

    use super::*;

    const ONE: &str = "endpoints: [!SelfHosted { gateway: 'gw.example:443', token: abc }]\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("etc/client.yaml"))
    }

    #[test]
    fn the_published_example_is_taken() {
        let text = "endpoints:
  - !SelfHosted { gateway: 'gw.example:443', token: eyJ.a.b, protocol: Wss }
  - !SelfHosted { gateway: 'gw.example:80', token_file: t, protocol: Ws, framing: raw }
workers: 2
";
        let config = parse(text).unwrap();
        let places: Vec<_> = config.endpoints.iter().map(|endpoint| config.token_place(endpoint)).collect();
        assert_eq!(places, [Path::new("etc/client.yaml"), Path::new("etc/t")]);
        assert_eq!(config.workers.map(NonZeroUsize::get), Some(2));
        let config = config.with_framing(FramingChoice::Framed);
        assert!(config.endpoints.iter().all(|endpoint| endpoint.framing == FramingChoice::Framed));
    }

    #[test]
    fn what_is_wrong_is_said_with_file_line_and_what_is_valid() {
        let cases = [
            ("", &["etc/client.yaml: ", "`endpoints` is missing"][..]),
            ("{}", &["`endpoints` is missing"]),
            ("endpoints: []\n", &["etc/client.yaml: ", "name at least one gateway"]),
            ("endpoints: [!Cloud {}]\n", &["unknown tag; expected `!SelfHosted`", "line 1"]),
            ("endpoints:\n  - !SelfHosted { gatway: a:1 }\n", &["did you mean `gateway`?", "line 2"]),
            (
                "endpoints: [!SelfHosted { gateway: gw, token: x }]\n",
                &["endpoints[0].gateway: ", "HOST:PORT"],
            ),
            (
                "endpoints: [!SelfHosted { gateway: 'g:1', token: x, token_file: y }]\n",
                &["exclude each other"],
            ),
            (
                "endpoints: [!SelfHosted { gateway: 'g:1', token: x, framing: ws }]\n",
                &["unknown word; expected", "`framed`"],
            ),
            (
                "endpoints: []\nlanes: {}\n",
                &["`lanes` does not belong here but to the top level of agent.yaml", "line 2"],
            ),
            ("endpoints: [\n", &["not YAML"]),
            (&format!("{ONE}workers: 0\n"), &["line 2 column 10: workers: ", "expected 1 to 1024"]),
            (&format!("{ONE}workers: 1025\n"), &["expected 1 to 1024, or no such line for one"]),
        ];
        for (text, parts) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_file_of_0_2_is_taken_or_told_what_to_change() {
        let text = include_str!("../tests/earlier/endpoints.yaml");
        assert_eq!(parse(text).unwrap().endpoints[0].gateway, "gateway.domain.tld:443");
        let acl = text.replace("    # acl:", "    acl:").replace("    #   -", "      -");
        for (text, says) in [
            (include_str!("../tests/earlier/map.yaml"), "line 9 column 1: `map` is 0.2's"),
            (&acl, "line 5 column 5: endpoints[0]: `acl` is 0.2's"),
            (
                "gateway: gateway.domain.tld:443\ntoken: eyJ0eX....kNHYQ_4\n",
                "line 1 column 1: this is how 0.1 wrote it",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_file_that_an_endpoint_names_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let text = "endpoints: [!SelfHosted { gateway: 'gw:1', token_file: none }]";
        fs::write(&path, text).unwrap();
        let error = Config::load(&path).unwrap().gateways().err().unwrap().to_string();
        let says = "line 1 column 56: endpoints[0].token_file: this file can't be read: No such file";
        assert_eq!(error.find(says), Some(path.display().to_string().len() + 2), "{error}");
    }

    #[test]
    fn an_end_is_said_once_of_each_token_and_that_of_the_first_by_what_fails() {
        let token = |exp: u64| {
            let claims = Claims::new(Kind::Client, Uid::nil(), "n", exp, "j");
            Keys::new(&[7; 32]).sign(&claims).unwrap()
        };
        let now = 1_795_219_200;
        let (old, soon, good) = (token(now - 9), token(now + 99), token(now + 9_999_999));
        let lines = |tokens: [&str; 3]| -> Vec<String> {
            let endpoint = |token| format!("  - !SelfHosted {{ gateway: 'ws://gw', token: {token} }}\n");
            let text = format!("endpoints:\n{}", tokens.map(endpoint).concat());
            parse(&text).unwrap().endings(now).iter().map(ToString::to_string).collect()
        };
        let place = |line: usize, index: usize| {
            format!("etc/client.yaml: line {line} column 46: endpoints[{index}].token: the token expire")
        };
        assert_eq!(lines([&old, &old, &good]), Vec::<String>::new());
        let said = lines([&soon, &soon, &old]);
        assert!(
            said.len() == 2 && said[0].starts_with(&place(2, 0)) && said[1].starts_with(&place(4, 2)),
            "{said:?}"
        );
        assert_eq!(lines([&good, &old, &old]).len(), 1);
    }

    #[test]
    fn a_token_that_is_read_again_must_be_a_clients_and_no_error_shows_what_else_it_is() {
        let claims = |kind: Kind| Claims::new(kind, Uid::nil(), "n", 9, "j");
        let token = |kind| Keys::new(&[7; 32]).sign(&claims(kind)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        let text = "endpoints: [!SelfHosted { gateway: 'gw:1', token_file: t }]";
        let config = Config::parse(text, &dir.path().join(FILE_NAME)).unwrap();
        let good = token(Kind::Client);
        fs::write(&file, format!("{good}\n")).unwrap();
        assert_eq!(config.token_again(0).unwrap().expose(), good);
        for (text, says) in [
            (token(Kind::Agent), "is not a client's; ask for a token of kind !Client"),
            ("hunter2".to_owned(), "in the file that is named here is no token, or a part of one"),
            (good[..good.len() / 2].to_owned(), "write the new token there, whole"),
            ("two words".to_owned(), "should hold one token and nothing else"),
            (String::new(), "should hold one token and nothing else"),
        ] {
            fs::write(&file, &text).unwrap();
            let error = config.token_again(0).map(drop).unwrap_err().to_string();
            assert!(error.contains(says) && (text.is_empty() || !error.contains(&text)), "{error}");
        }
    }

    #[test]
    fn a_token_that_everybody_can_read_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "endpoints: [!SelfHosted { gateway: 'gw:1', token: x }]").unwrap();
        for (mode, warnings) in [(0o644, 1), (0o640, 0), (0o600, 0)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Config::load(&path).unwrap().warnings.len(), warnings, "{mode:o}");
        }
    }
}
