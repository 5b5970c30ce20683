//! Role: what an agent publishes: `publish_hosts`, or `connect` as older files have it.
//! Invariants: an error stands at the host that is wrong; of a host that clashes, at the list.
//! See: docs/tokens.md "Published hosts".

use std::fmt;

use narrowlink_proto::token::{PublishProtocol, Published, ServiceError, Services};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, Unexpected},
};

use crate::tagged::{Expected, Mapping};

/// `publish_hosts: [{ host, port, path, connect: { host, port, protocol } }]`. Nothing: the key has no value.
#[derive(Debug)]
pub(crate) struct PublishHosts(pub(crate) Option<Services>);

/// `connect: { host: { addr: [host, port], protocol } }`. Nothing: the key has no value.
#[derive(Debug)]
pub(crate) struct Connect(pub(crate) Option<Services>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostInput {
    host: String,
    #[serde(default)]
    port: Port,
    #[serde(default)]
    path: String,
    connect: Mapping<PlaceInput>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceInput {
    host: String,
    port: Port,
    protocol: PublishProtocol,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceInput {
    addr: Addr,
    protocol: PublishProtocol,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "[host, port]")]
struct Addr(String, Port);

#[derive(Debug, Default, Clone, Copy)]
struct Port(u16);

/// A published host, checked by itself.
#[derive(Debug, Deserialize)]
#[serde(try_from = "HostInput")]
struct Host(Published);

impl Expected for Host {
    const EXPECTED: &'static str = "a mapping with `host`, `port` and `connect`";
}

impl Expected for PlaceInput {
    const EXPECTED: &'static str = "a mapping with `host`, `port` and `protocol`";
}

/// Without a port of the gateway there is but the server name to tell by: so later files write `TCP`.
const fn meant(protocol: PublishProtocol, port: u16) -> PublishProtocol {
    match (protocol, port) {
        (PublishProtocol::Tcp, 0) => PublishProtocol::Tls,
        _ => protocol,
    }
}

impl TryFrom<HostInput> for Host {
    type Error = ServiceError;

    fn try_from(input: HostInput) -> Result<Self, ServiceError> {
        let HostInput { host, port: Port(port), path, connect: Mapping(place) } = input;
        let (addr, protocol) = ((place.host, place.port.0), meant(place.protocol, port));
        checked(Published { host, port, path, addr, protocol }).map(Self)
    }
}

fn checked(host: Published) -> Result<Published, ServiceError> {
    Services::new(vec![host.clone()]).map(|_| host)
}

impl<'de> Deserialize<'de> for PublishHosts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(PublishHostsVisitor)
    }
}

struct PublishHostsVisitor;

impl<'de> de::Visitor<'de> for PublishHostsVisitor {
    type Value = PublishHosts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of hosts, each with `host`, `port` and `connect`")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<PublishHosts, A::Error> {
        let mut hosts = Vec::new();
        while let Some(Mapping(Host(host))) = seq.next_element()? {
            hosts.push(host);
        }
        Services::new(hosts).map(Some).map(PublishHosts).map_err(de::Error::custom)
    }

    fn visit_unit<E: de::Error>(self) -> Result<PublishHosts, E> {
        Ok(PublishHosts(None))
    }
}

impl<'de> Deserialize<'de> for Connect {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ConnectVisitor)
    }
}

struct ConnectVisitor;

impl<'de> de::Visitor<'de> for ConnectVisitor {
    type Value = Connect;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hosts, each with `addr: [host, port]` and `protocol`")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Connect, A::Error> {
        let mut hosts = Vec::new();
        while let Some(host) = map.next_key()? {
            hosts.push(map.next_value_seed(ServiceSeed { host })?);
        }
        Services::new(hosts).map(Some).map(Connect).map_err(de::Error::custom)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Connect, E> {
        Ok(Connect(None))
    }
}

/// What a host of `connect` has behind it.
struct ServiceSeed {
    host: String,
}

impl<'de> DeserializeSeed<'de> for ServiceSeed {
    type Value = Published;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Published, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for ServiceSeed {
    type Value = Published;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping with `addr` and `protocol`")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Published, A::Error> {
        let service = ServiceInput::deserialize(de::value::MapAccessDeserializer::new(map))?;
        let Addr(addr, Port(port)) = service.addr;
        let protocol = meant(service.protocol, 0);
        checked(Published { host: self.host, port: 0, path: String::new(), addr: (addr, port), protocol })
            .map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(PortVisitor)
    }
}

struct PortVisitor;

impl de::Visitor<'_> for PortVisitor {
    type Value = Port;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port from 0 to 65535")
    }

    fn visit_u64<E: de::Error>(self, port: u64) -> Result<Port, E> {
        u16::try_from(port).map(Port).map_err(|_| E::invalid_value(Unexpected::Unsigned(port), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish_hosts(yaml: &str) -> Result<Services, String> {
        narrowlink_proto::yaml::read(yaml)
            .map(|PublishHosts(hosts)| hosts.unwrap())
            .map_err(|e| e.to_string())
    }

    fn connect(yaml: &str) -> Result<Services, String> {
        narrowlink_proto::yaml::read(yaml).map(|Connect(hosts)| hosts.unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn both_forms_say_the_same_and_tcp_goes_by_server_name() {
        for (written, meant) in [
            ("HTTP", PublishProtocol::Http),
            ("HTTPS", PublishProtocol::Https),
            ("TLS", PublishProtocol::Tls),
            ("TCP", PublishProtocol::Tls),
        ] {
            let new = publish_hosts(&format!(
                "[{{host: a.b, port: 0, connect: {{host: '::1', port: 80, protocol: {written}}}}}]"
            ));
            let old = connect(&format!("a.b: {{addr: ['::1', 80], protocol: {written}}}"));
            let addr = ("::1".to_owned(), 80);
            let host = "a.b".into();
            let want =
                Services::new(vec![Published { host, port: 0, path: String::new(), addr, protocol: meant }]);
            assert_eq!((new, old), (Ok(want.clone().unwrap()), Ok(want.unwrap())), "{written}");
        }
    }

    #[test]
    fn a_name_may_lead_elsewhere_on_another_port_of_the_gateway() {
        let host =
            |port: &str, to| format!("{{host: a.b, {port}connect: {{host: x, port: {to}, protocol: TCP}}}}");
        let hosts =
            publish_hosts(&format!("[{}, {}]", host("port: 443, ", 443), host("port: 80, ", 80))).unwrap();
        let both: Vec<_> = hosts.iter().map(|host| (host.port, host.protocol)).collect();
        assert_eq!(both, [(443, PublishProtocol::Tcp), (80, PublishProtocol::Tcp)]);
        let twice = publish_hosts(&format!("[{}, {}]", host("port: 443, ", 443), host("", 80))).unwrap_err();
        assert!(twice.contains("this is published twice"), "{twice}");
    }

    #[test]
    fn requests_of_one_host_may_go_to_several_places_by_their_path() {
        let host =
            |path: &str, to| format!("{{host: a.b, {path}connect: {{host: x, port: {to}, protocol: HTTP}}}}");
        let hosts = publish_hosts(&format!("[{}, {}]", host("", 1), host("path: /api, ", 2))).unwrap();
        assert_eq!(hosts.iter().map(|host| host.name().to_string()).collect::<Vec<_>>(), ["a.b", "a.b/api"]);
        let wrong = publish_hosts(&format!("[{}]", host("path: api, ", 1))).unwrap_err();
        assert!(wrong.contains("[0]: this: a path begins with /"), "{wrong}");
    }

    #[test]
    fn a_host_that_is_none_says_what_is_expected() {
        let place = "{host: x, port: 1, protocol: HTTP}";
        for (yaml, says) in [
            (format!("- {{host: a b, connect: {place}}}"), "[0]: this: a host can't contain ' '"),
            (
                format!("- {{host: a, connect: {place}}}\n- {{host: 10.0.0.1, connect: {place}}}"),
                "[1]: this: ",
            ),
            ("- {host: a, connect: {host: x, port: 0, protocol: HTTP}}".into(), "[0]: this: "),
            (
                "- {host: a, connect: {host: x, port: 1, protocol: FTP}}".into(),
                "[0].connect.protocol: unknown ",
            ),
            ("- {host: a, connect: {host: x, port: 1}}".into(), "[0].connect: `protocol` is missing"),
            (
                "- {host: a, connect: {host: x, port: 65536, protocol: TLS}}".into(),
                "[0].connect.port: expected a port from 0 to 65535",
            ),
            (
                "- {host: a, connect: }".into(),
                "[0].connect: expected a mapping with `host`, `port` and `protocol`",
            ),
            ("- {host: a}".into(), "[0]: `connect` is missing"),
            (format!("- {{host: a, paths: /, connect: {place}}}"), "[0]: unknown key"),
            ("- a".into(), "[0]: expected a mapping with `host`, `port` and `connect`"),
            ("a: {addr: [x, 1], protocol: HTTP}".into(), "expected a list of hosts"),
        ] {
            let why = publish_hosts(&yaml).unwrap_err();
            assert!(why.contains(says), "{yaml}\n{why}");
        }
        for (yaml, says) in [
            (
                "a: {addr: [x, 1], protocol: TLS}\na b: {addr: [x, 1], protocol: TLS}",
                "…: this: a host can't contain ' '",
            ),
            ("a: {addr: [x], protocol: TLS}", "….addr: expected [host, port], found 1 of them"),
            ("a: {addr: [x, 70000], protocol: TLS}", "….addr[1]: expected a port"),
            ("a: {addr: [x, 1], protocol: TLS}\na: {addr: [y, 1], protocol: TLS}", "this key stands twice"),
            ("a: 1", "…: expected a mapping with `addr` and `protocol`"),
            ("- host: a", "expected hosts, each with `addr: [host, port]` and `protocol`"),
        ] {
            let why = connect(yaml).unwrap_err();
            assert!(why.contains(says), "{yaml}\n{why}");
        }
    }
}
