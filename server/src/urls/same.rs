//! Whether two lists of URLs lead to the same places (etcd: `netutil.URLStringsEqual`): where one names a
//! host, the other may have its address.

use std::net::{IpAddr, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::{Url, texts};

/// etcd's time for the names of a member's own URLs: who starts with its host may be there before its
/// name is.
const PATIENCE: Duration = Duration::from_secs(30);
/// etcd's pause before a name is looked up again.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks up the address of a host.
pub(crate) type LookUp = dyn Fn(&str) -> Result<IpAddr, String> + Send + Sync;

/// What names of hosts lead to, and until when one that leads nowhere is looked up again. It blocks.
pub struct Hosts {
    look_up: Box<LookUp>,
    until: Instant,
}

impl Hosts {
    /// Asks the system, for half a minute.
    pub fn patient() -> Self {
        Self::new(Box::new(first_address), PATIENCE)
    }

    /// Asks the system once for each name.
    pub(crate) fn impatient() -> Self {
        Self::new(Box::new(first_address), Duration::ZERO)
    }

    pub(crate) fn new(look_up: Box<LookUp>, patience: Duration) -> Self {
        Self { look_up, until: Instant::now() + patience }
    }

    /// Whether both lists lead to the same places; names are looked up only if the texts differ.
    ///
    /// # Errors
    /// In etcd's words: what is different, or which name leads nowhere.
    pub fn check_same(&self, left: &[Url], right: &[Url]) -> Result<(), String> {
        if left.len() != right.len() {
            return Err(format!("len({}) != len({})", quoted(left), quoted(right)));
        }
        let normalized = |urls: &[Url]| sorted(urls.iter().map(normalized).collect());
        let (left, right) = (normalized(left), normalized(right));
        if left == right {
            return Ok(());
        }
        let resolved = |urls: &[Url]| {
            let each = urls.iter().map(|url| self.resolved(url));
            each.collect::<Result<Vec<Url>, String>>().map(sorted)
        };
        let (left, right) = (resolved(&left)?, resolved(&right)?);
        match left.iter().zip(&right).find(|(left, right)| left != right) {
            Some((left, right)) => {
                Err(format!("resolved urls: {:?} != {:?}", left.as_str(), right.as_str()))
            }
            None => Ok(()),
        }
    }

    /// The URL with the address of its host. `localhost` is the same everywhere.
    fn resolved(&self, url: &Url) -> Result<Url, String> {
        let host = url.host();
        if url.scheme().is_unix() || host == "localhost" || host.parse::<IpAddr>().is_ok() {
            return Ok(url.clone());
        }
        loop {
            match (self.look_up)(host) {
                Ok(address) => return Ok(url.with_host(&address.to_string(), url.port())),
                Err(error) if Instant::now() >= self.until => {
                    return Err(format!("failed to resolve {:?} ({error})", url.as_str()));
                }
                Err(error) => {
                    tracing::warn!(%url, host, error, "failed to resolve URL Host");
                    thread::sleep(PAUSE);
                }
            }
        }
    }
}

/// The URL with its host's address as everybody writes it.
fn normalized(url: &Url) -> Url {
    match url.host().parse::<IpAddr>() {
        Ok(address) if !url.scheme().is_unix() => {
            url.with_host(&address.to_canonical().to_string(), url.port())
        }
        _ => url.clone(),
    }
}

fn sorted(mut urls: Vec<Url>) -> Vec<Url> {
    urls.sort();
    urls
}

/// As Go prints texts with `%q`.
fn quoted(urls: &[Url]) -> String {
    let quoted: Vec<String> = texts(urls).iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// The address of a host that the system prefers.
fn first_address(host: &str) -> Result<IpAddr, String> {
    let none = || format!("lookup {host}: no such host");
    let mut found = (host, 0).to_socket_addrs().map_err(|_| none())?;
    found.next().map(|address| address.ip().to_canonical()).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts `h1` and so on at 10.0.0.1 and so on.
    fn check(left: &str, right: &str) -> Result<(), String> {
        let look_up = |host: &str| match host.trim_start_matches('h').parse::<u8>() {
            Ok(number) => Ok(IpAddr::from([10, 0, 0, number])),
            Err(_) => Err(format!("lookup {host}: no such host")),
        };
        let urls =
            |text: &str| -> Vec<Url> { text.split(',').map(|url| url.parse().unwrap()).collect() };
        Hosts::new(Box::new(look_up), Duration::ZERO).check_same(&urls(left), &urls(right))
    }

    #[test]
    fn a_host_is_where_its_name_leads() {
        assert_eq!(check("http://h1:1,http://h2:2", "http://10.0.0.2:2,http://10.0.0.1:1"), Ok(()));
        assert_eq!(check("http://h1:1", "http://h1:1"), Ok(()));
        assert_eq!(check("http://nobody:1", "http://nobody:1"), Ok(()), "nothing is looked up");
        assert_eq!(check("http://[::1]:1", "http://[0:0:0:0:0:0:0:1]:1"), Ok(()));
        assert_eq!(check("unix:a:1,http://h1:1", "http://10.0.0.1:1,unix:a:1"), Ok(()));
    }

    #[test]
    fn what_differs_is_told_in_the_words_of_etcd() {
        for (left, right, words) in [
            (
                "http://h1:1",
                "https://h1:1",
                "resolved urls: \"http://10.0.0.1:1\" != \"https://10.0.0.1:1\"",
            ),
            (
                "http://h1:1",
                "http://10.0.0.1:2",
                "resolved urls: \"http://10.0.0.1:1\" != \"http://10.0.0.1:2\"",
            ),
            (
                "http://localhost:1",
                "http://127.0.0.1:1",
                "resolved urls: \"http://localhost:1\" != \"http://127.0.0.1:1\"",
            ),
            (
                "http://h1:1,http://h2:1",
                "http://h1:1",
                "len([\"http://h1:1\" \"http://h2:1\"]) != \
              len([\"http://h1:1\"])",
            ),
            (
                "http://h1:1",
                "http://nobody:1",
                "failed to resolve \"http://nobody:1\" (lookup nobody: no such host)",
            ),
        ] {
            assert_eq!(check(left, right).unwrap_err(), words);
        }
    }

    #[test]
    fn a_name_that_leads_nowhere_yet_is_looked_up_again() {
        let asked = std::sync::atomic::AtomicU8::new(0);
        let look_up = move |_: &str| match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        {
            0 => Err("nowhere".to_owned()),
            _ => Ok(IpAddr::from([10, 0, 0, 1])),
        };
        let hosts = Hosts::new(Box::new(look_up), PATIENCE);
        let url = |text: &str| [text.parse::<Url>().unwrap()];
        assert_eq!(hosts.check_same(&url("http://h:1"), &url("http://10.0.0.1:1")), Ok(()));
    }
}
