//! The first members from DNS: `_etcd-server-ssl._tcp.<domain>` names those that speak TLS to each
//! other, `_etcd-server._tcp.<domain>` those that do not.
//!
//! Records have no names of members. This one recognises itself by the address of its advertised peer
//! URL; the others are numbered, which does no harm because a member's id follows from its URLs.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};

use client::SrvTarget;

use crate::config::InitialCluster;
use crate::urls::Url;

use super::DiscoveryError;

/// Who asks for what.
pub(super) struct Question {
    pub(super) domain: String,
    pub(super) service_name: String,
    /// The name of this member.
    pub(super) name: String,
    pub(super) advertised: Vec<Url>,
}

/// Asks for the servers of a service in a domain.
type LookUpSrv<'a> = dyn Fn(&str, &str) -> Result<Vec<SrvTarget>, String> + 'a;

/// The name servers, and what names of hosts lead to.
struct Resolver<'a> {
    look_up_srv: &'a LookUpSrv<'a>,
    address: &'a dyn Fn(&str, u16) -> Result<SocketAddr, String>,
}

impl Question {
    /// The first members, among them this one.
    pub(super) fn ask(&self) -> Result<InitialCluster, DiscoveryError> {
        let resolver = Resolver {
            look_up_srv: &|service, domain| {
                client::look_up_srv(service, domain).map_err(|error| error.to_string())
            },
            address: &address,
        };
        self.ask_with(&resolver)
    }

    fn ask_with(&self, resolver: &Resolver<'_>) -> Result<InitialCluster, DiscoveryError> {
        let suffix = match self.service_name.as_str() {
            "" => String::new(),
            name => format!("-{name}"),
        };
        let mut members = Vec::new();
        let mut errors = Vec::new();
        for (scheme, service) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
            let service = format!("{service}{suffix}");
            let found = self.members(resolver, scheme, &service);
            tracing::info!(
                "service-scheme" = scheme,
                "service-name" = service,
                "server-name" = self.name,
                "discovery-srv" = self.domain,
                found = ?found,
                "get cluster for {service} SRV"
            );
            match found {
                Ok(found) => members.extend(found),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            tracing::warn!(error = errors.join("\n"), "failed to resolve during SRV discovery");
        }
        if members.is_empty() {
            return Err(DiscoveryError::Dns(errors.join("\n")));
        }
        for node in &members {
            tracing::info!(node, "got bootstrap from DNS for etcd-server");
        }
        let members = InitialCluster::parse(&members.join(","))
            .map_err(|error| DiscoveryError::Dns(error.to_string()))?;
        if members.peer_urls(&self.name).is_none() {
            return Err(DiscoveryError::NotInDns(self.name.clone()));
        }
        Ok(members)
    }

    /// The members of one service as `name=url`.
    fn members(
        &self,
        resolver: &Resolver<'_>,
        scheme: &str,
        service: &str,
    ) -> Result<Vec<String>, String> {
        let failed =
            |error: String| format!("error querying DNS SRV records for _{service} {error}");
        let mut own = BTreeMap::new();
        for url in &self.advertised {
            own.insert(resolved(resolver, url)?, url);
        }
        let mut members = Vec::new();
        let mut last_error = String::new();
        let mut unnamed = 0;
        for target in (resolver.look_up_srv)(service, &self.domain).map_err(failed)? {
            let address = match (resolver.address)(&target.host, target.port) {
                Ok(address) => address,
                Err(error) => {
                    last_error = error;
                    continue;
                }
            };
            let host = target.host.trim_end_matches('.');
            let url = match host.contains(':') {
                true => format!("{scheme}://[{host}]:{}", target.port),
                false => format!("{scheme}://{host}:{}", target.port),
            };
            let name = match own.get(&address) {
                Some(expected) if !expected.as_str().starts_with(&format!("{scheme}://")) => {
                    last_error = format!(
                        "bootstrap at {url} from DNS for {service} has scheme mismatch with expected \
                         peer {expected}"
                    );
                    continue;
                }
                Some(_) if !self.name.is_empty() => self.name.clone(),
                _ => {
                    unnamed += 1;
                    (unnamed - 1).to_string()
                }
            };
            members.push(format!("{name}={url}"));
        }
        if members.is_empty() { Err(failed(last_error)) } else { Ok(members) }
    }
}

fn resolved(resolver: &Resolver<'_>, url: &Url) -> Result<SocketAddr, String> {
    (resolver.address)(url.host(), url.port().parse().unwrap_or(0))
}

/// One address of a host; of several an IPv4 address, as Go takes.
fn address(host: &str, port: u16) -> Result<SocketAddr, String> {
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|_| format!("lookup {host}: no such host"))?;
    let addresses: Vec<SocketAddr> = found.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| format!("lookup {host}: no such host"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A domain `d` whose members are `m1.d` and so on, at 10.0.0.1 and so on.
    fn ask(
        records: &[(&str, &[u16])],
        service_name: &str,
        advertised: &str,
    ) -> Result<String, String> {
        let look_up_srv = |service: &str, domain: &str| {
            let name = format!("_{service}._tcp.{domain}");
            let found = records.iter().find(|(record, _)| format!("_{record}._tcp.d") == name);
            let (_, members) = found.ok_or_else(|| format!("lookup {name}: no such host"))?;
            let target = |number: &u16| SrvTarget {
                priority: 0,
                weight: 0,
                port: 2380,
                host: format!("m{number}.d."),
            };
            Ok(members.iter().map(target).collect())
        };
        let address = |host: &str, port: u16| {
            let digits = host.trim_start_matches('m').trim_end_matches('.').trim_end_matches(".d");
            let host = match digits.parse::<u8>() {
                Ok(number) => format!("10.0.0.{number}"),
                Err(_) => host.to_owned(),
            };
            format!("{host}:{port}").parse().map_err(|_| format!("lookup {host}: no such host"))
        };
        let question = Question {
            domain: "d".to_owned(),
            service_name: service_name.to_owned(),
            name: "me".to_owned(),
            advertised: advertised.split(',').map(|url| url.parse().unwrap()).collect(),
        };
        let resolver = Resolver { look_up_srv: &look_up_srv, address: &address };
        let answer = question.ask_with(&resolver);
        answer.map(|members| members.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_member_recognises_itself_and_numbers_the_others() {
        let records: &[(&str, &[u16])] = &[("etcd-server", &[1, 2, 3])];
        let expected = Ok("0=http://m1.d:2380,1=http://m3.d:2380,me=http://m2.d:2380".to_owned());
        assert_eq!(ask(records, "", "http://m2.d:2380"), expected);
        assert_eq!(ask(records, "", "http://10.0.0.2:2380"), expected, "by its address");
        let records: &[(&str, &[u16])] = &[("etcd-server-ssl-blue", &[1, 2])];
        assert_eq!(
            ask(records, "blue", "https://m1.d:2380"),
            Ok("0=https://m2.d:2380,me=https://m1.d:2380".to_owned())
        );
    }

    #[test]
    fn what_cannot_be_is_told_in_the_words_of_etcd() {
        assert_eq!(
            ask(&[], "", "http://m1.d:2380").unwrap_err(),
            "error setting up initial cluster: error querying DNS SRV records for _etcd-server-ssl \
             lookup _etcd-server-ssl._tcp.d: no such host\nerror querying DNS SRV records for \
             _etcd-server lookup _etcd-server._tcp.d: no such host"
        );
        assert_eq!(
            ask(&[("etcd-server", &[1])], "", "http://m9.d:2380").unwrap_err(),
            "error setting up initial cluster: cannot find local etcd member \"me\" in SRV records"
        );
        let mismatch = ask(&[("etcd-server", &[1])], "", "https://m1.d:2380").unwrap_err();
        assert!(
            mismatch.ends_with(
                "error querying DNS SRV records for _etcd-server bootstrap at http://m1.d:2380 from \
                 DNS for etcd-server has scheme mismatch with expected peer https://m1.d:2380"
            ),
            "{mismatch}"
        );
    }
}
