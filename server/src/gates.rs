//! Feature gates, with the names and stages of etcd 3.7 (`server/features`), and its defaults but for the
//! checks of the members' data, which are on here.

use std::collections::BTreeMap;

/// One gate.
struct Gate {
    name: &'static str,
    beta: bool,
    /// Whether it is on if nothing is said.
    enabled: bool,
    /// Why the value that is not the default changes nothing, if it changes nothing.
    no_effect: Option<&'static str>,
}

const fn gate(name: &'static str, beta: bool) -> Gate {
    Gate { name, beta, enabled: beta, no_effect: None }
}

/// etcd leaves these checks off, and so nobody had them when its 3.5 lost data. A check that nobody turned
/// on finds nothing.
const fn gate_of_a_check(name: &'static str) -> Gate {
    Gate { name, beta: false, enabled: true, no_effect: None }
}

const fn gate_no_effect(name: &'static str, beta: bool, why: &'static str) -> Gate {
    Gate { name, beta, enabled: beta, no_effect: Some(why) }
}

const GATES: [Gate; 9] = [
    gate_of_a_check("CompactHashCheck"),
    gate_no_effect(
        "FastLeaseKeepAlive",
        true,
        "a renewal waits for the leader's quorum and never for this member's applied index",
    ),
    gate_of_a_check("InitialCorruptCheck"),
    gate("LeaseCheckpoint", false),
    gate_no_effect(
        "LeaseCheckpointPersist",
        false,
        "checkpoints of leases are always part of the replicated state",
    ),
    gate("PriorityRequest", false),
    gate("SetMemberLocalAddr", false),
    gate_no_effect(
        "StopGRPCServiceOnDefrag",
        false,
        "Defragment does not stop reads and writes, so the service need not stop either",
    ),
    gate_no_effect("TxnModeWriteWithSharedBuffer", true, "transactions never copy a read buffer"),
];

/// Gates that stand for every gate of a stage that is not set by name.
const ALL: [(&str, bool); 2] = [("AllAlpha", false), ("AllBeta", true)];

/// Which gates were set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates {
    set: BTreeMap<&'static str, bool>,
}

impl FeatureGates {
    /// Reads `A=true,B=false`.
    ///
    /// # Errors
    /// The text that etcd prints.
    pub fn set_from_text(&mut self, text: &str) -> Result<(), String> {
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (name.trim(), value.trim()),
                None => return Err(format!("missing bool value for {}", pair.trim())),
            };
            let value = crate::cli::value::parse_bool(value).map_err(|_| {
                format!(
                    "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
                )
            })?;
            self.set(name, value)?;
        }
        Ok(())
    }

    /// Sets one gate, or with `AllAlpha` and `AllBeta` those of a stage.
    pub fn set(&mut self, name: &str, value: bool) -> Result<(), String> {
        if let Some((all, beta)) = ALL.iter().find(|(all, _)| *all == name) {
            for gate in GATES.iter().filter(|gate| gate.beta == *beta) {
                self.set.entry(gate.name).or_insert(value);
            }
            self.set.insert(all, value);
            return Ok(());
        }
        let gate = GATES
            .iter()
            .find(|gate| gate.name == name)
            .ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
        self.set.insert(gate.name, value);
        Ok(())
    }

    /// Whether a gate is on.
    pub fn enabled(&self, name: &str) -> bool {
        let default = GATES.iter().any(|gate| gate.name == name && gate.enabled);
        self.set.get(name).copied().unwrap_or(default)
    }

    /// Every gate, those of whole stages included, with its stage and whether it is on, for
    /// `etcd_server_feature_enabled`.
    pub fn states(&self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        let single = GATES.iter().map(|gate| (gate.name, gate.beta));
        single
            .chain(ALL)
            .map(|(name, beta)| (name, if beta { "BETA" } else { "ALPHA" }, self.enabled(name)))
    }

    /// Refuses gates that do not go together and returns warnings about what changes nothing.
    pub fn check(&self) -> Result<Vec<String>, String> {
        if self.enabled("LeaseCheckpointPersist") && !self.enabled("LeaseCheckpoint") {
            return Err(
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
                    .to_owned(),
            );
        }
        let mut warnings = Vec::new();
        for gate in GATES.iter().filter(|gate| self.enabled(gate.name) != gate.enabled) {
            if let Some(why) = gate.no_effect {
                warnings.push(format!("feature gate {} has no effect: {why}", gate.name));
            }
        }
        Ok(warnings)
    }
}

/// The gates as `--help` lists them.
pub fn known() -> Vec<String> {
    let all = ALL.iter().map(|(name, beta)| {
        format!("{name}=true|false ({} - default=false)", if *beta { "BETA" } else { "ALPHA" })
    });
    let gates = GATES.iter().map(|gate| {
        format!(
            "{}=true|false ({} - default={})",
            gate.name,
            if gate.beta { "BETA" } else { "ALPHA" },
            gate.enabled
        )
    });
    all.chain(gates).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_read_as_etcd_reads_them() {
        let mut gates = FeatureGates::default();
        assert!(gates.enabled("FastLeaseKeepAlive") && !gates.enabled("LeaseCheckpoint"));
        gates.set_from_text("LeaseCheckpoint=true, FastLeaseKeepAlive=false").unwrap();
        assert!(gates.enabled("LeaseCheckpoint"));
        assert!(!gates.enabled("FastLeaseKeepAlive"));
        let error = |text: &str| FeatureGates::default().set_from_text(text).unwrap_err();
        assert_eq!(error("Foo=true"), "unrecognized feature gate: Foo");
        assert_eq!(error("Foo"), "missing bool value for Foo");
        assert!(error("PriorityRequest=x").starts_with("invalid value of PriorityRequest=x"));
    }

    #[test]
    fn the_checks_of_data_are_on_until_they_are_turned_off() {
        for (how, left) in [("CompactHashCheck=false", 1), ("AllAlpha=false", 0), ("", 2)] {
            let mut gates = FeatureGates::default();
            gates.set_from_text(how).unwrap();
            let on = ["CompactHashCheck", "InitialCorruptCheck"].map(|name| gates.enabled(name));
            assert_eq!(on.into_iter().filter(|on| *on).count(), left, "{how}");
        }
    }

    #[test]
    fn a_gate_by_name_wins_over_the_gates_of_its_stage() {
        let mut gates = FeatureGates::default();
        gates.set_from_text("FastLeaseKeepAlive=true,AllBeta=false").unwrap();
        assert!(gates.enabled("FastLeaseKeepAlive"));
        assert!(!gates.enabled("TxnModeWriteWithSharedBuffer"));
    }

    #[test]
    fn gates_that_need_others_stop_the_start_and_those_without_effect_are_told() {
        let mut gates = FeatureGates::default();
        gates.set_from_text("SetMemberLocalAddr=true,PriorityRequest=true").unwrap();
        assert_eq!(gates.check(), Ok(Vec::new()));
        gates.set("LeaseCheckpointPersist", true).unwrap();
        assert!(gates.check().unwrap_err().contains("requires enabling feature gate"));
        gates.set("LeaseCheckpoint", true).unwrap();
        assert_eq!(gates.check().unwrap().len(), 1);
    }
}
