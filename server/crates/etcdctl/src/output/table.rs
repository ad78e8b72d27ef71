//! Box tables of members and endpoints; the same rows, joined by commas, are the simple format.

use proto::etcdserverpb::{Member, StatusResponse};

use super::Answer;
use crate::go;

/// The table of an answer; nothing if it has none.
pub(super) fn render(answer: Answer<'_>) -> Option<Vec<u8>> {
    let (titles, rows) = rows(answer)?;
    Some(draw(titles, &rows).into_bytes())
}

type Titles = &'static [&'static str];

/// Column titles and rows of an answer.
pub(super) fn rows(answer: Answer<'_>) -> Option<(Titles, Vec<Vec<String>>)> {
    Some(match answer {
        Answer::MemberList(response) => (
            &["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"],
            response.members.iter().map(member).collect(),
        ),
        Answer::Health(list) => (
            &["endpoint", "health", "took", "error"],
            list.iter()
                .map(|health| {
                    vec![
                        health.endpoint.clone(),
                        health.healthy.to_string(),
                        health.took.map(go::duration).unwrap_or_default(),
                        health.error.clone(),
                    ]
                })
                .collect(),
        ),
        Answer::Status(list) => (
            &[
                "endpoint",
                "ID",
                "version",
                "storage version",
                "db size",
                "in use",
                "percentage not in use",
                "quota",
                "is leader",
                "is learner",
                "raft term",
                "raft index",
                "raft applied index",
                "errors",
                "downgrade target version",
                "downgrade enabled",
            ],
            list.iter().map(|(endpoint, response)| status(endpoint, response)).collect(),
        ),
        Answer::HashKv(list) => (
            &["endpoint", "hash", "hash_revision"],
            list.iter()
                .map(|(endpoint, response)| {
                    let (hash, revision) = (response.hash, response.hash_revision);
                    vec![endpoint.clone(), hash.to_string(), revision.to_string()]
                })
                .collect(),
        ),
        _ => return None,
    })
}

fn member(member: &Member) -> Vec<String> {
    let status = if member.name.is_empty() { "unstarted" } else { "started" };
    vec![
        format!("{:x}", member.id),
        status.to_owned(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}

fn status(endpoint: &str, response: &StatusResponse) -> Vec<String> {
    let member = response.header.as_ref().map_or(0, |header| header.member_id);
    let downgrade = response.downgrade_info.clone().unwrap_or_default();
    let bytes = |size: i64| go::humanize_bytes(size.unsigned_abs());
    // A store of no size at all has nothing that is not in use.
    let in_use = (response.db_size_in_use * 100).checked_div(response.db_size).unwrap_or(100);
    vec![
        endpoint.to_owned(),
        format!("{member:x}"),
        response.version.clone(),
        response.storage_version.clone(),
        bytes(response.db_size),
        bytes(response.db_size_in_use),
        format!("{}%", 100 - in_use),
        bytes(response.db_size_quota),
        (response.leader == member).to_string(),
        response.is_learner.to_string(),
        response.raft_term.to_string(),
        response.raft_index.to_string(),
        response.raft_applied_index.to_string(),
        response.errors.join(", "),
        downgrade.target_version,
        downgrade.enabled.to_string(),
    ]
}

/// Titles in capitals and centred, cells at the right.
fn draw(titles: Titles, rows: &[Vec<String>]) -> String {
    let titles: Vec<String> =
        titles.iter().map(|title| title.replace('_', " ").to_uppercase()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let lines: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", lines.join(middle))
    };
    let cells = |cells: Vec<String>| format!("│{}│\n", cells.join("│"));
    let mut table = rule("┌", "┬", "┐");
    let head = titles.iter().zip(&widths).map(|(title, &width)| format!(" {title:^width$} "));
    table.push_str(&cells(head.collect()));
    table.push_str(&rule("├", "┼", "┤"));
    for row in rows {
        let row = row.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:>width$} "));
        table.push_str(&cells(row.collect()));
    }
    table.push_str(&rule("└", "┴", "┘"));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_centred_titles_and_cells_at_the_right() {
        let rows = [vec!["127.0.0.1:2379".to_owned(), "3628877040".to_owned(), "2".to_owned()]];
        let table = "\
┌────────────────┬────────────┬───────────────┐
│    ENDPOINT    │    HASH    │ HASH REVISION │
├────────────────┼────────────┼───────────────┤
│ 127.0.0.1:2379 │ 3628877040 │             2 │
└────────────────┴────────────┴───────────────┘
";
        assert_eq!(draw(&["endpoint", "hash", "hash_revision"], &rows), table);
    }
}
