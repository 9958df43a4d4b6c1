//! What a fanout serves to nodes that follow it: its tail, and the way to the leader.

use std::sync::Arc;
use std::time::Duration;

use tailwater_eventlog::MemberId;
use tailwater_fanout::Fanout;
use tailwater_transport::{
    CoreWord, Description, Directory, Greeter, LinkConfig, NodeDescription, PeerPort, PortInfo, PortServer,
    RemoteSource, Router, TailService, TailServiceConfig, WriteService, WriteServiceConfig,
};
use tokio::runtime::Handle;

use crate::describe::node_load;
use crate::host::Bound;
use crate::{hashes, snapshots};

/// What readers have to go away in when this process stops.
const GRACE: Duration = Duration::from_secs(1);

/// What a fanout says of itself.
#[derive(Clone)]
pub(crate) struct Describer {
    pub(crate) announced: NodeDescription,
    pub(crate) fanout: Fanout,
    pub(crate) remote: Arc<RemoteSource>,
    /// Whether clients are answered now.
    pub(crate) is_ready: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Describer {
    /// Without its readers.
    pub(crate) fn describe(&self) -> Description {
        let snapshot = self.fanout.snapshot();
        let CoreWord { path, age } = self.word();
        let node = NodeDescription {
            reached: snapshot.cursor,
            path,
            core_age: age,
            ready: (self.is_ready)(),
            load: node_load(&self.fanout),
            ..self.announced.clone()
        };
        Description {
            node,
            readers: Vec::new(),
            members: snapshot.members.clone(),
            leader: snapshot.leader,
            term: snapshot.term,
        }
    }

    /// Before anything was heard, its own word is as old as can be.
    fn word(&self) -> CoreWord {
        let unheard = || CoreWord { path: vec![self.announced.id.0], age: Duration::from_secs(u64::from(u32::MAX)) };
        self.remote.core_word().unwrap_or_else(unheard)
    }
}

/// The peer port of a fanout.
pub(crate) struct RelaySide {
    port: PortServer,
    write: WriteService,
    pub(crate) tail: TailService,
}

impl RelaySide {
    /// Serves the listeners on `runtime`; without any, nobody can read here.
    ///
    /// # Errors
    /// A listener can't be used.
    pub(crate) fn serve(
        describer: Describer,
        router: Router,
        directory: Arc<Directory>,
        version: String,
        (listeners, runtime, link): (Vec<Bound>, &Handle, LinkConfig),
    ) -> anyhow::Result<Self> {
        let id = describer.announced.id;
        let config = TailServiceConfig { cluster_id: describer.announced.cluster_id, ..Default::default() };
        let (fanout, words) = (describer.fanout.clone(), describer.clone());
        let tail = TailService::new(config, Box::new(move || fanout.source()), None, Box::new(move || words.word()));
        tail.describe_with(Box::new(move || describer.describe()));
        let members = directory.clone();
        tail.serve_snapshots(snapshots::elsewhere(directory.clone(), link.clone()));
        tail.forward_hashes(Box::new(move |at| Box::pin(hashes::ask(members.clone(), link.clone(), at))));
        // Its own name, so that a node that means another one notices.
        let greeter = Greeter::new(MemberId(id.0), directory.clone());
        let write = WriteService::forwarding(router, greeter, WriteServiceConfig::default());
        let port = PeerPort::new(PortInfo { directory, version: Arc::new(move || version.clone()) })
            .add_service(write.clone().into_server())
            .add_service(tail.clone().into_grpc())
            .into_server();
        for Bound { listener, door } in listeners {
            tracing::info!(address = %listener.local_addr()?, "serving peer traffic");
            let serving = port.clone().serve(listener, door);
            runtime.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "a peer listener failed");
                }
            });
        }
        Ok(Self { port, write, tail })
    }

    /// Sends readers elsewhere.
    pub(crate) async fn stop(&self) {
        self.write.stop();
        self.tail.stop();
        self.port.stop(GRACE).await;
        if tokio::time::timeout(GRACE, self.tail.ended()).await.is_err() {
            tracing::warn!("readers of the tail did not let go in time");
        }
    }
}
