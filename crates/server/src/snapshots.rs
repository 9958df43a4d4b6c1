//! Snapshots of members' stores: served to other nodes, and asked for by nodes that have no store.

use std::sync::Arc;
use std::time::Duration;

use tailwater_gateway::{Code, Fault, SnapshotPieces, Snapshots};
use tailwater_transport::{Directory, HashFailed, LinkConfig, SnapshotMessages, SnapshotOpener, fetch_snapshot};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// A node that does not begin within this is left for another.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// Messages on their way through.
const PIECES_MAX: usize = 4;

/// Hands out this member's own.
pub(crate) fn own(snapshots: Snapshots) -> SnapshotOpener {
    Box::new(move || {
        let opened = snapshots.open().map(messages).map_err(|fault| status(&fault));
        Box::pin(std::future::ready(opened))
    })
}

/// Hands out that of a node in the directory.
pub(crate) fn elsewhere(directory: Arc<Directory>, link: LinkConfig) -> SnapshotOpener {
    Box::new(move || {
        let asked = ask(directory.clone(), link.clone());
        Box::pin(async { asked.await.map(messages).map_err(|fault| status(&fault)) })
    })
}

/// Of the first node in the directory that begins one. The relay that is followed, if one is, hands it on; it is asked
/// first, since it may be the only one that can be reached.
///
/// # Errors
/// As clients are told, why the last of them did not.
pub(crate) async fn ask(directory: Arc<Directory>, link: LinkConfig) -> Result<SnapshotPieces, Fault> {
    let mut failed = HashFailed::Silent;
    for node in directory.members().into_iter().rev() {
        for url in &node.peer_urls {
            let asked = fetch_snapshot(url, directory.cluster_id(), &link);
            match tokio::time::timeout(BEGIN_MAX, asked).await {
                Ok(Ok(messages)) => return Ok(pieces(messages)),
                Ok(Err(error)) => failed = error,
                Err(_) => {}
            }
        }
    }
    Err(match failed {
        HashFailed::Failed(status) => fault(&status),
        failed => Fault::Other(Code::Unavailable, format!("tailwater: no member gave its snapshot: {failed}")),
    })
}

/// Passed on by a task, which ends with either side.
fn pieces(mut messages: tonic::Streaming<tailwater_api::etcdserverpb::SnapshotResponse>) -> SnapshotPieces {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            if sender.send(message.map_err(|status| fault(&status))).await.is_err() {
                return;
            }
        }
    });
    receiver
}

fn messages(pieces: SnapshotPieces) -> SnapshotMessages {
    Box::pin(ReceiverStream::new(pieces).map(|piece| piece.map_err(|fault| status(&fault))))
}

fn status(fault: &Fault) -> Status {
    let (code, text) = fault.status();
    Status::new(tonic::Code::from_i32(code as i32), text)
}

fn fault(status: &Status) -> Fault {
    let code = match status.code() {
        tonic::Code::Unavailable => Code::Unavailable,
        tonic::Code::ResourceExhausted => Code::ResourceExhausted,
        _ => Code::Unknown,
    };
    Fault::Other(code, status.message().to_owned())
}
