package main

import (
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func authUsersAndRoles(r *run) {
	must(r.client.UserAdd(r.ctx, "carol", "secret"))
	must(r.client.UserAddWithOptions(r.ctx, "dave", "", &clientv3.UserAddOptions{NoPassword: true}))
	_, err := r.client.UserAdd(r.ctx, "carol", "secret")
	refused("a user who is there", err, rpctypes.ErrUserAlreadyExist)
	_, err = r.client.UserAdd(r.ctx, "", "secret")
	refused("a user without name", err, rpctypes.ErrUserEmpty)
	must(r.client.RoleAdd(r.ctx, "reader"))
	_, err = r.client.RoleAdd(r.ctx, "reader")
	refused("a role that is there", err, rpctypes.ErrRoleAlreadyExist)
	read := clientv3.PermissionType(clientv3.PermRead)
	must(r.client.RoleGrantPermission(r.ctx, "reader", "b", "c", read))
	must(r.client.RoleGrantPermission(r.ctx, "reader", "a", "", clientv3.PermissionType(clientv3.PermWrite)))
	role := must(r.client.RoleGet(r.ctx, "reader"))
	var permissions []string
	for _, permission := range role.Perm {
		permissions = append(permissions, fmt.Sprintf("%s [%s,%s)", permission.PermType, permission.Key, permission.RangeEnd))
	}
	equal("permissions", strings.Join(permissions, " "), "WRITE [a,) READ [b,c)")
	must(r.client.UserGrantRole(r.ctx, "carol", "reader"))
	_, err = r.client.UserGrantRole(r.ctx, "carol", "nobody's")
	refused("a role that is not there", err, rpctypes.ErrRoleNotFound)
	equal("roles", fmt.Sprint(must(r.client.UserGet(r.ctx, "carol")).Roles), "[reader]")
	equal("users", fmt.Sprint(must(r.client.UserList(r.ctx)).Users), "[carol dave]")
	equal("all roles", fmt.Sprint(must(r.client.RoleList(r.ctx)).Roles), "[reader]")
	must(r.client.RoleRevokePermission(r.ctx, "reader", "b", "c"))
	_, err = r.client.RoleRevokePermission(r.ctx, "reader", "b", "c")
	refused("a permission that is gone", err, rpctypes.ErrPermissionNotGranted)
	must(r.client.UserRevokeRole(r.ctx, "carol", "reader"))
	_, err = r.client.UserRevokeRole(r.ctx, "carol", "reader")
	refused("a role that is gone", err, rpctypes.ErrRoleNotGranted)
	must(r.client.RoleDelete(r.ctx, "reader"))
	must(r.client.UserDelete(r.ctx, "carol"))
	must(r.client.UserDelete(r.ctx, "dave"))
	_, err = r.client.UserGet(r.ctx, "carol")
	refused("a user who is gone", err, rpctypes.ErrUserNotFound)
	_, err = r.client.AuthEnable(r.ctx)
	refused("authentication without root", err, rpctypes.ErrRootUserNotExist)
}

func authEnabled(r *run) {
	// One member does it all, and then the others are asked: they learn of it a little later.
	open, one := r.first(), r.endpoints[:1]
	for user, role := range map[string]string{"root": "root", "alice": "alices"} {
		must(open.UserAdd(r.ctx, user, user+"'s secret"))
		must(open.RoleAdd(r.ctx, role))
		must(open.UserGrantRole(r.ctx, user, role))
	}
	both := clientv3.PermissionType(clientv3.PermReadWrite)
	mine := r.key("alice/")
	must(open.RoleGrantPermission(r.ctx, "alices", mine, clientv3.GetPrefixRangeEnd(mine), both))
	must(open.AuthEnable(r.ctx))
	root := must(connectAs(one, "root", "root's secret"))
	r.after(func() { root.Close() })
	r.after(func() { root.AuthDisable(r.ctx) })
	check(must(root.AuthStatus(r.ctx)).Enabled, "authentication is not on")

	_, err := open.Put(r.ctx, r.key("alice/a"), "1")
	refused("nobody's put", err, rpctypes.ErrUserEmpty)
	_, err = open.Get(r.ctx, r.key("alice/a"))
	refused("nobody's get", err, rpctypes.ErrUserEmpty)
	wrong, err := connectAs(one, "alice", "wrong")
	if err == nil {
		defer wrong.Close()
		_, err = wrong.Get(r.ctx, r.key("alice/a"))
	}
	check(err != nil && strings.Contains(err.Error(), "authentication failed, invalid user ID or password"),
		"a wrong password: %v", err)
	alice := must(connectAs(one, "alice", "alice's secret"))
	r.after(func() { alice.Close() })
	authAlice(r, alice, root)
	authPassword(r, root)
	must(root.AuthDisable(r.ctx))
	must(open.Put(r.ctx, r.key("bob/b"), "open again"))
	for _, user := range []string{"alice", "root"} {
		must(open.UserDelete(r.ctx, user))
	}
	for _, role := range []string{"alices", "root"} {
		must(open.RoleDelete(r.ctx, role))
	}
}

// authPassword lets every member check a new password and serve who has it.
func authPassword(r *run, root *clientv3.Client) {
	must(root.UserChangePassword(r.ctx, "alice", "new"))
	for number, endpoint := range r.endpoints {
		renewed := must(connectAs([]string{endpoint}, "alice", "new"))
		must(renewed.Put(r.ctx, r.key("alice/a"), fmt.Sprint(number)))
		got := must(renewed.Get(r.ctx, r.key("alice/a")))
		equal("through another member", r.pairs(got.Kvs), fmt.Sprintf("alice/a=%d", number))
		renewed.Close()
	}
}

func authAlice(r *run, alice, root *clientv3.Client) {
	watch := alice.Watch(r.ctx, r.key("alice/"), clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	check(soon(r, "the watch's creation", watch).Created, "the watch was not created")
	lease := must(alice.Grant(r.ctx, 60))
	must(alice.Put(r.ctx, r.key("alice/a"), "1", clientv3.WithLease(lease.ID)))
	must(alice.KeepAliveOnce(r.ctx, lease.ID))
	equal("watched", r.events(watch, 1), "PUT alice/a=1")
	equal("alice's", r.pairs(must(alice.Get(r.ctx, r.key("alice/"), clientv3.WithPrefix())).Kvs), "alice/a=1")

	_, err := alice.Put(r.ctx, r.key("bob/a"), "1")
	refused("a foreign put", err, rpctypes.ErrPermissionDenied)
	_, err = alice.Get(r.ctx, r.prefix, clientv3.WithPrefix())
	refused("a read that is too wide", err, rpctypes.ErrPermissionDenied)
	_, err = alice.Txn(r.ctx).If(clientv3.Compare(clientv3.Version(r.key("bob/a")), "=", 0)).
		Then(clientv3.OpPut(r.key("alice/b"), "1")).Commit()
	refused("a foreign compare", err, rpctypes.ErrPermissionDenied)
	_, err = alice.UserAdd(r.ctx, "mallory", "secret")
	refused("a user's users", err, rpctypes.ErrPermissionDenied)
	foreign := soon(r, "the refusal", alice.Watch(r.ctx, r.key("bob/"), clientv3.WithPrefix()))
	check(foreign.Canceled && foreign.Err() != nil, "a foreign watch: %v", foreign)
	check(strings.Contains(foreign.Err().Error(), "permission denied"), "a foreign watch: %v", foreign.Err())

	// Changes of who may do what are obeyed at once, also by those who are connected.
	must(root.Put(r.ctx, r.key("bob/a"), "by root"))
	must(root.RoleGrantPermission(r.ctx, "alices", r.key("bob/a"), "", clientv3.PermissionType(clientv3.PermRead)))
	equal("granted", r.pairs(must(alice.Get(r.ctx, r.key("bob/a"))).Kvs), "bob/a=by root")
	must(root.RoleRevokePermission(r.ctx, "alices", r.key("bob/a"), ""))
	_, err = alice.Get(r.ctx, r.key("bob/a"))
	refused("taken back", err, rpctypes.ErrPermissionDenied)
}
