//! The gRPC API: one file per service.
//!
//! Each handler does the same four things: check the request's shape and limits, make sure that this
//! member may serve it, propose it or read, and encode the answer. What a request means is decided
//! by `machine` when the log applies it; what an error is called is decided in [`status`].

mod access;
mod answers;
mod auth;
mod cluster;
mod context;
mod downgrade;
mod election;
mod encoded;
mod kv;
mod leader;
mod lease;
mod local;
mod lock;
mod maintenance;
mod status;
mod steps;
mod watch;

pub(crate) use context::{ApiContext, Limits};
pub(crate) use status::ApiError;

use tonic::service::Routes;

use crate::listen::DirectService;

/// The service that is asked most, for the way around the router.
pub(crate) fn direct(context: &ApiContext) -> DirectService {
    DirectService::new(kv::KvService::new(context.clone()))
}

/// All services of the client listener.
pub(crate) fn routes(context: &ApiContext) -> Routes {
    let services = Routes::new(kv::KvService::new(context.clone()))
        .add_service(watch::WatchService::new(context.clone()))
        .add_service(lease::service(context.clone()))
        .add_service(cluster::service(context.clone()))
        .add_service(maintenance::service(context.clone()))
        .add_service(auth::service(context.clone()))
        .add_service(maintenance::health(context.clone()));
    let recipes_use = services.clone();
    services
        .add_service(lock::service(context.clone(), recipes_use.clone()))
        .add_service(election::service(context.clone(), recipes_use))
}
