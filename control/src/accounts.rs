//! Role: the accounts of tokens and users: made when somebody comes, kept over restarts where bytes of the month
//! count, forgotten when nobody needs them.
//! Invariants: one account for a token however often it logs in · what was counted is on disk within 10 s, and
//! when the gateway stops · a file that can't be read is put aside, never written over · what two gateways count at a time, of
//! which one goes on in the other's place, is added up.
//! See: docs/configuration.md "Limits".

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use narrowlink_dataplane::{
    gateway::{
        shares::Descriptors,
        usage::{Account, Usage},
    },
    run::{
        file::{self, Reading},
        lock::lock,
        replace::Held,
    },
};
use narrowlink_proto::{id::Uid, token::Allowance, when};
use serde::{Deserialize, Serialize};

/// The file's name in the state directory.
const FILE: &str = "usage.json";
/// A longer one is not ours: a million tokens have a tenth of it.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// How many sweeps may pass before what was counted is written.
const SWEEPS_PER_SAVE: u32 = 10;

/// What somebody may use whose token, or whose entry, says nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowances {
    /// Each token.
    pub token: Allowance,
    /// Each user: all tokens of a uid together.
    pub user: Allowance,
    /// Some users.
    pub users: HashMap<Uid, Allowance>,
}

/// All accounts of a gateway.
pub struct Accounts {
    state: Mutex<State>,
    dir: Option<PathBuf>,
    descriptors: Arc<Descriptors>,
}

#[derive(Default)]
struct State {
    allowances: Allowances,
    tokens: HashMap<(Uid, String), TokenAccount>,
    users: HashMap<Uid, Arc<Account>>,
    /// What the file says of those who haven't come yet.
    counted: Counted,
    /// As it was when the file was last written, or read: what came since is to be added there.
    written: Counted,
    sweeps: u32,
}

struct TokenAccount {
    account: Arc<Account>,
    /// What the token says.
    said: Allowance,
}

/// Bytes of one month.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    /// `2026-11`.
    month: String,
    tokens: HashMap<Uid, HashMap<String, u64>>,
    users: HashMap<Uid, u64>,
}

impl Accounts {
    /// No accounts yet; those of the month that `now_s` (seconds since 1970) is in are taken from the state
    /// directory, if there is one.
    pub fn open(allowances: Allowances, dir: Option<PathBuf>, now_s: u64) -> Self {
        let mut counted = Counted { month: month(now_s), ..Counted::default() };
        if let Some(dir) = &dir {
            match load(&dir.join(FILE)) {
                Ok(there) => counted = there.filter(|there| there.month == counted.month).unwrap_or(counted),
                Err(e) => tracing::error!(
                    "{}: {e}; it was put aside as {FILE}.bad, and this month's bytes are counted from 0",
                    dir.join(FILE).display()
                ),
            }
        }
        let state = State { allowances, written: counted.clone(), counted, ..State::default() };
        Self { state: Mutex::new(state), dir, descriptors: Arc::new(Descriptors::of_this_process()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Where the doings of a token's bearer are counted; `said` is what the token says.
    pub fn usage(&self, uid: Uid, token_id: &str, said: Allowance) -> Usage {
        let mut state = self.state();
        let token = state.token(uid, token_id, said);
        let user = state.user(uid);
        Usage::new(token, user, self.descriptors.clone())
    }

    /// From now on these hold, for who is here too.
    pub fn set(&self, allowances: Allowances) {
        let mut state = self.state();
        state.allowances = allowances;
        let State { allowances, tokens, users, .. } = &*state;
        for TokenAccount { account, said } in tokens.values() {
            account.set(&said.or(allowances.token));
        }
        for (uid, account) in users {
            account.set(&allowances.of_user(*uid));
        }
    }

    /// Begins a new month when there is one, forgets whom nobody needs, and writes what was counted. To be called
    /// once a second, on no worker.
    pub fn sweep(&self, now_s: u64) {
        let mut state = self.state();
        state.turn_page(month(now_s));
        state.forget();
        state.sweeps += 1;
        if state.sweeps >= SWEEPS_PER_SAVE {
            state.sweeps = 0;
            drop(state);
            self.save();
        }
    }

    /// Adds what was counted since to what the file says, if there is a place for it.
    pub fn save(&self) {
        let Some(dir) = &self.dir else { return };
        let (counted, new) = {
            let state = self.state();
            let counted = state.count();
            if counted == state.written {
                return;
            }
            let new = counted.since(&state.written);
            (counted, new)
        };
        match add(&dir.join(FILE), &new, &counted) {
            Ok(()) => self.state().written = counted,
            Err(e) => tracing::error!(
                "{}: {e}; bytes of this month may be forgotten at a restart",
                dir.join(FILE).display()
            ),
        }
    }
}

impl Counted {
    /// What has come since it was `before`.
    fn since(&self, before: &Self) -> Self {
        let mut new = self.clone();
        if before.month == self.month {
            for (uid, bytes) in &mut new.users {
                *bytes = bytes.saturating_sub(before.users.get(uid).copied().unwrap_or(0));
            }
            for (uid, tokens) in &mut new.tokens {
                for (token, bytes) in tokens {
                    let before = before.tokens.get(uid).and_then(|tokens| tokens.get(token));
                    *bytes = bytes.saturating_sub(before.copied().unwrap_or(0));
                }
            }
        }
        new
    }

    /// Both together. Of two months the later one counts.
    fn plus(mut self, new: &Self) -> Self {
        if self.month != new.month {
            return if self.month > new.month { self } else { new.clone() };
        }
        let add = |sum: &mut u64, bytes: u64| *sum = sum.saturating_add(bytes);
        for (uid, bytes) in &new.users {
            add(self.users.entry(*uid).or_default(), *bytes);
        }
        for (uid, tokens) in &new.tokens {
            for (token, bytes) in tokens {
                add(self.tokens.entry(*uid).or_default().entry(token.clone()).or_default(), *bytes);
            }
        }
        self
    }
}

impl Allowances {
    fn of_user(&self, uid: Uid) -> Allowance {
        self.users.get(&uid).copied().unwrap_or_default().or(self.user)
    }
}

impl State {
    fn token(&mut self, uid: Uid, token_id: &str, said: Allowance) -> Arc<Account> {
        let key = (uid, token_id.to_owned());
        if let Some(TokenAccount { account, .. }) = self.tokens.get(&key) {
            return account.clone();
        }
        let account = Arc::new(Account::new("this token", &said.or(self.allowances.token)));
        let bytes = self.counted.tokens.get_mut(&uid).and_then(|tokens| tokens.remove(token_id));
        account.set_month_bytes(bytes.unwrap_or(0));
        self.tokens.insert(key, TokenAccount { account: account.clone(), said });
        account
    }

    fn user(&mut self, uid: Uid) -> Arc<Account> {
        let Self { users, counted, allowances, .. } = self;
        let account = users.entry(uid).or_insert_with(|| {
            let account = Account::new("this user", &allowances.of_user(uid));
            account.set_month_bytes(counted.users.remove(&uid).unwrap_or(0));
            Arc::new(account)
        });
        account.clone()
    }

    fn turn_page(&mut self, month: String) {
        if self.counted.month == month {
            return;
        }
        self.counted = Counted { month, ..Counted::default() };
        self.tokens.values().for_each(|token| token.account.set_month_bytes(0));
        self.users.values().for_each(|account| account.set_month_bytes(0));
    }

    /// Whoever is away and has counted nothing this month comes back as if new.
    fn forget(&mut self) {
        // What was taken at once is paid for first: else a token would begin anew with each connection.
        let needed = |account: &Arc<Account>| {
            Arc::strong_count(account) > 1 || account.month_bytes() > 0 || account.is_ahead()
        };
        self.tokens.retain(|_, token| needed(&token.account));
        self.users.retain(|_, account| needed(account));
    }

    /// What the file is to say.
    fn count(&self) -> Counted {
        let mut counted = self.counted.clone();
        for ((uid, token_id), TokenAccount { account, .. }) in &self.tokens {
            if account.month_bytes() > 0 {
                counted.tokens.entry(*uid).or_default().insert(token_id.clone(), account.month_bytes());
            }
        }
        let users = self.users.iter().map(|(uid, account)| (*uid, account.month_bytes()));
        counted.users.extend(users.filter(|(_, bytes)| *bytes > 0));
        counted.tokens.retain(|_, tokens| !tokens.is_empty());
        counted
    }
}

fn month(now_s: u64) -> String {
    let mut date = when::date(now_s);
    date.truncate("2026-11".len());
    date
}

/// Reads the file; one that can't be read is put aside.
fn load(path: &Path) -> io::Result<Option<Counted>> {
    // The gateway deals with signals itself by now, so that even at a start nothing may wait here.
    let text = match file::read(path, Reading::Again, FILE_BYTES_MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text,
    };
    let counted = text.and_then(|text| Ok(serde_json::from_slice(&text.bytes)?));
    counted.map(Some).inspect_err(|_| {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".bad");
        let _ = fs::rename(path, aside);
    })
}

/// Adds what is `new` to what the file says, while no other gateway does; where it is gone, it gets all.
fn add(path: &Path, new: &Counted, all: &Counted) -> io::Result<()> {
    let _held = Held::wait_for(path)?;
    let there = load(path).ok().flatten();
    store(path, &there.map_or_else(|| all.clone(), |there| there.plus(new)))
}

/// Writes the file so that it is there as a whole, or as it was, whatever happens.
fn store(path: &Path, counted: &Counted) -> io::Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".new");
    let tmp = PathBuf::from(tmp);
    // One that was left behind, or a pipe, which would wait for a reader.
    let _ = fs::remove_file(&tmp);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&tmp)?;
    file.write_all(&serde_json::to_vec(counted)?)?;
    file.sync_all()?;
    fs::rename(&tmp, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// In November 2026, and in December.
    const NOVEMBER: u64 = 1_795_132_800;
    const DECEMBER: u64 = NOVEMBER + 15 * 86_400;
    const UID: Uid = Uid::from_u128(1);

    fn allowance(json: &str) -> Allowance {
        serde_json::from_str(json).unwrap()
    }

    fn per_month(bytes: u64) -> Allowance {
        allowance(&format!("{{\"bytes_per_month\":{bytes}}}"))
    }

    /// The bytes of this month, of the token `a` and its user.
    fn bytes(accounts: &Accounts) -> (u64, u64) {
        let mut state = accounts.state();
        (state.token(UID, "a", Allowance::default()).month_bytes(), state.user(UID).month_bytes())
    }

    fn spend(accounts: &Accounts, token: u64, user: u64) {
        let mut state = accounts.state();
        state.token(UID, "a", per_month(100)).set_month_bytes(token);
        state.user(UID).set_month_bytes(user);
    }

    #[test]
    fn what_was_counted_outlives_the_gateway_but_not_the_month() {
        let dir = tempfile::tempdir().unwrap();
        let open = |at| Accounts::open(Allowances::default(), Some(dir.path().to_owned()), at);
        let accounts = open(NOVEMBER);
        spend(&accounts, 70, 90);
        accounts.save();
        let file = dir.path().join(FILE);
        let first = fs::read_to_string(&file).unwrap();
        assert!(first.contains("2026-11"), "{first}");
        // Who hasn't come since is not forgotten by a gateway that writes for others.
        let accounts = open(NOVEMBER + 1);
        accounts.state().user(Uid::from_u128(2)).set_month_bytes(5);
        accounts.save();
        assert_eq!(bytes(&open(NOVEMBER + 2)), (70, 90));
        // A gateway that runs on, and one that starts later.
        assert_eq!(bytes(&accounts), (70, 90));
        accounts.sweep(DECEMBER);
        assert_eq!(bytes(&accounts), (0, 0));
        assert_eq!(bytes(&open(DECEMBER)), (0, 0));
        accounts.save();
        assert!(fs::read_to_string(&file).unwrap().contains("2026-12"));
    }

    #[test]
    fn what_two_gateways_count_at_a_time_is_added_up() {
        let dir = tempfile::tempdir().unwrap();
        let open = |at| Accounts::open(Allowances::default(), Some(dir.path().to_owned()), at);
        let leaves = open(NOVEMBER);
        spend(&leaves, 30, 40);
        leaves.save();
        let goes_on = open(NOVEMBER);
        assert_eq!(bytes(&goes_on), (30, 40));
        spend(&leaves, 35, 47);
        spend(&goes_on, 32, 42);
        goes_on.save();
        leaves.save();
        leaves.save();
        assert_eq!(bytes(&open(NOVEMBER)), (37, 49));
        spend(&goes_on, 33, 43);
        goes_on.save();
        assert_eq!(bytes(&open(NOVEMBER)), (38, 50));
        // One that hangs on to the month before says nothing about this one.
        goes_on.sweep(DECEMBER);
        spend(&goes_on, 5, 5);
        goes_on.save();
        spend(&leaves, 90, 90);
        leaves.save();
        assert_eq!(bytes(&open(DECEMBER)), (5, 5));
    }

    #[test]
    fn a_file_that_can_not_be_read_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"month\":").unwrap();
        let accounts = Accounts::open(Allowances::default(), Some(dir.path().to_owned()), NOVEMBER);
        spend(&accounts, 1, 1);
        accounts.save();
        assert_eq!(fs::read_to_string(dir.path().join("usage.json.bad")).unwrap(), "{\"month\":");
        assert!(fs::read_to_string(dir.path().join(FILE)).unwrap().contains("2026-11"));
    }

    #[test]
    fn pipes_in_the_places_of_its_files_keep_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        for name in [FILE, "usage.json.new"] {
            assert!(Command::new("mkfifo").arg(dir.path().join(name)).status().unwrap().success());
        }
        let accounts = Accounts::open(Allowances::default(), Some(dir.path().to_owned()), NOVEMBER);
        spend(&accounts, 1, 1);
        accounts.save();
        assert!(fs::read_to_string(dir.path().join(FILE)).unwrap().contains("2026-11"));
    }

    #[test]
    fn who_is_away_and_has_counted_nothing_is_forgotten() {
        let accounts = Accounts::open(Allowances::default(), None, NOVEMBER);
        let here = accounts.usage(UID, "a", Allowance::default());
        drop(accounts.usage(Uid::from_u128(2), "b", Allowance::default()));
        accounts.state().token(Uid::from_u128(3), "c", per_month(9)).set_month_bytes(1);
        accounts.sweep(NOVEMBER);
        let count = || {
            let state = accounts.state();
            (state.tokens.len(), state.users.len())
        };
        assert_eq!(count(), (2, 1));
        drop(here);
        accounts.sweep(NOVEMBER);
        assert_eq!(count(), (1, 0));
        accounts.sweep(DECEMBER);
        assert_eq!(count(), (0, 0));
    }

    #[test]
    fn limits_come_from_the_token_then_the_default_and_change_for_who_is_here() {
        let own = Allowances {
            token: allowance(r#"{"sessions":1,"streams":1}"#),
            user: allowance(r#"{"sessions":5}"#),
            users: [(UID, allowance(r#"{"streams":7}"#))].into(),
        };
        assert_eq!(own.of_user(UID), allowance(r#"{"sessions":5,"streams":7}"#));
        assert_eq!(own.of_user(Uid::from_u128(2)), allowance(r#"{"sessions":5}"#));
        let accounts = Accounts::open(own, None, NOVEMBER);
        let first = Arc::as_ptr(&accounts.state().token(UID, "a", Allowance::default()));
        assert_eq!(
            first,
            Arc::as_ptr(&accounts.state().token(UID, "a", Allowance::default())),
            "one for all"
        );
        accounts.set(Allowances::default());
        assert_eq!(accounts.state().allowances, Allowances::default());
    }
}
