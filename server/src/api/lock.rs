//! `v3lockpb.Lock`: a lock as a recipe over keys (room `concurrency`), and what becomes of a caller's
//! place in the queue when the caller goes away.

use proto::v3lockpb::lock_server::{Lock, LockServer};
use proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::context::{ApiContext, admitted};
use super::local::{LocalCalls, OnAbandon};

/// The service of one RPC thread.
pub(crate) struct LockService {
    context: ApiContext,
    routes: Routes,
}

/// `routes` are the services that the recipe is made of.
pub(crate) fn service(context: ApiContext, routes: Routes) -> LockServer<LockService> {
    let max = context.limits.message_bytes_max();
    LockServer::new(LockService { context, routes }).max_decoding_message_size(max)
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let lease = calls.session(request.lease).await?;
        let entered = concurrency::enter(&calls, &request.name, lease).await?;
        let (mut header, place) = (entered.header, entered.place);
        if !entered.first {
            let (cleaner, key) = (calls.clone(), place.key.to_vec());
            let leave = OnAbandon::new(async move {
                // If it fails, the key goes with its lease.
                let _ = cleaner.delete(key).await;
            });
            let waited = async {
                place.wait(&calls).await?;
                place.confirm(&calls).await
            };
            match waited.await {
                Ok(None) => {
                    leave.disarm();
                    return Err(Status::unknown("mutex: session is expired"));
                }
                Ok(Some(confirmed)) => {
                    leave.disarm();
                    header = confirmed;
                }
                Err(status) => {
                    leave.run().await;
                    return Err(status);
                }
            }
        }
        Ok(Response::new(LockResponse { header, key: place.key }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let deleted = calls.delete(request.key.to_vec()).await?;
        Ok(Response::new(UnlockResponse { header: deleted.header }))
    }
}
