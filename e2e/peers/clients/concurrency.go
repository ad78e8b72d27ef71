package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// session is one of another client's, as in another process.
func (r *run) session(options ...concurrency.SessionOption) *concurrency.Session {
	session := must(concurrency.NewSession(r.another(), options...))
	r.after(func() { session.Close() })
	return session
}

func concurrencySession(r *run) {
	session := r.session(concurrency.WithTTL(5))
	left := must(r.client.TimeToLive(r.ctx, session.Lease()))
	equal("the session's time", left.GrantedTTL, 5)
	must(r.client.Revoke(r.ctx, session.Lease()))
	closes(r, "a session whose lease was revoked", session.Done())

	lease := must(r.client.Grant(r.ctx, 30))
	given := r.session(concurrency.WithLease(lease.ID))
	equal("the session's lease", given.Lease(), lease.ID)
	check(given.Close() == nil, "closing the session failed")
	equal("the lease of a closed session", must(r.client.TimeToLive(r.ctx, lease.ID)).TTL, -1)
	closes(r, "a closed session", given.Done())
}

func concurrencyLock(r *run) {
	one, two := r.session(), r.session(concurrency.WithTTL(2))
	first, second := concurrency.NewMutex(one, r.key("lock")), concurrency.NewMutex(two, r.key("lock"))
	check(first.Lock(r.ctx) == nil, "a free lock was not had")
	refused("a lock that is held", second.TryLock(r.ctx), concurrency.ErrLocked)
	guarded := must(r.client.Txn(r.ctx).If(first.IsOwner()).Then(clientv3.OpPut(r.key("guarded"), "1")).Commit())
	check(guarded.Succeeded, "the owner is not the owner")
	got := make(chan error, 1)
	go func() { got <- second.Lock(r.ctx) }()
	r.eventually("two in line", func() bool { return r.get("lock/", clientv3.WithPrefix()).Count == 2 })
	check(len(got) == 0, "two have the lock")
	check(first.Unlock(r.ctx) == nil, "unlocking failed")
	check(soon(r, "the lock", got) == nil, "the second did not get the lock")
	late := must(r.client.Txn(r.ctx).If(first.IsOwner()).Then(clientv3.OpPut(r.key("guarded"), "2")).Commit())
	check(!late.Succeeded, "who has unlocked is still the owner")

	// Who dies with the lock loses it when its lease ends.
	go func() { got <- first.Lock(r.ctx) }()
	two.Orphan()
	check(soon(r, "the lock of the dead", got) == nil, "the lock of the dead was not had")
	check(first.Unlock(r.ctx) == nil, "unlocking failed")
	exclusion(r)
}

// exclusion lets several add to a number that only a lock protects.
func exclusion(r *run) {
	const workers, rounds = 4, 5
	r.put("number", "0")
	var group sync.WaitGroup
	errs := make(chan error, workers)
	for range workers {
		session := r.session()
		group.Go(func() {
			lock := concurrency.NewLocker(session, r.key("counter"))
			for range rounds {
				lock.Lock()
				got, err := r.client.Get(r.ctx, r.key("number"))
				if err == nil {
					number, _ := strconv.Atoi(string(got.Kvs[0].Value))
					_, err = r.client.Put(r.ctx, r.key("number"), strconv.Itoa(number+1))
				}
				lock.Unlock()
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		check(false, "a worker: %v", err)
	}
	equal("counted under a lock", string(r.get("number").Kvs[0].Value), fmt.Sprint(workers*rounds))
}

func concurrencyElection(r *run) {
	one, two := r.session(), r.session()
	name := r.key("election")
	first, second := concurrency.NewElection(one, name), concurrency.NewElection(two, name)
	_, err := first.Leader(r.ctx)
	refused("nobody leads", err, concurrency.ErrElectionNoLeader)
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	observed := concurrency.NewElection(r.session(), name).Observe(ctx)
	leader := func() string { return string(soon(r, "a leader", observed).Kvs[0].Value) }

	check(first.Campaign(r.ctx, "one") == nil, "the first campaign failed")
	equal("observed", leader(), "one")
	won := make(chan error, 1)
	go func() { won <- second.Campaign(r.ctx, "two") }()
	r.eventually("two candidates", func() bool { return r.get("election/", clientv3.WithPrefix()).Count == 2 })
	check(first.Proclaim(r.ctx, "one again") == nil, "proclaiming failed")
	equal("observed", leader(), "one again")
	equal("the leader", string(must(first.Leader(r.ctx)).Kvs[0].Value), "one again")
	check(len(won) == 0, "two lead")

	resumed := concurrency.ResumeElection(one, name, first.Key(), first.Rev())
	check(resumed.Resign(r.ctx) == nil, "resigning failed")
	check(soon(r, "the second leader", won) == nil, "the second campaign failed")
	equal("observed", leader(), "two")
	refused("proclaiming after resigning", first.Proclaim(r.ctx, "no"), concurrency.ErrElectionNotLeader)
	check(two.Close() == nil, "closing the session failed")
	r.eventually("no leader", func() bool {
		_, err := first.Leader(r.ctx)
		return err == concurrency.ErrElectionNoLeader
	})
}

func concurrencySTM(r *run) {
	// A transaction reads at one revision without asking the leader, so with several members it may
	// meet one that is not there yet, and the client gives up.
	client := r.first()
	for _, isolation := range []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
	} {
		transfers(r, client, fmt.Sprintf("%d/", isolation), isolation)
	}
	with := func(body func(concurrency.STM) error, options ...concurrency.STMOption) error {
		_, err := concurrency.NewSTM(client, body, append(options, concurrency.WithAbortContext(r.ctx))...)
		return err
	}
	check(with(func(stm concurrency.STM) error {
		check(stm.Get(r.key("none")) == "" && stm.Rev(r.key("none")) == 0, "nothing has a value")
		stm.Put(r.key("a"), "1")
		stm.Put(r.key("b"), stm.Get(r.key("a"))+"2")
		stm.Del(r.key("none"))
		return nil
	}, concurrency.WithPrefetch(r.key("a"), r.key("b"))) == nil, "a transaction failed")
	check(with(func(stm concurrency.STM) error {
		stm.Del(r.key("a"))
		return nil
	}, concurrency.WithIsolation(concurrency.ReadCommitted)) == nil, "a transaction failed")
	equal("afterwards", r.pairs(must(r.client.Get(r.ctx, r.key("a"), clientv3.WithRange(r.key("c")))).Kvs), "b=12")
	abort := errors.New("changed my mind")
	refused("an abandoned transaction", with(func(stm concurrency.STM) error {
		stm.Put(r.key("b"), "wrong")
		return abort
	}), abort)
	equal("what it left", r.pairs(r.get("b").Kvs), "b=12")
}

// transfers moves money between accounts from several sides at once; none is made or lost.
func transfers(r *run, client *clientv3.Client, name string, isolation concurrency.Isolation) {
	const accounts, workers, rounds, each = 4, 4, 8, 100
	account := func(number int) string { return r.key(name + strconv.Itoa(number%accounts)) }
	for number := range accounts {
		must(r.client.Put(r.ctx, account(number), strconv.Itoa(each)))
	}
	var group sync.WaitGroup
	errs := make(chan error, workers)
	for worker := range workers {
		group.Go(func() {
			for round := range rounds {
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					from, to := account(worker+round), account(worker+2*round+1)
					if from == to {
						return nil
					}
					giver, _ := strconv.Atoi(stm.Get(from))
					taker, _ := strconv.Atoi(stm.Get(to))
					stm.Put(from, strconv.Itoa(giver-round))
					stm.Put(to, strconv.Itoa(taker+round))
					return nil
				}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(r.ctx))
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		check(false, "%sa transfer: %v", name, err)
	}
	sum := 0
	for _, kv := range r.get(name, clientv3.WithPrefix()).Kvs {
		amount := must(strconv.Atoi(string(kv.Value)))
		sum += amount
	}
	equal(name+"all money", sum, accounts*each)
}
