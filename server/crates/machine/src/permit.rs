//! What a caller may do, asked in the one way that apply and the edge share.
//!
//! Apply asks for every request that goes through the log, under the auth revision that the edge had
//! when it recognised the caller; the edge asks for reads, which do not. Both go through a whole
//! transaction: its comparisons and both of its branches, with everything nested in them, because
//! which branch is taken is itself something the caller could learn (CVE-2026-33343).

use bytes::Bytes;
use lease::Lessor;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request;
use tables::{Auth, AuthRefusal};
use types::{KeyRange, LeaseId};

use crate::check::key_range;
use crate::command::Caller;
use crate::views::Views;

/// A caller before the users and roles of one moment.
#[derive(Clone, Copy)]
pub struct Permit<'a> {
    auth: &'a Auth,
    caller: &'a Caller,
}

impl<'a> Permit<'a> {
    /// This caller, judged by these users and roles.
    pub fn new(auth: &'a Auth, caller: &'a Caller) -> Self {
        Self { auth, caller }
    }

    /// May administer: users, members, maintenance.
    pub fn admin(&self) -> Result<(), AuthRefusal> {
        self.auth.check_admin(&self.caller.user)
    }

    /// May read every key of a range.
    pub fn read(&self, range: &KeyRange) -> Result<(), AuthRefusal> {
        self.auth.check_read(&self.caller.user, self.caller.auth_revision, range)
    }

    /// May write every key of a range.
    pub fn write(&self, range: &KeyRange) -> Result<(), AuthRefusal> {
        self.auth.check_write(&self.caller.user, self.caller.auth_revision, range)
    }

    /// May read each of these keys.
    pub fn read_keys<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k Bytes>,
    ) -> Result<(), AuthRefusal> {
        if self.admin().is_ok() {
            return Ok(());
        }
        keys.into_iter().try_for_each(|key| self.read(&KeyRange::single(key.clone())))
    }

    /// May write each of these keys: whoever can end a lease can delete the keys attached to it.
    pub fn write_keys<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k Bytes>,
    ) -> Result<(), AuthRefusal> {
        if self.admin().is_ok() {
            return Ok(());
        }
        keys.into_iter().try_for_each(|key| self.write(&KeyRange::single(key.clone())))
    }

    pub(crate) fn lease(&self, leases: &Lessor, id: LeaseId) -> Result<(), AuthRefusal> {
        match leases.get(id) {
            Some(lease) => self.write_keys(lease.keys()),
            None => Ok(()),
        }
    }

    /// A put also needs what its lease needs, and to read if it asks for the value before
    /// (CVE-2026-44283).
    pub(crate) fn put(&self, leases: &Lessor, request: &pb::PutRequest) -> Result<(), AuthRefusal> {
        let key = KeyRange::single(request.key.clone());
        self.write(&key)?;
        self.lease(leases, LeaseId(request.lease))?;
        if request.prev_kv { self.read(&key) } else { Ok(()) }
    }

    pub(crate) fn delete_range(&self, request: &pb::DeleteRangeRequest) -> Result<(), AuthRefusal> {
        let range = key_range(&request.key, &request.range_end);
        self.write(&range)?;
        if request.prev_kv { self.read(&range) } else { Ok(()) }
    }

    pub(crate) fn txn(&self, leases: &Lessor, request: &pb::TxnRequest) -> Result<(), AuthRefusal> {
        for compare in &request.compare {
            self.read(&key_range(&compare.key, &compare.range_end))?;
        }
        for operation in request.success.iter().chain(&request.failure) {
            match &operation.request {
                Some(Request::RequestRange(range)) => {
                    self.read(&key_range(&range.key, &range.range_end))?;
                }
                Some(Request::RequestPut(put)) => self.put(leases, put)?,
                Some(Request::RequestDeleteRange(delete)) => self.delete_range(delete)?,
                Some(Request::RequestTxn(inner)) => self.txn(leases, inner)?,
                None => {}
            }
        }
        Ok(())
    }

    /// A transaction that holds nothing but ranges, and so needs to know no lease.
    pub fn read_only_txn(&self, request: &pb::TxnRequest) -> Result<(), AuthRefusal> {
        self.txn(&Lessor::new(), request)
    }
}

/// Whether what was read under a caller's permissions may be shown: not if they have changed while
/// it was read, nor if auth was off before and is on now. (etcd shows it in the latter case.)
pub fn still_valid(caller: &Caller, views: &Views) -> Result<(), AuthRefusal> {
    if caller.auth_revision == 0 && views.auth_is_off() {
        return Ok(());
    }
    let auth = views.auth();
    match caller.auth_revision {
        0 if auth.is_enabled() => Err(AuthRefusal::UserEmpty),
        0 => Ok(()),
        revision if revision == auth.revision() => Ok(()),
        _ => Err(AuthRefusal::OldRevision),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tables::{Permission, PermissionKind, ROOT};

    use super::*;

    /// A user that may read `r*`, write `w*`, and do both with `b*`.
    fn auth() -> (Auth, Caller) {
        let mut auth = Auth::default();
        let hash = || Ok(Bytes::from_static(b"h"));
        auth.add_user(ROOT, false, hash).unwrap();
        auth.grant_role(ROOT, ROOT).unwrap();
        auth.add_user("u", false, hash).unwrap();
        auth.add_role("role").unwrap();
        for (kind, key, end) in [
            (PermissionKind::READ, "r", "s"),
            (PermissionKind::WRITE, "w", "x"),
            (PermissionKind::READ_WRITE, "b", "c"),
        ] {
            let range = key_range(&key.into(), &end.into());
            auth.grant_permission("role", Some(Permission { kind, range })).unwrap();
        }
        auth.grant_role("u", "role").unwrap();
        auth.enable().unwrap();
        let caller = Caller { user: "u".to_owned(), auth_revision: auth.revision() };
        (auth, caller)
    }

    fn put(key: &'static str) -> pb::PutRequest {
        pb::PutRequest { key: key.into(), ..Default::default() }
    }

    fn operation(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn range(key: &'static str) -> pb::RequestOp {
        operation(Request::RequestRange(pb::RangeRequest { key: key.into(), ..Default::default() }))
    }

    const DENIED: Result<(), AuthRefusal> = Err(AuthRefusal::PermissionDenied);

    #[test]
    fn cve_2026_33343_nested_transactions_are_judged_to_the_bottom() {
        let (auth, caller) = auth();
        let permit = Permit::new(&auth, &caller);
        let nested = |inner: pb::TxnRequest| {
            let success = vec![operation(Request::RequestTxn(inner))];
            pb::TxnRequest { success, ..Default::default() }
        };
        let compare = |key: &'static str| pb::TxnRequest {
            compare: vec![pb::Compare { key: key.into(), ..Default::default() }],
            ..Default::default()
        };
        let branch = |operation| pb::TxnRequest { failure: vec![operation], ..Default::default() };
        let leases = Lessor::new();
        for (inner, expected) in [
            (compare("r"), Ok(())),
            (compare("w"), DENIED),
            (branch(range("r")), Ok(())),
            (branch(range("w")), DENIED),
            (branch(operation(Request::RequestPut(put("w")))), Ok(())),
            (branch(operation(Request::RequestPut(put("r")))), DENIED),
        ] {
            let request = nested(nested(inner));
            assert_eq!(permit.txn(&leases, &request), expected, "{request:?}");
        }
    }

    #[test]
    fn cve_2026_44283_previous_values_and_leases_need_their_own_permission() {
        let (auth, caller) = auth();
        let permit = Permit::new(&auth, &caller);
        let mut leases = Lessor::new();
        for (id, key) in [(1, "other"), (2, "w1")] {
            leases.grant(LeaseId(id), 60).unwrap();
            leases.attach(LeaseId(id), &Bytes::from_static(key.as_bytes())).unwrap();
        }
        let with = |key, lease, prev_kv| pb::PutRequest { lease, prev_kv, ..put(key) };
        for (request, expected) in [
            (with("w", 0, false), Ok(())),
            (with("w", 0, true), DENIED),
            (with("b", 0, true), Ok(())),
            (with("w", 1, false), DENIED),
            (with("w", 2, false), Ok(())),
            (with("w", 3, false), Ok(())),
        ] {
            assert_eq!(permit.put(&leases, &request), expected, "{request:?}");
            let success = vec![operation(Request::RequestPut(request))];
            let txn = pb::TxnRequest { success, ..Default::default() };
            assert_eq!(permit.txn(&leases, &txn), expected, "{txn:?}");
        }
        let delete = |key: &'static str, prev_kv| pb::DeleteRangeRequest {
            key: key.into(),
            prev_kv,
            ..Default::default()
        };
        assert_eq!(permit.delete_range(&delete("w", false)), Ok(()));
        assert_eq!(permit.delete_range(&delete("w", true)), DENIED);
        assert_eq!(permit.delete_range(&delete("b", true)), Ok(()));
        assert_eq!(permit.lease(&leases, LeaseId(1)), DENIED);
        assert_eq!(permit.lease(&leases, LeaseId(2)), Ok(()));
    }

    #[test]
    fn a_permission_that_was_taken_back_does_not_work_under_the_old_revision() {
        let (auth, caller) = auth();
        let mut auth = Arc::new(auth);
        Arc::make_mut(&mut auth).add_role("another").unwrap();
        let permit = Permit::new(&auth, &caller);
        let leases = Lessor::new();
        assert_eq!(permit.put(&leases, &put("w")), Err(AuthRefusal::OldRevision));
    }
}
