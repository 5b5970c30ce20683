//! Role: the commands that have systemd run the agent: `service`.

use std::{io, path::Path};

use narrowlink_agent::{
    args::Service,
    config::{self, Config, ConfigError},
};
use narrowlink_dataplane::run::{
    process::find_config,
    service::{Files, Unit},
};
use narrowlink_proto::answer;

const UNIT: Unit = Unit {
    name: "narrowlink-agent",
    text: include_str!("../systemd/narrowlink-agent.service"),
    arguments: "",
    writable: &["/var/lib/narrowlink-agent"],
};

/// Does it; the exit code.
pub(crate) fn run(command: &Service, config: Option<&Path>) -> anyhow::Result<u8> {
    let (said, code) = match command {
        Service::Install => {
            let find = || find_config(config::FILE_NAME, |name| std::env::var_os(name));
            let path = config.map(Path::to_owned).map_or_else(find, Ok).map_err(ConfigError::from)?;
            (install(&path)?, 0)
        }
        Service::Uninstall => (UNIT.uninstall()?, 0),
        Service::Status { json } => {
            let status = UNIT.status()?;
            let said = if *json { Unit::json(status.as_ref()) } else { UNIT.words(status.as_ref()) };
            (said, Unit::code(status.as_ref()))
        }
    };
    answer::write(io::stdout(), &said)?;
    Ok(code)
}

/// Makes the agent of this configuration a service; what was done, in words.
pub(crate) fn install(config: &Path) -> anyhow::Result<String> {
    let files = files(&Config::load(config)?);
    Ok(UNIT.install(config, &files)?)
}

fn files(config: &Config) -> Files {
    let state = config.state_dir.iter().map(|dir| ("state_dir", dir.clone()));
    Files { read: config.files(), written: state.collect() }
}
