//! What goes on: watches, and leases that are kept alive.

use etcd_client::{EventType, PutOptions, WatchOptions, WatchStream};

use crate::{Failure, LOOK_AGAIN, Outcome, Run, check, equal, some};

/// Follows a watch until it has this many events: `PUT key=value before`.
async fn events(stream: &mut WatchStream, prefix: &str, count: usize) -> Outcome<Vec<String>> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let response = some("the next response", stream.message().await?)?;
        check(!response.canceled(), format!("it ended: {}", response.cancel_reason()))?;
        for event in response.events() {
            let kv = some("the key", event.kv())?;
            let key = String::from_utf8_lossy(kv.key()).replacen(prefix, "", 1);
            let value = String::from_utf8_lossy(kv.value()).into_owned();
            let before = event.prev_kv().map(|kv| String::from_utf8_lossy(kv.value()).into_owned());
            let kind = match event.event_type() {
                EventType::Put => "PUT",
                EventType::Delete => "DELETE",
            };
            seen.push(format!("{kind} {key}={value} {}", before.unwrap_or_default()));
        }
    }
    Ok(seen)
}

pub(crate) async fn watch(run: &mut Run) -> Outcome {
    let prefix = run.prefix.clone();
    let options = WatchOptions::new().with_prefix().with_prev_key().with_watch_id(7);
    let mut stream = run.client.watch(prefix.clone(), Some(options)).await?;
    let created = some("the first response", stream.message().await?)?;
    equal("created", (created.created(), created.watch_id()), (true, 7))?;
    run.client.put(run.key("a"), "1", None).await?;
    run.client.put(run.key("a"), "2", None).await?;
    run.client.delete(run.key("a"), None).await?;
    let seen = events(&mut stream, &prefix, 3).await?;
    equal("events", seen, ["PUT a=1 ", "PUT a=2 1", "DELETE a= 2"])?;
    // A second watch on the same stream, and the end of the first.
    let outside = "rust outside/";
    stream.watch(outside, Some(WatchOptions::new().with_prefix().with_watch_id(8))).await?;
    let created = some("the next response", stream.message().await?)?;
    equal("created", (created.created(), created.watch_id()), (true, 8))?;
    stream.cancel(7).await?;
    let cancelled = some("the next response", stream.message().await?)?;
    equal("cancelled", (cancelled.canceled(), cancelled.watch_id()), (true, 7))?;
    run.client.put(run.key("a"), "unseen", None).await?;
    run.client.put(format!("{outside}b"), "seen", None).await?;
    equal("events", events(&mut stream, outside, 1).await?, ["PUT b=seen "])?;
    stream.request_progress().await?;
    let progress = some("the next response", stream.message().await?)?;
    equal("progress", progress.events().len(), 0)
}

pub(crate) async fn watch_history(run: &mut Run) -> Outcome {
    let prefix = run.prefix.clone();
    let first = run.client.put(run.key("a"), "1", None).await?;
    let revision = some("the header", first.header())?.revision();
    for value in 2..=20 {
        run.client.put(run.key("a"), value.to_string(), None).await?;
    }
    let options = WatchOptions::new().with_prefix().with_start_revision(revision).with_fragment();
    let mut stream = run.client.watch(prefix.clone(), Some(options)).await?;
    let wanted: Vec<String> = (1..=20).map(|value| format!("PUT a={value} ")).collect();
    equal("the history", events(&mut stream, &prefix, 20).await?, wanted)
}

pub(crate) async fn leases(run: &mut Run) -> Outcome {
    let granted = run.client.lease_grant(60, None).await?;
    equal("granted", granted.ttl(), 60)?;
    let id = granted.id();
    let key = run.key("a");
    let options = PutOptions::new().with_lease(id);
    run.client.put(key.clone(), "1", Some(options)).await?;
    let (mut keeper, mut renewals) = run.client.lease_keep_alive(id).await?;
    for _ in 0..3 {
        keeper.keep_alive().await?;
        let renewed = some("a renewal", renewals.message().await?)?;
        equal("renewed", (renewed.id(), renewed.ttl()), (id, 60))?;
    }
    let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    let about = run.client.lease_time_to_live(id, Some(options)).await?;
    equal("its keys", about.keys(), [key.clone().into_bytes()])?;
    check(about.ttl() > 50 && about.granted_ttl() == 60, "it has been renewed")?;
    let listed = run.client.leases().await?;
    check(listed.leases().iter().any(|lease| lease.id() == id), "it is listed")?;
    run.client.lease_revoke(id).await?;
    equal("left", run.client.get(key.clone(), None).await?.count(), 0)?;
    equal("gone", run.client.lease_time_to_live(id, None).await?.ttl(), -1)?;
    // Nobody renews this one.
    let short = run.client.lease_grant(1, None).await?.id();
    run.client.put(key.clone(), "2", Some(PutOptions::new().with_lease(short))).await?;
    while run.client.get(key.clone(), None).await?.count() > 0 {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    match run.client.lease_keep_alive(short).await {
        Ok((_, mut renewals)) => match renewals.message().await? {
            Some(renewed) => equal("renewed after its end", renewed.ttl(), 0),
            None => Ok(()),
        },
        Err(error) if error.to_string().contains("lease not found") => Ok(()),
        Err(error) => Err(Failure(format!("renewed after its end: {error}"))),
    }
}
