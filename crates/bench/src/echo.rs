//! What the RPC layer alone costs: a bare tonic server that answers etcd's calls without doing anything.
//!
//! It stores nothing, so that under the same load its rate and its CPU time per call are a limit for whoever builds on
//! tonic, and the measure for who does not.

use std::net::SocketAddr;

use clap::Args;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::kv_server::{Kv, KvServer};
use tailwater_api::etcdserverpb::lease_server::{Lease, LeaseServer};
use tailwater_api::mvccpb::KeyValue;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

/// Arguments of `tailwater-bench echo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Address to listen on.
    #[arg(long)]
    listen: SocketAddr,
}

/// Serves until it is killed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let services =
        tonic::transport::Server::builder().add_service(KvServer::new(Echo)).add_service(LeaseServer::new(Echo));
    Ok(services.serve(arguments.listen).await?)
}

struct Echo;

/// Bytes of the value that gets find.
const VALUE_BYTES: usize = 256;

type Answers<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[expect(clippy::unnecessary_wraps, reason = "every answer has one")]
fn header() -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { cluster_id: 1 << 60, member_id: 1 << 60, revision: 1 << 20, raft_term: 2 })
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this server only shows what a call costs"))
}

#[tonic::async_trait]
impl Kv for Echo {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let key = request.into_inner().key;
        let value = vec![b'v'; VALUE_BYTES].into();
        let kv = KeyValue { key, value, create_revision: 2, mod_revision: 2, version: 1, lease: 0 };
        Ok(Response::new(pb::RangeResponse { header: header(), kvs: vec![kv], more: false, count: 1 }))
    }

    type RangeStreamStream = Answers<pb::RangeStreamResponse>;

    async fn range_stream(&self, _: Request<pb::RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        not_here()
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        Ok(Response::new(pb::PutResponse { header: header(), prev_kv: None }))
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        not_here()
    }

    async fn txn(&self, _: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let put = pb::response_op::Response::ResponsePut(pb::PutResponse { header: header(), prev_kv: None });
        let responses = vec![pb::ResponseOp { response: Some(put) }];
        Ok(Response::new(pb::TxnResponse { header: header(), succeeded: true, responses }))
    }

    async fn compact(&self, _: Request<pb::CompactionRequest>) -> Result<Response<pb::CompactionResponse>, Status> {
        not_here()
    }
}

#[tonic::async_trait]
impl Lease for Echo {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let ttl = request.into_inner().ttl;
        Ok(Response::new(pb::LeaseGrantResponse { header: header(), id: 1, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        _: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        not_here()
    }

    type LeaseKeepAliveStream = Answers<pb::LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let requests = request.into_inner();
        let answer = |request: pb::LeaseKeepAliveRequest| pb::LeaseKeepAliveResponse {
            header: header(),
            id: request.id,
            ttl: 60,
        };
        Ok(Response::new(Box::pin(requests.map(move |request| request.map(answer)))))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        not_here()
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        not_here()
    }
}
