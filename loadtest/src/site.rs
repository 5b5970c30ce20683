//! Role: one installation in a directory: certificates, tokens, and the files that programs read.
//! Invariants: every key is fresh · files are 0600 · what is written is exactly what a person would
//! write, so that the printed commands work by hand.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_proto::{
    id::Uid,
    policy::{Grant, Policies},
    token::{Claims, Keys, Kind},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The gateway's name in its certificate.
pub const DOMAIN: &str = "localhost";

/// How a program reaches the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transport {
    /// Over TLS.
    pub tls: bool,
    /// In plain bytes after the upgrade instead of WebSocket messages.
    pub raw: bool,
}

impl Transport {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self { tls: false, raw: false },
        Self { tls: false, raw: true },
        Self { tls: true, raw: false },
        Self { tls: true, raw: true },
    ];
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, framing) =
            (if self.tls { "wss" } else { "ws" }, if self.raw { "raw" } else { "framed" });
        write!(f, "{protocol} {framing}")
    }
}

/// A directory with everything that the programs read.
pub struct Site {
    dir: PathBuf,
    keys: Keys,
    secret_hex: String,
    ca_file: PathBuf,
}

impl Site {
    /// Writes a CA, a gateway certificate and a secret into `dir`, which is made (0700) if missing.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let secret_hex = secret.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let (ca, chain) = certificates().map_err(io::Error::other)?;
        let ca_file = dir.join("ca.pem");
        write(&ca_file, &ca)?;
        write(&dir.join("gateway.pem"), &chain)?;
        Ok(Self { dir: dir.to_owned(), keys: Keys::new(&secret), secret_hex, ca_file })
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes gateway.yaml: `wss` and `ws` on these addresses (port 0: any).
    ///
    /// # Errors
    /// The file system's.
    pub fn gateway_yaml(&self, wss: SocketAddr, ws: SocketAddr, workers: usize) -> io::Result<PathBuf> {
        let path = self.dir.join("gateway.yaml");
        let text = format!(
            "name: demo\nsecret: \"hex:{}\"\nservices:\n  - !Wss {{ domains: [{DOMAIN}], listen_addr: \"{wss}\", \
             tls_config: !File {{ domains: [{DOMAIN}], cert_path: gateway.pem }} }}\n  \
             - !Ws {{ domains: [{DOMAIN}], listen_addr: \"{ws}\" }}\nworkers: {workers}\n\
             limits: {{ strangers_max: 100000, strangers_per_source_max: 100000, strangers_per_source_per_s: 1000000, \
             strangers_per_source_burst: 1000000, failed_logins_per_min: 1000000, client_links_max: 100000, \
             agent_lanes_max: 100000, agent_lanes_per_s: 1000000, token: {{ sessions: 100000, streams: 100000, \
             dials_per_s: 1000000 }} }} # for load\n",
            self.secret_hex
        );
        write(&path, &text)?;
        Ok(path)
    }

    /// A token for `name` in the space `uid`, good for a month.
    ///
    /// # Errors
    /// Claims that no token may hold.
    pub fn token(&self, kind: Kind, uid: Uid, name: &str, policies: Option<Policies>) -> io::Result<String> {
        self.token_until(kind, uid, name, policies, now() + 30 * 86_400)
    }

    /// As [`Site::token`], until `exp` (seconds since the epoch).
    ///
    /// # Errors
    /// Claims that no token may hold.
    pub fn token_until(
        &self,
        kind: Kind,
        uid: Uid,
        name: &str,
        policies: Option<Policies>,
        exp: u64,
    ) -> io::Result<String> {
        let jti = getrandom::u64().map_err(io::Error::other)?;
        let policies = Grant::new(policies.into_iter().collect());
        let claims = Claims { policies, ..Claims::new(kind, uid, name, exp, &format!("{jti:016x}")) };
        self.sign(&claims)
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// Claims that no token may hold.
    pub fn sign(&self, claims: &Claims) -> io::Result<String> {
        self.keys.sign(claims).map_err(io::Error::other)
    }

    /// Writes a configuration with one endpoint; `extra` is appended as it is.
    ///
    /// # Errors
    /// The file system's.
    pub fn endpoint_yaml(
        &self,
        file: &str,
        gateway: SocketAddr,
        transport: Transport,
        token: &str,
        extra: &str,
    ) -> io::Result<PathBuf> {
        let path = self.dir.join(file);
        let protocol = if transport.tls { "Wss" } else { "Ws" };
        let framing = if transport.raw { ", framing: raw" } else { "" };
        let ca_file =
            if transport.tls { format!(", ca_file: \"{}\"", self.ca_file.display()) } else { String::new() };
        let text = format!(
            "endpoints:\n  - !SelfHosted {{ gateway: \"{gateway}\", domain: {DOMAIN}, token: {token}, \
             protocol: {protocol}{ca_file}{framing} }}\n{extra}"
        );
        write(&path, &text)?;
        Ok(path)
    }
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(text.as_bytes())
}

/// A CA, and the gateway's certificate and key under it, as PEM.
fn certificates() -> Result<(String, String), rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Names of their own: to OpenSSL a certificate whose subject is its issuer is self-signed.
    ca.distinguished_name.push(DnType::CommonName, "Narrowlink demo CA");
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let mut cert = CertificateParams::new(vec![DOMAIN.to_owned()])?;
    cert.distinguished_name.push(DnType::CommonName, DOMAIN);
    let cert = cert.signed_by(&key, &issuer)?;
    Ok((ca_cert.pem(), format!("{}{}", cert.pem(), key.serialize_pem())))
}
