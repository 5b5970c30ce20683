//! Role: says that a token has ended, or soon will: at start, and then once a day.
//! Invariants: files are read anew each time, so that a token that was replaced is not complained about.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_lite::future;
use narrowlink_dataplane::run::{aside::Aside, timer::sleep};
use narrowlink_proto::yaml::Located;

use crate::Shared;

const INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Until the agent is told to stop.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let aside = Aside::default();
    let daily = async {
        loop {
            let config = shared.config.clone();
            // A disk that hangs is told of where the token is followed.
            if let Ok(endings) = aside.run(move || config.endings(seconds_since_1970())).await {
                say(endings);
            }
            sleep(INTERVAL).await;
        }
    };
    future::or(shared.stop.wait(), daily).await;
}

fn say(endings: Vec<(Located<String>, bool)>) {
    for (words, has_ended) in endings {
        if has_ended {
            tracing::error!("{words}");
        } else {
            tracing::warn!("{words}");
        }
    }
}

/// The wall clock's.
pub fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fixture::{Fixture, run, token, token_until};

    #[test]
    fn a_token_that_was_replaced_is_complained_about_no_more() {
        let (at, now) = (Fixture::new(), seconds_since_1970());
        let endings = || at.shared.config.endings(now);
        assert_eq!(endings().len(), 0);
        for (exp, has_ended) in [(now - 1, true), (now + 3600, false)] {
            fs::write(at.token_file(), token_until(exp, "old")).unwrap();
            let ending = endings();
            assert_eq!((ending.len(), ending[0].1), (1, has_ended), "{}", ending[0].0);
        }
        fs::write(at.token_file(), token("new")).unwrap();
        assert_eq!(endings().len(), 0);
        fs::remove_file(at.token_file()).unwrap();
        assert_eq!(endings().len(), 0, "what can't be read is said elsewhere");
    }

    #[test]
    fn an_agent_that_stops_waits_for_no_next_look() {
        run(async || {
            let mut at = Fixture::new();
            let mut watching = Box::pin(watch(at.shared.clone()));
            assert!(future::poll_once(&mut watching).await.is_none(), "it goes on");
            drop(at.stop.take());
            watching.await;
        });
    }
}
