use proptest::prelude::*;
use tailwater_api::authpb::permission::Type;

use super::*;

fn permission(perm_type: Type, key: &[u8], range_end: &[u8]) -> authpb::Permission {
    authpb::Permission { perm_type: perm_type as i32, key: key.to_vec(), range_end: range_end.to_vec() }
}

/// Auth that is on, with a user `u` that holds these permissions in two roles.
fn auth(permissions: &[authpb::Permission]) -> Auth {
    let mut auth = Auth::default();
    auth.set_enabled(true);
    let (one, other) = permissions.split_at(permissions.len() / 2);
    for (name, held) in [("one", one), ("other", other)] {
        auth.insert_role(authpb::Role { name: name.into(), key_permission: held.to_vec() });
    }
    let user = |name: &str, roles: &[&str]| authpb::User {
        name: name.into(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        ..Default::default()
    };
    auth.insert_user(user("u", &["other", "one", "gone"]));
    auth.insert_user(user("r", &["root"]));
    auth.refresh();
    auth
}

fn caller(user: &str) -> Caller {
    Caller { user: user.into(), auth_revision: 1 }
}

#[test]
fn roles_cover_a_range_together() {
    let auth = auth(&[
        permission(Type::Read, b"a", b"c"),
        permission(Type::Readwrite, b"c", b""),
        permission(Type::Read, b"c\0", b"e"),
        permission(Type::Write, b"x", b"\0"),
    ]);
    let read = |key: &[u8], end: &[u8]| auth.check_range(&caller("u"), Right::Read, key, end);
    let write = |key: &[u8], end: &[u8]| auth.check_range(&caller("u"), Right::Write, key, end);
    assert_eq!(read(b"a", b"e"), Ok(()));
    assert_eq!(read(b"d", b""), Ok(()));
    for (key, end) in [(&b"a"[..], &b"e\0"[..]), (b"e", b""), (b"a", b"\0"), (b"\0", b"\0"), (b"@", b"b"), (b"x", b"")]
    {
        assert_eq!(read(key, end), Err(AuthError::PermissionDenied), "{key:?} {end:?}");
    }
    assert_eq!(write(b"c", b""), Ok(()));
    assert_eq!(write(b"c", b"d"), Err(AuthError::PermissionDenied));
    for end in [&b""[..], b"\0", b"z"] {
        assert_eq!(write(b"xx", end), Ok(()), "{end:?}");
    }
}

/// GHSA-xg4h-6gfc-h4m8: an open end is no single key.
#[test]
fn a_right_to_one_key_is_none_to_what_follows() {
    let auth = auth(&[permission(Type::Readwrite, b"a", b"")]);
    let check = |end: &[u8]| auth.check_range(&caller("u"), Right::Read, b"a", end);
    assert_eq!(check(b""), Ok(()));
    assert_eq!(check(b"a\0"), Ok(()));
    for end in [&b"\0"[..], b"b", b"a\0\0"] {
        assert_eq!(check(end), Err(AuthError::PermissionDenied), "{end:?}");
    }
}

#[test]
fn who_is_not_known_may_nothing() {
    let mut auth = auth(&[permission(Type::Read, b"a", b"")]);
    let nobody = Caller::default();
    let stranger = caller("stranger");
    let check = |auth: &Auth, caller: &Caller| auth.check_range(caller, Right::Read, b"a", b"");
    assert_eq!(check(&auth, &nobody), Err(AuthError::UserEmpty));
    assert_eq!(check(&auth, &stranger), Err(AuthError::PermissionDenied));
    assert_eq!(check(&auth, &caller("r")), Ok(()));
    assert_eq!(auth.check_known(&nobody), Err(AuthError::UserEmpty));
    assert_eq!(auth.check_known(&stranger), Ok(()));
    assert_eq!(auth.check_root(&nobody), Err(AuthError::UserEmpty));
    assert_eq!(auth.check_root(&stranger), Err(AuthError::UserNotFound));
    assert_eq!(auth.check_root(&caller("u")), Err(AuthError::PermissionDenied));
    assert_eq!(auth.check_root(&caller("r")), Ok(()));
    auth.set_revision(2);
    assert_eq!(check(&auth, &caller("u")), Err(AuthError::OldRevision));
    auth.set_enabled(false);
    assert_eq!(check(&auth, &nobody), Ok(()));
    assert_eq!(auth.check_root(&nobody), Ok(()));
}

#[test]
fn facts_carry_the_whole_state() {
    let mut auth = auth(&[permission(Type::Read, b"a", b"b"), permission(Type::Write, b"b", b"\0")]);
    auth.set_revision(9);
    auth.set_token_secret(Bytes::from_static(b"secret"));
    assert_eq!(Auth::from_facts(&auth.to_facts()), auth);
    // A source that says nothing of auth is one of a fresh store.
    assert_eq!(Auth::from_facts(&AuthFacts::default()), Auth::default());
}

proptest! {
    /// Against a model over a small alphabet: a range is covered if each of its keys is.
    #[test]
    fn a_range_is_permitted_if_each_key_is(
        spans in prop::collection::vec((0u8..12, 0u8..14), 0..6),
        (from, to) in (0u8..12, 0u8..14),
    ) {
        // Keys are two bytes with nothing between them but what the model knows: 0 and 1 behind each letter.
        let end_of = |end: u8| match end { 13 => vec![0], end => vec![b'a' + end] };
        let permissions: Vec<_> =
            spans.iter().map(|&(from, to)| permission(Type::Read, &[b'a' + from], &end_of(to))).collect();
        let auth = auth(&permissions);
        let inside = |letter: u8, from: u8, to: u8| letter >= from && (to == 13 || letter < to);
        // 25 stands for everything behind the alphabet.
        let mut wanted = (0..26).filter(|&letter| inside(letter, from, to)).peekable();
        prop_assume!(wanted.peek().is_some());
        let expected = wanted.all(|letter| spans.iter().any(|&(from, to)| inside(letter, from, to)));
        let found = auth.check_range(&caller("u"), Right::Read, &[b'a' + from], &end_of(to)).is_ok();
        prop_assert_eq!(found, expected);
    }
}
