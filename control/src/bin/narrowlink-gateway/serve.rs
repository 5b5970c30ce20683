//! Role: the gateway itself, from its configuration to its end, or only a look whether it could start.

use std::{
    io,
    path::Path,
    sync::{Arc, mpsc::Sender},
    thread,
};

use anyhow::{Context as _, anyhow};
use narrowlink_control::{
    args::Args,
    auth::say_secrets,
    certificate::Watch,
    clock::seconds_since_1970,
    config::{Config, Places, Service},
    gateway::{self, Gateway, StartError},
    pid_file::PidFile,
    reload::Reloader,
    succession::{Predecessor, Succession},
    supervise::{self, Outcome, Surroundings},
    word::{self, Word},
};
use narrowlink_dataplane::{
    net::inherited::{Inherited, Taker},
    run::{
        notify::{Notifier, Speaker as _},
        ready_file::ReadyFile,
    },
    tls::choose_ktls,
};
use narrowlink_proto::code::Code;
use serde::Serialize;

use crate::end::{CONFIGURATION, Failure, INTERNAL, OrExit as _, StartFault, UNAVAILABLE, USAGE, print};

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

/// Is the gateway of `config`, which was read from `path`, until it is told to stop.
pub(crate) fn serve(config: Config, path: &Path, args: &Args) -> Result<(), Failure> {
    let reloader = Some(Reloader::new(path, &config));
    let (word, words) = word::signals().context("signals can't be handled").or_exit(INTERNAL)?;
    // Without a predecessor they are the unit's, which is a matter of configuration.
    let code = if args.succeed.is_some() { USAGE } else { CONFIGURATION };
    let mut begun = Begun::by(args.succeed, &word).context("no socket can be taken over").or_exit(code)?;
    let ready_file = args.ready_file.as_deref().map(claim).transpose()?;
    let (name, services) = (config.name.clone(), config.services.clone());
    let ktls = choose_ktls(args.ktls.into());
    tracing::info!("tokens are signed with {}", say_secrets(&config.secrets));
    let (places, state_dir) = (config.places.clone(), config.state_dir.clone());
    let gateway = gateway::start_with(config, &mut begun.inherited).map_err(|e| refused(e, &places))?;
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
    let pid_file = Arc::new(PidFile::claim(state_dir.as_deref()));
    let (notifier, succession) = begun.settle(&gateway, word, pid_file.clone()).or_exit(INTERNAL)?;
    let outcome = supervise::supervise(&gateway, &words, Surroundings { reloader, notifier, succession });
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

/// What a gateway has of whoever began it.
struct Begun {
    inherited: Inherited,
    notifier: Notifier,
    by: Option<Predecessor>,
    /// Who waits to hear that it serves.
    predecessor: Option<Arc<Taker>>,
}

impl Begun {
    /// Takes what it is given; `word` tells this gateway when its keeper is gone.
    fn by(by: Option<Predecessor>, word: &Sender<Word>) -> io::Result<Self> {
        let Some(who) = by else {
            let (inherited, notifier) = (Inherited::of_service_manager()?, Notifier::new());
            return Ok(Self { inherited, notifier, by, predecessor: None });
        };
        let taker = Arc::new(Taker::of_stdin()?);
        let inherited = taker.take()?;
        let notifier = match who {
            Predecessor::Gateway => {
                return Ok(Self { inherited, notifier: Notifier::new(), by, predecessor: Some(taker) });
            }
            Predecessor::Keeper => Notifier::through(taker.clone()),
        };
        let word = word.clone();
        thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            taker.wait_alone();
            let _ = word.send(Word::Leave);
        })?;
        Ok(Self { inherited, notifier, by, predecessor: None })
    }

    /// Tells everybody that `gateway` serves.
    fn settle(
        self,
        gateway: &Gateway,
        word: Sender<Word>,
        pid_file: Arc<PidFile>,
    ) -> io::Result<(Notifier, Option<Succession>)> {
        let Self { inherited, notifier, by, predecessor } = self;
        for addr in inherited.left() {
            tracing::warn!(
                "a socket that listens at {addr} was handed over, and no service has that address: it is closed"
            );
        }
        if let Some(predecessor) = predecessor {
            // One that has ended meanwhile has left already.
            let _ = predecessor.say("READY=1", &[]);
        }
        gateway.store_sockets(&notifier);
        notifier.ready(&gateway.describe());
        let succession = match by {
            Some(Predecessor::Keeper) => None,
            None | Some(Predecessor::Gateway) => Some(Succession::new(word, notifier.clone(), pid_file)?),
        };
        Ok((notifier, succession))
    }
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
