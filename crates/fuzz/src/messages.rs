//! Protobuf messages: the generated decoder and the one that reads descriptors agree, and what was read stays the same.

use std::fmt::Debug;
use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use tailwater_api::{authpb, etcdserverpb, health, leasepb, mvccpb, peer, tail, v3electionpb, v3lockpb, write};

/// What one byte can name.
const PER_BYTE: usize = 256;

macro_rules! messages {
    ($($name:literal => $type:ty,)*) => {
        /// All messages, by their names in the proto files.
        const MESSAGES: &[(&str, Agree)] = &[$(($name, agree::<$type>)),*];
    };
}

type Agree = fn(&[u8], &MessageDescriptor) -> bool;

messages! {
    "mvccpb.KeyValue" => mvccpb::KeyValue,
    "mvccpb.Event" => mvccpb::Event,
    "authpb.UserAddOptions" => authpb::UserAddOptions,
    "authpb.User" => authpb::User,
    "authpb.Permission" => authpb::Permission,
    "authpb.Role" => authpb::Role,
    "leasepb.Lease" => leasepb::Lease,
    "etcdserverpb.ResponseHeader" => etcdserverpb::ResponseHeader,
    "etcdserverpb.RangeRequest" => etcdserverpb::RangeRequest,
    "etcdserverpb.RangeResponse" => etcdserverpb::RangeResponse,
    "etcdserverpb.PutRequest" => etcdserverpb::PutRequest,
    "etcdserverpb.PutResponse" => etcdserverpb::PutResponse,
    "etcdserverpb.DeleteRangeRequest" => etcdserverpb::DeleteRangeRequest,
    "etcdserverpb.DeleteRangeResponse" => etcdserverpb::DeleteRangeResponse,
    "etcdserverpb.RequestOp" => etcdserverpb::RequestOp,
    "etcdserverpb.ResponseOp" => etcdserverpb::ResponseOp,
    "etcdserverpb.Compare" => etcdserverpb::Compare,
    "etcdserverpb.TxnRequest" => etcdserverpb::TxnRequest,
    "etcdserverpb.TxnResponse" => etcdserverpb::TxnResponse,
    "etcdserverpb.CompactionRequest" => etcdserverpb::CompactionRequest,
    "etcdserverpb.CompactionResponse" => etcdserverpb::CompactionResponse,
    "etcdserverpb.HashRequest" => etcdserverpb::HashRequest,
    "etcdserverpb.HashKVRequest" => etcdserverpb::HashKvRequest,
    "etcdserverpb.HashKVResponse" => etcdserverpb::HashKvResponse,
    "etcdserverpb.HashResponse" => etcdserverpb::HashResponse,
    "etcdserverpb.SnapshotRequest" => etcdserverpb::SnapshotRequest,
    "etcdserverpb.SnapshotResponse" => etcdserverpb::SnapshotResponse,
    "etcdserverpb.WatchRequest" => etcdserverpb::WatchRequest,
    "etcdserverpb.WatchCreateRequest" => etcdserverpb::WatchCreateRequest,
    "etcdserverpb.WatchCancelRequest" => etcdserverpb::WatchCancelRequest,
    "etcdserverpb.WatchProgressRequest" => etcdserverpb::WatchProgressRequest,
    "etcdserverpb.WatchResponse" => etcdserverpb::WatchResponse,
    "etcdserverpb.LeaseGrantRequest" => etcdserverpb::LeaseGrantRequest,
    "etcdserverpb.LeaseGrantResponse" => etcdserverpb::LeaseGrantResponse,
    "etcdserverpb.LeaseRevokeRequest" => etcdserverpb::LeaseRevokeRequest,
    "etcdserverpb.LeaseRevokeResponse" => etcdserverpb::LeaseRevokeResponse,
    "etcdserverpb.LeaseCheckpoint" => etcdserverpb::LeaseCheckpoint,
    "etcdserverpb.LeaseCheckpointRequest" => etcdserverpb::LeaseCheckpointRequest,
    "etcdserverpb.LeaseCheckpointResponse" => etcdserverpb::LeaseCheckpointResponse,
    "etcdserverpb.LeaseKeepAliveRequest" => etcdserverpb::LeaseKeepAliveRequest,
    "etcdserverpb.LeaseKeepAliveResponse" => etcdserverpb::LeaseKeepAliveResponse,
    "etcdserverpb.LeaseTimeToLiveRequest" => etcdserverpb::LeaseTimeToLiveRequest,
    "etcdserverpb.LeaseTimeToLiveResponse" => etcdserverpb::LeaseTimeToLiveResponse,
    "etcdserverpb.LeaseLeasesRequest" => etcdserverpb::LeaseLeasesRequest,
    "etcdserverpb.LeaseStatus" => etcdserverpb::LeaseStatus,
    "etcdserverpb.LeaseLeasesResponse" => etcdserverpb::LeaseLeasesResponse,
    "etcdserverpb.Member" => etcdserverpb::Member,
    "etcdserverpb.MemberAddRequest" => etcdserverpb::MemberAddRequest,
    "etcdserverpb.MemberAddResponse" => etcdserverpb::MemberAddResponse,
    "etcdserverpb.MemberRemoveRequest" => etcdserverpb::MemberRemoveRequest,
    "etcdserverpb.MemberRemoveResponse" => etcdserverpb::MemberRemoveResponse,
    "etcdserverpb.MemberUpdateRequest" => etcdserverpb::MemberUpdateRequest,
    "etcdserverpb.MemberUpdateResponse" => etcdserverpb::MemberUpdateResponse,
    "etcdserverpb.MemberListRequest" => etcdserverpb::MemberListRequest,
    "etcdserverpb.MemberListResponse" => etcdserverpb::MemberListResponse,
    "etcdserverpb.MemberPromoteRequest" => etcdserverpb::MemberPromoteRequest,
    "etcdserverpb.MemberPromoteResponse" => etcdserverpb::MemberPromoteResponse,
    "etcdserverpb.DefragmentRequest" => etcdserverpb::DefragmentRequest,
    "etcdserverpb.DefragmentResponse" => etcdserverpb::DefragmentResponse,
    "etcdserverpb.MoveLeaderRequest" => etcdserverpb::MoveLeaderRequest,
    "etcdserverpb.MoveLeaderResponse" => etcdserverpb::MoveLeaderResponse,
    "etcdserverpb.AlarmRequest" => etcdserverpb::AlarmRequest,
    "etcdserverpb.AlarmMember" => etcdserverpb::AlarmMember,
    "etcdserverpb.AlarmResponse" => etcdserverpb::AlarmResponse,
    "etcdserverpb.DowngradeRequest" => etcdserverpb::DowngradeRequest,
    "etcdserverpb.DowngradeResponse" => etcdserverpb::DowngradeResponse,
    "etcdserverpb.DowngradeVersionTestRequest" => etcdserverpb::DowngradeVersionTestRequest,
    "etcdserverpb.StatusRequest" => etcdserverpb::StatusRequest,
    "etcdserverpb.StatusResponse" => etcdserverpb::StatusResponse,
    "etcdserverpb.DowngradeInfo" => etcdserverpb::DowngradeInfo,
    "etcdserverpb.AuthEnableRequest" => etcdserverpb::AuthEnableRequest,
    "etcdserverpb.AuthDisableRequest" => etcdserverpb::AuthDisableRequest,
    "etcdserverpb.AuthStatusRequest" => etcdserverpb::AuthStatusRequest,
    "etcdserverpb.AuthenticateRequest" => etcdserverpb::AuthenticateRequest,
    "etcdserverpb.AuthUserAddRequest" => etcdserverpb::AuthUserAddRequest,
    "etcdserverpb.AuthUserGetRequest" => etcdserverpb::AuthUserGetRequest,
    "etcdserverpb.AuthUserDeleteRequest" => etcdserverpb::AuthUserDeleteRequest,
    "etcdserverpb.AuthUserChangePasswordRequest" => etcdserverpb::AuthUserChangePasswordRequest,
    "etcdserverpb.AuthUserGrantRoleRequest" => etcdserverpb::AuthUserGrantRoleRequest,
    "etcdserverpb.AuthUserRevokeRoleRequest" => etcdserverpb::AuthUserRevokeRoleRequest,
    "etcdserverpb.AuthRoleAddRequest" => etcdserverpb::AuthRoleAddRequest,
    "etcdserverpb.AuthRoleGetRequest" => etcdserverpb::AuthRoleGetRequest,
    "etcdserverpb.AuthUserListRequest" => etcdserverpb::AuthUserListRequest,
    "etcdserverpb.AuthRoleListRequest" => etcdserverpb::AuthRoleListRequest,
    "etcdserverpb.AuthRoleDeleteRequest" => etcdserverpb::AuthRoleDeleteRequest,
    "etcdserverpb.AuthRoleGrantPermissionRequest" => etcdserverpb::AuthRoleGrantPermissionRequest,
    "etcdserverpb.AuthRoleRevokePermissionRequest" => etcdserverpb::AuthRoleRevokePermissionRequest,
    "etcdserverpb.AuthEnableResponse" => etcdserverpb::AuthEnableResponse,
    "etcdserverpb.AuthDisableResponse" => etcdserverpb::AuthDisableResponse,
    "etcdserverpb.AuthStatusResponse" => etcdserverpb::AuthStatusResponse,
    "etcdserverpb.AuthenticateResponse" => etcdserverpb::AuthenticateResponse,
    "etcdserverpb.AuthUserAddResponse" => etcdserverpb::AuthUserAddResponse,
    "etcdserverpb.AuthUserGetResponse" => etcdserverpb::AuthUserGetResponse,
    "etcdserverpb.AuthUserDeleteResponse" => etcdserverpb::AuthUserDeleteResponse,
    "etcdserverpb.AuthUserChangePasswordResponse" => etcdserverpb::AuthUserChangePasswordResponse,
    "etcdserverpb.AuthUserGrantRoleResponse" => etcdserverpb::AuthUserGrantRoleResponse,
    "etcdserverpb.AuthUserRevokeRoleResponse" => etcdserverpb::AuthUserRevokeRoleResponse,
    "etcdserverpb.AuthRoleAddResponse" => etcdserverpb::AuthRoleAddResponse,
    "etcdserverpb.AuthRoleGetResponse" => etcdserverpb::AuthRoleGetResponse,
    "etcdserverpb.AuthRoleListResponse" => etcdserverpb::AuthRoleListResponse,
    "etcdserverpb.AuthUserListResponse" => etcdserverpb::AuthUserListResponse,
    "etcdserverpb.AuthRoleDeleteResponse" => etcdserverpb::AuthRoleDeleteResponse,
    "etcdserverpb.AuthRoleGrantPermissionResponse" => etcdserverpb::AuthRoleGrantPermissionResponse,
    "etcdserverpb.AuthRoleRevokePermissionResponse" => etcdserverpb::AuthRoleRevokePermissionResponse,
    "etcdserverpb.RangeStreamResponse" => etcdserverpb::RangeStreamResponse,
    "v3electionpb.CampaignRequest" => v3electionpb::CampaignRequest,
    "v3electionpb.CampaignResponse" => v3electionpb::CampaignResponse,
    "v3electionpb.LeaderKey" => v3electionpb::LeaderKey,
    "v3electionpb.LeaderRequest" => v3electionpb::LeaderRequest,
    "v3electionpb.LeaderResponse" => v3electionpb::LeaderResponse,
    "v3electionpb.ResignRequest" => v3electionpb::ResignRequest,
    "v3electionpb.ResignResponse" => v3electionpb::ResignResponse,
    "v3electionpb.ProclaimRequest" => v3electionpb::ProclaimRequest,
    "v3electionpb.ProclaimResponse" => v3electionpb::ProclaimResponse,
    "v3lockpb.LockRequest" => v3lockpb::LockRequest,
    "v3lockpb.LockResponse" => v3lockpb::LockResponse,
    "v3lockpb.UnlockRequest" => v3lockpb::UnlockRequest,
    "v3lockpb.UnlockResponse" => v3lockpb::UnlockResponse,
    "grpc.health.v1.HealthCheckRequest" => health::HealthCheckRequest,
    "grpc.health.v1.HealthCheckResponse" => health::HealthCheckResponse,
    "tailwater.tail.v1.Cursor" => tail::Cursor,
    "tailwater.tail.v1.KeyRange" => tail::KeyRange,
    "tailwater.tail.v1.FollowRequest" => tail::FollowRequest,
    "tailwater.tail.v1.Node" => tail::Node,
    "tailwater.tail.v1.NodeLoad" => tail::NodeLoad,
    "tailwater.tail.v1.SlowStream" => tail::SlowStream,
    "tailwater.tail.v1.PrefixLoad" => tail::PrefixLoad,
    "tailwater.tail.v1.DescribeRequest" => tail::DescribeRequest,
    "tailwater.tail.v1.DescribeResponse" => tail::DescribeResponse,
    "tailwater.tail.v1.FollowResponse" => tail::FollowResponse,
    "tailwater.tail.v1.Frame" => tail::Frame,
    "tailwater.tail.v1.Fact" => tail::Fact,
    "tailwater.tail.v1.AuthState" => tail::AuthState,
    "tailwater.tail.v1.Alarm" => tail::Alarm,
    "tailwater.tail.v1.Alarms" => tail::Alarms,
    "tailwater.tail.v1.Member" => tail::Member,
    "tailwater.tail.v1.Members" => tail::Members,
    "tailwater.tail.v1.Leader" => tail::Leader,
    "tailwater.tail.v1.Heartbeat" => tail::Heartbeat,
    "tailwater.tail.v1.Resync" => tail::Resync,
    "tailwater.tail.v1.TransferRequest" => tail::TransferRequest,
    "tailwater.tail.v1.TransferResponse" => tail::TransferResponse,
    "tailwater.tail.v1.HistoryRequest" => tail::HistoryRequest,
    "tailwater.tail.v1.StatePart" => tail::StatePart,
    "tailwater.tail.v1.HistoryResponse" => tail::HistoryResponse,
    "tailwater.tail.v1.HistoryEnd" => tail::HistoryEnd,
    "tailwater.tail.v1.CopyPoint" => tail::CopyPoint,
    "tailwater.tail.v1.CopyRequest" => tail::CopyRequest,
    "tailwater.tail.v1.CopyResponse" => tail::CopyResponse,
    "tailwater.tail.v1.CopyNumbers" => tail::CopyNumbers,
    "tailwater.tail.v1.StateRow" => tail::StateRow,
    "tailwater.tail.v1.HashRequest" => tail::HashRequest,
    "tailwater.tail.v1.HashResponse" => tail::HashResponse,
    "tailwater.tail.v1.SnapshotRequest" => tail::SnapshotRequest,
    "tailwater.peer.v1.Hello" => peer::Hello,
    "tailwater.peer.v1.Refusal" => peer::Refusal,
    "tailwater.peer.v1.PeerBatch" => peer::PeerBatch,
    "tailwater.peer.v1.PeerAck" => peer::PeerAck,
    "tailwater.write.v1.CommandBatch" => write::CommandBatch,
    "tailwater.write.v1.Command" => write::Command,
    "tailwater.write.v1.Caller" => write::Caller,
    "tailwater.write.v1.AuthEnable" => write::AuthEnable,
    "tailwater.write.v1.AuthTokenSecret" => write::AuthTokenSecret,
    "tailwater.write.v1.LeaseExpire" => write::LeaseExpire,
    "tailwater.write.v1.SetClusterVersion" => write::SetClusterVersion,
    "tailwater.write.v1.SetDowngrade" => write::SetDowngrade,
    "tailwater.write.v1.Bootstrap" => write::Bootstrap,
    "tailwater.write.v1.PublishMember" => write::PublishMember,
    "tailwater.write.v1.MemberAdd" => write::MemberAdd,
    "tailwater.write.v1.MemberRemove" => write::MemberRemove,
    "tailwater.write.v1.MemberPromote" => write::MemberPromote,
    "tailwater.write.v1.MemberUpdate" => write::MemberUpdate,
    "tailwater.write.v1.ForceNewCluster" => write::ForceNewCluster,
    "tailwater.write.v1.WriteRequests" => write::WriteRequests,
    "tailwater.write.v1.WriteRequest" => write::WriteRequest,
    "tailwater.write.v1.Barrier" => write::Barrier,
    "tailwater.write.v1.LeaseKeepAlive" => write::LeaseKeepAlive,
    "tailwater.write.v1.LeaseTimeToLive" => write::LeaseTimeToLive,
    "tailwater.write.v1.ListLeases" => write::ListLeases,
    "tailwater.write.v1.CheckLease" => write::CheckLease,
    "tailwater.write.v1.MoveLeader" => write::MoveLeader,
    "tailwater.write.v1.WriteResponses" => write::WriteResponses,
    "tailwater.write.v1.WriteResponse" => write::WriteResponse,
    "tailwater.write.v1.Failure" => write::Failure,
    "tailwater.write.v1.Applied" => write::Applied,
    "tailwater.write.v1.Done" => write::Done,
    "tailwater.write.v1.AuthChanged" => write::AuthChanged,
    "tailwater.write.v1.BarrierPassed" => write::BarrierPassed,
    "tailwater.write.v1.LeaseRenewed" => write::LeaseRenewed,
    "tailwater.write.v1.LeaseRemaining" => write::LeaseRemaining,
    "tailwater.write.v1.LeaseInfo" => write::LeaseInfo,
    "tailwater.write.v1.LeaseIds" => write::LeaseIds,
    "tailwater.write.v1.LeaderMoved" => write::LeaderMoved,
    "tailwater.write.v1.LeaseChecked" => write::LeaseChecked,
}

pub(crate) static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(tailwater_api::DESCRIPTORS).expect("the build has written it"));

static DESCRIPTORS: LazyLock<Vec<MessageDescriptor>> = LazyLock::new(|| {
    let found = MESSAGES.iter().map(|(name, _)| POOL.get_message_by_name(name).expect("a name in the proto files"));
    found.collect()
});

/// The first byte says which message the rest is.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    let at = usize::from(kind) % MESSAGES.len();
    (MESSAGES[at].1)(rest, &DESCRIPTORS[at])
}

fn agree<M: Message + Default + PartialEq + Debug>(bytes: &[u8], descriptor: &MessageDescriptor) -> bool {
    let own = M::decode(bytes);
    let by_descriptor = DynamicMessage::decode(descriptor.clone(), bytes);
    assert_eq!(own.is_ok(), by_descriptor.is_ok(), "{own:?} or {by_descriptor:?}");
    let (Ok(own), Ok(by_descriptor)) = (own, by_descriptor) else { return false };
    let encoded = own.encode_to_vec();
    assert_eq!(encoded.len(), own.encoded_len(), "the length of {own:?}");
    same(&M::decode(encoded.as_slice()).expect("just encoded"), &own);
    same(&M::decode(by_descriptor.encode_to_vec().as_slice()).expect("just encoded"), &own);
    true
}

fn same<M: PartialEq + Debug>(found: &M, expected: &M) {
    assert!(found == expected, "{found:?} where it was {expected:?}");
}

/// A few messages with most of their fields set.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    assert!(MESSAGES.len() <= PER_BYTE, "one byte names a message");
    let kind = |name: &str| MESSAGES.iter().position(|(known, _)| *known == name).expect("a name of a message");
    let seed = |name: &str, message: Vec<u8>| {
        let kind = u8::try_from(kind(name)).expect("one byte names a message");
        [vec![kind], message].concat()
    };
    let key_value = mvccpb::KeyValue {
        key: "key".into(),
        create_revision: 2,
        mod_revision: 300,
        version: 4,
        value: "value".into(),
        lease: -5,
    };
    let event = mvccpb::Event { r#type: 1, kv: Some(key_value.clone()), prev_kv: Some(key_value.clone()) };
    let header = etcdserverpb::ResponseHeader { cluster_id: u64::MAX, member_id: 2, revision: 3, raft_term: 4 };
    let watch = etcdserverpb::WatchResponse {
        header: Some(header),
        watch_id: 7,
        events: vec![event],
        cancel_reason: "reason".into(),
        ..Default::default()
    };
    let permission = authpb::Permission { perm_type: 2, key: b"a".to_vec(), range_end: b"b".to_vec() };
    let role = authpb::Role { name: b"role".to_vec(), key_permission: vec![permission] };
    let range = etcdserverpb::RangeRequest {
        key: "a".into(),
        range_end: "b".into(),
        limit: -1,
        revision: i64::MAX,
        sort_order: 2,
        sort_target: 3,
        serializable: true,
        max_create_revision: 9,
        ..Default::default()
    };
    vec![
        seed("mvccpb.KeyValue", key_value.encode_to_vec()),
        seed("etcdserverpb.WatchResponse", watch.encode_to_vec()),
        seed("etcdserverpb.RangeRequest", range.encode_to_vec()),
        seed("etcdserverpb.TxnRequest", crate::txns::nested().encode_to_vec()),
        seed("authpb.Role", role.encode_to_vec()),
        seed("tailwater.write.v1.CommandBatch", crate::commands::batch().encode_to_vec()),
    ]
}
