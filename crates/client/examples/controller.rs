//! A controller: for each `spec/NAME` it keeps a `status/NAME` that says which revision of it was seen and what became of
//! it, and removes those that have no spec any more.
//!
//! ```sh
//! cargo run -p tailwater-client --example controller -- http://127.0.0.1:2379
//! etcdctl put spec/a '{"replicas": 3}'
//! etcdctl get status/a          # {"observed_revision":2,"replicas":3}
//! ```
//!
//! It looks at states, not at changes: a change only says which name to look at. So it does not matter whether it comes
//! alone, among others, or as part of a difference after a compaction, or whether the controller was away. Writes compare:
//! where somebody else was faster, their write comes as a change, and the name is looked at again.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tailwater_client::api::PutRequest;
use tailwater_client::{Change, Client, Error, Informer, KeyRange, Subscription};

const SPECS: &str = "spec/";
const STATUSES: &str = "status/";
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Spec {
    replicas: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Status {
    observed_revision: i64,
    replicas: u32,
}

struct Controller {
    client: Client,
    specs: Informer<Spec>,
    statuses: Informer<Status>,
}

impl Controller {
    /// Makes the status of a name what its spec asks for. Nothing is done where it is that already.
    async fn reconcile(&self, name: &str) -> Result<(), Error> {
        let key = format!("{STATUSES}{name}");
        let spec = self.specs.get(format!("{SPECS}{name}").as_bytes());
        let held = self.statuses.get(key.as_bytes());
        let Some(spec) = spec else {
            if let Some(held) = held {
                self.client.compare_and_delete(key, held.mod_revision()).await?;
            }
            return Ok(());
        };
        let wanted = Status { observed_revision: spec.mod_revision(), replicas: spec.value.replicas };
        if held.as_ref().is_some_and(|held| held.value == wanted) {
            return Ok(());
        }
        let value = serde_json::to_vec(&wanted).expect("numbers can be written").into();
        let put = PutRequest { key: key.into(), value, ..Default::default() };
        // None: the status has changed meanwhile, and that change is on its way to here.
        self.client.compare_and_put(put, held.map_or(0, |held| held.mod_revision())).await?;
        Ok(())
    }
}

/// The names that changes are about, of one of the two prefixes.
async fn next_name<T: Send + Sync + 'static>(changes: &mut Subscription<T>, prefix: &str) -> anyhow::Result<String> {
    loop {
        let key = match changes.next().await.context("the informer has stopped")? {
            Change::Applied { new, .. } => new.key.clone(),
            Change::Deleted { old, .. } => old.key.clone(),
            Change::Undecodable { what, .. } => {
                eprintln!("{}: {}", what.key.escape_ascii(), what.error);
                what.key.clone()
            }
            Change::Relisted { cause, .. } => {
                eprintln!("{prefix}: {cause:?}");
                continue;
            }
            Change::Synced { revision } => {
                eprintln!("{prefix}: complete at revision {revision}");
                continue;
            }
        };
        let name = key.strip_prefix(prefix.as_bytes()).unwrap_or_default();
        return Ok(String::from_utf8_lossy(name).into_owned());
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let client = Client::builder(endpoints).build()?;
    let specs = client.informer(KeyRange::prefix(SPECS), |_, value: Bytes| serde_json::from_slice(&value)).start()?;
    let statuses =
        client.informer(KeyRange::prefix(STATUSES), |_, value: Bytes| serde_json::from_slice(&value)).start()?;
    // Both are complete before anything is decided: a spec that is not there yet is not one that is gone.
    specs.synced().await?;
    statuses.synced().await?;
    let (mut spec_changes, mut status_changes) = (specs.subscribe(), statuses.subscribe());
    let controller = Controller { client, specs, statuses };
    let mut failed = BTreeSet::new();
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let names = tokio::select! {
            name = next_name(&mut spec_changes, SPECS) => BTreeSet::from([name?]),
            name = next_name(&mut status_changes, STATUSES) => BTreeSet::from([name?]),
            _ = retry.tick() => std::mem::take(&mut failed),
        };
        for name in names {
            if let Err(error) = controller.reconcile(&name).await {
                eprintln!("{name}: {error}");
                failed.insert(name);
            }
        }
    }
}
