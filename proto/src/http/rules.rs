//! Role: the headers that a published host sets and removes.
//! Invariants: no rule touches what frames or routes a head, or what is ours · a name is a token, a value stays on its line.
//! See: RFC 9110 section 5.

use super::{
    head::{has_control, is_token},
    names,
};

/// Headers to set and to remove, checked when they are added. A header that is set replaces all of that name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderRules {
    set: Vec<(String, String)>,
    remove: Vec<String>,
}

/// Why a header can't be set or removed; the fault of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not a token.
    #[error("a header's name is letters, digits and -")]
    Name,
    /// A control character, or blanks at an end.
    #[error("a header's value is one line without blanks around it")]
    Value,
    /// Set by the gateway alone.
    #[error("this header frames or routes the request, or is the gateway's own")]
    Reserved,
}

impl HeaderRules {
    /// Adds a header to be set.
    ///
    /// # Errors
    /// The configuration's.
    pub fn add_set(&mut self, name: &str, value: &str) -> Result<(), RuleError> {
        check(name)?;
        if has_control(value.as_bytes()) || value.trim_matches([' ', '\t']) != value {
            return Err(RuleError::Value);
        }
        self.set.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Adds a header to be removed.
    ///
    /// # Errors
    /// The configuration's.
    pub fn add_removed(&mut self, name: &str) -> Result<(), RuleError> {
        check(name)?;
        self.remove.push(name.to_owned());
        Ok(())
    }

    /// The headers that are set, in their order.
    pub fn set(&self) -> impl Iterator<Item = (&str, &str)> {
        self.set.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether a header of that name is set by a rule.
    pub(crate) fn sets(&self, name: &str) -> bool {
        self.set.iter().any(|(own, _)| names::is_same(own, name))
    }

    /// Whether what came under that name does not pass.
    pub(crate) fn replaces(&self, name: &str) -> bool {
        self.sets(name) || self.remove.iter().any(|own| names::is_same(own, name))
    }
}

fn check(name: &str) -> Result<(), RuleError> {
    if !is_token(name.as_bytes()) {
        return Err(RuleError::Name);
    }
    if names::is_framing(name) { Err(RuleError::Reserved) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_stays_on_its_line_and_away_from_the_framing() {
        let mut rules = HeaderRules::default();
        for (name, value, verdict) in [
            ("X-Frame-Options", "DENY", Ok(())),
            ("X-Empty", "", Ok(())),
            ("X-Utf8", "\u{e9}", Ok(())),
            ("X Y", "z", Err(RuleError::Name)),
            ("", "z", Err(RuleError::Name)),
            ("X:", "z", Err(RuleError::Name)),
            ("X\r\nY", "z", Err(RuleError::Name)),
            ("X", "z\r\nY: 1", Err(RuleError::Value)),
            ("X", "z\0", Err(RuleError::Value)),
            ("X", " z", Err(RuleError::Value)),
            ("Host", "z", Err(RuleError::Reserved)),
            ("content-length", "5", Err(RuleError::Reserved)),
            ("Content_Length", "5", Err(RuleError::Reserved)),
            ("Transfer-Encoding", "chunked", Err(RuleError::Reserved)),
            ("Connection", "close", Err(RuleError::Reserved)),
            ("Upgrade", "h2c", Err(RuleError::Reserved)),
            ("NL-Client-Subject", "CN=root", Err(RuleError::Reserved)),
        ] {
            assert_eq!(rules.add_set(name, value), verdict, "{name:?}: {value:?}");
            if verdict != Err(RuleError::Value) {
                assert_eq!(rules.add_removed(name), verdict, "{name:?}");
            }
        }
        assert_eq!(rules.set().count(), 3);
        assert!(rules.replaces("x_frame_options") && rules.sets("x-empty") && !rules.replaces("Y"));
    }
}
