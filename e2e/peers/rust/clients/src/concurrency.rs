//! Locks and elections by etcd's own services.

use etcd_client::{LockOptions, ProclaimOptions, ResignOptions};

use crate::{LOOK_AGAIN, Outcome, Run, check, connect, equal, some};

pub(crate) async fn locks(run: &mut Run) -> Outcome {
    let name = run.key("lock");
    let first = run.client.lease_grant(60, None).await?.id();
    let held = run.client.lock(name.clone(), Some(LockOptions::new().with_lease(first))).await?;
    check(held.key().starts_with(name.as_bytes()), "its key begins with its name")?;
    let mut other = connect(&run.endpoints, None).await?;
    let second = other.lease_grant(60, None).await?.id();
    let options = LockOptions::new().with_lease(second);
    let mut waiting = Box::pin(other.lock(name.clone(), Some(options)));
    // It waits as long as the first holds it: both have their place in the queue by then.
    loop {
        tokio::select! {
            _ = &mut waiting => return check(false, "two hold one lock"),
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
        let prefix = etcd_client::GetOptions::new().with_prefix().with_count_only();
        if run.client.get(name.clone(), Some(prefix)).await?.count() == 2 {
            break;
        }
    }
    run.client.unlock(held.key()).await?;
    let taken = waiting.as_mut().await?;
    drop(waiting);
    check(taken.key() != held.key(), "the other has a key of its own")?;
    // Whoever has gone holds nothing.
    other.lease_revoke(second).await?;
    let options = LockOptions::new().with_lease(first);
    let again = run.client.lock(name, Some(options)).await?;
    run.client.unlock(again.key()).await?;
    run.client.lease_revoke(first).await?;
    Ok(())
}

pub(crate) async fn elections(run: &mut Run) -> Outcome {
    let name = run.key("election");
    let first = run.client.lease_grant(60, None).await?.id();
    let won = run.client.campaign(name.clone(), "one", first).await?;
    let key = some("the leader's key", won.leader().cloned())?;
    equal("its lease", key.lease(), first)?;
    let mut watcher = connect(&run.endpoints, None).await?;
    let mut observed = watcher.observe(name.clone()).await?;
    let told = some("the leader", observed.message().await?)?;
    equal("observed", some("its key", told.kv())?.value(), b"one")?;
    let mut other = connect(&run.endpoints, None).await?;
    let second = other.lease_grant(60, None).await?.id();
    let campaign = other.campaign(name.clone(), "two", second);
    tokio::pin!(campaign);
    let options = ProclaimOptions::new().with_leader(key.clone());
    run.client.proclaim("one again", Some(options)).await?;
    let told = some("what it proclaims", observed.message().await?)?;
    equal("observed", some("its key", told.kv())?.value(), b"one again")?;
    let leader = run.client.leader(name.clone()).await?;
    equal("the leader", some("its key", leader.kv())?.value(), b"one again")?;
    let resign = async {
        let options = ResignOptions::new().with_leader(key);
        run.client.resign(Some(options)).await
    };
    let (won, resigned) = tokio::join!(campaign, resign);
    resigned?;
    equal("the second's lease", some("its key", won?.leader())?.lease(), second)?;
    let leader = run.client.leader(name.clone()).await?;
    equal("the leader", some("its key", leader.kv())?.value(), b"two")?;
    run.client.lease_revoke(second).await?;
    run.client.lease_revoke(first).await?;
    crate::refused("no leader", run.client.leader(name).await, "election: no leader")
}
