use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt as _;

use super::*;
use crate::status::{Load, Node, Range, Slow};
use crate::survey::Surveyed;

const FAST: Duration = Duration::from_millis(20);
/// Far beyond what anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster of one node whose watchers have something to hide.
fn survey() -> Survey {
    let slow = Slow {
        peer: "10.9.9.9:7".into(),
        range: Range { start: "/secret/key".into(), end: String::new() },
        backlog_revisions: 3,
        held_bytes: 4,
    };
    let prefixes = vec![crate::status::Prefix { prefix: "/secret/".into(), watchers: 5 }];
    let load = Load { watchers: 5, slowest: vec![slow], prefixes, ..Default::default() };
    let ranges = vec![Range { start: "/secret/".into(), end: "/secret0".into() }];
    let node = Node { id: "ab".into(), name: "one".into(), load, ranges, is_partial: true, ..Default::default() };
    Survey { nodes: vec![Surveyed { node, answered: true, ..Default::default() }], ..Default::default() }
}

/// A page whose surveys are counted.
fn ui(is_open: bool) -> (Ui, Arc<AtomicUsize>) {
    let surveys = Arc::new(AtomicUsize::new(0));
    let counted = surveys.clone();
    let surveying = move || -> Surveying {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { survey() })
    };
    (Ui::with_period("here".into(), surveying, move || is_open, Handle::current(), FAST), surveys)
}

fn ask(ui: &Ui, path: &str, may_see_keys: bool) -> Response<Body> {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    ui.serve(&request, may_see_keys).expect("a path of the page")
}

/// What a viewer is told next; `None`: its stream has ended.
async fn next(response: &mut Response<Body>) -> Option<String> {
    let frame = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await.expect("something comes");
    let bytes = frame?.expect("it does not fail").into_data().expect("data");
    Some(String::from_utf8(bytes.into()).expect("text"))
}

/// The first frame, behind what says when to come again.
async fn first_frame(response: &mut Response<Body>) -> String {
    assert_eq!(next(response).await.as_deref(), Some(RETRY));
    next(response).await.expect("a frame")
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(FAST / 4).await;
    }
}

#[tokio::test]
async fn the_page_is_small_whole_and_runs_nothing_but_its_own() {
    let (ui, surveys) = ui(true);
    let response = ask(&ui, PAGE, true);
    let header = |name: HeaderName| response.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(header(header::CONTENT_TYPE), "text/html; charset=utf-8");
    assert_eq!(header(header::CACHE_CONTROL), "no-store");
    assert_eq!(header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    let policy = header(header::CONTENT_SECURITY_POLICY);
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    let html = response.into_body().collect().await.expect("a body").to_bytes();
    let html = std::str::from_utf8(&html).expect("text");
    assert!(html.len() < 40_000, "{} bytes", html.len());
    // What the policy names is what stands between the tags.
    for tag in ["script", "style"] {
        let inside = html.split(&format!("<{tag}>")).nth(1).expect("it is there once");
        let inside = inside.split(&format!("</{tag}>")).next().expect("it ends");
        assert!(inside.len() > 1000 && policy.contains(&STANDARD.encode(Sha256::digest(inside))), "{tag}");
    }
    // Nothing is fetched from elsewhere: the one address names the drawing's language.
    assert_eq!(html.matches("://").count(), 1);
    assert!(html.contains("xmlns='http://www.w3.org/2000/svg'"));
    assert!(!html.contains("innerHTML") && !html.contains(" style=") && !html.contains(" onclick="));
    assert_eq!(surveys.load(Ordering::SeqCst), 0, "the page alone asks nobody");
}

#[tokio::test]
async fn frames_are_events_of_one_line_of_json() {
    let (ui, _) = ui(true);
    let mut response = ask(&ui, EVENTS, true);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    let event = first_frame(&mut response).await;
    let json = event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("one event");
    assert!(!json.contains('\n'));
    let frame: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!((&frame["served_by"], &frame["nodes"][0]["name"]), (&"here".into(), &"one".into()));
    assert_eq!(frame["prefixes"][0], serde_json::json!({ "prefix": "/secret/", "watchers": 5 }));
    assert_eq!(frame["slowest"][0]["range"], "/secret/key");
}

#[tokio::test]
async fn keys_and_clients_are_shown_only_where_they_can_be_read_anyway() {
    for (is_open, may_see_keys) in [(false, false), (false, true), (true, false), (true, true)] {
        let (ui, _) = ui(is_open);
        let event = first_frame(&mut ask(&ui, EVENTS, may_see_keys)).await;
        let is_shown = event.contains("secret") || event.contains("10.9.9.9");
        assert_eq!(is_shown, is_open && may_see_keys, "{event}");
        assert!(event.contains("\"watchers\":5") && event.contains("\"backlog_revisions\":3"), "{event}");
    }
}

#[tokio::test]
async fn one_sampler_serves_all_and_ends_with_the_last() {
    let (ui, surveys) = ui(true);
    let mut viewers: Vec<_> = (0..STREAMS_MAX).map(|_| ask(&ui, EVENTS, true)).collect();
    for viewer in &mut viewers {
        first_frame(viewer).await;
    }
    let (begun, before) = (Instant::now(), surveys.load(Ordering::SeqCst));
    for _ in 0..10 {
        for viewer in &mut viewers {
            next(viewer).await.expect("a frame");
        }
    }
    // As many as periods have passed, not as many as there are viewers.
    let most = begun.elapsed().as_millis() / FAST.as_millis() + 2;
    let made = surveys.load(Ordering::SeqCst) - before;
    assert!((1..=most).contains(&(made as u128)), "{made} surveys where {most} were due");
    assert!(ui.shared.viewers.lock().sampler.is_some());
    drop(viewers);
    eventually("nobody is asked any more", || ui.shared.viewers.lock().sampler.is_none()).await;
    let at_rest = surveys.load(Ordering::SeqCst);
    tokio::time::sleep(FAST * 5).await;
    assert_eq!(surveys.load(Ordering::SeqCst), at_rest);
    // It begins again with the next.
    first_frame(&mut ask(&ui, EVENTS, true)).await;
    assert!(surveys.load(Ordering::SeqCst) > at_rest);
}

#[tokio::test]
async fn viewers_are_bounded_and_make_room_when_they_leave() {
    let (ui, _) = ui(true);
    // Read by nobody, but only for a moment.
    let mut viewers: Vec<_> = (0..STREAMS_MAX).map(|_| ask(&ui, EVENTS, true)).collect();
    let refused = ask(&ui, EVENTS, true);
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "5");
    assert_eq!(ask(&ui, PAGE, true).status(), 200);
    viewers.pop();
    assert_eq!(ask(&ui, EVENTS, true).status(), 200);
}

#[tokio::test]
async fn who_does_not_read_is_let_go() {
    let (ui, _) = ui(true);
    let mut slow = ask(&ui, EVENTS, true);
    let mut quick = ask(&ui, EVENTS, true);
    first_frame(&mut quick).await;
    for _ in 0..=FRAMES_WAITING_MAX {
        next(&mut quick).await.expect("it reads, so it stays");
    }
    assert_eq!(ui.shared.viewers.lock().open.len(), 1);
    // What waits is a few frames, and then the end.
    let mut waiting = 0;
    while next(&mut slow).await.is_some() {
        waiting += 1;
    }
    assert!(waiting <= FRAMES_WAITING_MAX, "{waiting} frames were kept for it");
}

#[tokio::test]
async fn a_connection_that_is_to_close_takes_its_streams_along() {
    let (ui, _) = ui(true);
    let peers: [SocketAddr; 2] = [([127, 0, 0, 1], 7).into(), ([127, 0, 0, 1], 8).into()];
    let [mut one, mut other] = peers.map(|peer| {
        let request = Request::get(EVENTS).extension(peer).body(Body::empty()).expect("a request");
        ui.serve(&request, true).expect("a path of the page")
    });
    first_frame(&mut one).await;
    first_frame(&mut other).await;
    ui.end_streams_of(peers[0]);
    while next(&mut one).await.is_some() {}
    next(&mut other).await.expect("another connection goes on");
}
