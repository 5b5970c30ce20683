//! Role: a worker of a gateway: what it listens for, and what it does with each note.

use std::{net::TcpListener, rc::Rc, time::Duration};

use async_channel::Sender;

use crate::{
    gateway::{
        handover::{assemble, disassemble},
        lane::IdleLane,
        local::Local,
        mailbox::{LaneParts, Note},
        parking::{park, take_parked},
        service::Service,
        services::Services,
        table::Kind,
    },
    run::{timer::sleep, worker::spawn},
};

/// How often a stopping worker looks whether its sessions have ended.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// Serves what arrives at these sockets, and reads the worker's mailbox, until it has stopped and its sessions have
/// ended.
pub async fn attend(local: Rc<Local>, listeners: Vec<(Service, TcpListener)>) {
    let mut services = Services::default();
    for (service, socket) in listeners {
        services.begin(&local, service, socket);
    }
    let notes = local.shared.mailboxes.of(local.index);
    while let Ok(note) = notes.recv().await {
        match note {
            Note::Lane(parts) => take_in(&local, parts),
            Note::WantLane { link, reply } => {
                let local = local.clone();
                spawn(async move {
                    if let Some(lane) = take_parked(&local, link).await {
                        give_away(&local, lane, &reply);
                    }
                });
            }
            Note::LinkDown(link) => local.lanes.borrow_mut().dismiss_waiting(link),
            Note::Forget(link) => local.lanes.borrow_mut().forget(link),
            Note::Lost(link) => {
                local.lanes.borrow_mut().forget(link);
                local.table.judge();
            }
            Note::Judge => local.table.judge(),
            Note::MakeRoom => local.dismiss_stranger(),
            Note::Listen(service, socket) => services.begin(&local, service, socket),
            Note::Unlisten(service) => services.end(service),
            Note::Stop => {
                local.stop();
                local.lanes.borrow_mut().forget_all();
                let sessions = local.table.count(Kind::Session);
                tracing::info!(worker = local.index, sessions, "stopping: no new work, sessions may finish");
                break;
            }
        }
    }
    // At least one tick, in which listeners close and links say goodbye.
    loop {
        sleep(DRAIN_TICK).await;
        if !local.is_busy() {
            break;
        }
    }
}

fn take_in(local: &Rc<Local>, parts: LaneParts) {
    match assemble(local, parts) {
        Ok(lane) => park(local, lane),
        Err(e) => tracing::debug!("a lane was lost on its way between workers: {e}"),
    }
}

/// Gives a lane to whoever asked for one; if that one has given up, it stays here.
fn give_away(local: &Rc<Local>, lane: IdleLane, reply: &Sender<LaneParts>) {
    match disassemble(lane) {
        Ok(parts) => {
            if let Err(unsent) = reply.try_send(parts) {
                take_in(local, unsent.into_inner());
            }
        }
        Err(e) => tracing::debug!("a lane can't be handed over: {e}"),
    }
}
