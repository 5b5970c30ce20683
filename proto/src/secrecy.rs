//! Role: tells a secret and a token by their looks, and keeps what a user wrote out of what is said about it.
//! Invariants: a text is recognised by its own form, never by where it stands · what is masked is masked in every
//! spelling that a message could have it in.
//! See: `yaml`, which refuses them where they don't belong; RFC 7519 (JWT).

use std::{fmt, net::IpAddr};

/// Shorter texts are shown: they are flags, verbs and ports rather than secrets, and the message needs them.
const SHOWN_BYTES_MAX: usize = 7;
/// `hex:` and `base64:` with less behind them are host names with a port.
const SECRET_DIGITS_MIN: usize = 8;
/// Three parts of a token at the least: its header alone has more.
const TOKEN_BYTES_MIN: usize = 16;
/// No name of anything else is as long.
const TICKET_BYTES_MIN: usize = 64;
/// The longest port.
const PORT_DIGITS_MAX: usize = 5;
/// What may stand in front of an address.
const SCHEMES: [&str; 7] = ["tcp://", "udp://", "icmp://", "ws://", "wss://", "http://", "https://"];
/// A longer option is none of anybody's.
const OPTION_BYTES_MAX: usize = 24;
/// What stands in place of a masked text.
const MASK: &str = "…";

/// What a text is, by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A signed token.
    Token,
    /// A ticket, which holds a token.
    Ticket,
    /// A secret as configuration files write it: `hex:..` or `base64:..`.
    Secret,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token => "a token",
            Self::Ticket => "a ticket",
            Self::Secret => "a secret",
        })
    }
}

/// What `text` is, if it has the form of something that must not be shown.
pub(crate) fn recognise(text: &str) -> Option<Form> {
    let text = text.trim();
    if is_token(text) {
        return Some(Form::Token);
    }
    if is_ticket(text) {
        return Some(Form::Ticket);
    }
    let digits = text.strip_prefix("hex:").or_else(|| text.strip_prefix("base64:"))?;
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b"+/-_=".contains(&b);
    (digits.len() >= SECRET_DIGITS_MIN && digits.bytes().all(is_digit)).then_some(Form::Secret)
}

fn is_token(text: &str) -> bool {
    let is_base64 = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    // `{"` in base64.
    text.starts_with("eyJ")
        && text.len() >= TOKEN_BYTES_MIN
        && text.bytes().filter(|b| *b == b'.').count() == 2
        && text.split('.').all(is_base64)
}

fn is_ticket(text: &str) -> bool {
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    text.starts_with("nl1") && text.len() >= TICKET_BYTES_MIN && text.bytes().all(is_base64)
}

/// Whether a text that should be a token or a secret looks like the path of a file that holds one.
pub(crate) fn looks_like_path(text: &str) -> bool {
    let endings = [".token", ".jwt", ".txt", ".pem", ".yaml", ".yml", ".bin", ".key", ".secret"];
    text.contains('/') || endings.iter().any(|ending| text.ends_with(ending))
}

/// `message` without `value`, which it may quote: a quoted one becomes "this". Whatever of the value is left after that
/// makes the whole message unfit to be shown.
pub(crate) fn without_value(message: &str, value: &str) -> Option<String> {
    if value.is_empty() {
        return Some(message.to_owned());
    }
    let escaped = value.escape_debug().to_string();
    let mut text = message.to_owned();
    for written in [value, &escaped] {
        for quote in ["`", "\"", "'"] {
            text = text.replace(&format!("{quote}{written}{quote}"), "this");
        }
    }
    (!shares_a_part(&text, value) && !shares_a_part(&text, &escaped)).then_some(text)
}

/// Whether `text` has more than seven characters of `value` in a row.
pub fn shares_a_part(text: &str, value: &str) -> bool {
    let starts: Vec<usize> = value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
    starts.windows(SHOWN_BYTES_MAX + 2).any(|window| {
        let (Some(first), Some(last)) = (window.first(), window.last()) else { return false };
        text.contains(&value[*first..*last])
    })
}

/// What is wrong with a command line, as its parser says it, without what was written there: of the arguments only
/// options, short words and addresses stay in the message. The parser quotes what it repeats, so that words of ours that happen to be
/// part of an argument, such as an example, are not touched.
pub fn mask_arguments(message: &str, arguments: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<_> = arguments.flat_map(quotable).collect();
    parts.retain(|part| part.len() > SHOWN_BYTES_MAX && !is_option(part) && !is_address(part));
    // A part that holds a quoted shorter one must not be left in pieces.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts.iter().fold(message.to_owned(), |text, part| {
        let text = without_quoted(text, part);
        without_quoted(text, &part.escape_debug().to_string())
    })
}

/// All that a parser may quote of an argument: the whole, either side of `--key=value`, and the value behind short
/// options (`-cFILE`, `-vcFILE`).
fn quotable(argument: String) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some((key, value)) = argument.split_once('=') {
        parts.extend([key.to_owned(), value.to_owned()]);
    }
    if argument.starts_with('-') && !argument.starts_with("--") {
        let ends = argument.char_indices().skip(2).take(OPTION_BYTES_MAX);
        parts.extend(ends.map(|(at, _)| argument[at..].to_owned()));
    }
    parts.push(argument);
    parts
}

/// `text` with a mask for `part` where that stands in quotes: by itself, or last of a line to try (`'-- part'`).
fn without_quoted(mut text: String, part: &str) -> String {
    for quote in ["'", "`", "\""] {
        for before in [quote, "-- "] {
            text = text.replace(&format!("{before}{part}{quote}"), &format!("{before}{MASK}{quote}"));
        }
    }
    text
}

/// `--resolved`, known or not.
fn is_option(text: &str) -> bool {
    let name = text.strip_prefix("--").unwrap_or_default();
    (1..=OPTION_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

/// `127.0.0.1`, `[::1]:22`, `tcp://localhost:22`, `2222:10.0.0.1:22`: an address by its form is no secret, and whoever wrote it
/// has to see which one is meant. A name may be a secret.
fn is_address(text: &str) -> bool {
    let text = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let is_port =
        |text: &str| (1..=PORT_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let is_host = |text: &str| {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        bare.parse::<IpAddr>().is_ok() || text.eq_ignore_ascii_case("localhost")
    };
    let is_place = |text: &str| {
        is_host(text) || text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port))
    };
    is_place(text) || text.split_once(':').is_some_and(|(port, place)| is_port(port) && is_place(place))
}

/// The first argument that is a token or a secret where none is taken: its place (the program is 0), and what it is.
/// Those in `takers` may stand in front of one.
pub fn misplaced_argument(arguments: &[String], takers: &[&str]) -> Option<(usize, Form)> {
    let takes = |before: Option<&str>| before.is_some_and(|before| takers.contains(&before));
    arguments.iter().enumerate().skip(1).find_map(|(at, argument)| {
        let option = argument.split_once('=').filter(|(key, _)| is_option(key));
        let (before, value) = match option {
            Some((key, value)) => (Some(key), value),
            None => (arguments.get(at - 1).map(String::as_str), argument.as_str()),
        };
        // A ticket may stand anywhere behind the command that takes it.
        let taken = arguments.iter().take(at).skip(1).any(|word| takers.contains(&word.as_str()));
        let may = |form: &Form| takes(before) || (*form == Form::Ticket && taken);
        recognise(value).filter(|form| !may(form)).map(|form| (at, form))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJraW5kIjoiYWdlbnQifQ.c2lnbmF0dXJl";

    #[test]
    fn a_token_and_a_secret_are_known_by_their_form_and_nothing_else_is_taken_for_one() {
        assert_eq!(recognise(TOKEN), Some(Form::Token));
        assert_eq!(recognise(&format!(" {TOKEN}\n")), Some(Form::Token));
        for secret in ["hex:00112233aabb", "base64:AAECAwQFBgc=", "hex:not-hex-but-meant-so"] {
            assert_eq!(recognise(secret), Some(Form::Secret), "{secret}");
        }
        for other in
            ["", "hex:443", "gw.example:443", "agent.token", "eyJ.a.b", "base64", "eyJ.example.com/a/b"]
        {
            assert_eq!(recognise(other), None, "{other}");
        }
    }

    #[test]
    fn a_path_is_no_token() {
        for path in ["/run/agent.token", "agent.token", "dir/t", "t.txt"] {
            assert!(looks_like_path(path), "{path}");
        }
        assert!(!looks_like_path(TOKEN) && !looks_like_path("abc"));
    }

    #[test]
    fn a_message_loses_the_value_that_it_quotes_or_is_not_shown() {
        let without = |message, value| without_value(message, value);
        assert_eq!(without("`a b` is no host", "a b").as_deref(), Some("this is no host"));
        assert_eq!(without("\"a\\nb\" is no host", "a\nb").as_deref(), Some("this is no host"));
        assert_eq!(
            without("no host such as gw.example", "12345678").as_deref(),
            Some("no host such as gw.example")
        );
        assert_eq!(without("found 12345678 there", "0123456789"), None);
        assert_eq!(without("port 22", "22").as_deref(), Some("port 22"));
    }

    #[test]
    fn arguments_are_masked_but_for_options_and_short_words() {
        let mask = |message: &str, line: &str| mask_arguments(message, line.split(' ').map(str::to_owned));
        for address in [
            "127.79.0.2",
            "127.79.0.2:99999",
            "localhost",
            "LOCALHOST:22",
            "[2001:db8::7]:22",
            "2001:db8::7",
            "udp://127.0.0.1:53",
            "2222:127.0.0.1:22",
        ] {
            let said = format!("bad '{address}' for -l");
            assert_eq!(mask(&said, &format!("-l {address}")), said);
            assert_eq!(mask(&said, &format!("-l{address}")), said);
        }
        for other in
            ["nas.lan:22", "127.0.0.1:swordfish", "swordfish:127.0.0.1", "127.0.0.1:123456", "x://127.0.0.1"]
        {
            assert_eq!(mask(&format!("bad '{other}'"), other), "bad '…'");
        }
        assert_eq!(mask("no lst", "lst"), "no lst");
        assert_eq!(mask("bad '12345678' for --resolved", "--resolved 12345678"), "bad '…' for --resolved");
        assert_eq!(mask("bad 'swordfish' for --token", "--token=swordfish"), "bad '…' for --token");
        assert_eq!(mask("no '--Swordfish'", "--Swordfish="), "no '…'");
        assert_eq!(mask("a 'swordfish-2' here", "swordfish swordfish-2"), "a '…' here");
        assert_eq!(mask("bad 'swordfish' for -l", "-lswordfish"), "bad '…' for -l");
        assert_eq!(mask("use 'prog -- --Swordfish'", "--Swordfish"), "use 'prog -- …'");
        assert_eq!(mask("no 'sword\\nfish'", "sword\nfish"), "no '…'");
    }

    #[test]
    fn an_example_that_holds_what_was_written_stays_whole() {
        let mask = |message: &str, argument: &str| mask_arguments(message, [argument.to_owned()].into_iter());
        let said = "bad 'nas.lan:22' for '--listen <[IP:]PORT>': such as 2222, nas.lan:22222";
        assert_eq!(mask(said, "nas.lan:22"), said.replacen("nas.lan:22", "…", 1));
        assert_eq!(
            mask("the argument '--listen <[IP:]PORT>'", "[IP:]PORT"),
            "the argument '--listen <[IP:]PORT>'"
        );
    }

    #[test]
    fn a_token_among_the_arguments_is_found_unless_it_may_stand_there() {
        let find = |line: &str| {
            let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
            misplaced_argument(&arguments, &["--token", "inspect"])
        };
        assert_eq!(find(&format!("p -c {TOKEN}")), Some((2, Form::Token)));
        assert_eq!(find(&format!("p --config={TOKEN}")), Some((1, Form::Token)));
        assert_eq!(find("p explain --agent hex:0011223344"), Some((3, Form::Secret)));
        for line in ["--token {}", "--token={}", "inspect {}", "-c a.yaml"] {
            assert_eq!(find(&format!("p {}", line.replace("{}", TOKEN))), None, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_has_no_eight_characters_of_the_value(value in ".{0,20}", around in ".{0,10}") {
            let message = format!("{around}{value}{around} is `{value}`");
            if let Some(shown) = without_value(&message, &value) {
                proptest::prop_assert!(!shares_a_part(&shown, &value));
            }
        }
    }
}
