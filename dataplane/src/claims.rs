//! Role: ids that may be used once: sessions and lanes.
//! Invariants: a claim is atomic over all workers · users have ids of their own: nobody can use up, or find out
//! about, another's · an unanswered claim of the same token gives
//! way to a newer one (a CDN repeats a GET); an answered one never does · the memory is bounded:
//! full means refuse, never forget inside the window.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender};
use narrowlink_proto::id::Uid;

/// How long a used id is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
const SHARDS: usize = 64;
/// Ids remembered per shard: 64 × 16,384 ids of about 160 bytes, 160 MiB when full.
const IDS_MAX: usize = 16 * 1024;

/// An id within its user's space.
pub type OwnId = (Uid, [u8; 32]);

/// All claims of this gateway.
pub struct Claims {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    ids: HashMap<OwnId, State>,
    by_age: VecDeque<(Instant, OwnId)>,
    next: u64,
}

enum State {
    /// Boxed: most ids that are remembered are used.
    Pending(Box<Pending>),
    Used,
}

struct Pending {
    serial: u64,
    token_id: String,
    superseded: Sender<()>,
}

/// An id that is being decided about; dropped without [`Claim::answer`], it stays used.
pub struct Claim<'a> {
    claims: &'a Claims,
    id: OwnId,
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
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Claims {
    fn shard(&self, (_, id): &OwnId) -> MutexGuard<'_, Shard> {
        // Random ids spread by any byte; a foe who chooses his can only crowd his own shard's
        // lock, which is held for a table look-up (keyed by the table's own hash).
        let shard = &self.shards[usize::from(id[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims `id` for the bearer of `token_id`.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn claim(&self, id: OwnId, token_id: &str, now: Instant) -> Result<Claim<'_>, ClaimError> {
        let mut shard = self.shard(&id);
        shard.forget_old(now);
        let full = shard.ids.len() >= IDS_MAX;
        shard.next += 1;
        let serial = shard.next;
        let (superseded, watch) = async_channel::bounded(1);
        let state = State::Pending(Box::new(Pending { serial, token_id: token_id.to_owned(), superseded }));
        match shard.ids.entry(id) {
            Entry::Vacant(_) if full => return Err(ClaimError::Full),
            Entry::Vacant(slot) => {
                slot.insert(state);
                shard.by_age.push_back((now, id));
            }
            Entry::Occupied(mut slot) => match slot.get() {
                State::Pending(older) if older.token_id == token_id => {
                    let _ = older.superseded.try_send(());
                    slot.insert(state);
                }
                _ => return Err(ClaimError::Used),
            },
        }
        Ok(Claim { claims: self, id, serial, superseded: watch })
    }
}

impl Shard {
    fn forget_old(&mut self, now: Instant) {
        while let Some((since, id)) = self.by_age.front().copied() {
            if now.saturating_duration_since(since) < REMEMBERED {
                break;
            }
            self.by_age.pop_front();
            self.ids.remove(&id);
        }
    }
}

impl Claim<'_> {
    /// Returns when a newer claim took this one's place.
    pub async fn superseded(&self) {
        if self.superseded.recv().await.is_err() {
            // Answered or forgotten: nothing can supersede it any more.
            std::future::pending::<()>().await;
        }
    }

    /// Marks the id as answered: from now on nobody can have it. False when a newer claim was
    /// quicker.
    pub fn answer(self) -> bool {
        let mut shard = self.claims.shard(&self.id);
        match shard.ids.get_mut(&self.id) {
            Some(state) => {
                let mine = matches!(state, State::Pending(pending) if pending.serial == self.serial);
                if mine {
                    *state = State::Used;
                }
                mine
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    fn own(byte: u8) -> OwnId {
        (Uid::nil(), [byte; 32])
    }

    #[test]
    fn an_answered_id_is_used_for_everybody_of_its_user() {
        let (claims, now) = (Claims::default(), Instant::now());
        assert!(claims.claim(own(1), "a", now).unwrap().answer());
        for token in ["a", "b"] {
            assert_eq!(claims.claim(own(1), token, now).err(), Some(ClaimError::Used));
        }
        let somebody_elses = (Uid::from_u128(1), [1; 32]);
        assert!(claims.claim(somebody_elses, "a", now).unwrap().answer());
        assert!(claims.claim(own(1), "b", now + REMEMBERED).is_ok());
    }

    #[test]
    fn a_newer_claim_of_the_same_token_wins_over_an_unanswered_one() {
        let (claims, now) = (Claims::default(), Instant::now());
        let older = claims.claim(own(1), "a", now).unwrap();
        assert!(block_on(poll_once(older.superseded())).is_none());
        assert_eq!(claims.claim(own(1), "b", now).err(), Some(ClaimError::Used));
        let newer = claims.claim(own(1), "a", now).unwrap();
        assert!(block_on(poll_once(older.superseded())).is_some());
        assert!(!older.answer());
        assert!(newer.answer());
    }

    #[test]
    fn of_many_threads_one_gets_the_claim() {
        let (claims, now) = (Claims::default(), Instant::now());
        let won = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for n in 0..64 {
                let (claims, won) = (&claims, &won);
                scope.spawn(move || {
                    if let Ok(claim) = claims.claim(own(7), &n.to_string(), now)
                        && claim.answer()
                    {
                        won.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
    }

    #[test]
    fn full_means_refuse() {
        let (claims, now) = (Claims::default(), Instant::now());
        let id = |n: u32| {
            let mut id = [0; 32];
            id[28..].copy_from_slice(&n.to_be_bytes());
            (Uid::nil(), id)
        };
        for n in 0..IDS_MAX as u32 {
            assert!(claims.claim(id(n), "a", now).unwrap().answer());
        }
        assert_eq!(claims.claim(id(u32::MAX), "a", now).err(), Some(ClaimError::Full));
        assert!(claims.claim(id(u32::MAX), "a", now + REMEMBERED).is_ok());
    }
}
