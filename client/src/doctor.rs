//! Role: `narrowlink doctor`: what is wrong on the way to each gateway of client.yaml.
//! Invariants: each line is printed as soon as it is known; the exit code is that of the worst trouble.
//! See: `dataplane::peer::doctor`, which looks; docs/errors.md for the codes.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_dataplane::peer::doctor::{Subject, examine, examine_without};
use narrowlink_proto::{
    answer,
    finding::{self, Finding},
    token::Kind,
};

use crate::{
    config::{Config, ConfigError},
    exit::{Exit, Failure},
};

/// Looks, prints what it finds, and says how the program ends. `named`: the configuration was, with -c.
///
/// # Errors
/// What was found can't be printed.
pub fn run(
    config: Result<Config, ConfigError>,
    named: bool,
    require_io_uring: bool,
    as_json: bool,
) -> Result<Exit, Failure> {
    let mut printed = Ok(());
    let tell = |finding: &Finding| {
        if !as_json && printed.is_ok() {
            printed = answer::write(io::stdout(), &finding.line());
        }
    };
    let findings = match &config {
        Ok(config) => {
            let (config, endpoints) = (&config.path, &config.endpoints);
            let kind = Kind::Client;
            examine(&Subject { kind, config, named, endpoints, require_io_uring, now }, tell)
        }
        Err(e) => examine_without(&e.to_string(), Kind::Client, require_io_uring, tell),
    };
    if as_json {
        printed = answer::write(io::stdout(), &finding::json(&findings));
    }
    printed.map_err(|e| Failure::new(Exit::Reset, e))?;
    Ok(exit(&findings))
}

/// Of several troubles, that of the highest code.
fn exit(findings: &[Finding]) -> Exit {
    let exits = finding::troubles(findings).map(Exit::of_trouble);
    exits.max_by_key(|exit| exit.code()).unwrap_or(Exit::Done)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::finding::Trouble;

    use super::*;

    #[test]
    fn of_several_troubles_the_highest_code_is_the_exit_s() {
        let fail = |trouble| Finding::fail("x", trouble, "found", "next");
        assert_eq!(exit(&[]), Exit::Done);
        assert_eq!(exit(&[Finding::warn("x", "found", "next"), Finding::skip("y")]), Exit::Done);
        for (trouble, code) in [
            (Trouble::Unreachable, 69),
            (Trouble::Internal, 70),
            (Trouble::Token, 77),
            (Trouble::Refused, 77),
            (Trouble::Configuration, 78),
        ] {
            assert_eq!(exit(&[fail(Trouble::Unreachable), fail(trouble)]).code(), code);
        }
    }
}
