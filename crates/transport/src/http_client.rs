//! Plain HTTP questions to other nodes; among them `/members` of a peer URL: how it looks, and how a node that is about
//! to join asks for it.

use std::time::Duration;

use crate::LinkConfig;
use crate::endpoint::{dial_host, tls_for};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tailwater_eventlog::{Member, MemberId};
use tailwater_tls::Protocol;

/// Names the group in the answer to `/members`, as etcd does.
pub(crate) const CLUSTER_ID_HEADER: &str = "x-etcd-cluster-id";
/// A longer answer is refused.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A member as etcd's peer URLs show it.
#[derive(Serialize, Deserialize)]
pub(crate) struct MemberView {
    id: u64,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "is_false")]
    is_learner: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    client_urls: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl From<Member> for MemberView {
    fn from(member: Member) -> Self {
        let Member { id, name, peer_urls, client_urls, is_learner } = member;
        Self { id: id.0, peer_urls, is_learner, name, client_urls }
    }
}

impl From<MemberView> for Member {
    fn from(view: MemberView) -> Self {
        let MemberView { id, peer_urls, is_learner, name, client_urls } = view;
        Self { id: MemberId(id), name, peer_urls, client_urls, is_learner }
    }
}

/// What a member told of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberList {
    /// The group.
    pub cluster_id: u64,
    /// By id.
    pub members: Vec<Member>,
}

/// A member's list could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL can't be used.
    #[error("{0}: not an http: or https: URL with host and port")]
    Url(String),
    /// Nobody answers there, or not in time.
    #[error("{url}: {reason}")]
    Unreachable {
        /// As given.
        url: String,
        /// What the attempt ended with.
        reason: String,
    },
    /// The answer is not what was asked for.
    #[error("{url}: not the answer of a member: {reason}")]
    Answer {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Asks a member, by its peer URL, for the members of its group. What etcd's members answer is read too.
///
/// # Errors
/// See [`FetchError`].
pub async fn fetch_members(url: &str, timeout: Duration, link: &LinkConfig) -> Result<MemberList, FetchError> {
    let (headers, body) = fetch_within(url, "/members", timeout, link).await?;
    let answer = |reason: String| FetchError::Answer { url: url.to_owned(), reason };
    let cluster_id = headers.get(CLUSTER_ID_HEADER).and_then(|value| value.to_str().ok());
    let cluster_id = cluster_id.and_then(|text| u64::from_str_radix(text, 16).ok());
    let cluster_id = cluster_id.ok_or_else(|| answer("it names no cluster".into()))?;
    let members: Vec<MemberView> = serde_json::from_slice(&body).map_err(|error| answer(error.to_string()))?;
    Ok(MemberList { cluster_id, members: members.into_iter().map(Member::from).collect() })
}

/// What a node serves at `path`, as text.
///
/// # Errors
/// See [`FetchError`].
pub async fn fetch_text(url: &str, path: &str, timeout: Duration, link: &LinkConfig) -> Result<String, FetchError> {
    let (_, body) = fetch_within(url, path, timeout, link).await?;
    let answer = |reason: String| FetchError::Answer { url: url.to_owned(), reason };
    String::from_utf8(body.into()).map_err(|error| answer(error.to_string()))
}

async fn fetch_within(
    url: &str,
    path: &str,
    timeout: Duration,
    link: &LinkConfig,
) -> Result<(HeaderMap, Bytes), FetchError> {
    match tokio::time::timeout(timeout, fetch(url, path, link)).await {
        Ok(fetched) => fetched,
        Err(_) => Err(FetchError::Unreachable { url: url.to_owned(), reason: "no answer in time".into() }),
    }
}

async fn fetch(url: &str, path: &str, link: &LinkConfig) -> Result<(HeaderMap, Bytes), FetchError> {
    let unreachable =
        |error: &dyn std::error::Error| FetchError::Unreachable { url: url.to_owned(), reason: error.to_string() };
    let answer = |reason: String| FetchError::Answer { url: url.to_owned(), reason };
    let uri: Uri = url.parse().map_err(|_| FetchError::Url(url.to_owned()))?;
    let authority = uri.authority().ok_or_else(|| FetchError::Url(url.to_owned()))?.as_str();
    let tls = tls_for(url, link).map_err(|_| FetchError::Url(url.to_owned()))?;
    let stream = dial_host(&uri, tls.as_ref(), Protocol::Http1).await.map_err(|error| unreachable(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    let request = Request::get(path).header(header::HOST, authority).body(Body::empty());
    let request = request.map_err(|error| answer(error.to_string()))?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| answer(error.to_string()))?;
        if head.status != StatusCode::OK {
            return Err(answer(head.status.to_string()));
        }
        Ok((head.headers, body.to_bytes()))
    };
    // The connection is driven as long as the exchange takes.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        fetched = &mut exchange => fetched,
        _ = connection => exchange.await,
    }
}
