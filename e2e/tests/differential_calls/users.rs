//! Users and roles, by the wire where `etcdctl` does not reach.

use bytes::Bytes;
use proto::authpb::{Permission, UserAddOptions};
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;

use super::talk::{Call, Talk, compare};

/// `secret` as bcrypt wrote it, in base64 as the API wants it.
const HASH: &str =
    "JDJhJDA0JHhqSG5mMVpRMHhzSzBsWW1vZHZ1VGVxY0x4Tk4zUlJlT3ZKeEZYLjJ3ZVJuYk5XVVNnSE1h";

fn add(talk: &mut Talk, name: &str, password: &str, hashed: &str, no_password: Option<bool>) {
    let request = pb::AuthUserAddRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        hashed_password: hashed.to_owned(),
        options: no_password.map(|no_password| UserAddOptions { no_password }),
    };
    talk.ask(Rpc::AuthUserAdd, &request);
}

fn log_in(talk: &mut Talk, name: &str, password: &str) -> String {
    let request = pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
    let came = talk.ask(Rpc::AuthAuthenticate, &request);
    match came.status {
        None => came.read::<pb::AuthenticateResponse>().token,
        Some(_) => String::new(),
    }
}

fn change(talk: &mut Talk, name: &str, password: &str, hashed_password: &str) {
    let request = pb::AuthUserChangePasswordRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        hashed_password: hashed_password.to_owned(),
    };
    talk.ask(Rpc::AuthUserChangePassword, &request);
}

fn role(talk: &mut Talk, role: &str) {
    talk.ask(Rpc::AuthRoleAdd, &pb::AuthRoleAddRequest { name: role.to_owned() });
}

fn grant(talk: &mut Talk, role: &str, perm_type: i32, key: &'static str, range_end: &'static str) {
    let perm = Permission { perm_type, key: key.into(), range_end: range_end.into() };
    let request = pb::AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(perm) };
    talk.ask(Rpc::AuthRoleGrantPermission, &request);
}

fn give(talk: &mut Talk, user: &str, role: &str) {
    let request = pb::AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
    talk.ask(Rpc::AuthUserGrantRole, &request);
}

#[test]
fn users_and_passwords_are_answered_alike() {
    compare(1, &["--bcrypt-cost=4"], |talk| {
        log_in(talk, "a", "b");
        for (name, password, hashed, no_password) in [
            ("", "p", "", None),
            ("plain", "p", "", None),
            ("plain", "p", "", None),
            ("empty", "", "", None),
            ("empty-too", "", "", Some(false)),
            ("none", "", "", Some(true)),
            ("none-with", "p", "", Some(true)),
            ("none-hashed", "", HASH, Some(true)),
            ("hashed", "", HASH, None),
            ("both", "p", HASH, None),
            ("not base64", "", "***", None),
            ("not bcrypt", "", "YWJj", None),
            ("both and no base64", "p", "***", None),
            ("long", &"x".repeat(72), "", None),
            ("too long", &"x".repeat(73), "", None),
            ("\u{e9}\n\0", "p", "", None),
            ("root", "pw", "", None),
        ] {
            add(talk, name, password, hashed, no_password);
        }
        talk.ask(Rpc::AuthUserList, &pb::AuthUserListRequest {});
        for (name, password, hashed) in [
            ("", "p", ""),
            ("nobody", "p", ""),
            ("plain", "other", ""),
            ("plain", "", ""),
            ("plain", "", HASH),
            ("plain", "", "***"),
            ("none", "p", ""),
            ("none", "", ""),
            ("plain", &"x".repeat(73), ""),
        ] {
            change(talk, name, password, hashed);
        }
        talk.ask(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {});
        role(talk, "root");
        give(talk, "root", "root");
        talk.ask(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {});
        talk.ask(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {});
        for (name, password) in [
            ("", ""),
            ("nobody", "p"),
            ("plain", "p"),
            ("plain", "secret"),
            ("empty", ""),
            ("empty", "x"),
            ("none", ""),
            ("none", "p"),
            ("none-with", "p"),
            ("hashed", "secret"),
            ("hashed", ""),
            ("both", "p"),
            ("both", "secret"),
            ("not bcrypt", "abc"),
            ("long", &"x".repeat(72)),
            ("long", &"x".repeat(73)),
            ("root", "pw"),
        ] {
            log_in(talk, name, password);
        }
    });
}

#[test]
fn roles_and_permissions_are_answered_alike() {
    compare(1, &["--bcrypt-cost=4"], |talk| {
        for name in ["", "r", "r", "s", "root", "root"] {
            role(talk, name);
        }
        for (perm_type, key, range_end) in [
            (0, "a", ""),
            (1, "a", ""),
            (2, "a", "c"),
            (0, "b", "d"),
            (0, "b", "\0"),
            (0, "", "\0"),
            (0, "\0", "\0"),
            (0, "\0", ""),
            (0, "", ""),
            (0, "", "c"),
            (0, "c", "c"),
            (0, "d", "c"),
            (7, "x", ""),
            (-1, "y", ""),
            (1, "a", "c"),
        ] {
            grant(talk, "r", perm_type, key, range_end);
        }
        grant(talk, "nothing", 0, "a", "");
        grant(talk, "root", 0, "a", "");
        let no_permission = pb::AuthRoleGrantPermissionRequest { name: "r".to_owned(), perm: None };
        talk.ask(Rpc::AuthRoleGrantPermission, &no_permission);
        let get = |role: &str| pb::AuthRoleGetRequest { role: role.to_owned() };
        for name in ["r", "s", "root", "nothing", ""] {
            talk.ask(Rpc::AuthRoleGet, &get(name));
        }
        for (role, key, range_end) in
            [("r", "a", "c"), ("r", "a", "c"), ("r", "b", ""), ("nothing", "a", ""), ("r", "", "")]
        {
            let request = pb::AuthRoleRevokePermissionRequest {
                role: role.to_owned(),
                key: key.into(),
                range_end: Bytes::from_static(range_end.as_bytes()),
            };
            talk.ask(Rpc::AuthRoleRevokePermission, &request);
        }
        talk.ask(Rpc::AuthRoleGet, &get("r"));
        add(talk, "u", "p", "", None);
        add(talk, "root", "p", "", None);
        for (user, role) in [
            ("u", "r"),
            ("u", "r"),
            ("u", "s"),
            ("u", "nothing"),
            ("nobody", "r"),
            ("", ""),
            ("root", "root"),
            ("u", "root"),
        ] {
            give(talk, user, role);
        }
        talk.ask(Rpc::AuthUserGet, &pb::AuthUserGetRequest { name: "u".to_owned() });
        for (name, role) in [("u", "r"), ("u", "r"), ("nobody", "r"), ("u", "nothing")] {
            let (name, role) = (name.to_owned(), role.to_owned());
            talk.ask(Rpc::AuthUserRevokeRole, &pb::AuthUserRevokeRoleRequest { name, role });
        }
        for role in ["s", "s", ""] {
            talk.ask(Rpc::AuthRoleDelete, &pb::AuthRoleDeleteRequest { role: role.to_owned() });
        }
        talk.ask(Rpc::AuthUserGet, &pb::AuthUserGetRequest { name: "u".to_owned() });
        talk.ask(Rpc::AuthAuthStatus, &pb::AuthStatusRequest {});
        guarded(talk);
    });
}

/// What cannot be done while authentication is on, and what makes tokens old.
fn guarded(talk: &mut Talk) {
    talk.ask(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {});
    let root = log_in(talk, "root", "p");
    let user = log_in(talk, "u", "p");
    let as_root = |call: Call| call.with("token", root.as_bytes());
    let text = |text: &str| text.to_owned();
    for call in [
        Call::new(Rpc::AuthUserDelete, &pb::AuthUserDeleteRequest { name: text("root") }),
        Call::new(Rpc::AuthRoleDelete, &pb::AuthRoleDeleteRequest { role: text("root") }),
        Call::new(
            Rpc::AuthUserRevokeRole,
            &pb::AuthUserRevokeRoleRequest { name: text("root"), role: text("root") },
        ),
        Call::new(Rpc::AuthUserDelete, &pb::AuthUserDeleteRequest { name: text("nobody") }),
        Call::new(Rpc::AuthAuthStatus, &pb::AuthStatusRequest {}),
    ] {
        let mut hidden = as_root(call);
        // The token is each server's own.
        hidden.text.push_str(" as root");
        let came = talk.quietly(hidden.clone());
        hidden.metadata.clear();
        talk.note(
            &hidden.text.clone(),
            &format!("{:?}", came.status.map(|s| (s.code(), s.message().to_owned()))),
        );
    }
    let read = Call::new(Rpc::KVRange, &pb::RangeRequest { key: "q".into(), ..Default::default() });
    let as_user = |token: &str| read.clone().with("token", token.as_bytes());
    let ended = |talk: &mut Talk, what: &str, token: &str| {
        let came = talk.quietly(as_user(token));
        talk.note(what, &format!("{:?}", came.status.map(|s| (s.code(), s.message().to_owned()))));
    };
    ended(talk, "a user before its password changes", &user);
    let change = pb::AuthUserChangePasswordRequest {
        name: text("u"),
        password: text("q"),
        ..Default::default()
    };
    talk.quietly(as_root(Call::new(Rpc::AuthUserChangePassword, &change)));
    ended(talk, "a user after its password changed", &user);
    let again = log_in(talk, "u", "q");
    ended(talk, "a user with a new token", &again);
    let bearer = read.clone().with("authorization", format!("Bearer {again}").as_bytes());
    let came = talk.quietly(bearer);
    talk.note(
        "a bearer",
        &format!("{:?}", came.status.map(|s| (s.code(), s.message().to_owned()))),
    );
    let delete = pb::AuthUserDeleteRequest { name: text("u") };
    talk.quietly(as_root(Call::new(Rpc::AuthUserDelete, &delete)));
    ended(talk, "a user that was deleted", &again);
    talk.quietly(as_root(Call::new(Rpc::AuthAuthDisable, &pb::AuthDisableRequest {})));
    ended(talk, "a token when nobody asks for one", &again);
}
