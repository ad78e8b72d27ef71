package main

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func txnCompares(r *run) {
	lease := must(r.client.Grant(r.ctx, 60))
	r.after(func() { r.client.Revoke(r.ctx, lease.ID) })
	created := r.put("a", "1", clientv3.WithLease(lease.ID)).Header.Revision
	changed := r.put("a", "m", clientv3.WithLease(lease.ID)).Header.Revision
	r.put("b", "m")
	key, none := r.key("a"), r.key("none")
	for number, each := range []struct {
		compare clientv3.Cmp
		holds   bool
	}{
		{clientv3.Compare(clientv3.Value(key), "=", "m"), true},
		{clientv3.Compare(clientv3.Value(key), "!=", "m"), false},
		{clientv3.Compare(clientv3.Value(key), ">", "a"), true},
		{clientv3.Compare(clientv3.Value(key), "<", "a"), false},
		{clientv3.Compare(clientv3.Version(key), "=", 2), true},
		{clientv3.Compare(clientv3.Version(key), ">", 2), false},
		{clientv3.Compare(clientv3.Version(none), "=", 0), true},
		{clientv3.Compare(clientv3.CreateRevision(key), "=", created), true},
		{clientv3.Compare(clientv3.CreateRevision(none), "=", 0), true},
		{clientv3.Compare(clientv3.CreateRevision(none), "!=", 0), false},
		{clientv3.Compare(clientv3.ModRevision(key), "=", changed), true},
		{clientv3.Compare(clientv3.ModRevision(key), "<", changed), false},
		{clientv3.Compare(clientv3.LeaseValue(key), "=", lease.ID), true},
		{clientv3.Compare(clientv3.LeaseValue(r.key("b")), "=", clientv3.NoLease), true},
		// A key that is not there has no value to compare with, not even an unequal one.
		{clientv3.Compare(clientv3.Value(none), "=", ""), false},
		{clientv3.Compare(clientv3.Value(none), "!=", "x"), false},
		{clientv3.Compare(clientv3.Value(r.prefix), "=", "m").WithPrefix(), true},
		{clientv3.Compare(clientv3.Version(r.prefix), ">", 1).WithPrefix(), false},
		{clientv3.Compare(clientv3.Version(r.prefix), ">", 0).WithRange(r.key("b")), true},
		{clientv3.Compare(clientv3.Value(r.key("nothing/")), "=", "m").WithPrefix(), false},
		{clientv3.Compare(clientv3.CreateRevision(r.key("nothing/")), "=", 0).WithPrefix(), true},
	} {
		// Without a read among its operations it would not wait for what other members know.
		answer := must(r.client.Txn(r.ctx).If(each.compare).
			Then(clientv3.OpGet(key)).Else(clientv3.OpGet(key)).Commit())
		equal(fmt.Sprintf("compare %d", number), answer.Succeeded, each.holds)
	}
	both := must(r.client.Txn(r.ctx).If(
		clientv3.Compare(clientv3.Version(key), "=", 2),
		clientv3.Compare(clientv3.Version(none), "=", 1)).Then(clientv3.OpGet(key)).Commit())
	check(!both.Succeeded, "one of two compares was enough")
	check(must(r.client.Txn(r.ctx).Commit()).Succeeded, "no compare did not hold")
}

func txnOperations(r *run) {
	r.put("b", "1")
	before := r.put("a", "0").Header.Revision
	answer := must(r.client.Txn(r.ctx).
		If(clientv3.Compare(clientv3.Version(r.key("a")), ">", 0)).
		Then(
			clientv3.OpGet(r.key("a")),
			clientv3.OpPut(r.key("a"), "1", clientv3.WithPrevKV()),
			clientv3.OpGet(r.key("a")),
			clientv3.OpDelete(r.key("b"), clientv3.WithPrevKV()),
			clientv3.OpGet(r.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly()),
			clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.Value(r.key("a")), "=", "0")},
				[]clientv3.Op{clientv3.OpPut(r.key("nested"), "then")},
				[]clientv3.Op{clientv3.OpPut(r.key("nested"), "else")},
			),
		).
		Else(clientv3.OpPut(r.key("else"), "1")).
		Commit())
	check(answer.Succeeded, "the compare did not hold")
	equal("answers", len(answer.Responses), 6)
	equal("the revision of the transaction", answer.Header.Revision, before+1)
	equal("before its put", r.pairs(answer.Responses[0].GetResponseRange().Kvs), "a=0")
	equal("what it replaced", string(answer.Responses[1].GetResponsePut().PrevKv.Value), "0")
	seen := answer.Responses[2].GetResponseRange().Kvs
	equal("after its put", r.pairs(seen), "a=1")
	equal("its own revision", seen[0].ModRevision, before+1)
	deleted := answer.Responses[3].GetResponseDeleteRange()
	check(deleted.Deleted == 1 && string(deleted.PrevKvs[0].Value) == "1", "deleted %v", deleted)
	equal("counted after its deletion", answer.Responses[4].GetResponseRange().Count, 1)
	// Compares of an inner transaction are made before anything is changed.
	check(answer.Responses[5].GetResponseTxn().Succeeded, "the inner compare saw the outer put")
	equal("afterwards", r.pairs(r.get("", clientv3.WithPrefix()).Kvs), "a=1 nested=then")

	other := must(r.client.Txn(r.ctx).
		If(clientv3.Compare(clientv3.Version(r.key("a")), "=", 0)).
		Then(clientv3.OpPut(r.key("a"), "wrong")).
		Else(clientv3.OpGet(r.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())).
		Commit())
	check(!other.Succeeded, "the compare held")
	equal("the other branch", other.Responses[0].GetResponseRange().Count, 2)
	equal("the revision of reading", other.Header.Revision, before+1)

	single := must(r.client.Do(r.ctx, clientv3.OpPut(r.key("do"), "1")))
	equal("one operation", single.Put().Header.Revision, before+2)
}

func txnRefusals(r *run) {
	_, err := r.client.Txn(r.ctx).
		Then(clientv3.OpPut(r.key("a"), "1"), clientv3.OpPut(r.key("a"), "2")).Commit()
	refused("a key put twice", err, rpctypes.ErrDuplicateKey)
	_, err = r.client.Txn(r.ctx).
		Then(clientv3.OpPut(r.key("a"), "1"), clientv3.OpDelete(r.prefix, clientv3.WithPrefix())).Commit()
	refused("a key put and deleted", err, rpctypes.ErrDuplicateKey)
	var many []clientv3.Op
	for number := range 129 {
		many = append(many, clientv3.OpPut(r.key(fmt.Sprint(number)), ""))
	}
	_, err = r.client.Txn(r.ctx).Then(many...).Commit()
	refused("129 operations", err, rpctypes.ErrTooManyOps)
	must(r.client.Txn(r.ctx).Then(many[:128]...).Commit())
	equal("128 operations", r.get("", clientv3.WithPrefix(), clientv3.WithCountOnly()).Count, 128)
	// What fails in the middle leaves nothing behind.
	_, err = r.client.Txn(r.ctx).Then(
		clientv3.OpPut(r.key("half"), "1"),
		clientv3.OpPut(r.key("other"), "1", clientv3.WithLease(12345))).Commit()
	refused("a lease that is not there", err, rpctypes.ErrLeaseNotFound)
	equal("half a transaction", r.get("half").Count, 0)
}
