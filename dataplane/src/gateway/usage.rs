//! Role: how much a token's bearers use, and all of one user together, over all workers; and how much they may.
//! Invariants: no lock: counters and clocks are atomics · what was taken is given back when it is dropped ·
//! whoever has no limit on bytes isn't measured while bytes flow.
//! See: docs/configuration.md "Limits"; `bucket`, for rates.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    limits::Limits,
    message::{Share, Speaker, Used},
    token::Allowance,
};

use crate::{
    gateway::{
        bucket::{Bucket, NONE, now_ns},
        shares::{Descriptors, Held, Short},
    },
    relay::{Meter, Room},
};

/// Dials, logins and lanes of so much time may come at once.
const DIALS_BURST: Duration = Duration::from_secs(10);
/// Bytes of so much time may.
const BYTES_BURST: Duration = Duration::from_millis(100);
/// A metered read is allowed this much at least, however slow the rate is.
const ROOM_MIN: usize = 16 * 1024;
/// Measurements of one token at a time: each costs the gateway, or an agent, more memory than a session. As many as `bench` wants at
/// once at the most: 64 streams, and two echoes beside.
const MEASUREMENTS_MAX: u32 = 66;
/// A login is for a session, or for a stream that is kept ready for one.
const LOGINS_PER_DIAL: u64 = 2;

/// What one token's bearers, or one user's, use and may use.
#[derive(Default)]
pub struct Account {
    /// For people.
    whose: &'static str,
    sessions: Slots,
    streams: Slots,
    measurements: Slots,
    links: Slots,
    lanes: Slots,
    /// Of all these, what needs a descriptor; the user's counts.
    held: Held,
    dials: Bucket,
    logins: Bucket,
    new_lanes: Bucket,
    bytes: Bucket,
    /// Payload of this month.
    month_bytes: AtomicU64,
    month_bytes_max: AtomicU64,
}

/// Things of which only so many may be there at a time.
#[derive(Default)]
struct Slots {
    taken: AtomicU32,
    max: AtomicU64,
}

impl Slots {
    fn take(&self) -> Result<(), u64> {
        match self.max.load(Ordering::Relaxed) {
            NONE => self.take_below(u64::MAX),
            max => self.take_below(max),
        }
    }

    fn take_below(&self, max: u64) -> Result<(), u64> {
        let taken = u64::from(self.taken.fetch_add(1, Ordering::Relaxed));
        if taken < max {
            return Ok(());
        }
        self.give_back();
        Err(max)
    }

    fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

fn short_of(short: Short, user: &Account) -> Refused {
    const ADVICE: &str = "close some, or ask the operator of the gateway to allow it more open files";
    match short {
        Short::User => {
            user.limited(format_args!("has its share of the gateway's connections already; {ADVICE}"))
        }
        Short::Everybody => Refused::new(
            RefusalCode::Limited,
            format!("this gateway has as many connections as it has room for; {ADVICE}"),
        ),
    }
}

impl Account {
    /// A new one; `whose` is as in "this token has ..".
    pub fn new(whose: &'static str, allowance: &Allowance) -> Self {
        let account = Self { whose, ..Self::default() };
        account.set(allowance);
        account
    }

    /// From now on this much is allowed. What is taken stays taken.
    pub fn set(&self, allowance: &Allowance) {
        let set = |limit: &AtomicU64, to: Option<u64>| limit.store(to.unwrap_or(NONE), Ordering::Relaxed);
        set(&self.sessions.max, allowance.sessions.map(|n| n.get().into()));
        set(&self.streams.max, allowance.streams.map(|n| n.get().into()));
        self.dials.set(allowance.dials_per_s.map_or(NONE, |n| n.get().into()));
        self.logins.set(allowance.dials_per_s.map_or(NONE, |n| u64::from(n.get()) * LOGINS_PER_DIAL));
        self.bytes.set(allowance.bytes_per_s.map_or(NONE, Into::into));
        set(&self.month_bytes_max, allowance.bytes_per_month.map(Into::into));
    }

    /// Payload of this month so far; counted only where there is a limit on bytes.
    pub fn month_bytes(&self) -> u64 {
        self.month_bytes.load(Ordering::Relaxed)
    }

    /// Another month, or what an earlier process has counted of this one.
    pub fn set_month_bytes(&self, bytes: u64) {
        self.month_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether more was taken than is paid for by now: to forget that would be a gift.
    pub fn is_ahead(&self) -> bool {
        let now = now_ns();
        [&self.dials, &self.bytes].iter().any(|bucket| bucket.is_ahead(now))
    }

    /// What is used of what is limited.
    fn used(&self) -> Used {
        let share = |used: u64, max: u64| (max != NONE).then_some(Share { used, max });
        let slots = |slots: &Slots| {
            share(slots.taken.load(Ordering::Relaxed).into(), slots.max.load(Ordering::Relaxed))
        };
        Used {
            sessions: slots(&self.sessions),
            streams: slots(&self.streams),
            month_bytes: share(self.month_bytes(), self.month_bytes_max.load(Ordering::Relaxed)),
            dials_per_s_max: self.dials.limit(),
            bytes_per_s_max: self.bytes.limit(),
        }
    }

    fn limited(&self, what: impl std::fmt::Display) -> Refused {
        Refused::new(RefusalCode::Limited, format!("{} {what}", self.whose))
    }

    /// The same for who is too fast at it; the answer says when it can be.
    fn too_fast(&self, what: &str, wait: Duration) -> Refused {
        let ms = wait.as_millis().max(1);
        self.limited(format_args!("{what} faster than it may; try again in {ms} ms")).retry_after(wait)
    }

    fn slots(&self, what: What) -> &Slots {
        match what {
            What::Session => &self.sessions,
            What::Measurement => &self.measurements,
            What::Stream => &self.streams,
            What::Link => &self.links,
            What::Lane => &self.lanes,
        }
    }

    fn is_metered(&self) -> bool {
        self.bytes.has_limit() || self.month_bytes_max.load(Ordering::Relaxed) != NONE
    }

    fn is_used_up(&self) -> bool {
        self.month_left() == 0
    }

    /// Bytes that this month may still see.
    fn month_left(&self) -> u64 {
        match self.month_bytes_max.load(Ordering::Relaxed) {
            NONE => u64::MAX,
            max => max.saturating_sub(self.month_bytes()),
        }
    }
}

/// The accounts that somebody's doings go to: the token's and the user's.
#[derive(Clone, Default)]
pub struct Usage(Option<Arc<Accounts>>);

struct Accounts {
    /// The token's, the user's.
    own: [Arc<Account>; 2],
    descriptors: Arc<Descriptors>,
}

/// What there may be so many of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Session,
    /// A session, too.
    Measurement,
    Stream,
    Link,
    Lane,
}

impl What {
    const fn words(self) -> &'static str {
        match self {
            Self::Session => "sessions",
            Self::Measurement => "measurements",
            Self::Stream => "streams",
            Self::Link => "links",
            Self::Lane => "lanes",
        }
    }

    /// A session has those of its stream and its lane.
    const fn needs_descriptor(self) -> bool {
        !matches!(self, Self::Session | Self::Measurement)
    }
}

/// Something that is there, and counts until it is dropped.
pub struct Slot {
    usage: Usage,
    what: What,
}

impl Slot {
    /// One that is nobody's.
    pub(crate) fn uncounted() -> Self {
        Self { usage: Usage(None), what: What::Lane }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.usage.give_back(self.what);
        if self.what == What::Measurement {
            self.usage.give_back(What::Session);
        }
    }
}

impl Usage {
    /// What a token's bearer does goes to both; its connections need some of `descriptors`.
    pub fn new(token: Arc<Account>, user: Arc<Account>, descriptors: Arc<Descriptors>) -> Self {
        Self(Some(Arc::new(Accounts { own: [token, user], descriptors })))
    }

    fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.0.iter().flat_map(|accounts| accounts.all())
    }

    /// What the token's bearers use, and all of the user, of what is limited.
    pub(crate) fn used(&self) -> [Used; 2] {
        self.0
            .as_deref()
            .map(|accounts| accounts.own.each_ref().map(|account| account.used()))
            .unwrap_or_default()
    }

    /// One more login.
    fn login(&self) -> Result<(), Refused> {
        let now = now_ns();
        for account in self.accounts() {
            let taken = account.logins.take(now, 1, DIALS_BURST);
            taken.map_err(|wait| account.too_fast("connects", wait))?;
        }
        Ok(())
    }

    /// One more dial.
    ///
    /// # Errors
    /// Too many in too short a time, or this month's bytes are used up.
    pub(crate) fn dial(&self) -> Result<(), Refused> {
        let now = now_ns();
        for account in self.accounts() {
            if account.is_used_up() {
                return Err(account.limited(
                    "has used up its bytes of this month (UTC); ask the operator of the gateway for more",
                ));
            }
            let taken = account.dials.take(now, 1, DIALS_BURST);
            taken.map_err(|wait| account.too_fast("opens sessions", wait))?;
        }
        Ok(())
    }

    /// One more session, until the slot is dropped.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn session(&self) -> Result<Slot, Refused> {
        self.take(What::Session, None)
    }

    /// One more session that measures, until the slot is dropped.
    ///
    /// # Errors
    /// As for a session, and there are as many of these as there may be.
    pub(crate) fn measurement(&self) -> Result<Slot, Refused> {
        self.count(What::Session, None)?;
        // One slot gives both back.
        self.take(What::Measurement, Some(MEASUREMENTS_MAX)).inspect_err(|_| self.give_back(What::Session))
    }

    /// One more stream, until the slot is dropped.
    ///
    /// # Errors
    /// There are as many as there may be, or they come too fast.
    pub(crate) fn stream(&self) -> Result<Slot, Refused> {
        self.login()?;
        self.take(What::Stream, None)
    }

    /// One more visitor's connection, until the slot is dropped.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn visitor(&self) -> Result<Slot, Refused> {
        self.take(What::Stream, None)
    }

    /// One more link, until the slot is dropped.
    ///
    /// # Errors
    /// As for a stream.
    pub(crate) fn link(&self, speaker: Speaker, limits: &Limits) -> Result<Slot, Refused> {
        self.login()?;
        let max = match speaker {
            Speaker::Agent => limits.agent_links_max,
            Speaker::Client | Speaker::Gateway => limits.client_links_max,
        };
        self.take(What::Link, Some(max))
    }

    /// One more lane, until the slot is dropped.
    ///
    /// # Errors
    /// As for a stream.
    pub fn lane(&self, limits: &Limits) -> Result<Slot, Refused> {
        let Some(accounts) = &self.0 else { return Ok(Slot { usage: self.clone(), what: What::Lane }) };
        let token = &accounts.own[0];
        token.new_lanes.set(limits.agent_lanes_per_s.get().into());
        // No number that changes: an agent says the same trouble once.
        let refused = || token.limited("opens lanes faster than it may; try again in some seconds");
        token.new_lanes.take(now_ns(), 1, DIALS_BURST).map_err(|_| refused())?;
        self.take(What::Lane, Some(limits.agent_lanes_max))
    }

    /// Whether there is no place for another lane of this token.
    pub(crate) fn has_all_lanes(&self, limits: &Limits) -> bool {
        let token = self.accounts().next();
        token.is_some_and(|token| token.lanes.taken.load(Ordering::Relaxed) >= limits.agent_lanes_max)
    }

    /// `token_max` is the token's limit where its account has none.
    fn take(&self, what: What, token_max: Option<u32>) -> Result<Slot, Refused> {
        self.count(what, token_max)?;
        Ok(Slot { usage: self.clone(), what })
    }

    fn count(&self, what: What, token_max: Option<u32>) -> Result<(), Refused> {
        let Some(Accounts { own: [token, user], descriptors }) = self.0.as_deref() else { return Ok(()) };
        let full = |account: &Account, max| {
            account.limited(format_args!("has {max} {} already; close one, and try again", what.words()))
        };
        let taken = match token_max {
            Some(max) => token.slots(what).take_below(max.into()),
            None => token.slots(what).take(),
        };
        taken.map_err(|max| full(token, max))?;
        if let Err(max) = user.slots(what).take() {
            token.slots(what).give_back();
            return Err(full(user, max));
        }
        if what.needs_descriptor()
            && let Err(short) = descriptors.take(what == What::Lane, &user.held)
        {
            for account in [token, user] {
                account.slots(what).give_back();
            }
            return Err(short_of(short, user));
        }
        Ok(())
    }

    fn give_back(&self, what: What) {
        let Some(Accounts { own, descriptors }) = self.0.as_deref() else { return };
        own.iter().for_each(|account| account.slots(what).give_back());
        if what.needs_descriptor() {
            descriptors.give_back(what == What::Lane, &own[1].held);
        }
    }

    /// What its sessions' bytes are counted by, if they are limited.
    pub(crate) fn meter(&self) -> Option<Arc<dyn Meter>> {
        let accounts = self.0.as_ref().filter(|accounts| accounts.all().any(Account::is_metered))?;
        Some(accounts.clone())
    }
}

impl Accounts {
    fn all(&self) -> impl Iterator<Item = &Account> {
        self.own.iter().map(|account| &**account)
    }
}

impl Meter for Accounts {
    fn room(&self) -> Room {
        if self.all().any(Account::is_used_up) {
            return Room::UsedUp;
        }
        let now = now_ns();
        let mut room = u64::MAX;
        for account in self.all() {
            match account.bytes.left(now, BYTES_BURST) {
                Ok(left) => room = room.min(left).min(account.month_left()),
                Err(wait) => return Room::Later(wait),
            }
        }
        Room::Now(usize::try_from(room).unwrap_or(usize::MAX).max(ROOM_MIN))
    }

    fn spend(&self, bytes: usize) {
        let (now, bytes) = (now_ns(), bytes as u64);
        for account in self.all() {
            account.bytes.spend(now, bytes);
            account.month_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(allowed: u64) -> Arc<Descriptors> {
        Arc::new(Descriptors::of(allowed))
    }

    fn usage(token: &str, user: &str) -> (Usage, [Arc<Account>; 2]) {
        let account = |whose, json: &str| Arc::new(Account::new(whose, &serde_json::from_str(json).unwrap()));
        let accounts = [account("this token", token), account("this user", user)];
        let usage = Usage::new(accounts[0].clone(), accounts[1].clone(), descriptors(1_600));
        (usage, accounts)
    }

    #[test]
    fn slots_are_counted_for_the_token_and_the_user_and_given_back() {
        let (usage, [token, user]) = usage(r#"{"sessions":3}"#, r#"{"sessions":2}"#);
        let other = Arc::new(Account::new("this token", &Allowance::default()));
        let other = Usage::new(other, user.clone(), descriptors(1_600));
        let (first, second) = (usage.session().ok(), other.session().ok());
        assert!(first.is_some() && second.is_some());
        let refused = usage.session().err().unwrap();
        assert_eq!(refused.code, RefusalCode::Limited);
        assert_eq!(refused.reason, "this user has 2 sessions already; close one, and try again");
        assert_eq!(
            token.sessions.taken.load(Ordering::Relaxed),
            1,
            "what was taken on the way is given back"
        );
        drop(second);
        assert!(usage.session().is_ok());
        // Fewer are allowed now: nobody is thrown out.
        token.set(&serde_json::from_str(r#"{"sessions":1}"#).unwrap());
        assert!(usage.session().is_err());
        drop(first);
        assert!(usage.session().is_ok() && usage.stream().is_ok());
        assert_eq!([&token, &user].map(|a| a.sessions.taken.load(Ordering::Relaxed)), [0, 0]);
    }

    #[test]
    fn a_measurement_is_a_session_and_there_are_few_of_them() {
        let (usage, [token, user]) = usage(r#"{"sessions":100}"#, "{}");
        let held: Vec<_> = (0..MEASUREMENTS_MAX).map(|_| usage.measurement().ok().unwrap()).collect();
        let refused = usage.measurement().err().unwrap();
        assert_eq!(refused.reason, "this token has 66 measurements already; close one, and try again");
        let sessions = || [&token, &user].map(|account| account.sessions.taken.load(Ordering::Relaxed));
        assert_eq!(sessions(), [66, 66], "what was taken on the way is given back");
        let others: Vec<_> = (0..100).map_while(|_| usage.session().ok()).collect();
        assert_eq!(others.len(), 34);
        drop((held, others));
        assert_eq!(sessions(), [0, 0]);
        assert!(usage.measurement().is_ok());
    }

    #[test]
    fn each_token_has_so_many_links_and_lanes_and_what_ends_makes_room() {
        let limits = Limits { agent_lanes_max: 5, ..Limits::default() };
        for (speaker, max) in
            [(Speaker::Agent, limits.agent_links_max), (Speaker::Client, limits.client_links_max)]
        {
            let (usage, _) = usage("{}", "{}");
            let mut held: Vec<_> = (0..max).map(|_| usage.link(speaker, &limits).ok().unwrap()).collect();
            let refused = usage.link(speaker, &limits).err().unwrap();
            assert_eq!(
                refused.reason,
                format!("this token has {max} links already; close one, and try again")
            );
            held.pop();
            assert!(usage.link(speaker, &limits).is_ok());
        }
        let (usage, [token, user]) = usage("{}", "{}");
        let held: Vec<_> = (0..5).map(|_| usage.lane(&limits).ok().unwrap()).collect();
        assert!(usage.has_all_lanes(&limits));
        assert_eq!(usage.lane(&limits).err().unwrap().code, RefusalCode::Limited);
        drop(held);
        assert!(!usage.has_all_lanes(&limits));
        let taken = [&token, &user].map(|account| account.lanes.taken.load(Ordering::Relaxed));
        assert_eq!(taken, [0, 0]);
    }

    #[test]
    fn lanes_that_come_and_go_are_rated() {
        let limits = Limits { agent_lanes_per_s: std::num::NonZeroU32::MIN, ..Limits::default() };
        let (usage, _) = usage("{}", "{}");
        assert_eq!((0..1_000).filter(|_| usage.lane(&limits).is_ok()).count(), 10);
        let refused = usage.lane(&limits).err().unwrap();
        assert!(refused.reason.contains("opens lanes faster than it may"), "{refused}");
    }

    #[test]
    fn logins_are_rated_as_dials_are() {
        let (usage, _) = usage(r#"{"dials_per_s":10}"#, "{}");
        let heard = (0..1_000).filter(|_| usage.stream().is_ok()).count();
        assert!((200..210).contains(&heard), "{heard}");
        let refused = usage.link(Speaker::Client, &Limits::default()).err().unwrap();
        assert!(
            refused.reason.starts_with("this token connects faster than it may; try again in "),
            "{refused}"
        );
        assert!((1..=50).contains(&refused.retry_after_ms.unwrap()), "{refused:?}");
    }

    #[test]
    fn one_users_connections_leave_some_for_others() {
        let all = descriptors(208);
        let user = |_| {
            let account = |whose| Arc::new(Account::new(whose, &Allowance::default()));
            Usage::new(account("this token"), account("this user"), all.clone())
        };
        let [greedy, modest] = [0, 1].map(user);
        let held: Vec<_> = (0..1_000).map_while(|_| greedy.stream().ok()).collect();
        assert_eq!(held.len(), 104);
        let refused = greedy.stream().err().unwrap();
        assert!(
            refused.reason.starts_with("this user has its share of the gateway's connections"),
            "{refused}"
        );
        assert!(modest.link(Speaker::Agent, &Limits::default()).is_ok() && modest.stream().is_ok());
        drop(held);
        assert!(greedy.stream().is_ok());
    }

    #[test]
    fn who_opens_too_fast_is_told_when_to_come_again() {
        let (usage, [account, user]) = usage(r#"{"dials_per_s":2}"#, "{}");
        let refused = (0..100).find_map(|_| usage.dial().err()).unwrap();
        assert_eq!(refused.code, RefusalCode::Limited);
        assert!((1..=500).contains(&refused.retry_after_ms.unwrap()), "{refused:?}");
        assert!(account.is_ahead() && !user.is_ahead());
    }

    #[test]
    fn the_months_bytes_are_used_up_once() {
        let (usage, [token, user]) = usage(r#"{"bytes_per_month":1000}"#, "{}");
        let meter = usage.meter().unwrap();
        assert!(usage.dial().is_ok());
        assert_eq!(meter.room(), Room::Now(ROOM_MIN), "not much more than is left");
        meter.spend(1000);
        assert_eq!((token.month_bytes(), user.month_bytes()), (1000, 1000));
        assert_eq!(meter.room(), Room::UsedUp);
        let refused = usage.dial().unwrap_err();
        assert!(refused.reason.starts_with("this token has used up its bytes of this month"), "{refused}");
        token.set_month_bytes(0);
        assert!(usage.dial().is_ok());
    }

    #[test]
    fn what_is_used_is_said_of_what_is_limited_alone() {
        let (usage, _) = usage(r#"{"sessions":3,"bytes_per_month":1000}"#, r#"{"dials_per_s":7}"#);
        let _held = usage.session().ok().unwrap();
        usage.meter().unwrap().spend(10);
        let share = |used, max| Some(Share { used, max });
        let token = Used { sessions: share(1, 3), month_bytes: share(10, 1000), ..Used::default() };
        assert_eq!(usage.used(), [token, Used { dials_per_s_max: Some(7), ..Used::default() }]);
        assert_eq!(Usage::default().used(), [Used::default(); 2]);
    }

    #[test]
    fn who_has_no_limit_is_not_measured() {
        let (free, _) = usage(r#"{"sessions":9,"dials_per_s":9}"#, "{}");
        assert!(free.meter().is_none());
        assert!(Usage::default().meter().is_none() && Usage::default().session().is_ok());
        let (slow, _) = usage("{}", r#"{"bytes_per_s":1}"#);
        let meter = slow.meter().unwrap();
        assert_eq!(meter.room(), Room::Now(ROOM_MIN));
        meter.spend(1);
        assert!(matches!(meter.room(), Room::Later(_)));
    }
}
