//! Role: a worker of a gateway: what it listens for, and what it does with each note.

use std::{net::TcpListener, rc::Rc, time::Duration};

use async_channel::Sender;
use futures_lite::future;
use narrowlink_proto::ended::Why;

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
    let drained = async {
        local.stopped().await;
        // At least one tick, in which listeners close and links say goodbye.
        loop {
            sleep(DRAIN_TICK).await;
            if !local.is_busy() {
                return;
            }
        }
    };
    future::or(drained, read_notes(&local, &mut services)).await;
}

/// Does what the worker's mailbox says, for as long as it is read.
async fn read_notes(local: &Rc<Local>, services: &mut Services) {
    let notes = local.shared.mailboxes.of(local.index);
    while let Ok(note) = notes.recv().await {
        match note {
            Note::Lane(parts) => take_in(local, parts),
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
            Note::Listen(service, socket) => services.begin(local, service, socket),
            Note::Unlisten(service) => services.end(service),
            Note::Stop => {
                local.stop();
                local.lanes.borrow_mut().forget_all();
                let sessions = local.table.count(Kind::Session);
                tracing::info!(worker = local.index, sessions, "stopping: no new work, sessions may finish");
            }
            Note::Cut => local.table.dismiss_all(Why::Shutdown),
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

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{Arc, atomic::Ordering},
    };

    use futures_lite::future::poll_once;
    use narrowlink_proto::{ended::RefusalCode, limits::Limits, message::Speaker, upgrade::Framing};
    use std::time::Instant;

    use super::*;
    use crate::{
        gateway::{
            kit::{self, PEER, Peer, Worker, turns, until},
            parking::take,
            sources::Heard,
            table::Seat,
        },
        run::source::Source,
        tunnel::conn::CLOSE_RESET,
    };

    const HOUR: Duration = Duration::from_secs(3600);

    /// A worker that reads its mailbox.
    fn attended() -> Worker {
        let worker = kit::worker(Limits::default());
        spawn(attend(worker.local.clone(), Vec::new()));
        worker
    }

    fn tell(worker: &Worker, note: Note) {
        assert!(worker.shared.mailboxes.tell(0, note).is_ok());
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_worker_gives_a_lane_that_it_has_and_says_no_at_once_where_it_has_none() {
        kit::run(async {
            let worker = attended();
            let agent = worker.agent();
            let _peer = worker.park(&agent, Framing::Framed);
            for has_one in [true, false] {
                let (reply, given) = async_channel::bounded(1);
                tell(&worker, Note::WantLane { link: agent.entry.link, reply });
                assert_eq!(given.recv().await.is_ok(), has_one);
            }
            assert_eq!(worker.count(Kind::Lane), 0);
        });
    }

    #[test]
    fn a_lane_whose_asker_has_given_up_stays_where_it_is() {
        kit::run(async {
            let worker = attended();
            let agent = worker.agent();
            let (lane, peer) = worker.lane(&agent, Framing::Framed);
            let (reply, given) = async_channel::bounded(1);
            drop(given);
            give_away(&worker.local, lane.idle().ok().unwrap(), &reply);
            take(&worker.local, &agent.entry, deadline()).await.unwrap().conn.close(1000, "still here");
            assert_eq!(peer.close().await, (1000, "still here".to_owned()));
        });
    }

    #[test]
    fn when_a_link_goes_nobody_waits_for_its_lanes_and_those_that_are_parked_serve_on() {
        kit::run(async {
            let worker = attended();
            let agent = worker.agent();
            let mut waiting = pin!(take(&worker.local, &agent.entry, deadline()));
            assert!(poll_once(waiting.as_mut()).await.is_none());
            agent.entry.set_link_down();
            tell(&worker, Note::LinkDown(agent.entry.link));
            assert_eq!(waiting.await.err().unwrap().code, RefusalCode::AgentNotFound);
            let parked = worker.park(&agent, Framing::Framed);
            tell(&worker, Note::LinkDown(agent.entry.link));
            turns().await;
            assert!(take(&worker.local, &agent.entry, deadline()).await.is_ok());
            drop(parked);
        });
    }

    #[test]
    fn a_link_that_is_gone_for_good_leaves_no_lanes() {
        kit::run(async {
            let worker = attended();
            let (gone, other) = (worker.agent(), worker.agent());
            let peer = worker.park(&gone, Framing::Framed);
            let _others = worker.park(&other, Framing::Framed);
            tell(&worker, Note::Forget(gone.entry.link));
            assert_eq!(peer.close().await, (1001, "this lane is not needed any more".to_owned()));
            until(|| worker.count(Kind::Lane) == 1).await;
        });
    }

    #[test]
    fn all_that_a_lost_agent_has_ends_and_its_sessions_end_as_by_its_doing() {
        kit::run(async {
            let worker = attended();
            let agent = worker.agent();
            let [parked, busy] = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            let client = worker.stream(&worker.laptop, Framing::Framed);
            client.open(1).await;
            busy.accept().await;
            client.opened(1).await;
            worker.home.vanished.store(true, Ordering::Release);
            tell(&worker, Note::Lost(agent.entry.link));
            assert_eq!(client.close().await, (4000, "the target's side vanished".to_owned()));
            assert_eq!(busy.close().await.0, 4000);
            assert_eq!(parked.close().await.0, 1001);
            let ended = ["laptop opened 1 at home", "1 ended: 0 up, 0 down, Target vanished"];
            assert_eq!(worker.door.events(), ended);
        });
    }

    #[test]
    fn who_may_not_stay_is_dismissed_when_the_operator_has_changed_its_mind() {
        kit::run(async {
            let worker = attended();
            let [stays, goes] =
                [&worker.home, &worker.laptop].map(|who| Seat::for_lane(&worker.local.table, who));
            worker.door.known().expelled.insert("laptop", Why::Revoked);
            tell(&worker, Note::Judge);
            assert_eq!(goes.dismissed().await, Why::Revoked);
            assert!(poll_once(stays.dismissed()).await.is_none());
        });
    }

    #[test]
    fn a_stranger_leaves_for_one_of_another_worker() {
        kit::run(async {
            let worker = attended();
            let seat = Seat::for_stranger(&worker.local.table);
            let heard = Heard { source: Source::from(PEER), known_by: None };
            worker.local.strangers(|all| all.arrive(heard, seat.key()));
            tell(&worker, Note::MakeRoom);
            assert_eq!(seat.dismissed().await, Why::Reset);
        });
    }

    #[test]
    fn a_worker_that_stops_takes_nothing_new_and_ends_when_its_sessions_have() {
        kit::run(async {
            let worker = kit::worker(Limits::default());
            let mut attending = Box::pin(attend(worker.local.clone(), Vec::new()));
            let agent = worker.agent();
            let [parked, busy] = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            let [client, idle] = [(); 2].map(|()| worker.stream(&worker.laptop, Framing::Framed));
            client.open(1).await;
            busy.accept().await;
            client.opened(1).await;
            tell(&worker, Note::Stop);
            let stopping = async {
                (&mut attending).await;
                panic!("a session stands");
            };
            let meanwhile = async {
                assert_eq!(parked.close().await.0, 1001);
                assert_eq!(idle.refused().await.code, RefusalCode::Draining);
                assert_eq!(idle.close().await, (1001, "the gateway shuts down".to_owned()));
                // It has looked more than once by then.
                let begun = Instant::now();
                until(|| begun.elapsed() >= DRAIN_TICK * 3).await;
                kit::exchange(&client, &busy, 1).await;
            };
            future::or(meanwhile, stopping).await;
            attending.await;
            assert_eq!(client.refused().await.code, RefusalCode::Draining);
            assert_eq!(client.close().await, (1001, "the gateway shuts down".to_owned()));
            assert_eq!(busy.close().await, (1001, "the gateway shuts down".to_owned()));
            assert_eq!(worker.door.events().last().unwrap(), "1 ended: 2 up, 4 down, Here finished");
        });
    }

    /// Two sessions of a worker that has been told to stop; it attends until both are over.
    async fn stopping_with_two(ends: impl AsyncFnOnce(&Worker, [(Peer, Peer); 2])) {
        let worker = kit::worker(Limits::default());
        let attending = attend(worker.local.clone(), Vec::new());
        let agent = worker.agent();
        let mut sessions = Vec::new();
        for (n, who) in [(1, &worker.laptop), (2, &Arc::new(kit::who(Speaker::Client, "guest", HOUR)))] {
            let (lane, client) = (worker.park(&agent, Framing::Framed), worker.stream(who, Framing::Framed));
            client.open(n).await;
            lane.accept().await;
            client.opened(n).await;
            sessions.push((client, lane));
        }
        worker.door.events();
        tell(&worker, Note::Stop);
        let Ok(sessions) = sessions.try_into() else { panic!("two were made") };
        future::zip(attending, ends(&worker, sessions)).await;
    }

    #[test]
    fn sessions_that_have_had_their_time_end_when_they_are_cut_and_each_side_hears_why() {
        kit::run(stopping_with_two(async |worker, sessions| {
            tell(worker, Note::Cut);
            for peer in sessions.iter().flat_map(|(client, lane)| [client, lane]) {
                assert_eq!(peer.close().await, (CLOSE_RESET, "the gateway shut down".to_owned()));
            }
            let mut noted = worker.door.events();
            noted.sort_unstable();
            assert_eq!(noted, [1, 2].map(|n| format!("{n} ended: 0 up, 0 down, Here shutdown")));
        }));
    }

    #[test]
    fn who_is_revoked_while_a_worker_stops_goes_at_once_and_the_others_may_finish() {
        kit::run(stopping_with_two(async |worker, [(client, lane), (guest, other)]| {
            worker.door.known().expelled.insert("guest", Why::Revoked);
            tell(worker, Note::Judge);
            for peer in [&guest, &other] {
                assert_eq!(peer.close().await, (CLOSE_RESET, "the token was revoked".to_owned()));
            }
            kit::exchange(&client, &lane, 1).await;
            let noted = ["2 ended: 0 up, 0 down, Here revoked", "1 ended: 2 up, 4 down, Here finished"];
            assert_eq!(worker.door.events(), noted);
        }));
    }
}
