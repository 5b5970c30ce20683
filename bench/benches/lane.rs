//! Promise: a session gets a parked lane within µs: from its own worker, or, over one hand-over, from
//! another one. Real workers, a real descriptor.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

mod kit;

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender};
use criterion::{Criterion, criterion_group, criterion_main};
use narrowlink_control::{
    accounts::{Accounts, Allowances},
    audit::Audit,
    auth::{Rules, Warden},
    certificate::served::Served,
    clerk,
    revocations::Revocations,
};
use narrowlink_dataplane::{
    gateway::{
        attend::attend,
        directory::{AgentEntry, Directory},
        lane::{IdleLane, Lane},
        local::Local,
        parking::{park, take},
        shared::Shared,
        table::{self, Seat},
    },
    net::plain::Plain,
    run::worker::{Main, Options, Workers, spawn},
    tunnel::conn::{Conn, Role},
};
use narrowlink_proto::{
    feature::Features,
    id::{LinkId, LinkSecret, Uid},
    limits::Limits,
    message::Channel,
    token::{Claims, EXP_MAX, Keys, Kind, Secret},
    upgrade::Framing,
};

const WORKERS: usize = 2;
const SECRET: [u8; 32] = [7; 32];

/// What a worker is told.
enum Order {
    /// Park this connection as a lane.
    Park(UnixStream),
    /// Take a lane and park it here, so often.
    Take(u64),
    /// As `Take` once; a ping goes out on the lane meanwhile.
    Ping,
}

/// How long its takes took, and how many lanes it has afterwards.
struct Report {
    took: Duration,
    lanes: usize,
}

/// What the bench's thread knows of the workers.
struct Gateway {
    orders: Vec<Sender<Order>>,
    reports: Receiver<Report>,
    agent: UnixStream,
    workers: Workers,
}

impl Gateway {
    /// Two workers, and one lane parked at the first of them.
    fn start() -> Self {
        let (orders, taken): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| async_channel::bounded(1)).unzip();
        let (report, reports) = async_channel::bounded(1);
        let shared = shared();
        let entry = entry(&shared);
        let main: Main = Arc::new(move |index| {
            let (shared, entry) = (shared.clone(), entry.clone());
            let (orders, report) = (taken[index].clone(), report.clone());
            Box::pin(async move {
                let local = Local::new(index, shared);
                spawn(attend(local.clone(), Vec::new()));
                work(&local, &entry, &orders, &report).await;
            })
        });
        let options = Options { count: WORKERS, pin: false, require_io_uring: false };
        let workers = Workers::start("lane", &options, &main).unwrap();
        let (agent, ours) = UnixStream::pair().unwrap();
        let gateway = Self { orders, reports, agent, workers };
        assert_eq!(gateway.tell(0, Order::Park(ours)).lanes, 1);
        gateway
    }

    fn tell(&self, worker: usize, order: Order) -> Report {
        self.orders[worker].send_blocking(order).unwrap();
        self.reports.recv_blocking().unwrap()
    }

    /// Whether the lane is at `worker`, and leads to the agent, once `worker` has taken it.
    fn check(&mut self, worker: usize) {
        assert_eq!(self.tell(worker, Order::Ping).lanes, 1);
        let mut ping = [0; 2];
        self.agent.read_exact(&mut ping).unwrap();
        assert_eq!(ping, [0x89, 0]);
        assert_eq!(self.tell(1 - worker, Order::Take(0)).lanes, 0);
    }
}

fn shared() -> Arc<Shared> {
    let directory = Arc::new(Directory::default());
    let rules = Rules::new(&[Secret::from_bytes(SECRET.to_vec()).unwrap()], Revocations::default()).unwrap();
    let accounts = Arc::new(Accounts::open(Allowances::default(), None, 0));
    let warden =
        Warden::new(rules, Served::default(), directory.clone(), clerk::counter().0, accounts, Audit::none());
    Arc::new(Shared::new(Arc::new(warden), directory, Limits::default(), WORKERS))
}

fn entry(shared: &Shared) -> Arc<AgentEntry> {
    let claims = Claims::new(Kind::Agent, Uid::nil(), "home", EXP_MAX, "j");
    let token = Keys::new(&SECRET).sign(&claims).unwrap();
    let principal = shared.door.login(Channel::Link, &token).unwrap();
    let (link, secret) = (LinkId::from_bytes([0; 32]), LinkSecret::from_bytes([0; 32]));
    let (orders, _) = async_channel::bounded(1);
    let addr = "192.0.2.1:1".parse().unwrap();
    Arc::new(AgentEntry::new(principal, link, secret, (addr, Features::NONE), orders, WORKERS))
}

fn idle(lane: Lane) -> IdleLane {
    lane.idle().ok().unwrap()
}

async fn work(
    local: &Rc<Local>,
    entry: &Arc<AgentEntry>,
    orders: &Receiver<Order>,
    reports: &Sender<Report>,
) {
    let (pair, _far) = UnixStream::pair().unwrap();
    let turn = Plain::adopt(pair.into()).unwrap();
    while let Ok(order) = orders.recv().await {
        let mut took = Duration::ZERO;
        match order {
            Order::Park(fd) => {
                let wire = Plain::adopt(fd.into()).unwrap().into();
                let conn = Conn::new(wire, Framing::Framed, Role::Gateway, 0);
                park(
                    local,
                    idle(Lane {
                        conn: Box::new(conn),
                        entry: entry.clone(),
                        seat: Seat::for_lane(&local.table, &entry.principal),
                        slot: entry.principal.usage.lane(&Limits::default()).unwrap(),
                    }),
                );
            }
            Order::Take(rounds) => {
                for _ in 0..rounds {
                    let (lane, one) = take_timed(local, entry).await;
                    took += one;
                    park(local, idle(lane));
                    // A turn of the ring: a lane that is parked waits in it for its agent's bytes.
                    turn.writable().await.unwrap();
                }
            }
            Order::Ping => {
                let (lane, _) = take_timed(local, entry).await;
                lane.conn.ping().unwrap();
                park(local, idle(lane));
            }
        }
        turn.writable().await.unwrap();
        let lanes = local.table.count(table::Kind::Lane);
        reports.send(Report { took, lanes }).await.unwrap();
    }
}

async fn take_timed(local: &Rc<Local>, entry: &Arc<AgentEntry>) -> (Lane, Duration) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let begun = Instant::now();
    let lane = take(local, entry, deadline).await;
    let took = begun.elapsed();
    (lane.unwrap_or_else(|refused| panic!("{}", refused.reason)), took)
}

fn lanes(c: &mut Criterion) {
    let mut gateway = Gateway::start();
    for worker in [0, 1, 0] {
        gateway.check(worker);
    }
    let mut group = c.benchmark_group(format!("lane, {}", gateway.workers.driver));
    group.bench_function("take one that is parked at this worker", |b| {
        b.iter_custom(|rounds| gateway.tell(0, Order::Take(rounds)).took);
    });
    let mut at = 0;
    group.bench_function("take one that is parked at another worker", |b| {
        b.iter_custom(|rounds| {
            let each = |_| {
                at = 1 - at;
                gateway.tell(at, Order::Take(1)).took
            };
            (0..rounds).map(each).sum()
        });
    });
    group.finish();
    gateway.check(at);
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = lanes
}
criterion_main!(benches);
