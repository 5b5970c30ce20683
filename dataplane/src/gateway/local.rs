//! Role: what one worker of a gateway has.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use async_channel::{Receiver, Sender};

use crate::gateway::{
    lane::Lanes,
    mailbox::Note,
    shared::Shared,
    strangers::Strangers,
    table::{Kind, Table},
};

/// What one worker has.
pub struct Local {
    /// Its number.
    pub index: usize,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// The lanes parked here.
    pub lanes: RefCell<Lanes>,
    /// No new work any more.
    pub stopping: Cell<bool>,
    stop: (Sender<()>, Receiver<()>),
    /// The connections here.
    pub table: Rc<Table>,
    /// Those of them that have shown no token.
    strangers: RefCell<Strangers>,
}

impl Local {
    /// The state of worker `index`.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let table = Table::new(shared.door.clone());
        Rc::new(Self {
            index,
            shared,
            lanes: RefCell::default(),
            stopping: Cell::new(false),
            stop: async_channel::bounded(1),
            table,
            strangers: RefCell::default(),
        })
    }

    /// Takes nothing new any more.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        self.stop.0.close();
    }

    /// Returns when this worker takes nothing new any more.
    pub(crate) async fn stopped(&self) {
        let _ = self.stop.1.recv().await;
    }

    /// What keeps a stopping worker: sessions that finish, links that say goodbye.
    pub(crate) fn is_busy(&self) -> bool {
        self.table.count(Kind::Session) + self.table.count(Kind::Link) > 0
    }

    /// Changes what is known of the strangers here, and tells the other workers how heavy the heaviest is.
    pub(crate) fn strangers<R>(&self, change: impl FnOnce(&mut Strangers) -> R) -> R {
        let mut strangers = self.strangers.borrow_mut();
        let changed = change(&mut strangers);
        self.shared.weigh(self.index, strangers.heaviest());
        changed
    }

    /// Has a stranger leave, so that another finds room: here, or on the worker that has the heaviest.
    pub(crate) fn make_room(&self) {
        let here = self.strangers.borrow().heaviest();
        let told = self
            .shared
            .heavier_than(here)
            .is_some_and(|worker| self.shared.mailboxes.tell(worker, Note::MakeRoom).is_ok());
        if !told {
            self.dismiss_stranger();
        }
    }

    /// The stranger that weighs most here leaves.
    pub(crate) fn dismiss_stranger(&self) {
        if let Some(key) = self.strangers(Strangers::choose) {
            self.table.dismiss_stranger(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};
    use narrowlink_proto::{ended::Why, limits::Limits};

    use super::*;
    use crate::{
        gateway::{
            kit::{Gateway, PEER, Worker},
            sources::Heard,
            table::Seat,
        },
        run::source::Source,
    };

    fn stranger(worker: &Worker) -> Seat {
        let seat = Seat::for_stranger(&worker.local.table);
        let heard = Heard { source: Source::from(PEER), known_by: None };
        worker.local.strangers(|all| all.arrive(heard, seat.key()));
        seat
    }

    #[test]
    fn a_stranger_leaves_where_there_are_most_be_that_another_worker() {
        let gateway = Gateway::new(Limits::default(), 2);
        let [here, there] = [0, 1].map(|index| gateway.worker(index));
        let mailbox = gateway.shared.mailboxes.of(1);
        let told = || std::iter::from_fn(|| mailbox.try_recv().ok()).count();
        let [mine, _others, _more] = [&here, &there, &there].map(stranger);
        here.local.make_room();
        assert_eq!(told(), 1);
        assert!(block_on(poll_once(mine.dismissed())).is_none());
        // One that can't be told any more is not waited for.
        while gateway.shared.mailboxes.tell(1, Note::MakeRoom).is_ok() {}
        here.local.make_room();
        assert_eq!(block_on(mine.dismissed()), Why::Reset);
        told();
        let many = [(); 3].map(|()| stranger(&here));
        here.local.make_room();
        assert_eq!((told(), block_on(many[0].dismissed())), (0, Why::Reset), "most are here");
    }

    #[test]
    fn a_worker_that_stops_is_busy_while_there_are_sessions_and_links() {
        let worker = Gateway::new(Limits::default(), 1).worker(0);
        assert!(block_on(poll_once(worker.local.stopped())).is_none());
        let seat = Seat::for_stranger(&worker.local.table);
        let busy = [Kind::Stranger, Kind::Lane, Kind::Stream, Kind::Session, Kind::Link].map(|kind| {
            seat.becomes(kind);
            worker.local.is_busy()
        });
        assert_eq!(busy, [false, false, false, true, true]);
        worker.local.stop();
        block_on(worker.local.stopped());
        assert!(worker.local.stopping.get());
    }
}
