//! Whether a caller may call a method at all.
//!
//! What a method demands is etcd's choice: some ask for an administrator, some for anybody who is
//! known, some for nothing because the keys they name are judged one by one, at apply or where they
//! are read. Each handler asks; the matrix in
//! `e2e/tests/differential_auth` has a row for every method
//! and fails for one that forgot to (CVE-2026-33413).

use machine::{AuthRefusal, Caller, Permit, Refusal, Views, still_valid};
use tonic::{Request, Status};

use super::context::{ApiContext, refusal_status};
use super::status::ApiError;
use crate::auth::Credentials;

/// What a method demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing here: the request is judged by what it names.
    Anybody,
    /// A user, whoever.
    AnyUser,
    /// Somebody with the role `root`.
    Admin,
}

/// A refusal of auth, as the client is told.
pub(crate) fn auth_status(refusal: AuthRefusal) -> Status {
    refusal_status(Refusal::Auth(refusal))
}

/// A caller, and the state that its permissions were judged by.
pub(crate) struct Reading {
    pub(crate) views: Views,
    caller: Caller,
}

impl Reading {
    /// Refuses to show what was read if permissions have changed meanwhile.
    pub(crate) fn confirm(&self) -> Result<(), Status> {
        still_valid(&self.caller, &self.views).map_err(auth_status)
    }
}

impl ApiContext {
    /// What a request shows of its sender.
    pub(crate) fn credentials<R>(&self, request: &Request<R>) -> Credentials {
        Credentials::of(request.metadata(), request.extensions(), self.server.client_cert_auth)
    }

    /// Who shows these credentials, if that is enough for a method.
    pub(crate) async fn caller(
        &self,
        credentials: &Credentials,
        access: Access,
    ) -> Result<Caller, Status> {
        let caller = self.authentication.recognise(&self.handle, credentials).await;
        let caller = caller.map_err(|_| Status::from(ApiError::InvalidAuthToken))?;
        // Most requests are judged by what they name: they do not look at users and roles here.
        let auth = || self.handle.views().auth();
        let granted = match access {
            Access::Anybody => Ok(()),
            Access::AnyUser => auth().check_any_user(&caller.user),
            Access::Admin => auth().check_admin(&caller.user),
        };
        granted.map_err(auth_status)?;
        Ok(caller)
    }

    /// Begins a read: recognises the caller and judges what it wants to read. The read is to be done
    /// on the views in the answer, and confirmed before it is shown.
    pub(crate) async fn begin_read(
        &self,
        credentials: &Credentials,
        judge: impl FnOnce(&Permit<'_>) -> Result<(), AuthRefusal>,
    ) -> Result<Reading, Status> {
        let caller = self.caller(credentials, Access::Anybody).await?;
        let views = self.handle.views();
        if !views.auth_is_off() {
            judge(&Permit::new(&views.auth(), &caller)).map_err(auth_status)?;
        }
        Ok(Reading { views, caller })
    }
}
