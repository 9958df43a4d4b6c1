//! What a process does: `--roles`.

use tailwater_eventlog::KeyRange;

/// Which parts run in this process. Everything else about it follows from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Roles {
    /// A member that serves clients too; the default.
    All,
    /// A member without an API for clients.
    Consensus,
    /// No member: follows a tail and serves clients from memory.
    Fanout,
    /// Neither: forwards calls to those that serve them.
    Gateway,
}

impl Roles {
    /// From a list in any order.
    ///
    /// # Errors
    /// One sentence that names the flag and says what to change.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut roles: Vec<&str> = text.split(',').map(str::trim).collect();
        roles.sort_unstable();
        roles.dedup();
        match roles[..] {
            ["all"] | ["consensus", "fanout", "gateway"] => Ok(Self::All),
            ["consensus"] => Ok(Self::Consensus),
            ["fanout", "gateway"] => Ok(Self::Fanout),
            ["gateway"] => Ok(Self::Gateway),
            _ => Err(format!("--roles: {text:?} must be all, consensus, gateway or fanout,gateway")),
        }
    }

    /// Whether this process is a member of the group.
    pub(crate) fn is_member(self) -> bool {
        matches!(self, Self::All | Self::Consensus)
    }

    /// Whether this process serves the etcd API.
    pub(crate) fn serves_clients(self) -> bool {
        matches!(self, Self::All | Self::Fanout | Self::Gateway)
    }

    /// As it is announced.
    pub(crate) fn names(self) -> Vec<String> {
        let names: &[&str] = match self {
            Self::All => &["consensus", "fanout", "gateway"],
            Self::Consensus => &["consensus"],
            Self::Fanout => &["fanout", "gateway"],
            Self::Gateway => &["gateway"],
        };
        names.iter().map(|&name| name.to_owned()).collect()
    }
}

/// The ranges of `--prefixes`, in order and without those that lie in others; none: every key.
///
/// # Errors
/// One sentence that names the flag and says what to change.
pub(crate) fn ranges(prefixes: &str) -> Result<Vec<KeyRange>, String> {
    if prefixes.is_empty() {
        return Ok(Vec::new());
    }
    let mut prefixes: Vec<&str> = prefixes.split(',').map(str::trim).collect();
    if prefixes.contains(&"") {
        return Err("--prefixes names an empty prefix; leave the flag out to hold every key".into());
    }
    prefixes.sort_unstable();
    let mut kept: Vec<&str> = Vec::new();
    for prefix in prefixes {
        if kept.last().is_none_or(|last| !prefix.starts_with(last)) {
            kept.push(prefix);
        }
    }
    Ok(kept.into_iter().map(prefix_range).collect())
}

/// The keys with this prefix.
fn prefix_range(prefix: &str) -> KeyRange {
    let mut end = prefix.as_bytes().to_vec();
    // Text holds no byte 0xff, so there is always a next one.
    *end.last_mut().expect("the prefix is not empty") += 1;
    KeyRange::from_etcd(prefix.as_bytes().to_vec().into(), end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_in_any_order() {
        assert_eq!(Roles::parse("all"), Ok(Roles::All));
        assert_eq!(Roles::parse("gateway,consensus, fanout"), Ok(Roles::All));
        assert_eq!(Roles::parse("consensus"), Ok(Roles::Consensus));
        assert_eq!(Roles::parse("gateway,fanout"), Ok(Roles::Fanout));
        assert_eq!(Roles::parse("gateway"), Ok(Roles::Gateway));
        for wrong in ["", "fanout", "consensus,gateway", "all,fanout", "relay"] {
            assert!(Roles::parse(wrong).expect_err(wrong).starts_with("--roles: "), "{wrong}");
        }
    }

    #[test]
    fn prefixes_are_ranges_that_do_not_overlap() {
        assert_eq!(ranges(""), Ok(Vec::new()));
        let span = |start: &'static str, end: &'static str| KeyRange::Span(start.into(), end.into());
        assert_eq!(ranges("/b/,/a/, /a/x/"), Ok(vec![span("/a/", "/a0"), span("/b/", "/b0")]));
        assert_eq!(ranges("/é"), Ok(vec![span("/é", "/ê")]));
        assert!(ranges("/a/,").expect_err("empty").contains("empty prefix"));
    }
}
