//! A local program at a forwarded port.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use crate::kit::PATIENCE;

/// Its connection.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Says something and gets it back.
pub(crate) fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"there?")?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"there?");
    Ok(())
}

/// Waits for the end that is never a clean one.
pub(crate) fn wait_for_reset(stream: &mut TcpStream) {
    match stream.read(&mut [0; 1]) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("not reset: {other:?}"),
    }
}
