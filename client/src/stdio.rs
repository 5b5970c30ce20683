//! Role: a session on standard input and output.
//! Invariants: the end of the input is a half-close and not the end of the answer; the answer is written
//! whole before the program ends well; input or output that breaks is a reset and never looks like an
//! end; nothing but the target's bytes on standard output.
//! See: `narrowlink_dataplane::net::stdio`, which notices what breaks.

use std::{io, sync::Arc};

use narrowlink_dataplane::{
    net::stdio::{Broken, Stdio},
    relay::{Traffic, relay},
    transport::wire::Wire,
    tunnel::{
        end::End,
        linger::{PATIENCE, reset_conn},
    },
};
use narrowlink_proto::{code::Code, target::Target};

use crate::{
    exit::{Exit, Failure},
    open::Opener,
};

/// Full disk, reader gone.
const UNWRITTEN: &str = "standard output could not be written";
const UNREAD: &str = "standard input could not be read";

/// Opens a session and joins it with standard input and output, until both directions have ended.
pub(crate) async fn run(opener: Arc<Opener>, agent: &str, target: &Target) -> Result<(), Failure> {
    let session = opener.open_patiently(agent, target).await?;
    let stdio = Stdio::of_process().map_err(unusable)?;
    let trouble = stdio.trouble();
    let local = Wire::from(stdio);

    let traffic = Traffic::default();
    let ended = relay(End::raw(&local), End::of(&session.conn, session.id), &traffic).await;
    let failure = match (ended, trouble.take()) {
        // What we sent has to arrive: only then has it gone well.
        (Ok(()), _) => return session.finish().await,
        (Err(_), Some(broken)) => explain(&broken),
        (Err(ended), None) => Failure::reset(ended, session.conn.farewell().as_deref()),
    };
    // The peer is told, too, where the user is not.
    let why = if failure.message.is_empty() { UNWRITTEN } else { &failure.message };
    Box::pin(reset_conn(session.conn, why, PATIENCE)).await;
    Err(failure)
}

fn unusable(e: io::Error) -> Failure {
    Failure::new(Exit::Internal, format!("standard input and output can't be used: {e}; are both open?"))
        .of_kind(Code::Stdio)
}

fn explain(broken: &Broken) -> Failure {
    match broken {
        Broken::Input(e) => Failure::broken(UNREAD, e),
        Broken::Output(e) => Failure::broken(UNWRITTEN, e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_left_is_no_trouble_to_speak_of_and_everything_else_is_named() {
        let failure = explain(&Broken::Output(io::ErrorKind::BrokenPipe.into()));
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Reset, ""));
        let full = explain(&Broken::Output(rustix::io::Errno::NOSPC.into()));
        assert!(full.message.starts_with("standard output could not be written: No space left"), "{full}");
        let unread = explain(&Broken::Input(rustix::io::Errno::ISDIR.into()));
        assert!(unread.message.starts_with("standard input could not be read: Is a directory"), "{unread}");
    }
}
