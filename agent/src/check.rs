//! Role: what `--check` looks at: all that a start needs of the system and of the files that agent.yaml names.
//! Invariants: nothing is changed, and no gateway is asked.

use narrowlink_dataplane::run::worker::run_alone;

use crate::{
    StartError,
    config::{Config, ConfigError, Unfit},
    identity::{Identity, NOWHERE},
};

/// Whether an agent of this configuration could start here at `now` (seconds since 1970) and be taken for itself; and what
/// is to be known all the same.
///
/// # Errors
/// Why it could not. A start goes on with a token that has ended, and without a place for its key: it tries again, and warns.
pub fn check(config: &Config, now: u64) -> Result<Vec<String>, StartError> {
    config.gateways()?;
    let mut warnings = Vec::new();
    for (ending, has_ended) in config.endings(now) {
        if has_ended {
            return Err(ConfigError::from(ending.map(Unfit::Ended)).into());
        }
        warnings.push(ending.to_string());
    }
    warnings.extend(look_at_state_dir(config)?);
    run_alone(config.require_io_uring, |_| async {})?;
    Ok(warnings)
}

/// A place that the file names has to do; of the usual one it is enough to know.
fn look_at_state_dir(config: &Config) -> Result<Option<String>, ConfigError> {
    let why = match config.state_place(|name| std::env::var_os(name)) {
        Some((dir, place)) => match Identity::probe(&dir) {
            Ok(()) => return Ok(None),
            Err(e) if config.state_dir.is_some() => {
                return Err(config.state_spot().about(Unfit::StateDir(e)).into());
            }
            Err(e) => format!("{place}: {e}"),
        },
        None => NOWHERE.to_owned(),
    };
    Ok(Some(format!("the instance key can't be kept ({why}): name a directory for it with state_dir")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use narrowlink_proto::{
        id::Uid,
        token::{Claims, Keys, Kind},
    };

    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_check_refuses_a_state_dir_that_can_not_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        let claims = Claims::new(Kind::Agent, Uid::nil(), "home", NOW + 99 * 86_400, "t1");
        let token = Keys::new(&[7; 32]).sign(&claims).unwrap();
        let checked = |state_dir: &str| {
            let endpoint = format!("!SelfHosted {{ gateway: 'gw:80', protocol: Ws, token: {token} }}");
            let text = format!("endpoints: [{endpoint}]\nstate_dir: {state_dir}\n");
            check(&Config::parse(&text, &path).unwrap(), NOW)
        };
        assert!(checked("state").unwrap().is_empty());
        fs::write(dir.path().join("file"), "").unwrap();
        let refused = checked("file").unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, StartError::Config(_)), "{said}");
        assert!(
            said.contains(
                "agent.yaml: line 2 column 12: state_dir: instance.key can't be kept there: Not a directory"
            ),
            "{said}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the file of this test");
    }
}
