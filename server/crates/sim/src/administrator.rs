//! The client that turns auth on and keeps changing who may do what.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use machine::Refusal;
use proto::{authpb, etcdserverpb as pb};
use tokio::sync::watch as signal;
use tokio::time::sleep;

use crate::auth::{AuthRequest, PASSWORDS};
use crate::chance::Chance;
use crate::history::{Failure, Request};
use crate::session::Session;
use crate::workload::Order;

/// The user that may do everything, and the role.
pub const ROOT: &str = "root";

/// The users and roles there are, with a number behind.
const USERS: u64 = 3;
const ROLES: u64 = 3;

/// The user of a client.
pub fn user_of(client: u64) -> String {
    // One of them administers beside the administrator.
    if client == 1 { ROOT.to_owned() } else { user(client % USERS + 1) }
}

fn user(number: u64) -> String {
    format!("u{number}")
}

fn role(number: u64) -> String {
    format!("r{number}")
}

/// The administrator.
pub struct Administrator {
    session: Arc<Session>,
    chance: Chance,
    order: signal::Receiver<Order>,
    /// What it has granted: the role and the range.
    granted: Vec<(String, Bytes, Bytes)>,
}

impl Administrator {
    /// An administrator of members without users.
    pub fn new(session: Arc<Session>, order: signal::Receiver<Order>) -> Self {
        let chance = Chance::new(session.cluster.plan.seed, "administrator");
        Self { session, chance, order, granted: Vec::new() }
    }

    /// Sets everything up, then works until it is told to finish.
    pub async fn run(mut self) {
        for request in self.first_requests() {
            if !self.insist(request).await {
                return;
            }
        }
        while self.works() {
            let pause = self.session.cluster.plan.auth.pause_max_millis;
            sleep(Duration::from_millis(self.chance.between(1, pause))).await;
            let request = self.next_request();
            if let Some(service) = self.session.any_service(&mut self.chance) {
                // The history has it.
                let _ = self.session.ask(&service, Request::Other(request)).await;
            }
        }
    }

    fn works(&self) -> bool {
        *self.order.borrow() == Order::Work
    }

    /// Asks until something is certain; false if it is told to finish before.
    async fn insist(&mut self, request: AuthRequest) -> bool {
        while self.works() {
            if let Some(service) = self.session.any_service(&mut self.chance) {
                match self.session.ask(&service, Request::Other(request.clone())).await {
                    Ok(_) | Err(Failure::Refused(Refusal::Auth(_))) => return true,
                    Err(_) => {}
                }
            }
            sleep(Duration::from_millis(self.chance.between(1, 100))).await;
        }
        false
    }

    fn first_requests(&mut self) -> Vec<AuthRequest> {
        let mut requests = vec![user_add(ROOT.to_owned(), 0), grant_role(ROOT.to_owned(), ROOT)];
        for number in 1..=ROLES {
            requests.push(AuthRequest::RoleAdd(pb::AuthRoleAddRequest { name: role(number) }));
            let everything = (Bytes::from_static(b"k"), Bytes::from_static(b"l"));
            requests.push(self.grant(role(number), everything, 2));
        }
        for number in 1..=USERS {
            requests.push(user_add(user(number), 0));
            requests.push(grant_role(user(number), &role(number)));
        }
        requests.push(AuthRequest::Enable(pb::AuthEnableRequest {}));
        requests
    }

    fn grant(&mut self, name: String, range: (Bytes, Bytes), perm_type: i32) -> AuthRequest {
        let (key, range_end) = range;
        self.granted.push((name.clone(), key.clone(), range_end.clone()));
        AuthRequest::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
            name,
            perm: Some(authpb::Permission { perm_type, key, range_end }),
        })
    }

    fn user(&mut self) -> String {
        user(self.chance.between(1, USERS))
    }

    fn role(&mut self) -> String {
        role(self.chance.between(1, ROLES))
    }

    /// A range as permissions have them: everything, or parts that overlap and touch.
    fn range(&mut self) -> (Bytes, Bytes) {
        let keys = self.session.cluster.plan.workload.keys;
        let key = |number: u64| Bytes::from(format!("k{number:02}"));
        let (one, other) = (self.chance.below(keys), self.chance.below(keys + 1));
        match self.chance.below(10) {
            0..=3 => (Bytes::from_static(b"k"), Bytes::from_static(b"l")),
            4 => (key(one), Bytes::from_static(&[0])),
            5 => (key(one), Bytes::new()),
            // Nothing that could be asked for: it is refused.
            6 if one == other => (key(one), key(other)),
            _ => (key(one.min(other)), key(one.max(other) + u64::from(one == other))),
        }
    }

    fn next_request(&mut self) -> AuthRequest {
        let weights = [12, 10, 8, 6, 3, 3, 2, 2, 4, 2, 3, 4];
        match self.chance.weighted(&weights) {
            0 => {
                let (role, range) = (self.role(), self.range());
                let kind = [2, 2, 2, 0, 1][self.chance.below(5) as usize];
                self.grant(role, range, kind)
            }
            1 => match self.chance.pick(&self.granted).cloned() {
                Some((role, key, range_end)) => {
                    let request = pb::AuthRoleRevokePermissionRequest { role, key, range_end };
                    AuthRequest::RoleRevokePermission(request)
                }
                None => AuthRequest::RoleList(pb::AuthRoleListRequest {}),
            },
            2 => {
                let (user, role) = (self.user(), self.role());
                grant_role(user, &role)
            }
            3 => {
                let (name, role) = (self.user(), self.role());
                AuthRequest::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name, role })
            }
            4 => user_add(self.user(), self.chance.below(2) as usize),
            5 => AuthRequest::RoleAdd(pb::AuthRoleAddRequest { name: self.role() }),
            6 => AuthRequest::UserDelete(pb::AuthUserDeleteRequest { name: self.user() }),
            7 => AuthRequest::RoleDelete(pb::AuthRoleDeleteRequest { role: self.role() }),
            8 => {
                let (_, hashed) = PASSWORDS[self.chance.below(2) as usize];
                AuthRequest::UserChangePassword(pb::AuthUserChangePasswordRequest {
                    name: self.user(),
                    hashed_password: hashed.to_owned(),
                    ..Default::default()
                })
            }
            9 => AuthRequest::Disable(pb::AuthDisableRequest {}),
            10 => AuthRequest::Enable(pb::AuthEnableRequest {}),
            _ => self.question(),
        }
    }

    fn question(&mut self) -> AuthRequest {
        match self.chance.below(5) {
            0 => AuthRequest::Status(pb::AuthStatusRequest {}),
            1 => AuthRequest::UserList(pb::AuthUserListRequest {}),
            2 => AuthRequest::RoleList(pb::AuthRoleListRequest {}),
            3 => AuthRequest::UserGet(pb::AuthUserGetRequest { name: self.user() }),
            _ => AuthRequest::RoleGet(pb::AuthRoleGetRequest { role: self.role() }),
        }
    }
}

fn user_add(name: String, password: usize) -> AuthRequest {
    let (_, hashed) = PASSWORDS[password];
    let hashed_password = hashed.to_owned();
    AuthRequest::UserAdd(pb::AuthUserAddRequest { name, hashed_password, ..Default::default() })
}

fn grant_role(user: String, role: &str) -> AuthRequest {
    let role = role.to_owned();
    AuthRequest::UserGrantRole(pb::AuthUserGrantRoleRequest { user, role })
}
