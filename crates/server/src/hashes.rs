//! Hashes of members' storage, for nodes that have none.

use std::sync::Arc;
use std::time::Duration;

use tailwater_eventlog::{Revision, StoreHash};
use tailwater_gateway::{Code, Fault};
use tailwater_transport::{Directory, HashFailed, LinkConfig, fetch_hash};

/// How long a member may take to read its whole store.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Of the first node in the directory that answers. The relay that is followed, if one is, hands it on; it is asked
/// first, since it may be the only one that can be reached.
///
/// # Errors
/// Why the last of them did not.
pub(crate) async fn ask(directory: Arc<Directory>, link: LinkConfig, at: Revision) -> Result<StoreHash, HashFailed> {
    let mut failed = HashFailed::Silent;
    for node in directory.members().into_iter().rev() {
        for url in &node.peer_urls {
            match fetch_hash(url, directory.cluster_id(), at, TIMEOUT, &link).await {
                Ok(hash) => return Ok(hash),
                // The others have compacted it as well.
                Err(error @ HashFailed::Compacted(_)) => return Err(error),
                Err(error) => failed = error,
            }
        }
    }
    Err(failed)
}

/// As clients are told.
pub(crate) fn fault(failed: HashFailed) -> Fault {
    match failed {
        HashFailed::Compacted(_) => Fault::Compacted,
        HashFailed::NotReached(_) => Fault::FutureRevision,
        HashFailed::Connect(_) | HashFailed::Silent => {
            Fault::Other(Code::Unavailable, format!("tailwater: no member gave its hash: {failed}"))
        }
        HashFailed::Failed(status) => Fault::Other(Code::Unknown, status.message().to_owned()),
    }
}
