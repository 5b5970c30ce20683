//! Role: the documents hang together: every page is in the book, every link leads somewhere, and what they say of codes and
//! limits is so.
//! See: docs/book.toml.

use std::{
    collections::BTreeSet,
    fs,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use narrowlink_proto::{
    code::Code,
    limits::Limits,
    policy::ITEMS_MAX,
    token::TOKEN_BYTES_MAX,
    upgrade::{HEAD_BYTES_MAX, HEADERS_MAX},
};

/// What a reader may come to first.
const FIRST: [&str; 5] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it stands in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).expect("it can be listed").flatten();
    let docs = docs.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "md"));
    docs.chain(FIRST.map(|name| root().join(name))).collect()
}

/// Text outside blocks of code, with words in backticks as they are.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Where `[words](target)` lead.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let parts = prose.split("](").skip(1);
    parts.filter_map(|part| part.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page's headings, as its readers' programs make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let dir = page.parent().expect("a directory");
        for link in links(&read(&page)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.clone() } else { dir.join(path) };
            let leads = target.exists()
                && (anchor.is_empty() || target.is_file() && anchors(&read(&target)).contains(anchor));
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(seen > 50, "only {seen} links were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_book_once() {
    let summary = links(&read(&root().join("docs/SUMMARY.md")));
    let once: BTreeSet<_> = summary.iter().cloned().collect();
    assert_eq!(once.len(), summary.len(), "{summary:?}");
    let name = |page: PathBuf| page.file_name().map(|name| name.to_string_lossy().into_owned());
    let docs = pages().into_iter().filter(|page| page.parent().is_some_and(|dir| dir.ends_with("docs")));
    let there: BTreeSet<_> = docs.filter_map(name).filter(|name| name != "SUMMARY.md").collect();
    assert_eq!(there, once);
}

#[test]
fn every_code_that_a_page_names_is_one() {
    let known: BTreeSet<_> = Code::ALL.iter().map(ToString::to_string).collect();
    for page in pages() {
        let text = read(&page);
        for (at, _) in text.match_indices("NL-E") {
            let code = text[at..].get(..8).unwrap_or_default();
            assert!(known.contains(code), "{}: {code}", page.display());
        }
    }
}

#[test]
fn the_limits_of_the_security_model_are_the_defaults() {
    let page = read(&root().join("docs/security.md"));
    let limits = Limits::default();
    let s = |time: Duration| time.as_secs();
    let of = |n: Option<NonZeroU32>| n.map_or(0, NonZeroU32::get);
    for words in [
        format!(
            "{} failed logins a minute, then {} s doubling to {} s",
            limits.failed_logins_per_min,
            s(limits.login_penalty_min),
            s(limits.login_penalty_max)
        ),
        format!(
            "{} s for the first bytes, {} s for TLS, {} s for a head; {} at a time for each source, {} in all",
            s(limits.client_hello_timeout),
            s(limits.tls_handshake_timeout),
            s(limits.head_timeout),
            limits.strangers_per_source_max,
            limits.strangers_max
        ),
        format!(
            "{} a second, {} at once",
            limits.strangers_per_source_per_s, limits.strangers_per_source_burst
        ),
        format!(
            "{} KiB and {HEADERS_MAX} headers, {} KiB a token",
            HEAD_BYTES_MAX / 1024,
            TOKEN_BYTES_MAX / 1024
        ),
        format!("{ITEMS_MAX} rules a token"),
        format!(
            "{} sessions, {} streams, {} new sessions a second, {} links",
            of(limits.token.sessions),
            of(limits.token.streams),
            of(limits.token.dials_per_s),
            limits.client_links_max
        ),
        format!(
            "{} lanes, {} new ones a second, {} links; {} s to answer a dial",
            limits.agent_lanes_max,
            limits.agent_lanes_per_s,
            limits.agent_links_max,
            s(limits.dial_timeout)
        ),
        format!("{} s between pings, {} s for an answer", s(limits.ping_interval), s(limits.pong_timeout)),
    ] {
        assert!(page.contains(&words), "docs/security.md does not say: {words}");
    }
}

#[test]
fn a_heading_s_anchor_is_found() {
    let text = "# One\n```\n# no heading\n```\n## `join` and login, 2\n[a](b.md#c) `[d](e)`\n";
    assert_eq!(anchors(text).into_iter().collect::<Vec<_>>(), ["join-and-login-2", "one"]);
    assert_eq!(links(text), ["b.md#c", "e"]);
}
