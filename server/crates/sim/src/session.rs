//! How every client asks: one thing at a time, as one user, and never again for what may have happened.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machine::{AuthBody, AuthRefusal, Refusal};
use tokio::time::timeout;
use types::LeaseId;

use crate::auth::{AuthRequest, PASSWORDS};
use crate::chance::Chance;
use crate::cluster::{Cluster, Service};
use crate::edge::{Asked, serve};
use crate::history::{Failure, Request, Response};

/// One client's way to the members.
pub struct Session {
    pub number: u64,
    pub cluster: Arc<Cluster>,
    /// The user it is; nobody where auth is not used.
    pub user: Option<String>,
    state: Mutex<State>,
}

struct State {
    chance: Chance,
    token: Option<String>,
    /// The password that it will show; the other one if that was wrong.
    password: usize,
    /// It was told that it must show one.
    log_in: bool,
}

impl Session {
    /// A session that nobody knows yet.
    pub fn new(number: u64, cluster: Arc<Cluster>, user: Option<String>) -> Arc<Self> {
        let chance = Chance::new(cluster.plan.seed.wrapping_add(number << 32), "session");
        let state = State { chance, token: None, password: 0, log_in: false };
        Arc::new(Self { number, cluster, user, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one member, after a login if that is due.
    ///
    /// # Errors
    /// Why there is no response.
    pub async fn ask(&self, service: &Service, request: Request) -> Result<Response, Failure> {
        if let Some(login) = self.login() {
            // Without a token the request itself says what is wrong.
            let _ = self.call(service, login).await;
        }
        self.call(service, request).await
    }

    /// The login that is due.
    fn login(&self) -> Option<Request> {
        let user = self.user.clone()?;
        let mut state = self.state();
        if !std::mem::take(&mut state.log_in) {
            return None;
        }
        let (password, _) = PASSWORDS[state.password];
        Some(Request::Other(AuthRequest::LogIn { user, password }))
    }

    async fn call(&self, service: &Service, request: Request) -> Result<Response, Failure> {
        let (history, plan) = (&self.cluster.history, &self.cluster.plan);
        let (member, life) = (service.life.member, service.life.clone());
        let operation = history.call(self.number, member, life.number, request.clone());
        let (token, pause) = (self.token(), self.pause());
        let asked = Asked { operation, token, pause };
        // Longer than any request may take: whoever does not answer until then is frozen.
        let patience = plan.request_timeout * 2;
        let target = service.clone();
        let work = life.run(async move { serve(&target, request, &asked).await });
        let (result, witness) = match timeout(patience, work).await {
            Ok(Some(served)) => served,
            Ok(None) => (Err(Failure::Unknown("the member died".into())), None),
            Err(_) => (Err(Failure::Unknown("no answer at all".into())), None),
        };
        history.answer(operation, result.clone(), witness);
        self.learn(&result);
        result
    }

    /// Keeps a lease alive through one member: the time that it has now, 0 if it is gone; nothing if
    /// nobody could tell.
    pub async fn keep_alive(&self, service: &Service, id: i64) -> Option<i64> {
        let trace = &self.cluster.trace;
        let (member, number) = (service.life.member, self.number);
        trace.note(format_args!("client {number} keeps lease {id} alive through {}", member.0));
        let target = service.clone();
        let work = service.life.run(async move { target.keep_alive(LeaseId(id)).await.ok() });
        // As for every request.
        let told = timeout(self.cluster.plan.request_timeout * 2, work).await;
        trace.note(format_args!("client {number} is told {told:?} of lease {id}"));
        told.ok().flatten().flatten()
    }

    fn token(&self) -> Option<String> {
        self.state().token.clone()
    }

    /// Sometimes the edge takes its time between two steps, where permissions may change meanwhile.
    fn pause(&self) -> Duration {
        if self.user.is_none() {
            return Duration::ZERO;
        }
        let mut state = self.state();
        match state.chance.hits(200) {
            true => Duration::from_micros(state.chance.between(10, 20_000)),
            false => Duration::ZERO,
        }
    }

    fn learn(&self, result: &Result<Response, Failure>) {
        let mut state = self.state();
        let refusal = match result {
            Ok(Response::Other { told, .. }) => {
                if let AuthBody::Token(token) = &told.body {
                    state.token = Some(token.clone());
                }
                return;
            }
            Err(Failure::InvalidToken) => {
                state.token = None;
                state.log_in = true;
                return;
            }
            Err(Failure::Denied(refusal) | Failure::Refused(Refusal::Auth(refusal))) => refusal,
            _ => return,
        };
        match refusal {
            AuthRefusal::AuthenticationFailed => {
                state.password = 1 - state.password;
                state.log_in = true;
            }
            AuthRefusal::UserEmpty => state.log_in = true,
            // Once in a while it looks whether it was given more.
            AuthRefusal::PermissionDenied => state.log_in = state.chance.hits(30),
            _ => {}
        }
    }

    /// One of the members that run, frozen or not: a client does not know.
    pub fn any_service(&self, chance: &mut Chance) -> Option<Service> {
        let running = self.cluster.running();
        chance.pick(&running).and_then(|id| self.cluster.service(*id))
    }
}
