//! Keys as files hold them: PEM around DER, as far as tokens need it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
/// Where an EC private key holds its public one.
const PUBLIC_IN_PRIVATE: u8 = 0xa1;

/// The first block of a PEM file: its label and what it holds.
pub(super) fn pem_block(text: &[u8]) -> Option<(String, Vec<u8>)> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    // "Proc-Type" and the like stand before an encrypted key, which is of no use here.
    let body: String = body.split_whitespace().collect();
    Some((label.to_owned(), BASE64.decode(body).ok()?))
}

/// The key inside a SubjectPublicKeyInfo, in the form of its algorithm.
pub(super) fn public_key(spki: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Der(spki).take(SEQUENCE)?;
    fields.take(SEQUENCE)?;
    bits(fields.take(BIT_STRING)?)
}

/// Private and public part of an EC key, in PKCS#8 or SEC 1.
pub(super) fn ec_private_key(label: &str, der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut fields = Der(der).take(SEQUENCE)?;
    fields.take(INTEGER)?;
    if label == "PRIVATE KEY" {
        fields.take(SEQUENCE)?;
        fields = fields.take(OCTET_STRING)?.take(SEQUENCE)?;
        fields.take(INTEGER)?;
    }
    let private = fields.take(OCTET_STRING)?.0.to_vec();
    while let Some((tag, content)) = fields.next() {
        if tag == PUBLIC_IN_PRIVATE {
            return Some((private, bits(Der(content).take(BIT_STRING)?)?));
        }
    }
    None
}

/// Of a bit string of whole bytes.
fn bits(content: Der<'_>) -> Option<Vec<u8>> {
    let (&0, bytes) = content.0.split_first()? else { return None };
    Some(bytes.to_vec())
}

/// What is left of a row of DER elements.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<Self> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| Self(content))
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_found_between_its_lines() {
        let text = b"noise\n-----BEGIN A B-----\r\nAQID\r\nBA==\r\n-----END A B-----\n-----BEGIN C-----";
        assert_eq!(pem_block(text), Some(("A B".to_owned(), vec![1, 2, 3, 4])));
        for bad in [&b""[..], b"-----BEGIN A-----\nAQID", b"-----BEGIN A-----\n?\n-----END A-----", b"\xff"] {
            assert_eq!(pem_block(bad), None);
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_key(noise in prop::collection::vec(any::<u8>(), 0..64)) {
            public_key(&noise);
            ec_private_key("PRIVATE KEY", &noise);
            ec_private_key("EC PRIVATE KEY", &noise);
            pem_block(&noise);
        }
    }
}
