//! Role: the shape of gateway.yaml, and what makes sense in it.
//! Invariants: an unknown key is an error, for it might be a restriction.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use narrowlink_proto::{
    id::Uid,
    limits::Limits,
    policy::NamePattern,
    target::Destination,
    token::{Allowance, SECRET_BYTES_MIN, Secret, SecretSource},
    yaml::Step,
};
use rustls::ServerConfig;
use serde::{
    Deserialize, Deserializer,
    de::{self, Unexpected},
};

use super::{Base, Config, Remark, Service, WrongOfPair, complaint::Complaint, limits::LimitsInput};
use crate::{
    certificate::{Certificate, Held, Standing, holds_key},
    revocations::{RevocationError, Revocations},
};

/// More workers than any machine has cores for is a typing error.
const WORKERS_MAX: usize = 1024;
/// A longer drain is no drain: connections would keep the old process for hours.
const DRAIN_S_MAX: u64 = 3600;
/// The gateway's name at the most; it ends up in logs.
const NAME_BYTES_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    name: String,
    secret: SecretSource,
    #[serde(default)]
    old_secrets: Vec<SecretSource>,
    services: Vec<ServiceInput>,
    #[serde(default)]
    workers: Option<usize>,
    #[serde(default = "yes")]
    pin: bool,
    #[serde(default)]
    drain_s: Option<u64>,
    #[serde(default)]
    limits: LimitsInput,
    #[serde(default)]
    users: HashMap<Uid, Allowance>,
    #[serde(default)]
    audit: Option<PathBuf>,
    #[serde(default)]
    state_dir: Option<PathBuf>,
    /// Tokens that are not to be taken.
    #[serde(default)]
    revocations: Option<PathBuf>,
    #[serde(default)]
    allow_weak_secret: bool,
    #[serde(default)]
    allow_readable_secrets: bool,
}

#[derive(Deserialize)]
#[serde(expecting = "!Wss or !Ws before the service")]
enum ServiceInput {
    Wss(WssInput),
    Ws(WsInput),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WssInput {
    domains: Vec<Domain>,
    listen_addr: ListenAddr,
    tls_config: TlsInput,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WsInput {
    domains: Vec<Domain>,
    listen_addr: ListenAddr,
}

#[derive(Deserialize)]
#[serde(expecting = "!File before { cert_path: .. }")]
enum TlsInput {
    File(TlsFile),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFile {
    /// The names the certificate is for; all of the service's, if it does not say.
    #[serde(default)]
    domains: Option<Vec<NamePattern>>,
    cert_path: PathBuf,
    /// The key, if it is not in `cert_path`.
    #[serde(default)]
    key_path: Option<PathBuf>,
}

/// Why there is no config.
pub(super) enum Refusal {
    /// What this file says.
    Complaint(Complaint),
    /// What the list of revoked tokens says.
    List(RevocationError),
}

impl From<Complaint> for Refusal {
    fn from(complaint: Complaint) -> Self {
        Self::Complaint(complaint)
    }
}

struct Domain(Destination);
struct ListenAddr(SocketAddr);

const fn yes() -> bool {
    true
}

/// Reads a value from its text.
macro_rules! from_text {
    ($name:ident, $expected:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
                    }
                }

                d.deserialize_str(Visitor)
            }
        }
    };
}

from_text!(Domain, "a host name such as gw.example, or an address");
from_text!(ListenAddr, "IP:PORT, such as 0.0.0.0:443 or \"[::]:443\"");

impl Domain {
    fn parse(text: &str) -> Option<Self> {
        Destination::parse(text).ok().map(Self)
    }
}

impl ListenAddr {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl Input {
    /// Whether the file is as secret as its secret, and nobody has said that this is fine.
    pub(super) fn holds_secret(&self) -> bool {
        let mut sources = std::iter::once(&self.secret).chain(&self.old_secrets);
        !self.allow_readable_secrets && sources.any(|source| matches!(source, SecretSource::Inline(_)))
    }

    /// Makes sense of it; paths are relative to `base`.
    pub(super) fn into_config(self, base: Base<'_>) -> Result<Config, Refusal> {
        self.check_scalars()?;
        let (mut files, mut remarks) = (self.files(base), Vec::new());
        let mut secrets = Vec::with_capacity(1 + self.old_secrets.len());
        secrets.push(self.load_secret(&self.secret, &["secret".into()], base)?);
        for (index, source) in self.old_secrets.iter().enumerate() {
            secrets.push(self.load_secret(source, &["old_secrets".into(), index.into()], base)?);
        }
        if self.services.is_empty() {
            return Err(
                Complaint::new(&["services".into()], "empty: expected at least one !Ws or !Wss").into()
            );
        }
        let mut services = Vec::<Service>::with_capacity(self.services.len());
        let mut certificates = Vec::new();
        for (index, input) in self.services.into_iter().enumerate() {
            let at = ["services".into(), index.into()];
            let (service, standing) =
                input.into_service(self.allow_readable_secrets, base).map_err(|c| c.within(&at))?;
            certificates.extend(standing.map(|standing| Held {
                service: index,
                place: String::new(),
                standing,
            }));
            // The system would let both listen and deal connections to either.
            let same =
                |other: &Service| other.listen_addr == service.listen_addr && other.listen_addr.port() != 0;
            if let Some(other) = services.iter().position(same) {
                let what = format!(
                    "services[{other}] listens there already: give one of them another address or port"
                );
                return Err(Complaint::new(&["listen_addr".into()], what).within(&at).into());
            }
            services.push(service);
        }
        let mut limits = self.limits.into_limits();
        if let Some(drain_s) = self.drain_s {
            limits.drain_timeout = Duration::from_secs(drain_s);
        }
        warn_of_limits(&limits);
        let state_dir = self.state_dir.map(|dir| base.join(&dir));
        let revocations_path = self.revocations.map(|path| base.join(&path));
        let revocations = match &revocations_path {
            Some(path) => load_revocations(path, &mut remarks)?,
            None => Revocations::default(),
        };
        files.extend(revocations_path.clone());
        Ok(Config {
            workers: self.workers,
            pin: self.pin,
            limits,
            users: self.users,
            audit: self.audit.map(|path| base.join(&path)),
            state_dir,
            certificates,
            revocations,
            revocations_path,
            remarks,
            files,
            ..Config::new(&self.name, secrets, services)
        })
    }

    /// The files that are named here and read once.
    fn files(&self, base: Base<'_>) -> Vec<PathBuf> {
        let secrets =
            std::iter::once(&self.secret).chain(&self.old_secrets).filter_map(|source| match source {
                SecretSource::File(path) => Some(path),
                SecretSource::Inline(_) => None,
            });
        let certificates = self.services.iter().flat_map(|service| match service {
            ServiceInput::Wss(WssInput { tls_config: TlsInput::File(file), .. }) => {
                [Some(&file.cert_path), file.key_path.as_ref()]
            }
            ServiceInput::Ws(_) => [None, None],
        });
        let certificates = certificates.flatten();
        secrets.chain(certificates).map(|path| base.join(path)).collect()
    }

    fn check_scalars(&self) -> Result<(), Complaint> {
        let name_fits =
            (1..=NAME_BYTES_MAX).contains(&self.name.len()) && !self.name.contains(char::is_control);
        if !name_fits {
            let what = format!("expected a name of 1 to {NAME_BYTES_MAX} bytes without control characters");
            return Err(Complaint::new(&["name".into()], what));
        }
        if self.workers.is_some_and(|workers| !(1..=WORKERS_MAX).contains(&workers)) {
            let what = format!("expected 1 to {WORKERS_MAX}, or no such line for one per core");
            return Err(Complaint::new(&["workers".into()], what));
        }
        if self.drain_s.is_some_and(|drain_s| drain_s > DRAIN_S_MAX) {
            let what = format!("expected 0 to {DRAIN_S_MAX} seconds");
            return Err(Complaint::new(&["drain_s".into()], what));
        }
        Ok(())
    }

    fn load_secret(&self, source: &SecretSource, at: &[Step], base: Base<'_>) -> Result<Secret, Complaint> {
        let secret = match source {
            SecretSource::Inline(secret) => secret.clone(),
            SecretSource::File(path) => {
                let is_secret = |bytes: &[u8]| Secret::from_file(bytes).is_ok();
                let bytes = base
                    .read_private(path, self.allow_readable_secrets, is_secret)
                    .map_err(|why| Complaint::new(at, why))?;
                let bytes = Secret::from_file(&bytes);
                bytes.map_err(|e| Complaint::new(at, e.to_string()))?
            }
        };
        if !secret.is_weak() {
            return Ok(secret);
        }
        let bytes = secret.as_bytes().len();
        if !self.allow_weak_secret {
            let what = format!(
                "a secret of {bytes} bytes can be guessed from one token; at least {SECRET_BYTES_MIN} are needed \
                 (openssl rand -hex {SECRET_BYTES_MIN} gives \"hex:..\"), or set allow_weak_secret: true"
            );
            return Err(Complaint::new(at, what));
        }
        tracing::warn!(
            "a secret of {bytes} bytes can be guessed from one token; {SECRET_BYTES_MIN} would be safe"
        );
        Ok(secret)
    }
}

impl ServiceInput {
    fn into_service(
        self,
        allow_readable: bool,
        base: Base<'_>,
    ) -> Result<(Service, Option<Standing>), Complaint> {
        match self {
            Self::Ws(input) => {
                // No name is checked there, so an empty list is one that means any name.
                let domains = input.domains.into_iter().map(|Domain(destination)| destination).collect();
                Ok((Service { domains, listen_addr: input.listen_addr.0, tls: None }, None))
            }
            Self::Wss(input) => {
                let domains = domains(input.domains)?;
                let TlsInput::File(file) = input.tls_config;
                let (settings, standing) = file.load(&domains, allow_readable, base)?;
                let service = Service { domains, listen_addr: input.listen_addr.0, tls: Some(settings) };
                Ok((service, Some(standing)))
            }
        }
    }
}

/// A token's limit that its user's cuts short was hardly meant so; one that nobody has set is no contradiction.
fn warn_of_limits(limits: &Limits) {
    let (token, user, unset) = (limits.token, limits.user, Limits::default().token);
    let wide = |n: Option<NonZeroU32>| n.map(NonZeroU64::from);
    let pairs = [
        ("sessions", wide(token.sessions), wide(user.sessions), wide(unset.sessions)),
        ("streams", wide(token.streams), wide(user.streams), wide(unset.streams)),
        ("dials_per_s", wide(token.dials_per_s), wide(user.dials_per_s), wide(unset.dials_per_s)),
        ("bytes_per_s", token.bytes_per_s, user.bytes_per_s, unset.bytes_per_s),
        ("bytes_per_month", token.bytes_per_month, user.bytes_per_month, unset.bytes_per_month),
    ];
    for (key, token, user, unset) in pairs {
        if token != unset && user.is_some_and(|user| token.is_some_and(|token| token > user)) {
            tracing::warn!("limits: token.{key} is more than user.{key}: no token ever gets so much");
        }
    }
}

fn load_revocations(path: &Path, remarks: &mut Vec<Remark>) -> Result<Revocations, Refusal> {
    match Revocations::load(path) {
        Ok(Some(list)) => {
            if list.is_empty() {
                let words = "revocations: the list names nothing, so nothing is revoked";
                remarks.push(Remark::Info(words.to_owned()));
            }
            Ok(list)
        }
        Ok(None) => {
            let words = "revocations: the list is not there yet; nothing is revoked";
            remarks.push(Remark::Info(words.to_owned()));
            Ok(Revocations::default())
        }
        Err(RevocationError::File { source, .. }) => {
            let what = format!("this list can't be read: {source}");
            Err(Complaint::new(&["revocations".into()], what).into())
        }
        // What is wrong in it stands in it, and not here.
        Err(e) => Err(Refusal::List(e)),
    }
}

fn domains(domains: Vec<Domain>) -> Result<Vec<Destination>, Complaint> {
    if domains.is_empty() {
        return Err(Complaint::new(&["domains".into()], "empty: expected the names this service answers to"));
    }
    Ok(domains.into_iter().map(|Domain(destination)| destination).collect())
}

impl TlsFile {
    fn load(
        &self,
        domains: &[Destination],
        allow_readable: bool,
        base: Base<'_>,
    ) -> Result<(Arc<ServerConfig>, Standing), Complaint> {
        let at = |key: &'static str, what: String| Complaint::new(&["tls_config".into(), key.into()], what);
        let in_chain = |what: String| at("cert_path", what);
        let path = &self.cert_path;
        let certificate = match &self.key_path {
            None => {
                let pem = base.read_private(path, allow_readable, holds_key).map_err(in_chain)?;
                Certificate::from_pem(&pem).map_err(|e| in_chain(e.to_string()))?
            }
            Some(key_path) => {
                base.read_pair((path, key_path), allow_readable).map_err(|wrong| match wrong {
                    WrongOfPair::Chain(what) => in_chain(what),
                    WrongOfPair::Key(what) => at("key_path", what),
                })?
            }
        };
        for (index, domain) in domains.iter().enumerate() {
            self.check_domain(domain)
                .map_err(|what| Complaint::new(&["domains".into(), index.into()], what))?;
        }
        let names: Vec<_> = domains.iter().map(ToString::to_string).collect();
        let standing = certificate.standing(&names).map_err(|e| in_chain(e.to_string()))?;
        Ok((certificate.into_settings().map_err(|e| in_chain(e.to_string()))?, standing))
    }

    fn check_domain(&self, domain: &Destination) -> Result<(), String> {
        let name = match domain {
            Destination::Name(name) => name,
            // For clients that connect to an address, which TLS does not name.
            Destination::Ip(_) => return Ok(()),
            Destination::Unix(_) => return Err("no certificate is for a path".to_owned()),
        };
        match &self.domains {
            Some(patterns) if !patterns.iter().any(|pattern| pattern.matches(name)) => {
                Err("tls_config.domains does not name this one, so it has no certificate".to_owned())
            }
            _ => Ok(()),
        }
    }
}
