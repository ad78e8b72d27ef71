package main

import (
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// pairs writes keys and values as `key=value`, without what the keys of a case have in common.
func (r *run) pairs(kvs []*mvccpb.KeyValue) string {
	var words []string
	for _, kv := range kvs {
		words = append(words, strings.TrimPrefix(string(kv.Key), r.prefix)+"="+string(kv.Value))
	}
	return strings.Join(words, " ")
}

func kvPutGetDelete(r *run) {
	first := r.put("a", "1")
	second := r.put("a", "2", clientv3.WithPrevKV())
	equal("revisions between two puts", second.Header.Revision, first.Header.Revision+1)
	equal("the previous pair", r.pairs([]*mvccpb.KeyValue{second.PrevKv}), "a=1")
	check(first.PrevKv == nil, "a previous pair came without being asked for")
	check(first.Header.ClusterId != 0 && first.Header.MemberId != 0, "the header is %v", first.Header)
	check(first.Header.RaftTerm != 0, "the header has no term")

	got := r.get("a")
	equal("the pair", r.pairs(got.Kvs), "a=2")
	equal("its creation", got.Kvs[0].CreateRevision, first.Header.Revision)
	equal("its modification", got.Kvs[0].ModRevision, second.Header.Revision)
	equal("its version", got.Kvs[0].Version, 2)
	equal("count", got.Count, 1)

	r.put("b", "\x00\xff binary")
	equal("a binary value", string(r.get("b").Kvs[0].Value), "\x00\xff binary")
	r.put("c", "")
	equal("an empty value", r.pairs(r.get("c").Kvs), "c=")

	one := must(r.client.Delete(r.ctx, r.key("a"), clientv3.WithPrevKV()))
	equal("deleted", one.Deleted, 1)
	equal("the deleted pair", r.pairs(one.PrevKvs), "a=2")
	none := must(r.client.Delete(r.ctx, r.key("a")))
	equal("deleted again", none.Deleted, 0)
	equal("the revision of deleting nothing", none.Header.Revision, one.Header.Revision)
	equal("left", len(r.get("a").Kvs), 0)

	again := r.put("a", "3")
	got = r.get("a")
	equal("the version after a deletion", got.Kvs[0].Version, 1)
	equal("the creation after a deletion", got.Kvs[0].CreateRevision, again.Header.Revision)
	all := must(r.client.Delete(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV()))
	equal("deleted by prefix", r.pairs(all.PrevKvs), "a=3 b=\x00\xff binary c=")
}

func kvRanges(r *run) {
	for _, name := range []string{"a", "b", "ba", "bb", "c", "d"} {
		r.put(name, name)
	}
	equal("by prefix", r.pairs(r.get("b", clientv3.WithPrefix()).Kvs), "b=b ba=ba bb=bb")
	equal("a half-open range", r.pairs(r.get("b", clientv3.WithRange(r.key("c"))).Kvs), "b=b ba=ba bb=bb")
	equal("an empty range", r.get("c", clientv3.WithRange(r.key("b"))).Count, 0)
	from := r.get("c", clientv3.WithFromKey(), clientv3.WithLimit(2))
	equal("from a key", r.pairs(from.Kvs), "c=c d=d")
	keys := r.get("b", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	equal("keys only", r.pairs(keys.Kvs), "b= ba= bb=")
	counted := r.get("", clientv3.WithPrefix(), clientv3.WithCountOnly())
	equal("counted", counted.Count, 6)
	equal("pairs of a count", len(counted.Kvs), 0)
	equal("whole prefix", r.get("", clientv3.WithPrefix(), clientv3.WithSerializable()).Count > 0, true)

	first := must(r.client.Get(r.ctx, r.prefix, clientv3.WithFirstKey()...))
	equal("the first key", r.pairs(first.Kvs), "a=a")
	last := must(r.client.Get(r.ctx, r.prefix, clientv3.WithLastKey()...))
	equal("the last key", r.pairs(last.Kvs), "d=d")
	r.put("b", "changed")
	newest := must(r.client.Get(r.ctx, r.prefix, clientv3.WithLastRev()...))
	equal("the newest change", r.pairs(newest.Kvs), "b=changed")
	oldest := must(r.client.Get(r.ctx, r.prefix, clientv3.WithFirstRev()...))
	equal("the oldest change", r.pairs(oldest.Kvs), "a=a")
	created := must(r.client.Get(r.ctx, r.prefix, clientv3.WithLastCreate()...))
	equal("the last created", r.pairs(created.Kvs), "d=d")
	created = must(r.client.Get(r.ctx, r.prefix, clientv3.WithFirstCreate()...))
	equal("the first created", r.pairs(created.Kvs), "a=a")
}

func kvSortAndLimit(r *run) {
	// Keys, values, creation and versions each have an order of their own.
	for _, pair := range []string{"b 3", "c 1", "a 2", "c 0", "c 1", "b 3"} {
		name, value, _ := strings.Cut(pair, " ")
		r.put(name, value)
	}
	for _, each := range []struct {
		target   clientv3.SortTarget
		expected string
	}{
		{clientv3.SortByKey, "a=2 b=3 c=1"},
		{clientv3.SortByValue, "c=1 a=2 b=3"},
		{clientv3.SortByCreateRevision, "b=3 c=1 a=2"},
		{clientv3.SortByModRevision, "a=2 c=1 b=3"},
		{clientv3.SortByVersion, "a=2 b=3 c=1"},
	} {
		up := r.get("", clientv3.WithPrefix(), clientv3.WithSort(each.target, clientv3.SortAscend))
		equal(fmt.Sprintf("ascending by %d", each.target), r.pairs(up.Kvs), each.expected)
		words := strings.Fields(each.expected)
		down := r.get("", clientv3.WithPrefix(), clientv3.WithSort(each.target, clientv3.SortDescend))
		reversed := words[2] + " " + words[1] + " " + words[0]
		equal(fmt.Sprintf("descending by %d", each.target), r.pairs(down.Kvs), reversed)
		one := r.get("", clientv3.WithPrefix(), clientv3.WithLimit(1),
			clientv3.WithSort(each.target, clientv3.SortDescend))
		equal("the greatest", r.pairs(one.Kvs), words[2])
	}
	page := r.get("", clientv3.WithPrefix(), clientv3.WithLimit(2))
	equal("a page", r.pairs(page.Kvs), "a=2 b=3")
	check(page.More && page.Count == 3, "more is %v, count is %d", page.More, page.Count)
	whole := r.get("", clientv3.WithPrefix(), clientv3.WithLimit(3))
	check(!whole.More, "there is more after the last pair")
}

func kvRevisions(r *run) {
	var revisions []int64
	for _, pair := range []string{"a 1", "b 1", "a 2", "c 1"} {
		name, value, _ := strings.Cut(pair, " ")
		revisions = append(revisions, r.put(name, value).Header.Revision)
	}
	last := must(r.client.Delete(r.ctx, r.key("b"))).Header.Revision
	then := func(revision int64) string {
		return r.pairs(r.get("", clientv3.WithPrefix(), clientv3.WithRev(revision)).Kvs)
	}
	equal("at the first", then(revisions[0]), "a=1")
	equal("at the second", then(revisions[1]), "a=1 b=1")
	equal("at the third", then(revisions[2]), "a=2 b=1")
	equal("at the last", then(last), "a=2 c=1")
	old := r.get("a", clientv3.WithRev(revisions[0]))
	equal("the header of a read in the past", old.Header.Revision, last)

	// Limits of revisions drop pairs from the answer, not from the count.
	for _, each := range []struct {
		name     string
		option   clientv3.OpOption
		expected string
	}{
		{"least modification", clientv3.WithMinModRev(revisions[3]), "c=1"},
		{"greatest modification", clientv3.WithMaxModRev(revisions[2]), "a=2"},
		{"least creation", clientv3.WithMinCreateRev(revisions[1]), "c=1"},
		{"greatest creation", clientv3.WithMaxCreateRev(revisions[1]), "a=2"},
	} {
		got := r.get("", clientv3.WithPrefix(), each.option)
		equal(each.name, r.pairs(got.Kvs), each.expected)
		equal(each.name+": count", got.Count, 2)
	}
	_, err := r.client.Get(r.ctx, r.key("a"), clientv3.WithRev(last+100))
	refused("a revision to come", err, rpctypes.ErrFutureRev)
}

func kvKeepValueOrLease(r *run) {
	lease := must(r.client.Grant(r.ctx, 60))
	r.put("a", "1", clientv3.WithLease(lease.ID))
	equal("the lease", r.get("a").Kvs[0].Lease, int64(lease.ID))
	r.put("a", "2", clientv3.WithIgnoreLease())
	got := r.get("a").Kvs[0]
	check(string(got.Value) == "2" && got.Lease == int64(lease.ID), "the pair is %v", got)
	r.put("a", "", clientv3.WithIgnoreValue())
	got = r.get("a").Kvs[0]
	check(string(got.Value) == "2" && got.Lease == 0, "the pair is %v", got)
	equal("its version", got.Version, 3)
	_, err := r.client.Put(r.ctx, r.key("none"), "", clientv3.WithIgnoreValue())
	refused("the value of no key", err, rpctypes.ErrKeyNotFound)
	_, err = r.client.Put(r.ctx, r.key("none"), "x", clientv3.WithIgnoreLease())
	refused("the lease of no key", err, rpctypes.ErrKeyNotFound)
	must(r.client.Revoke(r.ctx, lease.ID))
	equal("a key that has left its lease", r.get("a").Count, 1)
}

func kvRefusals(r *run) {
	_, err := r.client.Put(r.ctx, "", "value")
	refused("a put without key", err, rpctypes.ErrEmptyKey)
	_, err = r.client.Get(r.ctx, "")
	refused("a get without key", err, rpctypes.ErrEmptyKey)
	_, err = r.client.Delete(r.ctx, "")
	refused("a deletion without key", err, rpctypes.ErrEmptyKey)
	_, err = r.client.Put(r.ctx, r.key("a"), "1", clientv3.WithLease(12345))
	refused("a lease that is not there", err, rpctypes.ErrLeaseNotFound)
	_, err = r.client.Put(r.ctx, r.key("a"), strings.Repeat("x", 1600*1024))
	refused("a great value", err, rpctypes.ErrRequestTooLarge)
	r.put("a", strings.Repeat("x", 1500*1024))
	equal("the greatest value", len(r.get("a").Kvs[0].Value), 1500*1024)
	must(r.client.Delete(r.ctx, r.key("a")))
}

func kvStream(r *run) {
	const count = 300
	value := strings.Repeat("v", 10*1024)
	for from := 0; from < count; from += 100 {
		var puts []clientv3.Op
		for number := from; number < from+100; number++ {
			puts = append(puts, clientv3.OpPut(r.key(fmt.Sprintf("%04d", number)), value))
		}
		must(r.client.Txn(r.ctx).Then(puts...).Commit())
	}
	chunks := 0
	var streamed []*mvccpb.KeyValue
	for chunk := range must(r.client.GetStream(r.ctx, r.prefix, clientv3.WithPrefix())) {
		check(chunk.Err() == nil, "the stream ended with %v", chunk.Err())
		streamed = append(streamed, chunk.Kvs...)
		chunks++
	}
	check(chunks > 1, "three megabytes came in one piece")
	equal("streamed", r.pairs(streamed), r.pairs(r.get("", clientv3.WithPrefix()).Kvs))
	whole := must(clientv3.GetStreamToGetResponse(must(
		r.client.GetStream(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithLimit(7)))))
	equal("streamed pairs", len(whole.Kvs), 7)
	equal("streamed count", whole.Count, count)
	check(whole.More, "a limited stream says that there is no more")
	must(r.client.Delete(r.ctx, r.prefix, clientv3.WithPrefix()))
}

func kvCompaction(r *run) {
	old := r.put("a", "1").Header.Revision
	now := r.put("a", "2").Header.Revision
	must(r.client.Compact(r.ctx, now, clientv3.WithCompactPhysical()))
	_, err := r.client.Get(r.ctx, r.key("a"), clientv3.WithRev(old))
	refused("a compacted read", err, rpctypes.ErrCompacted)
	equal("at the compaction", r.pairs(r.get("a", clientv3.WithRev(now)).Kvs), "a=2")
	_, err = r.client.Compact(r.ctx, now)
	refused("the same compaction again", err, rpctypes.ErrCompacted)
	_, err = r.client.Compact(r.ctx, now+100)
	refused("a compaction of what is to come", err, rpctypes.ErrFutureRev)
}
