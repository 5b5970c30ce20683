//! Role: ids that may be used once: sessions and lanes.
//! Invariants: a claim is atomic over all workers · users have ids of their own: nobody can use up, or find out about,
//! another's · an unanswered claim of the same token gives way to a newer one (a CDN repeats a GET); an answered one
//! never does · the memory is bounded: full means refuse, never forget inside the window; who has most is refused first.
//!
//! An id is remembered as a keyed hash of 8 bytes and the mark of its token: between 18 and 37 bytes in its table. Two
//! ids with the same hash would look like one that was used: of a user with a million ids, that happens to one open in
//! 10^13. The hash's key is ours, so nobody can look for such a pair, or choose the shard that an id falls into.

use std::{
    collections::{HashMap, hash_map::Entry, hash_map::RandomState},
    hash::{BuildHasher as _, BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use narrowlink_proto::id::Uid;

use crate::run::lock::lock;

/// A used id is remembered for three generations after its own: 60 to 80 s.
const GENERATION: Duration = Duration::from_secs(20);
const GENERATIONS: usize = 4;
const SHARDS: usize = 64;
/// Ids that are remembered, of all users: 74 MiB when full. One user may have half of them: 13,000 opens a second.
const IDS_MAX: usize = 2 * 1024 * 1024;
/// The mark of an id that was answered; no token has it.
const USED: u64 = 0;

/// What an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// A client's session.
    Session,
    /// An agent's lane.
    Lane,
}

/// An id within its user's space.
pub type OwnId = (Uid, Use, [u8; 32]);

/// All claims of this gateway.
pub struct Claims {
    start: Instant,
    keys: RandomState,
    shards: Vec<Mutex<HashMap<(Uid, Use), Space>>>,
    ids: AtomicUsize,
    ids_max: usize,
}

/// The ids of one user, by the time of their claim; the marks of those whose claim got no answer are their token's.
#[derive(Default)]
struct Space {
    generation: u64,
    ids: [Ids; GENERATIONS],
    /// Claims that are being decided about.
    pending: HashMap<u64, Pending>,
    next: u64,
}

type Ids = HashMap<u64, u64, BuildHasherDefault<Hashed>>;

struct Pending {
    serial: u64,
    superseded: Sender<()>,
}

/// The hasher of what is a keyed hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// An id that is being decided about; dropped without [`Claim::answer`], only its own token may claim it again.
pub struct Claim {
    claims: Arc<Claims>,
    space: (Uid, Use),
    id: u64,
    serial: u64,
    superseded: Receiver<()>,
}

/// Why an id can't be claimed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Somebody used it.
    #[error("this id has been used already")]
    Used,
    /// More ids are in use than we remember.
    #[error("too many ids are in use")]
    Full,
}

impl Default for Claims {
    fn default() -> Self {
        Self::with_room_for(IDS_MAX)
    }
}

impl Claims {
    fn with_room_for(ids_max: usize) -> Self {
        Self {
            start: Instant::now(),
            keys: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            ids: AtomicUsize::new(0),
            ids_max,
        }
    }

    fn shard(&self, space: (Uid, Use)) -> MutexGuard<'_, HashMap<(Uid, Use), Space>> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let index = self.keys.hash_one(space) as usize % SHARDS;
        lock(&self.shards[index])
    }

    fn generation(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / GENERATION.as_secs()
    }

    /// Claims `id` for the bearer of `token_id`.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn claim(self: &Arc<Self>, id: OwnId, token_id: &str, now: Instant) -> Result<Claim, ClaimError> {
        let (uid, used_as, bytes) = id;
        let (space, id) = ((uid, used_as), self.keys.hash_one(bytes));
        let mark = self.keys.hash_one(token_id).max(USED + 1);
        let (superseded, watch) = async_channel::bounded(1);
        let mut shard = self.shard(space);
        let own = shard.entry(space).or_default();
        self.ids.fetch_sub(own.turn_to(self.generation(now)), Ordering::Relaxed);
        match own.mark(id) {
            Some(other) if other != mark => return Err(ClaimError::Used),
            // It is as young as its newest claim.
            Some(_) => own.forget(id),
            // Nobody has more than are free: so there is always one for the next.
            None if own.len() >= self.ids_max.saturating_sub(self.ids.load(Ordering::Relaxed)) => {
                return Err(ClaimError::Full);
            }
            None => {
                self.ids.fetch_add(1, Ordering::Relaxed);
            }
        }
        own.newest().insert(id, mark);
        own.next += 1;
        let serial = own.next;
        if let Some(older) = own.pending.insert(id, Pending { serial, superseded }) {
            let _ = older.superseded.try_send(());
        }
        Ok(Claim { claims: self.clone(), space, id, serial, superseded: watch })
    }

    /// Forgets what is old, and gives its memory back. To be called now and then, on no worker.
    pub fn sweep(&self, now: Instant) {
        let generation = self.generation(now);
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, space| {
                self.ids.fetch_sub(space.turn_to(generation), Ordering::Relaxed);
                !space.is_empty()
            });
            if shard.capacity() > 4 * shard.len() {
                shard.shrink_to_fit();
            }
        }
    }

    /// How many ids are remembered.
    pub fn len(&self) -> usize {
        self.ids.load(Ordering::Relaxed)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Space {
    /// Forgets the generations that are too old in this one; how many ids they had.
    fn turn_to(&mut self, generation: u64) -> usize {
        let mut forgotten = 0;
        let steps = generation.saturating_sub(self.generation).min(GENERATIONS as u64);
        for step in 1..=steps {
            let before = self.newest().len();
            if step == 1 {
                self.generation = generation - steps;
            }
            self.generation += 1;
            // As large as the last one was, so that a steady rate never makes a table grow.
            let new = Ids::with_capacity_and_hasher(
                if steps == 1 { before } else { 0 },
                BuildHasherDefault::default(),
            );
            forgotten += std::mem::replace(self.newest(), new).len();
        }
        forgotten
    }

    fn newest(&mut self) -> &mut Ids {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of 4")]
        &mut self.ids[(self.generation % GENERATIONS as u64) as usize]
    }

    fn mark(&self, id: u64) -> Option<u64> {
        self.ids.iter().find_map(|ids| ids.get(&id)).copied()
    }

    fn forget(&mut self, id: u64) {
        for ids in &mut self.ids {
            ids.remove(&id);
        }
    }

    fn len(&self) -> usize {
        self.ids.iter().map(HashMap::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0 && self.pending.is_empty()
    }
}

impl Claim {
    /// What `deciding` comes to; `None` when a newer claim took this one's place first.
    pub async fn unless_superseded<T>(&self, deciding: impl Future<Output = T>) -> Option<T> {
        let superseded = async {
            if self.superseded.recv().await.is_err() {
                // Answered or forgotten: nothing can supersede it any more.
                future::pending::<()>().await;
            }
            None
        };
        future::or(superseded, async { Some(deciding.await) }).await
    }

    /// Marks the id as answered: from now on nobody can have it. False when a newer claim was
    /// quicker.
    pub fn answer(self) -> bool {
        self.end(true)
    }

    /// Whether it was this claim's to decide.
    fn end(&self, answered: bool) -> bool {
        let mut shard = self.claims.shard(self.space);
        let Some(own) = shard.get_mut(&self.space) else { return false };
        let Entry::Occupied(pending) = own.pending.entry(self.id) else { return false };
        if pending.get().serial != self.serial {
            return false;
        }
        pending.remove();
        if answered && let Some(mark) = own.ids.iter_mut().find_map(|ids| ids.get_mut(&self.id)) {
            *mark = USED;
        }
        true
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.end(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    const REMEMBERED: Duration = Duration::from_secs(60);
    const FORGOTTEN: Duration = Duration::from_secs(80);

    fn own(byte: u8) -> OwnId {
        (Uid::nil(), Use::Session, [byte; 32])
    }

    fn nth(uid: u128, n: u32) -> OwnId {
        let mut id = [0; 32];
        id[28..].copy_from_slice(&n.to_be_bytes());
        (Uid::from_u128(uid), Use::Session, id)
    }

    #[test]
    fn an_answered_id_is_used_for_everybody_of_its_user() {
        let (claims, now) = (Arc::new(Claims::default()), Instant::now());
        assert!(claims.claim(own(1), "a", now).unwrap().answer());
        for token in ["a", "b"] {
            assert_eq!(claims.claim(own(1), token, now).err(), Some(ClaimError::Used));
        }
        let somebody_elses = (Uid::from_u128(1), Use::Session, [1; 32]);
        assert!(claims.claim(somebody_elses, "a", now).unwrap().answer());
        let lane = (Uid::nil(), Use::Lane, [1; 32]);
        assert!(claims.claim(lane, "a", now).unwrap().answer(), "a lane is no session");
        assert!(claims.claim(own(1), "b", now + FORGOTTEN).is_ok());
    }

    #[test]
    fn nothing_is_forgotten_inside_the_window_and_everything_after_it() {
        let claims = Arc::new(Claims::default());
        // At any time of a generation.
        for n in 0..40_u8 {
            let at = claims.start + Duration::from_millis(1_000 * u64::from(n) + 999);
            assert!(claims.claim(own(n), "a", at).unwrap().answer());
            assert_eq!(claims.claim(own(n), "a", at + REMEMBERED).err(), Some(ClaimError::Used), "{n}");
            claims.sweep(at + FORGOTTEN);
            assert!(claims.is_empty(), "{n}");
            assert!(claims.shards.iter().all(|shard| shard.lock().unwrap().capacity() == 0), "{n}");
        }
    }

    #[test]
    fn a_newer_claim_of_the_same_token_wins_over_an_unanswered_one() {
        let (claims, now) = (Arc::new(Claims::default()), Instant::now());
        let older = claims.claim(own(1), "a", now).unwrap();
        assert!(block_on(poll_once(older.unless_superseded(future::pending::<()>()))).is_none());
        assert_eq!(claims.claim(own(1), "b", now).err(), Some(ClaimError::Used));
        let newer = claims.claim(own(1), "a", now).unwrap();
        assert!(block_on(poll_once(older.unless_superseded(future::pending::<()>()))).is_some());
        assert!(!older.answer());
        assert!(newer.answer());
        assert_eq!(claims.len(), 1);
    }

    #[test]
    fn a_claim_that_got_no_answer_is_its_tokens_alone() {
        let (claims, now) = (Arc::new(Claims::default()), Instant::now());
        drop(claims.claim(own(1), "a", now).unwrap());
        assert_eq!(claims.claim(own(1), "b", now).err(), Some(ClaimError::Used));
        assert!(claims.claim(own(1), "a", now).unwrap().answer());
        assert_eq!(claims.claim(own(1), "a", now).err(), Some(ClaimError::Used));
    }

    #[test]
    fn of_many_threads_one_gets_the_claim() {
        let (claims, now) = (Arc::new(Claims::default()), Instant::now());
        let won = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for n in 0..64 {
                let (claims, won) = (&claims, &won);
                scope.spawn(move || {
                    if let Ok(claim) = claims.claim(own(7), &n.to_string(), now)
                        && claim.answer()
                    {
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
    }

    #[test]
    fn full_means_refuse() {
        let (claims, now) = (Arc::new(Claims::with_room_for(1_000)), Instant::now());
        let claim = |uid, n, at| claims.claim(nth(uid, n), "a", at).map(Claim::answer);
        let taken = (0..1_000).take_while(|n| claim(1, *n, now) == Ok(true)).count();
        assert_eq!(taken, 500, "one user gets half");
        assert_eq!(claim(1, 2_000, now), Err(ClaimError::Full));
        assert_eq!(claim(1, 0, now), Err(ClaimError::Used), "what is remembered stays so");
        assert!((0..250).all(|n| claim(2, n, now) == Ok(true)), "another one gets half of the rest");
        assert_eq!(claim(2, 250, now), Err(ClaimError::Full));
        assert_eq!(claim(3, 0, now), Ok(true));
        assert_eq!(claim(1, 2_000, now + FORGOTTEN), Ok(true));
    }

    #[test]
    fn ids_that_a_peer_chooses_crowd_nobody() {
        let (claims, now) = (Arc::new(Claims::with_room_for(100_000)), Instant::now());
        // All of them alike, but for their last bytes.
        for n in 0..60_000 {
            let _ = claims.claim(nth(1, n), "hostile", now).map(Claim::answer);
        }
        assert!((0..1_500).all(|n| claims.claim(nth(2, n), "victim", now).is_ok_and(Claim::answer)));
    }
}
