//! Workloads that read.

use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use tailwater_api::etcdserverpb as pb;

use super::writes::{Put, Writer};
use super::{Common, conclude, measured};
use crate::connection::Connection;
use crate::drive::{Client, Pace, drive};
use crate::load::{Kv, kv};
use crate::report::Report;
use crate::validate::Validator;

/// Clients that load what is read.
const LOADERS: usize = 64;

/// Puts every key of the space once.
async fn load(channels: &[Connection], put: &Put) -> anyhow::Result<()> {
    let put = Put { sequential: true, ..put.clone() };
    let pace = Pace { rate: 0, total: Some(put.key_space), time: std::time::Duration::from_secs(3600) };
    let writer = Writer::new(&channels[0], put, None);
    let clients = (0..LOADERS).map(|at| writer.on(&channels[at % channels.len()])).collect();
    let measured = drive(clients, pace, &Arc::default()).await?;
    anyhow::ensure!(measured.failed == 0, "loading failed: {}", measured.first_error.unwrap_or_default());
    Ok(())
}

/// Gets of single keys.
#[derive(Args, Clone, Debug)]
pub(super) struct Range {
    /// From what the endpoint has, without asking the leader.
    #[arg(long)]
    serializable: bool,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    val_size: usize,
    /// Different keys.
    #[arg(long, default_value_t = 1)]
    key_space: u64,
    /// Keys are there already.
    #[arg(long)]
    no_load: bool,
    /// Puts per second beside the gets, which the validator compares them with.
    #[arg(long, default_value_t = 0)]
    puts: u64,
}

impl Range {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        let channels = common.channels().await?;
        let put = Put {
            val_size: self.val_size,
            key_space: self.key_space,
            prefix: "/bench/range/".to_owned(),
            sequential: false,
        };
        if !self.no_load {
            load(&channels, &put).await?;
        }
        let validator = (common.validate && !self.serializable).then(|| Arc::new(Validator::default()));
        let getters = (0..common.clients).map(|at| Getter {
            kv: kv(&channels[at % channels.len()]),
            put: put.clone(),
            serializable: self.serializable,
            validator: validator.clone(),
        });
        let getters = getters.collect();
        let pace = Pace { rate: self.puts, ..common.pace() };
        let writer = Writer::new(&channels[0], put.clone(), validator.clone());
        let writers = (0..16).map(|at| writer.on(&channels[at % channels.len()])).collect::<Vec<_>>();
        let beside = (self.puts > 0).then(|| tokio::spawn(async move { drive(writers, pace, &Arc::default()).await }));
        let mut report = Report::new("range", "gets", measured(common, "gets", getters).await?);
        if let Some(beside) = beside {
            report.failed += beside.await??.failed;
        }
        if let Some(validator) = validator {
            conclude(&mut report, &validator).await;
        }
        Ok(report)
    }
}

struct Getter {
    kv: Kv,
    put: Put,
    serializable: bool,
    validator: Option<Arc<Validator>>,
}

impl Client for Getter {
    async fn request(&mut self, number: u64) -> anyhow::Result<u64> {
        let key = self.put.key(number);
        let begin = self.validator.as_ref().map(|validator| validator.begin_read(&key));
        let request = pb::RangeRequest { key: key.clone(), serializable: self.serializable, ..Default::default() };
        let answer = self.kv.range(request).await?.into_inner();
        if let (Some(validator), Some(begin)) = (&self.validator, begin) {
            validator.end_read(begin, &key, &answer);
        }
        Ok(bytes_of(&answer.kvs))
    }
}

fn bytes_of(kvs: &[tailwater_api::mvccpb::KeyValue]) -> u64 {
    kvs.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum()
}

/// How a prefix is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// One response.
    Unary,
    /// Pages at the revision of the first.
    Paged,
    /// RangeStream of etcd 3.7.
    Stream,
    /// Keys without values.
    KeysOnly,
    /// Only how many.
    CountOnly,
}

/// Lists of a prefix.
#[derive(Args, Clone, Debug)]
pub(super) struct List {
    /// How.
    #[arg(long, value_enum, default_value_t = How::Unary)]
    how: How,
    /// Keys of the prefix.
    #[arg(long, default_value_t = 10_000)]
    key_space: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 1024)]
    val_size: usize,
    /// Keys of a page.
    #[arg(long, default_value_t = 500)]
    page: i64,
    /// From what the endpoint has, without asking the leader.
    #[arg(long)]
    serializable: bool,
    /// Keys are there already.
    #[arg(long)]
    no_load: bool,
}

impl List {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        let channels = common.channels().await?;
        let put = Put {
            val_size: self.val_size,
            key_space: self.key_space,
            prefix: "/registry/pods/default/pod-".to_owned(),
            sequential: true,
        };
        if !self.no_load {
            load(&channels, &put).await?;
        }
        let clients =
            (0..common.clients).map(|at| Lister { kv: kv(&channels[at % channels.len()]), list: self.clone() });
        let clients = clients.collect();
        Ok(Report::new("list", "lists", measured(common, "lists", clients).await?))
    }
}

struct Lister {
    kv: Kv,
    list: List,
}

const LISTED: &[u8] = b"/registry/pods/";
const LISTED_END: &[u8] = b"/registry/pods0";

impl Lister {
    fn asked(&self) -> pb::RangeRequest {
        pb::RangeRequest {
            key: Bytes::from_static(LISTED),
            range_end: Bytes::from_static(LISTED_END),
            serializable: self.list.serializable,
            keys_only: self.list.how == How::KeysOnly,
            count_only: self.list.how == How::CountOnly,
            ..Default::default()
        }
    }

    /// Keys and bytes of one list.
    async fn list(&mut self) -> anyhow::Result<(u64, u64)> {
        let mut request = self.asked();
        match self.list.how {
            How::Unary | How::KeysOnly | How::CountOnly => {
                let answer = self.kv.range(request).await?.into_inner();
                Ok((u64::try_from(answer.count)?, bytes_of(&answer.kvs)))
            }
            How::Stream => {
                let mut chunks = self.kv.range_stream(request).await?.into_inner();
                let (mut keys, mut bytes) = (0, 0);
                while let Some(chunk) = chunks.message().await? {
                    let part = chunk.range_response.context("a chunk brings a part of the answer")?;
                    keys += part.kvs.len() as u64;
                    bytes += bytes_of(&part.kvs);
                }
                Ok((keys, bytes))
            }
            How::Paged => {
                request.limit = self.list.page;
                let (mut keys, mut bytes) = (0, 0);
                loop {
                    let answer = self.kv.range(request.clone()).await?.into_inner();
                    keys += answer.kvs.len() as u64;
                    bytes += bytes_of(&answer.kvs);
                    let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return Ok((keys, bytes)) };
                    request.key = [&last.key[..], &[0]].concat().into();
                    if request.revision == 0 {
                        request.revision = answer.header.context("an answer has a header")?.revision;
                    }
                }
            }
        }
    }
}

impl Client for Lister {
    async fn request(&mut self, _: u64) -> anyhow::Result<u64> {
        let (keys, bytes) = self.list().await?;
        anyhow::ensure!(keys >= self.list.key_space, "a list must be whole: {keys} of {}", self.list.key_space);
        Ok(bytes)
    }
}
