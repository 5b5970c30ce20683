//! Role: the commands that have systemd run the gateway: `service`.

use std::{env, path::Path};

use narrowlink_control::{args::Service, config::Config};
use narrowlink_dataplane::run::{
    process::find_config,
    service::{Files, ServiceError, Unit},
};

use crate::{
    end::{CANT_CREATE, CONFIGURATION, Failure, OrExit as _, USAGE, print},
    load,
};

const UNIT: Unit = Unit {
    name: "narrowlink-gateway",
    text: include_str!("../../../systemd/narrowlink-gateway.service"),
    arguments: "--keeper",
    writable: &["/var/lib/narrowlink", "/var/log/narrowlink"],
};

/// Does it; the exit code.
pub(crate) fn run(command: &Service) -> Result<u8, Failure> {
    match command {
        Service::Install { config } => {
            let path = config
                .clone()
                .map_or_else(|| find_config("gateway.yaml", |name| env::var_os(name)), Ok)
                .or_exit(CONFIGURATION)?;
            print(&install(&path)?)?;
            Ok(0)
        }
        Service::Uninstall => {
            print(&UNIT.uninstall().map_err(failed)?)?;
            Ok(0)
        }
        Service::Status { json } => {
            let status = UNIT.status().map_err(failed)?;
            print(&if *json { Unit::json(status.as_ref()) } else { UNIT.words(status.as_ref()) })?;
            Ok(Unit::code(status.as_ref()))
        }
    }
}

/// Makes the gateway of this config a service; what was done, in words.
pub(crate) fn install(config: &Path) -> Result<String, Failure> {
    let files = files(&load(config)?);
    UNIT.install(config, &files).map_err(failed)
}

fn files(config: &Config) -> Files {
    let written = [("state_dir", &config.state_dir), ("audit", &config.audit)];
    let written = written.into_iter().filter_map(|(key, path)| Some((key, path.clone()?)));
    Files { read: config.files.clone(), written: written.collect() }
}

fn failed(e: ServiceError) -> Failure {
    let code = match e {
        ServiceError::File { .. } => CANT_CREATE,
        ServiceError::Hidden { .. }
        | ServiceError::Unwritable { .. }
        | ServiceError::SameName(..)
        | ServiceError::Path(_) => CONFIGURATION,
        ServiceError::NotInstalled(_) => Unit::NOT_INSTALLED,
        ServiceError::Down { .. } => Unit::DOWN,
        ServiceError::NoSystemd(_) | ServiceError::NotRoot(_) | ServiceError::Systemctl { .. } => USAGE,
    };
    Failure { code, error: e.into() }
}
