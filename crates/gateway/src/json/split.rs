//! Cutting a stream of JSON values into values, without a separator that must stand between them.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};

/// Finds the ends of objects and arrays. Other values can't be messages, and end the stream.
pub(super) struct Splitter {
    buffer: BytesMut,
    bytes_max: usize,
    /// Bytes of the buffer that were looked at.
    seen: usize,
    depth: usize,
    in_text: bool,
    /// The next byte means nothing.
    escaped: bool,
}

impl Splitter {
    /// A value may be so long.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), bytes_max, seen: 0, depth: 0, in_text: false, escaped: false }
    }

    /// The next value; none at the end. Cancel safe as far as the pieces are.
    ///
    /// # Errors
    /// What comes is no object, too long, or ends within one.
    pub(super) async fn next<E: std::fmt::Display>(
        &mut self,
        pieces: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
    ) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(value) = self.take()? {
                return Ok(Some(value));
            }
            if self.buffer.len() > self.bytes_max {
                return Err(format!("a message of more than {} bytes of JSON", self.bytes_max));
            }
            match pieces.next().await {
                Some(Ok(piece)) => self.buffer.extend_from_slice(&piece),
                Some(Err(error)) => return Err(error.to_string()),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err("unexpected EOF".to_owned()),
            }
        }
    }

    /// A value that is there whole.
    fn take(&mut self) -> Result<Option<Bytes>, String> {
        if self.depth == 0 {
            let blank = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            drop(self.buffer.split_to(blank));
        }
        while let Some(&byte) = self.buffer.get(self.seen) {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 1 => self.depth -= 1,
                b'}' | b']' if self.depth == 1 => {
                    self.depth = 0;
                    let value = self.buffer.split_to(self.seen).freeze();
                    self.seen = 0;
                    return Ok(Some(value));
                }
                _ => {}
            }
            if self.depth == 0 {
                return Err(format!("{:?} begins no message", char::from(byte)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn split(text: &[u8], step: usize) -> Vec<Result<String, String>> {
        let pieces = text.chunks(step).map(|piece| Ok::<_, String>(Bytes::copy_from_slice(piece)));
        let mut pieces = futures_util::stream::iter(pieces);
        let mut splitter = Splitter::new(64);
        let mut values = Vec::new();
        loop {
            match splitter.next(&mut pieces).await {
                Ok(Some(value)) => values.push(Ok(String::from_utf8_lossy(&value).into_owned())),
                Ok(None) => return values,
                Err(error) => {
                    values.push(Err(error));
                    return values;
                }
            }
        }
    }

    #[tokio::test]
    async fn values_are_found_however_the_bytes_are_cut() {
        let text = b" {\"a\":\"}\\\"\"}{\"b\":[{}]}\n\n{}  ";
        for step in 1..=text.len() {
            let found = split(text, step).await;
            let wanted = ["{\"a\":\"}\\\"\"}", "{\"b\":[{}]}", "{}"].map(|value| Ok(value.to_owned()));
            assert_eq!(found, wanted, "step {step}");
        }
    }

    #[tokio::test]
    async fn what_is_no_object_ends_the_stream() {
        for (text, reason) in [
            (&b"12"[..], "'1' begins no message"),
            (b"}", "'}' begins no message"),
            (b"{\"a\"", "unexpected EOF"),
            (&[b'['; 70], "a message of more than 64 bytes of JSON"),
        ] {
            assert_eq!(split(text, 7).await, [Err(reason.to_owned())]);
        }
    }
}
