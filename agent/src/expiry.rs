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
