//! `member`: the membership of the cluster.

use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest,
};

use crate::command::{Command, Group, Invocation};
use crate::get::is_serializable;
use crate::global::Session;
use crate::go;
use crate::output::{self, Answer, Format};
use crate::words;

const PEER_URLS: Flag =
    Flag::new("peer-urls", Kind::Text, "", "URLs at which the member listens to its peers");

pub(crate) fn command() -> Command {
    Command {
        name: "member",
        usage: "<subcommand>",
        short: "Lists and changes the members of the cluster",
        group: Group::MAINTENANCE,
        children: vec![
            Command {
                name: "add",
                usage: "<memberName> [options]",
                short: "Adds a member",
                flags: vec![
                    PEER_URLS,
                    Flag::new("learner", Kind::Bool, "false", "add it without a vote"),
                ],
                run: Some(|invocation| Box::pin(add(invocation))),
                ..Command::default()
            },
            Command {
                name: "remove",
                usage: "<memberID>",
                short: "Removes a member",
                run: Some(|invocation| Box::pin(remove(invocation))),
                ..Command::default()
            },
            Command {
                name: "update",
                usage: "<memberID> [options]",
                short: "Changes the peer URLs of a member",
                flags: vec![PEER_URLS],
                run: Some(|invocation| Box::pin(update(invocation))),
                ..Command::default()
            },
            Command {
                name: "list",
                short: "Lists the members",
                long: "Lists the members. In the simple format the columns are id, status, name, \
                       peer URLs, client\nURLs and whether the member is a learner.",
                flags: vec![Flag::new(
                    "consistency",
                    Kind::Text,
                    "l",
                    "linearizable (l) or serializable (s)",
                )],
                run: Some(|invocation| Box::pin(list(invocation))),
                ..Command::default()
            },
            Command {
                name: "promote",
                usage: "<memberID>",
                short: "Gives a learner a vote",
                run: Some(|invocation| Box::pin(promote(invocation))),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

async fn add(invocation: Invocation) -> Outcome {
    let name = match invocation.arguments() {
        [] => return Err(Exit::bad_arguments("member name not provided")),
        [name] => name.clone(),
        many => {
            let mut message = "too many arguments".to_owned();
            let shown = many.iter().map(|word| words::shown(word));
            for url in shown.filter(|word| word.to_lowercase().starts_with("http")) {
                message.push_str(&format!(", did you mean --peer-urls={url}"));
            }
            return Err(Exit::bad_arguments(message));
        }
    };
    let given = invocation.matches.word("peer-urls");
    let peer_ur_ls = peer_urls(&given)?;
    let session = Session::new(&invocation)?;
    let is_learner = session.matches().is_true("learner");
    let client = session.timed_client().await?;
    check_urls(&peer_ur_ls)?;
    let response = client.member_add(MemberAddRequest { peer_ur_ls, is_learner }).await?;
    session.printer.print(Answer::MemberAdd(&response))?;
    if session.printer.format != Format::Simple {
        return Ok(());
    }
    let new = response.member.as_ref().map_or(0, |member| member.id);
    output::write(environment(&name, new, &given, &response.members).as_bytes())
}

/// The variables to start the new member with.
fn environment(name: &[u8], id: u64, peer_urls: &[u8], members: &[Member]) -> String {
    let cluster: Vec<Vec<u8>> = members
        .iter()
        .flat_map(|member| {
            let name = if member.id == id { name } else { member.name.as_bytes() };
            member.peer_ur_ls.iter().map(move |url| [name, b"=", url.as_bytes()].concat())
        })
        .collect();
    format!(
        "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_ADVERTISE_PEER_URLS={}\n\
         ETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
        go::quote(name),
        go::quote(&cluster.join(&b',')),
        go::quote(peer_urls)
    )
}

async fn remove(invocation: Invocation) -> Outcome {
    let id = member_id(&invocation)?;
    let session = Session::new(&invocation)?;
    let response = session.timed_client().await?.member_remove(MemberRemoveRequest { id }).await?;
    session.printer.print(Answer::MemberRemove(id, &response))
}

async fn update(invocation: Invocation) -> Outcome {
    let id = member_id(&invocation)?;
    let peer_ur_ls = peer_urls(&invocation.matches.word("peer-urls"))?;
    let session = Session::new(&invocation)?;
    let client = session.timed_client().await?;
    check_urls(&peer_ur_ls)?;
    let response = client.member_update(MemberUpdateRequest { id, peer_ur_ls }).await?;
    session.printer.print(Answer::MemberUpdate(id, &response))
}

async fn list(invocation: Invocation) -> Outcome {
    // Go etcdctl names the value of `get`'s flag in this error, which is always the default.
    let serializable = is_serializable(&invocation.matches.word("consistency"))
        .map_err(|_| Exit::with(exit::BAD_FEATURE, "unknown consistency flag \"l\""))?;
    let session = Session::new(&invocation)?;
    let request = MemberListRequest { linearizable: !serializable };
    let response = session.timed_client().await?.member_list(request).await?;
    session.printer.print(Answer::MemberList(&response))
}

async fn promote(invocation: Invocation) -> Outcome {
    let id = member_id(&invocation)?;
    let session = Session::new(&invocation)?;
    let response =
        session.timed_client().await?.member_promote(MemberPromoteRequest { id }).await?;
    session.printer.print(Answer::MemberPromote(id, &response))
}

fn member_id(invocation: &Invocation) -> Outcome<u64> {
    let [id] = invocation.arguments() else {
        return Err(Exit::bad_arguments("member ID is not provided"));
    };
    go::parse_unsigned(id, 16).map_err(|reason| {
        Exit::bad_arguments(format!("bad member ID arg ({reason}), expecting ID in Hex"))
    })
}

fn peer_urls(word: &[u8]) -> Outcome<Vec<String>> {
    if word.is_empty() {
        return Err(Exit::bad_arguments("member peer urls not provided"));
    }
    Ok(words::text(word)?.split(',').map(str::to_owned).collect())
}

/// Checks URLs as clientv3 does before it sends them (client/pkg/types/urls.go).
fn check_urls(urls: &[String]) -> Outcome {
    for url in urls {
        let url = url.trim();
        let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
        let problem = match scheme {
            "http" | "https" => {
                let rest = rest.strip_prefix("//").unwrap_or_default();
                let (host, path) = match rest.find('/') {
                    Some(index) => rest.split_at(index),
                    None => (rest, ""),
                };
                let bare_ipv6 = !host.starts_with('[') && host.matches(':').count() > 1;
                if !host.contains(':') || host.ends_with(']') || bare_ipv6 {
                    "URL address does not have the form \"host:port\""
                } else if !path.is_empty() {
                    "URL must not contain a path"
                } else {
                    continue;
                }
            }
            "unix" | "unixs" => continue,
            _ => "URL scheme must be http, https, unix, or unixs",
        };
        return Err(Exit::with(exit::ERROR, format!("{problem}: {url}")));
    }
    Ok(())
}
