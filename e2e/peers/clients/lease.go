package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func leaseGrantAndRevoke(r *run) {
	lease := must(r.client.Grant(r.ctx, 60))
	check(lease.ID != clientv3.NoLease && lease.TTL == 60, "granted %v", lease)
	r.put("b", "", clientv3.WithLease(lease.ID))
	r.put("a", "", clientv3.WithLease(lease.ID))
	left := must(r.client.TimeToLive(r.ctx, lease.ID, clientv3.WithAttachedKeys()))
	check(left.GrantedTTL == 60 && left.TTL > 0 && left.TTL <= 60, "time to live: %v", left)
	var keys []string
	for _, key := range left.Keys {
		keys = append(keys, string(key))
	}
	slices.Sort(keys)
	equal("its keys", fmt.Sprint(keys), fmt.Sprint([]string{r.key("a"), r.key("b")}))
	equal("keys that were not asked for", len(must(r.client.TimeToLive(r.ctx, lease.ID)).Keys), 0)
	listed := func() bool {
		all := must(r.client.Leases(r.ctx)).Leases
		return slices.Contains(all, clientv3.LeaseStatus{ID: lease.ID})
	}
	r.eventually("the lease in the list", listed)
	once := must(r.client.KeepAliveOnce(r.ctx, lease.ID))
	check(once.TTL == 60 && once.ID == lease.ID, "kept alive: %v", once)

	before := r.get("a").Header.Revision
	revoked := must(r.client.Revoke(r.ctx, lease.ID))
	// All its keys go in one revision.
	equal("the revision of revoking", revoked.Header.Revision, before+1)
	equal("keys left", r.get("", clientv3.WithPrefix()).Count, 0)
	check(!listed() || len(r.endpoints) > 1, "a revoked lease is listed")
	_, err := r.client.Revoke(r.ctx, lease.ID)
	refused("revoking twice", err, rpctypes.ErrLeaseNotFound)
	gone := must(r.client.TimeToLive(r.ctx, lease.ID))
	equal("the time that a revoked lease has", gone.TTL, -1)
	_, err = r.client.KeepAliveOnce(r.ctx, lease.ID)
	refused("keeping a revoked lease alive", err, rpctypes.ErrLeaseNotFound)
	_, err = r.client.Grant(r.ctx, 9_000_000_001)
	refused("a lease for three centuries", err, rpctypes.ErrLeaseTTLTooLarge)
}

func leaseKeepalive(r *run) {
	lease := must(r.client.Grant(r.ctx, 2))
	r.put("a", "", clientv3.WithLease(lease.ID))
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	first := must(r.client.KeepAlive(ctx, lease.ID))
	// A second channel of the same lease shares the stream.
	second := must(r.client.KeepAlive(ctx, lease.ID))
	begun := time.Now()
	beats := 0
	for time.Since(begun) < 4*time.Second {
		beat := soon(r, "a heartbeat", first)
		check(beat.ID == lease.ID && beat.TTL == 2, "the heartbeat is %v", beat)
		beats++
	}
	check(beats >= 4, "only %d heartbeats in twice the time to live", beats)
	soon(r, "a heartbeat of the second channel", second)
	equal("the key of a lease that is kept alive", r.get("a").Count, 1)
	must(r.client.Revoke(r.ctx, lease.ID))
	closes(r, "the channel of a revoked lease", first)
	closes(r, "the other channel", second)
	none := must(r.client.KeepAlive(ctx, clientv3.LeaseID(424242)))
	closes(r, "the channel of no lease", none)
}

func leaseExpiry(r *run) {
	lease := must(r.client.Grant(r.ctx, 2))
	watch := r.client.Watch(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV())
	granted := time.Now()
	r.put("a", "1", clientv3.WithLease(lease.ID))
	r.put("b", "1", clientv3.WithLease(lease.ID))
	equal("what the lease takes along", r.events(watch, 4),
		"PUT a=1, PUT b=1, DELETE a before 1, DELETE b before 1")
	took := time.Since(granted)
	check(took >= 1500*time.Millisecond, "the lease of two seconds lasted %v", took)
	equal("the time that it has", must(r.client.TimeToLive(r.ctx, lease.ID)).TTL, -1)
	_, err := r.client.Put(r.ctx, r.key("a"), "", clientv3.WithLease(lease.ID))
	refused("a key for an expired lease", err, rpctypes.ErrLeaseNotFound)
}
