//! Role: `narrowlink-agent doctor`: what is wrong on the way to each gateway of agent.yaml.
//! Invariants: an agent that runs goes on; the exit code is that of the worst trouble.
//! See: `dataplane::peer::doctor`, which looks; docs/errors.md for the codes.

use std::path::PathBuf;

use narrowlink_agent::{
    config::{Config, ConfigError},
    expiry::seconds_since_1970,
};
use narrowlink_dataplane::peer::doctor::{Subject, examine, examine_without, report};
use narrowlink_proto::{finding::Trouble, token::Kind};

use crate::{EXIT_CONFIG, EXIT_SOFTWARE, EXIT_UNAVAILABLE};

/// Something is wrong, which has been said; and the exit code for it.
#[derive(Debug, thiserror::Error)]
#[error("something is wrong: see above")]
pub(crate) struct Unwell(pub(crate) u8);

/// Looks for what is wrong, and prints what it finds. `named`: the configuration was, with -c.
pub(crate) fn run(
    loaded: Result<(Config, PathBuf), ConfigError>,
    named: bool,
    require_io_uring: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    let worst = report(as_json, code_of, |tell| match &loaded {
        Ok((Config { endpoints, .. }, config)) => {
            let (kind, now) = (Kind::Agent, seconds_since_1970);
            examine(&Subject { kind, config, named, endpoints, require_io_uring, now }, tell)
        }
        Err(e) => examine_without(&e.to_string(), Kind::Agent, require_io_uring, tell),
    })?;
    match worst {
        None => Ok(()),
        Some(trouble) => Err(Unwell(code_of(trouble)).into()),
    }
}

/// As the agent ends for it elsewhere.
pub(crate) const fn code_of(trouble: Trouble) -> u8 {
    match trouble {
        Trouble::Configuration | Trouble::Token => EXIT_CONFIG,
        Trouble::Refused | Trouble::Unreachable => EXIT_UNAVAILABLE,
        Trouble::Internal => EXIT_SOFTWARE,
    }
}
