//! Users and tokens.

use std::time::{Duration, Instant};

use tailwater_api::authpb::{self, permission};
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::Kind;
use tailwater_tests::cluster::{Cluster, Setup, connect};

use crate::kinds;
use crate::support::{ALLOW_PINGS, PATIENCE, PREFIX, builder, put, texts, until};

/// Tokens of this server live so long.
const TOKEN_SECONDS: u64 = 2;

/// A cluster of one, whose user `op` may read and write what the informers of these tests cache; and `root`, who may all.
async fn with_users(kind: Kind) -> Cluster {
    let mut setup = Setup::new(kind, 1);
    setup.flags =
        [ALLOW_PINGS, "--bcrypt-cost=4", &format!("--auth-token-ttl={TOKEN_SECONDS}")].map(str::to_owned).into();
    let cluster = Cluster::start(setup).await.unwrap();
    let mut auth = pb::auth_client::AuthClient::new(connect(cluster.url(0)).unwrap());
    for name in ["root", "op"] {
        let (name, password) = (name.to_owned(), format!("{name}'s word"));
        auth.user_add(pb::AuthUserAddRequest { name, password, ..Default::default() }).await.unwrap();
    }
    for role in ["root", "operators"] {
        auth.role_add(pb::AuthRoleAddRequest { name: role.to_owned() }).await.unwrap();
    }
    let perm = authpb::Permission {
        perm_type: permission::Type::Readwrite as i32,
        key: PREFIX.into(),
        range_end: "/c0".into(),
    };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "operators".to_owned(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.unwrap();
    for (user, role) in [("root", "root"), ("op", "operators")] {
        let grant = pb::AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
        auth.user_grant_role(grant).await.unwrap();
    }
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    cluster
}

/// Lets operators read `/d/` too.
async fn allow(url: &str) {
    let mut auth = pb::auth_client::AuthClient::new(connect(url).unwrap());
    let root = pb::AuthenticateRequest { name: "root".to_owned(), password: "root's word".to_owned() };
    let token = auth.authenticate(root).await.unwrap().into_inner().token;
    let perm_type = permission::Type::Read as i32;
    let perm = authpb::Permission { perm_type, key: "/d/".into(), range_end: "/d0".into() };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "operators".to_owned(), perm: Some(perm) };
    let mut request = tonic::Request::new(grant);
    request.metadata_mut().insert("token", token.parse().unwrap());
    auth.role_grant_permission(request).await.unwrap();
}

#[tokio::test]
async fn an_informer_logs_in_and_again_when_its_token_is_gone() {
    for kind in kinds("users of the client on etcd") {
        let mut cluster = with_users(kind).await;
        let user = builder(cluster.urls()).user("op", "op's word").build().unwrap();
        let informer = texts(&user);
        informer.synced().await.unwrap();
        put(&user, "/c/1", "one").await;
        assert_eq!(informer.consistent().await.unwrap().len(), 1, "{kind:?}");
        // Nobody uses it meanwhile, so it expires.
        tokio::time::sleep(Duration::from_secs(2 * TOKEN_SECONDS + 1)).await;
        put(&user, "/c/2", "two").await;
        assert_eq!(informer.consistent().await.unwrap().len(), 2, "{kind:?}");
        // A server that starts again knows no token.
        cluster.kill(0).unwrap();
        cluster.launch(0).unwrap();
        let until = Instant::now() + PATIENCE;
        while informer.consistent().await.is_err() {
            assert!(Instant::now() < until, "{kind:?}: {:?}", informer.status().borrow());
        }
        put(&user, "/c/3", "three").await;
        assert_eq!(informer.consistent().await.unwrap().len(), 3, "{kind:?}");
        assert_eq!(informer.status().borrow().relists, 0, "{kind:?}");
        cluster.finish();
    }
}

#[tokio::test]
async fn who_may_not_read_is_told_so_and_goes_on_trying() {
    for kind in kinds("users of the client on etcd") {
        let cluster = with_users(kind).await;
        for (name, password, reason) in [
            ("op", "not it", "authentication failed, invalid user ID or password"),
            ("nobody", "word", "authentication failed, invalid user ID or password"),
        ] {
            let client = builder(cluster.urls()).user(name, password).build().unwrap();
            let informer = texts(&client);
            let status = until(&informer, |status| status.failure.is_some()).await;
            assert!(status.failure.as_ref().is_some_and(|text| text.contains(reason)), "{kind:?}: {status:?}");
        }
        let client = builder(cluster.urls()).user("op", "op's word").build().unwrap();
        let decode = |_: &[u8], value: bytes::Bytes| String::from_utf8(value.to_vec());
        let informer = client.informer(tailwater_client::KeyRange::prefix("/d/"), decode).start().unwrap();
        let status = until(&informer, |status| status.failure.is_some()).await;
        assert!(status.failure.as_ref().is_some_and(|text| text.contains("permission denied")), "{kind:?}: {status:?}");
        // Once it may, it goes on.
        allow(cluster.url(0)).await;
        tokio::time::timeout(PATIENCE, informer.synced()).await.unwrap().unwrap();
        cluster.finish();
    }
}
