//! Streams whose first message is no message.

use bytes::Bytes;
use futures_util::StreamExt;
use tailwater_tests::{Failure, RawClient};

use crate::run::{ANSWER, Difference};

const PATHS: [&str; 2] = ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"];
const BODIES: [&[u8]; 3] = [b"\x0a\xff", b"\x0a\x05ab", b"\x0b\x0c\x0f"];

/// How a stream of `path` ends that begins with `body`, without the decoder's own words; none if it does not end.
async fn end(client: &RawClient, path: &str, body: &'static [u8]) -> Option<Failure> {
    let requests = futures_util::stream::iter([Bytes::from_static(body)]).chain(futures_util::stream::pending());
    let answer = async {
        let mut answers = client.streaming(path, requests).await?.into_inner();
        match answers.next().await {
            Some(Ok(body)) => Ok(body),
            Some(Err(status)) => Err(status),
            None => Err(tonic::Status::ok("")),
        }
    };
    let mut failure: Failure = tokio::time::timeout(ANSWER, answer).await.ok()?.err()?.into();
    let decoder = "grpc: failed to unmarshal the received message: ";
    if failure.message.starts_with(decoder) {
        failure.message.truncate(decoder.len());
    }
    Some(failure)
}

/// Compares how both endpoints end such streams.
///
/// # Errors
/// A [`Difference`], or what kept the comparison from being made.
pub(crate) async fn run(reference: &str, subject: &str) -> anyhow::Result<()> {
    let (reference, subject) = (RawClient::new(reference)?, RawClient::new(subject)?);
    for path in PATHS {
        for body in BODIES {
            let ends = tokio::join!(end(&reference, path, body), end(&subject, path, body));
            if ends.0 != ends.1 {
                let text = format!("{path} with {body:?}:\n  reference: {:?}\n  subject:   {:?}", ends.0, ends.1);
                return Err(Difference(text).into());
            }
        }
    }
    Ok(())
}
