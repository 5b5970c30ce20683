//! Role: the commands that give credentials and take them back: `init`, `ticket`, `user`, `revoke`.

use std::{
    env,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use narrowlink_control::{
    args::{Bearer, Init, NewTicket, Revoke, Ticket as TicketCommand, User as UserCommand},
    clock::seconds_since_1970,
    config::Config,
    init::{InitError, Plan},
    migrate::Migration,
    revocations::RevocationError,
    revoke::{List, Revoked, Subject},
    tickets::{
        self, TicketError, Wanted,
        book::{self, Book, BookError},
    },
};
use narrowlink_dataplane::run::{log, process::own_config_dir};
use narrowlink_proto::{
    ticket::Program,
    token::{Keys, Kind},
};

use crate::{
    end::{
        CANT_CREATE, CONFIGURATION, Failure, INTERNAL, IO, NO, OrExit as _, UNAVAILABLE, USAGE, print, say,
    },
    find, load, service,
};

pub(crate) fn init(args: &Init) -> Result<u8, Failure> {
    let env = |name: &str| env::var_os(name);
    let dir = args.dir.clone().or_else(|| own_config_dir(env));
    let dir = dir.context("there is no home directory: say --dir DIR").or_exit(USAGE)?;
    let migration = args.from.as_ref().map(|from| Migration::new(args, from, dir.clone()));
    let migration = migration.transpose().map_err(not_made)?;
    let plan = match &migration {
        Some(migration) => migration.plan.clone(),
        None => Plan::new(args, dir).map_err(not_made)?,
    };
    // Before anybody is asked.
    if migration.is_none() {
        plan.check(seconds_since_1970()).map_err(not_made)?;
    }
    if !args.yes {
        confirm(&plan.describe())?;
    }
    let now = seconds_since_1970();
    let made = migration.as_ref().map_or_else(|| plan.make(now), |migration| migration.make(now));
    let made = made.map_err(not_made)?;
    // What was taken is known to be so when all is written.
    if let Some(migration) = &migration {
        say(migration.report().trim_end());
    }
    // The tickets are there, whatever becomes of the service.
    let begun = plan.is_service.then(|| service::install(&made.config));
    if let Some(Ok(said)) = &begun {
        say(said.trim_end());
    }
    print(&if args.json { made.json() } else { plan.next(&made, matches!(begun, Some(Ok(_)))) })?;
    begun.transpose().map(|_| 0)
}

fn not_made(e: InitError) -> Failure {
    let code = match &e {
        InitError::Exists(_) | InitError::File { .. } => CANT_CREATE,
        InitError::Config(_) | InitError::Given { .. } => CONFIGURATION,
        InitError::Listen { .. } => UNAVAILABLE,
        InitError::Host(_)
        | InitError::Url(_)
        | InitError::NoHost
        | InitError::Ticket(_)
        | InitError::Authority(_) => USAGE,
        InitError::Random(_) => INTERNAL,
    };
    Failure { code, error: e.into() }
}

/// Asks whether what was said before is meant.
fn confirm(what: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(anyhow!("standard input is no terminal, so nobody can be asked: add --yes"))
            .or_exit(USAGE);
    }
    log::say(&format!("{what}\nMake it? [Y/n] "));
    let mut line = String::new();
    io::stdin().read_line(&mut line).or_exit(USAGE)?;
    match line.trim() {
        "" | "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow!("nothing was made")).or_exit(NO),
    }
}

pub(crate) fn ticket(command: &TicketCommand) -> Result<u8, Failure> {
    let now = seconds_since_1970();
    match command {
        TicketCommand::Agent(new) => make_ticket(Kind::Agent, new, &[]),
        TicketCommand::Client { new, allow } => make_ticket(Kind::Client, new, allow),
        TicketCommand::List { json, config } => {
            let place = Place::find(config.as_deref())?;
            let book = Book::read(&place.book).or_exit(CONFIGURATION)?;
            let list = &place.config.revocations;
            print(&if *json { tickets::json(&book, list, now) } else { tickets::text(&book, list, now) })?;
            Ok(0)
        }
        TicketCommand::Revoke { kind, name, user, json, config } => {
            let place = Place::find(config.as_deref())?;
            let List::OfConfig { list, .. } =
                List::of(place.path.clone(), place.config).or_exit(CONFIGURATION)?
            else {
                unreachable!("a config's list is one of a config")
            };
            let kind = match kind {
                Bearer::Agent => Kind::Agent,
                Bearer::Client => Kind::Client,
            };
            let count =
                tickets::revoke(&place.book, &list, (user.as_deref(), kind, name), now).map_err(no_ticket)?;
            let said = match count {
                _ if *json => tickets::revoked_json(kind, name, count, &list),
                0 => format!("nothing was left to take back of the {} {name}\n", kind.name()),
                _ => format!(
                    "taken back: {count} of the {} {name}, in {}; a running gateway ends its links and sessions within 2 s\n",
                    kind.name(),
                    list.display()
                ),
            };
            print(&said)?;
            Ok(0)
        }
    }
}

/// A ticket alone goes to standard output, what to do with it to standard error.
fn make_ticket(kind: Kind, new: &NewTicket, allow: &[String]) -> Result<u8, Failure> {
    let NewTicket { name, user, expires, renew, config } = new;
    let place = Place::find(config.as_deref())?;
    let keys = place.config.secrets.first().map(|secret| Keys::new(secret.as_bytes()));
    let keys = keys.context("the config has no secret").or_exit(CONFIGURATION)?;
    let wanted = Wanted {
        user: user.clone(),
        kind,
        name: name.clone(),
        allow: allow.to_vec(),
        expires: *expires,
        renew: *renew,
    };
    let now = seconds_since_1970();
    let made = Book::change(&place.book, |book| {
        let ticket = wanted.make(book, &keys, &place.config.revocations, now)?;
        Ok((ticket, wanted.remarks(book), tickets::scope(book, now)))
    });
    let (ticket, remarks, scope) = made.map_err(no_ticket)?;
    for remark in &remarks {
        say(remark);
    }
    let text = ticket.encode();
    print(&format!("{}\n", text.expose()))?;
    let command = Program::of(kind).typed();
    let reach = match (kind, allow) {
        (Kind::Client, []) if !renew => ", and reaches all that its user's agents do",
        _ => "",
    };
    say(&format!(
        "whoever has this ticket is the {} {name}, {scope}{reach}; there: {command} TICKET, or {command} - and paste it",
        kind.name()
    ));
    Ok(0)
}

fn no_ticket(e: TicketError) -> Failure {
    let code = match &e {
        TicketError::Usage(_) | TicketError::Token(_) => USAGE,
        TicketError::Book(BookError::File { .. }) | TicketError::Revocation(RevocationError::File { .. }) => {
            IO
        }
        TicketError::Book(_) | TicketError::Revocation(_) => CONFIGURATION,
        TicketError::Random(_) => INTERNAL,
    };
    Failure { code, error: e.into() }
}

pub(crate) fn user(command: &UserCommand) -> Result<u8, Failure> {
    match command {
        UserCommand::Add { name, uid, gateway, json, config } => {
            let place = Place::find(config.as_deref())?;
            let user = book::add_user(&place.book, name, *uid, gateway.as_deref()).map_err(no_ticket)?;
            print(&if *json { user.json() } else { format!("{} has the space {}\n", user.name, user.uid) })?;
        }
        UserCommand::List { json, config } => {
            let place = Place::find(config.as_deref())?;
            let book = Book::read(&place.book).or_exit(CONFIGURATION)?;
            print(&if *json { book.users_json() } else { book.users_text() })?;
        }
    }
    Ok(0)
}

/// A gateway's config and its book of tickets.
struct Place {
    path: PathBuf,
    config: Config,
    book: PathBuf,
}

impl Place {
    fn find(config: Option<&Path>) -> Result<Self, Failure> {
        let path = find(config)
            .context("which gateway? `narrowlink-gateway init` makes one")
            .or_exit(CONFIGURATION)?;
        let config = Config::load(&path).or_exit(CONFIGURATION)?;
        let book = path.with_file_name(book::FILE);
        Ok(Self { path, config, book })
    }
}

pub(crate) fn revoke(args: &Revoke) -> Result<u8, Failure> {
    let list = match &args.list {
        Some(path) => List::File(path.clone()),
        None => {
            let path = find(args.config.as_deref())
                .context("no list to write to: --list FILE names one")
                .or_exit(CONFIGURATION)?;
            let config = load(&path)?;
            List::of(path, config).or_exit(CONFIGURATION)?
        }
    };
    let subject = Subject::new(args, &list, seconds_since_1970()).or_exit(USAGE)?;
    for warning in &subject.warnings {
        say(warning);
    }
    let revoked = Revoked::add(&subject, &list).map_err(|e| Failure {
        code: if matches!(e, RevocationError::File { .. }) { IO } else { CONFIGURATION },
        error: e.into(),
    })?;
    print(&if args.json { revoked.json() } else { revoked.text() })?;
    Ok(0)
}
