//! Role: an item as people write it in YAML: `!Ip [home, 10.0.0.0/8, [22, 8000-8100], TCP]`.
//! Invariants: what is written reads back as the same item; nothing in it can paint a terminal or forge a line.
//! See: YAML 1.1, 5.7 (escapes); docs/policy.md.

use std::{
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use super::{Item, Protocol};

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agent = Agent(self.agent());
        match self {
            Self::Ip(_, net, ports, protocol) => {
                write!(f, "!Ip [{agent}, {}, {}, {protocol}]", Text(&net.short()), ports.written())
            }
            Self::Domain(_, name, ports, protocol) => {
                write!(f, "!Domain [{agent}, {}, {}, {protocol}]", Text(&name.to_string()), ports.written())
            }
            Self::Any(_, allow) => write!(f, "!Any [{agent}, {allow}]"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Any => "ANY",
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
        })
    }
}

struct Agent<'a>(Option<&'a str>);

impl fmt::Display for Agent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => Text(name).fmt(f),
            None => f.write_str("null"),
        }
    }
}

/// A text, in quotes unless it can be taken for nothing else.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_plain(self.0) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\'' => f.write_char(c)?,
                // What Rust would print as it is.
                c if c.escape_debug().len() == 1 => f.write_char(c)?,
                c => write!(f, "\\U{:08x}", u32::from(c))?,
            }
        }
        f.write_char('"')
    }
}

/// Whether YAML reads it as this text without quotes.
fn is_plain(text: &str) -> bool {
    // No number has three dots or a slash.
    if text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv4Net>().is_ok() {
        return true;
    }
    const OTHER_MEANING: [&str; 9] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !OTHER_MEANING.iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Cidr, NamePattern, Ports};
    use super::*;

    #[test]
    fn items_are_written_as_in_the_documentation() {
        for yaml in [
            "!Ip [home, 192.168.0.0/24, 22, TCP]",
            "!Ip [home, 10.0.0.0/8, [22, 8000-8100], TCP]",
            "!Ip [null, 127.0.0.1, 0, ANY]",
            "!Ip [null, \"fd00::/8\", 8000-8100, UDP]",
            "!Ip [null, \"::1\", 443, HTTPS]",
            "!Domain [home, \"*.lan\", [80, 443], HTTP]",
            "!Domain [\"a b\", nas.lan, 22, TLS]",
            "!Any [office, true]",
            "!Any [\"null\", false]",
        ] {
            let item: Item = serde_yaml::from_str(yaml).unwrap();
            assert_eq!(item.to_string(), yaml);
        }
    }

    #[test]
    fn a_foreign_name_stays_in_its_line() {
        let item = Item::Any(Some("a\u{1b}[2J\n\u{202e}\"é".to_owned()), true);
        assert_eq!(item.to_string(), r#"!Any ["a\U0000001b[2J\U0000000a\U0000202e\"é", true]"#);
    }

    /// Names that YAML would take for something else.
    const ODD: [&str; 14] =
        ["null", "~", "", "true", "No", "7", "0x7", "1e3", ".inf", "a: b", "a #b", "- a", "!Any", "y"];

    fn agent() -> impl Strategy<Value = Option<String>> {
        prop_oneof![
            Just(None),
            any::<String>().prop_map(Some),
            prop::sample::select(&ODD[..]).prop_map(|name| Some(name.to_owned())),
            "[a-zA-Z][a-zA-Z0-9_.-]{0,8}".prop_map(Some),
        ]
    }

    fn ports() -> impl Strategy<Value = Ports> {
        let range = (1u16.., 0u16..100).prop_map(|(first, more)| (first, first.saturating_add(more)));
        prop::collection::vec(range, 0..4).prop_map(|ranges| {
            let ranges: Vec<_> = ranges.iter().map(|(first, last)| format!("\"{first}-{last}\"")).collect();
            let yaml = if ranges.is_empty() { "0".to_owned() } else { format!("[{}]", ranges.join(", ")) };
            serde_yaml::from_str(&yaml).unwrap()
        })
    }

    fn item() -> impl Strategy<Value = Item> {
        use Protocol::{Any, Http, Https, Tcp, Tls, Udp};
        let protocol = || prop::sample::select(&[Tcp, Udp, Any, Http, Https, Tls][..]);
        let net = (any::<std::net::IpAddr>(), 0u8..=128).prop_map(|(ip, bits)| {
            let bits = if ip.is_ipv4() { bits / 4 } else { bits };
            format!("{ip}/{bits}").parse::<Cidr>().ok()
        });
        let net = net.prop_filter_map("mixed", |net| net);
        let name = "(\\*\\.|\\*\\*\\.)?[a-z0-9_-]{1,5}(\\.[a-z0-9_é-]{1,5}){0,3}";
        let name = name.prop_filter_map("no name", |name: String| name.parse::<NamePattern>().ok());
        prop_oneof![
            (agent(), net, ports(), protocol()).prop_map(|(a, net, ports, p)| Item::Ip(a, net, ports, p)),
            (agent(), name, ports(), protocol())
                .prop_map(|(a, name, ports, p)| Item::Domain(a, name, ports, p)),
            (agent(), any::<bool>()).prop_map(|(agent, allow)| Item::Any(agent, allow)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(items in prop::collection::vec(item(), 1..4)) {
            for item in &items {
                let written = item.to_string();
                prop_assert_eq!(written.lines().count(), 1);
                let read = serde_yaml::from_str::<Item>(&written);
                prop_assert_eq!(read.map_err(|e| format!("{written}: {e}")), Ok(item.clone()));
            }
            let lines = items.iter().map(|item| format!("- {item}\n"));
            prop_assert_eq!(&serde_yaml::from_str::<Vec<Item>>(&lines.collect::<String>()).unwrap(), &items);
            let flow: Vec<_> = items.iter().map(Item::to_string).collect();
            let flow = format!("[{}]", flow.join(", "));
            prop_assert_eq!(serde_yaml::from_str::<Vec<Item>>(&flow).unwrap(), items);
        }
    }
}
