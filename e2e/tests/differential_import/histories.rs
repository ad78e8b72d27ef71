//! What happens before the backend is copied, and after it, with authentication.

use proto::etcdserverpb::InternalRaftRequest;

use crate::cold::{AUTH_KINDS, Cold};

pub(crate) struct History {
    pub(crate) name: &'static str,
    /// What the backend knows; see [`crate::session::Session`] for the lines.
    pub(crate) backend: &'static [&'static str],
    /// What only the log knows.
    pub(crate) log: &'static [&'static str],
    /// Whether the directory is as it is meant to be.
    pub(crate) check: fn(&Cold),
    /// What is looked at in the end, also by those who are refused.
    pub(crate) seen: &'static [&'static str],
    /// Of that what does not belong to users and roles, in the name of `root`.
    pub(crate) data: &'static [&'static str],
    /// The flag for that name, as it stands there.
    pub(crate) root: &'static str,
}

pub(crate) const HISTORIES: [History; 2] = [
    History {
        name: "the backend knows no user",
        backend: &["put before 1", "lease grant 3600"],
        log: FROM_NOTHING,
        check: check_from_nothing,
        seen: &[
            "--user=root:r auth status",
            "--user=root:r user list",
            "--user=root:r user get root",
            "--user=root:r user get alice --detail",
            "--user=root:r user get carol",
            "--user=root:r user get dave",
            "--user=root:r user get bob",
            "--user=root:r role list",
            "--user=root:r role get writer",
            "--user=root:r role get reader",
            "--user=root:r role get many",
            "--user=alice:new get c",
            "--user=alice:a get c",
            "--user=alice:new get a1",
            "--user=alice:new put a9 1",
            "--user=carol:c get m1",
            "--user=carol:c get m2",
            "--user=bob:b get b1",
            "--user=dave: get b1",
            "--user=frank:f get c",
            "--user=alice:new user list",
            "get c",
        ],
        data: &[
            "--user=root:r get a --from-key -w fields",
            "--user=root:r endpoint hashkv -w json",
            "--user=root:r lease list",
            "--user=root:r lease timetolive {0} --keys",
            "--user=root:r lease timetolive {1} --keys",
            "--user=root:r lease timetolive {2} --keys",
            "--user=root:r lease timetolive {3} --keys",
        ],
        root: "--user=root:r ",
    },
    History {
        name: "authentication is on in the backend",
        backend: &[
            "user add root:r",
            "user add alice:a",
            "user add bob:b",
            "role add writer",
            "role add reader",
            "role grant-permission writer readwrite a b",
            "role grant-permission reader read a c",
            "user grant-role root root",
            "user grant-role alice writer",
            "user grant-role bob reader",
            "lease grant 3600",
            "put b1 1",
            "auth enable",
            "--user=alice:a put a1 1 --lease={0}",
        ],
        log: FROM_ENABLED,
        check: check_from_enabled,
        seen: &[
            "auth status",
            "user list",
            "user get alice --detail",
            "user get bob",
            "user get eve",
            "role list",
            "role get writer",
            "role get reader",
            "get a1",
            "--user=alice:a get a1",
        ],
        data: &[
            "get a --from-key -w fields",
            "endpoint hashkv -w json",
            "lease list",
            "lease timetolive {0} --keys",
            "lease timetolive {1} --keys",
        ],
        root: "--user=root:r ",
    },
];

/// Every change of users and roles there is, with writes between them that are permitted and refused.
const FROM_NOTHING: &[&str] = &[
    "!auth enable",
    "user add root:r",
    "user add alice:a",
    "user add bob:b",
    "user add carol:c",
    "user add dave --no-password",
    "!user add alice:other",
    "role add writer",
    "role add reader",
    "role add many",
    "role add gone",
    "role grant-permission writer readwrite a b",
    "role grant-permission writer write c",
    "role grant-permission writer readwrite c",
    "role grant-permission reader read --prefix b",
    "role grant-permission many read m1",
    "role grant-permission many write --prefix m",
    "role grant-permission many readwrite --from-key x",
    "!role grant-permission nobody read a",
    "user grant-role root root",
    "user grant-role alice writer",
    "user grant-role bob reader",
    "user grant-role carol writer",
    "user grant-role carol gone",
    "user grant-role carol many",
    "put open 1",
    "lease grant 7200",
    "auth enable",
    "--user=root:r put b1 1",
    "--user=alice:a put a1 1",
    "--user=alice:a put a2 1 --lease={1}",
    "!--user=alice:a put z1 1",
    "!--user=bob:b put b1 2",
    "!put nobody 1",
    "!--user=alice:a user add mallory:m",
    "!--user=bob:b lease revoke {1}",
    "!--user=root:r user delete root",
    // A lease with another's key lets nobody else hang a key on it, nor end it.
    "--user=root:r lease grant 10800",
    "--user=root:r put b2 1 --lease={2}",
    "!--user=alice:a put a3 1 --lease={2}",
    "!--user=alice:a lease revoke {2}",
    "--user=root:r lease grant 14400",
    "--user=alice:a put a4 1 --lease={3}",
    "--user=alice:a lease revoke {3}",
    "--user=alice:a txn <<<mod(\"a1\") > \"0\"\n\nput a5 5\ndel a1\n\n\n\n",
    "!--user=alice:a txn <<<mod(\"a2\") > \"0\"\n\nput a5 6\nput b5 6\n\n\n\n",
    "!--user=alice:a txn <<<mod(\"b1\") > \"0\"\n\nput a5 7\n\n\n\n",
    "--user=carol:c put m1 1",
    "!--user=carol:c put m1 2 --prev-kv=true --lease={2}",
    "--user=carol:c put x 1",
    // What is granted and taken back counts from the next request on; an old token says when it is from.
    "login alice a",
    "--auth-jwt-token={token} put a6 1",
    "--user=root:r role revoke-permission writer a b",
    "!--user=alice:a put a6 2",
    "--user=alice:a put c 2",
    "!--auth-jwt-token={token} put c 1",
    "!--user=root:r role revoke-permission writer a b",
    "--user=root:r user passwd alice --interactive=false <<<new\n",
    "--user=alice:new put c 3",
    "--user=root:r user revoke-role carol writer",
    "!--user=carol:c put c 4",
    "!--user=root:r user revoke-role carol writer",
    "--user=root:r role delete gone",
    "--user=root:r role delete reader",
    "!--user=bob:b get b1",
    "--user=root:r user delete bob",
    "--user=root:r compaction 6",
    "--user=alice:new del c",
    "!--user=alice:new del a --from-key",
    "--user=root:r auth disable",
    "put anybody 1",
    "user add frank:f",
    "user grant-role frank writer",
    "auth enable",
    "--user=frank:f put c 5",
    "!put anybody 2",
    "--user=root:r role revoke-permission many --from-key x",
    "!--user=carol:c put x 2",
];

fn check_from_nothing(cold: &Cold) {
    assert!(!cold.auth.enabled && cold.auth.users.is_empty() && cold.auth.roles.is_empty());
    let kinds = cold.kinds();
    for kind in AUTH_KINDS {
        assert!(kinds.contains(&kind), "{kind} is not in the log: {kinds:?}");
    }
    // Those that were refused are there, too.
    for (user, key) in
        [("alice", "z1"), ("bob", "b1"), ("", "nobody"), ("alice", "a6"), ("carol", "x")]
    {
        assert!(cold.has_put(user, key), "{user} {key}");
    }
    let is_old = |before: u64, request: &InternalRaftRequest| {
        request.header.as_ref().is_some_and(|header| (1..before).contains(&header.auth_revision))
    };
    let mut newest = 0;
    let has_old = cold.requests.iter().any(|request| {
        let old = is_old(newest, request);
        newest = newest.max(request.header.as_ref().map_or(0, |header| header.auth_revision));
        old
    });
    assert!(has_old, "a request comes with an older revision than one before it");
}

/// The backend's permissions end in the log, and so does authentication.
const FROM_ENABLED: &[&str] = &[
    "--user=alice:a put a2 1",
    "!--user=bob:b put a2 2",
    "--user=root:r user add eve:e",
    "--user=root:r user grant-role eve writer",
    "--user=eve:e put a3 1",
    "--user=root:r user revoke-role alice writer",
    "!--user=alice:a put a2 3",
    "!--user=alice:a lease revoke {0}",
    "--user=root:r role grant-permission reader readwrite a c",
    "--user=bob:b put a2 4",
    "--user=root:r role delete writer",
    "!--user=eve:e put a3 2",
    "--user=root:r user delete eve",
    "--user=root:r lease grant 7200",
    "--user=bob:b put b2 1 --lease={1}",
    // This one ends by itself, in the name of root.
    "--user=root:r lease grant 2",
    "--user=root:r put b3 1 --lease={2}",
    "gone --user=root:r get b3",
    "!put open 1",
    "--user=root:r auth disable",
    "put open 2",
    "user passwd alice --interactive=false <<<new\n",
    "user delete root",
];

fn check_from_enabled(cold: &Cold) {
    let names: Vec<&[u8]> = cold.auth.users.iter().map(|user| &user.name[..]).collect();
    assert!(cold.auth.enabled && names == [&b"alice"[..], b"bob", b"root"], "{names:?}");
    let kinds = cold.kinds();
    for kind in ["auth disable", "auth user add", "auth user delete", "auth role delete"] {
        assert!(kinds.contains(&kind), "{kind} is not in the log: {kinds:?}");
    }
    for (user, key) in [("alice", "a2"), ("bob", "a2"), ("eve", "a3"), ("", "open")] {
        assert!(cold.has_put(user, key), "{user} {key}");
    }
    let by_root = |request: &InternalRaftRequest| {
        request.lease_revoke.is_some()
            && request.header.as_ref().is_some_and(|header| header.username == "root")
    };
    assert!(cold.requests.iter().any(by_root), "the lease that ended is not in the log");
}
