//! What protojson refuses and the reader of messages passes over: a field that is given twice, also as null or by its other
//! name; and text that is none, where a value is skipped because its field is unknown.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use prost_reflect::{Kind, MessageDescriptor};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::StreamDeserializer;

/// Checks the first JSON value there, a message of this type.
///
/// # Errors
/// What is wrong with it, or that it is no JSON.
pub(super) fn check(json: &[u8], message: &MessageDescriptor) -> Result<(), serde_json::Error> {
    Message(Cow::Borrowed(message)).deserialize(&mut serde_json::Deserializer::from_slice(json))?;
    let mut values: StreamDeserializer<'_, _, IgnoredAny> = serde_json::Deserializer::from_slice(json).into_iter();
    values.next().transpose()?;
    texts(&json[..values.byte_offset()])
}

/// Each text inside of well-formed JSON, read as one.
fn texts(json: &[u8]) -> Result<(), serde_json::Error> {
    let mut begin = None;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        match (byte, begin) {
            (b'"', None) => begin = Some(at),
            (b'"', Some(first)) => {
                serde_json::from_slice::<Cow<'_, str>>(&json[first..=at])?;
                begin = None;
            }
            // What is escaped ends nothing.
            (b'\\', Some(_)) => at += 1,
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Goes through the fields of a message, or of each message of a list.
struct Message<'a>(Cow<'a, MessageDescriptor>);

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    /// Null stands for none.
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Message(Cow::Borrowed(&self.0)))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = fields.next_key::<Cow<'_, str>>()? {
            let field = self.0.get_field_by_json_name(&name).or_else(|| self.0.get_field_by_name(&name));
            if let Some(field) = &field
                && !seen.insert(field.number())
            {
                return Err(A::Error::custom(format_args!("duplicate field {name:?}")));
            }
            match field.map(|field| field.kind()) {
                Some(Kind::Message(message)) => fields.next_value_seed(Message(Cow::Owned(message)))?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
