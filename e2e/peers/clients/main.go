// Clients is what users write with clientv3: `clients cases` goes through every package of it against a
// running cluster, `clients worker` is a service that registers itself.
//
// It knows nothing of the server: what it expects holds for Go etcd, against which the same program
// is run. Each case prints one line, `ok NAME` or `FAILED NAME: why`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Long enough for a machine that is busy with other things; no case waits for it to pass.
const caseLimit = 40 * time.Second

func main() {
	if len(os.Args) < 2 {
		fatal("say `cases` or `worker`")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	endpoints := flags.String("endpoints", "127.0.0.1:2379", "host and port of the members, with commas")
	only := flags.String("only", "", "cases: run those whose name begins so")
	key := flags.String("key", "", "worker: the key to register under")
	address := flags.String("address", "", "worker: the address to register")
	ttl := flags.Int64("ttl", 2, "worker: seconds that a registration outlives its worker")
	if err := flags.Parse(os.Args[2:]); err != nil {
		fatal(err.Error())
	}
	switch os.Args[1] {
	case "cases":
		if !runCases(strings.Split(*endpoints, ","), *only) {
			os.Exit(1)
		}
	case "worker":
		if err := work(strings.Split(*endpoints, ","), *key, *address, *ttl); err != nil {
			fatal(err.Error())
		}
	default:
		fatal("say `cases` or `worker`, not " + os.Args[1])
	}
}

func fatal(text string) {
	fmt.Fprintln(os.Stderr, "clients: "+text)
	os.Exit(2)
}

func connect(endpoints []string) (*clientv3.Client, error) {
	return connectAs(endpoints, "", "")
}

func connectAs(endpoints []string, user, password string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: 10 * time.Second,
		Username:    user,
		Password:    password,
		// What a client says while it retries is not part of what it answers.
		Logger: zap.NewNop(),
	})
}

// A named case; all keys that it writes begin with its name.
type testCase struct {
	name string
	body func(*run)
}

// In this order: compaction takes history away, and authentication shuts out everyone else.
var allCases = []testCase{
	{"kv/put-get-delete", kvPutGetDelete},
	{"kv/ranges", kvRanges},
	{"kv/sort-and-limit", kvSortAndLimit},
	{"kv/revisions", kvRevisions},
	{"kv/keep-value-or-lease", kvKeepValueOrLease},
	{"kv/refusals", kvRefusals},
	{"kv/stream", kvStream},
	{"txn/compares", txnCompares},
	{"txn/operations", txnOperations},
	{"txn/refusals", txnRefusals},
	{"watch/events", watchEvents},
	{"watch/filters", watchFilters},
	{"watch/progress", watchProgress},
	{"watch/fragments", watchFragments},
	{"watch/many-on-one-stream", watchMany},
	{"watch/resume", watchResume},
	{"lease/grant-and-revoke", leaseGrantAndRevoke},
	{"lease/keepalive", leaseKeepalive},
	{"lease/expiry", leaseExpiry},
	{"concurrency/session", concurrencySession},
	{"concurrency/lock", concurrencyLock},
	{"concurrency/election", concurrencyElection},
	{"concurrency/stm", concurrencySTM},
	{"naming/endpoints", namingEndpoints},
	{"naming/resolver", namingResolver},
	{"namespace", namespaceAll},
	{"mirror", mirrorAll},
	{"ordering", orderingAll},
	{"leasing", leasingAll},
	{"discovery/worker-and-master", discovery},
	{"cluster/members-and-status", clusterMembers},
	{"cluster/every-member-serves", clusterEveryMember},
	{"maintenance/snapshot", maintenanceSnapshot},
	{"kv/compaction", kvCompaction},
	{"watch/compacted", watchCompacted},
	{"auth/users-and-roles", authUsersAndRoles},
	{"auth/enabled", authEnabled},
}

func runCases(endpoints []string, only string) bool {
	client, err := connect(endpoints)
	if err != nil {
		fatal(err.Error())
	}
	defer client.Close()
	well := true
	for _, each := range allCases {
		if !strings.HasPrefix(each.name, only) {
			continue
		}
		if why := runCase(client, endpoints, each); why != "" {
			well = false
			fmt.Printf("FAILED %s: %s\n", each.name, strings.ReplaceAll(why, "\n", " "))
		} else {
			fmt.Printf("ok %s\n", each.name)
		}
	}
	return well
}

// What a case has at hand.
type run struct {
	ctx       context.Context
	client    *clientv3.Client
	endpoints []string
	prefix    string
	cleanups  []func()
}

// failure is how a case ends itself; any other panic is a bug of this program.
type failure struct{ why string }

func runCase(client *clientv3.Client, endpoints []string, each testCase) (why string) {
	ctx, cancel := context.WithTimeout(context.Background(), caseLimit)
	defer cancel()
	// Of this run alone: a watch through a member that is behind would see what another run has left.
	prefix := fmt.Sprintf("/%s/%x/", each.name, time.Now().UnixNano())
	r := &run{ctx: ctx, client: client, endpoints: endpoints, prefix: prefix}
	r.after(func() { client.Delete(ctx, prefix, clientv3.WithPrefix()) })
	defer func() {
		for i := len(r.cleanups) - 1; i >= 0; i-- {
			r.cleanups[i]()
		}
	}()
	defer func() {
		if caught := recover(); caught != nil {
			ended, ours := caught.(failure)
			if !ours {
				panic(caught)
			}
			why = ended.why
		}
	}()
	each.body(r)
	return ""
}

func (r *run) key(name string) string { return r.prefix + name }

func (r *run) after(cleanup func()) { r.cleanups = append(r.cleanups, cleanup) }

// first is a client of one member, for what holds only in the order in which that member does it.
func (r *run) first() *clientv3.Client {
	client := must(connect(r.endpoints[:1]))
	r.after(func() { client.Close() })
	return client
}

// another is a second client, as of another process.
func (r *run) another() *clientv3.Client {
	client := must(connect(r.endpoints))
	r.after(func() { client.Close() })
	return client
}

func (r *run) put(key, value string, options ...clientv3.OpOption) *clientv3.PutResponse {
	return must(r.client.Put(r.ctx, r.key(key), value, options...))
}

func (r *run) get(key string, options ...clientv3.OpOption) *clientv3.GetResponse {
	return must(r.client.Get(r.ctx, r.key(key), options...))
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(failure{err.Error()})
	}
	return value
}

func check(holds bool, format string, arguments ...any) {
	if !holds {
		panic(failure{fmt.Sprintf(format, arguments...)})
	}
}

func equal[T comparable](what string, actual, expected T) {
	check(actual == expected, "%s is %v, not %v", what, actual, expected)
}

func refused(what string, err, expected error) {
	check(err == expected, "%s: the error is %v, not %v", what, err, expected)
}

// soon receives from a channel within the limit of the case.
func soon[T any](r *run, what string, from <-chan T) T {
	select {
	case value, open := <-from:
		check(open, "%s: the channel was closed", what)
		return value
	case <-r.ctx.Done():
		panic(failure{what + " did not come"})
	}
}

// closes waits until a channel is closed, whatever is still in it.
func closes[T any](r *run, what string, channel <-chan T) {
	for {
		select {
		case _, open := <-channel:
			if !open {
				return
			}
		case <-r.ctx.Done():
			panic(failure{what + " was not closed"})
		}
	}
}

// eventually looks until a condition holds.
func (r *run) eventually(what string, holds func() bool) {
	for !holds() {
		select {
		case <-r.ctx.Done():
			panic(failure{what + " did not come about"})
		case <-time.After(20 * time.Millisecond):
		}
	}
}
