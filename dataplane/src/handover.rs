//! Role: what workers say to each other, and the state each has: the one file that crosses threads.
//! Invariants: a connection crosses only while quiet, as descriptor + TLS state + what was read and not sent ·
//! mailboxes are bounded; a full one costs a hand-over, never a connection's bytes.

use std::{
    cell::{Cell, RefCell},
    net::TcpListener,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use async_channel::{Receiver, Sender};
use narrowlink_proto::{ended::Why, id::LinkId, limits::Limits};

use crate::{
    claims::Claims,
    directory::{AgentEntry, Directory},
    door::{Door, Principal},
    lane::{self, IdleLane, Lanes},
    listen::Listening,
    quiet::{Quiet, QuietParts},
    serve::Service,
    shares::Descriptors,
    sources::Sources,
    strangers::Strangers,
    table::{Kind, Seat, Table},
    timer::{sleep, timeout},
    usage::Slot,
    worker::spawn,
};

/// Notes that may wait for one worker.
const MAILBOX: usize = 4096;
/// How long another worker may take to answer; beyond it a new lane is quicker.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);
/// How often a stopping worker looks whether its sessions have ended.
const DRAIN_TICK: Duration = Duration::from_millis(10);

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
}

/// A parked lane on its way between two workers.
pub struct LaneParts {
    conn: QuietParts,
    entry: Arc<AgentEntry>,
    slot: Slot,
}

/// What all workers share.
pub struct Shared {
    /// The operator.
    pub door: Arc<dyn Door>,
    /// The agents.
    pub directory: Arc<Directory>,
    /// Ids that were used.
    pub claims: Claims,
    /// Where strangers come from.
    pub sources: Sources,
    /// How heavy the heaviest strangers of each worker are (see [`Strangers::heaviest`]).
    heaviest: Vec<AtomicUsize>,
    limits: ArcSwap<Limits>,
    mailboxes: Vec<(Sender<Note>, Receiver<Note>)>,
}

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
    listening: Listening,
    /// The connections here.
    pub table: RefCell<Table>,
    /// Those of them that have shown no token.
    strangers: RefCell<Strangers>,
}

impl Shared {
    /// The shared state of `workers` workers.
    pub fn new(door: Arc<dyn Door>, directory: Arc<Directory>, limits: Limits, workers: usize) -> Self {
        let mailboxes = (0..workers).map(|_| async_channel::bounded(MAILBOX)).collect();
        let limits = ArcSwap::from_pointee(limits);
        let strangers_max = Descriptors::of_this_process().strangers_max();
        let sources = Sources::new(strangers_max, Instant::now());
        Self {
            door,
            directory,
            claims: Claims::default(),
            sources,
            heaviest: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            limits,
            mailboxes,
        }
    }

    /// Deadlines and bounds, as they are now.
    pub fn limits(&self) -> Guard<Arc<Limits>> {
        self.limits.load()
    }

    /// From now on these hold, for what begins from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    /// Whether the connections of this bearer may stay.
    ///
    /// # Errors
    /// They may not, and why.
    pub(crate) fn standing(&self, who: &Principal) -> Result<(), Why> {
        if who.vanished.load(Ordering::Acquire) { Err(Why::Vanished) } else { self.door.standing(who) }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// Forgets ids and sources that count no more. To be called once a second, on no worker.
    pub fn sweep(&self, now: Instant) {
        self.claims.sweep(now);
        self.sources.sweep(now);
    }

    /// Tells every worker; waits for room. Not to be called on a worker.
    pub fn tell_all(&self, note: impl Fn() -> Note) {
        for (mailbox, _) in &self.mailboxes {
            // Closed only when the process ends.
            let _ = mailbox.send_blocking(note());
        }
    }

    /// Gives each worker one of `notes`; waits for room. Not to be called on a worker.
    pub fn tell_each(&self, notes: impl Iterator<Item = Note>) {
        for ((mailbox, _), note) in self.mailboxes.iter().zip(notes) {
            let _ = mailbox.send_blocking(note);
        }
    }

    /// Tells every worker; waits for room.
    pub(crate) async fn tell_all_soon(&self, note: impl Fn() -> Note) {
        for (mailbox, _) in &self.mailboxes {
            // Closed only when the process ends.
            let _ = mailbox.send(note()).await;
        }
    }

    /// Tells every worker. Best effort: dropped where a mailbox is full; for hints only.
    pub(crate) fn tell_all_now(&self, note: impl Fn() -> Note) {
        for (mailbox, _) in &self.mailboxes {
            let _ = mailbox.try_send(note());
        }
    }
}

impl Local {
    /// The state of worker `index`.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            index,
            shared,
            lanes: RefCell::default(),
            stopping: Cell::new(false),
            stop: async_channel::bounded(1),
            listening: Listening::default(),
            table: RefCell::default(),
            strangers: RefCell::default(),
        })
    }

    /// Serves what arrives at a socket of this worker's own.
    pub fn listen(self: &Rc<Self>, service: Service, socket: TcpListener) {
        self.listening.begin(self, service, socket);
    }

    /// Returns when this worker takes nothing new any more.
    pub(crate) async fn stopped(&self) {
        let _ = self.stop.1.recv().await;
    }

    /// What keeps a stopping worker: sessions that finish, links that say goodbye.
    fn is_busy(&self) -> bool {
        let table = self.table.borrow();
        table.count(Kind::Session) + table.count(Kind::Link) > 0
    }

    /// Changes what is known of the strangers here, and tells the other workers how heavy the heaviest is.
    pub(crate) fn strangers<R>(&self, change: impl FnOnce(&mut Strangers) -> R) -> R {
        let mut strangers = self.strangers.borrow_mut();
        let changed = change(&mut strangers);
        self.shared.heaviest[self.index].store(strangers.heaviest(), Ordering::Relaxed);
        changed
    }

    /// Has a stranger leave, so that another finds room: here, or on the worker that has the heaviest.
    pub(crate) fn make_room(&self) {
        let heaviest = self.shared.heaviest.iter().map(|one| one.load(Ordering::Relaxed)).enumerate();
        let here = self.strangers.borrow().heaviest();
        let heavier = heaviest.filter(|(_, weight)| *weight > here).max_by_key(|(_, weight)| *weight);
        let told = heavier
            .is_some_and(|(worker, _)| self.shared.mailboxes[worker].0.try_send(Note::MakeRoom).is_ok());
        if !told {
            self.dismiss_stranger();
        }
    }

    fn dismiss_stranger(&self) {
        if let Some(key) = self.strangers(Strangers::choose) {
            self.table.borrow_mut().dismiss_stranger(key);
        }
    }

    fn judge(&self) {
        self.table.borrow_mut().judge(|who| self.shared.standing(who));
    }

    /// Reads the worker's mailbox until it has stopped and its sessions have ended.
    pub async fn attend_mailbox(self: Rc<Self>) {
        let (_, notes) = self.shared.mailboxes[self.index].clone();
        while let Ok(note) = notes.recv().await {
            match note {
                Note::Lane(parts) => match parts.assemble(&self) {
                    Ok(lane) => lane::park(&self, lane),
                    Err(e) => tracing::debug!("a lane was lost on its way between workers: {e}"),
                },
                Note::WantLane { link, reply } => {
                    let this = self.clone();
                    spawn(async move {
                        if let Some(lane) = lane::take_parked(&this, link).await {
                            this.give_away(lane, &reply);
                        }
                    });
                }
                Note::LinkDown(link) => self.lanes.borrow_mut().dismiss_waiting(link),
                Note::Forget(link) => self.lanes.borrow_mut().forget(link),
                Note::Lost(link) => {
                    self.lanes.borrow_mut().forget(link);
                    self.judge();
                }
                Note::Judge => self.judge(),
                Note::MakeRoom => self.dismiss_stranger(),
                Note::Listen(service, socket) => self.listen(service, socket),
                Note::Unlisten(service) => self.listening.end(service),
                Note::Stop => {
                    self.stopping.set(true);
                    self.stop.0.close();
                    self.lanes.borrow_mut().forget_all();
                    let sessions = self.table.borrow().count(Kind::Session);
                    tracing::info!(
                        worker = self.index,
                        sessions,
                        "stopping: no new work, sessions may finish"
                    );
                    break;
                }
            }
        }
        // At least one tick, in which listeners close and links say goodbye.
        loop {
            sleep(DRAIN_TICK).await;
            if !self.is_busy() {
                break;
            }
        }
    }

    fn give_away(self: &Rc<Self>, lane: IdleLane, reply: &Sender<LaneParts>) {
        match LaneParts::disassemble(lane) {
            Ok(parts) => {
                if let Err(unsent) = reply.try_send(parts) {
                    // Whoever asked has given up: it stays here.
                    match unsent.into_inner().assemble(self) {
                        Ok(lane) => lane::park(self, lane),
                        Err(e) => tracing::debug!("a lane was lost: {e}"),
                    }
                }
            }
            Err(e) => tracing::debug!("a lane can't be handed over: {e}"),
        }
    }

    /// Hands a quiet lane to another worker; gives it back when that one's mailbox is full.
    pub(crate) fn hand_over(self: &Rc<Self>, lane: IdleLane, worker: usize) -> Option<IdleLane> {
        match LaneParts::disassemble(lane) {
            Ok(parts) => {
                let Err(unsent) = self.shared.mailboxes[worker].0.try_send(Note::Lane(parts)) else {
                    return None;
                };
                match unsent.into_inner() {
                    Note::Lane(parts) => parts.assemble(self).ok(),
                    _ => None,
                }
            }
            Err(e) => {
                tracing::debug!("a lane can't be handed over: {e}");
                None
            }
        }
    }

    /// Asks another worker for a parked lane.
    pub(crate) async fn ask_for_lane(self: &Rc<Self>, worker: usize, link: LinkId) -> Option<IdleLane> {
        let (reply, given) = async_channel::bounded(1);
        self.shared.mailboxes[worker].0.try_send(Note::WantLane { link, reply }).ok()?;
        let parts = timeout(ANSWER_TIMEOUT, given.recv()).await;
        // What comes too late goes back: closing tells the other worker.
        given.close();
        match parts {
            Ok(Ok(parts)) => parts.assemble(self).ok(),
            _ => given.try_recv().ok()?.assemble(self).ok(),
        }
    }
}

impl LaneParts {
    fn disassemble(lane: IdleLane) -> std::io::Result<Self> {
        Ok(Self { conn: lane.conn.into_parts()?, entry: lane.entry, slot: lane.slot })
    }

    fn assemble(self, local: &Rc<Local>) -> std::io::Result<IdleLane> {
        let conn = Quiet::from_parts(self.conn)?;
        let seat = Seat::for_lane(local, &self.entry.principal);
        Ok(IdleLane { conn, entry: self.entry, seat, slot: self.slot })
    }
}
