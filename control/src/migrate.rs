//! Role: `narrowlink-gateway init --from`: a gateway of what a gateway.yaml of Narrowlink 0.2 says.
//! Invariants: each key of the old file is in the report, taken or not; one that 0.2 had not is an error, never dropped · the
//! old file is only read.
//! See: `init`, which makes it; docs/migration.md.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use narrowlink_dataplane::run::file::{self, Reading};
use narrowlink_proto::{
    target::Destination,
    token::{Secret, SecretSource},
    unread::hint,
    when::date,
    yaml::{Document, Located, Step},
};
use serde::{Deserialize, Deserializer, de};

use crate::{
    args::Init,
    config::ConfigError,
    init::{CHAIN, Certificate, Contents, InitError, KEY, LIST, Made, Plan, SECRET, draw_secret},
};

/// An old file at the most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Where certbot's own server answers.
const HTTP_PORT: u16 = 80;

const TAKEN: &str = "taken";
const CERTBOT_S: &str = "not taken: that is certbot's to know";
const TOKENS: &str = "Tokens of 0.2 hold no more, whatever has signed them: narrowlink-tokengen reads their file and signs them anew, with \
     `secret: !File PATH` of the secret above in it; or give the tickets below. docs/migration.md has the rest.";

/// A gateway.yaml of 0.2.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Old {
    name: String,
    secret: SecretSource,
    services: Vec<OldService>,
}

#[derive(Deserialize)]
#[serde(expecting = "!Wss or !Ws before the service")]
enum OldService {
    Wss(OldWss),
    Ws(OldWs),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldWs {
    domains: Vec<String>,
    listen_addr: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldWss {
    domains: Vec<String>,
    listen_addr: String,
    tls_config: OldTls,
}

#[derive(Deserialize)]
#[serde(expecting = "!Acme or !File before the rest")]
enum OldTls {
    Acme(OldAcme),
    File(OldFile),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldAcme {
    #[serde(default)]
    email: Option<String>,
    #[serde(default)]
    challenge_type: Option<String>,
    #[serde(default)]
    directory_url: Option<String>,
}

/// A path alone, as the oldest files have it, or with the names that its certificate is for.
struct OldFile {
    domains: Option<Vec<String>>,
    cert_path: PathBuf,
}

impl<'de> Deserialize<'de> for OldFile {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(OldFileVisitor)
    }
}

struct OldFileVisitor;

impl<'de> de::Visitor<'de> for OldFileVisitor {
    type Value = OldFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, or `domains` and `cert_path`")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<OldFile, E> {
        Ok(OldFile { domains: None, cert_path: path.into() })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<OldFile, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            #[serde(default)]
            domains: Option<Vec<String>>,
            cert_path: PathBuf,
        }
        let Keys { domains, cert_path } = Keys::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(OldFile { domains, cert_path })
    }
}

/// A gateway to be made of an old file.
pub struct Migration {
    /// What it is to be.
    pub plan: Plan,
    name: String,
    secret: Secret,
    /// The names for which its own authority is to sign.
    names: Vec<Destination>,
    /// Its services as YAML.
    services: String,
    report: Vec<String>,
}

/// What is being read, and what is said of it.
struct Reader<'a> {
    args: &'a Init,
    from: &'a Path,
    document: Document,
    report: Vec<String>,
}

impl Migration {
    /// Reads the old file, for a gateway in `dir`.
    ///
    /// # Errors
    /// The operator's: it can't be read, is none of 0.2, or a certificate is wanted.
    pub fn new(args: &Init, from: &Path, dir: PathBuf) -> Result<Self, InitError> {
        let read = |source| InitError::Config(ConfigError::Read { path: from.to_owned(), source });
        let text = file::read_text(from, Reading::First, FILE_BYTES_MAX).map_err(read)?;
        let content = |source| InitError::Config(ConfigError::Content { path: from.to_owned(), source });
        let document = Document::parse(&text).map_err(content)?;
        let old: Old = document.read().map_err(content)?;
        let mut reader = Reader { args, from, document, report: Vec::new() };
        reader.say(&["name".into()], TAKEN);
        let secret = reader.secret(&old, &dir)?;
        reader.check_certificates(&old)?;
        let mut services = String::new();
        for (index, service) in old.services.iter().enumerate() {
            services.push_str(&reader.service(index, service)?);
        }
        let names = reader.acme_names(&old)?;
        let mut plan = reader.plan(&old, dir)?;
        plan.certificate = certificate(&old, plan.certificate, from);
        Ok(Self { plan, name: old.name, secret, names, services, report: reader.report })
    }

    /// What was taken of the old file and what was not, a line for each key.
    pub fn report(&self) -> String {
        let lines: String = self.report.iter().map(|line| format!("{line}\n")).collect();
        format!("{lines}{TOKENS}\n")
    }

    /// Makes it, at `now` (seconds since 1970).
    ///
    /// # Errors
    /// See [`InitError`]; nothing is left behind then.
    pub fn make(&self, now: u64) -> Result<Made, InitError> {
        let config = self.config(now);
        let contents = Contents { secret: self.secret.as_bytes(), names: &self.names, config: &config };
        // What it is to replace may listen there now.
        self.plan.make_of(&contents, now, &|| {})
    }

    fn config(&self, now: u64) -> String {
        format!(
            "\
# Made by narrowlink-gateway init --from on {date}. A running gateway follows changes of it; what is wrong in it changes nothing.
# Paths are relative to this file.
name: {name}
secret: !File {SECRET}
services:
{services}revocations: {LIST}
state_dir: {state}
",
            date = date(now),
            name = quoted(&self.name),
            services = self.services,
            state = quoted(&self.plan.state().display().to_string()),
        )
    }
}

impl Reader<'_> {
    fn say(&mut self, path: &[Step], words: &str) {
        let line: Located<&str> = self.document.spot(self.from, path).about(words);
        self.report.push(line.to_string());
    }

    fn wrong(&self, path: &[Step], words: &'static str) -> InitError {
        let source = self.document.fault(path, words);
        InitError::Config(ConfigError::Content { path: self.from.to_owned(), source })
    }

    /// The old secret, unless it can be guessed: no token of 0.2 holds anyhow.
    fn secret(&mut self, old: &Old, dir: &Path) -> Result<Secret, InitError> {
        let at = ["secret".into()];
        let SecretSource::Inline(secret) = &old.secret else {
            return Err(self.wrong(&at, "a file of 0.2 has its secret in itself, as a list of bytes"));
        };
        let place = dir.join(SECRET);
        let place = place.display();
        if !secret.is_weak() {
            self.say(&at, &format!("taken, into {place}"));
            return Ok(secret.clone());
        }
        let bytes = secret.as_bytes().len();
        self.say(
            &at,
            &format!(
                "not taken: one of {bytes} bytes can be guessed by whoever has a token; {place} has a new one"
            ),
        );
        Secret::from_bytes(draw_secret()?.to_vec())
            .map_err(|_| self.wrong(&at, "a list of bytes is expected here"))
    }

    /// Whether each service gets a certificate, and one that is given a service.
    fn check_certificates(&self, old: &Old) -> Result<(), InitError> {
        let find = |is: fn(&OldTls) -> bool| {
            let of = |service: &OldService| matches!(service, OldService::Wss(wss) if is(&wss.tls_config));
            old.services.iter().position(of)
        };
        let acme = find(|tls| matches!(tls, OldTls::Acme(_)));
        let is_given = self.args.cert.is_some();
        match (acme, find(|tls| matches!(tls, OldTls::File(_)))) {
            (None, _) if is_given => {
                Err(self.wrong(&["services".into()], "--cert is for a service with !Acme, and here is none"))
            }
            (Some(index), Some(_)) if !is_given => Err(self.wrong(
                &["services".into(), index.into(), "tls_config".into()],
                "!Acme is not there yet, and another service has a certificate: say --cert and --key for this one",
            )),
            _ if old.services.is_empty() => Err(self.wrong(&["services".into()], "here is no service")),
            _ => Ok(()),
        }
    }

    /// A service as the new file has it.
    fn service(&mut self, index: usize, service: &OldService) -> Result<String, InitError> {
        let at = |key: &'static str| ["services".into(), index.into(), Step::from(key)];
        let (tag, domains, listen_addr) = match service {
            OldService::Wss(OldWss { domains, listen_addr, .. }) => ("!Wss", domains, listen_addr),
            OldService::Ws(OldWs { domains, listen_addr }) => ("!Ws", domains, listen_addr),
        };
        self.say(&["services".into(), index.into()], &format!("{tag}, taken"));
        self.say(&at("domains"), TAKEN);
        let is_certbot_s = matches!(service, OldService::Ws(_)) && port(listen_addr) == Some(HTTP_PORT);
        self.say(
            &at("listen_addr"),
            if is_certbot_s {
                "taken; certbot --standalone needs this port for itself at each renewal"
            } else {
                TAKEN
            },
        );
        let mut text = format!(
            "  - {tag}\n    domains: {}\n    listen_addr: {}\n",
            quoted_list(domains),
            quoted(listen_addr)
        );
        if let OldService::Wss(OldWss { tls_config, .. }) = service {
            text.push_str(&format!("    tls_config: !File {}\n", self.certificate(&at, tls_config)?));
        }
        Ok(text)
    }

    fn certificate(
        &mut self,
        at: &dyn Fn(&'static str) -> [Step; 3],
        tls: &OldTls,
    ) -> Result<String, InitError> {
        let below = |key: &'static str| [&at("tls_config")[..], &[key.into()]].concat();
        match (tls, &self.args.cert, &self.args.key) {
            (OldTls::File(OldFile { domains, cert_path }), ..) => {
                let path = absolute(self.from.parent().unwrap_or(Path::new("")), cert_path);
                file::open_regular(&path).map_err(|e| InitError::Given {
                    option: "cert_path",
                    path: path.clone(),
                    words: format!("this file can't be read: {e}{}", hint(&e)),
                })?;
                self.say(&at("tls_config"), &format!("!File, taken: {}", path.display()));
                let path = quoted(&path.display().to_string());
                let Some(domains) = domains else { return Ok(format!("{{ cert_path: {path} }}")) };
                self.say(&below("domains"), TAKEN);
                self.say(&below("cert_path"), TAKEN);
                Ok(format!("{{ domains: {}, cert_path: {path} }}", quoted_list(domains)))
            }
            (OldTls::Acme(acme), cert, key) => {
                let (words, text) = match (cert, key) {
                    (Some(cert), Some(key)) => {
                        let path = |path: &Path| quoted(&absolute(Path::new(""), path).display().to_string());
                        let text = format!("{{ cert_path: {}, key_path: {} }}", path(cert), path(key));
                        ("!Acme is not there yet: --cert and --key stand in its place", text)
                    }
                    _ => (
                        "!Acme is not there yet: an authority of the gateway's own stands in its place, which tickets carry and \
                         nobody else knows. For a public certificate have certbot fetch it, and say --cert and --key",
                        format!("{{ cert_path: {CHAIN}, key_path: {KEY} }}"),
                    ),
                };
                self.say(&at("tls_config"), words);
                let given = [
                    ("email", &acme.email),
                    ("challenge_type", &acme.challenge_type),
                    ("directory_url", &acme.directory_url),
                ];
                for (key, _) in given.into_iter().filter(|(_, value)| value.is_some()) {
                    self.say(&below(key), CERTBOT_S);
                }
                Ok(text)
            }
        }
    }

    /// The names that had a certificate by ACME.
    fn acme_names(&self, old: &Old) -> Result<Vec<Destination>, InitError> {
        let mut names = Vec::new();
        for (index, service) in old.services.iter().enumerate() {
            let OldService::Wss(OldWss { domains, tls_config: OldTls::Acme(_), .. }) = service else {
                continue;
            };
            for (nth, domain) in domains.iter().enumerate() {
                let at = ["services".into(), index.into(), "domains".into(), nth.into()];
                let name = Destination::parse(domain);
                let name = name.map_err(|_| self.wrong(&at, "expected a host name such as gw.example"))?;
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// As agents and clients reach it: at the first name of the first service with TLS, unless HOST says otherwise.
    fn plan(&self, old: &Old, dir: PathBuf) -> Result<Plan, InitError> {
        let first = old.services.iter().find_map(|service| match service {
            OldService::Wss(wss) => Some((wss.domains.first()?, port(&wss.listen_addr)?)),
            OldService::Ws(_) => None,
        });
        let first = first.map(|(domain, port)| format!("{domain}:{port}"));
        let host = self.args.host.clone().or(first).ok_or(InitError::NoHost)?;
        Plan::new(&Init { host: Some(host), ..self.args.clone() }, dir)
    }
}

/// Where the certificate comes from that agents and clients are to trust.
fn certificate(old: &Old, given: Certificate, from: &Path) -> Certificate {
    let tls = old.services.iter().find_map(|service| match service {
        OldService::Wss(wss) => Some(&wss.tls_config),
        OldService::Ws(_) => None,
    });
    match tls {
        None => Certificate::InFront,
        Some(OldTls::Acme(_)) => given,
        Some(OldTls::File(OldFile { cert_path, .. })) => {
            let path = absolute(from.parent().unwrap_or(Path::new("")), cert_path);
            Certificate::Files(path.clone(), path)
        }
    }
}

fn port(listen_addr: &str) -> Option<u16> {
    listen_addr.rsplit_once(':')?.1.parse().ok()
}

fn absolute(base: &Path, path: &Path) -> PathBuf {
    let path = base.join(path);
    fs::canonicalize(&path).unwrap_or(path)
}

/// A text as YAML has it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_list(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authority::Authority, config::Config};
    use narrowlink_proto::token::{Keys, Kind};

    const NOW: u64 = 1_795_219_200;
    /// As 0.2 published it.
    const ACME: &str = include_str!("../tests/earlier/acme.yaml");
    const FILE: &str = include_str!("../tests/earlier/file.yaml");

    fn args() -> Init {
        Init {
            host: None,
            cert: None,
            key: None,
            from: None,
            listen: None,
            dir: None,
            agent: "home".to_owned(),
            client: "laptop".to_owned(),
            no_service: true,
            yes: true,
            json: false,
        }
    }

    struct Site(tempfile::TempDir);

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let made = Authority::new(&[Destination::parse("domain.ltd").unwrap()], NOW).unwrap();
            let pem = format!("{}{}", made.chain, *made.chain_key);
            narrowlink_dataplane::run::replace::create(
                &dir.path().join("fullchain+privkey.pem"),
                &pem,
                0o600,
            )
            .unwrap();
            Self(dir)
        }

        fn migrate(&self, text: &str, args: &Init) -> Result<Migration, InitError> {
            let old = self.0.path().join("old.yaml");
            fs::write(&old, text).unwrap();
            Migration::new(args, &old, self.0.path().join("new"))
        }
    }

    /// Each key of the report, and how what is said of it begins.
    fn said(migration: &Migration, site: &Site) -> Vec<(String, String)> {
        let file = format!("{}: line ", site.0.path().join("old.yaml").display());
        let lines = migration.report();
        let lines = lines.lines().filter_map(|line| line.strip_prefix(&file)?.split_once(": "));
        let lines = lines.map(|(_, rest)| rest.split_once(": ").unwrap());
        lines.map(|(key, words)| (key.to_owned(), words.to_owned())).collect()
    }

    #[test]
    fn a_published_file_with_acme_becomes_a_gateway_and_each_key_of_it_is_said() {
        let site = Site::new();
        let migration = site.migrate(ACME, &args()).unwrap();
        let expected = [
            ("name", "taken"),
            ("secret", "not taken: one of 4 bytes can be guessed"),
            ("services[0]", "!Wss, taken"),
            ("services[0].domains", "taken"),
            ("services[0].listen_addr", "taken"),
            ("services[0].tls_config", "!Acme is not there yet: an authority of the gateway's own"),
            ("services[0].tls_config.email", "not taken"),
            ("services[0].tls_config.challenge_type", "not taken"),
            ("services[0].tls_config.directory_url", "not taken"),
            ("services[1]", "!Ws, taken"),
            ("services[1].domains", "taken"),
            ("services[1].listen_addr", "taken; certbot --standalone needs this port"),
        ];
        let said = said(&migration, &site);
        assert_eq!(said.len(), expected.len(), "{said:#?}");
        for ((key, words), (wanted, begins)) in said.iter().zip(expected) {
            assert!(key == wanted && words.starts_with(begins), "{key}: {words}");
        }
        let made = migration.make(NOW).unwrap();
        let config = Config::load(&made.config).unwrap();
        assert_eq!((config.name.as_str(), config.services.len()), ("gateway-name", 2));
        assert_eq!(config.services[0].listen_addr, "0.0.0.0:443".parse().unwrap());
        assert!(config.services[0].tls.is_some() && config.services[1].tls.is_none());
        assert!(!config.secrets[0].is_weak());
        assert_eq!(made.agent.gateways, ["domain.ltd:443"]);
        assert!(made.agent.pin.is_some());
        let keys = Keys::new(config.secrets[0].as_bytes());
        assert!(keys.verify(made.client.token.expose(), Kind::Client, NOW).is_ok());
    }

    #[test]
    fn a_published_file_with_a_certificate_is_taken_as_it_is_and_so_is_a_secret_that_is_long_enough() {
        let site = Site::new();
        let secret: Vec<_> = (1..=32_u8).map(|byte| byte.to_string()).collect();
        let text = FILE.replace("[1,2,3,4]", &format!("[{}]", secret.join(", ")));
        let path = site.0.path().join("fullchain+privkey.pem");
        let text = text.replace("/etc/cert/domain.ltd/fullchain+privkey.pem", path.to_str().unwrap());
        let migration = site.migrate(&text, &args()).unwrap();
        let said = said(&migration, &site);
        assert!(
            said.iter().all(|(_, words)| words.contains("taken") && !words.contains("not taken")),
            "{said:#?}"
        );
        assert!(said.iter().any(|(key, _)| key == "services[0].tls_config.cert_path"), "{said:#?}");
        let made = migration.make(NOW).unwrap();
        let config = Config::load(&made.config).unwrap();
        assert_eq!(config.secrets[0].as_bytes(), (1..=32).collect::<Vec<u8>>());
        assert!(made.agent.pin.is_some(), "its authority is of one's own");
        // A path alone, and relative: as the oldest pages have it.
        let alone = "name: g\nsecret: [1]\nservices: [!Wss { domains: [domain.ltd], listen_addr: '0.0.0.0:8443', tls_config: !File fullchain+privkey.pem }]\n";
        let plan = site.migrate(alone, &args()).unwrap().plan;
        assert_eq!((plan.certificate, plan.port), (Certificate::Files(path.clone(), path), 8443));
    }

    #[test]
    fn a_certificate_that_is_given_stands_in_the_place_of_acme() {
        let site = Site::new();
        let pem = fs::read_to_string(site.0.path().join("fullchain+privkey.pem")).unwrap();
        let (chain, key) = pem.split_at(pem.find("-----BEGIN PRIVATE").unwrap());
        let [cert_path, key_path] = [("c.pem", chain), ("k.pem", key)].map(|(name, text)| {
            let path = site.0.path().join(name);
            narrowlink_dataplane::run::replace::create(&path, text, 0o600).unwrap();
            path
        });
        let given = Init { cert: Some(cert_path), key: Some(key_path), ..args() };
        let migration = site.migrate(ACME, &given).unwrap();
        assert!(migration.report().contains("--cert and --key stand in its place"));
        let made = migration.make(NOW).unwrap();
        assert!(made.agent.pin.is_some(), "its authority is of one's own");
        let why = site.migrate(FILE, &given).err().unwrap().to_string();
        assert!(why.contains("--cert is for a service with !Acme"), "{why}");
    }

    #[test]
    fn a_certificate_without_its_unknown_authority_makes_nothing() {
        let site = Site::new();
        let path = site.0.path().join("fullchain+privkey.pem");
        let made = rcgen::generate_simple_self_signed(vec!["domain.ltd".to_owned()]).unwrap();
        fs::write(&path, format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem())).unwrap();
        let text = FILE.replace("/etc/cert/domain.ltd/fullchain+privkey.pem", path.to_str().unwrap());
        let why = site.migrate(&text, &args()).unwrap().make(NOW).err().unwrap().to_string();
        assert!(why.contains("its authority is none that machines know"), "{why}");
        assert!(!site.0.path().join("new").exists());
    }

    #[test]
    fn nothing_is_dropped_and_nothing_guessed() {
        let site = Site::new();
        for (text, host, says) in [
            (format!("{ACME}\ncolour: 2\n"), None, "unknown key; expected `name`, `secret` or `services`"),
            ("name: g\nsecret: [1]\nservices: []\n".to_owned(), None, "here is no service"),
            ("name: g\nsecret: !File s\nservices: []\n".to_owned(), None, "has its secret in itself"),
            (
                "name: g\nsecret: [1]\nservices: [!Ws { domains: [a], listen_addr: '0.0.0.0:80' }]\n"
                    .to_owned(),
                None,
                "say under which name or address this machine is reached",
            ),
            (FILE.to_owned(), None, "fullchain+privkey.pem: this file can't be read: No such file"),
            (
                format!("{ACME}{}", FILE.split_once("services: # list of services\n").unwrap().1),
                Some("gw.example"),
                "say --cert and --key for this one",
            ),
        ] {
            let args = Init { host: host.map(str::to_owned), ..args() };
            let why = site.migrate(&text, &args).err().unwrap_or_else(|| panic!("taken: {text}")).to_string();
            assert!(why.contains(says), "{why}");
        }
        // Without TLS of its own, and with a name: what stands in front of it has the certificate.
        let text = "name: g\nsecret: [1]\nservices: [!Ws { domains: [a], listen_addr: '127.0.0.1:80' }]\n";
        let args = Init { host: Some("gw.example".to_owned()), ..args() };
        let made = site.migrate(text, &args).unwrap().make(NOW).unwrap();
        assert_eq!(made.agent.gateways, ["gw.example:443"]);
        assert!(made.agent.pin.is_none() && !made.config.with_file_name(CHAIN).exists());
    }
}
