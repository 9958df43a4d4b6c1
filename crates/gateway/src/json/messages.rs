//! Messages between protobuf and JSON, by their descriptors.

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::strict;
use crate::methods::METHODS;
use crate::status::{Code, Fault};

/// Request and answer of each method.
static CODECS: LazyLock<HashMap<&'static str, Codec>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(tailwater_api::DESCRIPTORS).expect("the build has written it");
    let codec = |path: &'static str| {
        let (service, name) = path[1..].split_once('/').expect("a path names service and method");
        let service = pool.get_service_by_name(service).expect("every service is in the descriptors");
        let method = service.methods().find(|method| method.name() == name);
        let method = method.expect("every method is in the descriptors");
        (path, Codec { request: method.input(), answer: method.output() })
    };
    METHODS.iter().map(|&(path, _)| codec(path)).collect()
});

/// Reads requests and writes answers of one method.
#[derive(Clone, Debug)]
pub(super) struct Codec {
    request: MessageDescriptor,
    answer: MessageDescriptor,
}

impl Codec {
    /// Of one of [`METHODS`].
    pub(super) fn of(path: &str) -> Self {
        CODECS[path].clone()
    }

    /// A request's bytes from the first JSON value there; nothing stands for an empty message. What is not known is passed
    /// over, fields as well as names of values.
    pub(super) fn request(&self, json: &[u8]) -> Result<Vec<u8>, String> {
        if json.iter().all(u8::is_ascii_whitespace) {
            return Ok(Vec::new());
        }
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let mut input = serde_json::Deserializer::from_slice(json);
        let message = DynamicMessage::deserialize_with_options(self.request.clone(), &mut input, &options);
        match message.and_then(|message| strict::check(json, &self.request).map(|()| message)) {
            Ok(message) => Ok(message.encode_to_vec()),
            Err(error) if error.is_eof() => Err("unexpected EOF".to_owned()),
            Err(error) => Err(described(&error)),
        }
    }

    /// An answer as JSON: fields as they are named in the proto files, those with their zero left out.
    pub(super) fn answer(&self, message: Bytes) -> Result<Vec<u8>, Fault> {
        let failed = |error: &dyn std::fmt::Display| Fault::Other(Code::Internal, error.to_string());
        let message = DynamicMessage::decode(self.answer.clone(), message).map_err(|error| failed(&error))?;
        let mut out = Vec::with_capacity(message.encoded_len() * 2);
        let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
        let written = message.serialize_with_options(&mut serde_json::Serializer::new(&mut out), &options);
        written.map_err(|error| failed(&error))?;
        Ok(out)
    }
}

/// As protojson begins it: where, and what.
fn described(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(&place).unwrap_or(&text);
    let kind = if error.is_syntax() { "proto: syntax error" } else { "proto:" };
    format!("{kind} (line {}:{}): {what}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(path: &str, json: &str) -> Vec<u8> {
        Codec::of(path).request(json.as_bytes()).expect("a request")
    }

    #[test]
    fn fields_have_both_their_names_and_integers_may_be_text() {
        let path = "/etcdserverpb.KV/Range";
        let plain = encoded(path, r#"{"key":"Zm9v","range_end":"Zm9w","sort_order":"DESCEND","limit":7}"#);
        let camel = encoded(path, r#"{"key":"Zm9v","rangeEnd":"Zm9w","sortOrder":2,"limit":"7"}"#);
        assert_eq!(plain, camel);
        assert_eq!(encoded(path, r#"{"key":"Zm9v","nope":[{}],"sort_order":"NOPE"} trailing"#), b"\n\x03foo");
        assert_eq!(encoded(path, " \n"), b"");
    }

    #[test]
    fn what_is_no_request_is_told_with_its_place() {
        let refused = |json: &str| Codec::of("/etcdserverpb.KV/Range").request(json.as_bytes()).expect_err(json);
        assert_eq!(refused(r#"{"key":"Zm9v""#), "unexpected EOF");
        for (json, beginning) in [
            (r#"{"key":12}"#, "proto: (line 1:"),
            (r####"{"key":"###"}"####, "proto: (line 1:"),
            (r#"{"limit":"x"}"#, "proto: (line 1:"),
            (r"{]", "proto: syntax error (line 1:2): "),
            (r#"{"limit":1,"limit":1}"#, "proto: (line 1:"),
            (r#"{"rangeEnd":null,"range_end":"Zm9v"}"#, "proto: (line 1:"),
            (r#"{"nope":[{"":"\ud800"}]}"#, "proto: syntax error (line 1:"),
        ] {
            assert!(refused(json).starts_with(beginning), "{json}: {}", refused(json));
        }
        let not_utf8 = b"{\"nope\":{\"\xff\":1}}";
        Codec::of("/etcdserverpb.KV/Range").request(not_utf8).expect_err("no text");
        for same in [r#"{"nope":1,"nope":"\u00e4\"\\"}"#, r#"{"nope":null} {"limit":1,"limit":1}"#, r#"{"nope":1e999}"#]
        {
            assert_eq!(encoded("/etcdserverpb.KV/Range", same), b"", "{same}");
        }
        let txn = |json: &str| Codec::of("/etcdserverpb.KV/Txn").request(json.as_bytes());
        txn(r#"{"success":[{"requestRange":null,"request_range":{}}]}"#).expect_err("one field by two names");
        txn(r#"{"success":[{"request_put":null,"request_range":{}},null,{}]}"#)
            .expect_err("null is no message of a list");
        txn(r#"{"success":[{"request_put":null,"request_range":{}},{}]}"#).expect("two fields");
        let nested = "{\"success\":[{\"request_txn\":".repeat(200);
        Codec::of("/etcdserverpb.KV/Txn").request(nested.as_bytes()).expect_err("too deep");
    }

    #[test]
    fn an_answer_leaves_out_what_is_zero() {
        let status = tailwater_api::etcdserverpb::StatusResponse {
            db_size: 4096,
            raft_index: 3,
            errors: vec!["e".to_owned()],
            ..Default::default()
        };
        let json = Codec::of("/etcdserverpb.Maintenance/Status").answer(status.encode_to_vec().into());
        let json = String::from_utf8(json.expect("a message")).expect("text");
        assert_eq!(json, r#"{"dbSize":"4096","raftIndex":"3","errors":["e"]}"#);
    }
}
