//! Role: the services that a worker listens for.
//! Invariants: a connection that the kernel has accepted is taken, whenever its listener ends: here, or by the process that goes
//! on with the socket.

use std::{collections::HashMap, net::TcpListener, rc::Rc};

use async_channel::Sender;
use futures_lite::future;

use crate::{
    gateway::{local::Local, serve, service::Service},
    net::listen::{Listener, accept_in_turns},
    run::worker::spawn,
};

/// The services of one worker.
#[derive(Default)]
pub(crate) struct Services {
    /// By the service's number; a listener ends when its channel does. It has more than one socket where others opened
    /// them for more workers.
    ends: HashMap<usize, Vec<Sender<()>>>,
}

impl Services {
    /// Serves a service on this worker until that, or the worker, stops.
    pub(crate) fn begin(&mut self, local: &Rc<Local>, service: Service, socket: TcpListener) {
        let listener = match Listener::adopt(socket) {
            Ok(listener) => listener,
            // Its socket is closed: the other workers get its share of the connections.
            Err(e) => {
                let (worker, service) = (local.index, service.index);
                return tracing::error!(worker, service, "a worker can't listen: {e}");
            }
        };
        let (end, ended) = async_channel::bounded(1);
        self.ends.entry(service.index).or_default().push(end);
        let (local, service) = (local.clone(), Rc::new(service));
        spawn(async move {
            let accepting = accept_in_turns(
                &listener,
                || Ok(()),
                async |socket, ()| serve::take(&local, &service, socket).await,
            );
            let ended = async {
                // Nothing is ever sent: the end of the channel is the news.
                let _ = ended.recv().await;
            };
            future::or(future::or(local.stopped(), ended), accepting).await;
            // What the kernel has accepted for us already would be reset.
            while !local.shared.is_succeeded()
                && let Some(socket) = listener.accept_left()
            {
                serve::take(&local, &service, socket).await;
            }
        });
    }

    /// Stops listening for a service.
    pub(crate) fn end(&mut self, service: usize) {
        self.ends.remove(&service);
    }
}
