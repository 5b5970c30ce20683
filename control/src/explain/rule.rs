//! Role: what decided, by a name that output shows and an expectation can repeat.
//! Invariants: a name that is shown reads back; lists and items count from 0, as they stand in a token.

use std::{fmt, str::FromStr};

use narrowlink_proto::policy::{Grant, Reason};

/// What decided.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    reason: Reason,
    /// Whether there are other lists that it must be told from.
    several: bool,
}

/// A text that names no rule. Its writer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected policies[0] (an item), no item, addresses, or no policies; of several lists lists[0].policies[0], \
     no item of lists[0], addresses by lists[0]"
)]
pub struct NoRule;

impl Rule {
    /// The one behind a decision on a grant.
    pub fn of(reason: Reason, grant: &Grant) -> Self {
        Self { reason, several: grant.lists().len() > 1 }
    }

    /// The same without a name.
    pub const fn reason(&self) -> Reason {
        self.reason
    }
}

/// Whether the same thing decided.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.reason == other.reason
    }
}

impl Eq for Rule {}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.reason, self.several) {
            (Reason::Unrestricted, _) => f.write_str("no policies"),
            (Reason::Item { item, .. }, false) => write!(f, "policies[{item}]"),
            (Reason::Item { list, item }, true) => write!(f, "lists[{list}].policies[{item}]"),
            (Reason::NoItem { .. }, false) => f.write_str("no item"),
            (Reason::NoItem { list }, true) => write!(f, "no item of lists[{list}]"),
            (Reason::Addresses { .. }, false) => f.write_str("addresses"),
            (Reason::Addresses { list }, true) => write!(f, "addresses by lists[{list}]"),
        }
    }
}

impl FromStr for Rule {
    type Err = NoRule;

    fn from_str(text: &str) -> Result<Self, NoRule> {
        let in_list = |text: &str| index(text, "lists[").ok_or(NoRule);
        let one = |reason| Ok(Self { reason, several: false });
        match text {
            "no policies" => return one(Reason::Unrestricted),
            "no item" => return one(Reason::NoItem { list: 0 }),
            "addresses" => return one(Reason::Addresses { list: 0 }),
            _ => {}
        }
        if let Some(item) = index(text, "policies[") {
            return one(Reason::Item { list: 0, item });
        }
        let reason = if let Some(list) = text.strip_prefix("no item of ") {
            Reason::NoItem { list: in_list(list)? }
        } else if let Some(list) = text.strip_prefix("addresses by ") {
            Reason::Addresses { list: in_list(list)? }
        } else {
            let (list, item) = text.split_once('.').ok_or(NoRule)?;
            Reason::Item { list: in_list(list)?, item: index(item, "policies[").ok_or(NoRule)? }
        };
        Ok(Self { reason, several: true })
    }
}

/// The number in `name[7]`, where `before` is `name[`.
fn index(text: &str, before: &str) -> Option<usize> {
    let digits = text.strip_prefix(before)?.strip_suffix(']')?;
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_by_the_name_that_is_shown() {
        for (text, reason) in [
            ("no policies", Reason::Unrestricted),
            ("policies[7]", Reason::Item { list: 0, item: 7 }),
            ("lists[1].policies[7]", Reason::Item { list: 1, item: 7 }),
            ("no item", Reason::NoItem { list: 0 }),
            ("no item of lists[2]", Reason::NoItem { list: 2 }),
            ("addresses", Reason::Addresses { list: 0 }),
            ("addresses by lists[1]", Reason::Addresses { list: 1 }),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!((rule.reason(), rule.to_string().as_str()), (reason, text));
        }
        for bad in
            ["", "policies", "policies[]", "policies[-1]", "policies[+1]", "lists[0]", "lists[a].policies[0]"]
        {
            assert_eq!(bad.parse::<Rule>(), Err(NoRule), "{bad}");
        }
    }
}
