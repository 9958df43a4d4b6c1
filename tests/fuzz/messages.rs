//! Random messages of any type, by the descriptors of the proto files.

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value,
};

use crate::random::Random;

/// Messages within messages.
const DEPTH_MAX: usize = 6;
/// More than a txn may hold.
const MANY: usize = 130;
/// Services of clients.
const SERVICES: [&str; 9] = [
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3electionpb.Election",
    "v3lockpb.Lock",
    "grpc.health.v1.Health",
];

/// A method.
#[derive(Clone, Debug)]
pub(crate) struct Method {
    pub(crate) path: String,
    pub(crate) input: MessageDescriptor,
    pub(crate) client_streams: bool,
    pub(crate) server_streams: bool,
}

impl Method {
    /// Whether it may wait for something for as long as it likes.
    pub(crate) fn may_wait(&self) -> bool {
        let waits = ["/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign", "/v3electionpb.Election/Resign"];
        self.client_streams || self.server_streams || waits.contains(&self.path.as_str())
    }
}

/// All methods of clients.
pub(crate) fn methods() -> Vec<Method> {
    let pool = DescriptorPool::decode(tailwater_api::DESCRIPTORS).expect("the build has written it");
    let services = SERVICES.map(|name| pool.get_service_by_name(name).expect("a service of the proto files"));
    let method = |service: &prost_reflect::ServiceDescriptor, method: prost_reflect::MethodDescriptor| Method {
        path: format!("/{}/{}", service.full_name(), method.name()),
        input: method.input(),
        client_streams: method.is_client_streaming(),
        server_streams: method.is_server_streaming(),
    };
    services
        .iter()
        .flat_map(|service| service.methods().map(|found| method(service, found)).collect::<Vec<_>>())
        .collect()
}

/// A message of this type.
pub(crate) fn message(random: &mut Random, descriptor: &MessageDescriptor) -> DynamicMessage {
    filled(random, descriptor, 0)
}

/// A message as bytes: as it is, changed, or rubbish.
pub(crate) fn bytes(random: &mut Random, descriptor: &MessageDescriptor) -> Vec<u8> {
    match random.below(10) {
        0 => random.noise(64),
        1 => Vec::new(),
        2..4 => {
            let whole = message(random, descriptor).encode_to_vec();
            random.changed(whole)
        }
        _ => message(random, descriptor).encode_to_vec(),
    }
}

/// A message as JSON: as it is, changed, or rubbish.
pub(crate) fn json(random: &mut Random, descriptor: &MessageDescriptor) -> Vec<u8> {
    if random.one_in(12) {
        return random.noise(64);
    }
    let message = message(random, descriptor);
    let names = random.one_in(2);
    let options = SerializeOptions::new().use_proto_field_name(names).stringify_64_bit_integers(!names);
    let mut out = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut out), &options)
        .expect("a message can be written");
    if random.one_in(4) { random.changed(out) } else { out }
}

fn filled(random: &mut Random, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        // Fewer, the deeper they lie.
        let is_set = random.below(10) < 6_usize.saturating_sub(depth / 2);
        if is_set && (depth < DEPTH_MAX || !matches!(field.kind(), Kind::Message(_))) {
            let value = field_value(random, &field, depth);
            message.set_field(&field, value);
        }
    }
    message
}

fn field_value(random: &mut Random, field: &FieldDescriptor, depth: usize) -> Value {
    if !field.is_list() {
        return value(random, &field.kind(), depth);
    }
    let len = if depth == 0 && random.one_in(30) { MANY } else { random.below(4) };
    Value::List((0..len).map(|_| value(random, &field.kind(), depth)).collect())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "any number will do")]
fn value(random: &mut Random, kind: &Kind, depth: usize) -> Value {
    match kind {
        Kind::Bool => Value::Bool(random.one_in(2)),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(random.number()),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(random.number() as u64),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(random.number() as i32),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(random.number() as u32),
        Kind::Double => Value::F64(0.5),
        Kind::Float => Value::F32(0.5),
        Kind::String => Value::String(random.text()),
        Kind::Bytes => Value::Bytes(random.bytes().into()),
        Kind::Enum(known) => match random.below(12) {
            0 => Value::EnumNumber(random.number() as i32),
            _ => {
                let numbers: Vec<i32> = known.values().map(|value| value.number()).collect();
                Value::EnumNumber(*random.pick(&numbers))
            }
        },
        Kind::Message(inner) => Value::Message(filled(random, inner, depth + 1)),
    }
}
