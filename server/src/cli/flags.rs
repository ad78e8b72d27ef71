//! The table of flags: each is written down once, and everything else (parsing, the environment,
//! the configuration file, `--help`, what the server may refuse) is derived from it.
//!
//! Names, defaults and meanings are etcd 3.7's (`server/embed/config.go`, `server/etcdmain`); names
//! that only etcd 3.4 to 3.6 knew are accepted as well, because deployments still pass them.

mod clustering;
mod member;
mod older;
mod operation;
mod security;

use super::value::Kind;

/// The heading of `--help` under which a flag stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Member,
    Clustering,
    Security,
    Auth,
    Monitoring,
    Logging,
    Tracing,
    Features,
    Unsafe,
    Keelson,
    /// Accepted, but not shown.
    Hidden,
}

impl Group {
    /// The headings in the order of `--help`.
    pub(crate) const SHOWN: [(Group, &'static str); 10] = [
        (Group::Member, "Member"),
        (Group::Clustering, "Clustering"),
        (Group::Security, "Security"),
        (Group::Auth, "Auth"),
        (Group::Monitoring, "Profiling and Monitoring"),
        (Group::Logging, "Logging"),
        (Group::Tracing, "Distributed tracing"),
        (Group::Features, "Features"),
        (Group::Keelson, "Keelson's own"),
        (Group::Unsafe, "Unsafe feature"),
    ];
}

/// What the server does with a flag. Nothing is ignored in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It does what it says.
    Implemented,
    /// Any value but the default stops the start, with this explanation.
    RefusedUnlessDefault(&'static str),
    /// etcd has removed it: on the command line it stops the start, with this explanation, as a flag that
    /// etcd does not know does; from a variable or a file it is logged as a warning and changes nothing.
    Removed(&'static str),
    /// It is accepted and changes nothing; setting it logs this explanation as a warning.
    NoEffect(&'static str),
    /// A flag that etcd itself accepts and forgets (`server/etcdmain/config.go`, `ignored`).
    Legacy,
    /// An older name of another flag.
    Alias(&'static str),
    /// An older boolean flag that became a feature gate.
    Gate(&'static str),
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    pub(crate) kind: Kind,
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
    pub(crate) status: Status,
}

impl Flag {
    const fn new(
        group: Group,
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, group, kind, default, help, status: Status::Implemented }
    }

    const fn refused(mut self, why: &'static str) -> Self {
        self.status = Status::RefusedUnlessDefault(why);
        self
    }

    const fn removed(mut self, why: &'static str) -> Self {
        self.status = Status::Removed(why);
        self
    }

    const fn no_effect(mut self, why: &'static str) -> Self {
        self.status = Status::NoEffect(why);
        self
    }

    /// The environment variable that sets this flag.
    pub(crate) fn environment_variable(&self) -> String {
        format!("ETCD_{}", self.name.replace(['-', '.'], "_").to_uppercase())
    }
}

/// All flags, in the order of `--help`.
pub(crate) fn all() -> impl Iterator<Item = &'static Flag> {
    [member::FLAGS, clustering::FLAGS, security::FLAGS, operation::FLAGS, older::FLAGS]
        .into_iter()
        .flatten()
}

/// Finds a flag by its name, without dashes.
pub(crate) fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flag_is_defined_once() {
        let mut names = BTreeSet::new();
        for flag in all() {
            assert!(names.insert(flag.name), "{} is defined twice", flag.name);
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_own_flag() {
        for flag in all() {
            if !flag.default.is_empty() {
                assert_eq!(flag.kind.check(flag.default), Ok(()), "--{}", flag.name);
            }
        }
    }

    #[test]
    fn every_alias_leads_to_a_flag_of_the_same_kind() {
        for flag in all() {
            if let Status::Alias(target) = flag.status {
                let target =
                    find(target).unwrap_or_else(|| panic!("--{} aliases nothing", flag.name));
                assert_eq!(flag.kind, target.kind, "--{}", flag.name);
                assert!(!matches!(target.status, Status::Alias(_)));
            }
        }
    }

    /// The flags of etcd 3.7.3, as its own flag set lists them.
    #[test]
    fn every_flag_of_etcd_3_7_is_known() {
        let missing: Vec<&str> = include_str!("flags/etcd_3_7_flags.txt")
            .lines()
            .filter(|name| !name.is_empty() && find(name).is_none())
            .collect();
        assert_eq!(missing, Vec::<&str>::new());
    }
}
