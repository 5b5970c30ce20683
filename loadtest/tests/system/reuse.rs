//! Sessions one after the other over the same lane: nothing of one reaches another.

use std::net::TcpListener;

use narrowlink_loadtest::{
    lab::Lab,
    site::Transport,
    transfer::{self, Ending, Pace, Plan},
};

use crate::{alone, count, draw};

#[test]
fn no_byte_of_one_session_is_in_another() {
    let _turn = alone();
    let sessions = count("NARROWLINK_SESSIONS", 500);
    let lab = Lab::start(2).unwrap();
    for (name, transport) in
        [("ws", Transport { tls: false, raw: false }), ("wss", Transport { tls: true, raw: false })]
    {
        let _agent = lab.agent_with(lab.uid, name, transport, "lanes: { min: 1, max: 1 }\n").unwrap();
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let forward = lab.forward(name, target.local_addr().unwrap(), transport).unwrap();
        let mut resets = 0;
        for n in 0..sessions {
            let mut state = n;
            let (up_bytes, down_bytes) = (draw(&mut state) % 5000 + 1, draw(&mut state) % 5000 + 1);
            // Every tenth is reset at a random place, by either side.
            let ending = match (n % 10, n % 20) {
                (9, 9) => Ending::ClientResets(draw(&mut state) % up_bytes),
                (9, _) => Ending::TargetResets(draw(&mut state) % down_bytes),
                _ => Ending::Both,
            };
            resets += u64::from(ending != Ending::Both);
            let plan = Plan { seed: n ^ 0x5EED, up_bytes, down_bytes, ending, pace: Pace::Fast };
            if let Err(broken) = transfer::run(plan, forward.local_addr, &target) {
                panic!("{name}, session {n}: {broken}");
            }
        }
        println!("{name}: {sessions} sessions over one lane, {resets} of them reset, 0 bytes mixed");
    }
}
