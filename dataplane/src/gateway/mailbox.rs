//! Role: what crosses threads: words to workers, and connections on their way.
//! Invariants: a connection crosses only while quiet, as descriptor + TLS state + what was read and not sent ·
//! mailboxes are bounded.

use std::{net::TcpListener, sync::Arc};

use async_channel::{Receiver, Sender};
use narrowlink_proto::id::LinkId;

use crate::{
    gateway::{directory::AgentEntry, service::Service, usage::Slot},
    tunnel::quiet::QuietParts,
};

/// Notes that may wait for one worker.
const NOTES_MAX: usize = 4096;

/// A word to a worker.
pub enum Note {
    /// A lane for you.
    Lane(LaneParts),
    /// Have you a lane of this link to spare?
    WantLane {
        /// The agent's link.
        link: LinkId,
        /// Where it goes; closing it says no.
        reply: Sender<LaneParts>,
    },
    /// This link is away: nobody needs to wait for new lanes of it.
    LinkDown(LinkId),
    /// This link is gone for good: so are its parked lanes.
    Forget(LinkId),
    /// The agent of this link does not answer any more, although its connections stand: all of them end, sessions
    /// too. Its principal has vanished before this is said.
    Lost(LinkId),
    /// The operator's mind has changed: whoever may not stay is dismissed.
    Judge,
    /// Another worker has a new stranger, and all places are taken: one here is to leave.
    MakeRoom,
    /// Serve what arrives at this socket, too.
    Listen(Service, TcpListener),
    /// Listen for this service no more. What has arrived is served.
    Unlisten(usize),
    /// Take nothing new; end when the sessions have ended.
    Stop,
    /// They have had their time: end them.
    Cut,
}

/// A parked lane on its way between two workers.
pub struct LaneParts {
    pub(crate) conn: QuietParts,
    pub(crate) entry: Arc<AgentEntry>,
    pub(crate) slot: Slot,
}

/// The mailboxes of all workers.
pub struct Mailboxes(Vec<(Sender<Note>, Receiver<Note>)>);

impl Mailboxes {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| async_channel::bounded(NOTES_MAX)).collect())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// What a worker reads.
    pub(crate) fn of(&self, worker: usize) -> Receiver<Note> {
        self.0[worker].1.clone()
    }

    /// Tells one worker; gives the note back when its mailbox is full.
    pub(crate) fn tell(&self, worker: usize, note: Note) -> Result<(), Note> {
        self.0[worker].0.try_send(note).map_err(async_channel::TrySendError::into_inner)
    }

    /// Tells every worker; waits for room. Not to be called on a worker.
    pub fn tell_all(&self, note: impl Fn() -> Note) {
        for (mailbox, _) in &self.0 {
            // Closed only when the process ends.
            let _ = mailbox.send_blocking(note());
        }
    }

    /// Gives each worker one of `notes`; waits for room. Not to be called on a worker.
    pub fn tell_each(&self, notes: impl Iterator<Item = Note>) {
        for ((mailbox, _), note) in self.0.iter().zip(notes) {
            let _ = mailbox.send_blocking(note);
        }
    }

    /// Tells every worker; waits for room.
    pub(crate) async fn tell_all_soon(&self, note: impl Fn() -> Note) {
        for (mailbox, _) in &self.0 {
            // Closed only when the process ends.
            let _ = mailbox.send(note()).await;
        }
    }

    /// Tells every worker. Best effort: dropped where a mailbox is full; for hints only.
    pub fn tell_all_now(&self, note: impl Fn() -> Note) {
        for (mailbox, _) in &self.0 {
            let _ = mailbox.try_send(note());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    /// What waits for a worker; the notes of these tests have numbers.
    fn waiting(mailboxes: &Mailboxes, worker: usize) -> Vec<usize> {
        let mailbox = mailboxes.of(worker);
        let next = || match mailbox.try_recv().ok()? {
            Note::Unlisten(number) => Some(number),
            _ => panic!("a note that nobody wrote"),
        };
        std::iter::from_fn(next).collect()
    }

    fn with_a_full_one() -> Mailboxes {
        let mailboxes = Mailboxes::new(2);
        for number in 0..NOTES_MAX {
            assert!(mailboxes.tell(0, Note::Unlisten(number)).is_ok());
        }
        mailboxes
    }

    #[test]
    fn a_full_mailbox_gives_a_note_back_and_keeps_its_own_in_their_order() {
        let mailboxes = with_a_full_one();
        let back = mailboxes.tell(0, Note::Unlisten(NOTES_MAX)).err();
        assert!(matches!(back, Some(Note::Unlisten(NOTES_MAX))));
        // A hint is lost there, and nowhere else.
        mailboxes.tell_all_now(|| Note::Unlisten(NOTES_MAX));
        assert_eq!(waiting(&mailboxes, 0), (0..NOTES_MAX).collect::<Vec<_>>());
        assert_eq!(waiting(&mailboxes, 1), [NOTES_MAX]);
    }

    #[test]
    fn who_must_be_heard_by_all_waits_for_room_and_is_heard_once() {
        let mailboxes = with_a_full_one();
        let mut telling = pin!(mailboxes.tell_all_soon(|| Note::Unlisten(NOTES_MAX)));
        assert!(block_on(poll_once(telling.as_mut())).is_none());
        assert!(matches!(mailboxes.of(0).try_recv(), Ok(Note::Unlisten(0))));
        block_on(telling);
        assert_eq!(waiting(&mailboxes, 0), (1..=NOTES_MAX).collect::<Vec<_>>());
        assert_eq!(waiting(&mailboxes, 1), [NOTES_MAX]);
    }

    #[test]
    fn each_worker_gets_what_is_for_it() {
        let mailboxes = Mailboxes::new(3);
        mailboxes.tell_each((7..).map(Note::Unlisten));
        mailboxes.tell_all(|| Note::Unlisten(1));
        assert_eq!([0, 1, 2].map(|worker| waiting(&mailboxes, worker)), [[7, 1], [8, 1], [9, 1]]);
        assert_eq!(mailboxes.count(), 3);
    }
}
