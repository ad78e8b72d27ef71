//! The answer's message as it was on the wire.

use cobra::{Exit, Outcome, exit};
use prost::Message;
use proto::etcdserverpb::ResponseHeader;

use super::Answer;

/// The encoded message; nothing if this format does not have the answer.
pub(super) fn render(answer: Answer<'_>) -> Outcome<Option<Vec<u8>>> {
    // clientv3's structures of leases pass for their embedded header, which is all Go prints.
    let header = |header: &Option<ResponseHeader>| header.unwrap_or_default().encode_to_vec();
    Ok(Some(match answer {
        Answer::Get(response) => response.encode_to_vec(),
        Answer::Put(response) => response.encode_to_vec(),
        Answer::Delete(response) => response.encode_to_vec(),
        Answer::Txn(response) => response.encode_to_vec(),
        Answer::Watch(response) => {
            // clientv3 does not keep the id of the watcher on the stream.
            let mut response = response.clone();
            response.watch_id = 0;
            response.cancel_reason.clear();
            response.encode_to_vec()
        }
        Answer::LeaseGrant(response) => header(&response.header),
        Answer::LeaseKeepAlive(response) => header(&response.header),
        Answer::LeaseTimeToLive(response, _) => header(&response.header),
        Answer::Leases(response) => header(&response.header),
        Answer::LeaseRevoke(..) => {
            let message = "marshal unsupported for type *clientv3.LeaseRevokeResponse";
            return Err(Exit::with(exit::BAD_FEATURE, message));
        }
        Answer::MemberAdd(response) => response.encode_to_vec(),
        Answer::MemberRemove(_, response) => response.encode_to_vec(),
        Answer::MemberUpdate(_, response) => response.encode_to_vec(),
        Answer::MemberPromote(_, response) => response.encode_to_vec(),
        Answer::MemberList(response) => response.encode_to_vec(),
        Answer::Alarm(response) => response.encode_to_vec(),
        Answer::MoveLeader(_, _, response) => response.encode_to_vec(),
        Answer::Health(_) | Answer::Status(_) | Answer::HashKv(_) | Answer::Auth(_) => {
            return Ok(None);
        }
    }))
}
