//! Role: the shape of gateway.yaml, and what makes sense in it.
//! Invariants: an unknown key is an error, for it might be a restriction.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use narrowlink_proto::{
    id::Uid,
    policy::NamePattern,
    target::Destination,
    token::{Allowance, SECRET_BYTES_MIN, Secret, SecretSource},
};
use rustls::ServerConfig;
use serde::{Deserialize, Deserializer, de};

use super::{
    Config, Service,
    complaint::{Complaint, Step},
    limits::LimitsInput,
    read_private,
};
use crate::{certificate::Certificate, revocations::Revocations};

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
    services: Vec<Tagged<ServiceInput>>,
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
    tls_config: Tagged<TlsInput>,
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
}

/// A variant by its tag, on the one way on which serde_yaml says where a wrong tag stands.
struct Tagged<T>(T);
struct AsAny<D>(D);
struct Domain(Destination);
struct ListenAddr(SocketAddr);

const fn yes() -> bool {
    true
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tagged<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        T::deserialize(AsAny(d)).map(Self)
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for AsAny<D> {
    type Error = D::Error;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let wrong = "neither a host name such as gw.example nor an address";
        d.deserialize_str(Text(|text: &str| {
            Destination::parse(text).map(Self).map_err(|why| format!("{text:?} is {wrong}: {why}"))
        }))
    }
}

impl<'de> Deserialize<'de> for ListenAddr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let expected = "expected IP:PORT, such as 0.0.0.0:443 or \"[::]:443\"";
        d.deserialize_str(Text(|text: &str| {
            text.parse().map(Self).map_err(|_| format!("{text:?} is no address to listen on: {expected}"))
        }))
    }
}

/// Reads a value from its text; what is wrong with it is said while serde_yaml still knows its place.
struct Text<F>(F);

impl<T, F: Fn(&str) -> Result<T, String>> de::Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

impl Input {
    /// Whether the file is as secret as its secret, and nobody has said that this is fine.
    pub(super) fn holds_secret(&self) -> bool {
        let mut sources = std::iter::once(&self.secret).chain(&self.old_secrets);
        !self.allow_readable_secrets && sources.any(|source| matches!(source, SecretSource::Inline(_)))
    }

    /// Makes sense of it; paths are relative to `base`.
    pub(super) fn into_config(self, base: &Path) -> Result<Config, Complaint> {
        self.check_scalars()?;
        let mut files = self.files(base);
        let mut secrets = Vec::with_capacity(1 + self.old_secrets.len());
        secrets.push(self.load_secret(&self.secret, &["secret".into()], base)?);
        for (index, source) in self.old_secrets.iter().enumerate() {
            secrets.push(self.load_secret(source, &["old_secrets".into(), index.into()], base)?);
        }
        if self.services.is_empty() {
            return Err(Complaint::new(&["services".into()], "empty: expected at least one !Ws or !Wss"));
        }
        let mut services = Vec::<Service>::with_capacity(self.services.len());
        for (index, Tagged(input)) in self.services.into_iter().enumerate() {
            let at = ["services".into(), index.into()];
            let service = input.into_service(self.allow_readable_secrets, base).map_err(|c| c.within(&at))?;
            // The system would let both listen and deal connections to either.
            let same =
                |other: &Service| other.listen_addr == service.listen_addr && other.listen_addr.port() != 0;
            if let Some(other) = services.iter().position(same) {
                let what = format!("services[{other}] listens on {} already", service.listen_addr);
                return Err(Complaint::new(&["listen_addr".into()], what).within(&at));
            }
            services.push(service);
        }
        let mut limits = self.limits.into_limits();
        if let Some(drain_s) = self.drain_s {
            limits.drain_timeout = Duration::from_secs(drain_s);
        }
        let state_dir = self.state_dir.map(|dir| base.join(dir));
        let revocations_path = self.revocations.map(|path| base.join(path));
        let revocations = match &revocations_path {
            Some(path) => load_revocations(path)?,
            None => Revocations::default(),
        };
        files.extend(revocations_path.clone());
        Ok(Config {
            workers: self.workers,
            pin: self.pin,
            limits,
            users: self.users,
            audit: self.audit.map(|path| base.join(path)),
            state_dir,
            revocations,
            revocations_path,
            files,
            ..Config::new(&self.name, secrets, services)
        })
    }

    /// The files that are named here and read once.
    fn files(&self, base: &Path) -> Vec<PathBuf> {
        let secrets =
            std::iter::once(&self.secret).chain(&self.old_secrets).filter_map(|source| match source {
                SecretSource::File(path) => Some(path),
                SecretSource::Inline(_) => None,
            });
        let certificates = self.services.iter().filter_map(|Tagged(service)| match service {
            ServiceInput::Wss(WssInput { tls_config: Tagged(TlsInput::File(file)), .. }) => {
                Some(&file.cert_path)
            }
            ServiceInput::Ws(_) => None,
        });
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

    fn load_secret(&self, source: &SecretSource, at: &[Step], base: &Path) -> Result<Secret, Complaint> {
        let secret = match source {
            SecretSource::Inline(secret) => secret.clone(),
            SecretSource::File(path) => {
                let path = base.join(path);
                let bytes = read_private(&path, self.allow_readable_secrets)
                    .map_err(|why| Complaint::new(at, why))?;
                let bytes = Secret::from_file(&bytes);
                bytes.map_err(|e| Complaint::new(at, format!("{}: {e}", path.display())))?
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
    fn into_service(self, allow_readable: bool, base: &Path) -> Result<Service, Complaint> {
        match self {
            Self::Ws(input) => {
                // No name is checked there, so an empty list is one that means any name.
                let domains = input.domains.into_iter().map(|Domain(destination)| destination).collect();
                Ok(Service { domains, listen_addr: input.listen_addr.0, tls: None })
            }
            Self::Wss(input) => {
                let domains = domains(input.domains)?;
                let Tagged(TlsInput::File(file)) = input.tls_config;
                let settings = file.load(&domains, allow_readable, base)?;
                Ok(Service { domains, listen_addr: input.listen_addr.0, tls: Some(settings) })
            }
        }
    }
}

fn load_revocations(path: &Path) -> Result<Revocations, Complaint> {
    match Revocations::load(path) {
        Ok(Some(list)) => Ok(list),
        Ok(None) => {
            tracing::info!("{}: not there yet; nothing is revoked", path.display());
            Ok(Revocations::default())
        }
        Err(e) => Err(Complaint::new(&["revocations".into()], e.to_string())),
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
        base: &Path,
    ) -> Result<Arc<ServerConfig>, Complaint> {
        let path = base.join(&self.cert_path);
        let at_path = |what: String| Complaint::new(&["tls_config".into(), "cert_path".into()], what);
        let pem = read_private(&path, allow_readable).map_err(at_path)?;
        let in_file = |what: String| at_path(format!("{}: {what}", path.display()));
        let certificate = Certificate::from_pem(&pem).map_err(|e| in_file(e.to_string()))?;
        for (index, domain) in domains.iter().enumerate() {
            self.check_domain(domain)
                .map_err(|what| Complaint::new(&["domains".into(), index.into()], what))?;
            if !certificate.covers(&domain.to_string()) {
                tracing::warn!(
                    "{}: the certificate is not for {domain}: agents and clients will refuse it",
                    path.display()
                );
            }
        }
        certificate.into_settings().map_err(|e| in_file(e.to_string()))
    }

    fn check_domain(&self, domain: &Destination) -> Result<(), String> {
        let Destination::Name(name) = domain else {
            return Err(format!(
                "{domain}: TLS tells certificates apart by name, so !Wss needs one; !Ws takes addresses"
            ));
        };
        match &self.domains {
            Some(patterns) if !patterns.iter().any(|pattern| pattern.matches(name)) => {
                Err(format!("{name} has no certificate: tls_config.domains does not name it"))
            }
            _ => Ok(()),
        }
    }
}
