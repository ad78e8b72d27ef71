package main

import (
	"context"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// events takes so many events of the case's keys from the channel and writes them as `PUT key=value`.
func (r *run) events(from clientv3.WatchChan, count int) string {
	var words []string
	for len(words) < count {
		answer := soon(r, fmt.Sprintf("event %d of %d", len(words)+1, count), from)
		check(answer.Err() == nil, "the watch ended with %v", answer.Err())
		for _, event := range answer.Events {
			// In a namespace keys have no prefix.
			key := string(event.Kv.Key)
			if strings.HasPrefix(key, r.prefix) || !strings.HasPrefix(key, "/") {
				words = append(words, r.event(event))
			}
		}
	}
	return strings.Join(words, ", ")
}

func (r *run) event(event *clientv3.Event) string {
	text := event.Type.String() + " " + strings.TrimPrefix(string(event.Kv.Key), r.prefix)
	if event.Type == clientv3.EventTypePut {
		text += "=" + string(event.Kv.Value)
	}
	if event.PrevKv != nil {
		text += " before " + string(event.PrevKv.Value)
	}
	return text
}

func watchEvents(r *run) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	live := r.client.Watch(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	created := soon(r, "the watch's creation", live)
	check(created.Created, "the first answer is %v", created)
	start := r.put("a", "1").Header.Revision
	r.put("a", "2")
	must(r.client.Delete(r.ctx, r.key("a")))
	must(r.client.Txn(r.ctx).Then(
		clientv3.OpPut(r.key("b"), "1"), clientv3.OpPut(r.key("c"), "1")).Commit())
	equal("live", r.events(live, 5),
		"PUT a=1, PUT a=2 before 1, DELETE a before 2, PUT b=1, PUT c=1")

	past := r.client.Watch(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithRev(start+1))
	equal("from the past", r.events(past, 4), "PUT a=2, DELETE a, PUT b=1, PUT c=1")
	point := r.client.Watch(ctx, r.key("b"), clientv3.WithRev(start))
	equal("one key", r.events(point, 1), "PUT b=1")
	ranged := r.client.Watch(ctx, r.key("b"), clientv3.WithRange(r.key("d")), clientv3.WithRev(start))
	equal("a range", r.events(ranged, 2), "PUT b=1, PUT c=1")
	whole := r.client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(start+3))
	equal("all keys", r.events(whole, 2), "PUT b=1, PUT c=1")

	// Events of one revision come in one answer, and their revisions are those of their keys.
	again := r.client.Watch(ctx, r.key("b"), clientv3.WithFromKey(), clientv3.WithRev(start+3))
	answer := soon(r, "the transaction", again)
	equal("the events of one revision", len(answer.Events), 2)
	check(answer.Events[0].IsCreate() && !answer.Events[0].IsModify(), "the event is %v", answer.Events[0])
	equal("their revision", answer.Events[1].Kv.ModRevision, start+3)

	future := r.client.Watch(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithRev(start+6))
	r.put("d", "too early")
	r.put("d", "still too early")
	r.put("d", "in time")
	equal("from the future", r.events(future, 1), "PUT d=in time")
	cancel()
	closes(r, "a cancelled watch", future)
}

func watchFilters(r *run) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	start := r.put("a", "1").Header.Revision
	must(r.client.Delete(r.ctx, r.key("a")))
	r.put("b", "1")
	must(r.client.Delete(r.ctx, r.key("b")))
	watch := func(options ...clientv3.OpOption) clientv3.WatchChan {
		options = append(options, clientv3.WithPrefix(), clientv3.WithRev(start))
		return r.client.Watch(ctx, r.prefix, options...)
	}
	noPuts, noDeletes := watch(clientv3.WithFilterPut()), watch(clientv3.WithFilterDelete())
	r.put("end", "1")
	must(r.client.Delete(r.ctx, r.key("end")))
	equal("without puts", r.events(noPuts, 3), "DELETE a, DELETE b, DELETE end")
	equal("without deletions", r.events(noDeletes, 3), "PUT a=1, PUT b=1, PUT end=1")
}

// The server is started with --watch-progress-notify-interval of a fraction of a second.
func watchProgress(r *run) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	now := r.put("a", "1").Header.Revision
	idle := r.client.Watch(ctx, r.key("nothing"), clientv3.WithProgressNotify())
	r.eventually("progress of an idle watch", func() bool {
		answer := soon(r, "progress", idle)
		check(answer.IsProgressNotify(), "an idle watch got %v", answer)
		return answer.Header.Revision >= now
	})
	asking := clientv3.WithRequireLeader(ctx)
	asked := r.client.Watch(asking, r.key("nothing"), clientv3.WithCreatedNotify())
	check(soon(r, "the watch's creation", asked).Created, "the watch was not created")
	now = r.put("a", "2").Header.Revision
	r.eventually("progress that was asked for", func() bool {
		check(r.client.RequestProgress(asking) == nil, "asking for progress failed")
		answer := soon(r, "progress", asked)
		check(answer.IsProgressNotify(), "asking for progress got %v", answer)
		return answer.Header.Revision >= now
	})
}

// One revision whose events, with what was there before, are more than one answer may hold.
func watchFragments(r *run) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	const size = 700 * 1024
	write := func(letter string) int64 {
		value := strings.Repeat(letter, size)
		answer := must(r.client.Txn(r.ctx).Then(
			clientv3.OpPut(r.key("a"), value), clientv3.OpPut(r.key("b"), value)).Commit())
		return answer.Header.Revision
	}
	write("x")
	start := write("y")
	whole := soon(r, "the great events", r.client.Watch(ctx, r.prefix,
		clientv3.WithPrefix(), clientv3.WithRev(start), clientv3.WithPrevKV(), clientv3.WithFragment()))
	equal("events of one revision", len(whole.Events), 2)
	for number, event := range whole.Events {
		equal("the key", string(event.Kv.Key), r.key(string(rune('a'+number))))
		check(string(event.Kv.Value) == strings.Repeat("y", size), "the value is another")
		check(string(event.PrevKv.Value) == strings.Repeat("x", size), "the value before is another")
	}
	// The client has put the pieces together; here they are as they come.
	stream := must(pb.NewWatchClient(r.client.ActiveConnection()).Watch(ctx))
	request := &pb.WatchCreateRequest{
		Key: []byte(r.prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(r.prefix)),
		StartRevision: start, PrevKv: true, Fragment: true,
	}
	check(stream.Send(&pb.WatchRequest{
		RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}}) == nil, "sending failed")
	var pieces []string
	for events := 0; events < 2; {
		answer := must(stream.Recv())
		if answer.Created {
			continue
		}
		events += len(answer.Events)
		pieces = append(pieces, fmt.Sprintf("%d %v", len(answer.Events), answer.Fragment))
	}
	equal("events of each piece, and whether more follow", strings.Join(pieces, ", "), "1 true, 1 false")
	must(r.client.Delete(r.ctx, r.prefix, clientv3.WithPrefix()))
}

func watchMany(r *run) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	const count = 50
	var watches []clientv3.WatchChan
	var cancels []context.CancelFunc
	for number := range count {
		one, cancel := context.WithCancel(ctx)
		watch := r.client.Watch(one, r.key(fmt.Sprint(number)), clientv3.WithCreatedNotify())
		check(soon(r, "a watch's creation", watch).Created, "watch %d was not created", number)
		watches, cancels = append(watches, watch), append(cancels, cancel)
	}
	for number := range count {
		r.put(fmt.Sprint(number), "1")
	}
	for number, watch := range watches {
		equal("the event", r.events(watch, 1), fmt.Sprintf("PUT %d=1", number))
	}
	for number := 0; number < count; number += 2 {
		cancels[number]()
		closes(r, "a cancelled watch", watches[number])
	}
	for number := 1; number < count; number += 2 {
		r.put(fmt.Sprint(number), "2")
		equal("after others were cancelled", r.events(watches[number], 1), fmt.Sprintf("PUT %d=2", number))
	}
	for _, cancel := range cancels {
		cancel()
	}
}

// A watch goes on over broken connections: nothing is lost, nothing comes twice.
func watchResume(r *run) {
	link := must(openLink(r.endpoints[0]))
	r.after(link.close)
	behind := must(connect([]string{link.address()}))
	r.after(func() { behind.Close() })
	watch := behind.Watch(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	check(soon(r, "the watch's creation", watch).Created, "the watch was not created")
	var expected []string
	for round := range 4 {
		r.put("before", fmt.Sprint(round))
		link.cut()
		r.put("during", fmt.Sprint(round))
		link.mend()
		r.put("after", fmt.Sprint(round))
		for _, name := range []string{"before", "during", "after"} {
			expected = append(expected, fmt.Sprintf("PUT %s=%d", name, round))
		}
		equal("the events", r.events(watch, 3), strings.Join(expected[len(expected)-3:], ", "))
	}
	check(link.connections() >= 4, "the link was used %d times only", link.connections())
	_, err := behind.Put(r.ctx, r.key("other"), "calls go on as well")
	check(err == nil, "a put over the mended link: %v", err)
}

func watchCompacted(r *run) {
	// One member: another may not have compacted yet.
	client := r.first()
	old := r.put("a", "1").Header.Revision
	now := r.put("a", "2").Header.Revision
	must(client.Compact(r.ctx, now))
	watch := client.Watch(r.ctx, r.key("a"), clientv3.WithRev(old))
	answer := soon(r, "the refusal", watch)
	refused("a compacted watch", answer.Err(), rpctypes.ErrCompacted)
	equal("where it may begin", answer.CompactRevision, now)
	check(answer.Canceled, "the watch was not cancelled")
	closes(r, "a compacted watch", watch)
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	kept := client.Watch(ctx, r.key("a"), clientv3.WithRev(now))
	equal("from the compaction on", r.events(kept, 1), "PUT a=2")
}
