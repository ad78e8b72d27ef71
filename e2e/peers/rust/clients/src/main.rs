//! What users write with `etcd-client`: `clients cases ENDPOINTS` goes through it against a running cluster,
//! `clients worker ENDPOINTS KEY ADDRESS` is a service that registers itself.
//!
//! It knows nothing of the server: what it expects holds for Go etcd, against which the same program is run.
//! Each case prints one line, `ok NAME` or `FAILED NAME: why`, and has its own keys, which begin with its name.

mod auth;
mod concurrency;
mod discovery;
mod keys;
mod streams;

use std::fmt::{Debug, Display};
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};

/// Of one case.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why a case failed.
struct Failure(String);

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, Failure>;
type Body = for<'r> fn(&'r mut Run) -> Pin<Box<dyn Future<Output = Outcome> + 'r>>;

/// What a case works with.
struct Run {
    endpoints: Vec<String>,
    client: Client,
    /// All keys of the case begin so.
    prefix: String,
}

impl Run {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

async fn connect(endpoints: &[String], user: Option<(&str, &str)>) -> Result<Client, Error> {
    let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(10));
    let options = match user {
        Some((name, password)) => options.with_user(name, password),
        None => options,
    };
    Client::connect(endpoints, Some(options)).await
}

fn equal<T: Debug + PartialEq<U>, U: Debug>(what: &str, is: T, wanted: U) -> Outcome {
    match is == wanted {
        true => Ok(()),
        false => Err(Failure(format!("{what}: {is:?} instead of {wanted:?}"))),
    }
}

fn check(holds: bool, what: impl Display) -> Outcome {
    match holds {
        true => Ok(()),
        false => Err(Failure(what.to_string())),
    }
}

fn some<T>(what: &str, value: Option<T>) -> Outcome<T> {
    value.ok_or_else(|| Failure(format!("{what} is missing")))
}

/// A call that has to be refused, and with these words.
fn refused<T>(what: &str, result: Result<T, Error>, words: &str) -> Outcome {
    match result {
        Ok(_) => Err(Failure(format!("{what} was not refused"))),
        Err(error) => {
            check(error.to_string().contains(words), format!("{what} was refused with {error}"))
        }
    }
}

const CASES: [(&str, Body); 12] = [
    ("rust/put-get-delete", |run| Box::pin(keys::put_get_delete(run))),
    ("rust/ranges", |run| Box::pin(keys::ranges(run))),
    ("rust/revisions", |run| Box::pin(keys::revisions(run))),
    ("rust/transactions", |run| Box::pin(keys::transactions(run))),
    ("rust/refusals", |run| Box::pin(keys::refusals(run))),
    ("rust/watch", |run| Box::pin(streams::watch(run))),
    ("rust/watch-history", |run| Box::pin(streams::watch_history(run))),
    ("rust/leases", |run| Box::pin(streams::leases(run))),
    ("rust/locks", |run| Box::pin(concurrency::locks(run))),
    ("rust/elections", |run| Box::pin(concurrency::elections(run))),
    ("rust/service-discovery", |run| Box::pin(discovery::workers_come_and_go(run))),
    // Shuts out everyone else for a while.
    ("rust/auth", |run| Box::pin(auth::users_and_roles(run))),
];

async fn run_cases(endpoints: &[String]) -> bool {
    let mut all_well = true;
    for (name, body) in CASES {
        let case = async {
            let client = connect(endpoints, None).await?;
            let prefix = format!("{name}/");
            body(&mut Run { endpoints: endpoints.to_vec(), client, prefix }).await
        };
        let result = match tokio::time::timeout(LIMIT, case).await {
            Ok(result) => result,
            Err(_) => Err(Failure(format!("it was not done in {LIMIT:?}"))),
        };
        match result {
            Ok(()) => println!("ok {name}"),
            Err(Failure(why)) => {
                println!("FAILED {name}: {}", why.replace('\n', " "));
                all_well = false;
            }
        }
    }
    all_well
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let split = |endpoints: &str| endpoints.split(',').map(str::to_owned).collect::<Vec<_>>();
    match arguments[..] {
        ["cases", endpoints] => match run_cases(&split(endpoints)).await {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
        ["worker", endpoints, key, address] => {
            match discovery::work(&split(endpoints), key, address).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(Failure(why)) => {
                    eprintln!("clients: {why}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => {
            eprintln!("clients: say `cases ENDPOINTS` or `worker ENDPOINTS KEY ADDRESS`");
            ExitCode::from(2)
        }
    }
}
