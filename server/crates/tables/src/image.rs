//! The tables in an image or a snapshot.
//!
//! ```text
//! +---------+----------------+----------------+-----------------------------------------+
//! | version | cluster id u64 | applied        | position := present u8 [term u64,       |
//! | u8 = 2  |                | position       |             index u64]                  |
//! +---------+----------------+----------------+-----------------------------------------+
//! | membership: position, voter sets (count u32, each a count u32 and ids u64 rising),    |
//! |   members (count u32, each id u64, name, peer URLs, client URLs, learner u8,        |
//! |   intent u8; ids rising), removed (count u32, ids u64 rising)                       |
//! +-------------------------------------------------------------------------------------+
//! | alarms: count u32, each kind u32, member u64, rising                                |
//! +-------------------------------------------------------------------------------------+
//! | cluster version: present u8 [major u32, minor u32, patch u32]                       |
//! | downgrade target: present u8 [text]                                                 |
//! +-------------------------------------------------------------------------------------+
//! | auth: enabled u8, revision u64, users and roles (`image/auth.rs`); since version 2   |
//! +-------------------------------------------------------------------------------------+
//! ```
//! A text is a length u32 and UTF-8; a list of texts is a count u32 and the texts. Version 1 ends
//! before auth: nothing was ever changed in it.

mod auth;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{ClusterId, LogIndex, MemberId, Term};

use crate::codec::{DecodeError, Decoder, Encoder};
use crate::{
    Alarm, AlarmKind, Alarms, ClusterVersion, Downgrade, LogPosition, MemberRecord, Membership,
    Tables,
};

const VERSION: u8 = 2;

/// The last version without auth.
const VERSION_WITHOUT_AUTH: u8 = 1;

impl Tables {
    /// The one encoding of this state.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new(VERSION);
        out.u64(self.cluster_id.0);
        encode_position(&mut out, self.applied);
        encode_membership(&mut out, &self.membership);
        out.count(self.alarms.on.len());
        for alarm in &self.alarms.on {
            out.u32(alarm.kind.0.cast_unsigned());
            out.u64(alarm.member.0);
        }
        out.bool(self.cluster_version.is_some());
        if let Some(version) = self.cluster_version {
            for number in [version.major, version.minor, version.patch] {
                out.u32(number);
            }
        }
        out.bool(self.downgrade.target_version.is_some());
        if let Some(target) = &self.downgrade.target_version {
            out.text(target);
        }
        auth::encode(&mut out, &self.auth);
        out.finish()
    }

    /// Reads what [`Tables::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Tables, DecodeError> {
        let (mut input, version) = Decoder::new(bytes, VERSION)?;
        let tables = Tables {
            cluster_id: ClusterId(input.u64("cluster id")?),
            applied: decode_position(&mut input, "applied position")?,
            membership: decode_membership(&mut input)?,
            alarms: decode_alarms(&mut input)?,
            cluster_version: decode_version(&mut input)?,
            downgrade: decode_downgrade(&mut input)?,
            auth: match version {
                ..=VERSION_WITHOUT_AUTH => Arc::default(),
                _ => Arc::new(auth::decode(&mut input)?),
            },
        };
        input.finish()?;
        Ok(tables)
    }
}

fn encode_position(out: &mut Encoder, position: Option<LogPosition>) {
    out.bool(position.is_some());
    if let Some(position) = position {
        out.u64(position.term.0);
        out.u64(position.index.0);
    }
}

fn decode_position(
    input: &mut Decoder<'_>,
    field: &'static str,
) -> Result<Option<LogPosition>, DecodeError> {
    if !input.bool(field)? {
        return Ok(None);
    }
    Ok(Some(LogPosition { term: Term(input.u64(field)?), index: LogIndex(input.u64(field)?) }))
}

fn encode_membership(out: &mut Encoder, membership: &Membership) {
    encode_position(out, membership.position);
    out.count(membership.voters.len());
    for voters in &membership.voters {
        out.count(voters.len());
        voters.iter().for_each(|id| out.u64(id.0));
    }
    out.count(membership.members.len());
    for member in membership.members.values() {
        out.u64(member.id.0);
        out.text(&member.name);
        out.texts(&member.peer_urls);
        out.texts(&member.client_urls);
        out.bool(member.is_learner);
        out.bool(member.voter_intent);
    }
    out.count(membership.removed.len());
    membership.removed.iter().for_each(|id| out.u64(id.0));
}

fn decode_membership(input: &mut Decoder<'_>) -> Result<Membership, DecodeError> {
    let position = decode_position(input, "membership position")?;
    let sets = input.u32("voter sets")?;
    let voters = (0..sets).map(|_| decode_ids(input, "voter")).collect::<Result<_, _>>()?;
    let mut members: BTreeMap<MemberId, MemberRecord> = BTreeMap::new();
    for _ in 0..input.u32("members")? {
        let last = members.last_key_value().map(|(id, _)| *id);
        let member = MemberRecord {
            id: input.member(last, "member id")?,
            name: input.text("member name")?,
            peer_urls: input.texts("peer URLs")?,
            client_urls: input.texts("client URLs")?,
            is_learner: input.bool("learner")?,
            voter_intent: input.bool("voter intent")?,
        };
        members.insert(member.id, member);
    }
    let removed = decode_ids(input, "removed member")?;
    Ok(Membership { position, voters, members, removed })
}

fn decode_ids(
    input: &mut Decoder<'_>,
    field: &'static str,
) -> Result<BTreeSet<MemberId>, DecodeError> {
    let mut ids = BTreeSet::new();
    for _ in 0..input.u32(field)? {
        let id = input.member(ids.last().copied(), field)?;
        ids.insert(id);
    }
    Ok(ids)
}

fn decode_alarms(input: &mut Decoder<'_>) -> Result<Alarms, DecodeError> {
    let mut on = BTreeSet::new();
    for _ in 0..input.u32("alarms")? {
        let kind = AlarmKind(input.u32("alarm kind")?.cast_signed());
        let alarm = Alarm { kind, member: MemberId(input.u64("alarm member")?) };
        on.insert(input.rising(on.last().copied(), alarm, "alarm")?);
    }
    Ok(Alarms { on })
}

fn decode_version(input: &mut Decoder<'_>) -> Result<Option<ClusterVersion>, DecodeError> {
    const FIELD: &str = "cluster version";
    if !input.bool(FIELD)? {
        return Ok(None);
    }
    let (major, minor, patch) = (input.u32(FIELD)?, input.u32(FIELD)?, input.u32(FIELD)?);
    Ok(Some(ClusterVersion { major, minor, patch }))
}

fn decode_downgrade(input: &mut Decoder<'_>) -> Result<Downgrade, DecodeError> {
    const FIELD: &str = "downgrade target";
    let target_version = if input.bool(FIELD)? { Some(input.text(FIELD)?) } else { None };
    Ok(Downgrade { target_version })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MembershipEntry, MembershipNode};
    use proptest::prelude::*;

    fn position(index: u64) -> LogPosition {
        LogPosition { term: Term(3), index: LogIndex(index) }
    }

    fn example() -> Tables {
        let mut tables = Tables::new(ClusterId(0xc1));
        let node = |id| MembershipNode {
            id: MemberId(id),
            peer_urls: vec![format!("http://{id}:2380")],
            voter_intent: id < 3,
            ..MembershipNode::default()
        };
        let voters = |ids: &[u64]| ids.iter().map(|id| MemberId(*id)).collect();
        let full = MembershipEntry {
            nodes: (1..=4).map(node).collect(),
            voters: vec![voters(&[1, 2]), voters(&[1])],
        };
        tables.membership.apply(position(2), &full);
        let less = MembershipEntry { nodes: (1..=3).map(node).collect(), ..full };
        tables.membership.apply(position(5), &less);
        let urls = vec!["http://1:2379".to_owned(), "http://1:4001".to_owned()];
        tables.membership.set_attributes(MemberId(1), "infra1".to_owned(), urls).unwrap();
        tables.applied = Some(position(9));
        tables.alarms.activate(Alarm { kind: AlarmKind::CORRUPT, member: MemberId(2) });
        tables.alarms.activate(Alarm { kind: AlarmKind::NO_SPACE, member: MemberId(3) });
        tables.cluster_version = Some("3.7.0".parse().unwrap());
        tables.downgrade.target_version = Some("3.6.0".to_owned());
        tables.auth = Arc::new(auth::tests::example());
        tables
    }

    #[test]
    fn an_image_brings_back_every_table() {
        for tables in [Tables::default(), example()] {
            let bytes = tables.encode();
            assert_eq!(Tables::decode(&bytes).unwrap(), tables);
        }
    }

    #[test]
    fn the_encoding_of_an_empty_cluster_is_as_drawn() {
        let mut expected = vec![2];
        expected.extend(0xc1u64.to_le_bytes());
        expected.extend([0]); // nothing applied
        expected.extend([0]); // no membership entry
        expected.extend([0; 12]); // no voter sets, members, removed
        expected.extend([0; 4]); // no alarms
        expected.extend([0, 0]); // no version, no downgrade
        expected.push(0); // auth is off
        expected.extend(1u64.to_le_bytes()); // at its first revision
        expected.extend([0; 8]); // no users, no roles
        assert_eq!(Tables::new(ClusterId(0xc1)).encode(), expected);
    }

    #[test]
    fn tables_of_version_1_have_no_users() {
        let mut tables = example();
        tables.auth = Arc::default();
        let mut old = tables.encode();
        old.truncate(old.len() - 17);
        old[0] = 1;
        assert_eq!(Tables::decode(&old).unwrap(), tables);
    }

    #[test]
    fn cuts_tails_foreign_versions_and_disorder_are_errors() {
        let bytes = example().encode();
        for length in 0..bytes.len() {
            assert!(Tables::decode(&bytes[..length]).is_err(), "cut at {length}");
        }
        let mut long = bytes.clone();
        long.push(0);
        assert!(matches!(Tables::decode(&long), Err(DecodeError::Damaged { field: "end", .. })));
        let mut foreign = bytes;
        foreign[0] = 9;
        assert_eq!(
            Tables::decode(&foreign),
            Err(DecodeError::Version { found: 9, known: VERSION })
        );
        let mut twice = Encoder::new(VERSION);
        twice.u64(1);
        twice.bool(false);
        twice.bool(false);
        for number in [0, 0, 2] {
            twice.u32(number);
        }
        twice.u64(5);
        twice.u64(5);
        assert!(matches!(
            Tables::decode(&twice.finish()),
            Err(DecodeError::Damaged { field: "removed member", .. })
        ));
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_another_state_and_never_a_panic(
            at in 0usize..400, with in any::<u8>(),
        ) {
            let mut bytes = example().encode();
            let at = at % bytes.len();
            bytes[at] = with;
            if let Ok(tables) = Tables::decode(&bytes) {
                prop_assert_eq!(tables.encode(), bytes);
            }
        }
    }
}
