//! The members that a proxy leads to: those that DNS names, or those of `--endpoints`.

use std::net::ToSocketAddrs;
use std::time::Duration;

use client::ClientTarget;

use super::Refusal;
use super::command::Values;

/// How long a member may take to accept a connection when it is looked whether it is there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What `--discovery-srv` finds; nothing without it.
///
/// Unless insecure members are accepted, those without TLS are left out, and so are those that do not
/// accept a connection. As in etcd nothing is said over these connections: who speaks with a member
/// through the proxy checks its certificate.
pub(super) fn discover(values: &Values, ca_flag: &str) -> Result<Vec<ClientTarget>, Refusal> {
    let domain = values.text("discovery-srv");
    if domain.is_empty() {
        return Ok(Vec::new());
    }
    let found = client::discover_client_targets(domain, values.text("discovery-srv-name"))
        .map_err(|error| Refusal::Complained(error.to_string()))?;
    let names = |found: &[ClientTarget]| -> Vec<String> {
        found.iter().map(ClientTarget::endpoint).collect()
    };
    tracing::info!("srv-server" = domain, endpoints = ?names(&found), "discovered cluster from SRV");
    if values.is_true("insecure-discovery") {
        return Ok(found);
    }
    let authority = values.text(ca_flag);
    let mut errors = Vec::new();
    let mut validated = Vec::new();
    match (!authority.is_empty()).then(|| std::fs::metadata(authority)) {
        Some(Err(error)) => errors.push(format!("open {authority}: {error}")),
        _ => {
            for member in found {
                match reachable(&member) {
                    Ok(()) => validated.push(member),
                    Err(error) => errors.push(error),
                }
            }
        }
    }
    let endpoints = names(&validated);
    match errors.is_empty() {
        true => tracing::info!(
            "srv-server" = domain,
            ?endpoints,
            "using validated discovered SRV endpoints"
        ),
        false => tracing::warn!(
            "srv-server" = domain,
            ?endpoints,
            error = errors.join(","),
            "failed to validate discovered endpoints"
        ),
    }
    Ok(validated)
}

fn reachable(member: &ClientTarget) -> Result<(), String> {
    let endpoint = member.endpoint();
    if !member.is_secure {
        return Err(format!("{endpoint:?} is insecure"));
    }
    let failed = |error: std::io::Error| format!("{endpoint:?} failed to dial ({error})");
    let target = &member.target;
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in (target.host.as_str(), target.port).to_socket_addrs().map_err(failed)? {
        match std::net::TcpStream::connect_timeout(&address, DIAL_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

#[cfg(test)]
mod tests {
    use client::SrvTarget;

    use super::*;

    /// What DNS names is used only if it is there and, unless somebody says otherwise, has TLS.
    #[test]
    fn cve_2020_15136_discovered_members_without_tls_are_left_out() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let member = |is_secure| ClientTarget {
            is_secure,
            target: SrvTarget { priority: 0, weight: 0, port, host: "127.0.0.1".to_owned() },
        };
        let insecure = reachable(&member(false)).unwrap_err();
        assert_eq!(insecure, format!("\"http://127.0.0.1:{port}\" is insecure"));
        assert_eq!(reachable(&member(true)), Ok(()));
        drop(listener);
        let gone = reachable(&member(true)).unwrap_err();
        assert!(gone.contains("failed to dial"), "{gone}");
    }
}
