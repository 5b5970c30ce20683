//! Role: what an operator expects of policies, held against what they say.
//! Invariants: a table that expects nothing is an error; an expectation is answered as `explain` answers.
//! See: docs/policy.md "Test policies".

mod input;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    policy::{Grant, Verdict},
    yaml::Fault,
};

use serde_json::json;

use crate::{
    config::Config,
    explain::{Question, QuestionError, Rule, Trouble, verdict_name},
};

/// A table at the most.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A table of expectations, and the grants that they are about.
#[derive(Debug)]
pub struct Expectations {
    grants: BTreeMap<String, Result<Grant, Trouble>>,
    rows: Vec<Row>,
}

/// One expectation.
#[derive(Debug)]
struct Row {
    token: String,
    question: Question,
    verdict: Verdict,
    rule: Option<Rule>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Where it is otherwise, a line each.
    pub failures: Vec<String>,
    /// How many expectations there are.
    pub count: usize,
}

/// A table that can't be used. The operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum ExpectationsError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it says, and where.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong at which line and column.
        source: Fault,
    },
}

impl Expectations {
    /// Reads a table and the tokens that it names, whose paths are relative to its directory. Tokens are held
    /// against `config`, if there is one, at `now` (seconds since 1970).
    ///
    /// # Errors
    /// The operator's, see [`ExpectationsError`].
    pub fn load(path: &Path, config: Option<&Config>, now: u64) -> Result<Self, ExpectationsError> {
        let text = read(path).map_err(|source| ExpectationsError::Read { path: path.to_owned(), source })?;
        let base = path.parent().unwrap_or(Path::new(""));
        input::parse(&text, base, config, now)
            .map_err(|source| ExpectationsError::Content { path: path.to_owned(), source })
    }

    /// Asks every question.
    ///
    /// # Errors
    /// None for questions that could be made.
    pub fn check(&self) -> Result<Outcome, QuestionError> {
        let mut failures = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let Some(grant) = self.grants.get(&row.token) else { unreachable!("a row without its token") };
            let answer = row.question.answer(grant.as_ref())?;
            let verdict_holds = answer.verdict() == row.verdict;
            if verdict_holds && row.rule.is_none_or(|rule| answer.rule() == Some(rule)) {
                continue;
            }
            let by = row.rule.map(|rule| format!(" by {rule}")).unwrap_or_default();
            failures.push(format!(
                "expect[{index}]: {}, {}: expected {}{by}, is {} ({})",
                row.token.escape_debug(),
                row.question,
                verdict_name(row.verdict),
                verdict_name(answer.verdict()),
                answer.brief()
            ));
        }
        Ok(Outcome { failures, count: self.rows.len() })
    }
}

impl Outcome {
    /// A line for each that is otherwise, and how many are not.
    pub fn text(&self) -> String {
        let (count, wrong) = (self.count, self.failures.len());
        let mut text = self.failures.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        });
        let _ = match wrong {
            0 => writeln!(text, "{count} of {count} as expected"),
            _ => writeln!(text, "{} of {count} as expected, {wrong} not", count - wrong),
        };
        text
    }

    /// For programs: one object, in one line.
    pub fn json(&self) -> String {
        let Self { failures, count } = self;
        format!("{}\n", json!({ "count": count, "failures": failures }))
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let why = format!("longer than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        id::Uid,
        token::{Claims, Keys, Kind, Secret},
    };

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const TOKENS: &str = "tokens:
  laptop: !File laptop.token
  agent: !File agent.token
  old: !File old.token
  intern: !Policies { permit: true, policies: [!Ip [home, 10.0.0.0/8, 22, TCP]] }
  both: !Policies
    - { permit: true, policies: [!Any [home, true]] }
    - { permit: false, policies: [!Domain [null, bad.lan, 0, ANY]] }
";

    fn site(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let sign = |name: &str, kind, exp| {
            let claims = Claims::new(kind, Uid::nil(), name, exp, "j");
            let token = Keys::new(&[7; 32]).sign(&claims).unwrap();
            std::fs::write(dir.path().join(format!("{name}.token")), token + "\n").unwrap();
        };
        sign("laptop", Kind::Client, NOW + 60);
        sign("agent", Kind::Agent, NOW + 60);
        sign("old", Kind::Client, NOW - 60);
        let path = dir.path().join("expected.yaml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn check(rows: &str, config: Option<&Config>) -> Outcome {
        let (_dir, path) = site(&format!("{TOKENS}expect:\n{rows}"));
        let expectations = Expectations::load(&path, config, NOW).unwrap_or_else(|e| panic!("{e}"));
        expectations.check().unwrap()
    }

    #[test]
    fn what_is_as_expected_is_only_counted() {
        let rows = "
  - [laptop, home, \"tcp://10.0.0.1:22\", allow]
  - [laptop, home, \"udp://10.0.0.1:53\", allow, [], no policies]
  - { token: intern, agent: home, target: \"tcp://nas.lan:22\", resolved: 10.0.0.7, verdict: allow, rule: \"policies[0]\" }
  - { token: intern, agent: home, target: nas.lan:22, resolved: [192.0.2.1, 10.0.0.7], verdict: allow }
  - { token: intern, agent: home, target: nas.lan:22, resolved: [192.0.2.1], verdict: deny, rule: no item }
  - [intern, home, \"tcp://nas.lan:22\", depends]
  - [intern, home, nas.lan:23, deny]
  - [agent, home, nas.lan:22, deny]
  - [old, home, nas.lan:22, deny]
  - { token: both, agent: home, target: bad.lan:1, verdict: deny, rule: \"lists[1].policies[0]\" }
";
        let outcome = check(rows, None);
        assert_eq!(outcome, Outcome { failures: Vec::new(), count: 10 });
        assert_eq!(outcome.text(), "10 of 10 as expected\n");
        assert_eq!(outcome.json(), "{\"count\":10,\"failures\":[]}\n");
    }

    #[test]
    fn what_is_otherwise_is_said_with_the_rule_that_decided() {
        let rows = "
  - [intern, home, nas.lan:22, allow]
  - [intern, home, \"10.0.0.1:22\", allow]
  - [intern, office, \"10.0.0.1:22\", allow]
  - { token: intern, agent: home, target: \"10.0.0.1:22\", verdict: allow, rule: \"policies[1]\" }
  - [old, home, \"10.0.0.1:22\", allow]
";
        let outcome = check(rows, None);
        let lines = [
            "expect[0]: intern, tcp://nas.lan:22 through home: expected allow, is depends (addresses: only",
            "expect[2]: intern, tcp://10.0.0.1:22 through office: expected allow, is deny (no item matches, and",
            "expect[3]: intern, tcp://10.0.0.1:22 through home: expected allow by policies[1], is allow \
             (policies[0]: !Ip [home, 10.0.0.0/8, 22, TCP])",
            "expect[4]: old, tcp://10.0.0.1:22 through home: expected allow, is deny (the token expired",
        ];
        assert_eq!(outcome.failures.len(), lines.len(), "{outcome:?}");
        for (failure, line) in outcome.failures.iter().zip(lines) {
            assert!(failure.starts_with(line), "{failure}");
        }
        assert!(outcome.text().ends_with("\n1 of 5 as expected, 4 not\n"), "{}", outcome.text());
    }

    #[test]
    fn with_a_config_a_strangers_token_opens_nothing() {
        let row = "  - [laptop, home, \"10.0.0.1:22\", allow]\n";
        let config = |byte| Config::new("gw", vec![Secret::from_bytes(vec![byte; 32]).unwrap()], Vec::new());
        assert!(check(row, Some(&config(7))).failures.is_empty());
        let outcome = check(row, Some(&config(8)));
        assert!(outcome.failures[0].contains("no secret of this gateway"), "{outcome:?}");
    }

    #[test]
    fn a_table_may_begin_with_what_is_expected() {
        let text = format!("expect:\n  - [laptop, home, nas.lan:22, allow]\n{TOKENS}");
        let (_dir, path) = site(&text);
        assert_eq!(Expectations::load(&path, None, NOW).unwrap().check().unwrap().count, 1);
    }

    #[test]
    fn a_bad_table_is_refused_with_its_place_and_what_would_be_right() {
        let row = |row: &str| format!("{TOKENS}expect:\n  - {row}\n");
        let cases = [
            (String::new(), "`tokens` is missing", ""),
            (TOKENS.to_owned(), "`expect` is missing", ""),
            (
                format!("{TOKENS}expect: []\n"),
                "expect: empty: a table that expects nothing",
                "line 9 column 9",
            ),
            (format!("{TOKENS}expect: 7\n"), "expect: expected a list", "line 9"),
            (format!("{TOKENS}expected: []\n"), "unknown key", ""),
            (format!("{TOKENS}tokens: {{}}\n"), "this key stands twice", ""),
            (
                row("[lapto, home, nas.lan:22, allow]"),
                "expect[0]: `tokens` has no token of this name",
                "line 10 column 5",
            ),
            (row("[laptop, home, nas.lan, allow]"), "expect[0][2]: the port is missing", "line 10 column 20"),
            (row("[laptop, home, \"http://a:1\", allow]"), "expected tcp://HOST:PORT", "line 10 column 20"),
            (row("[laptop, home, nas.lan:22, yes]"), "unknown ", "line 10"),
            (row("[laptop, home, nas.lan:22]"), "found 3 of them", "line 10 column 5"),
            (row("{ token: laptop, agent: home, target: a:1 }"), "`verdict` is missing", "line 10 column 5"),
            (row("{ token: laptop, agent: home, verdikt: allow }"), "unknown key", "line 10"),
            (
                row("[laptop, home, nas.lan:22, deny, nas]"),
                "expected an IP address or a list of them",
                "line 10 column 38",
            ),
            (
                row("[laptop, home, \"10.0.0.1:22\", deny, 10.0.0.1]"),
                "only a name resolves",
                "line 10 column 5",
            ),
            (
                row("[laptop, home, nas.lan:22, deny, [], item 7]"),
                "expected policies[0] (an item)",
                "line 10",
            ),
            (row("[laptop, home, nas.lan:22, deny, [], no item, x]"), "found 7", "line 10"),
            (row("laptop"), "expected [token, agent, target, verdict]", "line 10 column 5"),
            (
                "tokens: { a: !File none.token }\n".to_owned(),
                "tokens.…: this token file can't be read: No such file",
                "line 1 column 14",
            ),
            ("tokens: { a: !Fil none.token }\n".to_owned(), "unknown ", "line 1 column 14"),
            (
                "tokens: { a: none.token }\n".to_owned(),
                "expected !File before a token's path",
                "line 1 column 14",
            ),
            ("tokens: { a: !Policies [] }\n".to_owned(), "at least one", "line 1"),
            ("tokens: { a: !Policies { permit: true } }\n".to_owned(), "`policies` is missing", "line 1"),
            (
                "tokens:\n  a: !Policies { permit: true, policies: [!Ip [home, 10.0.0/8, 22, TCP]] }\n"
                    .to_owned(),
                "tokens.….policies[0]",
                "line 2 column",
            ),
            (
                "tokens: { a: !File laptop.token, a: !File old.token }\n".to_owned(),
                "this key stands twice",
                "",
            ),
            ("tokens: {\n".to_owned(), "not YAML", "line 2"),
        ];
        for (text, says, place) in cases {
            let (dir, path) = site(&text);
            let error = Expectations::load(&path, None, NOW).unwrap_err().to_string();
            let error = error.replace(&format!("{}/", dir.path().display()), "");
            assert!(error.starts_with("expected.yaml: ") && error.contains(says), "{text}: {error}");
            assert!(error.contains(place), "{text}: {error} is not at {place}");
        }
        let absent = Expectations::load(Path::new("/nowhere/e.yaml"), None, NOW).unwrap_err().to_string();
        assert!(absent.starts_with("/nowhere/e.yaml: No such file"), "{absent}");
    }

    #[test]
    fn policies_that_no_token_can_carry_are_refused() {
        let items = "!Ip [home, 10.0.0.0/8, 22, TCP], ".repeat(257);
        let text = format!("tokens: {{ a: !Policies {{ permit: true, policies: [{items}] }} }}\n");
        let (_dir, path) = site(&text);
        let error = Expectations::load(&path, None, NOW).unwrap_err().to_string();
        assert!(error.contains("257 policy items; at most 256"), "{error}");
    }
}
