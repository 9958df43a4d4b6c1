//! The writes of the KV service.

use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::command::Command;
use tailwater_consensus::Answer as Applied;

use crate::Gateway;
use crate::auth::Credentials;
use crate::body::Answer;
use crate::checks;
use crate::status::Fault;
use crate::txn;

impl Gateway {
    /// `KV.Put`.
    pub(crate) async fn put(
        &self,
        credentials: &Credentials,
        request: pb::PutRequest,
    ) -> Result<pb::PutResponse, Fault> {
        checks::put(&request)?;
        match self.propose(credentials, request.encoded_len(), Command::Put(request)).await? {
            Applied::Put(mut response) => {
                response.header = self.complete(response.header);
                Ok(response)
            }
            other => mismatched("put", &other),
        }
    }

    /// `KV.DeleteRange`.
    pub(crate) async fn delete_range(
        &self,
        credentials: &Credentials,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Fault> {
        checks::delete_range(&request)?;
        match self.propose(credentials, request.encoded_len(), Command::DeleteRange(request)).await? {
            Applied::DeleteRange(mut response) => {
                response.header = self.complete(response.header);
                Ok(response)
            }
            other => mismatched("delete", &other),
        }
    }

    /// `KV.Txn`: one that only reads stays out of the raft log.
    pub(crate) async fn txn(&self, credentials: &Credentials, request: pb::TxnRequest) -> Result<Answer, Fault> {
        checks::txn(&request, self.config().txn_ops_max)?;
        if txn::is_read_only(&request) {
            return self.read_txn(credentials, &request).await;
        }
        match self.propose(credentials, request.encoded_len(), Command::Txn(request)).await? {
            Applied::Txn(mut response) => {
                response.header = self.complete(response.header);
                Ok(Answer::message(&response))
            }
            other => mismatched("txn", &other),
        }
    }

    /// `KV.Compact`. It returns when the compaction is applied, which makes it effective for every reader, and a physical
    /// one when the log is folded below it.
    pub(crate) async fn compact(
        &self,
        credentials: &Credentials,
        request: pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse, Fault> {
        match self.propose(credentials, request.encoded_len(), Command::Compact(request)).await? {
            Applied::Compact(mut response) => {
                response.header = self.complete(response.header);
                Ok(response)
            }
            other => mismatched("compaction", &other),
        }
    }
}

/// The write plane answered another command than the one proposed: a broken invariant.
pub(crate) fn mismatched(command: &str, answer: &Applied) -> ! {
    panic!("the write plane answered a {command} with {answer:?}")
}
