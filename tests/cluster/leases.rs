//! Leases that are kept alive over leader changes and pauses, and leases that are not.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::Kind;
use tailwater_tests::cluster::Cluster;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::history::{Action, Clock, is_put, kv, text};
use crate::run::{acceptance, scaled, turn};
use crate::watchers::Stream;
use crate::workload::ask;

const TTL: Duration = Duration::from_secs(5);
/// Each lease is kept alive so often, as etcd's client does.
const KEEP_EVERY: Duration = Duration::from_millis(1667);
/// An answer that takes longer is not waited for: the keeper goes to another member.
const ANSWER_MAX: Duration = Duration::from_millis(1200);
/// Leases on one keepalive stream.
const LEASES_PER_STREAM: usize = 50;
/// Leases that are granted at a time.
const GRANT_LANES: usize = 32;
/// What an expiry may take beyond TTL and election.
const EXPIRY_GRACE: Duration = Duration::from_secs(2);
/// What the end of all of them at once may take beyond that.
const LAST_GRACE: Duration = Duration::from_secs(10);
/// Raft entries that keepalives of all leases may add in three seconds: none are theirs; others may checkpoint leases.
const ENTRIES_MAX: u64 = 20;

type Client = pb::lease_client::LeaseClient<Channel>;

/// What the test knows of one lease.
#[derive(Clone, Copy, Debug)]
struct Lease {
    id: i64,
    /// Until then it must live: a TTL after the call of the grant or of the last keepalive that was answered.
    lives_until: u64,
}

/// All leases by number, as their keepers know them.
type Leases = Arc<Mutex<BTreeMap<usize, Lease>>>;

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("short")
}

fn key(number: usize) -> String {
    format!("lease/{number:05}")
}

/// Grants a lease with a key on it.
async fn grant(channel: Channel, number: usize, clock: Clock) -> anyhow::Result<Lease> {
    let call = clock.now();
    let ttl = i64::try_from(TTL.as_secs())?;
    let granted = Client::new(channel.clone()).lease_grant(pb::LeaseGrantRequest { ttl, id: 0 }).await?.into_inner();
    anyhow::ensure!(granted.ttl == ttl, "asked for {ttl} s, got {}", granted.ttl);
    let put = pb::PutRequest { key: key(number).into(), lease: granted.id, ..Default::default() };
    pb::kv_client::KvClient::new(channel).put(put).await?;
    Ok(Lease { id: granted.id, lives_until: call + nanoseconds(TTL) })
}

/// Grants the leases with these numbers.
async fn grant_all(
    channels: &[Channel],
    numbers: Range<usize>,
    clock: Clock,
) -> anyhow::Result<BTreeMap<usize, Lease>> {
    let mut lanes = JoinSet::new();
    for lane in 0..GRANT_LANES {
        let channel = channels[lane % channels.len()].clone();
        let mine: Vec<usize> = numbers.clone().skip(lane).step_by(GRANT_LANES).collect();
        lanes.spawn(async move {
            let mut leases = BTreeMap::new();
            for number in mine {
                leases.insert(number, grant(channel.clone(), number, clock).await?);
            }
            anyhow::Ok(leases)
        });
    }
    let mut leases = BTreeMap::new();
    while let Some(done) = lanes.join_next().await {
        leases.extend(done??);
    }
    Ok(leases)
}

/// Grants leases and has them kept alive by `keepers`, from the first on while the others are granted.
async fn grant_and_keep(
    cluster: &Cluster,
    count: usize,
    keepers: &mut JoinSet<()>,
    clock: Clock,
) -> anyhow::Result<Leases> {
    let leases = Leases::default();
    let grants = channels(cluster)?;
    for first in (0..count).step_by(LEASES_PER_STREAM) {
        let numbers = first..count.min(first + LEASES_PER_STREAM);
        let granted = grant_all(&grants, numbers.clone(), clock).await?;
        leases.lock().expect("nobody panics with the lock").extend(granted);
        let slot = first / LEASES_PER_STREAM;
        keepers.spawn(keep(numbers.collect(), slot, channels(cluster)?, Arc::clone(&leases), clock));
    }
    Ok(leases)
}

fn channels(cluster: &Cluster) -> anyhow::Result<Vec<Channel>> {
    (0..cluster.size()).map(|slot| cluster.channel(slot)).collect()
}

/// Keeps leases alive for ever, on a stream that goes to the next member when it breaks.
async fn keep(numbers: Vec<usize>, mut slot: usize, channels: Vec<Channel>, leases: Leases, clock: Clock) {
    loop {
        let stream = keep_on(&numbers, channels[slot % channels.len()].clone(), &leases, clock);
        // It ends only when it breaks.
        drop(stream.await);
        slot += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn keep_on(numbers: &[usize], channel: Channel, leases: &Leases, clock: Clock) -> anyhow::Result<()> {
    let (requests, bodies) = mpsc::channel(LEASES_PER_STREAM);
    let mut client = Client::new(channel);
    // A server may answer the stream's begin only after the first question.
    let mut opened = Box::pin(client.lease_keep_alive(ReceiverStream::new(bodies)));
    let mut answers = None;
    loop {
        let begin = tokio::time::Instant::now();
        let call = clock.now();
        let mut asked = BTreeMap::new();
        for number in numbers {
            let id = leases.lock().expect("nobody panics with the lock")[number].id;
            asked.insert(id, *number);
            requests.send(pb::LeaseKeepAliveRequest { id }).await?;
        }
        if answers.is_none() {
            answers = Some(tokio::time::timeout(ANSWER_MAX, &mut opened).await??.into_inner());
        }
        let answers = answers.as_mut().expect("set above");
        while !asked.is_empty() {
            let answer = tokio::time::timeout(ANSWER_MAX, answers.message()).await??.context("the stream ended")?;
            let number = asked.remove(&answer.id).context("an answer nobody asked for")?;
            if answer.ttl > 0 {
                let mut leases = leases.lock().expect("nobody panics with the lock");
                leases.get_mut(&number).expect("granted").lives_until = call + nanoseconds(TTL);
            }
        }
        tokio::time::sleep_until(begin + KEEP_EVERY).await;
    }
}

/// When each key of a lease went, by a watch that goes from member to member.
#[derive(Clone, Debug, Default)]
struct Expired {
    gone: Arc<Mutex<BTreeMap<String, u64>>>,
    /// The last revision that was seen.
    seen: Arc<AtomicI64>,
}

impl Expired {
    fn at(&self, number: usize) -> Option<u64> {
        self.gone.lock().expect("nobody panics with the lock").get(&key(number)).copied()
    }

    fn count(&self, numbers: impl Iterator<Item = usize>) -> usize {
        numbers.filter(|number| self.at(*number).is_some()).count()
    }

    async fn watch(self, channels: Vec<Channel>, clock: Clock) {
        for slot in 0.. {
            drop(self.watch_on(channels[slot % channels.len()].clone(), clock).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn watch_on(&self, channel: Channel, clock: Clock) -> anyhow::Result<()> {
        let create = pb::WatchCreateRequest {
            key: "lease/".into(),
            range_end: "lease0".into(),
            start_revision: self.seen.load(Ordering::Relaxed) + 1,
            ..Default::default()
        };
        let mut stream = tokio::time::timeout(ANSWER_MAX, Stream::open(channel, create)).await??;
        let mut ticks = tokio::time::interval(ANSWER_MAX / 4);
        let mut last = tokio::time::Instant::now();
        loop {
            let answer = tokio::select! {
                answer = stream.answers.message() => answer?,
                _ = ticks.tick() => {
                    anyhow::ensure!(last.elapsed() < ANSWER_MAX * 2, "the member is silent");
                    stream.ask_for_progress();
                    continue;
                }
            };
            last = tokio::time::Instant::now();
            let answer = answer.context("the watch ended")?;
            anyhow::ensure!(!answer.canceled, "the watch was canceled: {answer:?}");
            let mut gone = self.gone.lock().expect("nobody panics with the lock");
            for event in answer.events {
                self.seen.store(kv(&event).mod_revision, Ordering::Relaxed);
                if !is_put(&event) {
                    gone.insert(text(&kv(&event).key), clock.now());
                }
            }
        }
    }
}

/// None of the kept leases is gone, and none of any kind went before its time.
fn none_early(leases: &Mutex<BTreeMap<usize, Lease>>, expired: &Expired, are_kept: bool) -> anyhow::Result<()> {
    for (number, lease) in leases.lock().expect("nobody panics with the lock").iter() {
        let Some(at) = expired.at(*number) else { continue };
        let early = Duration::from_nanos(lease.lives_until.saturating_sub(at));
        anyhow::ensure!(early.is_zero(), "lease {number} expired {early:?} early");
        anyhow::ensure!(!are_kept, "lease {number} was kept alive and expired {lease:?} at {at}");
    }
    Ok(())
}

/// Waits until a write goes through.
async fn wait_for_write(cluster: &Cluster, through: usize) -> anyhow::Result<()> {
    let (action, keys) = (Action::Put { value: String::new() }, ["write".to_owned()]);
    for _ in 0..200 {
        let written = ask(cluster.channel(through)?, &action, &keys);
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(300), written).await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("no write goes through")
}

/// What happens to the leader.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Killed,
    Paused(Duration),
}

/// Takes the leader away while leases that nobody keeps run out.
async fn lose_leader(
    cluster: &mut Cluster,
    loss: Loss,
    first: usize,
    expired: &Expired,
    clock: Clock,
) -> anyhow::Result<usize> {
    let count = scaled(50, 500);
    let leader = cluster.leader().await?;
    let unkept = grant_all(&channels(cluster)?, first..first + count, clock).await?;
    match loss {
        Loss::Killed => cluster.kill(leader)?,
        Loss::Paused(_) => cluster.pause(leader)?,
    }
    wait_for_write(cluster, (leader + 1) % cluster.size()).await?;
    let elected = clock.now();
    match loss {
        Loss::Killed => cluster.restart(leader).await?,
        Loss::Paused(pause) => {
            tokio::time::sleep(pause).await;
            cluster.resume(leader)?;
        }
    }
    let late = elected + nanoseconds(TTL + EXPIRY_GRACE + spread(cluster));
    while expired.count(first..first + count) < count && clock.now() < late {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let in_time = (first..first + count).filter(|number| expired.at(*number).is_some_and(|at| at <= late)).count();
    anyhow::ensure!(
        in_time == count,
        "{in_time} of {count} leases have expired {:?} after the election",
        TTL + EXPIRY_GRACE + spread(cluster)
    );
    none_early(&Mutex::new(unkept), expired, false)?;
    Ok(first + count)
}

/// A new leader of etcd lets no more than 750 leases expire in a second, puts the others off, and ends them a few at a time:
/// of 10,000 it is only asked that they end.
fn spread(cluster: &Cluster) -> Duration {
    match cluster.kind() {
        Kind::Etcd => Duration::from_secs(scaled(0, 60)),
        Kind::Tailwater => Duration::ZERO,
    }
}

/// What happens to the leader in one round. An etcd 3.6 that was paused for longer than what leases have left may revoke
/// them, or say that it has renewed them, although there is another leader: it is paused shortly, and with 10,000
/// leases, which keep it busy for long, not at all.
fn losses(cluster: &Cluster) -> Vec<Loss> {
    let short = Loss::Paused(Duration::from_millis(300));
    match cluster.kind() {
        Kind::Etcd => scaled(vec![Loss::Killed, short], vec![Loss::Killed]),
        Kind::Tailwater => vec![Loss::Killed, Loss::Paused(scaled(Duration::from_secs(3), Duration::from_secs(10)))],
    }
}

async fn scenario(cluster: &mut Cluster) -> anyhow::Result<()> {
    let clock = Clock::start();
    let kept_count = scaled(500, 10_000);
    let mut tasks = JoinSet::new();
    let kept = grant_and_keep(cluster, kept_count, &mut tasks, clock).await?;
    let expired = Expired::default();
    tasks.spawn(expired.clone().watch(channels(cluster)?, clock));

    keepalives_cost_no_entry(cluster).await?;
    // Etcd does not get 10,000 keepalives answered in time on two cores while a leader changes; early none may expire.
    let none_at_all = cluster.kind() == Kind::Tailwater || !acceptance();
    none_early(&kept, &expired, none_at_all).context("before any fault")?;
    let mut next = kept_count;
    for round in 0..scaled(1, 5) {
        for loss in losses(cluster) {
            next = lose_leader(cluster, loss, next, &expired, clock).await?;
            none_early(&kept, &expired, none_at_all).with_context(|| format!("round {round}, {loss:?}"))?;
        }
    }
    if cluster.kind() == Kind::Tailwater {
        // Time that no member saw pass expires nothing; etcd counts it.
        pause_all(cluster, scaled(TTL + Duration::from_secs(1), TTL * 2)).await?;
        tokio::time::sleep(TTL).await;
        none_early(&kept, &expired, true).context("all members were paused")?;
    }
    // At last nobody keeps them: all must go, or the watch that said "none" sees nothing.
    tasks.abort_all();
    let mut last = JoinSet::new();
    last.spawn(expired.clone().watch(channels(cluster)?, clock));
    let deadline = clock.now() + nanoseconds(TTL + EXPIRY_GRACE + spread(cluster) + LAST_GRACE);
    while expired.count(0..kept_count) < kept_count && clock.now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let gone = expired.count(0..kept_count);
    anyhow::ensure!(gone == kept_count, "nobody keeps them, and {gone} of {kept_count} leases have expired");
    Ok(())
}

async fn keepalives_cost_no_entry(cluster: &mut Cluster) -> anyhow::Result<()> {
    let leader = cluster.leader().await?;
    let before = cluster.status(leader).await.context("status")?.raft_index;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = cluster.status(leader).await.context("status")?.raft_index;
    anyhow::ensure!(after - before <= ENTRIES_MAX, "keepalives alone took the raft index from {before} to {after}");
    Ok(())
}

async fn pause_all(cluster: &Cluster, pause: Duration) -> anyhow::Result<()> {
    (0..cluster.size()).try_for_each(|slot| cluster.pause(slot))?;
    tokio::time::sleep(pause).await;
    (0..cluster.size()).try_for_each(|slot| cluster.resume(slot))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_live_while_they_are_kept_and_no_longer() {
    let Some((_turn, setup)) = turn("leases", 3).await else { return };
    let mut cluster = Cluster::start(setup).await.expect("a cluster");
    if let Err(error) = scenario(&mut cluster).await {
        panic!("{error:?}");
    }
    cluster.finish();
}

#[test]
fn an_early_expiry_is_found() {
    let lease = |lives_until| Lease { id: 1, lives_until };
    let leases = Leases::new(Mutex::new(BTreeMap::from([(1, lease(100)), (2, lease(100))])));
    let expired = Expired::default();
    assert!(none_early(&leases, &expired, true).is_ok());
    expired.gone.lock().expect("unused").insert(key(2), 101);
    assert!(none_early(&leases, &expired, false).is_ok());
    assert!(none_early(&leases, &expired, true).is_err(), "it was kept");
    expired.gone.lock().expect("unused").insert(key(1), 99);
    assert!(none_early(&leases, &expired, false).is_err(), "it expired early");
}
