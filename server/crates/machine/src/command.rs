//! The payload of a Raft entry: many client requests in the form their clients sent them.
//!
//! ```text
//! +-----------+-----------+  then per proposal, integers little endian
//! | format u8 | count u32 |
//! |    = 1    |           |
//! +-----------+-----------+
//! +---------+----------+------------+---------+-----------------------------------+
//! | kind u8 | flags u8 | origin u64 | seq u64 | caller, if flags bit 0:           |
//! |         |          |            |         | auth revision u64, name length    |
//! |         |          |            |         | u32, name                         |
//! +---------+----------+------------+---------+-----------------------------------+
//! | body length u32 | body: the request's own protobuf bytes                      |
//! +-----------------+-------------------------------------------------------------+
//! ```
//!
//! The same bytes are the log record, the replication payload and what a follower forwards to its
//! leader, so they are encoded once. They carry no checksum: the log and the transport have theirs.
//!
//! A payload of another format, or a kind of command this program does not know, stops the member
//! ([`crate::Fatal`]): to skip it would make its state differ from the others'. Kinds are never
//! renumbered and their meaning never changes; a new meaning is a new kind, proposed only once every
//! member knows it.

use bytes::{Buf, Bytes};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::membershippb;
use types::{LeaseId, MemberId, Term};

use crate::auth::AuthCommand;

/// The format that this program writes and the only one that it reads.
pub const BATCH_FORMAT: u8 = 1;

const FLAG_CALLER: u8 = 1;

/// What a proposal asks for; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CommandKind {
    /// `etcdserverpb.PutRequest`
    Put = 1,
    /// `etcdserverpb.DeleteRangeRequest`
    DeleteRange = 2,
    /// `etcdserverpb.TxnRequest`
    Txn = 3,
    /// `etcdserverpb.CompactionRequest`
    Compaction = 4,
    /// `etcdserverpb.LeaseGrantRequest`, its id chosen and its TTL raised to the minimum
    LeaseGrant = 5,
    /// `etcdserverpb.LeaseRevokeRequest`, by a client
    LeaseRevoke = 6,
    /// [`LeaseExpire`], by the leader
    LeaseExpire = 7,
    /// `etcdserverpb.LeaseCheckpointRequest`
    LeaseCheckpoint = 8,
    /// `etcdserverpb.AlarmRequest`
    Alarm = 9,
    /// `membershippb.ClusterMemberAttrSetRequest`
    MemberAttributes = 16,
    /// `membershippb.ClusterVersionSetRequest`
    ClusterVersionSet = 17,
    /// `membershippb.DowngradeInfoSetRequest`
    DowngradeInfoSet = 18,
    // 32 to 63 are the commands of auth.
    /// `etcdserverpb.AuthEnableRequest`
    AuthEnable = 32,
    /// `etcdserverpb.AuthDisableRequest`
    AuthDisable = 33,
    /// `etcdserverpb.AuthStatusRequest`
    AuthStatus = 34,
    /// `etcdserverpb.InternalAuthenticateRequest`, without the password; the caller's auth revision
    /// is the one under which the password was compared
    Authenticate = 35,
    /// `etcdserverpb.AuthUserAddRequest`, with the hash and without the password
    UserAdd = 36,
    /// `etcdserverpb.AuthUserDeleteRequest`
    UserDelete = 37,
    /// `etcdserverpb.AuthUserChangePasswordRequest`, with the hash and without the password
    UserChangePassword = 38,
    /// `etcdserverpb.AuthUserGrantRoleRequest`
    UserGrantRole = 39,
    /// `etcdserverpb.AuthUserRevokeRoleRequest`
    UserRevokeRole = 40,
    /// `etcdserverpb.AuthUserGetRequest`
    UserGet = 41,
    /// `etcdserverpb.AuthUserListRequest`
    UserList = 42,
    /// `etcdserverpb.AuthRoleAddRequest`
    RoleAdd = 43,
    /// `etcdserverpb.AuthRoleDeleteRequest`
    RoleDelete = 44,
    /// `etcdserverpb.AuthRoleGetRequest`
    RoleGet = 45,
    /// `etcdserverpb.AuthRoleListRequest`
    RoleList = 46,
    /// `etcdserverpb.AuthRoleGrantPermissionRequest`
    RoleGrantPermission = 47,
    /// `etcdserverpb.AuthRoleRevokePermissionRequest`
    RoleRevokePermission = 48,
}

impl CommandKind {
    /// Every kind there is.
    pub const ALL: [CommandKind; 29] = [
        CommandKind::Put,
        CommandKind::DeleteRange,
        CommandKind::Txn,
        CommandKind::Compaction,
        CommandKind::LeaseGrant,
        CommandKind::LeaseRevoke,
        CommandKind::LeaseExpire,
        CommandKind::LeaseCheckpoint,
        CommandKind::Alarm,
        CommandKind::MemberAttributes,
        CommandKind::ClusterVersionSet,
        CommandKind::DowngradeInfoSet,
        CommandKind::AuthEnable,
        CommandKind::AuthDisable,
        CommandKind::AuthStatus,
        CommandKind::Authenticate,
        CommandKind::UserAdd,
        CommandKind::UserDelete,
        CommandKind::UserChangePassword,
        CommandKind::UserGrantRole,
        CommandKind::UserRevokeRole,
        CommandKind::UserGet,
        CommandKind::UserList,
        CommandKind::RoleAdd,
        CommandKind::RoleDelete,
        CommandKind::RoleGet,
        CommandKind::RoleList,
        CommandKind::RoleGrantPermission,
        CommandKind::RoleRevokePermission,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// On whose behalf a request is made. Without auth, and for the members' own requests, nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The user; empty for nobody.
    pub user: String,
    /// The auth revision under which the edge checked the request; apply refuses it if permissions
    /// have changed since (etcd: `RequestHeader.auth_revision`).
    pub auth_revision: u64,
}

/// Pairs a request with the client that waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The member whose client waits; only it answers.
    pub origin: MemberId,
    /// That member's own number for the request.
    pub seq: u64,
}

/// A request on its way into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What it asks for.
    pub kind: CommandKind,
    /// The request's protobuf bytes.
    pub body: Bytes,
    /// Who asks.
    pub caller: Caller,
}

impl Proposal {
    /// A request of this message, on nobody's behalf.
    pub fn new(kind: CommandKind, request: &impl Message) -> Self {
        Self { kind, body: request.encode_to_vec().into(), caller: Caller::default() }
    }
}

/// Why a payload is not a batch. On a proposal that was forwarded this is the sender's fault and the
/// batch is refused before it is appended; on a committed entry the member stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The payload has another format.
    #[error(
        "batch format {found}, this program reads format {BATCH_FORMAT}; run at least the version \
         that wrote it"
    )]
    Format { found: u8 },
    /// A command this program does not know.
    #[error(
        "command {kind} in a batch of format {BATCH_FORMAT}, which this program does not know; run \
         at least the version that wrote it"
    )]
    Kind { kind: u8 },
    /// Bits whose meaning this program does not know.
    #[error("proposal flags {flags:#04x} in a batch of format {BATCH_FORMAT} are not known")]
    Flags { flags: u8 },
    /// The bytes end inside a field.
    #[error("batch ends early, in the {field} of proposal {proposal}")]
    Short { proposal: u32, field: &'static str },
    /// A user name that is no text.
    #[error("user name of proposal {proposal} is not UTF-8")]
    UserName { proposal: u32 },
    /// More bytes than proposals.
    #[error("{bytes} bytes follow the last proposal of a batch")]
    Trailing { bytes: usize },
}

/// The codec of batches.
#[derive(Clone, Copy, Debug)]
pub struct Batch;

impl Batch {
    /// The payload of one Raft entry.
    pub fn encode(proposals: &[(Ticket, Proposal)]) -> Bytes {
        let size: usize = proposals.iter().map(|(_, proposal)| encoded_len(proposal)).sum();
        let mut out = Vec::with_capacity(5 + size);
        out.push(BATCH_FORMAT);
        put_length(&mut out, proposals.len());
        for (ticket, proposal) in proposals {
            let caller = &proposal.caller;
            let named = *caller != Caller::default();
            out.extend_from_slice(&[proposal.kind as u8, if named { FLAG_CALLER } else { 0 }]);
            out.extend_from_slice(&ticket.origin.0.to_le_bytes());
            out.extend_from_slice(&ticket.seq.to_le_bytes());
            if named {
                out.extend_from_slice(&caller.auth_revision.to_le_bytes());
                put_length(&mut out, caller.user.len());
                out.extend_from_slice(caller.user.as_bytes());
            }
            put_length(&mut out, proposal.body.len());
            out.extend_from_slice(&proposal.body);
        }
        out.into()
    }

    /// The proposals of a payload; their bodies share its memory. A leader calls this on what a
    /// follower forwards, before it appends it.
    pub fn decode(payload: &Bytes) -> Result<Vec<(Ticket, Proposal)>, BatchError> {
        let mut input = Input { rest: payload.clone(), proposal: 0 };
        let format = input.u8("format")?;
        if format != BATCH_FORMAT {
            return Err(BatchError::Format { found: format });
        }
        let count = input.u32("count")?;
        // A count is only believed as far as the bytes can hold it.
        let mut proposals = Vec::with_capacity((count as usize).min(payload.len() / 22));
        for proposal in 0..count {
            input.proposal = proposal;
            proposals.push(input.proposal()?);
        }
        match input.rest.len() {
            0 => Ok(proposals),
            bytes => Err(BatchError::Trailing { bytes }),
        }
    }
}

fn encoded_len(proposal: &Proposal) -> usize {
    22 + 12 + proposal.caller.user.len() + proposal.body.len()
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("requests are bounded by a few megabytes each");
    out.extend_from_slice(&length.to_le_bytes());
}

struct Input {
    rest: Bytes,
    proposal: u32,
}

impl Input {
    fn need(&self, length: usize, field: &'static str) -> Result<(), BatchError> {
        match self.rest.len() >= length {
            true => Ok(()),
            false => Err(BatchError::Short { proposal: self.proposal, field }),
        }
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, BatchError> {
        self.need(1, field)?;
        Ok(self.rest.get_u8())
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, BatchError> {
        self.need(4, field)?;
        Ok(self.rest.get_u32_le())
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, BatchError> {
        self.need(8, field)?;
        Ok(self.rest.get_u64_le())
    }

    fn bytes(&mut self, field: &'static str) -> Result<Bytes, BatchError> {
        let length = self.u32(field)? as usize;
        self.need(length, field)?;
        Ok(self.rest.split_to(length))
    }

    fn proposal(&mut self) -> Result<(Ticket, Proposal), BatchError> {
        let kind = self.u8("kind")?;
        let kind = CommandKind::from_number(kind).ok_or(BatchError::Kind { kind })?;
        let flags = self.u8("flags")?;
        if flags & !FLAG_CALLER != 0 {
            return Err(BatchError::Flags { flags });
        }
        let origin = MemberId(self.u64("origin")?);
        let ticket = Ticket { origin, seq: self.u64("sequence number")? };
        let caller = match flags & FLAG_CALLER {
            0 => Caller::default(),
            _ => self.caller()?,
        };
        let body = self.bytes("body")?;
        Ok((ticket, Proposal { kind, body, caller }))
    }

    fn caller(&mut self) -> Result<Caller, BatchError> {
        let auth_revision = self.u64("auth revision")?;
        let user = self.bytes("user name")?;
        let user = std::str::from_utf8(&user);
        let user = user.map_err(|_| BatchError::UserName { proposal: self.proposal })?;
        Ok(Caller { user: user.to_owned(), auth_revision })
    }
}

/// Leases whose time is over, named by the leader of `term`. Apply refuses it in an entry of a later
/// term: that leader's clock has started the leases anew (etcd#15247, T18).
///
/// ```text
/// +----------+-----------+------------------+   little endian
/// | term u64 | count u32 | count ids of i64 |
/// +----------+-----------+------------------+
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseExpire {
    /// The term in which the proposer was the leader.
    pub term: Term,
    /// The leases to revoke, each in a revision of its own.
    pub ids: Vec<LeaseId>,
}

impl LeaseExpire {
    /// The proposal that asks for it.
    pub fn proposal(&self) -> Proposal {
        let mut body = Vec::with_capacity(12 + 8 * self.ids.len());
        body.extend_from_slice(&self.term.0.to_le_bytes());
        put_length(&mut body, self.ids.len());
        for id in &self.ids {
            body.extend_from_slice(&id.0.to_le_bytes());
        }
        Proposal { kind: CommandKind::LeaseExpire, body: body.into(), caller: Caller::default() }
    }

    fn decode(mut body: Bytes) -> Option<Self> {
        let term = Term(body.try_get_u64_le().ok()?);
        let count = body.try_get_u32_le().ok()? as usize;
        if body.len() != count.checked_mul(8)? {
            return None;
        }
        let ids = (0..count).map(|_| LeaseId(body.get_i64_le())).collect();
        Some(Self { term, ids })
    }
}

/// A proposal's body does not decode. The edge has decoded it before, so the log or a peer is
/// damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("body of command {kind:?} cannot be decoded: {detail}")]
pub struct MalformedBody {
    pub kind: CommandKind,
    pub detail: String,
}

/// A decoded command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compaction(pb::CompactionRequest),
    LeaseGrant(pb::LeaseGrantRequest),
    LeaseRevoke(pb::LeaseRevokeRequest),
    LeaseExpire(LeaseExpire),
    LeaseCheckpoint(pb::LeaseCheckpointRequest),
    Alarm(pb::AlarmRequest),
    MemberAttributes(membershippb::ClusterMemberAttrSetRequest),
    ClusterVersionSet(membershippb::ClusterVersionSetRequest),
    DowngradeInfoSet(membershippb::DowngradeInfoSetRequest),
    Auth(AuthCommand),
}

impl Command {
    pub(crate) fn decode(kind: CommandKind, body: Bytes) -> Result<Self, MalformedBody> {
        fn message<M: Message + Default>(
            kind: CommandKind,
            body: Bytes,
        ) -> Result<M, MalformedBody> {
            M::decode(body).map_err(|error| MalformedBody { kind, detail: error.to_string() })
        }
        if let Some(command) = AuthCommand::decode(kind, body.clone()) {
            return command.map(Command::Auth);
        }
        Ok(match kind {
            CommandKind::Put => Command::Put(message(kind, body)?),
            CommandKind::DeleteRange => Command::DeleteRange(message(kind, body)?),
            CommandKind::Txn => Command::Txn(message(kind, body)?),
            CommandKind::Compaction => Command::Compaction(message(kind, body)?),
            CommandKind::LeaseGrant => Command::LeaseGrant(message(kind, body)?),
            CommandKind::LeaseRevoke => Command::LeaseRevoke(message(kind, body)?),
            CommandKind::LeaseExpire => {
                let detail = "not a term and whole lease ids".to_owned();
                let expire = LeaseExpire::decode(body);
                Command::LeaseExpire(expire.ok_or(MalformedBody { kind, detail })?)
            }
            CommandKind::LeaseCheckpoint => Command::LeaseCheckpoint(message(kind, body)?),
            CommandKind::Alarm => Command::Alarm(message(kind, body)?),
            CommandKind::MemberAttributes => Command::MemberAttributes(message(kind, body)?),
            CommandKind::ClusterVersionSet => Command::ClusterVersionSet(message(kind, body)?),
            CommandKind::DowngradeInfoSet => Command::DowngradeInfoSet(message(kind, body)?),
            other => {
                let detail = format!("{other:?} belongs to no room");
                return Err(MalformedBody { kind, detail });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket(seq: u64) -> Ticket {
        Ticket { origin: MemberId(0xa), seq }
    }

    fn put(seq: u64, user: &str) -> (Ticket, Proposal) {
        let request = pb::PutRequest { key: "k".into(), ..Default::default() };
        let caller = Caller { user: user.to_owned(), auth_revision: u64::from(!user.is_empty()) };
        (ticket(seq), Proposal { caller, ..Proposal::new(CommandKind::Put, &request) })
    }

    #[test]
    fn the_encoding_is_as_drawn() {
        let mut expected = vec![1];
        expected.extend(2u32.to_le_bytes());
        for (seq, user) in [(7u64, ""), (8, "bob")] {
            expected.extend([1, u8::from(!user.is_empty())]);
            expected.extend(0xau64.to_le_bytes());
            expected.extend(seq.to_le_bytes());
            if !user.is_empty() {
                expected.extend(1u64.to_le_bytes());
                expected.extend((user.len() as u32).to_le_bytes());
                expected.extend(user.as_bytes());
            }
            expected.extend(3u32.to_le_bytes());
            expected.extend(b"\x0a\x01k");
        }
        let batch = [put(7, ""), put(8, "bob")];
        let bytes = Batch::encode(&batch);
        assert_eq!(bytes, expected);
        assert_eq!(Batch::decode(&bytes).unwrap(), batch);
    }

    #[test]
    fn what_this_program_does_not_know_is_named_and_not_skipped() {
        let decode = |bytes: &[u8]| Batch::decode(&Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!(decode(&[2, 0, 0, 0, 0]), BatchError::Format { found: 2 });
        assert_eq!(decode(&[1, 1, 0, 0, 0, 99]), BatchError::Kind { kind: 99 });
        assert_eq!(decode(&[1, 1, 0, 0, 0, 1, 2]), BatchError::Flags { flags: 2 });
        assert_eq!(decode(&[1, 0, 0, 0, 0, 9]), BatchError::Trailing { bytes: 1 });
        assert_eq!(decode(&[]), BatchError::Short { proposal: 0, field: "format" });
        let text = BatchError::Kind { kind: 99 }.to_string();
        assert!(text.contains("command 99") && text.contains("format 1"), "{text}");
    }

    #[test]
    fn every_cut_is_an_error() {
        let bytes = Batch::encode(&[put(7, ""), put(8, "bob")]);
        for length in 0..bytes.len() {
            let cut = Batch::decode(&bytes.slice(..length));
            assert!(matches!(cut, Err(BatchError::Short { .. })), "cut at {length}: {cut:?}");
        }
    }

    #[test]
    fn an_expiry_survives_its_codec_and_a_torn_one_does_not() {
        let expire = LeaseExpire { term: Term(5), ids: vec![LeaseId(-1), LeaseId(9)] };
        let body = expire.proposal().body;
        let decode = |body| Command::decode(CommandKind::LeaseExpire, body);
        assert_eq!(decode(body.clone()), Ok(Command::LeaseExpire(expire)));
        assert!(decode(body.slice(..body.len() - 1)).is_err());
        assert!(decode(Bytes::from_static(&[0; 11])).is_err());
    }

    #[test]
    fn kinds_keep_their_numbers() {
        let numbers = CommandKind::ALL.map(|kind| kind as u8);
        let expected: Vec<u8> = (1..=9).chain(16..=18).chain(32..=48).collect();
        assert_eq!(numbers, *expected);
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding_and_damage_never_panics(
            requests in prop::collection::vec(
                (0..12usize, any::<u64>(), ".{0,5}", prop::collection::vec(any::<u8>(), 0..20)),
                0..10,
            ),
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
        ) {
            let batch: Vec<_> = requests.into_iter().map(|(kind, seq, user, body)| {
                let caller = Caller { auth_revision: seq, user };
                let kind = CommandKind::ALL[kind];
                (ticket(seq), Proposal { kind, body: body.into(), caller })
            }).collect();
            let bytes = Batch::encode(&batch);
            prop_assert_eq!(Batch::decode(&bytes).unwrap(), batch);
            let mut damaged = bytes.to_vec();
            damaged[at.index(bytes.len())] = with;
            if let Ok(other) = Batch::decode(&damaged.into()) {
                for (_, proposal) in other {
                    let _ = Command::decode(proposal.kind, proposal.body);
                }
            }
        }
    }
}
