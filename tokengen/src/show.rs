//! Role: a token as people read it.
//! Invariants: text from a token is foreign: what can't be printed is escaped.

use std::fmt::{self, Write as _};

use narrowlink_proto::{
    policy::{Grant, Policies},
    printable::escaped,
    token::{Allowance, Claims, Kind, PublishProtocol, Published},
    when::show_from,
};

use crate::{
    inspect::{Inspection, Signature},
    tag,
};

/// All that was found out, a line for each claim. `now` is in seconds since 1970.
pub fn inspection(inspection: &Inspection, now: u64) -> String {
    let Inspection { claims, signature } = inspection;
    let mut page = Page(String::new());
    page.line("kind", tag(claims.kind));
    page.line("uid", claims.uid);
    page.line("name", escaped(&claims.name));
    page.line("jti", escaped(&claims.jti));
    if let Some(iat) = claims.iat {
        page.line("issued", show_from(iat, now));
    }
    page.line("begins", begins(claims, now));
    page.line("expires", expires(claims.exp, now));
    if claims.kind == Kind::Client {
        page.lines("reaches", &grant(&claims.policies));
        page.lines("limits", &limits(&claims.limits));
    }
    if let Some(hosts) = &claims.connect {
        let hosts: Vec<_> = hosts.iter().map(published).collect();
        page.lines("publishes", &or_nothing(hosts));
    }
    page.line("signature", self::signature(signature));
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, key: &str, value: impl fmt::Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{key:<11}{value}");
    }

    fn lines(&mut self, key: &str, values: &[String]) {
        for (index, value) in values.iter().enumerate() {
            self.line(if index == 0 { key } else { "" }, value);
        }
    }
}

fn begins(claims: &Claims, now: u64) -> String {
    match claims.nbf {
        None => "at once".to_owned(),
        Some(nbf) if nbf > now => {
            format!("{}: no gateway takes it before", show_from(nbf, now))
        }
        Some(nbf) => show_from(nbf, now),
    }
}

fn expires(exp: u64, now: u64) -> String {
    let refused = if exp <= now { ": no gateway takes it" } else { "" };
    format!("{}{refused}", show_from(exp, now))
}

fn grant(grant: &Grant) -> Vec<String> {
    match grant.lists() {
        [] => vec!["everything on all agents of its uid".to_owned()],
        [only] => list("", only),
        lists => {
            let first = format!("what all {} lists allow", lists.len());
            let numbered = lists.iter().enumerate();
            std::iter::once(first)
                .chain(numbered.flat_map(|(i, l)| list(&format!("{}. ", i + 1), l)))
                .collect()
        }
    }
}

fn list(number: &str, list: &Policies) -> Vec<String> {
    let mode = match (list.permit, list.policies.is_empty()) {
        (true, false) => "only these",
        (true, true) => "nothing",
        (false, false) => "all but these",
        (false, true) => "all but nothing",
    };
    let indent = " ".repeat(number.len() + 2);
    let items = list.policies.iter().map(|one| format!("{indent}{one}"));
    std::iter::once(format!("{number}{mode}")).chain(items).collect()
}

fn limits(limits: &Allowance) -> Vec<String> {
    let said = limits.in_words();
    if said.is_empty() { vec!["the gateway's".to_owned()] } else { said }
}

fn published(host: &Published) -> String {
    let Published { host, port, path, addr: (addr, to), protocol } = host;
    let at = if *port == 0 { "every port".to_owned() } else { format!("port {port}") };
    let by = match protocol {
        PublishProtocol::Http => "HTTP",
        PublishProtocol::Https => "HTTPS",
        PublishProtocol::Tls => "TLS by its server name",
        PublishProtocol::Tcp => "TCP",
    };
    let addr = if addr.contains(':') { format!("[{}]", escaped(addr)) } else { escaped(addr) };
    format!("{}{} ({at}, {by}) from {addr}:{to}", escaped(host), escaped(path))
}

fn or_nothing(lines: Vec<String>) -> Vec<String> {
    if lines.is_empty() { vec!["nothing".to_owned()] } else { lines }
}

fn signature(signature: &Signature) -> String {
    match signature {
        Signature::Unknown => "NOT VERIFIED: anybody could have written all this; --secret tells".to_owned(),
        Signature::Holds { by, id } => format!("good: by the {} (id {id})", escaped(by)),
        Signature::OtherKind { by, kind } => format!(
            "by the {}, but as {}, which it does not claim to be: no gateway takes it",
            escaped(by),
            tag(*kind)
        ),
        Signature::Foreign { tried } => {
            format!("BAD: not by the {}", escaped(&tried.join(", nor by the ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        id::Uid,
        token::{Keys, Secret},
    };

    use super::*;
    use crate::{input::Input, inspect::inspect, secrets::Candidate};

    const NOW: u64 = 1_800_000_000;

    /// What is shown of the first token of a file.
    fn shown(entries: &str, now: u64) -> String {
        let input = Input::parse(&format!("secret: [1]\ntokens: [{entries}]")).unwrap();
        let drafts = input.drafts(NOW, || "fresh".to_owned()).unwrap().drafts;
        inspection(&Inspection { claims: drafts[0].claims.clone(), signature: Signature::Unknown }, now)
    }

    #[test]
    fn a_clients_token_reads_like_its_yaml() {
        let entries = "
            !Client {uid: 00000000-0000-0000-0000-000000000001, name: laptop, exp: 29d, nbf: 2027-01-16,
                     limits: {sessions: 10, bytes_per_s: 10MB}, policies: [1, 2]},
            !ClientPolicy {uid: 00000000-0000-0000-0000-000000000001, name: p, exp: 30d, pid: 1, policy: !WhiteList [
                !Ip [home, 192.168.0.1/24, [22, 8000-8100], TCP], !Domain [null, '*.lan', 0, ANY], !Any ['my box', true]]},
            !ClientPolicy {uid: 00000000-0000-0000-0000-000000000001, name: q, exp: 30d, pid: 2, policy: !BlackList [
                !Ip ['7', 10.0.0.0/8, 22, HTTPS]]}";
        assert_eq!(
            shown(entries, NOW + 7200),
            "\
kind       Client
uid        00000000-0000-0000-0000-000000000001
name       laptop
jti        fresh
issued     2027-01-15 08:00:00 UTC (2 hours ago)
begins     2027-01-16 00:00:00 UTC (in 14 hours): no gateway takes it before
expires    2027-02-13 08:00:00 UTC (in 28 days)
reaches    what all 2 lists allow
           1. only these
                !Ip [home, 192.168.0.0/24, [22, 8000-8100], TCP]
                !Domain [null, \"*.lan\", 0, ANY]
                !Any [\"my box\", true]
           2. all but these
                !Ip [\"7\", 10.0.0.0/8, 22, HTTPS]
limits     10 sessions at a time
           10 MB a second
signature  NOT VERIFIED: anybody could have written all this; --secret tells
"
        );
    }

    #[test]
    fn what_is_left_out_is_said_in_words() {
        let client = "!Client {uid: 00000000-0000-0000-0000-000000000001, name: c, exp: 1h}";
        let page = shown(client, NOW + 3 * 3600);
        for says in [
            "begins     at once\n",
            "expires    2027-01-15 09:00:00 UTC (2 hours ago): no gateway takes it\n",
            "reaches    everything on all agents of its uid\n",
            "limits     the gateway's\n",
        ] {
            assert!(page.contains(says), "{says}\n{page}");
        }
        let nothing = shown(
            "!Client {uid: 00000000-0000-0000-0000-000000000001, name: c, exp: 1h, policies: !WhiteList []}",
            NOW,
        );
        assert!(nothing.contains("reaches    nothing\n"), "{nothing}");
        let agent = shown("!Agent {uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 1h}", NOW);
        assert!(!agent.contains("reaches") && !agent.contains("limits"), "{agent}");
    }

    #[test]
    fn published_hosts_say_where_they_lead() {
        let page = shown(
            "!AgentPublish {uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 1h, publish_hosts: [
                {host: a.b, connect: {host: 127.0.0.1, port: 80, protocol: HTTP}},
                {host: c.d, port: 443, connect: {host: '::1', port: 443, protocol: TCP}}]}",
            NOW,
        );
        let says = "publishes  a.b (every port, HTTP) from 127.0.0.1:80\n           \
                    c.d (port 443, TCP) from [::1]:443\n";
        assert!(page.contains(says), "{page}");
    }

    #[test]
    fn a_signature_is_called_what_it_is() {
        let claims = Claims::new(Kind::Agent, Uid::nil(), "home", NOW, "j");
        let token = Keys::new(b"two").sign(&claims).unwrap();
        let candidate = |place: &str, bytes: &[u8]| Candidate {
            place: place.to_owned(),
            secret: Secret::from_bytes(bytes.to_vec()).unwrap(),
        };
        let secrets = [candidate("secret in g.yaml", b"one"), candidate("old_secrets[0] in g.yaml", b"two")];
        for (secrets, says) in [
            (
                &secrets[..],
                format!("signature  good: by the old_secrets[0] in g.yaml (id {})\n", Keys::new(b"two").id()),
            ),
            (&secrets[..1], "signature  BAD: not by the secret in g.yaml\n".to_owned()),
        ] {
            let page = inspection(&inspect(&token, Some(secrets)).unwrap(), NOW);
            assert!(page.ends_with(&says), "{page}");
        }
        let other = Signature::OtherKind { by: "secret in g.yaml".into(), kind: Kind::Client };
        assert!(signature(&other).contains("as Client, which it does not claim to be"));
    }

    #[test]
    fn nothing_foreign_steers_the_terminal() {
        let json = r#"{"permit":true,"policies":[{"Any":["\u001b[2J\u202e",true]}]}"#;
        let shown = grant(&serde_json::from_str(json).unwrap()).concat();
        assert!(shown.contains("!Any [") && !shown.contains(['\u{1b}', '\u{202e}']), "{shown}");
    }
}
