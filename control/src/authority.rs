//! Role: a certification authority of the gateway's own, and the certificate that it signs for it, for gateways whose name
//! no public authority signs.
//! Invariants: the pin of its key is all that agents and clients need to know · both keys are drawn here and go nowhere but into
//! their files.
//! See: `dataplane::tls::pinned`, which believes it; RFC 5280.

use narrowlink_proto::{pin::Pin, target::Destination, when::date};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// How long both hold. No browser sees them, and who must not be believed any more is replaced, with a new pin.
const YEARS: i32 = 10;
const DAY_S: u64 = 24 * 60 * 60;

/// An authority and what it has signed, as files have them (PEM).
pub struct Authority {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: Zeroizing<String>,
    /// Its key's pin.
    pub pin: Pin,
    /// The gateway's certificate, and behind it the authority's, which a pin is held against.
    pub chain: String,
    /// The gateway's key.
    pub chain_key: Zeroizing<String>,
}

/// No certificate for these names. Our own fault, or a name that none can have.
#[derive(Debug, thiserror::Error)]
#[error("no certificate can be made for {names}: {why}")]
pub struct AuthorityError {
    names: String,
    why: rcgen::Error,
}

impl Authority {
    /// A new one, and a certificate for `names`, from `now` on (seconds since 1970).
    ///
    /// # Errors
    /// A name that no certificate can have.
    pub fn new(names: &[Destination], now: u64) -> Result<Self, AuthorityError> {
        Self::sign(names, now).map_err(|why| {
            let names = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            AuthorityError { names, why }
        })
    }

    fn sign(names: &[Destination], now: u64) -> Result<Self, rcgen::Error> {
        let first = names.first().map(ToString::to_string).unwrap_or_default();
        let mut params = params(&format!("Narrowlink authority of {first}"), now);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pin = Pin::of(&key.subject_public_key_info());
        let certificate = params.self_signed(&key)?.pem();
        let key_pem = Zeroizing::new(key.serialize_pem());
        let issuer = Issuer::new(params, key);
        let mut params = self::params(&first, now);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = names
            .iter()
            .map(|name| match name {
                Destination::Ip(ip) => Ok(SanType::IpAddress(*ip)),
                Destination::Name(name) | Destination::Unix(name) => {
                    Ok(SanType::DnsName(name.as_str().try_into()?))
                }
            })
            .collect::<Result<_, rcgen::Error>>()?;
        let own_key = KeyPair::generate()?;
        let own = params.signed_by(&own_key, &issuer)?.pem();
        let (chain, chain_key) = (own + &certificate, Zeroizing::new(own_key.serialize_pem()));
        Ok(Self { certificate, key: key_pem, pin, chain, chain_key })
    }
}

/// The pin of the authority whose certificate is the first of a text (PEM).
pub(crate) fn pin_of(pem: &str) -> Option<Pin> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(Pin::of(certificate.public_key().raw))
}

/// From yesterday on, for clocks that are behind.
fn params(name: &str, now: u64) -> CertificateParams {
    let from = date(now.saturating_sub(DAY_S));
    let field = |at: usize| from.split('-').nth(at).and_then(|text| text.parse::<u16>().ok()).unwrap_or(1);
    let year = i32::from(field(0));
    #[expect(clippy::cast_possible_truncation, reason = "a month and a day")]
    let (month, day) = (field(1) as u8, field(2) as u8);
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(year, month, day);
    // Every year has this day.
    params.not_after = date_time_ymd(year + YEARS, month, day.min(28));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_219_200;

    #[test]
    fn a_chain_has_the_gateway_s_certificate_and_the_authority_s_whose_key_is_pinned() {
        let names = ["gw.example", "192.0.2.1"].map(|name| Destination::parse(name).unwrap());
        let made = Authority::new(&names, NOW).unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(made.chain.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(chain.len(), 2);
        let (_, own) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let (_, authority) = x509_parser::parse_x509_certificate(&chain[1]).unwrap();
        assert!(made.pin.is_of(authority.public_key().raw) && !made.pin.is_of(own.public_key().raw));
        assert!(authority.is_ca() && !own.is_ca());
        assert_eq!(own.issuer(), authority.subject());
        let names = &own.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 2);
        let from = u64::try_from(own.validity().not_before.timestamp()).unwrap();
        assert!((NOW - 2 * DAY_S..NOW).contains(&from));
        assert!(
            made.key.starts_with("-----BEGIN PRIVATE KEY")
                && made.chain_key.starts_with("-----BEGIN PRIVATE KEY")
        );
        assert_ne!(*made.key, *made.chain_key);
    }
}
