//! Members that leave and come.

use std::time::{Duration, Instant};

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::cluster::Cluster;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::run::Run;

/// How long a change may be refused until the members have been connected long enough: etcd asks for five seconds.
const REFUSED_MAX: Duration = Duration::from_secs(40);
/// How long a removed member may take until its process ends.
const ENDS_MAX: Duration = Duration::from_secs(20);

type Client = pb::cluster_client::ClusterClient<Channel>;

/// Removes the member in `slot`, which is killed before or learns of it by itself, and puts another one in its place.
pub(crate) async fn replace(run: &mut Run, slot: usize, dies_first: bool) -> anyhow::Result<()> {
    let id = id(&run.cluster, slot).await?;
    let helper = (slot + 1) % run.cluster.size();
    if dies_first {
        run.cluster.kill(slot)?;
        run.load.next_write(Duration::from_secs(10)).await?;
    }
    remove(&run.cluster, helper, id).await?;
    let begin = Instant::now();
    while run.cluster.is_running(slot) {
        anyhow::ensure!(begin.elapsed() < ENDS_MAX, "member {slot} was removed and runs on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = run.cluster.replace(slot).await?;
    add(&run.cluster, helper, &url).await?;
    run.cluster.restart(slot).await?;
    let client = Client::new(run.cluster.channel(slot)?);
    let members = client.clone().member_list(pb::MemberListRequest { linearizable: true }).await?.into_inner().members;
    let named = members.iter().filter(|member| !member.name.is_empty()).count();
    anyhow::ensure!(
        members.len() == run.cluster.size() && named == members.len(),
        "after the change there are {members:?}"
    );
    Ok(())
}

/// The member id of `slot`.
async fn id(cluster: &Cluster, slot: usize) -> anyhow::Result<u64> {
    let status = cluster.status(slot).await.context("a running member tells its status")?;
    Ok(status.header.context("a header")?.member_id)
}

async fn remove(cluster: &Cluster, through: usize, id: u64) -> anyhow::Result<()> {
    let remove = async |mut client: Client| client.member_remove(pb::MemberRemoveRequest { id }).await;
    let done = async |members: &[pb::Member]| !members.iter().any(|member| member.id == id);
    until_accepted(cluster, through, remove, done).await
}

async fn add(cluster: &Cluster, through: usize, url: &str) -> anyhow::Result<()> {
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner: false };
    let add = async |mut client: Client| client.member_add(request.clone()).await;
    let done = async |members: &[pb::Member]| members.iter().any(|member| member.peer_ur_ls == [url]);
    until_accepted(cluster, through, add, done).await
}

/// Repeats `change` until it is accepted, or has been done by an attempt whose answer was lost.
async fn until_accepted<T>(
    cluster: &Cluster,
    through: usize,
    change: impl AsyncFn(Client) -> Result<Response<T>, Status>,
    is_done: impl AsyncFn(&[pb::Member]) -> bool,
) -> anyhow::Result<()> {
    let mut client = Client::new(cluster.channel(through)?);
    let begin = Instant::now();
    loop {
        let attempt = tokio::time::timeout(Duration::from_secs(5), change(client.clone())).await;
        let refused = match attempt {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => status.to_string(),
            Err(_) => "no answer in 5 s".to_owned(),
        };
        anyhow::ensure!(begin.elapsed() < REFUSED_MAX, "a membership change is refused for too long: {refused}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let list = client.member_list(pb::MemberListRequest { linearizable: true });
        if let Ok(Ok(list)) = tokio::time::timeout(Duration::from_secs(5), list).await
            && is_done(&list.into_inner().members).await
        {
            return Ok(());
        }
    }
}
