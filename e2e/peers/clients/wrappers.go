package main

import (
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

func namespaceAll(r *run) {
	inner := r.another()
	inner.KV = namespace.NewKV(inner.KV, r.prefix)
	inner.Watcher = namespace.NewWatcher(inner.Watcher, r.prefix)
	inner.Lease = namespace.NewLease(inner.Lease, r.prefix)
	watch := inner.Watch(r.ctx, "", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	check(soon(r, "the watch's creation", watch).Created, "the watch was not created")
	lease := must(inner.Grant(r.ctx, 60))
	must(inner.Put(r.ctx, "a", "1", clientv3.WithLease(lease.ID)))
	must(inner.Txn(r.ctx).
		If(clientv3.Compare(clientv3.Value("a"), "=", "1")).
		Then(clientv3.OpPut("b", "1"), clientv3.OpGet("", clientv3.WithFromKey())).Commit())
	must(r.client.Put(r.ctx, "/outside-of-namespace", "1"))
	must(inner.Delete(r.ctx, "b"))
	equal("inside", r.pairs(must(inner.Get(r.ctx, "", clientv3.WithFromKey())).Kvs), "a=1")
	equal("from outside", r.pairs(r.get("", clientv3.WithPrefix()).Kvs), "a=1")
	left := must(inner.TimeToLive(r.ctx, lease.ID, clientv3.WithAttachedKeys()))
	equal("the keys of the lease", fmt.Sprintf("%s", left.Keys), "[a]")
	must(inner.Revoke(r.ctx, lease.ID))
	equal("watched", r.events(watch, 4), "PUT a=1, PUT b=1, DELETE b before 1, DELETE a before 1")
}

// A mirror has the base, which is read in pages, and then every update.
func mirrorAll(r *run) {
	const base = 1200
	for from := 0; from < base; from += 100 {
		var puts []clientv3.Op
		for number := from; number < from+100; number++ {
			puts = append(puts, clientv3.OpPut(r.key(fmt.Sprintf("source/%04d", number)), fmt.Sprint(number)))
		}
		must(r.client.Txn(r.ctx).Then(puts...).Commit())
	}
	syncer := mirror.NewSyncer(r.client, r.key("source/"), 0)
	copied := map[string]string{}
	pages, errs := syncer.SyncBase(r.ctx)
	count := 0
	for page := range pages {
		count++
		for _, kv := range page.Kvs {
			copied[string(kv.Key)] = string(kv.Value)
		}
		if count == 1 {
			// After the base was begun: it belongs to the updates.
			r.put("source/0000", "changed")
		}
	}
	check(<-errs == nil, "reading the base failed")
	check(count == 2 && len(copied) == base, "%d keys in %d pages", len(copied), count)
	equal("the base at its revision", copied[r.key("source/0000")], "0")
	updates := syncer.SyncUpdates(r.ctx)
	must(r.client.Delete(r.ctx, r.key("source/0001")))
	last := r.put("source/end", "1").Header.Revision
	for seen := int64(0); seen < last; {
		for _, event := range soon(r, "an update", updates).Events {
			key := string(event.Kv.Key)
			if event.Type == clientv3.EventTypeDelete {
				delete(copied, key)
			} else {
				copied[key] = string(event.Kv.Value)
			}
			seen = event.Kv.ModRevision
		}
	}
	source := r.get("source/", clientv3.WithPrefix())
	equal("mirrored", len(copied), int(source.Count))
	for _, kv := range source.Kvs {
		equal(string(kv.Key), copied[string(kv.Key)], string(kv.Value))
	}
	must(r.client.Delete(r.ctx, r.prefix, clientv3.WithPrefix()))
}

// Serializable reads may be old, but with ordering they never go back.
func orderingAll(r *run) {
	client := r.another()
	kv := ordering.NewKV(client.KV, ordering.NewOrderViolationSwitchEndpointClosure(client))
	last := int64(0)
	for number := range 30 {
		written := r.put("a", fmt.Sprint(number)).Header.Revision
		if number%5 == 0 {
			sure := must(kv.Get(r.ctx, r.key("a")))
			check(sure.Header.Revision >= written, "a linearizable read is older than a write")
			last = max(last, sure.Header.Revision)
		}
		got, err := kv.Get(r.ctx, r.key("a"), clientv3.WithSerializable())
		// All members may be behind for a moment; that is said instead of going back.
		if err == ordering.ErrNoGreaterRev {
			continue
		}
		got = must(got, err)
		check(got.Header.Revision >= last, "revision %d after %d", got.Header.Revision, last)
		last = got.Header.Revision
		answer := must(kv.Txn(r.ctx).Then(clientv3.OpGet(r.key("a"))).Commit())
		check(answer.Header.Revision >= last, "revision %d after %d", answer.Header.Revision, last)
		last = answer.Header.Revision
	}
}

func leasingAll(r *run) {
	names := r.key("leasing/")
	link := must(openLink(r.endpoints[0]))
	r.after(link.close)
	linked := must(connect([]string{link.address()}))
	r.after(func() { linked.Close() })
	near, closeNear, err := leasing.NewKV(linked, names)
	check(err == nil, "the first: %v", err)
	defer closeNear()
	far, closeFar, err := leasing.NewKV(r.another(), names)
	check(err == nil, "the second: %v", err)
	defer closeFar()
	key := r.key("data/a")
	read := func(kv clientv3.KV) string {
		var values []string
		for _, each := range must(kv.Get(r.ctx, key)).Kvs {
			values = append(values, string(each.Value))
		}
		return strings.Join(values, " ")
	}
	must(r.client.Put(r.ctx, key, "0"))
	equal("read", read(near), "0")
	owners := r.get("leasing/", clientv3.WithPrefix(), clientv3.WithCountOnly()).Count
	equal("keys that are leased", owners, 1)
	// From now on it is read without asking the server, until somebody wants to change it.
	link.cut()
	equal("read from memory", read(near), "0")
	link.mend()
	for round := range 5 {
		must(far.Put(r.ctx, key, fmt.Sprint("far", round)))
		equal("what the owner reads", read(near), fmt.Sprint("far", round))
		must(near.Put(r.ctx, key, fmt.Sprint("near", round)))
		equal("what the other reads", read(far), fmt.Sprint("near", round))
	}
	answer := must(far.Txn(r.ctx).
		If(clientv3.Compare(clientv3.Value(key), "=", "near4")).
		Then(clientv3.OpPut(key, "txn"), clientv3.OpGet(key)).Commit())
	check(answer.Succeeded, "the compare did not hold")
	equal("after the transaction", read(near), "txn")
	// How many were deleted is not asserted: leasing does not pass it on when it takes the key back.
	must(far.Delete(r.ctx, key))
	equal("after the deletion", read(near), "")
	equal("in etcd", r.get("data/", clientv3.WithPrefix()).Count, 0)
}
