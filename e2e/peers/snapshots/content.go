package main

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const rootPassword = "r"

// first keeps the first error of many calls.
type first struct {
	err error
}

func (f *first) of(_ any, err error) {
	if f.err == nil {
		f.err = err
	}
}

// history has everything but alarms: keys that were overwritten, deleted and made again, before and after a
// compaction; leases; members; users and roles.
func history(m *member) error {
	for _, part := range []func(*member) error{keys, leases, members, users} {
		if err := part(m); err != nil {
			return err
		}
	}
	return nil
}

func keys(m *member) error {
	var done first
	put := func(key, value string) { done.of(m.client.Put(m.ctx, key, value)) }
	for round := range 20 {
		for number := range 12 {
			put(fmt.Sprintf("key/%02d", number), fmt.Sprintf("value %d of round %d", number, round))
		}
		done.of(m.client.Delete(m.ctx, fmt.Sprintf("key/%02d", round%12)))
	}
	put("empty", "")
	put("binary\x00\xff", "\x00\x01\xfe\xff")
	put("long", strings.Repeat("0123456789abcdef", 400))
	put("gone", "a")
	put("gone", "b")
	done.of(m.client.Delete(m.ctx, "gone"))
	put("again", "first life")
	done.of(m.client.Delete(m.ctx, "again"))
	done.of(m.client.Compact(m.ctx, 60, clientv3.WithCompactPhysical()))
	put("again", "second life")
	put("again", "second life, second version")
	done.of(m.client.Txn(m.ctx).Then(
		clientv3.OpPut("txn/a", "1"), clientv3.OpPut("txn/b", "2"),
		clientv3.OpDelete("key/05", clientv3.WithRange("key/08")),
	).Commit())
	done.of(m.client.Delete(m.ctx, "key/1", clientv3.WithPrefix()))
	return done.err
}

// leases has one with keys, one without, and one whose keys have left it.
func leases(m *member) error {
	var done first
	grant := func(id clientv3.LeaseID, ttl int64) {
		request := &pb.LeaseGrantRequest{ID: int64(id), TTL: ttl}
		done.of(pb.NewLeaseClient(m.client.ActiveConnection()).LeaseGrant(m.ctx, request))
	}
	put := func(key string, lease clientv3.LeaseID) {
		done.of(m.client.Put(m.ctx, key, "leased", clientv3.WithLease(lease)))
	}
	const keeping, empty, left = 1000, math.MaxInt64, 3000
	grant(keeping, 3600)
	grant(empty, 7200)
	grant(left, 9_000_000_000)
	put("leased/a", keeping)
	put("leased/b", left)
	put("leased/b", keeping)
	put("leased/c", left)
	done.of(m.client.Put(m.ctx, "leased/c", "no longer"))
	put("leased/d", left)
	done.of(m.client.Delete(m.ctx, "leased/d"))
	return done.err
}

// members has a learner that never starts, and one that is gone.
func members(m *member) error {
	added, err := m.client.MemberAddAsLearner(m.ctx, []string{"http://127.0.0.1:1"})
	if err != nil {
		return err
	}
	// Raft forgets a change of members that follows too closely; a write in between is enough.
	var done first
	done.of(m.client.Put(m.ctx, "members", "added"))
	done.of(m.client.MemberRemove(m.ctx, added.Member.ID))
	done.of(m.client.Put(m.ctx, "members", "removed"))
	if done.err != nil {
		return done.err
	}
	_, err = m.client.MemberAddAsLearner(m.ctx, []string{"http://127.0.0.1:2", "http://127.0.0.1:3"})
	return err
}

func users(m *member) error {
	var done first
	client := m.client
	done.of(client.UserAdd(m.ctx, "root", rootPassword))
	done.of(client.UserAdd(m.ctx, "alice", "a"))
	done.of(client.UserAdd(m.ctx, "bob", "b"))
	byCertificate := &clientv3.UserAddOptions{NoPassword: true}
	done.of(client.UserAddWithOptions(m.ctx, "certificate", "", byCertificate))
	for _, role := range []string{"root", "reader", "writer", "nothing"} {
		done.of(client.RoleAdd(m.ctx, role))
	}
	grant := func(role, key, end string, kind authpb.Permission_Type) {
		done.of(client.RoleGrantPermission(m.ctx, role, key, end, clientv3.PermissionType(kind)))
	}
	grant("reader", "key/", clientv3.GetPrefixRangeEnd("key/"), authpb.READ)
	grant("reader", "txn/a", "", authpb.READ)
	grant("writer", "a", "\x00", authpb.READWRITE)
	grant("writer", "only/written", "", authpb.WRITE)
	for user, role := range map[string]string{"root": "root", "bob": "reader", "certificate": "nothing"} {
		done.of(client.UserGrantRole(m.ctx, user, role))
	}
	done.of(client.UserGrantRole(m.ctx, "alice", "writer"))
	done.of(client.UserGrantRole(m.ctx, "alice", "reader"))
	done.of(client.AuthEnable(m.ctx))
	return done.err
}

// runOutOfSpace is for a member whose quota is used up: the next put raises the alarm.
func runOutOfSpace(m *member) error {
	if _, err := m.client.Put(m.ctx, "too", "much"); !errors.Is(err, rpctypes.ErrNoSpace) {
		return fmt.Errorf("a put without space: %v", err)
	}
	return nil
}

// leaveCompactionUnfinished is for a member that compacts slowly. Its file is made small before.
func leaveCompactionUnfinished(m *member) error {
	if _, err := m.client.Defragment(m.ctx, clientURL); err != nil {
		return err
	}
	_, err := m.client.Compact(m.ctx, 200)
	return err
}

// corrupt raises the alarm that refuses nearly everything else, so it is the last thing that is done.
func corrupt(m *member) error {
	members, err := m.client.MemberList(m.ctx)
	if err != nil {
		return err
	}
	_, err = pb.NewMaintenanceClient(m.client.ActiveConnection()).Alarm(m.ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: members.Header.MemberId, Alarm: pb.AlarmType_CORRUPT,
	})
	return err
}

// afterBump goes on in a store whose revision was bumped: the users of before count.
func afterBump(m *member) error {
	var done first
	done.of(m.client.Put(m.ctx, "key/00", "after the bump"))
	done.of(m.client.Put(m.ctx, "new", "after the bump"))
	done.of(m.client.Delete(m.ctx, "long"))
	done.of(m.client.Delete(m.ctx, "key/01"))
	done.of(m.client.Defragment(m.ctx, clientURL))
	return done.err
}
