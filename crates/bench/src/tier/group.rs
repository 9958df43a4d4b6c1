//! Members, and fanouts behind them.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context;
use tokio::process::{Child, Command};

use super::Common;
use crate::server::{Program, Running, Usage, field, free_port, usage_of, wait_until_it_answers};

/// Of fanouts where they share a CPU with the generator: so many of their threads may be busy that at priorities nearer to
/// its own it would be late itself.
const FANOUT_NICE: u32 = 15;

/// A fanout process.
pub(crate) struct Fanout {
    /// Where clients reach it.
    pub(crate) endpoint: String,
    /// Where fanouts below it reach it.
    pub(crate) peer: String,
    child: Child,
}

impl Fanout {
    /// Starts a fanout behind `upstream` and waits until it answers.
    pub(crate) async fn start(
        program: &Program,
        upstream: &[String],
        pin: bool,
        arguments: &[String],
    ) -> anyhow::Result<Self> {
        let url = || Ok::<_, anyhow::Error>(format!("http://127.0.0.1:{}", free_port()?));
        let (endpoint, peer) = (url()?, url()?);
        let mut command = nice(&program.path, pin, FANOUT_NICE);
        command
            .args(["serve", "--roles=fanout,gateway", "--log-level", "error", "--name", &format!("f{endpoint}")])
            .arg(format!("--upstream={}", upstream.join(",")))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        wait_until_it_answers(program, &endpoint).await?;
        Ok(Self { endpoint, peer, child })
    }

    /// What it has used.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        usage_of(&self.child)
    }

    /// Resident memory now, bytes.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        resident_bytes(self.child.id().context("the fanout has ended")?)
    }
}

/// Resident memory of a process now, bytes.
pub(crate) fn resident_bytes(process: u32) -> anyhow::Result<u64> {
    Ok(field(&format!("/proc/{process}/status"), "VmRSS:")? * 1024)
}

/// `program` on CPU 1 and nicer than this process, when pinned.
pub(crate) fn nice(program: &Path, pin: bool, by: u32) -> Command {
    if !pin {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", "1", "nice", "-n", &by.to_string()]).arg(program);
    command
}

/// Members and fanouts of one server.
pub(crate) struct Group {
    pub(crate) members: Running,
    pub(crate) fanouts: Vec<Fanout>,
}

impl Group {
    /// Starts what `common` asks for; `arguments` go to tailwater's processes, members and fanouts.
    pub(crate) async fn start(common: &Common, program: &Program, arguments: &[String]) -> anyhow::Result<Self> {
        let is_ours = program.name == "tailwater";
        let own: &[String] = if is_ours { arguments } else { &[] };
        let members = Running::start_group(program, common.members, &common.data(), common.pin, own).await?;
        let mut fanouts = Vec::new();
        // A follower first: the leader has enough to do.
        let mut upstream = members.peers.clone();
        upstream.rotate_left(1);
        for _ in 0..if is_ours { common.fanouts } else { 0 } {
            fanouts.push(Fanout::start(program, &upstream, common.pin, arguments).await?);
        }
        Ok(Self { members, fanouts })
    }

    /// Where readers connect: fanouts where there are some, else members.
    pub(crate) fn readers(&self) -> Vec<String> {
        if self.fanouts.is_empty() {
            return self.members.endpoints.clone();
        }
        self.fanouts.iter().map(|fanout| fanout.endpoint.clone()).collect()
    }

    /// See [`Running::settle`].
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        self.members.settle().await
    }

    /// CPU seconds of all members, and of all fanouts.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<(f64, f64)> {
        let mut fanouts = 0.0;
        for fanout in &self.fanouts {
            fanouts += fanout.usage()?.cpu_seconds;
        }
        Ok((self.members.usage()?.cpu_seconds, fanouts))
    }

    /// Resident memory of the fanout at this endpoint, or of the leader where it is no fanout's; and of what its sockets
    /// hold to send.
    pub(crate) fn bytes_of(&self, endpoint: &str) -> anyhow::Result<u64> {
        let bytes = match self.fanouts.iter().find(|fanout| fanout.endpoint == endpoint) {
            Some(fanout) => fanout.resident_bytes()?,
            None => self.members.memory_bytes()?,
        };
        Ok(bytes + socket_bytes(&[endpoint.to_owned()])?)
    }

    /// Resident memory of all fanouts, or of the leader where there are none; and of what their sockets hold to send.
    pub(crate) fn reader_bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for fanout in &self.fanouts {
            bytes += fanout.resident_bytes()?;
        }
        if self.fanouts.is_empty() {
            bytes = self.members.memory_bytes()?;
        }
        Ok(bytes + socket_bytes(&self.readers())?)
    }

    /// Ends all; their data goes with them.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        for fanout in &mut self.fanouts {
            fanout.child.kill().await?;
        }
        self.members.stop().await
    }
}

/// What the kernel holds for the server's ends of the connections to `endpoints`: allocated buffers, overhead included,
/// as `ss` tells it; the plain bytes in the queues of /proc where there is no `ss`.
fn socket_bytes(endpoints: &[String]) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for endpoint in endpoints {
        let port = endpoint.rsplit(':').next().context("a URL has a port")?;
        let filter = format!("sport = :{port}");
        match std::process::Command::new("ss").args(["-tmnH", &filter]).output() {
            Ok(output) if output.status.success() => bytes += memory_of(&String::from_utf8_lossy(&output.stdout)),
            Ok(_) | Err(_) => bytes += queued_in_proc(port.parse()?)?,
        }
    }
    Ok(bytes)
}

/// Of `skmem:(r0,rb…,t0,tb…,f0,w0,o0,bl0,d0)`: what is allocated for receiving (r), sending (t, w: the greater) and ahead (f).
fn memory_of(listing: &str) -> u64 {
    let figure = |fields: &str, name: &str| -> u64 {
        let of = |field: &str| field.strip_prefix(name)?.parse().ok();
        fields.split(',').find_map(of).unwrap_or_default()
    };
    let sockets = listing.split("skmem:(").skip(1).filter_map(|rest| rest.split(')').next());
    sockets.map(|fields| figure(fields, "r") + figure(fields, "t").max(figure(fields, "w")) + figure(fields, "f")).sum()
}

fn queued_in_proc(port: u16) -> anyhow::Result<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let mut bytes = 0;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = fields.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")));
        if let (true, Some((send, receive))) = (is_ours, fields.get(4).and_then(|queues| queues.split_once(':'))) {
            bytes += u64::from_str_radix(send, 16)? + u64::from_str_radix(receive, 16)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_counted_from_what_ss_prints() {
        let listing = "ESTAB 0 0 127.0.0.1:1 127.0.0.1:2\n\t skmem:(r100,rb131072,t20,tb2626560,f3000,w50,o0,bl0,d0)\nESTAB 0 0 127.0.0.1:1 127.0.0.1:3\n\t skmem:(r0,rb1,t7,tb1,f0,w5,o0,bl0,d4)\n";
        assert_eq!(memory_of(listing), 100 + 50 + 3000 + 7);
    }
}
