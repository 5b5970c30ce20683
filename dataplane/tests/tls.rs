//! TLS over real sockets: the library as the peer, the way between two workers, endings, and what
//! it costs in memory while bytes flow.
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(unsafe_code, reason = "counts what the process allocates")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{self, IoSlice, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use futures_lite::future;
use narrowlink_dataplane::{
    net::plain::Plain,
    relay::{Traffic, relay},
    run::worker,
    tls::TlsStream,
    transport::wire::Wire,
    tunnel::end::End,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, ServerName},
};

/// The system's allocator, with a count of what a thread asks it for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn name() -> ServerName<'static> {
    "localhost".try_into().unwrap()
}

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    narrowlink_dataplane::tls::install_crypto();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

/// Two ends of a TCP connection over loopback.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn adopt(stream: TcpStream) -> Plain {
    Plain::adopt(stream.into()).unwrap()
}

/// Both ends ours.
async fn tls_pair(configs: &(Arc<ClientConfig>, Arc<ServerConfig>)) -> (TlsStream, TlsStream) {
    let (near, far) = pair();
    let (near, far) = future::zip(
        TlsStream::connect(adopt(near), configs.0.clone(), name()),
        TlsStream::accept(adopt(far), configs.1.clone(), &[]),
    )
    .await;
    (near.unwrap(), far.unwrap())
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// The library as a client, blocking.
fn library_client(config: &Arc<ClientConfig>, stream: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
    StreamOwned::new(ClientConnection::new(config.clone(), name()).unwrap(), stream)
}

/// The library as a server, blocking.
fn library_server(config: &Arc<ServerConfig>, stream: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
    StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream)
}

#[test]
fn megabytes_go_through_a_relay_between_the_library_as_client_and_as_server() {
    const BYTES: usize = 20 << 20;
    let (client, server) = configs();
    let (near, gateway_in) = pair();
    let (gateway_out, far) = pair();
    let mut source = library_client(&client, near);
    let mut sink = library_server(&server, far);
    let sending = thread::spawn(move || {
        source.write_all(&bytes(BYTES)).unwrap();
        source.conn.refresh_traffic_keys().unwrap();
        source.write_all(b"under another key").unwrap();
        source.conn.send_close_notify();
        source.flush().unwrap();
        let mut heard = Vec::new();
        source.read_to_end(&mut heard).unwrap();
        heard
    });
    let receiving = thread::spawn(move || {
        let mut heard = Vec::new();
        sink.read_to_end(&mut heard).unwrap();
        sink.write_all(&bytes(1000)).unwrap();
        sink.conn.send_close_notify();
        sink.flush().unwrap();
        heard
    });
    worker::run_alone(false, |_| async move {
        let up = TlsStream::accept(adopt(gateway_in), server, &[]).await.unwrap();
        let down = TlsStream::connect(adopt(gateway_out), client, name()).await.unwrap();
        let (up, down) = (Wire::from(up), Wire::from(down));
        relay(End::raw(&up), End::raw(&down), &Traffic::default()).await.unwrap();
        up.close_gently();
        down.close_gently();
    })
    .unwrap();
    let heard = receiving.join().unwrap();
    assert!(heard == [bytes(BYTES), b"under another key".to_vec()].concat());
    assert!(sending.join().unwrap() == bytes(1000));
}

#[test]
fn a_connection_goes_to_another_worker_in_the_middle_of_a_record() {
    let (client, server) = configs();
    let (near, far) = pair();
    let (go_on, wait) = std::sync::mpsc::channel();
    let sending = thread::spawn(move || {
        let mut near = near;
        let mut peer = ClientConnection::new(client, name()).unwrap();
        while peer.is_handshaking() {
            peer.complete_io(&mut near).unwrap();
        }
        peer.writer().write_all(&bytes(10_000)).unwrap();
        let mut record = Vec::new();
        peer.write_tls(&mut record).unwrap();
        near.write_all(&record[..6_000]).unwrap();
        wait.recv().unwrap();
        near.write_all(&record[6_000..]).unwrap();
        let mut heard = Vec::new();
        StreamOwned::new(peer, near).read_to_end(&mut heard).unwrap();
        heard
    });
    let parts = worker::run_alone(false, |_| async move {
        let wire = Wire::from(TlsStream::accept(adopt(far), server, &[]).await.unwrap());
        wire.readable().await.unwrap();
        let early = wire.try_read(&mut [0; 100]).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        wire.unread(b"and first ");
        wire.into_parts().unwrap()
    })
    .unwrap();
    let heard = thread::spawn(move || {
        worker::run_alone(false, |_| async move {
            let wire = Wire::from_parts(parts).unwrap();
            assert!(wire.more_to_come());
            go_on.send(()).unwrap();
            let (mut heard, mut buf) = (Vec::new(), [0; 999]);
            while heard.len() < 10_010 {
                let got = wire.read(&mut buf).await.unwrap();
                heard.extend_from_slice(&buf[..got]);
            }
            wire.write_all(b"heard").await.unwrap();
            wire.finish_write().await.unwrap();
            wire.close_gently();
            heard
        })
        .unwrap()
    })
    .join()
    .unwrap();
    assert!(heard == [b"and first ".to_vec(), bytes(10_000)].concat());
    assert_eq!(sending.join().unwrap(), b"heard");
}

#[test]
fn whatever_the_kernel_says_to_it_a_connection_goes_on_unchanged() {
    use narrowlink_dataplane::tls::{Ktls, choose_ktls};
    let configs = configs();
    let state = choose_ktls(Ktls::Auto);
    worker::run_alone(false, |_| async move {
        let (near, far) = tls_pair(&configs).await;
        // Tickets may lie in front: with the next read it goes then.
        let goes = near.enter_kernel();
        assert_eq!(goes, state.takes_new_keys(), "{state}");
        let (near, far) = (Wire::from(near), Wire::from(far));
        for (from, to) in [(&near, &far), (&far, &near)] {
            from.write_all(&bytes(50_000)).await.unwrap();
            let (mut heard, mut buf) = (Vec::new(), [0; 9_999]);
            while heard.len() < 50_000 {
                let got = to.read(&mut buf).await.unwrap();
                heard.extend_from_slice(&buf[..got]);
            }
            assert!(heard == bytes(50_000));
            from.finish_write().await.unwrap();
            assert_eq!(to.read(&mut buf).await.unwrap(), 0);
        }
    })
    .unwrap();
}

#[test]
fn an_end_without_close_notify_is_an_error_behind_what_came_before_it() {
    let (client, server) = configs();
    let (near, far) = pair();
    let sending = thread::spawn(move || {
        let mut source = library_client(&client, near);
        source.write_all(b"this much").unwrap();
        source.flush().unwrap();
        source.sock.shutdown(std::net::Shutdown::Write).unwrap();
        // Stays: no reset may overtake the end.
        source
    });
    worker::run_alone(false, |_| async move {
        let wire = Wire::from(TlsStream::accept(adopt(far), server, &[]).await.unwrap());
        let (mut heard, mut buf) = (Vec::new(), [0; 64]);
        let end = loop {
            match wire.read(&mut buf).await {
                Ok(0) => break None,
                Ok(bytes) => heard.extend_from_slice(&buf[..bytes]),
                Err(e) => break Some(e.kind()),
            }
        };
        assert_eq!(heard, b"this much");
        assert_eq!(end, Some(io::ErrorKind::UnexpectedEof));
    })
    .unwrap();
    drop(sending.join());
}

#[test]
fn a_client_that_does_not_trust_the_server_tells_it_so() {
    let ((client, _), (_, server)) = (configs(), configs());
    let (near, far) = pair();
    let serving = thread::spawn(move || {
        let mut sink = library_server(&server, far);
        sink.read(&mut [0; 1]).unwrap_err().to_string()
    });
    let refused = worker::run_alone(false, |_| async move {
        TlsStream::connect(adopt(near), client, name()).await.err().unwrap()
    });
    assert_eq!(refused.unwrap().kind(), io::ErrorKind::InvalidData);
    let told = serving.join().unwrap();
    assert!(told.contains("received fatal alert"), "{told}");
}

/// What one call asks the allocator for.
fn asked<R>(call: impl FnOnce() -> R) -> (u64, R) {
    let before = ASKED.get();
    let result = call();
    (ASKED.get() - before, result)
}

#[test]
fn while_bytes_flow_nothing_is_allocated_for_them() {
    const ROUNDS: usize = 200;
    let configs = configs();
    worker::run_alone(false, |_| async move {
        let (source, up) = tls_pair(&configs).await;
        let (down, sink) = tls_pair(&configs).await;
        let said = bytes(200_000);
        let (mut buf, mut heard) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
        let mut total = 0;
        for round in 0..ROUNDS {
            // With a short piece in front, as frames have, and in pieces of odd lengths.
            let cut = 1 + round * 997;
            let pieces = [
                IoSlice::new(&said[..4]),
                IoSlice::new(&said[4..cut.max(4)]),
                IoSlice::new(&said[cut.max(4)..]),
            ];
            let (mut count, accepted) = asked(|| source.try_write(&pieces));
            assert_eq!(accepted.unwrap(), said.len());
            let (mut passed, mut arrived) = (0, 0);
            while arrived < said.len() {
                count += asked(|| source.try_flush().unwrap()).0;
                let (more, read) = asked(|| up.try_read(&mut buf[..1 + (round * 7919) % (256 * 1024)]));
                count += more;
                match read {
                    Ok(bytes) => {
                        passed += bytes;
                        let (more, written) = asked(|| down.try_write(&[IoSlice::new(&buf[..bytes])]));
                        count += more;
                        assert_eq!(written.unwrap(), bytes);
                    }
                    Err(_) => up.readable().await.unwrap(),
                }
                while !down.try_flush().unwrap() || arrived < passed {
                    let (more, read) = asked(|| sink.try_read(&mut heard[arrived..]));
                    count += more;
                    match read {
                        Ok(bytes) => arrived += bytes,
                        Err(_) => sink.readable().await.unwrap(),
                    }
                }
            }
            assert!(heard[..said.len()] == said);
            total = if round < ROUNDS / 10 { 0 } else { total + count };
        }
        assert_eq!(total, 0, "after the first rounds");
    })
    .unwrap();
}
