//! What a stream sends, and its bytes.

use bytes::BufMut;
use types::{ClusterId, MemberId, Revision, Term};

use crate::encoded::{EncodedEvents, put_varint, varint_len};

/// The id in messages that speak for no watch or for all watches of a stream.
pub(crate) const NO_WATCH: i64 = -1;

/// What a message costs in a queue beside its events.
const OVERHEAD: usize = 96;

/// One `etcdserverpb.WatchResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// The watch exists from now on.
    Created { id: i64, revision: Revision },
    /// A watch was refused: created and canceled at once, under no id.
    Refused { revision: Revision, reason: String },
    /// The watch is over because the client said so.
    Canceled { id: i64, revision: Revision },
    /// The watch is over because what it needs next is compacted. The header's revision is 0.
    Compacted { id: i64, compact_revision: Revision },
    /// Changes. `fragment`: the rest of them follows.
    Events { id: i64, revision: Revision, events: EncodedEvents, fragment: bool },
    /// Every event up to this revision has been sent before. Id -1 speaks for the whole stream.
    Progress { id: i64, revision: Revision },
}

impl WatchMessage {
    /// The watch it is about; -1 for none or all.
    pub fn id(&self) -> i64 {
        match self {
            WatchMessage::Created { id, .. }
            | WatchMessage::Canceled { id, .. }
            | WatchMessage::Compacted { id, .. }
            | WatchMessage::Events { id, .. }
            | WatchMessage::Progress { id, .. } => *id,
            WatchMessage::Refused { .. } => NO_WATCH,
        }
    }

    /// The header's revision.
    pub fn revision(&self) -> Revision {
        match self {
            WatchMessage::Created { revision, .. }
            | WatchMessage::Refused { revision, .. }
            | WatchMessage::Canceled { revision, .. }
            | WatchMessage::Events { revision, .. }
            | WatchMessage::Progress { revision, .. } => *revision,
            WatchMessage::Compacted { .. } => Revision(0),
        }
    }

    /// How many events it carries.
    pub(crate) fn event_count(&self) -> usize {
        match self {
            WatchMessage::Events { events, .. } => events.frames().len(),
            _ => 0,
        }
    }

    /// What it takes of its stream's bound.
    pub(crate) fn weight(&self) -> usize {
        match self {
            WatchMessage::Events { events, .. } => OVERHEAD + events.encoded_len(),
            WatchMessage::Refused { reason, .. } => OVERHEAD + reason.len(),
            _ => OVERHEAD,
        }
    }

    /// At least as many bytes as [`WatchMessage::encode`] writes: what to reserve for it.
    pub fn encoded_len_bound(&self) -> usize {
        self.weight()
    }

    /// Appends the complete `WatchResponse`.
    pub fn encode(&self, cluster: ClusterId, member: MemberId, term: Term, out: &mut impl BufMut) {
        let header = [cluster.0, member.0, self.revision().0 as u64, term.0];
        let length: usize = header.iter().map(|number| number_len(*number)).sum();
        out.put_u8(1 << 3 | 2);
        put_varint(out, length as u64);
        for (field, number) in (1..).zip(header) {
            put_number(out, field, number);
        }
        put_number(out, 2, self.id() as u64);
        let created = matches!(self, WatchMessage::Created { .. } | WatchMessage::Refused { .. });
        put_number(out, 3, u64::from(created));
        let canceled = matches!(
            self,
            WatchMessage::Refused { .. }
                | WatchMessage::Canceled { .. }
                | WatchMessage::Compacted { .. }
        );
        put_number(out, 4, u64::from(canceled));
        match self {
            WatchMessage::Compacted { compact_revision, .. } => {
                put_number(out, 5, compact_revision.0 as u64);
            }
            WatchMessage::Refused { reason, .. } if !reason.is_empty() => {
                out.put_u8(6 << 3 | 2);
                put_varint(out, reason.len() as u64);
                out.put_slice(reason.as_bytes());
            }
            WatchMessage::Events { events, fragment, .. } => {
                put_number(out, 7, u64::from(*fragment));
                for frame in events.frames() {
                    out.put_slice(frame);
                }
            }
            _ => {}
        }
    }
}

fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + varint_len(number) }
}

fn put_number(out: &mut impl BufMut, field: u8, number: u64) {
    if number != 0 {
        out.put_u8(field << 3);
        put_varint(out, number);
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use prost::Message;
    use proto::etcdserverpb::WatchResponse;

    use super::*;

    fn encoded(message: &WatchMessage) -> (WatchResponse, Bytes) {
        let mut out = BytesMut::new();
        message.encode(ClusterId(u64::MAX), MemberId(0), Term(300), &mut out);
        (WatchResponse::decode(out.clone().freeze()).unwrap(), out.freeze())
    }

    #[test]
    fn bytes_are_those_of_the_generated_encoder() {
        let revision = Revision(5);
        let frame = Bytes::from_static(b"\x5a\x05\x12\x03\x0a\x01k");
        let messages = [
            WatchMessage::Created { id: 0, revision },
            WatchMessage::Created { id: 300, revision },
            WatchMessage::Refused { revision, reason: "why".to_owned() },
            WatchMessage::Canceled { id: 7, revision },
            WatchMessage::Compacted { id: 7, compact_revision: Revision(9) },
            WatchMessage::Events {
                id: 7,
                revision,
                events: EncodedEvents::new(vec![frame.clone(), frame]),
                fragment: true,
            },
            WatchMessage::Progress { id: -1, revision },
        ];
        for message in messages {
            let (decoded, bytes) = encoded(&message);
            assert_eq!(decoded.encode_to_vec(), bytes, "{message:?}");
            assert_eq!(decoded.watch_id, message.id());
            assert_eq!(decoded.header.unwrap().revision, message.revision().0);
        }
    }

    #[test]
    fn every_kind_sets_its_own_fields() {
        let (refused, _) =
            encoded(&WatchMessage::Refused { revision: Revision(2), reason: "why".to_owned() });
        assert!(refused.created && refused.canceled && refused.cancel_reason == "why");
        let compacted = WatchMessage::Compacted { id: 0, compact_revision: Revision(9) };
        let (compacted, _) = encoded(&compacted);
        assert!(compacted.canceled && !compacted.created && compacted.compact_revision == 9);
        assert_eq!(compacted.header.unwrap().revision, 0);
    }
}
