//! Configurations from people who have never seen one.

use crate::cli::{Invocation, parse};
use crate::urls::{Hosts, Url};

use super::{Config, InitialCluster, file};

/// Makes sense of a file and of a command line.
pub(crate) fn configuration(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if ["/dev", "/proc", "/sys"].iter().any(|place| text.contains(place)) {
        // A certificate that is read from there would be no file.
        return;
    }
    if let Ok(raw) = file::parse(&text) {
        let _ = Config::from_raw(raw);
    }
    let arguments = text.lines().map(str::to_owned);
    if let Ok(Invocation::Run(raw)) = parse(arguments, []) {
        let _ = Config::from_raw(raw);
    }
}

/// Reads the members that a cluster begins with.
pub(crate) fn initial_cluster(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(cluster) = InitialCluster::parse(&text) else { return };
    for (name, urls) in cluster.members() {
        // The same URLs, so that no name is looked up.
        let _ = cluster.check_founding(name, urls, &Hosts::patient());
        for url in urls {
            let written = url.to_string();
            assert_eq!(written.parse::<Url>().as_ref(), Ok(url), "{written}");
        }
    }
}
