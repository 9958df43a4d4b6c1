//! Messages as JSON text in one of the many ways in which the same can be written, and in ways in which nothing can.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use rand::Rng;
use rand::rngs::StdRng;

/// A message before it is written.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Text(String),
    Bytes(Vec<u8>),
    Int(i64),
    Bool(bool),
    Enum(&'static str, i32),
    List(Vec<Node>),
    Message(Vec<(&'static str, Node)>),
}

/// Values of each kind that are doubtful or wrong.
const INTS: [&str; 12] =
    ["1.5", "\"x\"", "\"\"", "true", "9223372036854775808", "1e1", "5.0", "\" 7\"", "01", "[1]", "{}", "\"0x1\""];
const BYTES: [&str; 8] = ["\"###\"", "12", "\"Zh==\"", "[]", "\"Z\"", "\"Zg!\"", "{}", "true"];
const BOOLS: [&str; 5] = ["\"true\"", "1", "TRUE", "\"\"", "{}"];
const ENUMS: [&str; 5] = ["\"NOPE\"", "99", "\"1\"", "true", "-1"];
const TEXTS: [&str; 6] = ["\"\\ud800\"", "1", "\"\\x\"", "\"a\u{1}b\"", "\"\\u0041\"", "[]"];
const LISTS: [&str; 4] = ["{}", "[null]", "\"\"", "[[]]"];
const MESSAGES: [&str; 5] = ["[]", "\"\"", "1", "{\"nope\":1}", "{,}"];
const FIELDS: [&str; 5] =
    ["\"nope\":[{\"a\":null},-1e3]", "\"nope\":{\"key\":\"x\"}", "\"nope\"", "nope:1", "\"__proto__\":\"\\\"}\""];

/// Writes nodes; the choices are the seed's.
pub(crate) struct Writer<'a> {
    random: &'a mut StdRng,
    /// Of how many values one is damaged; none for 0.
    damage: u32,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(random: &'a mut StdRng, damage: u32) -> Self {
        Self { random, damage }
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.random_ratio(1, count)
    }

    fn is_damaged(&mut self) -> bool {
        self.damage > 0 && self.one_in(self.damage)
    }

    fn of(&mut self, texts: &[&str]) -> String {
        texts[self.random.random_range(0..texts.len())].to_owned()
    }

    /// A whole body.
    pub(crate) fn body(&mut self, message: &Node) -> Vec<u8> {
        let mut text = self.write(message).into_bytes();
        if self.is_damaged() {
            match self.random.random_range(0..9) {
                0 => text.truncate(self.random.random_range(0..text.len())),
                1 => text.extend_from_slice(b" and more"),
                2 => text.extend_from_slice(b"}"),
                3 => text = b"".to_vec(),
                4 => text = b" \n".to_vec(),
                5 => text = b"null".to_vec(),
                6 => text = b"12".to_vec(),
                7 => text.splice(..0, *b"\xef\xbb\xbf").for_each(drop),
                _ => {
                    let at = self.random.random_range(0..text.len());
                    text[at] = self.random.random();
                }
            }
        }
        text
    }

    fn write(&mut self, node: &Node) -> String {
        let is_damaged = self.is_damaged();
        match node {
            Node::Int(_) if is_damaged => self.of(&INTS),
            Node::Bytes(_) if is_damaged => self.of(&BYTES),
            Node::Bool(_) if is_damaged => self.of(&BOOLS),
            Node::Enum(..) if is_damaged => self.of(&ENUMS),
            Node::Text(_) if is_damaged => self.of(&TEXTS),
            Node::List(_) if is_damaged => self.of(&LISTS),
            Node::Message(_) if is_damaged && self.random.random() => self.of(&MESSAGES),
            Node::Int(value) if self.random.random() => value.to_string(),
            Node::Int(value) => format!("\"{value}\""),
            Node::Bytes(bytes) => self.bytes(bytes),
            Node::Bool(value) => value.to_string(),
            Node::Enum(name, _) if self.random.random() => format!("\"{name}\""),
            Node::Enum(_, number) => number.to_string(),
            Node::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
            Node::List(items) => {
                let items: Vec<String> = items.iter().map(|item| self.write(item)).collect();
                format!("[{}]", items.join(","))
            }
            Node::Message(fields) => self.message(fields, is_damaged),
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> String {
        let engine = match self.random.random_range(0..6) {
            0 => URL_SAFE,
            1 => URL_SAFE_NO_PAD,
            2 => STANDARD_NO_PAD,
            _ => STANDARD,
        };
        format!("\"{}\"", engine.encode(bytes))
    }

    fn message(&mut self, fields: &[(&'static str, Node)], is_damaged: bool) -> String {
        let mut written = Vec::new();
        for (name, node) in fields {
            let name = if self.random.random() { (*name).to_owned() } else { camel(name) };
            let value = if self.damage > 0 && self.one_in(15) { "null".to_owned() } else { self.write(node) };
            let gap = if self.one_in(6) { " \n" } else { "" };
            written.push(format!("{gap}\"{name}\":{gap}{value}"));
        }
        if is_damaged {
            written.insert(self.random.random_range(0..=written.len()), self.of(&FIELDS));
        } else if self.one_in(12) {
            // What is not known is passed over.
            written.push(self.of(&FIELDS[..2]));
        }
        format!("{{{}}}", written.join(","))
    }
}

/// The other name of a field.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut camel = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}
