//! Role: what an answer's head tells of its sender's clock, and of proxies on its way.
//! Invariants: nothing is decided on it: it is for people who look for a fault.
//! See: RFC 9110 sections 5.6.7 (dates) and 7.6.3 (Via).

use super::HEADERS_MAX;
use crate::{
    http::head::{self, Headers},
    printable::printable,
    when::{date, parse_date},
};

/// A value is repeated no longer than this.
const VALUE_CHARS_MAX: usize = 60;
/// What proxies and CDNs add, and a gateway never sends; whether the value says who it is.
const FOREIGN: [(&str, bool); 9] = [
    ("Via", true),
    ("Server", true),
    ("CF-RAY", false),
    ("X-Amz-Cf-Id", false),
    ("X-Azure-Ref", false),
    ("X-Fastly-Request-ID", false),
    ("X-Served-By", false),
    ("X-Cache", false),
    ("X-Varnish", false),
];
const DAY_S: u64 = 24 * 60 * 60;
const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// What a head tells besides its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// What the sender's clock said, in seconds since 1970.
    pub date: Option<u64>,
    /// The headers that something on the way has added; printable.
    pub proxies: Vec<String>,
}

impl Trace {
    /// Of an answer as it came, hints before it included; empty for what is none.
    pub fn of(buf: &[u8]) -> Self {
        let mut start = 0;
        while let Ok(Some(end)) = head::end(buf, start) {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut parsed = httparse::Response::new(&mut headers);
            if parsed.parse(&buf[start..end]).is_err() {
                break;
            }
            if !matches!(parsed.code, Some(100 | 102..200)) {
                return Self::read(&Headers(parsed.headers));
            }
            start = end;
        }
        Self::default()
    }

    fn read(headers: &Headers<'_, '_>) -> Self {
        let text = |name: &str| headers.first(name).map(String::from_utf8_lossy);
        let date = text("Date").and_then(|date| parse_http_date(&date));
        let shown = |(name, says): &(&str, bool)| {
            let value = text(name)?;
            let said = format!("{name}: {}", printable(value.trim(), VALUE_CHARS_MAX));
            Some(if *says { said } else { (*name).to_owned() })
        };
        Self { date, proxies: FOREIGN.iter().filter_map(shown).collect() }
    }
}

/// Seconds since 1970 as HTTP writes them: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date(at: u64) -> String {
    let (days, second) = (at / DAY_S, at % DAY_S);
    let date = date(at);
    let mut fields = date.split('-');
    let (year, month, day) = (fields.next(), fields.next(), fields.next());
    let month = month.and_then(|month| month.parse::<usize>().ok()).and_then(|month| MONTHS.get(month - 1));
    // 1970 began on a Thursday.
    let weekday = WEEKDAYS[((days + 4) % 7) as usize];
    format!(
        "{weekday}, {} {} {} {:02}:{:02}:{:02} GMT",
        day.unwrap_or_default(),
        month.unwrap_or(&""),
        year.unwrap_or_default(),
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970. Nobody has sent the two older forms for long.
fn parse_http_date(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(", ")?;
    let words: Vec<_> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let start = parse_date(&format!("{year}-{month:02}-{day}")).ok()?;
    let fields: Vec<_> = time.split(':').map(|field| field.parse::<u64>().ok()).collect();
    match fields[..] {
        // A leap second is the first of the next minute here.
        [Some(hour @ 0..24), Some(minute @ 0..60), Some(second @ 0..=60)] => {
            Some(start + hour * 3600 + minute * 60 + second)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_date_is_read_as_http_writes_it() {
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for (at, text) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
        ] {
            assert_eq!((http_date(at).as_str(), parse_http_date(text)), (text, Some(at)));
        }
        assert_eq!(parse_http_date("Fri, 20 Nov 2026 00:00:00 GMT"), Some(1_795_132_800));
        for bad in [
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "now",
            "",
        ] {
            assert_eq!(parse_http_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn proxies_are_known_by_what_they_add_also_behind_a_hint() {
        let head = b"HTTP/1.1 103 Early Hints\r\nServer: hint\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\
                     Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nvia: 1.1 \xe2\x80\xaesquid\r\ncf-ray: 8a\r\n\r\n";
        let trace = Trace::of(head);
        assert_eq!(trace.date, Some(784_111_777));
        assert_eq!(trace.proxies, ["Via: 1.1 squid", "CF-RAY"]);
        for nothing in [&b"SSH-2.0-OpenSSH_9.6\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\n", b""] {
            assert_eq!(Trace::of(nothing), Trace::default());
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Trace::of(&bytes);
            let _ = Trace::of(&[b"HTTP/1.1 200 OK\r\nDate: ", &bytes[..], b"\r\n\r\n"].concat());
        }

        #[test]
        fn no_text_is_a_date_that_panics(text: String) {
            let _ = parse_http_date(&format!("x, {text} GMT"));
        }
    }
}
