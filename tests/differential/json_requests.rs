//! Random requests of the JSON gateway: which path, and what message.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::json_text::{Node, Writer};

/// Some differ in the two alphabets of base64.
const KEYS: [&[u8]; 8] = [b"a", b"b", b"c", b"\0", b"", b"\xfb\xff", b"a\xff\xfe", b"abcd"];
const ENDS: [&[u8]; 6] = [b"", b"", b"\0", b"b", b"c", b"\xff"];
const LEASES: [i64; 4] = [7, 8, -5, 99];
/// Revoked and made again under the same name, so that rights come and go.
const NAMES: [&str; 3] = ["u", "v", "r"];
/// Of damaged requests, of how many values one is damaged.
const DAMAGE: u32 = 8;

/// What damage makes of these outlasts the step: leases that run out, alarms that stay, and downgrades. And etcd remembers
/// hashes of revisions that are compacted.
const UNDAMAGED: [&str; 4] = ["lease/grant", "maintenance/alarm", "maintenance/downgrade", "maintenance/hashkv"];

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// For messages to a reader.
    pub(crate) fn text(&self) -> String {
        format!("{} {} {}", self.method, self.path, String::from_utf8_lossy(&self.body))
    }
}

pub(crate) struct Generator {
    pub(crate) random: StdRng,
    /// The newest revision, about.
    pub(crate) revision: i64,
    /// No lock and no election is used twice, so that nobody waits.
    names: usize,
}

impl Generator {
    pub(crate) fn new(seed: u64, revision: i64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), revision, names: 0 }
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())]
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.random_ratio(1, count)
    }

    pub(crate) fn near(&mut self) -> i64 {
        (self.revision + self.random.random_range(-15..3)).max(-1)
    }

    /// A request that is answered as a whole.
    pub(crate) fn request(&mut self) -> Request {
        let (path, message, may_be_damaged) = self.message();
        let damage = if may_be_damaged && self.one_in(3) { DAMAGE } else { 0 };
        let body = Writer::new(&mut self.random, damage).body(&message);
        let version = if self.one_in(10) { "v3beta" } else { "v3" };
        let method = if self.one_in(60) { self.one(&["GET", "PUT", "DELETE", "OPTIONS", "PATCH"]) } else { "POST" };
        let path = match self.random.random_range(0..150) {
            0 => format!("/{version}/{path}/"),
            1 => format!("/v3alpha/{path}"),
            2 => format!("/{version}/{}", path.to_uppercase()),
            3 => format!("/{version}/{path}?key=Zm9v&limit=1"),
            4 => format!("/{version}/nope/{path}"),
            _ => format!("/{version}/{path}"),
        };
        Request { method, path, body }
    }

    fn message(&mut self) -> (&'static str, Node, bool) {
        let (path, fields) = match self.random.random_range(0..30) {
            0..5 => ("kv/range", self.range()),
            5..9 => ("kv/put", self.put()),
            9 | 10 => ("kv/deleterange", self.delete()),
            11..15 => ("kv/txn", self.txn(2)),
            15 => ("kv/compaction", vec![("revision", Node::Int(self.near())), ("physical", self.bool())]),
            16..20 => self.lease(),
            20..22 => self.cluster(),
            22..24 => self.maintenance(),
            24..28 => self.auth(),
            _ => {
                let (path, fields) = self.recipe();
                // A damaged lease is none, and then the server makes up its id.
                return (path, Node::Message(fields), false);
            }
        };
        (path, Node::Message(fields), !UNDAMAGED.contains(&path))
    }

    fn bool(&mut self) -> Node {
        Node::Bool(self.random.random())
    }

    fn key(&mut self) -> Node {
        Node::Bytes(self.one(&KEYS).to_vec())
    }

    fn range(&mut self) -> Fields {
        let mut fields = vec![("key", self.key())];
        if !self.one_in(3) {
            fields.push(("range_end", Node::Bytes(self.one(&ENDS).to_vec())));
        }
        if self.one_in(4) {
            fields.push(("limit", Node::Int(self.random.random_range(-1..4))));
        }
        if self.one_in(4) {
            fields.push(("revision", Node::Int(self.near())));
        }
        if self.one_in(3) {
            let orders = [("NONE", 0), ("ASCEND", 1), ("DESCEND", 2)];
            let (name, number) = self.one(&orders);
            fields.push(("sort_order", Node::Enum(name, number)));
            // By a value that no two keys share, or the order is nobody's business.
            let (name, number) = self.one(&[("KEY", 0), ("MOD", 3)]);
            fields.push(("sort_target", Node::Enum(name, number)));
        }
        for name in ["serializable", "keys_only", "count_only"] {
            if self.one_in(6) {
                fields.push((name, self.bool()));
            }
        }
        fields
    }

    fn put(&mut self) -> Fields {
        let value = self.one(&[&b"v"[..], b"", b"\xff\xee\xdd", b"a longer one"]);
        let mut fields = vec![("key", self.key()), ("value", Node::Bytes(value.to_vec()))];
        if self.one_in(4) {
            fields.push(("lease", Node::Int(self.one(&LEASES))));
        }
        if self.one_in(3) {
            fields.push(("prev_kv", self.bool()));
        }
        if self.one_in(12) {
            fields.push(("ignore_lease", self.bool()));
        }
        fields
    }

    fn delete(&mut self) -> Fields {
        let mut fields = vec![("key", self.key()), ("prev_kv", self.bool())];
        if self.one_in(2) {
            fields.push(("range_end", Node::Bytes(self.one(&ENDS).to_vec())));
        }
        fields
    }

    fn txn(&mut self, depth: usize) -> Fields {
        let mut fields = Vec::new();
        if self.one_in(2) {
            let compares = (0..self.random.random_range(0..3)).map(|_| self.compare()).collect();
            fields.push(("compare", Node::List(compares)));
        }
        for name in ["success", "failure"] {
            let ops = (0..self.random.random_range(0..3)).map(|_| self.op(depth)).collect();
            fields.push((name, Node::List(ops)));
        }
        fields
    }

    fn compare(&mut self) -> Node {
        let (result, number) = self.one(&[("EQUAL", 0), ("GREATER", 1), ("LESS", 2), ("NOT_EQUAL", 3)]);
        let (target, of, field) = self.one(&[
            ("VERSION", 0, "version"),
            ("CREATE", 1, "create_revision"),
            ("MOD", 2, "mod_revision"),
            ("VALUE", 3, "value"),
            ("LEASE", 4, "lease"),
        ]);
        let mut fields =
            vec![("result", Node::Enum(result, number)), ("target", Node::Enum(target, of)), ("key", self.key())];
        let operand =
            if field == "value" { Node::Bytes(b"v".to_vec()) } else { Node::Int(self.random.random_range(0..3)) };
        fields.push((field, operand));
        if self.one_in(20) {
            // Only one of these may be there.
            fields.push(("lease", Node::Int(1)));
        }
        Node::Message(fields)
    }

    fn op(&mut self, depth: usize) -> Node {
        let op = match self.random.random_range(0..4) {
            0 => ("request_range", Node::Message(self.range())),
            // One that keeps a lease beside a delete makes etcd panic, at each restart again.
            1 => (
                "request_put",
                Node::Message(self.put().into_iter().filter(|(name, _)| *name != "ignore_lease").collect()),
            ),
            2 => ("request_delete_range", Node::Message(self.delete())),
            _ if depth > 0 => ("request_txn", Node::Message(self.txn(depth - 1))),
            _ => return Node::Message(Vec::new()),
        };
        let mut fields = vec![op];
        if self.one_in(25) {
            fields.push(("request_range", Node::Message(self.range())));
        }
        Node::Message(fields)
    }

    fn lease(&mut self) -> (&'static str, Fields) {
        let id = ("ID", Node::Int(self.one(&LEASES)));
        match self.random.random_range(0..6) {
            0 | 1 => ("lease/grant", vec![("TTL", Node::Int(5000)), ("ID", Node::Int(self.one(&LEASES[..3])))]),
            2 => (self.one(&["lease/revoke", "kv/lease/revoke"]), vec![id]),
            3 => (self.one(&["lease/timetolive", "kv/lease/timetolive"]), vec![id, ("keys", self.bool())]),
            4 => (self.one(&["lease/leases", "kv/lease/leases"]), vec![]),
            _ => ("lease/keepalive", vec![id]),
        }
    }

    fn cluster(&mut self) -> (&'static str, Fields) {
        let id = ("ID", Node::Int(99));
        match self.random.random_range(0..4) {
            0 => ("cluster/member/list", vec![("linearizable", self.bool())]),
            1 => ("cluster/member/remove", vec![id]),
            2 => ("cluster/member/promote", vec![id]),
            _ => ("cluster/member/update", vec![id, ("peerURLs", Node::List(vec![Node::Text("http://a:1".into())]))]),
        }
    }

    fn maintenance(&mut self) -> (&'static str, Fields) {
        match self.random.random_range(0..9) {
            0 | 1 => {
                // Not CORRUPT, under which nothing could be written any more.
                let (action, number) = self.one(&[("GET", 0), ("ACTIVATE", 1), ("DEACTIVATE", 2), ("DEACTIVATE", 2)]);
                let fields = vec![
                    ("action", Node::Enum(action, number)),
                    ("memberID", Node::Int(5)),
                    ("alarm", Node::Enum("NOSPACE", 1)),
                ];
                ("maintenance/alarm", fields)
            }
            2 => ("maintenance/status", vec![]),
            3 => ("maintenance/defragment", vec![]),
            4 => ("maintenance/hash", vec![]),
            5 => ("maintenance/hashkv", vec![("revision", Node::Int(self.one(&[0, 1_000_000])))]),
            6 => ("maintenance/transfer-leadership", vec![("targetID", Node::Int(5))]),
            _ => {
                let version = self.one(&["3.5", "3.5.0", "3.4.0", "x", ""]);
                (
                    "maintenance/downgrade",
                    vec![("action", Node::Enum("VALIDATE", 0)), ("version", Node::Text(version.into()))],
                )
            }
        }
    }

    fn auth(&mut self) -> (&'static str, Fields) {
        let name = |name: &str| Node::Text(name.to_owned());
        let (user, role) = (name(self.one(&NAMES)), name(self.one(&NAMES)));
        match self.random.random_range(0..14) {
            0 => ("auth/status", vec![]),
            1 | 2 => ("auth/user/add", vec![("name", user), ("password", name("word"))]),
            3 => ("auth/user/get", vec![("name", user)]),
            4 => ("auth/user/list", vec![]),
            5 => ("auth/user/delete", vec![("name", user)]),
            6 => ("auth/user/changepw", vec![("name", user), ("password", name("other"))]),
            7 => ("auth/user/grant", vec![("user", user), ("role", role)]),
            8 => ("auth/user/revoke", vec![("name", user), ("role", role)]),
            9 => ("auth/role/add", vec![("name", role)]),
            10 => ("auth/role/get", vec![("role", role)]),
            11 => {
                let (kind, number) = self.one(&[("READ", 0), ("WRITE", 1), ("READWRITE", 2)]);
                let mut perm = vec![("permType", Node::Enum(kind, number)), ("key", self.key())];
                if self.one_in(2) {
                    perm.push(("range_end", Node::Bytes(self.one(&ENDS).to_vec())));
                }
                ("auth/role/grant", vec![("name", role), ("perm", Node::Message(perm))])
            }
            12 => ("auth/role/revoke", vec![("role", role), ("key", self.key())]),
            _ => ("auth/authenticate", vec![("name", user), ("password", name("word"))]),
        }
    }

    fn recipe(&mut self) -> (&'static str, Fields) {
        self.names += 1;
        let name = ("name", Node::Bytes(format!("recipe{}", self.names).into_bytes()));
        let lease = ("lease", Node::Int(self.one(&LEASES)));
        match self.random.random_range(0..6) {
            0 => ("lock/lock", vec![name, lease]),
            1 => ("lock/unlock", vec![("key", Node::Bytes(format!("recipe{}/7", self.names - 1).into_bytes()))]),
            2 => ("election/campaign", vec![name, lease, ("value", self.key())]),
            3 => ("election/leader", vec![("name", Node::Bytes(format!("recipe{}", self.names - 1).into_bytes()))]),
            4 => {
                ("election/resign", vec![("leader", Node::Message(vec![name, lease, ("rev", Node::Int(self.near()))]))])
            }
            _ => ("election/proclaim", vec![("value", self.key())]),
        }
    }
}

type Fields = Vec<(&'static str, Node)>;
