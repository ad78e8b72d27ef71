//! Users, roles, and what they may do once authentication is on.

use etcd_client::{Client, Error, GetOptions, Permission, RoleRevokePermissionOptions};

use crate::{LOOK_AGAIN, Outcome, Run, check, connect, equal, refused};

pub(crate) async fn users_and_roles(run: &mut Run) -> Outcome {
    // One member does it all, and then the others are asked: they learn of it a little later.
    let one = run.endpoints[..1].to_vec();
    let mut client = connect(&one, None).await?;
    let mine = run.key("mine/");
    client.user_add("rustacean", "secret", None).await?;
    refused("who is there", client.user_add("rustacean", "x", None).await, "already exists")?;
    client.role_add("rust").await?;
    client
        .role_grant_permission("rust", Permission::read_write(mine.clone()).with_prefix())
        .await?;
    client.role_grant_permission("rust", Permission::read(run.key("read"))).await?;
    client.user_grant_role("rustacean", "rust").await?;
    equal("roles", client.user_get("rustacean").await?.roles(), ["rust"])?;
    let permissions = client.role_get("rust").await?.permissions();
    equal("permissions", permissions.iter().filter(|one| one.is_prefix()).count(), 1)?;
    client.user_add("root", "root", None).await?;
    client.role_add("root").await?;
    client.user_grant_role("root", "root").await?;
    client.auth_enable().await?;
    let result = while_enabled(run, &one, &mine).await;
    let mut root = connect(&one, Some(("root", "root"))).await?;
    root.auth_disable().await?;
    for endpoint in &run.endpoints {
        let mut anyone = connect(std::slice::from_ref(endpoint), None).await?;
        while anyone.get("rust/nothing", None).await.is_err() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    for user in ["rustacean", "root"] {
        client.user_delete(user).await?;
    }
    for role in ["rust", "root"] {
        client.role_delete(role).await?;
    }
    result
}

async fn while_enabled(run: &Run, one: &[String], mine: &str) -> Outcome {
    let mut anyone = connect(one, None).await?;
    refused("nobody", anyone.get("a", None).await, "user name is empty")?;
    let wrong = connect(one, Some(("rustacean", "wrong"))).await;
    refused("a wrong password", wrong, "authentication failed")?;
    let mut user = connect(one, Some(("rustacean", "secret"))).await?;
    user.put(format!("{mine}a"), "1", None).await?;
    let all = GetOptions::new().with_prefix();
    equal("one's own", user.get(mine, Some(all)).await?.count(), 1)?;
    user.get(run.key("read"), None).await?;
    refused("a key to read", user.put(run.key("read"), "1", None).await, "permission denied")?;
    refused("others' keys", user.get(run.key("other"), None).await, "permission denied")?;
    refused("users", user.user_list().await, "permission denied")?;
    let mut root = connect(one, Some(("root", "root"))).await?;
    let users = root.user_list().await?;
    check(users.users().iter().any(|user| user == "rustacean"), "the user is listed")?;
    let options = RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("rust", mine, Some(options)).await?;
    // The token was given before the change: whoever has it has to log in again.
    let mut again = log_in(one).await?;
    refused("one's own, once it is not any more", again.get(mine, None).await, "permission denied")
}

async fn log_in(one: &[String]) -> Result<Client, Error> {
    connect(one, Some(("rustacean", "secret"))).await
}
