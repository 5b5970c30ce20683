//! Role: the commands about a gateway that runs: as a service of systemd, `service`; replaced, `upgrade`.

use std::path::Path;

use narrowlink_control::{
    args::{Service, Upgrade},
    config::Config,
    upgrade::{self, UpgradeError},
};
use narrowlink_dataplane::run::service::{Files, ServiceError, Unit};

use crate::{
    end::{CANT_CREATE, CONFIGURATION, Failure, OrExit as _, UNAVAILABLE, USAGE, print},
    find, load,
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
            let path = find(config.as_deref()).or_exit(CONFIGURATION)?;
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

/// Has a gateway that runs be replaced.
pub(crate) fn upgrade(args: &Upgrade) -> Result<u8, Failure> {
    let Upgrade { program, pid, config } = args;
    let state_dir = match pid {
        Some(_) => None,
        None => {
            let found = find(config.as_deref()).or_exit(CONFIGURATION)?;
            load(&found)?.state_dir
        }
    };
    let said = upgrade::upgrade(state_dir.as_deref(), *pid, program.as_deref()).map_err(|e| Failure {
        code: match e {
            UpgradeError::NoStateDir | UpgradeError::NoGateway(_) | UpgradeError::Service(_) => USAGE,
            UpgradeError::Place { .. } => CANT_CREATE,
            UpgradeError::NotRunning { .. } | UpgradeError::Signal { .. } | UpgradeError::Stays(_) => {
                UNAVAILABLE
            }
        },
        error: e.into(),
    })?;
    print(&said)?;
    Ok(0)
}

fn files(config: &Config) -> Files {
    let written = [("state_dir", &config.state_dir), ("audit", &config.audit)];
    let written = written.into_iter().filter_map(|(key, path)| Some((key, path.clone()?)));
    Files { read: config.files.clone(), written: written.collect() }
}

fn failed(e: ServiceError) -> Failure {
    Failure { code: e.exit(), error: e.into() }
}
