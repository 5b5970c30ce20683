//! A client whose TLS is not ours: monoio-rustls, with the upgrade and the frames written by hand.

use std::{net::TcpListener, path::Path, sync::Arc};

use futures_lite::future::zip;
use monoio::{
    io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt as _, Splitable as _},
    net::TcpStream,
};
use monoio_rustls::TlsConnector;
use narrowlink_dataplane::{
    run::{timer::timeout, worker::run_alone},
    tunnel::deframe::{Deframer, Event},
};
use narrowlink_loadtest::{lab::Lab, site::Transport, transfer::fill};
use narrowlink_proto::{
    frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode},
    id::SessionId,
    message::{Channel, Message, Open, Speaker},
    target::Target,
    token::Kind,
    upgrade::{self, Answer, Framing, Protocol, Request, Way},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use crate::{
    alone,
    kit::{PATIENCE, asker, echo},
};

const WSS: Transport = Transport { tls: true, raw: false };
const BYTES: usize = 4 << 20;
const FRAME_BYTES: usize = 50_001;

fn frame_of(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut head = [0; HEADER_BYTES_MAX];
    // A mask of zeroes, as inside TLS.
    let header = Header { fin: true, opcode, mask: Some([0; 4]), payload_bytes: payload.len() as u64 };
    let len = frame::encode(&header, &mut head);
    [&head[..len], payload].concat()
}

fn connector(ca_file: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
    TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// What comes of frames: payload, and the messages.
#[derive(Default)]
struct Heard {
    payload: Vec<u8>,
    messages: Vec<Message>,
}

impl Heard {
    fn take(&mut self, deframer: &mut Deframer, bytes: &mut [u8]) {
        let mut at = 0;
        while let Some(event) = deframer.next(bytes, &mut at).unwrap() {
            match event {
                Event::Data { range, .. } => self.payload.extend_from_slice(&bytes[range]),
                Event::Text(text) => {
                    self.messages.push(Message::decode(&text, Speaker::Gateway, Channel::Stream).unwrap());
                }
                Event::Ping(_) | Event::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_client_whose_tls_is_another_librarys_gets_every_byte_back_and_the_last_word() {
    let _turn = alone();
    let lab = Lab::start(1).unwrap();
    let home = lab.agent("home", WSS).unwrap();
    let echo = echo::start(TcpListener::bind("127.0.0.1:0").unwrap());
    let token = lab.site.token(Kind::Client, lab.uid, "laptop", None).unwrap();
    let session = SessionId::from_bytes(asker::random());
    let protocol = Protocol { channel: Channel::Stream, framing: Framing::Framed };
    let key = [9; 16];
    let open = Open {
        session,
        agent: "home".to_owned(),
        target: Target::Tcp { host: echo.ip().to_string(), port: echo.port() },
        e2ee: None,
    };
    let request = Request {
        protocol,
        token,
        key,
        open: Some(open),
        lane: None,
        host: "localhost".to_owned(),
        origin: None,
        way: Way::default(),
    };
    let mut sent = vec![0; BYTES];
    fill(7, 0, &mut sent);
    let connector = connector(&lab.site.dir().join("ca.pem"));
    let entry = lab.entry(WSS);
    let expected = sent.clone();
    let heard = run_alone(false, |_| async move {
        let tcp = TcpStream::connect(entry).await.unwrap();
        let mut tls = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
        tls.write_all(upgrade::encode_request(&request)).await.0.unwrap();
        tls.flush().await.unwrap();
        let (mut got, mut buf) = (Vec::new(), vec![0; 16 * 1024]);
        let mut rest = loop {
            let (read, back) = tls.read(buf).await;
            buf = back;
            let n = read.unwrap();
            assert_ne!(n, 0, "the gateway answers");
            got.extend_from_slice(&buf[..n]);
            match upgrade::parse_response(&got, &key, protocol).unwrap() {
                Answer::NeedMore => {}
                Answer::Accepted { head_bytes, .. } => break got.split_off(head_bytes),
                Answer::Refused { status, .. } => panic!("refused: {status}"),
            }
        };
        let (mut reading, mut writing) = tls.into_split();
        let saying = async {
            for payload in sent.chunks(FRAME_BYTES) {
                writing.write_all(frame_of(Opcode::Binary, payload)).await.0.unwrap();
            }
            let fin = Message::Fin { session, bytes: BYTES as u64 }.encode();
            writing.write_all(frame_of(Opcode::Text, &fin)).await.0.unwrap();
            writing.flush().await.unwrap();
        };
        let hearing = async {
            let (mut heard, mut deframer) = (Heard::default(), Deframer::new(Expect::Unmasked));
            heard.take(&mut deframer, &mut rest);
            while heard.messages.len() < 2 {
                let (read, back) = reading.read(buf).await;
                buf = back;
                let n = read.unwrap();
                assert_ne!(n, 0, "the session ends with a word");
                heard.take(&mut deframer, &mut buf[..n]);
            }
            heard
        };
        timeout(PATIENCE, zip(saying, hearing)).await.unwrap().1
    })
    .unwrap();
    assert!(heard.payload == expected, "{} of {BYTES} bytes came back", heard.payload.len());
    match &heard.messages[..] {
        [Message::Fin { session: ended, bytes }, Message::Ready { session: ready }] => {
            assert_eq!((*ended, *bytes, *ready), (session, BYTES as u64, session));
        }
        other => panic!("{other:?}"),
    }
    home.stop();
}
