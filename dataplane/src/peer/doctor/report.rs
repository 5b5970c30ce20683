//! Role: prints what `doctor` finds, and says which trouble a program ends with.
//! Invariants: each line is printed as soon as it is known, JSON at the end · of several troubles that of the highest code counts.

use std::io;

use narrowlink_proto::{
    answer::{self, Unwritten},
    finding::{self, Finding, Trouble},
};

/// Prints what `look` finds; the trouble whose code is the highest, if there is any.
///
/// # Errors
/// What was found can't be printed.
pub fn report(
    as_json: bool,
    code: impl Fn(Trouble) -> u8,
    look: impl FnOnce(&mut dyn FnMut(&Finding)) -> Vec<Finding>,
) -> Result<Option<Trouble>, Unwritten> {
    let mut printed = Ok(());
    let findings = look(&mut |finding| {
        if !as_json && printed.is_ok() {
            printed = answer::write(io::stdout(), &finding.line());
        }
    });
    if as_json {
        printed = answer::write(io::stdout(), &finding::json(&findings));
    }
    printed?;
    Ok(worst(&findings, code))
}

fn worst(findings: &[Finding], code: impl Fn(Trouble) -> u8) -> Option<Trouble> {
    finding::troubles(findings).max_by_key(|trouble| code(*trouble))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_troubles_that_of_the_highest_code_is_the_end() {
        let fail = |trouble| Finding::fail("x", trouble, "found", "next");
        let code = |trouble| if trouble == Trouble::Token { 77 } else { 69 };
        assert_eq!(worst(&[], code), None);
        assert_eq!(worst(&[Finding::warn("x", "found", "next"), Finding::skip("y")], code), None);
        let both = [fail(Trouble::Token), fail(Trouble::Unreachable)];
        assert_eq!(worst(&both, code), Some(Trouble::Token));
    }
}
