//! Role: `narrowlink doctor`: what is wrong on the way to each gateway of client.yaml.
//! Invariants: each line is printed as soon as it is known; the exit code is that of the worst trouble.
//! See: `dataplane::peer::doctor`, which looks; docs/errors.md for the codes.

use std::time::{SystemTime, UNIX_EPOCH};

use narrowlink_dataplane::peer::doctor::{Subject, examine, examine_without, report};
use narrowlink_proto::token::Kind;

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
    let code = |trouble| Exit::of_trouble(trouble).code();
    let worst = report(as_json, code, |tell| match &config {
        Ok(config) => {
            let (config, endpoints) = (&config.path, &config.endpoints);
            let kind = Kind::Client;
            examine(&Subject { kind, config, named, endpoints, require_io_uring, now }, tell)
        }
        Err(e) => examine_without(&e.to_string(), Kind::Client, require_io_uring, tell),
    });
    let worst = worst.map_err(|e| Failure::new(Exit::Reset, e))?;
    Ok(worst.map_or(Exit::Done, Exit::of_trouble))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::finding::Trouble;

    use super::*;

    #[test]
    fn each_trouble_ends_the_client_as_it_does_elsewhere() {
        for (trouble, code) in [
            (Trouble::Unreachable, 69),
            (Trouble::Internal, 70),
            (Trouble::Token, 77),
            (Trouble::Refused, 77),
            (Trouble::Configuration, 78),
        ] {
            assert_eq!(Exit::of_trouble(trouble).code(), code);
        }
    }
}
