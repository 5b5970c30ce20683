//! Role: what a forward is asked for, and what it says of that when it begins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use narrowlink_proto::target::Target;
use serde::Serialize;

/// What is to be forwarded, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The agent that dials.
    pub agent: String,
    /// What it dials.
    pub target: Target,
    /// Where to listen.
    pub listen: SocketAddr,
}

/// What a forward says to programs when it listens.
#[derive(Serialize)]
struct Listening<'a> {
    listening: SocketAddr,
    agent: &'a str,
    target: String,
}

impl Plan {
    /// For programs: one object, in one line. `addr` is where it listens now.
    ///
    /// # Errors
    /// None that a plan can have.
    pub fn json(&self, addr: SocketAddr) -> serde_json::Result<String> {
        let listening = Listening { listening: addr, agent: &self.agent, target: self.target.to_string() };
        serde_json::to_string(&listening).map(|text| text + "\n")
    }

    /// Who else can use it, and what to write instead, unless only this machine can.
    pub fn exposure(&self) -> Option<String> {
        let Self { listen, target, .. } = self;
        let ip = listen.ip().to_canonical();
        if ip.is_loopback() {
            return None;
        }
        let own: IpAddr = if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let instead = SocketAddr::new(own, listen.port());
        let who = match ip.is_unspecified() {
            true => "every machine that reaches this one at any of its addresses".to_owned(),
            false => format!("every machine that reaches {ip}"),
        };
        Some(format!(
            "{listen} is open to others: {who} reaches {target} with your token; for this machine alone write -l {instead}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(listen: &str) -> Plan {
        let target = Target::Tcp { host: "127.0.0.1".to_owned(), port: 22 };
        Plan { agent: "home".to_owned(), target, listen: listen.parse().unwrap() }
    }

    #[test]
    fn a_program_hears_where_a_forward_listens_and_what_it_reaches() {
        let said = plan("127.0.0.1:0").json("127.0.0.1:2222".parse().unwrap()).unwrap();
        assert_eq!(
            said,
            "{\"listening\":\"127.0.0.1:2222\",\"agent\":\"home\",\"target\":\"tcp://127.0.0.1:22\"}\n"
        );
    }

    #[test]
    fn only_a_forward_that_others_reach_warns_and_says_what_to_write() {
        for listen in ["127.0.0.1:22", "127.1.2.3:22", "[::1]:22", "[::ffff:127.0.0.1]:22"] {
            assert_eq!(plan(listen).exposure(), None, "{listen}");
        }
        for (listen, who, instead) in [
            ("0.0.0.0:22", "at any of its addresses", "-l 127.0.0.1:22"),
            ("[::]:22", "at any of its addresses", "-l [::1]:22"),
            ("192.168.1.9:0", "that reaches 192.168.1.9 ", "-l 127.0.0.1:0"),
            ("[fe80::1]:22", "that reaches fe80::1 ", "-l [::1]:22"),
        ] {
            let said = plan(listen).exposure().unwrap_or_default();
            assert!(said.starts_with(&format!("{listen} is open to others")), "{said}");
            assert!(said.contains(who) && said.ends_with(instead) && !said.contains('\n'), "{said}");
        }
    }
}
