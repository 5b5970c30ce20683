//! A token's end is the end of what it began, and of nothing else.

use std::{
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use narrowlink_loadtest::{
    lab::Lab,
    site::{Transport, now},
};
use narrowlink_proto::token::Kind;

use crate::{
    alone,
    kit::timing::assert_once_within,
    start_echo,
    visitor::{ask, connect, wait_for_reset},
};

/// From the token's last second.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How long the token that ends is good for, in seconds.
const LIFE_S: u64 = 5;

/// What the gateway's wall clock is ahead, in seconds.
static AHEAD_S: AtomicU64 = AtomicU64::new(0);

fn set_clock() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now + Duration::from_secs(AHEAD_S.load(Ordering::Relaxed))
}

/// How long after `exp` (seconds since 1970) the session ends, which is never a clean end.
fn gone_after(stream: &mut TcpStream, exp: u64) -> Duration {
    wait_for_reset(stream);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.checked_sub(Duration::from_secs(exp)).expect("the token holds up to its last second")
}

#[test]
fn a_session_ends_with_its_clients_token_or_its_agents_and_others_go_on() {
    let _alone = alone();
    let target = start_echo();
    for raw in [false, true] {
        let transport = Transport { tls: true, raw };
        let lab = Lab::start(2).unwrap();
        let until = |kind, name: &str, exp| lab.site.token_until(kind, lab.uid, name, None, exp).unwrap();
        let _home = lab.agent("home", transport).unwrap();
        let for_ever = lab.forward("home", target, transport).unwrap();
        let exp = now() + LIFE_S;
        let _brief = lab.agent_by(&until(Kind::Agent, "brief", exp), "brief", transport, "").unwrap();
        let by_brief = lab.forward("brief", target, transport).unwrap();
        let of_brief = lab.forward_as(&until(Kind::Client, "guest", exp), "home", target, transport).unwrap();
        let mut stays = connect(for_ever.local_addr);
        let mut ends = [by_brief.local_addr, of_brief.local_addr].map(connect);
        for stream in ends.iter_mut().chain([&mut stays]) {
            ask(stream).unwrap();
        }
        let gone = ends.each_mut().map(|stream| gone_after(stream, exp));
        for (whose, after) in ["agent's", "client's"].iter().zip(gone) {
            assert_once_within(
                &format!("{transport}: gone after the {whose} token ended"),
                GONE_WITHIN,
                after,
            );
        }
        ask(&mut stays).unwrap();
        // Nothing new, neither by the streams and lanes that stood ready.
        for forward in [&by_brief, &of_brief] {
            assert!(ask(&mut connect(forward.local_addr)).is_err());
        }
        ask(&mut connect(for_ever.local_addr)).unwrap();
        [for_ever, by_brief, of_brief].into_iter().for_each(narrowlink_client::Forward::stop);
    }
}

#[test]
fn a_clock_that_is_set_past_a_tokens_end_ends_its_sessions_and_one_that_is_set_back_ends_none() {
    let _alone = alone();
    let (target, transport) = (start_echo(), Transport { tls: false, raw: false });
    let lab = Lab::start_by(2, set_clock).unwrap();
    let brief = lab.site.token_until(Kind::Client, lab.uid, "guest", None, now() + 3600).unwrap();
    let _home = lab.agent("home", transport).unwrap();
    let for_ever = lab.forward("home", target, transport).unwrap();
    let of_brief = lab.forward_as(&brief, "home", target, transport).unwrap();
    let (mut stays, mut ends) = (connect(for_ever.local_addr), connect(of_brief.local_addr));
    ask(&mut stays).unwrap();
    ask(&mut ends).unwrap();
    AHEAD_S.store(7200, Ordering::Relaxed);
    let set_at = Instant::now();
    wait_for_reset(&mut ends);
    println!("gone {:.1?} after the clock was set", set_at.elapsed());
    assert!(set_at.elapsed() < GONE_WITHIN, "{:?}", set_at.elapsed());
    ask(&mut stays).unwrap();
    AHEAD_S.store(0, Ordering::Relaxed);
    let mut back = connect(of_brief.local_addr);
    // Nothing to wait for is what is tested: more than two looks at the clock.
    let end = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < end {
        for stream in [&mut stays, &mut back] {
            ask(stream).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    [for_ever, of_brief].into_iter().for_each(narrowlink_client::Forward::stop);
}
