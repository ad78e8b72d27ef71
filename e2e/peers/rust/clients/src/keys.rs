//! Keys: puts, ranges, revisions, transactions.

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget,
    Txn, TxnOp, TxnOpResponse,
};

use crate::{Failure, Outcome, Run, check, equal, refused, some};

fn values(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| String::from_utf8_lossy(kv.value()).into_owned()).collect()
}

pub(crate) async fn put_get_delete(run: &mut Run) -> Outcome {
    let key = run.key("a");
    let first = run.client.put(key.clone(), "1", None).await?;
    check(first.prev_key().is_none(), "there was a value before")?;
    let binary: Vec<u8> = (0..=255).collect();
    let options = PutOptions::new().with_prev_key();
    let before = run.client.put(key.clone(), binary.clone(), Some(options)).await?;
    equal("the value before", some("it", before.prev_key())?.value(), b"1")?;
    let got = run.client.get(key.clone(), None).await?;
    let kv = some("the key", got.kvs().first())?;
    equal("a binary value", kv.value(), binary)?;
    equal("its version", (kv.version(), kv.lease()), (2, 0))?;
    check(kv.mod_revision() > kv.create_revision(), "it was changed after it was made")?;
    let options = GetOptions::new().with_serializable();
    equal("a serializable read", run.client.get(key.clone(), Some(options)).await?.count(), 1)?;
    let options = DeleteOptions::new().with_prev_key();
    let deleted = run.client.delete(key.clone(), Some(options)).await?;
    equal("deleted", (deleted.deleted(), deleted.prev_kvs().len()), (1, 1))?;
    equal("left", run.client.get(key, None).await?.count(), 0)
}

pub(crate) async fn ranges(run: &mut Run) -> Outcome {
    for name in ["b", "c", "a"] {
        run.client.put(run.prefix.clone() + name, name.to_uppercase(), None).await?;
    }
    let prefix = run.prefix.clone();
    let all = GetOptions::new().with_prefix();
    let got = run.client.get(prefix.clone(), Some(all.clone())).await?;
    equal("by prefix", values(got.kvs()), ["A", "B", "C"])?;
    let down = all.clone().with_sort(SortTarget::Key, SortOrder::Descend);
    let got = run.client.get(prefix.clone(), Some(down.with_limit(2))).await?;
    equal("two of them, descending", values(got.kvs()), ["C", "B"])?;
    equal("and more", (got.more(), got.count()), (true, 3))?;
    let made = all.clone().with_sort(SortTarget::Create, SortOrder::Ascend);
    let got = run.client.get(prefix.clone(), Some(made)).await?;
    equal("in the order of creation", values(got.kvs()), ["B", "C", "A"])?;
    let keys = run.client.get(prefix.clone(), Some(all.clone().with_keys_only())).await?;
    equal("keys only", values(keys.kvs()), ["", "", ""])?;
    let count = run.client.get(prefix.clone(), Some(all.with_count_only())).await?;
    equal("counted", (count.count(), count.kvs().len()), (3, 0))?;
    let part = GetOptions::new().with_range(run.key("c"));
    let got = run.client.get(run.key("a"), Some(part)).await?;
    equal("a range", values(got.kvs()), ["A", "B"])?;
    let options = DeleteOptions::new().with_prefix();
    equal("deleted", run.client.delete(prefix, Some(options)).await?.deleted(), 3)
}

pub(crate) async fn revisions(run: &mut Run) -> Outcome {
    let key = run.key("a");
    let first = run.client.put(key.clone(), "1", None).await?;
    let revision = some("the header", first.header())?.revision();
    run.client.put(key.clone(), "2", None).await?;
    let then = GetOptions::new().with_revision(revision);
    equal("then", values(run.client.get(key.clone(), Some(then)).await?.kvs()), ["1"])?;
    let newer = GetOptions::new().with_min_mod_revision(revision + 1);
    equal("newer", values(run.client.get(key.clone(), Some(newer)).await?.kvs()), ["2"])?;
    let future = GetOptions::new().with_revision(revision + 1_000_000);
    let asked = run.client.get(key, Some(future)).await;
    refused("the future", asked, "required revision is a future revision")
}

pub(crate) async fn transactions(run: &mut Run) -> Outcome {
    let (key, other) = (run.key("a"), run.key("b"));
    run.client.put(key.clone(), "1", None).await?;
    let txn = Txn::new()
        .when([
            Compare::value(key.clone(), CompareOp::Equal, "1"),
            Compare::version(key.clone(), CompareOp::Greater, 0),
            Compare::create_revision(other.clone(), CompareOp::Equal, 0),
        ])
        .and_then([
            TxnOp::put(key.clone(), "2", None),
            TxnOp::get(key.clone(), None),
            TxnOp::delete(other.clone(), None),
        ])
        .or_else([TxnOp::put(key.clone(), "wrong", None)]);
    let answer = run.client.txn(txn).await?;
    check(answer.succeeded(), "the comparison holds")?;
    match &answer.op_responses()[..] {
        [TxnOpResponse::Put(_), TxnOpResponse::Get(got), TxnOpResponse::Delete(deleted)] => {
            equal("read", values(got.kvs()), ["2"])?;
            equal("deleted", deleted.deleted(), 0)?;
        }
        other => return Err(Failure(format!("answers: {other:?}"))),
    }
    let nested = Txn::new()
        .when([Compare::value(key.clone(), CompareOp::NotEqual, "1")])
        .and_then([TxnOp::put(other.clone(), "nested", None)]);
    let txn = Txn::new()
        .when([Compare::mod_revision(key.clone(), CompareOp::Equal, 1)])
        .or_else([TxnOp::txn(nested)]);
    check(!run.client.txn(txn).await?.succeeded(), "the comparison does not hold")?;
    equal("nested", values(run.client.get(other, None).await?.kvs()), ["nested"])?;
    let twice = [TxnOp::put(key.clone(), "1", None), TxnOp::put(key, "2", None)];
    let refusal = run.client.txn(Txn::new().and_then(twice)).await;
    refused("a key put twice", refusal, "duplicate key given in txn request")
}

pub(crate) async fn refusals(run: &mut Run) -> Outcome {
    refused("no key", run.client.put("", "1", None).await, "key is not provided")?;
    let lease = PutOptions::new().with_lease(123_456_789);
    let put = run.client.put(run.key("a"), "1", Some(lease)).await;
    refused("a lease that nobody has", put, "requested lease not found")?;
    let keep = PutOptions::new().with_ignore_value();
    let put = run.client.put(run.key("a"), "", Some(keep)).await;
    refused("a value to keep of no key", put, "key not found")?;
    let large = vec![b'x'; 1_600_000];
    let put = run.client.put(run.key("a"), large, None).await;
    refused("too much", put, "etcdserver: request is too large")
}
