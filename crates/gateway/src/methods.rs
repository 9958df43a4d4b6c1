//! Every method of the services that etcd registers.

use std::collections::HashMap;
use std::sync::LazyLock;

/// How messages flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unary,
    ServerStream,
    BidiStream,
}

impl Kind {
    /// The label value that grpc-go's metrics use.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// One method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    /// Its place in [`METHODS`].
    pub(crate) index: usize,
    /// "/package.Service/Method".
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
}

impl Method {
    pub(crate) fn service(&self) -> &'static str {
        self.path[1..].split('/').next().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Path and kind of each.
pub(crate) const METHODS: &[(&str, Kind)] = &[
    ("/etcdserverpb.KV/Range", Kind::Unary),
    ("/etcdserverpb.KV/RangeStream", Kind::ServerStream),
    ("/etcdserverpb.KV/Put", Kind::Unary),
    ("/etcdserverpb.KV/DeleteRange", Kind::Unary),
    ("/etcdserverpb.KV/Txn", Kind::Unary),
    ("/etcdserverpb.KV/Compact", Kind::Unary),
    ("/etcdserverpb.Watch/Watch", Kind::BidiStream),
    ("/etcdserverpb.Lease/LeaseGrant", Kind::Unary),
    ("/etcdserverpb.Lease/LeaseRevoke", Kind::Unary),
    ("/etcdserverpb.Lease/LeaseKeepAlive", Kind::BidiStream),
    ("/etcdserverpb.Lease/LeaseTimeToLive", Kind::Unary),
    ("/etcdserverpb.Lease/LeaseLeases", Kind::Unary),
    ("/etcdserverpb.Cluster/MemberAdd", Kind::Unary),
    ("/etcdserverpb.Cluster/MemberRemove", Kind::Unary),
    ("/etcdserverpb.Cluster/MemberUpdate", Kind::Unary),
    ("/etcdserverpb.Cluster/MemberList", Kind::Unary),
    ("/etcdserverpb.Cluster/MemberPromote", Kind::Unary),
    ("/etcdserverpb.Maintenance/Alarm", Kind::Unary),
    ("/etcdserverpb.Maintenance/Status", Kind::Unary),
    ("/etcdserverpb.Maintenance/Defragment", Kind::Unary),
    ("/etcdserverpb.Maintenance/Hash", Kind::Unary),
    ("/etcdserverpb.Maintenance/HashKV", Kind::Unary),
    ("/etcdserverpb.Maintenance/Snapshot", Kind::ServerStream),
    ("/etcdserverpb.Maintenance/MoveLeader", Kind::Unary),
    ("/etcdserverpb.Maintenance/Downgrade", Kind::Unary),
    ("/etcdserverpb.Auth/AuthEnable", Kind::Unary),
    ("/etcdserverpb.Auth/AuthDisable", Kind::Unary),
    ("/etcdserverpb.Auth/AuthStatus", Kind::Unary),
    ("/etcdserverpb.Auth/Authenticate", Kind::Unary),
    ("/etcdserverpb.Auth/UserAdd", Kind::Unary),
    ("/etcdserverpb.Auth/UserGet", Kind::Unary),
    ("/etcdserverpb.Auth/UserList", Kind::Unary),
    ("/etcdserverpb.Auth/UserDelete", Kind::Unary),
    ("/etcdserverpb.Auth/UserChangePassword", Kind::Unary),
    ("/etcdserverpb.Auth/UserGrantRole", Kind::Unary),
    ("/etcdserverpb.Auth/UserRevokeRole", Kind::Unary),
    ("/etcdserverpb.Auth/RoleAdd", Kind::Unary),
    ("/etcdserverpb.Auth/RoleGet", Kind::Unary),
    ("/etcdserverpb.Auth/RoleList", Kind::Unary),
    ("/etcdserverpb.Auth/RoleDelete", Kind::Unary),
    ("/etcdserverpb.Auth/RoleGrantPermission", Kind::Unary),
    ("/etcdserverpb.Auth/RoleRevokePermission", Kind::Unary),
    ("/v3electionpb.Election/Campaign", Kind::Unary),
    ("/v3electionpb.Election/Proclaim", Kind::Unary),
    ("/v3electionpb.Election/Leader", Kind::Unary),
    ("/v3electionpb.Election/Observe", Kind::ServerStream),
    ("/v3electionpb.Election/Resign", Kind::Unary),
    ("/v3lockpb.Lock/Lock", Kind::Unary),
    ("/v3lockpb.Lock/Unlock", Kind::Unary),
    ("/grpc.health.v1.Health/Check", Kind::Unary),
    ("/grpc.health.v1.Health/Watch", Kind::ServerStream),
];

static BY_PATH: LazyLock<HashMap<&str, Method>> = LazyLock::new(|| {
    let entries = METHODS.iter().enumerate();
    entries.map(|(index, &(path, kind))| (path, Method { index, path, kind })).collect()
});

/// The method at `path`, or grpc-go's sentence about what is unknown.
pub(crate) fn find(path: &str) -> Result<Method, String> {
    if let Some(method) = BY_PATH.get(path) {
        return Ok(*method);
    }
    let Some((service, name)) = path.strip_prefix('/').unwrap_or(path).rsplit_once('/') else {
        return Err(format!("malformed method name: {path:?}"));
    };
    let is_known = METHODS.iter().any(|(known, _)| known[1..].split('/').next() == Some(service));
    Err(if is_known {
        format!("unknown method {name} for service {service}")
    } else {
        format!("unknown service {service}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the table with the services in proto/, so that neither gains a method alone.
    #[test]
    fn the_table_is_what_the_proto_files_declare() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
        let mut declared = Vec::new();
        for file in ["etcd/rpc.proto", "etcd/v3election.proto", "etcd/v3lock.proto", "grpc/health.proto"] {
            let text = std::fs::read_to_string(root.join(file)).expect("the proto file is there");
            let (mut package, mut service) = ("", "");
            for line in text.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("package ") {
                    package = name.trim_end_matches(';');
                } else if let Some(name) = line.strip_prefix("service ") {
                    service = name.trim_end_matches(" {");
                } else if let Some(rpc) = line.strip_prefix("rpc ") {
                    let (name, rest) = rpc.split_once('(').expect("an rpc has arguments");
                    let kind = match rest.matches("stream ").count() {
                        0 => Kind::Unary,
                        1 => Kind::ServerStream,
                        _ => Kind::BidiStream,
                    };
                    declared.push((format!("/{package}.{service}/{name}"), kind));
                }
            }
        }
        let table: Vec<_> = METHODS.iter().map(|&(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(table, declared);
    }

    #[test]
    fn what_is_unknown_is_named_as_grpc_go_does() {
        assert_eq!(find("/a.B/C").expect_err("unknown"), "unknown service a.B");
        let method = find("/etcdserverpb.KV/Nope").expect_err("unknown");
        assert_eq!(method, "unknown method Nope for service etcdserverpb.KV");
        assert_eq!(find("/").expect_err("malformed"), "malformed method name: \"/\"");
        let found = find("/etcdserverpb.KV/Put").expect("known");
        assert_eq!((found.service(), found.name()), ("etcdserverpb.KV", "Put"));
    }
}
