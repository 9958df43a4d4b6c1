//! The protocols of Tailwater as Rust types, and the small codec that moves pre-encoded bytes.
//!
//! * [`etcdserverpb`], [`mvccpb`], [`authpb`], [`v3electionpb`], [`v3lockpb`], [`health`]: the etcd v3 client API,
//!   and [`leasepb`], a row of etcd's database, with etcd's package names, field numbers and types.
//! * [`tail`], [`peer`], [`write`](mod@write): the three protocols between nodes, served on the peer URLs.
//! * [`wire`]: protobuf primitives for code that writes message bytes by hand, because an event is encoded once and
//!   then only copied or referenced.
//! * [`grpc`]: requests read from, and answers written to, gRPC's framing without building a message.
//!
//! This crate knows nothing of revisions, storage or connections.

pub mod grpc;
pub mod wire;

/// An encoded `google.protobuf.FileDescriptorSet` of all protocols.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Generated code is exempt from the project's lints.
macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, missing_docs)]
        pub mod $name {
            tonic::include_proto!($package);
        }
    };
}

generated!(
    /// Keys, values and events.
    mvccpb,
    "mvccpb"
);
generated!(
    /// Users, roles and permissions.
    authpb,
    "authpb"
);
generated!(
    /// A lease as etcd stores it.
    leasepb,
    "leasepb"
);
generated!(
    /// The KV, Watch, Lease, Cluster, Maintenance and Auth services.
    etcdserverpb,
    "etcdserverpb"
);
generated!(
    /// The election service.
    v3electionpb,
    "v3electionpb"
);
generated!(
    /// The lock service.
    v3lockpb,
    "v3lockpb"
);
generated!(
    /// gRPC's health protocol.
    health,
    "grpc.health.v1"
);

/// The protocols between nodes; the nesting follows the packages, as the generated code expects.
pub mod tailwater {
    /// See [`crate::tail`].
    pub mod tail {
        generated!(
            /// Version 1.
            v1,
            "tailwater.tail.v1"
        );
    }
    /// See [`crate::peer`].
    pub mod peer {
        generated!(
            /// Version 1.
            v1,
            "tailwater.peer.v1"
        );
    }
    /// See [`write`](mod@crate::write).
    pub mod write {
        generated!(
            /// Version 1.
            v1,
            "tailwater.write.v1"
        );
    }
}

pub use tailwater::{peer::v1 as peer, tail::v1 as tail, write::v1 as write};
