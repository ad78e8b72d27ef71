use super::*;

fn range(key: &str, end: &str) -> KeyRange {
    KeyRange::from_wire(key.as_bytes().to_vec().into(), end.as_bytes().to_vec().into())
}

fn permission(kind: PermissionKind, key: &str, end: &str) -> Option<Permission> {
    Some(Permission { kind, range: range(key, end) })
}

fn hash(text: &'static str) -> impl FnOnce() -> Result<Bytes, AuthRefusal> {
    move || Ok(Bytes::from_static(text.as_bytes()))
}

fn with_root() -> Auth {
    let mut auth = Auth::default();
    auth.add_user(ROOT, false, hash("h")).unwrap();
    auth.grant_role(ROOT, ROOT).unwrap();
    auth.enable().unwrap();
    auth
}

#[test]
fn auth_is_enabled_only_with_a_root_that_has_the_root_role() {
    let mut auth = Auth::default();
    assert_eq!(auth.revision(), 1);
    assert_eq!(auth.enable(), Err(AuthRefusal::RootUserNotFound));
    auth.add_user(ROOT, false, hash("h")).unwrap();
    assert_eq!(auth.enable(), Err(AuthRefusal::RootRoleNotGranted));
    // The role need not exist to be granted.
    auth.grant_role(ROOT, ROOT).unwrap();
    let before = auth.revision();
    auth.enable().unwrap();
    auth.enable().unwrap();
    assert_eq!(auth.revision(), before);
    assert!(auth.disable() && !auth.disable());
    assert_eq!(auth.revision(), before + 1);
}

#[test]
fn root_cannot_be_taken_away_while_auth_is_on() {
    let mut auth = with_root();
    auth.add_role(ROOT).unwrap();
    assert_eq!(auth.delete_user(ROOT), Err(AuthRefusal::InvalidManagement));
    assert_eq!(auth.revoke_role(ROOT, ROOT), Err(AuthRefusal::InvalidManagement));
    assert_eq!(auth.delete_role(ROOT), Err(AuthRefusal::InvalidManagement));
    auth.disable();
    auth.revoke_role(ROOT, ROOT).unwrap();
    auth.delete_role(ROOT).unwrap();
    auth.delete_user(ROOT).unwrap();
}

#[test]
fn names_are_checked_before_anything_changes() {
    let mut auth = Auth::default();
    assert_eq!(auth.add_user("", false, hash("h")), Err(AuthRefusal::UserEmpty));
    assert_eq!(auth.add_role(""), Err(AuthRefusal::RoleEmpty));
    assert_eq!(auth.delete_user("u"), Err(AuthRefusal::UserNotFound));
    assert_eq!(auth.change_password("u", hash("h")), Err(AuthRefusal::UserNotFound));
    assert_eq!(auth.grant_role("u", "r"), Err(AuthRefusal::UserNotFound));
    assert_eq!(auth.revoke_role("u", "r"), Err(AuthRefusal::UserNotFound));
    assert_eq!(auth.delete_role("r"), Err(AuthRefusal::RoleNotFound));
    assert_eq!(auth.revoke_permission("r", &range("a", "")), Err(AuthRefusal::RoleNotFound));
    let granted = auth.grant_permission("r", permission(PermissionKind::READ, "a", ""));
    assert_eq!(granted, Err(AuthRefusal::RoleNotFound));
    assert_eq!(auth.grant_permission("r", None), Err(AuthRefusal::PermissionNotGiven));
    assert_eq!(auth, Auth::default());
    auth.add_user("u", false, hash("h")).unwrap();
    assert_eq!(auth.add_user("u", false, hash("h")), Err(AuthRefusal::UserExists));
    assert_eq!(auth.grant_role("u", "r"), Err(AuthRefusal::RoleNotFound));
    assert_eq!(auth.revoke_role("u", "r"), Err(AuthRefusal::RoleNotGranted));
    auth.add_role("r").unwrap();
    assert_eq!(auth.add_role("r"), Err(AuthRefusal::RoleExists));
    assert_eq!(auth.revision(), 3);
}

#[test]
fn pr_15619_empty_and_reversed_ranges_are_not_granted() {
    let mut auth = Auth::default();
    auth.add_role("r").unwrap();
    for (key, end) in [("", ""), ("", "b"), ("", "\0"), ("b", "a"), ("b", "b")] {
        let granted = auth.grant_permission("r", permission(PermissionKind::READ, key, end));
        assert_eq!(granted, Err(AuthRefusal::InvalidManagement), "{key:?} {end:?}");
    }
    auth.grant_permission("r", permission(PermissionKind::READ, "b", "\0")).unwrap();
}

#[test]
fn a_grant_of_the_same_range_changes_its_kind_and_others_are_sorted() {
    let mut auth = Auth::default();
    auth.add_role("r").unwrap();
    for (kind, key, end) in [
        (PermissionKind::READ, "c", "d"),
        (PermissionKind::WRITE, "a", ""),
        (PermissionKind::READ_WRITE, "c", "d"),
        (PermissionKind::READ, "c", "e"),
    ] {
        auth.grant_permission("r", permission(kind, key, end)).unwrap();
    }
    let granted = auth.role("r").unwrap();
    let kinds: Vec<i32> = granted.iter().map(|permission| permission.kind.0).collect();
    assert_eq!(kinds, [1, 2, 0]);
    assert_eq!(granted[2].range, range("c", "e"));
    assert_eq!(
        auth.revoke_permission("r", &range("c", "")),
        Err(AuthRefusal::PermissionNotGranted)
    );
    auth.revoke_permission("r", &range("c", "d")).unwrap();
    assert_eq!(auth.role("r").unwrap().len(), 2);
}

#[test]
fn what_a_user_may_do_follows_its_roles() {
    let mut auth = with_root();
    auth.add_user("u", true, || unreachable!("such a user has no password")).unwrap();
    auth.add_role("r").unwrap();
    auth.add_role("w").unwrap();
    auth.grant_permission("r", permission(PermissionKind::READ, "a", "c")).unwrap();
    auth.grant_permission("w", permission(PermissionKind::WRITE, "a", "")).unwrap();
    auth.grant_role("u", "r").unwrap();
    auth.grant_role("u", "w").unwrap();
    let now = auth.revision();
    let (a, b) = (range("a", ""), range("b", ""));
    assert_eq!(auth.check_read("u", now, &range("a", "c")), Ok(()));
    assert_eq!(auth.check_write("u", now, &a), Ok(()));
    assert_eq!(auth.check_write("u", now, &b), Err(AuthRefusal::PermissionDenied));
    assert_eq!(auth.check_read(ROOT, now, &range("\0", "\0")), Ok(()));
    // Nobody, somebody who is gone, and somebody who was somebody before.
    assert_eq!(auth.check_read("", 0, &a), Err(AuthRefusal::UserEmpty));
    assert_eq!(auth.check_read("x", now, &a), Err(AuthRefusal::PermissionDenied));
    assert_eq!(auth.check_read("u", now - 1, &a), Err(AuthRefusal::OldRevision));
    assert_eq!(auth.check_admin("u"), Err(AuthRefusal::PermissionDenied));
    assert_eq!(auth.check_admin("x"), Err(AuthRefusal::UserNotFound));
    assert_eq!(auth.check_admin(""), Err(AuthRefusal::UserEmpty));
    assert_eq!(auth.check_admin(ROOT), Ok(()));
    auth.delete_role("r").unwrap();
    let now = auth.revision();
    assert_eq!(auth.check_read("u", now, &a), Err(AuthRefusal::PermissionDenied));
    assert_eq!(auth.user("u").unwrap().roles, ["w"]);
    auth.disable();
    assert_eq!(auth.check_read("", 0, &a), Ok(()));
    assert_eq!(auth.check_admin(""), Ok(()));
}

#[test]
fn a_user_does_not_print_its_hash() {
    let mut auth = with_root();
    auth.change_password(ROOT, hash("$2a$10$secret")).unwrap();
    assert!(!format!("{auth:?}").contains("secret"));
}
