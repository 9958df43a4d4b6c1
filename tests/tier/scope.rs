//! Fanouts that hold only some prefixes.

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::Event;
use tailwater_tests::cluster::Fanout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::client::{Watch, delete, kv, list, prefix, put};
use crate::run::{Plan, say, scaled};

/// What a fanout says that knows nobody who holds what is asked for.
const NOBODY: &str = "no replica here covers the range";

/// Whether an answer was given (by another replica), or refused as it may be.
fn given<T>(what: &str, answer: Result<T, anyhow::Error>) -> anyhow::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => {
            let status = error.downcast_ref::<Status>().with_context(|| format!("{what}: {error:#}"))?;
            anyhow::ensure!(
                status.code() == Code::Unavailable && status.message().contains(NOBODY),
                "{what} is refused with {status:?}"
            );
            Ok(None)
        }
    }
}

/// Puts under both prefixes, and the whole range of keys.
async fn write(writer: &Channel, count: usize) -> anyhow::Result<()> {
    for number in 0..count {
        put(writer, &format!("/in/{:03}", number % 7), &number.to_string()).await?;
        put(writer, &format!("/out/{:03}", number % 7), &number.to_string()).await?;
        if number % 5 == 4 {
            delete(writer, &format!("/in/{:03}", number % 7)).await?;
        }
    }
    Ok(())
}

/// Inside its scope a scoped fanout is a replica like others; outside it never gives a part for the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scoped_fanout_answers_whole_or_not_at_all() -> anyhow::Result<()> {
    let plan = Plan::new("a_scoped_fanout_answers_whole_or_not_at_all").only_fanouts();
    let plan = plan
        .fanout(Fanout::following([1, 2, 0]).holding(&["/in/"]))
        .fanout(Fanout::following([2, 0]).as_relay().holding(&["/in/", "/more/"]))
        .fanout(Fanout::following([4, 0]).holding(&["/in/"]));
    let Some(tier) = plan.start().await? else { return Ok(()) };
    let core = tier.cluster.channel(0)?;
    let first = put(&core, "/in/first", "1").await?;
    put(&core, "/out/first", "1").await?;
    write(&core, scaled(20, 500)).await?;
    let last = put(&core, "/out/last", "1").await?;
    let mut elsewhere = 0;
    for slot in &tier.fanouts {
        let fanout = tier.cluster.channel(*slot)?;
        inside(&core, &fanout, first, last).await.with_context(|| format!("inside, slot {slot}"))?;
        elsewhere += outside(&core, &fanout, first).await.with_context(|| format!("outside, slot {slot}"))?;
    }
    say(&format!("{elsewhere} of {} requests outside of a scope were answered from elsewhere", tier.fanouts.len() * 4));
    tier.cluster.finish();
    Ok(())
}

async fn inside(core: &Channel, fanout: &Channel, first: i64, last: i64) -> anyhow::Result<()> {
    for request in [
        prefix("/in/"),
        prefix("/in/00"),
        pb::RangeRequest { revision: last - 3, ..prefix("/in/") },
        pb::RangeRequest { key: "/in/first".into(), ..Default::default() },
        pb::RangeRequest { count_only: true, ..prefix("/in/") },
    ] {
        let (theirs, at) = list(core, request.clone()).await?;
        let (ours, reached) = list(fanout, request.clone()).await?;
        anyhow::ensure!(theirs == ours, "{request:?}: {theirs:?} on a member, {ours:?} here");
        anyhow::ensure!(reached >= at, "a linearizable read at {reached} after one at {at}");
    }
    let mut theirs = Watch::open(core, prefix("/in/"), first).await?;
    let mut ours = Watch::open(fanout, prefix("/in/"), first).await?;
    let end = put(core, "/in/end", &last.to_string()).await?;
    let (theirs, ours) = (until(&mut theirs, end).await?, until(&mut ours, end).await?);
    anyhow::ensure!(theirs == ours, "the fanout watched {} events, the member {}", ours.len(), theirs.len());
    // Nothing in scope changes, yet progress reaches what was written outside.
    let mut watch = Watch::open(fanout, prefix("/in/"), 0).await?;
    let newest = put(core, "/out/newest", "1").await?;
    list(fanout, prefix("/in/")).await?;
    loop {
        watch.ask_for_progress()?;
        let answer = watch.next().await?;
        anyhow::ensure!(answer.events.is_empty() && !answer.canceled, "nothing was written here: {answer:?}");
        if crate::client::revision(answer.header.as_ref())? >= newest {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Everything that a watch is sent up to `revision`.
async fn until(watch: &mut Watch, revision: i64) -> anyhow::Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    while events.last().and_then(|event| event.kv.as_ref()).is_none_or(|kv| kv.mod_revision < revision) {
        events.extend(watch.events().await?);
    }
    Ok(events)
}

/// How many of four requests that reach outside of the scope were answered; those that were are right.
async fn outside(core: &Channel, fanout: &Channel, first: i64) -> anyhow::Result<usize> {
    let mut answered = 0;
    for request in [prefix("/out/"), prefix("/"), pb::RangeRequest { key: "/out/first".into(), ..Default::default() }] {
        let here = list(fanout, request.clone()).await;
        if let Some((ours, _)) = given(&format!("{request:?}"), here)? {
            let (theirs, _) = list(core, request.clone()).await?;
            anyhow::ensure!(theirs == ours, "{request:?}: {theirs:?} on a member, {ours:?} here");
            answered += 1;
        }
    }
    let watch = async {
        let mut watch = Watch::open(fanout, prefix("/"), first).await?;
        let end = put(core, "/out/watched", "1").await?;
        until(&mut watch, end).await
    };
    if let Some(ours) = given("a watch of everything", watch.await)? {
        let mut watch = Watch::open(core, prefix("/"), first).await?;
        let end = ours.last().and_then(|event| event.kv.as_ref()).context("it has events")?.mod_revision;
        anyhow::ensure!(until(&mut watch, end).await? == ours, "a watch of everything lacks something");
        answered += 1;
    }
    // A transaction is the leader's, whatever it reads.
    let get = pb::request_op::Request::RequestRange(prefix("/out/"));
    let success = vec![pb::RequestOp { request: Some(get) }];
    let answer = kv(fanout).txn(pb::TxnRequest { success, ..Default::default() }).await.map_err(anyhow::Error::from);
    if let Some(answer) = given("a transaction that reads outside", answer)? {
        let response = answer.into_inner().responses.pop().and_then(|response| response.response);
        let Some(pb::response_op::Response::ResponseRange(ours)) = response else {
            anyhow::bail!("a read is answered by a read")
        };
        anyhow::ensure!(ours.kvs == list(core, prefix("/out/")).await?.0, "a transaction reads something else");
    }
    // Writes have no scope.
    put(fanout, "/out/from-a-scoped-fanout", "1").await?;
    Ok(answered)
}
