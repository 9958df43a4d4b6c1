//! `/ui`: the cluster on one page, and `/ui/events`, the server-sent events that the page is drawn from.
//!
//! One task asks the nodes once a second for all who look, and only while somebody does. Viewers are few and get what
//! is shared between them: at most [`STREAMS_MAX`] streams, each with at most [`FRAMES_WAITING_MAX`] frames on their way; who
//! takes no more is let go and may come again.
//!
//! *What is shown*: what metrics tell, and how the cluster is put together. Keys, prefixes and clients' addresses are shown
//! only on the client port, and there only while everybody who reaches it may read every key: see [`Viewer::may_see_keys`].

use std::cell::LazyCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use self::frame::Frame;
use crate::survey::Survey;

mod frame;

/// The page, and what it is drawn from.
pub(crate) const PAGE: &str = "/ui";
pub(crate) const EVENTS: &str = "/ui/events";

/// Pages that are open at a time.
const STREAMS_MAX: usize = 16;
/// Frames that may wait for a viewer: some seconds of a slow link.
const FRAMES_WAITING_MAX: usize = 4;
/// Between two frames.
const PERIOD: Duration = Duration::from_secs(1);
/// A browser that was cut off comes again after this many milliseconds.
const RETRY: &str = "retry: 1000\n\n";

/// A survey under way.
pub(crate) type Surveying = Pin<Box<dyn Future<Output = Survey> + Send>>;

/// Serves the page; clones share its viewers.
#[derive(Clone)]
pub(crate) struct Ui {
    shared: Arc<Shared>,
}

struct Shared {
    /// Of this node.
    name: String,
    survey: Box<dyn Fn() -> Surveying + Send + Sync>,
    /// Whether everybody who reaches the client port may read every key now.
    is_open: Box<dyn Fn() -> bool + Send + Sync>,
    runtime: Handle,
    period: Duration,
    begun: Instant,
    viewers: Mutex<Viewers>,
}

#[derive(Default)]
struct Viewers {
    open: Vec<Viewer>,
    /// There while somebody looks.
    sampler: Option<JoinHandle<()>>,
}

/// An open page.
struct Viewer {
    peer: Option<SocketAddr>,
    /// It asked on the client port, by a name that this server goes by.
    may_see_keys: bool,
    frames: mpsc::Sender<Bytes>,
}

impl Ui {
    /// Surveys with `survey` on `runtime`; see [`Viewer::may_see_keys`] for `is_open`.
    pub(crate) fn new(
        name: String,
        survey: impl Fn() -> Surveying + Send + Sync + 'static,
        is_open: impl Fn() -> bool + Send + Sync + 'static,
        runtime: Handle,
    ) -> Self {
        Self::with_period(name, survey, is_open, runtime, PERIOD)
    }

    fn with_period(
        name: String,
        survey: impl Fn() -> Surveying + Send + Sync + 'static,
        is_open: impl Fn() -> bool + Send + Sync + 'static,
        runtime: Handle,
        period: Duration,
    ) -> Self {
        let (survey, is_open) = (Box::new(survey), Box::new(is_open));
        let (begun, viewers) = (Instant::now(), Mutex::default());
        Self { shared: Arc::new(Shared { name, survey, is_open, runtime, period, begun, viewers }) }
    }

    /// Answers a GET of one of the two paths.
    pub(crate) fn serve(&self, request: &Request<Body>, may_see_keys: bool) -> Option<Response<Body>> {
        match request.uri().path() {
            PAGE => Some(page()),
            EVENTS => Some(self.events(request.extensions().get().copied(), may_see_keys)),
            _ => None,
        }
    }

    /// Ends the streams of a connection, so that it can close.
    pub(crate) fn end_streams_of(&self, peer: SocketAddr) {
        self.shared.viewers.lock().open.retain(|viewer| viewer.peer != Some(peer));
    }

    fn events(&self, peer: Option<SocketAddr>, may_see_keys: bool) -> Response<Body> {
        let Some(frames) = self.enter(peer, may_see_keys) else {
            let mut response = Response::new(Body::from(format!("{STREAMS_MAX} pages are open already\n")));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            set(&mut response, header::RETRY_AFTER, "5");
            set(&mut response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
            return response;
        };
        let stream = ReceiverStream::new(frames).map(Ok::<_, std::convert::Infallible>);
        let mut response = Response::new(Body::from_stream(stream));
        set(&mut response, header::CONTENT_TYPE, "text/event-stream");
        set(&mut response, header::CACHE_CONTROL, "no-store");
        set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        // Proxies that would gather what they pass on.
        set(&mut response, HeaderName::from_static("x-accel-buffering"), "no");
        response
    }

    /// Another viewer, unless there are too many.
    fn enter(&self, peer: Option<SocketAddr>, may_see_keys: bool) -> Option<mpsc::Receiver<Bytes>> {
        let mut viewers = self.shared.viewers.lock();
        viewers.open.retain(|viewer| !viewer.frames.is_closed());
        if viewers.open.len() >= STREAMS_MAX {
            return None;
        }
        let (frames, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
        frames.try_send(Bytes::from_static(RETRY.as_bytes())).expect("an empty channel has room");
        viewers.open.push(Viewer { peer, may_see_keys, frames });
        // One that has failed is replaced.
        if viewers.sampler.as_ref().is_none_or(JoinHandle::is_finished) {
            viewers.sampler = Some(self.shared.runtime.spawn(sample(self.shared.clone())));
        }
        Some(receiver)
    }
}

/// Surveys and shows what was found, until nobody looks any more.
async fn sample(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(shared.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !shared.is_watched() {
            return;
        }
        let survey = (shared.survey)().await;
        shared.show(&survey);
    }
}

impl Shared {
    /// Whether anybody looks. If not, whoever comes next starts a sampler anew.
    fn is_watched(&self) -> bool {
        let mut viewers = self.viewers.lock();
        viewers.open.retain(|viewer| !viewer.frames.is_closed());
        if viewers.open.is_empty() {
            viewers.sampler = None;
        }
        !viewers.open.is_empty()
    }

    fn show(&self, survey: &Survey) {
        let is_open = (self.is_open)();
        let encode = |with_keys| Frame::new(survey, &self.name, self.begun.elapsed(), with_keys).encode();
        let (plain, with_keys) = (LazyCell::new(|| encode(false)), LazyCell::new(|| encode(true)));
        let mut viewers = self.viewers.lock();
        viewers.open.retain(|viewer| {
            let frame: &Bytes = if viewer.may_see_keys && is_open { &with_keys } else { &plain };
            // Full: it is too slow. Closed: it is gone.
            viewer.frames.try_send(frame.clone()).is_ok()
        });
    }
}

/// The page with its style and its program, and the policy that lets a browser run these and nothing else.
struct Page {
    html: Bytes,
    policy: HeaderValue,
}

static THE_PAGE: LazyLock<Page> = LazyLock::new(|| {
    let (style, program) = (include_str!("ui/page.css"), include_str!("ui/page.js"));
    let html = include_str!("ui/page.html").replace("/* page.css */", style).replace("/* page.js */", program);
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(program),
        hash(style)
    );
    Page { html: html.into(), policy: HeaderValue::try_from(policy).expect("ASCII") }
});

fn page() -> Response<Body> {
    let mut response = Response::new(Body::from(THE_PAGE.html.clone()));
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, THE_PAGE.policy.clone());
    set(&mut response, header::CONTENT_TYPE, "text/html; charset=utf-8");
    // Small, and of the version that runs now.
    set(&mut response, header::CACHE_CONTROL, "no-store");
    set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut response, header::REFERRER_POLICY, "no-referrer");
    response
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests;
