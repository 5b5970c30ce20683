//! Role: what a look at a way to a gateway has found, and how `doctor` says it: for people and for programs.
//! Invariants: a finding is one line, and nothing in it moves the cursor or hides · WARN and FAIL say what to do next, FAIL
//! also whose trouble it is.
//! See: `dataplane::peer::doctor`, which looks.

use serde_json::json;

use crate::printable::printable;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and something about it should be known.
    Warn,
    /// It does not work.
    Fail,
    /// It was not looked at, because something before it has failed.
    Skip,
}

impl State {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
        }
    }
}

/// Whose a trouble is. Each program has an exit code for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The configuration, or a file that it names, can't be used.
    Configuration,
    /// The token can't be used by this program, or its time is over.
    Token,
    /// The gateway does not accept the token.
    Refused,
    /// The gateway can't be reached, or something else answers in its place.
    Unreachable,
    /// The system lacks what was required of it.
    Internal,
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in one word.
    pub check: &'static str,
    /// The gateway that it is about; `None` for this machine and its files.
    pub endpoint: Option<String>,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it; with WARN and FAIL alone.
    pub next: Option<String>,
    /// Whose trouble it is; with FAIL alone.
    pub trouble: Option<Trouble>,
}

impl Finding {
    fn new(check: &'static str, state: State, found: &str, next: Option<&str>) -> Self {
        let line = |text: &str| printable(text, usize::MAX);
        Self { check, endpoint: None, state, found: line(found), next: next.map(line), trouble: None }
    }

    /// As it should be.
    pub fn ok(check: &'static str, found: impl AsRef<str>) -> Self {
        Self::new(check, State::Ok, found.as_ref(), None)
    }

    /// Something to know, and what to do about it.
    pub fn warn(check: &'static str, found: impl AsRef<str>, next: impl AsRef<str>) -> Self {
        Self::new(check, State::Warn, found.as_ref(), Some(next.as_ref()))
    }

    /// A trouble, and what to do about it.
    pub fn fail(
        check: &'static str,
        trouble: Trouble,
        found: impl AsRef<str>,
        next: impl AsRef<str>,
    ) -> Self {
        let failed = Self::new(check, State::Fail, found.as_ref(), Some(next.as_ref()));
        Self { trouble: Some(trouble), ..failed }
    }

    /// What was not looked at.
    pub fn skip(found: impl AsRef<str>) -> Self {
        Self::new("left out", State::Skip, found.as_ref(), None)
    }

    /// The same, about this gateway.
    #[must_use]
    pub fn at(self, endpoint: &str) -> Self {
        Self { endpoint: Some(printable(endpoint, usize::MAX)), ..self }
    }

    /// For people: one line.
    pub fn line(&self) -> String {
        let Self { check, endpoint, state, found, next, .. } = self;
        let place = endpoint.as_ref().map(|endpoint| format!("{endpoint}: ")).unwrap_or_default();
        let next = next.as_ref().map(|next| format!("; next: {next}")).unwrap_or_default();
        format!("{:4}  {check:11}  {place}{found}{next}\n", state.name())
    }
}

/// For programs: an array, in one line.
pub fn json(findings: &[Finding]) -> String {
    let one = |finding: &Finding| {
        let Finding { check, endpoint, state, found, next, .. } = finding;
        json!({ "check": check, "endpoint": endpoint, "state": state.name(), "found": found, "next": next })
    };
    format!("{}\n", findings.iter().map(one).collect::<serde_json::Value>())
}

/// Whose troubles there are; none if nothing has failed.
pub fn troubles(findings: &[Finding]) -> impl Iterator<Item = Trouble> {
    findings.iter().filter_map(|finding| finding.trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_whatever_a_peer_has_put_into_it() {
        let painted = Finding::warn("http", "a\u{1b}[2J\r\nFAIL\u{202e}", "ask\nwho").at("gw\u{9b}:1");
        assert_eq!(painted.line(), "WARN  http         gw:1: a[2JFAIL; next: askwho\n");
        let plain = Finding::ok("io_uring", "used");
        assert_eq!(plain.line(), "OK    io_uring     used\n");
    }

    #[test]
    fn programs_get_an_array_and_only_a_failure_is_a_trouble() {
        let findings = [
            Finding::ok("dns", "192.0.2.1").at("gw:1"),
            Finding::fail("tcp", Trouble::Unreachable, "refused", "start it").at("gw:1"),
            Finding::skip("tls"),
        ];
        let read: serde_json::Value = serde_json::from_str(&json(&findings)).unwrap();
        assert_eq!(
            read[1],
            json!({ "check": "tcp", "endpoint": "gw:1", "state": "FAIL", "found": "refused", "next": "start it" })
        );
        assert_eq!((&read[0]["next"], &read[2]["endpoint"]), (&json!(null), &json!(null)));
        assert_eq!(troubles(&findings).collect::<Vec<_>>(), [Trouble::Unreachable]);
        assert_eq!(json(&[]), "[]\n");
    }
}
