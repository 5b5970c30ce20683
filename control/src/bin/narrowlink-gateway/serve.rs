//! Role: the gateway itself, from its configuration to its end, or only a look whether it could start.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use narrowlink_control::{
    auth::say_secrets,
    certificate::Watch,
    clock::seconds_since_1970,
    config::{Config, Places, Service},
    gateway::{self, Gateway, StartError},
    reload::Reloader,
    supervise::{self, Outcome},
};
use narrowlink_dataplane::{
    run::ready_file::ReadyFile,
    tls::{Ktls, choose_ktls},
};
use narrowlink_proto::code::Code;
use serde::Serialize;

use crate::end::{CONFIGURATION, Failure, INTERNAL, OrExit as _, StartFault, UNAVAILABLE, print};

/// Says that a start of `config`, which was read from `path`, would succeed.
pub(crate) fn check(config: &Config, path: &Path) -> Result<(), Failure> {
    look(config)?;
    let services = count(config.services.len(), "service");
    let workers = count(config.workers.unwrap_or_else(gateway::cores), "worker");
    let secrets = say_secrets(&config.secrets);
    print(&format!("{}: ok ({services}, {workers})\ntokens are signed with {secrets}\n", path.display()))
}

/// Whether a start would succeed, and clients would take its certificates.
fn look(config: &Config) -> Result<(), Failure> {
    gateway::check(config).map_err(|e| refused(e, &config.places))?;
    let said = Watch::default().handle_tick(seconds_since_1970(), config.certificates.iter());
    for words in &said.warnings {
        tracing::warn!("{words}");
    }
    for words in &said.notes {
        tracing::info!("{words}");
    }
    if said.errors.is_empty() {
        return Ok(());
    }
    Err(anyhow!(said.errors.join("; "))).or_exit(CONFIGURATION)
}

/// Why a gateway does not start, and its exit code.
fn refused(e: StartError, places: &Places) -> Failure {
    let (code, kind) = match e {
        StartError::Listen { .. } => (UNAVAILABLE, Code::Listen),
        StartError::StateDir { .. } | StartError::Audit { .. } => (CONFIGURATION, Code::StateFile),
        StartError::Incomplete(_) | StartError::Control(_) | StartError::Workers(_) => {
            (INTERNAL, Code::Internal)
        }
    };
    Failure { code, error: StartFault { kind, words: e.located(places) }.into() }
}

pub(crate) fn serve(
    config: Config,
    reloader: Reloader,
    ktls: Ktls,
    ready_file: Option<&Path>,
) -> Result<(), Failure> {
    let words = supervise::signals().context("signals can't be handled").or_exit(INTERNAL)?;
    let ready_file = ready_file.map(claim).transpose()?;
    let (name, services) = (config.name.clone(), config.services.clone());
    let ktls = choose_ktls(ktls);
    tracing::info!("tokens are signed with {}", say_secrets(&config.secrets));
    let places = config.places.clone();
    let gateway = gateway::start(config).map_err(|e| refused(e, &places))?;
    let ready = Ready::of(&services, &gateway);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name,
        driver = %gateway.driver(),
        workers = gateway.workers(),
        %ktls,
        "listening on {}",
        ready.describe()
    );
    if let Some(file) = ready_file {
        file.announce(serde_json::to_vec(&ready).or_exit(INTERNAL)?);
    }
    let outcome = supervise::supervise(&gateway, &words, Some(reloader));
    gateway.save();
    match outcome {
        Outcome::Drained => tracing::info!("stopped; every session had ended"),
        Outcome::Cut => tracing::warn!("stopped; sessions were cut"),
        Outcome::Broken(fault) => {
            return Err(anyhow!("{fault}; this is a bug in the gateway")).or_exit(INTERNAL);
        }
    }
    Ok(())
}

/// What the ready file says.
#[derive(Serialize)]
struct Ready {
    services: Vec<ReadyService>,
}

#[derive(Serialize)]
struct ReadyService {
    kind: &'static str,
    address: String,
}

impl Ready {
    fn of(services: &[Service], gateway: &Gateway) -> Self {
        let services = services.iter().zip(gateway.addresses());
        let services = services
            .map(|(service, address)| ReadyService { kind: service.kind(), address: address.to_string() });
        Self { services: services.collect() }
    }

    fn describe(&self) -> String {
        let services = self.services.iter().map(|service| format!("{}://{}", service.kind, service.address));
        services.collect::<Vec<_>>().join(", ")
    }
}

fn claim(path: &Path) -> Result<ReadyFile, Failure> {
    ReadyFile::claim(path)
        .with_context(|| format!("can't write the ready file {}", path.display()))
        .or_exit(CONFIGURATION)
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}
