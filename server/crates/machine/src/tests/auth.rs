//! Auth; etcd `apply/auth.go` and `auth/store.go`.

use proto::{authpb, etcdserverpb as pb};
use tables::AuthRefusal;
use types::Revision;

use super::member::*;
use super::txns::{request, write};
use crate::*;

const HASH: &str = "JDJhJDEwJGhhc2g="; // base64 of "$2a$10$hash"

impl Member {
    fn as_user(&mut self, user: &str, kind: CommandKind, request: &impl prost::Message) -> Outcome {
        let auth_revision = self.machine.views().auth().revision();
        self.under(user, auth_revision, kind, request)
    }

    fn under(
        &mut self,
        user: &str,
        auth_revision: u64,
        kind: CommandKind,
        request: &impl prost::Message,
    ) -> Outcome {
        let caller = Caller { user: user.to_owned(), auth_revision };
        self.propose(Proposal { caller, ..Proposal::new(kind, request) }).0
    }

    fn done(&mut self, kind: CommandKind, request: &impl prost::Message) {
        let outcome = self.as_user("root", kind, request);
        let Outcome::Auth(AuthAnswer { body: AuthBody::Done, .. }) = outcome else {
            panic!("{outcome:?}")
        };
    }

    fn user(&mut self, name: &str, role: &str) {
        let hashed_password = HASH.to_owned();
        let add =
            pb::AuthUserAddRequest { name: name.to_owned(), hashed_password, ..Default::default() };
        self.done(CommandKind::UserAdd, &add);
        let grant = pb::AuthUserGrantRoleRequest { user: name.to_owned(), role: role.to_owned() };
        self.done(CommandKind::UserGrantRole, &grant);
    }

    /// A member with auth on, `root`, and `u` who may read and write keys that begin with `k`.
    fn with_auth() -> Member {
        let mut member = Member::new();
        member.user("root", "root");
        member.done(CommandKind::RoleAdd, &pb::AuthRoleAddRequest { name: "r".to_owned() });
        let perm = authpb::Permission {
            perm_type: authpb::permission::Type::Readwrite as i32,
            key: "k".into(),
            range_end: "l".into(),
        };
        let grant = pb::AuthRoleGrantPermissionRequest { name: "r".to_owned(), perm: Some(perm) };
        member.done(CommandKind::RoleGrantPermission, &grant);
        member.user("u", "r");
        member.done(CommandKind::AuthEnable, &pb::AuthEnableRequest::default());
        member
    }
}

fn refused(refusal: AuthRefusal) -> Outcome {
    Outcome::Refused(Refusal::Auth(refusal))
}

#[test]
fn requests_are_judged_again_when_they_are_applied() {
    let mut member = Member::with_auth();
    let put = |key: &str| put(key, "v");
    assert!(matches!(member.as_user("u", CommandKind::Put, &put("k")), Outcome::Put(_)));
    let denied = refused(AuthRefusal::PermissionDenied);
    assert_eq!(member.as_user("u", CommandKind::Put, &put("x")), denied);
    assert_eq!(member.as_user("u", CommandKind::DeleteRange, &delete("k", "m")), denied);
    assert_eq!(member.as_user("gone", CommandKind::Put, &put("k")), denied);
    let nobody = member.request(CommandKind::Put, &put("k"));
    assert_eq!(nobody, refused(AuthRefusal::UserEmpty));
    // The edge saw the permission; it is taken back before the request is applied.
    let before = member.machine.views().auth().revision();
    let revoke = pb::AuthUserRevokeRoleRequest { name: "u".to_owned(), role: "r".to_owned() };
    member.done(CommandKind::UserRevokeRole, &revoke);
    let late = member.under("u", before, CommandKind::Put, &put("k"));
    assert_eq!(late, refused(AuthRefusal::OldRevision));
    assert_eq!(member.as_user("root", CommandKind::Txn, &request(&[], &[write("x")], &[])), {
        let revision = member.revision();
        let header = Some(pb::ResponseHeader { revision, ..Default::default() });
        let put = pb::response_op::Response::ResponsePut(pb::PutResponse { header, prev_kv: None });
        let responses = vec![pb::ResponseOp { response: Some(put) }];
        Outcome::Txn(pb::TxnResponse { header, succeeded: true, responses })
    });
}

#[test]
fn a_lease_is_revoked_only_by_who_may_delete_its_keys_but_expires_for_everybody() {
    let mut member = Member::with_auth();
    member.grant(7, 60).unwrap();
    let attached = pb::PutRequest { lease: 7, ..put("x", "v") };
    assert!(matches!(member.as_user("root", CommandKind::Put, &attached), Outcome::Put(_)));
    let revoke = pb::LeaseRevokeRequest { id: 7 };
    let outcome = member.as_user("u", CommandKind::LeaseRevoke, &revoke);
    assert_eq!(outcome, refused(AuthRefusal::PermissionDenied));
    let attach = pb::PutRequest { lease: 7, ..put("k", "v") };
    let outcome = member.as_user("u", CommandKind::Put, &attach);
    assert_eq!(outcome, refused(AuthRefusal::PermissionDenied));
    let expire = LeaseExpire { term: types::Term(1), ids: vec![types::LeaseId(7)] };
    let (outcome, _) = member.propose(expire.proposal());
    assert_eq!(outcome, Outcome::LeaseExpire { revoked: vec![types::LeaseId(7)] });
}

#[test]
fn only_administrators_change_auth_and_everybody_may_look_at_oneself() {
    let mut member = Member::with_auth();
    let denied = refused(AuthRefusal::PermissionDenied);
    let add = pb::AuthRoleAddRequest { name: "x".to_owned() };
    assert_eq!(member.as_user("u", CommandKind::RoleAdd, &add), denied);
    assert_eq!(member.request(CommandKind::RoleAdd, &add), refused(AuthRefusal::UserEmpty));
    let get = |name: &str| pb::AuthUserGetRequest { name: name.to_owned() };
    let role = |role: &str| pb::AuthRoleGetRequest { role: role.to_owned() };
    let own = member.as_user("u", CommandKind::UserGet, &get("u"));
    assert!(matches!(own, Outcome::Auth(AuthAnswer { body: AuthBody::Roles(roles), .. })
        if roles == ["r"]));
    let own = member.as_user("u", CommandKind::RoleGet, &role("r"));
    assert!(matches!(own, Outcome::Auth(AuthAnswer { body: AuthBody::Permissions(granted), .. })
        if granted.len() == 1));
    assert_eq!(member.as_user("u", CommandKind::UserGet, &get("root")), denied);
    assert_eq!(member.as_user("u", CommandKind::RoleGet, &role("root")), denied);
    assert_eq!(member.as_user("u", CommandKind::UserList, &()), denied);
    let status = member.request(CommandKind::AuthStatus, &());
    assert!(
        matches!(
            status,
            Outcome::Auth(AuthAnswer {
                body: AuthBody::Status { enabled: true, auth_revision: 7 },
                ..
            })
        ),
        "{status:?}"
    );
}

#[test]
fn a_token_is_given_only_under_the_revision_at_which_the_password_was_compared() {
    let mut member = Member::with_auth();
    let login = pb::InternalAuthenticateRequest {
        name: "u".to_owned(),
        simple_token: "abc".to_owned(),
        ..Default::default()
    };
    let caller = |auth_revision| Caller { user: String::new(), auth_revision };
    let proposal = |caller| Proposal { caller, ..Proposal::new(CommandKind::Authenticate, &login) };
    let now = member.machine.views().auth().revision();
    let (outcome, applied) = member.propose(proposal(caller(now)));
    let token = format!("abc.{}", applied.position.index);
    assert!(matches!(outcome, Outcome::Auth(AuthAnswer { body: AuthBody::Token(given), .. })
        if given == token));
    let user = "u".to_owned();
    assert_eq!(applied.auth_changes, [AuthChange::TokenAssigned { token, user: user.clone() }]);
    let change = pb::AuthUserChangePasswordRequest {
        name: user.clone(),
        hashed_password: HASH.to_owned(),
        ..Default::default()
    };
    let change = Proposal {
        caller: Caller { user: "root".to_owned(), auth_revision: now },
        ..Proposal::new(CommandKind::UserChangePassword, &change)
    };
    let (_, applied) = member.propose(change);
    assert_eq!(applied.auth_changes, [AuthChange::UserInvalidated { user }]);
    let (outcome, applied) = member.propose(proposal(caller(now)));
    assert_eq!(outcome, refused(AuthRefusal::OldRevision));
    assert_eq!(applied.auth_changes, []);
}

#[test]
fn a_password_that_was_not_hashed_is_not_stored() {
    let mut member = Member::new();
    let (name, password) = ("u".to_owned(), "secret".to_owned());
    let hashed_password = "no base64!".to_owned();
    let add = pb::AuthUserAddRequest { name, password, hashed_password, ..Default::default() };
    let outcome = member.as_user("", CommandKind::UserAdd, &add);
    assert_eq!(outcome, refused(AuthRefusal::NoPasswordUser));
    assert_eq!(member.machine.views().auth().users().len(), 0);
}

/// T04: Go etcd once lost what a snapshot held (etcd#14571).
#[test]
fn t04_auth_survives_images_and_snapshots() {
    let mut member = Member::with_auth();
    let image = member.image();
    let expected = member.digest();
    member.restart(&image, usize::MAX);
    assert_eq!(member.digest(), expected);
    assert!(member.machine.views().auth().is_enabled());
    let mut snapshot = Vec::new();
    member.machine.snapshot().write(&mut snapshot, Revision(0)).unwrap();
    let records = std::sync::Arc::new(super::memory::Memory::default());
    let other = Machine::install(&mut snapshot.as_slice(), records, None).unwrap();
    assert_eq!(other.digest().unwrap(), expected);
    assert_eq!(other.views().auth(), member.machine.views().auth());
}
