//! Raft messages between members.
//!
//! Per peer there are two lanes, each a connection of its own with one stream: appends, and everything else. A lane
//! holds a bounded number of bytes, counted from the moment a message is given until the other side has acknowledged
//! it, so that socket and HTTP/2 buffers are inside the bound. HTTP/2 windows pace what is sent; acknowledgements do
//! the counting, measure the round trip, and find a peer that holds its connection and takes nothing.

pub(crate) mod lane;
mod link;
mod service;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tailwater_api::peer::Hello;
use tailwater_consensus::{Consensus, PeerTransport};
use tailwater_eventlog::{Member, MemberId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::Status;

use self::link::Link;
pub use self::service::PeerService;
use crate::{Directory, Greeter, LinkConfig};

/// Refusals that are remembered, so that each is logged once.
const REFUSALS_MAX: usize = 64;
/// Links to senders that are no members as far as this one knows.
const STRANGERS_MAX: usize = 16;
/// How often it is looked whether such a link is to a member that was removed.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// Where raft messages go, and who is told of lost ones.
pub trait PeerSink: Send + Sync {
    /// A message of another member. Must not block.
    fn receive(&self, message: &[u8]);

    /// A message to this member was lost.
    fn report_unreachable(&self, member: MemberId);

    /// Whether a member has left the group for good.
    fn is_removed(&self, member: MemberId) -> bool;

    /// Another member says that this one was removed.
    fn report_removed(&self);
}

impl PeerSink for Consensus {
    fn receive(&self, message: &[u8]) {
        Self::receive(self, message);
    }

    fn report_unreachable(&self, member: MemberId) {
        Self::report_unreachable(self, member);
    }

    fn is_removed(&self, member: MemberId) -> bool {
        Self::is_removed(self, member)
    }

    fn report_removed(&self) {
        Self::report_removed(self);
    }
}

/// How members reach each other.
#[derive(Clone, Debug)]
pub struct PeersConfig {
    /// This member.
    pub member_id: MemberId,
    /// Connections.
    pub link: LinkConfig,
    /// Bytes of appends that may wait for one peer or be on their way to it. Default 128 MiB: what raft keeps in
    /// flight to a peer, twice.
    pub append_bytes_max: usize,
    /// The same for everything else. Default 4 MiB.
    pub urgent_bytes_max: usize,
    /// Messages that leave together, in bytes; a larger one leaves alone. Default 1 MiB.
    pub batch_bytes_max: usize,
    /// A larger message can't be sent or received: above what one raft entry may hold, a batch of commands or the largest
    /// request. Default 256 MiB.
    pub message_bytes_max: usize,
    /// A peer that owes acknowledgements and gives none for this long is cut off, whatever its connection does. Default
    /// 20 s.
    pub ack_timeout: Duration,
}

impl PeersConfig {
    /// With the defaults.
    #[must_use]
    pub fn new(member_id: MemberId) -> Self {
        Self {
            member_id,
            link: LinkConfig::default(),
            append_bytes_max: 128 << 20,
            urgent_bytes_max: 4 << 20,
            batch_bytes_max: 1 << 20,
            message_bytes_max: 256 << 20,
            ack_timeout: Duration::from_secs(20),
        }
    }
}

/// The other members, as raft reaches them; clones share it.
///
/// It is made before the replica, which sends through it, and is told of the replica afterwards by [`Peers::attach`].
/// As each holds the other, [`Peers::stop`] is what lets go.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
    links: Arc<RwLock<Links>>,
}

#[derive(Default)]
struct Links {
    by_id: HashMap<MemberId, Link>,
    /// Looks after links to senders that are no members.
    sweeper: Option<AbortHandle>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.sweeper.iter().for_each(AbortHandle::abort);
    }
}

/// What links and streams share.
pub(crate) struct Inner {
    config: PeersConfig,
    greeter: Greeter,
    handle: Handle,
    sink: RwLock<Option<Arc<dyn PeerSink>>>,
    stopping: watch::Sender<bool>,
    /// Refusals that were logged: who, and why.
    refusals: Mutex<Vec<(u64, String)>>,
}

impl Peers {
    /// Nobody is known yet, and what comes in is dropped. Links run on `handle`.
    #[must_use]
    pub fn new(config: PeersConfig, directory: Arc<Directory>, handle: Handle) -> Self {
        let inner = Inner {
            greeter: Greeter::new(config.member_id, directory),
            config,
            handle,
            sink: RwLock::default(),
            stopping: watch::channel(false).0,
            refusals: Mutex::default(),
        };
        Self { inner: Arc::new(inner), links: Arc::default() }
    }

    /// From now on messages reach this replica.
    pub fn attach(&self, sink: Arc<dyn PeerSink>) {
        *self.inner.sink.write() = Some(sink);
    }

    /// Ends all links and streams, and lets go of the replica.
    pub fn stop(&self) {
        self.inner.stopping.send_replace(true);
        *self.links.write() = Links::default();
        self.inner.sink.write().take();
    }

    /// What is served to the other members.
    #[must_use]
    pub fn service(&self) -> PeerService {
        PeerService::new(self.clone())
    }

    /// Who the members are.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        self.inner.greeter.directory()
    }

    /// How this member greets, for other protocols on the peer URLs.
    #[must_use]
    pub fn greeter(&self) -> &Greeter {
        &self.inner.greeter
    }

    /// Members to which a link is up now.
    #[must_use]
    pub fn active(&self) -> Vec<MemberId> {
        let mut active: Vec<_> =
            self.links.read().by_id.iter().filter(|(_, link)| link.is_active()).map(|(id, _)| *id).collect();
        active.sort_unstable();
        active
    }

    /// A sender says where it is reached. That serves while this member does not know it, or knows an old place.
    fn heard_of(&self, member: MemberId, urls: &[String]) {
        let mut links = self.links.write();
        if [MemberId(0), self.inner.config.member_id].contains(&member)
            || urls.is_empty()
            || *self.inner.stopping.borrow()
        {
            return;
        }
        if let Some(link) = links.by_id.get(&member) {
            link.heard_urls(urls);
            return;
        }
        let members = self.directory().members();
        if links.by_id.keys().filter(|id| is_stranger(**id, &members)).count() < STRANGERS_MAX {
            tracing::info!(%member, ?urls, "heard from a member that is not known here yet");
            let link = Link::start(self.inner.clone(), member, Vec::new());
            link.heard_urls(urls);
            links.by_id.insert(member, link);
            self.start_sweeping(&mut links);
        }
    }

    /// Ends links to members once it is known that they were removed; ends itself when only members are left.
    fn start_sweeping(&self, links: &mut Links) {
        if links.sweeper.as_ref().is_some_and(|sweeper| !sweeper.is_finished()) {
            return;
        }
        let (inner, links_again) = (self.inner.clone(), Arc::downgrade(&self.links));
        let sweeping = async move {
            loop {
                tokio::time::sleep(SWEEP_PERIOD).await;
                let Some(links) = links_again.upgrade() else { return };
                let members = inner.greeter.directory().members();
                let mut links = links.write();
                links.by_id.retain(|id, _| !inner.is_removed(*id));
                if links.by_id.keys().all(|id| !is_stranger(*id, &members)) {
                    links.sweeper = None;
                    return;
                }
            }
        };
        links.sweeper = Some(self.inner.handle.spawn(sweeping).abort_handle());
    }

    #[cfg(test)]
    fn held_bytes(&self, to: MemberId) -> usize {
        self.links.read().by_id.get(&to).map_or(0, Link::held_bytes)
    }
}

impl PeerTransport for Peers {
    fn send(&self, to: MemberId, message: Bytes) {
        if let Some(link) = self.links.read().by_id.get(&to) {
            link.send(message);
        }
    }

    fn connected_for(&self, to: MemberId) -> Option<Duration> {
        self.links.read().by_id.get(&to).and_then(Link::active_for)
    }

    fn set_members(&self, members: &[Member]) {
        self.inner.greeter.directory().set_members(members);
        let mut links = self.links.write();
        if *self.inner.stopping.borrow() {
            return;
        }
        let this = self.inner.config.member_id;
        for member in members.iter().filter(|member| member.id != this) {
            let urls = &member.peer_urls;
            if links.by_id.get(&member.id).is_none_or(|link| link.urls() != urls) {
                // The old one first, since both show the same metrics.
                links.by_id.remove(&member.id);
                links.by_id.insert(member.id, Link::start(self.inner.clone(), member.id, urls.clone()));
            }
        }
        // Who is missing was removed, or is yet to be added where this member stands in the log.
        links.by_id.retain(|id, _| !self.inner.is_removed(*id));
        if links.by_id.keys().any(|id| is_stranger(*id, members)) {
            self.start_sweeping(&mut links);
        }
    }
}

fn is_stranger(id: MemberId, members: &[Member]) -> bool {
    members.iter().all(|member| member.id != id)
}

impl Inner {
    /// The replica, once it is there.
    fn sink(&self) -> Option<Arc<dyn PeerSink>> {
        self.sink.read().clone()
    }

    fn report_unreachable(&self, member: MemberId) {
        if let Some(sink) = self.sink() {
            sink.report_unreachable(member);
        }
    }

    /// Whether a member was removed for good. That it is not among the members says nothing: this one may be behind.
    fn is_removed(&self, member: MemberId) -> bool {
        self.sink().is_some_and(|sink| sink.is_removed(member))
    }

    /// Whether a sender may still speak.
    fn check_removed(&self, from: MemberId) -> Result<(), Status> {
        if self.is_removed(from) { Err(self.greeter.refuse_removed()) } else { Ok(()) }
    }

    /// Once per sender and reason: a refused sender tries again and again.
    fn log_refusal(&self, hello: Option<&Hello>, remote: Option<SocketAddr>, refusal: &Status) {
        let from = hello.map_or(0, |hello| hello.from);
        let key = (from, refusal.message().to_owned());
        let mut refusals = self.refusals.lock();
        if refusals.contains(&key) || refusals.len() >= REFUSALS_MAX {
            return;
        }
        let (remote, from) = (remote.map(|remote| remote.to_string()), MemberId(from));
        let cluster_id = hello.map_or(0, |hello| hello.cluster_id);
        let reason = refusal.message();
        tracing::error!(%from, remote, cluster_id = format!("{cluster_id:x}"), reason, "refused a peer");
        refusals.push(key);
    }
}

/// An id as etcd's labels show it.
fn hex(id: MemberId) -> String {
    format!("{:x}", id.0)
}
