//! Role: the way to a gateway below HTTP: its name, its addresses, TLS, and what the path carries.
//! Invariants: each address is asked by itself, and none longer than its share of the step · a certificate is shown only
//! once it was verified.
//! See: RFC 8305 for how the programs choose among addresses; RFC 8200 section 5 for the least MTU of IPv6.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use narrowlink_proto::{
    finding::{Finding, Trouble},
    printable::printable,
    when::{date, distance},
};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::{PENALTY, STEP_TIMEOUT, clock::Span};
use crate::{
    net::{
        dial::{ADDRESS_TIMEOUT, connect, in_words},
        plain::Plain,
        resolve::{Asker, resolve},
    },
    peer::open::{Gateway, was_cut},
    run::timer::timeout,
    transport::wire::Wire,
    tunnel::error::cause_and_step,
};

/// Addresses that are asked; a name has a few.
const ADDRS_MAX: usize = 16;
/// Names of a certificate that are shown.
const NAMES_MAX: usize = 4;
const NAME_CHARS_MAX: usize = 80;
/// From so long before its end on a certificate is warned of, as at the gateway.
const AHEAD_S: u64 = 14 * 24 * 60 * 60;
/// What every link of IPv6 carries; less is a tunnel that is set up wrong.
const MTU_MIN: u32 = 1280;

/// The addresses of a gateway's name.
pub(super) async fn resolve_gateway(host: &str, port: u16) -> (Finding, Option<Vec<SocketAddr>>) {
    match resolve(Asker::Gateway(host.into()), host, port, STEP_TIMEOUT).await {
        Ok(addrs) => {
            let shown: Vec<_> = addrs.iter().map(|addr| addr.ip().to_string()).collect();
            let is_literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
            let found = if is_literal { "an address, no name".to_owned() } else { shown.join(", ") };
            (Finding::ok("dns", found), Some(addrs))
        }
        Err(e) => {
            let next = "is the name written right, and is this machine online?";
            (Finding::fail("dns", Trouble::Unreachable, e.to_string(), next), None)
        }
    }
}

/// An address that answered.
pub(super) struct Reached {
    pub(super) addr: SocketAddr,
    /// What the path carries, as far as the kernel knows.
    pub(super) mtu: Option<u32>,
}

/// Connects to each address, and tells how long that took.
pub(super) async fn reach(addrs: &[SocketAddr]) -> (Finding, Option<Reached>) {
    let until = Instant::now() + STEP_TIMEOUT;
    let (mut words, mut first, mut last) = (Vec::new(), None, None);
    let mut missed = 0;
    for addr in &addrs[..addrs.len().min(ADDRS_MAX)] {
        let (began, patience) = (Instant::now(), until.saturating_duration_since(Instant::now()));
        match connect(*addr, patience.min(ADDRESS_TIMEOUT)).await {
            Ok(socket) => {
                words.push(format!("{addr} in {}", shown_ms(began.elapsed())));
                first.get_or_insert_with(|| Reached { addr: *addr, mtu: mtu_of(&socket) });
                socket.close_gently();
            }
            Err(e) => {
                words.push(format!("{addr}: {}", in_words(&e)));
                // Without a way there, the check of IPv6 says so.
                missed += usize::from(!is_without_a_way(&e));
                last = Some(e);
            }
        }
    }
    if addrs.len() > ADDRS_MAX {
        words.push(format!("{} more not asked", addrs.len() - ADDRS_MAX));
    }
    let found = words.join(", ");
    let said = match (&first, last) {
        (Some(_), Some(_)) if missed > 0 => {
            let next = "take the addresses that do not answer out of the name, or mend them: each delays a connection";
            Finding::warn("tcp", found, next)
        }
        (Some(_), _) => Finding::ok("tcp", found),
        (None, error) => Finding::fail("tcp", Trouble::Unreachable, found, unreached(error.as_ref())),
    };
    (said, first)
}

fn is_without_a_way(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
}

fn unreached(error: Option<&io::Error>) -> &'static str {
    use io::ErrorKind as Kind;
    match error.map(io::Error::kind) {
        Some(Kind::ConnectionRefused) => "is the gateway running, and the port right?",
        Some(Kind::TimedOut) => "is its host up, or a firewall between?",
        Some(Kind::HostUnreachable | Kind::NetworkUnreachable) => "is this machine online?",
        _ => "is the address right?",
    }
}

/// Milliseconds, of short ones the tenths.
pub(super) fn shown_ms(took: Duration) -> String {
    let us = took.as_micros();
    if us < 10_000 { format!("{}.{} ms", us / 1000, us % 1000 / 100) } else { format!("{} ms", us / 1000) }
}

/// A gateway's certificate.
pub(super) struct Certificate {
    names: Vec<String>,
    not_before: u64,
    not_after: u64,
}

impl Certificate {
    fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(printable(name, NAME_CHARS_MAX)),
            GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        });
        Some(Self {
            names: names.collect(),
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
        })
    }

    pub(super) fn span(&self) -> Span {
        let (from, until) = (self.not_before, self.not_after.saturating_add(1));
        Span { what: "certificate", from, until, trouble: Trouble::Unreachable }
    }

    fn judge(&self, now: u64) -> Finding {
        let mut found =
            format!("a certificate for {}", self.names[..self.names.len().min(NAMES_MAX)].join(", "));
        if self.names.len() > NAMES_MAX {
            let _ = write!(found, ", {} more", self.names.len() - NAMES_MAX);
        }
        let end = format!("{} ({})", date(self.not_after), distance(self.not_after, now));
        if self.not_after.saturating_sub(now) <= AHEAD_S {
            return Finding::warn("tls", format!("{found}, which ends on {end}"), "renew it at the gateway");
        }
        Finding::ok("tls", format!("{found}, until {end}"))
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// A connection on which the gateway can be asked.
pub(super) struct Shaken {
    pub(super) wire: Wire,
    /// `None` without TLS.
    pub(super) certificate: Option<Certificate>,
}

/// Connects anew and makes the handshake.
pub(super) async fn shake(
    gateway: &Gateway,
    reached: &Reached,
    now: u64,
) -> Result<(Finding, Shaken), Finding> {
    let shaken = timeout(STEP_TIMEOUT, try_to_shake(gateway, reached.addr)).await.unwrap_or_else(|_| {
        let found = format!("it accepts connections and says nothing for {} s", STEP_TIMEOUT.as_secs());
        Err(failed(&found, "is this the gateway's port, and is it well?"))
    });
    let (wire, shown) = shaken?;
    if !gateway.is_tls() {
        let found = "none, as the configuration says (protocol: Ws): who is between can read all of it";
        return Ok((Finding::ok("tls", found), Shaken { wire, certificate: None }));
    }
    let certificate = shown.as_ref().and_then(Certificate::parse);
    let said = match &certificate {
        Some(certificate) => certificate.judge(now),
        None => Finding::ok("tls", "a certificate that holds"),
    };
    Ok((said, Shaken { wire, certificate }))
}

/// As the programs do it: whoever was cut off without a word comes once more.
async fn try_to_shake(
    gateway: &Gateway,
    addr: SocketAddr,
) -> Result<(Wire, Option<CertificateDer<'static>>), Finding> {
    let connect = async || {
        let socket = connect(addr, ADDRESS_TIMEOUT).await;
        socket.map_err(|e| failed(&in_words(&e), unreached(Some(&e))))
    };
    let mut shaken = gateway.shake(connect().await?).await;
    if shaken.as_ref().is_err_and(was_cut) {
        shaken = gateway.shake(connect().await?).await;
    }
    shaken.map_err(|e| {
        let why = gateway.tls_words(&e);
        let (found, next) = cause_and_step(&why);
        let next = next.unwrap_or("is this the gateway's port?");
        if was_cut(&e) { failed(found, &format!("{next}; {PENALTY}")) } else { failed(found, next) }
    })
}

fn failed(found: &str, next: &str) -> Finding {
    Finding::fail("tls", Trouble::Unreachable, found, next)
}

fn mtu_of(socket: &Plain) -> Option<u32> {
    socket.socket()?.tcp_info().map(|info| info.tcpi_pmtu).filter(|mtu| *mtu > 0)
}

/// Whether the path carries what every path of IPv6 does.
pub(super) fn mtu(mtu: Option<u32>) -> Finding {
    match mtu {
        Some(mtu) if mtu < MTU_MIN => Finding::warn(
            "mtu",
            format!("the path carries packets of {mtu} bytes only"),
            format!("set the MTU of the VPN or tunnel on the way to {MTU_MIN} or more"),
        ),
        Some(mtu) => {
            Finding::ok("mtu", format!("the path carries packets of {mtu} bytes, as far as is known"))
        }
        None => Finding::ok("mtu", "the kernel does not say"),
    }
}

/// Whether the name's IPv6 addresses are of any use here.
pub(super) fn ipv6(addrs: &[SocketAddr]) -> Finding {
    let first = addrs.iter().find(|addr| addr.is_ipv6());
    judge_ipv6(first.is_some(), addrs.iter().any(SocketAddr::is_ipv4), first.is_some_and(has_way))
}

/// Whether the kernel knows a way to an address; nothing is sent.
fn has_way(addr: &SocketAddr) -> bool {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    socket.is_ok_and(|socket| socket.connect(addr).is_ok())
}

fn judge_ipv6(six: bool, four: bool, way: bool) -> Finding {
    match (six, four, way) {
        (false, ..) => Finding::ok("ipv6", "the gateway has no IPv6 address; IPv4 is used"),
        (true, _, true) => {
            Finding::ok("ipv6", "the gateway has IPv6 addresses, and this machine a way to them")
        }
        (true, true, false) => {
            Finding::ok("ipv6", "this machine has no way to the gateway's IPv6 addresses; IPv4 is used")
        }
        (true, false, false) => Finding::warn(
            "ipv6",
            "the gateway has IPv6 addresses alone, and this machine has no way to them",
            "give the gateway's name an IPv4 address, or this machine IPv6",
        ),
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::finding::State;

    use super::*;

    #[test]
    fn a_narrow_path_and_ipv6_without_a_way_are_warned_of() {
        assert_eq!(mtu(Some(1279)).state, State::Warn);
        assert!([Some(1280), Some(65_535), None].map(mtu).iter().all(|said| said.state == State::Ok));
        for (six, four, way, state) in [
            (false, true, false, State::Ok),
            (true, true, true, State::Ok),
            (true, true, false, State::Ok),
            (true, false, true, State::Ok),
            (true, false, false, State::Warn),
        ] {
            assert_eq!(judge_ipv6(six, four, way).state, state, "{six} {four} {way}");
        }
    }

    #[test]
    fn a_certificate_is_said_with_its_names_and_its_end_and_warned_of_before_it() {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = (0..6).map(|n| format!("gw{n}.test")).chain(["192.0.2.1".to_owned()]).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(2027, 3, 1);
        let made = params.self_signed(&key).unwrap();
        let certificate = Certificate::parse(made.der()).unwrap();
        let end = certificate.not_after;
        let said = certificate.judge(end - 90 * 86_400);
        assert_eq!(
            said.found,
            "a certificate for gw0.test, gw1.test, gw2.test, gw3.test, 3 more, until 2027-03-01 (in 90 days)"
        );
        assert_eq!(certificate.names[6], "192.0.2.1");
        assert_eq!(certificate.judge(end - AHEAD_S).state, State::Warn);
        assert!(Certificate::parse(&CertificateDer::from(&b"nonsense"[..])).is_none());
    }

    #[test]
    fn a_short_time_is_shown_with_its_tenths() {
        for (us, shown) in [(0, "0.0 ms"), (1_250, "1.2 ms"), (9_999, "9.9 ms"), (45_678, "45 ms")] {
            assert_eq!(shown_ms(Duration::from_micros(us)), shown);
        }
    }
}
