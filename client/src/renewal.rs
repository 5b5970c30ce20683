//! Role: takes up newer tokens out of the files that a forward's tokens came from.
//! Invariants: a file that is still being written is not read: it must look the same twice · what a file has become keeps
//! nobody waiting, and is said once; what is no client's token is sent to nobody · where a link stands, a token is
//! logged in with before it takes the other's place · one that was refused is offered again only when its file changes,
//! or when the one in use is refused, too.
//! See: `routes`, which remembers the token before; docs/configuration.md "client.yaml".

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io::ErrorKind,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use narrowlink_dataplane::{
    peer::PeerLink,
    run::{
        aside::Aside,
        file::Stamp,
        timer::{sleep, timeout},
    },
};
use narrowlink_proto::endpoint::SecretText;

use crate::{
    config::Config,
    routes::{Route, Routes},
};

/// How often a file is looked at. With [`SETTLE`], the 2 s that docs/configuration.md promises.
const LOOK_EVERY: Duration = Duration::from_millis(1800);
/// A file that has looked the same for so long is whole: a token is written in one go.
const SETTLE: Duration = Duration::from_millis(200);
/// So long a try waits for the files to be looked at before it. A disk answers in far less, or is not waited for.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// The token files of one forward.
pub(crate) struct Renewal {
    files: Vec<TokenFile>,
}

/// A file that held an endpoint's token at the start.
struct TokenFile {
    config: Arc<Config>,
    /// Which endpoint's, from 0.
    index: usize,
    path: PathBuf,
    aside: Aside,
    /// As it was when the token in it was taken up or refused; `None`: it was not there.
    known: Cell<Option<Stamp>>,
    /// What was wrong with it the last time.
    said: RefCell<Option<String>>,
}

/// A token that is not the one in use.
pub(crate) struct Newer {
    pub(crate) route: Arc<Route>,
    /// Of the file that it was read from.
    stamp: Option<Stamp>,
}

impl Renewal {
    /// Follows the token files of a configuration, as they are now. What is no regular file, a pipe for one, gave all that
    /// it had at the start.
    pub(crate) fn new(config: &Config) -> Self {
        let config = Arc::new(config.clone());
        let with_file = config.endpoints.iter().enumerate().filter(|(_, one)| one.token_file.is_some());
        let files = with_file.map(|(index, endpoint)| TokenFile {
            config: config.clone(),
            index,
            path: config.token_place(endpoint),
            aside: Aside::default(),
            known: Cell::default(),
            said: RefCell::default(),
        });
        let mut files: Vec<_> = files.filter(|file| file.path.is_file()).collect();
        files.iter_mut().for_each(|file| file.known.set(Stamp::of(&file.path)));
        Self { files }
    }

    /// Waits for a newer token in one of the files.
    pub(crate) async fn newer(&self, routes: &Routes) -> Newer {
        let mut looking: Vec<_> = self.files.iter().map(|file| Box::pin(file.newer(routes))).collect();
        poll_fn(|cx| {
            let mut ready = looking.iter_mut().filter_map(|look| match Pin::as_mut(look).poll(cx) {
                Poll::Ready(newer) => Some(newer),
                Poll::Pending => None,
            });
            ready.next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Takes up what has changed since the last look, and what was refused before where the token in use is refused now.
    /// Whether there was anything.
    pub(crate) async fn catch_up(&self, routes: &Routes) -> bool {
        let found = Cell::new(false);
        let looking = async {
            for file in &self.files {
                let forced = routes.at(file.index).is_refused();
                if let Some(newer) = file.look(routes, forced).await {
                    self.take_up(routes, newer);
                    found.set(true);
                }
            }
        };
        // What was not reached is looked at again.
        let _ = timeout(CATCH_UP_TIMEOUT, looking).await;
        found.get()
    }

    /// Gateways are asked with this token from now on; with the one before again, if it is refused.
    pub(crate) fn take_up(&self, routes: &Routes, newer: Newer) {
        tracing::info!(
            gateway = newer.route.gateway.describe(),
            "the token in {} is new",
            newer.route.place().display()
        );
        self.put(routes, newer);
    }

    fn put(&self, routes: &Routes, newer: Newer) {
        self.settle(&newer);
        routes.replace(newer.route);
    }

    /// While a link to the gateway at `index` stands: waits for a newer token there, and logs in with it beside that
    /// link. Newer tokens of other gateways are taken up meanwhile.
    pub(crate) async fn log_in(&self, routes: &Routes, index: usize) -> (Arc<Route>, PeerLink) {
        let mut said = None;
        loop {
            let newer = self.newer(routes).await;
            if newer.route.index != index {
                self.take_up(routes, newer);
                continue;
            }
            let route = newer.route.clone();
            match route.join().await {
                Ok(link) => {
                    tracing::info!(
                        gateway = route.gateway.describe(),
                        "the token in {} is new: logged in anew",
                        route.place().display()
                    );
                    self.put(routes, newer);
                    routes.on_taken(&route);
                    return (route, link);
                }
                Err(failed) if failed.is_about_the_token() => {
                    route.say_refused();
                    self.settle(&newer);
                }
                // Found again at the next look.
                Err(failed) => {
                    let why = Some(failed.explain().message);
                    if let Some(why) = why.as_ref().filter(|_| said != why) {
                        tracing::warn!(
                            gateway = route.gateway.describe(),
                            "the new token in {} can't be tried: {why}; going on with the one before, and trying again",
                            route.place().display()
                        );
                    }
                    said = why;
                }
            }
        }
    }

    /// What there was to do about this token is done, until its file changes.
    fn settle(&self, newer: &Newer) {
        let of = self.files.iter().filter(|file| file.index == newer.route.index);
        of.for_each(|file| file.known.set(newer.stamp));
    }
}

impl TokenFile {
    async fn newer(&self, routes: &Routes) -> Newer {
        loop {
            sleep(LOOK_EVERY).await;
            if let Some(newer) = self.look(routes, false).await {
                return newer;
            }
        }
    }

    /// The token in the file, if it is another than the one in use; `forced`: also if the file has not changed.
    async fn look(&self, routes: &Routes, forced: bool) -> Option<Newer> {
        let now = self.stamp().await?;
        if now != self.known.get() {
            sleep(SETTLE).await;
            if self.stamp().await? != now {
                return None;
            }
        } else if !forced {
            return None;
        }
        let token = self.read().await?;
        let route = routes.at(self.index);
        if token.expose() == route.gateway.token() {
            self.known.set(now);
            return None;
        }
        Some(Newer { route: route.with(route.gateway.with_token(token)), stamp: now })
    }

    /// `None`: the disk does not answer; `Some(None)`: there is no file.
    async fn stamp(&self) -> Option<Option<Stamp>> {
        let path = self.path.clone();
        let looked = self.aside.run(move || Stamp::of(&path)).await;
        looked.map_err(|e| self.complain(format!("{} can't be read: {e}", self.path.display()))).ok()
    }

    async fn read(&self) -> Option<SecretText> {
        let (config, index, path) = (self.config.clone(), self.index, self.path.clone());
        let read = move || {
            config.token_again(index).map_err(|e| match std::fs::metadata(&path) {
                // It was there, so that its path may be said.
                Err(gone) if gone.kind() == ErrorKind::NotFound => {
                    format!("the token file {} is gone: write the token there again", path.display())
                }
                _ => e.to_string(),
            })
        };
        let read = self.aside.run(read).await;
        match read.unwrap_or_else(|e| Err(format!("{} can't be read: {e}", self.path.display()))) {
            Ok(token) => {
                self.said.take();
                Some(token)
            }
            Err(why) => {
                self.complain(why);
                None
            }
        }
    }

    fn complain(&self, why: String) {
        if self.said.borrow().as_ref() != Some(&why) {
            tracing::warn!("{why}; going on with the token that was read before");
            self.said.replace(Some(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use futures_lite::future;
    use narrowlink_proto::{
        id::{LinkSecret, Uid},
        message::Speaker,
        token::{Claims, Keys, Kind},
    };
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::fixture::{Port, run};

    fn token(kind: Kind, jti: &str) -> String {
        Keys::new(&[7; 32]).sign(&Claims::new(kind, Uid::nil(), "n", 4_000_000_000, jti)).unwrap()
    }

    /// Two gateways with a token file each, `a` and `b`, beside one whose token stands in the configuration.
    struct Fixture {
        dir: tempfile::TempDir,
        renewal: Renewal,
        routes: Routes,
    }

    impl Fixture {
        fn new() -> Self {
            Self::with("gw:3")
        }

        /// The last of the gateways is there.
        fn with(last: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["a", "b"] {
                fs::write(dir.path().join(name), token(Kind::Client, "old")).unwrap();
            }
            let text = format!(
                "endpoints:
  - !SelfHosted {{ gateway: 'gw:1', token: x, protocol: Ws }}
  - !SelfHosted {{ gateway: 'gw:2', token_file: a, protocol: Ws }}
  - !SelfHosted {{ gateway: '{last}', token_file: b, protocol: Ws }}
"
            );
            let config = Config::parse(&text, &dir.path().join("client.yaml")).unwrap();
            Self { renewal: Renewal::new(&config), routes: Routes::load(&config).unwrap(), dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Waits until something was taken up, however busy the machine is.
        async fn taken_up(&self) {
            let deadline = Instant::now() + Duration::from_secs(30);
            while !self.renewal.catch_up(&self.routes).await {
                assert!(Instant::now() < deadline, "nothing was taken up");
            }
        }

        /// Whether a look at `a` finds anything.
        async fn finds(&self) -> bool {
            self.renewal.files[0].look(&self.routes, false).await.is_some()
        }

        fn token_at(&self, index: usize) -> String {
            self.routes.at(index).gateway.token().to_owned()
        }
    }

    fn test(main: impl AsyncFnOnce(Fixture)) {
        run(async || main(Fixture::new()).await);
    }

    fn replace(path: &Path, text: &str) {
        let beside = path.with_extension("new");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, path).unwrap();
    }

    #[test]
    fn a_token_that_was_written_or_renamed_into_place_is_taken_up() {
        test(async |at| {
            assert!(!at.renewal.catch_up(&at.routes).await);
            let (two, three) = (token(Kind::Client, "two"), token(Kind::Client, "three"));
            fs::write(at.path("a"), &two).unwrap();
            replace(&at.path("b"), &three);
            while at.token_at(1) != two || at.token_at(2) != three {
                at.taken_up().await;
            }
            assert_eq!((at.token_at(0), at.token_at(1), at.token_at(2)), ("x".to_owned(), two, three));
            assert!(!at.renewal.catch_up(&at.routes).await, "once");
        });
    }

    #[test]
    fn a_change_is_found_while_another_file_stays_as_it_is() {
        test(async |at| {
            let new = token(Kind::Client, "new");
            replace(&at.path("b"), &new);
            let newer = at.renewal.newer(&at.routes).await;
            assert_eq!((newer.route.index, newer.route.gateway.token()), (2, new.as_str()));
            assert_ne!(at.token_at(2), new, "it is not in use yet");
        });
    }

    #[test]
    fn a_file_that_is_still_being_written_is_left_alone_until_it_is_not() {
        test(async |at| {
            let file = &at.renewal.files[0];
            let new = token(Kind::Client, "new");
            fs::write(at.path("a"), &new[..9]).unwrap();
            let mut looking = Box::pin(file.look(&at.routes, false));
            while future::poll_once(&mut looking).await.is_none() {
                fs::write(at.path("a"), &new).unwrap();
                sleep(SETTLE / 10).await;
            }
            assert_eq!(*file.said.borrow(), None);
            at.taken_up().await;
            assert_eq!(at.token_at(1), new);
        });
    }

    #[test]
    fn whatever_else_the_file_becomes_the_token_stays() {
        test(async |at| {
            let (path, old) = (at.path("a"), at.token_at(1));
            let (file, agents) = (&at.renewal.files[0], token(Kind::Agent, "j"));
            for (text, says) in [
                ("", "should hold one token and nothing else"),
                ("hunter2", "in the file that is named here is no token"),
                (&agents, "is not a client's"),
            ] {
                replace(&path, text);
                assert!(!at.finds().await);
                let said = file.said.borrow().clone().unwrap();
                assert!(said.contains(says) && !said.contains("hunter2"), "{said}");
            }
            fs::remove_file(&path).unwrap();
            assert!(!at.finds().await);
            assert!(file.said.borrow().as_ref().unwrap().ends_with("a is gone: write the token there again"));
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            assert!(!at.finds().await);
            assert!(file.said.borrow().as_ref().unwrap().contains("it is a pipe"));
            assert_eq!(at.token_at(1), old);
            let new = token(Kind::Client, "new");
            replace(&path, &new);
            at.taken_up().await;
            assert_eq!(*file.said.borrow(), None);
            assert_eq!(at.token_at(1), new);
        });
    }

    #[test]
    fn a_token_that_was_refused_is_offered_again_when_the_one_before_is_refused_too() {
        test(async |at| {
            let (new, old) = (token(Kind::Client, "new"), at.routes.at(1));
            replace(&at.path("a"), &new);
            at.taken_up().await;
            assert!(at.routes.has_another(&at.routes.at(1)), "it is refused");
            assert!(Arc::ptr_eq(&at.routes.at(1), &old));
            assert!(!at.finds().await);
            old.on_refused();
            at.taken_up().await;
            assert_eq!(at.token_at(1), new);
            assert!(!at.routes.has_another(&at.routes.at(1)), "neither holds: the newest one stays");
            assert!(!at.finds().await);
        });
    }

    #[test]
    fn where_a_link_stands_a_token_is_in_use_only_once_its_own_link_is_welcome() {
        run(async || {
            let port = Port::listen();
            let at = Fixture::with(&port.addr.to_string());
            let new = token(Kind::Client, "new");
            replace(&at.path("b"), &new);
            let playing = async {
                let (link, request, _) = port.link(Speaker::Client, LinkSecret::from_bytes([2; 32])).await;
                assert_eq!(request.token, new);
                assert_ne!(at.token_at(2), new, "the welcome is still on its way");
                link
            };
            let ((route, _), _link) = future::zip(at.renewal.log_in(&at.routes, 2), playing).await;
            assert!(route.index == 2 && at.routes.at(2).gateway.token() == new);
        });
    }

    #[test]
    fn a_token_that_came_through_a_pipe_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        mknodat(CWD, dir.path().join("a"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let text = "endpoints: [!SelfHosted { gateway: 'gw:1', token_file: a }]";
        let config = Config::parse(text, &dir.path().join("client.yaml")).unwrap();
        assert!(Renewal::new(&config).files.is_empty());
    }
}
