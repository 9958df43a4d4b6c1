//! Random requests to the JSON gateways of both servers: the same bytes to both, and what comes back compared as JSON, with
//! the HTTP status and the headers that say something. Watches and keepalives are streams of lines.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use serde_json::Value;

use crate::http::{self, Answer};
use crate::json_requests::{Generator, Request};
use crate::json_text::{Node, Writer};
use crate::run::{ANSWER, Difference, Run};

/// Written behind everything else that a watch sees.
const LAST_KEY: &[u8] = b"zz";
/// Numbers that are a server's own affair.
const OWN: [&str; 12] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "raftTerm",
    "leader",
    "dbSize",
    "dbSizeInUse",
    "raftIndex",
    "raftAppliedIndex",
    "clientURLs",
    "peerURLs",
    "token",
];
/// A number so long is an id that a server has chosen.
const ID_DIGITS: usize = 15;
/// In the streams of requests, what is none.
const GARBAGE: [&str; 6] = ["12", "{\"create_request\":", "]", "{\"create_request\":{\"key\":12}}", "null", "x"];

/// What a request was answered, as far as it must be the same.
fn common(request: &Request, answer: Answer) -> (u16, BTreeMap<String, String>, Vec<Value>) {
    let lines = answer.body.lines().map(|line| {
        serde_json::from_str(line).map_or_else(|_| Value::from(line), |value| without_own(value, &request.path))
    });
    (answer.status, answer.headers, lines.collect())
}

/// Takes out what each server has of its own. Fields stand in the order of their names.
fn without_own(value: Value, path: &str) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| {
                let is_time = name == "TTL"
                    && path.split('?').next().is_some_and(|path| path.ends_with("timetolive"))
                    && value != "-1";
                let is_own = OWN.contains(&name.as_str()) && !value.is_object() || is_time;
                let value = if is_own { Value::from("own") } else { without_own(value, path) };
                let value = if name == "message" { without_words(value) } else { value };
                (name, value)
            });
            let mut fields: serde_json::Map<String, Value> = fields.collect();
            // Nothing has the hash 0 here, which is left out.
            fields.remove("hash");
            for name in ["leases", "alarms", "keys"] {
                if let Some(Value::Array(items)) = fields.get_mut(name) {
                    // These come in the order of a hash map.
                    items.sort_by_key(Value::to_string);
                }
            }
            Value::Object(fields)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| without_own(item, path)).collect()),
        Value::String(text) => Value::from(without_ids(&text)),
        other => other,
    }
}

/// The text with one word for each long number.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let digits = rest[begin..].find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len() - begin);
        out.push_str(&rest[..begin]);
        out.push_str(if digits < ID_DIGITS { &rest[begin..begin + digits] } else { "own" });
        rest = &rest[begin + digits..];
    }
    out + rest
}

/// What a decoder says of a damaged request is its own; that it was the decoder, is not.
fn without_words(message: Value) -> Value {
    let is_decoders = |text: &str| {
        text.starts_with("proto:")
            || text.contains("unexpected EOF")
            || text.contains("looking for beginning of value")
            || text.contains("invalid character")
    };
    if message.as_str().is_some_and(is_decoders) { Value::from("the decoder's words") } else { message }
}

/// Runs the steps of one seed on both servers.
///
/// # Errors
/// A [`Difference`], or what kept the run from going on.
pub(crate) async fn run(reference: &str, subject: &str, seed: u64, steps: usize) -> anyhow::Result<()> {
    run_through(reference, subject, subject, seed, steps).await
}

/// As [`run`]; what is compared of the subject comes through another URL.
pub(crate) async fn run_through(
    reference: &str,
    subject: &str,
    through: &str,
    seed: u64,
    steps: usize,
) -> anyhow::Result<()> {
    lower_alarms([reference, subject]).await?;
    drop(Run::start(reference, subject).await?);
    let mut generator = Generator::new(seed, revision(reference).await?);
    for at in 0..steps {
        let (text, told) = if generator.random.random_ratio(1, 20) {
            lower_alarms([reference, subject]).await?;
            let watch = Watch::new(&mut generator);
            let mut told = Vec::new();
            for url in [reference, through] {
                let seen =
                    watch.run(url).await.with_context(|| format!("step {at} of JSON seed {seed}: {}", watch.text()))?;
                told.push(seen);
            }
            (watch.text(), told)
        } else {
            let request = generator.request();
            let mut told = Vec::new();
            for url in [reference, through] {
                let answer = http::ask(url, request.method, &request.path, &request.body).await;
                let answer = answer.with_context(|| format!("step {at} of JSON seed {seed}: {}", request.text()))?;
                told.push(format!("{:?}", common(&request, answer)));
            }
            (request.text(), told)
        };
        if told[0] != told[1] {
            let text =
                format!("step {at} of JSON seed {seed}: {text}\n  reference: {}\n  subject:   {}", told[0], told[1]);
            return Err(Difference(text).into());
        }
        if at % 20 == 0 {
            generator.revision = revision(reference).await?;
        }
    }
    lower_alarms([reference, subject]).await
}

async fn revision(url: &str) -> anyhow::Result<i64> {
    let answer = http::ask(url, "POST", "/v3/kv/range", br#"{"key":"YQ=="}"#).await?;
    let told: Value = serde_json::from_str(&answer.body)?;
    Ok(told["header"]["revision"].as_str().with_context(|| format!("no revision in {told}"))?.parse()?)
}

/// The only alarm that is raised here.
async fn lower_alarms(urls: [&str; 2]) -> anyhow::Result<()> {
    for url in urls {
        let body = br#"{"action":"DEACTIVATE","memberID":"5","alarm":"NOSPACE"}"#;
        let answer = http::ask(url, "POST", "/v3/maintenance/alarm", body).await?;
        anyhow::ensure!(answer.status == 200, "an alarm stays: {answer:?}");
    }
    Ok(())
}

/// A planted deviation: 64-bit numbers should be text, and counts are not.
pub(crate) fn count_as_number(body: String) -> String {
    let Some((before, rest)) = body.split_once("\"count\":\"") else { return body };
    let Some((count, after)) = rest.split_once('"') else { return body };
    format!("{before}\"count\":{count}{after}")
}

/// Several watchers on one stream.
struct Watch {
    body: Vec<u8>,
    watchers: Vec<Watcher>,
}

/// What one watcher asks for, by its id.
struct Watcher {
    id: i64,
    filters: Vec<i32>,
    is_taken_back: bool,
}

/// What came for one watcher: what was said of it, and its events.
#[derive(Debug, Default)]
struct Seen {
    said: Vec<Value>,
    events: Vec<Value>,
}

impl Watch {
    fn new(generator: &mut Generator) -> Self {
        let (mut body, mut watchers) = (Vec::new(), Vec::new());
        for id in 1..=generator.random.random_range(1..4) {
            // Not both: who sees nothing, is not seen to have come to its end.
            let filters = match generator.random.random_range(0..6) {
                filter @ 0..2 => vec![filter],
                _ => Vec::new(),
            };
            let create = create_request(generator, id, &filters);
            body.extend(Writer::new(&mut generator.random, 0).body(&create));
            let is_taken_back = generator.random.random_ratio(1, 6);
            if is_taken_back {
                let cancel = Node::Message(vec![("watch_id", Node::Int(id))]);
                let cancel = Node::Message(vec![("cancel_request", cancel)]);
                body.extend(Writer::new(&mut generator.random, 0).body(&cancel));
            }
            watchers.push(Watcher { id, filters, is_taken_back });
        }
        // What begins well goes on, even if nothing more can be asked.
        if generator.random.random_ratio(1, 6) {
            let at = generator.random.random_range(0..GARBAGE.len());
            body.extend_from_slice(GARBAGE[at].as_bytes());
        }
        Self { body, watchers }
    }

    fn text(&self) -> String {
        format!("watch {}", String::from_utf8_lossy(&self.body))
    }

    /// Opens the stream, writes and deletes the last key, and waits until each watcher has seen that.
    async fn run(&self, url: &str) -> anyhow::Result<String> {
        let begin = Instant::now();
        let mut stream = http::begin(url, "POST", "/v3/watch", &self.body).await?;
        let mut last = None;
        loop {
            let seen = match stream.so_far()? {
                Some(answer) if answer.status != 200 => bail!("the watch is answered {answer:?}"),
                Some(answer) => seen_in(&answer.body)?,
                None => BTreeMap::new(),
            };
            let created = seen.values().filter(|seen| seen.is_said("created")).count();
            if last.is_none() && created == self.watchers.len() {
                last = Some(write_last_key(url).await?);
            }
            if let Some(last) = last
                && self.watchers.iter().all(|watcher| watcher.has_ended(&seen, last))
            {
                return Ok(self.comparable(&seen));
            }
            anyhow::ensure!(begin.elapsed() < ANSWER, "after {ANSWER:?} there is only {seen:#?}");
            anyhow::ensure!(stream.more().await?, "the stream ends with {seen:#?}");
        }
    }

    /// Whoever was taken back may have seen events or not, and a second reason for its end.
    fn comparable(&self, seen: &BTreeMap<i64, Seen>) -> String {
        let told = self.watchers.iter().filter_map(|watcher| {
            let seen = seen.get(&watcher.id)?;
            let first = seen.said.first();
            Some(if watcher.is_taken_back { format!("{first:#?}") } else { format!("{seen:#?}") })
        });
        told.collect::<Vec<_>>().join("\n")
    }
}

fn seen_in(body: &str) -> anyhow::Result<BTreeMap<i64, Seen>> {
    let mut all: BTreeMap<i64, Seen> = BTreeMap::new();
    // A line without its end is on its way.
    for line in body.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let value: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is no JSON"))?;
        let Value::Object(mut answer) = without_own(value["result"].clone(), "watch") else {
            bail!("{line:?} is no answer of a watch");
        };
        let id = answer.get("watch_id").and_then(Value::as_str).map_or(Ok(0), str::parse)?;
        let seen = all.entry(id).or_default();
        match answer.remove("events") {
            Some(Value::Array(some)) => seen.events.extend(some),
            // Progress comes when it likes.
            _ if !answer.contains_key("created") && !answer.contains_key("canceled") => {}
            _ => {
                answer.remove("header");
                seen.said.push(Value::Object(answer));
            }
        }
    }
    Ok(all)
}

fn create_request(generator: &mut Generator, id: i64, filters: &[i32]) -> Node {
    let random = &mut generator.random;
    let (key, end): (&[u8], &[u8]) = match random.random_range(0..4) {
        0 => (b"\0", b"\0"),
        1 => (b"a", b"\xff"),
        2 => (LAST_KEY, b""),
        _ => (b"b", b"\0"),
    };
    let mut fields = vec![
        ("key", Node::Bytes(key.to_vec())),
        ("range_end", Node::Bytes(end.to_vec())),
        ("watch_id", Node::Int(id)),
        ("prev_kv", Node::Bool(random.random())),
        ("fragment", Node::Bool(random.random())),
    ];
    let names = [("NOPUT", 0), ("NODELETE", 1)];
    let filters = names.into_iter().filter(|(_, number)| filters.contains(number));
    fields.push(("filters", Node::List(filters.map(|(name, number)| Node::Enum(name, number)).collect())));
    if random.random() {
        let start = generator.near().clamp(1, generator.revision);
        fields.push(("start_revision", Node::Int(start)));
    }
    Node::Message(vec![("create_request", Node::Message(fields))])
}

impl Seen {
    fn is_said(&self, what: &str) -> bool {
        self.said.iter().any(|answer| answer[what] == true)
    }
}

impl Watcher {
    /// Whether all that it can see has come, the last key's revision being known.
    fn has_ended(&self, seen: &BTreeMap<i64, Seen>, last: i64) -> bool {
        let Some(seen) = seen.get(&self.id) else { return false };
        let revision = |event: &Value| event["kv"]["mod_revision"].as_str().and_then(|text| text.parse::<i64>().ok());
        let has_seen = |revision_wanted: i64| seen.events.iter().any(|event| revision(event) == Some(revision_wanted));
        let passes = |filter: i32, revision: i64| self.filters.contains(&filter) || has_seen(revision);
        seen.is_said("canceled") || !self.is_taken_back && passes(0, last) && passes(1, last + 1)
    }
}

/// Puts and deletes the last key; the revision of the put.
async fn write_last_key(url: &str) -> anyhow::Result<i64> {
    let key = STANDARD.encode(LAST_KEY);
    let mut revision = None;
    for (path, body) in
        [("put", format!(r#"{{"key":"{key}","value":"dg=="}}"#)), ("deleterange", format!(r#"{{"key":"{key}"}}"#))]
    {
        let answer = http::ask(url, "POST", &format!("/v3/kv/{path}"), body.as_bytes()).await?;
        anyhow::ensure!(answer.status == 200, "the last key can't be written: {answer:?}");
        let told: Value = serde_json::from_str(&answer.body)?;
        revision = revision.or(told["header"]["revision"].as_str().and_then(|text| text.parse().ok()));
    }
    revision.context("a put without revision")
}
