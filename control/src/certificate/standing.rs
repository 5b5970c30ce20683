//! Role: whether clients would take a certificate: its time, its names, its chain; and when to say so.
//! Invariants: time is a parameter · what clients refuse for certain is a fault, what they may refuse a warning, what may
//! be meant so a note.
//! See: RFC 5280, 4.1.2.5 (validity), 4.2.2.1 (where issuers are found).

use aws_lc_rs::digest::{self, SHA256, SHA256_OUTPUT_LEN};
use narrowlink_proto::when::show_from;
use rustls::{
    CertificateError, Error, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use super::SIGN_ONE;

const DAY_S: u64 = 24 * 60 * 60;
/// From so long before its end on a certificate is warned of; renewals come at a third of their life, 30 days.
const AHEAD_S: u64 = 14 * DAY_S;
/// "CA issuers" among the places that a certificate names.
const CA_ISSUERS: &str = "1.3.6.1.5.5.7.48.2";

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Of the whole chain: another one is another certificate, whatever else they have in common.
    fingerprint: [u8; SHA256_OUTPUT_LEN],
    not_before: u64,
    not_after: u64,
    chain: Chain,
    /// It says that it signs others'.
    is_authority: bool,
    /// How many names of its service it is for.
    pub(super) covered: usize,
    /// How many it is not for.
    pub(super) uncovered: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Chain {
    Whole,
    /// This one (from 1) is not signed by the one behind it.
    Broken(usize),
    /// Alone, and its public issuer is to be had elsewhere.
    Incomplete,
    /// Alone, and signed by somebody.
    Alone,
}

/// A service's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The service's place in the config.
    pub service: usize,
    /// Where in the config it is named, as words that stand in front of an error.
    pub place: String,
    /// How it stands.
    pub standing: Standing,
}

impl Standing {
    /// Of a chain, its own certificate first; `None` if it can't be read.
    pub(super) fn of(chain: &[CertificateDer<'_>], provider: &CryptoProvider) -> Option<Self> {
        let parsed: Vec<_> =
            chain.iter().map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect::<Option<_>>()?;
        let own = parsed.first()?;
        let mut hash = digest::Context::new(&SHA256);
        chain.iter().for_each(|der| hash.update(der));
        let fingerprint = hash.finish().as_ref().try_into().ok()?;
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let not_before = seconds(own.validity().not_before.timestamp());
        let not_after = seconds(own.validity().not_after.timestamp());
        let during =
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(not_before.midpoint(not_after)));
        let follows = |at: &usize| parsed[*at].issuer() == parsed[*at + 1].subject();
        let is_signed = chain.get(1).is_none_or(|issuer| signs(issuer, chain.first(), during, provider));
        let broken = (0..parsed.len() - 1).find(|at| !follows(at)).or((!is_signed).then_some(0));
        let chain = match (broken, parsed.len()) {
            (Some(at), _) => Chain::Broken(at + 1),
            (None, 1) if own.issuer() == own.subject() => Chain::Whole,
            (None, 1) if names_issuers(own) => Chain::Incomplete,
            (None, 1) => Chain::Alone,
            (None, _) => Chain::Whole,
        };
        let is_authority = own.is_ca();
        Some(Self { fingerprint, not_before, not_after, chain, is_authority, covered: 0, uncovered: 0 })
    }

    /// Why clients refuse it at `now` (seconds since 1970).
    pub fn faults(&self, now: u64) -> Vec<String> {
        let Self { not_before, not_after, .. } = *self;
        let mut faults = Vec::new();
        if now > not_after {
            let at = show_from(not_after, now);
            faults.push(format!("the certificate expired on {at}: renew it; clients refuse it"));
        }
        if now < not_before {
            let at = show_from(not_before, now);
            faults.push(format!(
                "the certificate is valid only from {at}: is this machine's clock right? Clients refuse it"
            ));
        }
        if self.is_authority {
            faults.push(format!(
                "it is the certificate of an authority (CA:TRUE), which no client takes for a server's: {SIGN_ONE}"
            ));
        }
        if self.covered == 0 && self.uncovered > 0 {
            faults.push(
                "the certificate is for another name than the `domains` of its service: clients refuse it"
                    .to_owned(),
            );
        }
        match self.chain {
            Chain::Broken(at) => faults.push(format!(
                "the chain is broken: certificate {at} is not signed by the one behind it; expected the server's own first, \
                 then each one's issuer"
            )),
            Chain::Incomplete => faults.push(
                "the chain is incomplete: the certificate of the issuer is missing behind the server's own; use the file \
                 with the full chain that comes with it"
                    .to_owned(),
            ),
            Chain::Whole | Chain::Alone => {}
        }
        faults
    }

    /// What may go wrong, or soon will.
    pub fn warnings(&self, now: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        if now <= self.not_after && self.not_after - now <= AHEAD_S {
            let at = show_from(self.not_after, now);
            warnings.push(format!("the certificate expires on {at}: renew it"));
        }
        if self.covered > 0 && self.uncovered > 0 {
            let (none, all) = (self.uncovered, self.covered + self.uncovered);
            warnings.push(format!(
                "the certificate is not for {none} of the {all} `domains`: clients refuse it for these"
            ));
        }
        warnings
    }

    /// What is as it should be where its operator meant it so.
    pub fn notes(&self) -> Vec<String> {
        let alone = "the certificate stands without its issuer's: only clients and agents that name the issuer with `ca_file` take it";
        if self.chain == Chain::Alone { vec![alone.to_owned()] } else { Vec::new() }
    }
}

/// Whether the key of `issuer` signed `cert`; what can't be told counts as yes.
fn signs(
    issuer: &CertificateDer<'_>,
    cert: Option<&CertificateDer<'_>>,
    now: UnixTime,
    provider: &CryptoProvider,
) -> bool {
    let mut roots = RootCertStore::empty();
    let (Some(Ok(cert)), Ok(())) =
        (cert.map(ParsedCertificate::try_from), roots.add(issuer.clone().into_owned()))
    else {
        return true;
    };
    let algorithms = provider.signature_verification_algorithms.all;
    let verified = verify_server_cert_signed_by_trust_anchor(&cert, &roots, &[], now, algorithms);
    !matches!(
        verified,
        Err(Error::InvalidCertificate(
            CertificateError::BadSignature
                | CertificateError::UnknownIssuer
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        ))
    )
}

/// Public authorities say in a certificate where its issuer's is; those of a house seldom do.
pub(super) fn names_issuers(cert: &X509Certificate<'_>) -> bool {
    cert.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => {
            access.accessdescs.iter().any(|place| place.access_method.to_id_string() == CA_ISSUERS)
        }
        _ => false,
    })
}

/// Says once a day what is wrong with certificates, and at once when one has just expired or another came. What is
/// only to be known is said once of each.
#[derive(Debug, Default)]
pub struct Watch {
    /// When all was said last, in seconds since 1970.
    said_at: Option<u64>,
    /// The configuration was read anew since then.
    is_reloaded: bool,
    /// Those that stood at the last look.
    known: Vec<Standing>,
}

impl Watch {
    /// Has said again what clients refuse: whoever reloads wants to hear that it is so still.
    pub fn reload(&mut self) {
        self.is_reloaded = true;
    }

    /// What to say at `now` (seconds since 1970), each with the place of its service.
    pub fn handle_tick<'a>(&mut self, now: u64, held: impl Iterator<Item = &'a Held>) -> Said {
        let held: Vec<_> = held.collect();
        let expired_since = |at: u64| held.iter().any(|held| (at..now).contains(&held.standing.not_after));
        let is_due = match self.said_at {
            None => true,
            // A clock that was set back.
            Some(at) => now < at || now - at >= DAY_S || expired_since(at),
        };
        let is_reloaded = std::mem::take(&mut self.is_reloaded);
        let mut said = Said::default();
        for (nth, Held { service, place, standing }) in held.iter().enumerate() {
            let is_new = !self.known.contains(standing);
            let at = |words: String| format!("{place}services[{service}].tls_config: {words}");
            if is_due || is_new || is_reloaded {
                said.errors.extend(standing.faults(now).into_iter().map(at));
            }
            if is_due || is_new {
                said.warnings.extend(standing.warnings(now).into_iter().map(at));
            }
            // Services may share one.
            if is_new && held[..nth].iter().all(|before| before.standing != *standing) {
                said.notes.extend(standing.notes().into_iter().map(at));
            }
        }
        if is_due {
            self.said_at = Some(now);
        }
        if !held.iter().map(|held| &held.standing).eq(&self.known) {
            self.known = held.iter().map(|held| held.standing.clone()).collect();
        }
        said
    }
}

/// What is to be said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What clients refuse.
    pub errors: Vec<String>,
    /// What they may refuse, or soon will.
    pub warnings: Vec<String>,
    /// What is good to know, and may be as it is meant.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
    };

    use super::*;
    use crate::certificate::Certificate;

    const NOW: u64 = 1_795_219_200; // 2026-11-21

    struct Authority {
        params: CertificateParams,
        key: KeyPair,
    }

    impl Authority {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            Self { params, key: KeyPair::generate().unwrap() }
        }

        fn pem(&self) -> String {
            self.params.self_signed(&self.key).unwrap().pem()
        }

        /// A certificate and its key.
        fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
            let mut params = CertificateParams::new(vec!["gw.example".to_owned()]).unwrap();
            change(&mut params);
            let key = KeyPair::generate().unwrap();
            let issuer = Issuer::from_params(&self.params, &self.key);
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        }
    }

    fn standing(pem: &str, names: &[&str]) -> Standing {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        Certificate::from_pem(pem.as_bytes()).unwrap().standing(&names).unwrap()
    }

    #[test]
    fn what_clients_refuse_is_a_fault_and_says_the_way_out() {
        let (ours, namesake) = (Authority::new("ours"), Authority::new("ours"));
        let other = Authority::new("other");
        let (cert, key) = ours.sign(|_| {});
        let check = |pem: String, names: &[&str], says: Option<&str>| {
            let faults = standing(&pem, names).faults(NOW);
            match says {
                Some(says) => {
                    assert!(faults.len() == 1 && faults[0].contains(says), "{faults:?}, not {says}");
                }
                None => assert_eq!(faults, Vec::<String>::new()),
            }
        };
        check(format!("{cert}{}{key}", ours.pem()), &["gw.example"], None);
        check(format!("{cert}{}{key}", ours.pem()), &["gw.example", "b.example"], None);
        check(format!("{cert}{}{key}", ours.pem()), &["b.example"], Some("for another name"));
        check(format!("{cert}{}{key}", other.pem()), &["gw.example"], Some("certificate 1 is not signed by"));
        let own = format!("{}{}", ours.pem(), ours.key.serialize_pem());
        check(own, &[], Some("have an authority sign one for the gateway, with basicConstraints CA:FALSE"));
        check(
            format!("{cert}{}{key}", namesake.pem()),
            &["gw.example"],
            Some("certificate 1 is not signed by"),
        );
        let mut edwards = Authority::new("ours");
        edwards.key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        check(
            format!("{cert}{}{key}", edwards.pem()),
            &["gw.example"],
            Some("certificate 1 is not signed by"),
        );
        check(
            format!("{cert}{}{}{key}", ours.pem(), other.pem()),
            &["gw.example"],
            Some("certificate 2 is not"),
        );
        let (old, key) = ours.sign(|params| params.not_after = date_time_ymd(2026, 11, 1));
        check(format!("{old}{}{key}", ours.pem()), &["gw.example"], Some("expired on 2026-11-01 "));
        let (new, key) = ours.sign(|params| params.not_before = date_time_ymd(2026, 12, 1));
        check(format!("{new}{}{key}", ours.pem()), &["gw.example"], Some("only from 2026-12-01 "));
    }

    #[test]
    fn a_lone_certificate_is_incomplete_only_if_its_issuer_is_public() {
        let ours = Authority::new("ours");
        // AuthorityInfoAccess: one description, CA issuers, http://a.
        let access = b"\x30\x16\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x30\x02\x86\x08http://a".to_vec();
        let (public, key) = ours.sign(|params| {
            let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access.clone());
            params.custom_extensions.push(extension);
        });
        let faults = standing(&format!("{public}{key}"), &["gw.example"]).faults(NOW);
        assert!(faults.len() == 1 && faults[0].contains("full chain"), "{faults:?}");
        let (house, key) = ours.sign(|_| {});
        let house = standing(&format!("{house}{key}"), &["gw.example"]);
        assert!(house.faults(NOW).is_empty() && house.warnings(NOW).is_empty());
        assert!(house.notes()[0].contains("ca_file"), "{:?}", house.notes());
        let made = rcgen::generate_simple_self_signed(vec!["gw.example".to_owned()]).unwrap();
        let own = standing(&(made.cert.pem() + &made.signing_key.serialize_pem()), &["gw.example"]);
        assert!(own.faults(NOW).is_empty() && own.warnings(NOW).is_empty() && own.notes().is_empty());
    }

    #[test]
    fn that_clients_need_ca_file_is_said_once_of_each_certificate_and_not_at_each_reload() {
        let ours = Authority::new("ours");
        let held = |service| {
            let (cert, key) = ours.sign(|_| {});
            let standing = standing(&format!("{cert}{key}"), &["gw.example"]);
            Held { service, place: String::new(), standing }
        };
        let (first, second) = (held(0), held(1));
        let shared = Held { service: 2, ..first.clone() };
        let mut watch = Watch::default();
        let mut notes = |now, held: &[&Held]| {
            watch.reload();
            let Said { errors, warnings, notes } = watch.handle_tick(now, held.iter().copied());
            assert!(errors.is_empty() && warnings.is_empty(), "{errors:?} {warnings:?}");
            notes.len()
        };
        assert_eq!(notes(NOW, &[&first, &shared]), 1, "two services with one certificate");
        assert_eq!(notes(NOW + 1, &[&first, &shared]), 0, "a reload that changes nothing of it");
        assert_eq!(notes(NOW + 2 * DAY_S, &[&first]), 0, "another day");
        assert_eq!(notes(NOW + 2 * DAY_S, &[&first, &second]), 1, "another certificate");
        assert_eq!(notes(NOW + 2 * DAY_S, &[&second, &first]), 0);
    }

    #[test]
    fn the_end_is_warned_of_daily_from_14_days_before_and_said_at_once_when_it_comes() {
        let ours = Authority::new("ours");
        let (cert, key) = ours.sign(|params| params.not_after = date_time_ymd(2026, 12, 5));
        let end = NOW + 14 * DAY_S;
        let held = [Held {
            service: 3,
            place: String::new(),
            standing: standing(&format!("{cert}{}{key}", ours.pem()), &["gw.example"]),
        }];
        let mut watch = Watch::default();
        let mut said_at = |now| {
            let Said { errors, warnings, .. } = watch.handle_tick(now, held.iter());
            (errors.len(), warnings.len())
        };
        assert_eq!(said_at(NOW - 2 * DAY_S), (0, 0));
        assert_eq!(said_at(NOW - DAY_S + 9), (0, 0));
        assert_eq!(said_at(NOW + 9), (0, 1));
        assert_eq!(said_at(NOW + 10), (0, 0));
        assert_eq!(said_at(NOW + DAY_S + 9), (0, 1));
        assert_eq!(said_at(end - 5), (0, 1));
        assert_eq!(said_at(end + 1), (1, 0), "it has just expired");
        assert_eq!(said_at(end + 2), (0, 0));
        assert_eq!(said_at(end + DAY_S + 1), (1, 0));
        watch.reload();
        let said = watch.handle_tick(end + DAY_S + 2, held.iter());
        assert!(
            said.errors[0].starts_with("services[3].tls_config: the certificate expired on 2026-12-05"),
            "{said:?}"
        );
    }
}
