//! Member and cluster ids, as etcd computes them: both follow from the URLs and the token, so that every founding
//! member finds the same without asking.

use sha1::{Digest, Sha1};

/// The id of a founding member: SHA-1 over its sorted peer URLs and the cluster's token, its first eight bytes.
pub(crate) fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    first_u64(&Sha1::digest(urls.concat() + token))
}

/// The id of a group: SHA-1 over the sorted member ids.
pub(crate) fn cluster_id(member_ids: &[u64]) -> u64 {
    let mut ids = member_ids.to_vec();
    ids.sort_unstable();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    first_u64(&Sha1::digest(bytes))
}

fn first_u64(digest: &[u8]) -> u64 {
    u64::from_be_bytes(digest[..8].try_into().expect("a SHA-1 digest has 20 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that etcd 3.6.16 printed for this URL and token.
    #[test]
    fn ids_are_those_of_etcd() {
        let member = member_id(&["http://127.0.0.1:12380".into()], "tok");
        assert_eq!(member, 15_429_915_573_580_438_332);
        assert_eq!(cluster_id(&[member]), 7_374_361_507_836_364_162);
    }
}
