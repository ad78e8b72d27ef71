package main

import (
	"fmt"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func clusterMembers(r *run) {
	members := must(r.client.MemberList(r.ctx)).Members
	equal("members", len(members), len(r.endpoints))
	leaders := map[uint64]bool{}
	ids := map[uint64]bool{}
	for _, endpoint := range r.endpoints {
		status := must(r.client.Status(r.ctx, endpoint))
		check(status.Version != "" && status.DbSize > 0 && status.RaftIndex > 0, "the status is %v", status)
		check(!status.IsLearner && len(status.Errors) == 0, "the status is %v", status)
		leaders[status.Leader] = true
		ids[status.Header.MemberId] = true
	}
	equal("leaders", len(leaders), 1)
	equal("ids", len(ids), len(r.endpoints))
	for _, member := range members {
		check(ids[member.ID], "%s has the id %x, which no endpoint tells", member.Name, member.ID)
		check(len(member.ClientURLs) == 1 && len(member.PeerURLs) == 1, "the member is %v", member)
	}
	synced := r.another()
	check(synced.Sync(r.ctx) == nil, "syncing endpoints failed")
	equal("endpoints after syncing", len(synced.Endpoints()), len(r.endpoints))
	must(synced.Get(r.ctx, r.key("a")))
	equal("alarms", len(must(r.client.AlarmList(r.ctx)).Alarms), 0)
}

// What is written through one member is read and watched through every other.
func clusterEveryMember(r *run) {
	var clients []*clientv3.Client
	var watches []clientv3.WatchChan
	for _, endpoint := range r.endpoints {
		client := must(connect([]string{endpoint}))
		r.after(func() { client.Close() })
		watch := client.Watch(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		check(soon(r, "a watch's creation", watch).Created, "a watch was not created")
		clients, watches = append(clients, client), append(watches, watch)
	}
	for number, writer := range clients {
		written := must(writer.Put(r.ctx, r.key("a"), fmt.Sprint(number)))
		for _, reader := range clients {
			got := must(reader.Get(r.ctx, r.key("a")))
			equal("read through another member", r.pairs(got.Kvs), fmt.Sprintf("a=%d", number))
			equal("its revision", got.Kvs[0].ModRevision, written.Header.Revision)
		}
		for _, watch := range watches {
			equal("watched through another member", r.events(watch, 1), fmt.Sprintf("PUT a=%d", number))
		}
	}
	revision := r.get("a").Header.Revision
	hashes := map[uint32]bool{}
	for number, endpoint := range r.endpoints {
		must(clients[number].Get(r.ctx, r.key("a")))
		hashes[must(r.client.HashKV(r.ctx, endpoint, revision)).Hash] = true
	}
	equal("different hashes", len(hashes), 1)
}

func maintenanceSnapshot(r *run) {
	r.put("a", "1")
	answer := must(r.client.SnapshotWithVersion(r.ctx))
	defer answer.Snapshot.Close()
	check(answer.Version != "", "the snapshot has no version")
	size := must(io.Copy(io.Discard, answer.Snapshot))
	// Pages of the database, then its SHA-256.
	check(size > 32 && size%512 == 32, "the snapshot has %d bytes", size)
	for _, endpoint := range r.endpoints {
		must(r.client.Defragment(r.ctx, endpoint))
	}
	equal("after defragmentation", r.pairs(r.get("a").Kvs), "a=1")
}
