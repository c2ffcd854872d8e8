//! One try of one call: a permit, the meter's leave, the exchange, the answer read, the meter told.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tokio::sync::Semaphore;

use super::endpoint::Endpoint;
use super::error::WeChatError;
use super::ports::{CallCounts, CallEnd, CallMeter, StoreError};
use super::transport::{Transport, host_of};
use super::wire::{Answer, QuotaFigure, decode};

/// What leaves: a GET without a body, a POST with one.
pub(super) struct Request {
    pub endpoint: Endpoint,
    pub url: Url,
    pub body: Option<Vec<u8>>,
    /// Of the whole exchange; `None`: the account's own timeout.
    pub limit: Option<Duration>,
}

/// The way to WeChat, shared by all clones of a client.
pub(super) struct Line {
    pub transport: Transport,
    meter: Arc<dyn CallMeter>,
    reads: Semaphore,
}

impl Line {
    /// `concurrency`: reads in flight, at least one.
    pub fn new(transport: Transport, meter: Arc<dyn CallMeter>, concurrency: usize) -> Self {
        Self { transport, meter, reads: Semaphore::new(concurrency.clamp(1, Semaphore::MAX_PERMITS)) }
    }

    /// Tells the meter what WeChat says of an endpoint's quota; gives how many calls of today the meter has counted.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the meter.
    pub async fn told(&self, endpoint: Endpoint, figure: Option<QuotaFigure>) -> Result<u64, StoreError> {
        self.meter.told(endpoint, figure).await
    }

    /// Whether the meter refuses further calls by the documented default alone.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the meter.
    pub async fn goes_by_default(&self, endpoint: Endpoint) -> Result<bool, StoreError> {
        self.meter.goes_by_default(endpoint).await
    }

    /// One metered try. Not for sends.
    pub async fn ask<T: Answer>(&self, request: Request, counts: Option<&CallCounts>) -> Result<T, WeChatError> {
        let endpoint = request.endpoint;
        // Fetching a token never queues behind the reads that wait for it.
        let _permit = match endpoint.is_token_call() {
            true => None,
            false => Some(self.reads.acquire().await.expect("the semaphore is never closed")),
        };
        self.meter.before(endpoint).await.map_err(|refused| WeChatError::metered(endpoint, refused))?;
        if let Some(counts) = counts {
            counts.add(endpoint);
        }
        let host = host_of(&request.url);
        let exchange = self.transport.exchange(&request.url, request.body, request.limit);
        let (reply, ()) = tokio::join!(exchange, self.meter.during(endpoint));
        let answer = match reply {
            Ok(reply) => decode(endpoint, &reply),
            Err(source) => Err(WeChatError::Transport { endpoint, host, source }),
        };
        let end = match &answer {
            Ok(_) => CallEnd::Answered,
            Err(error) => error.errcode().map_or(CallEnd::NoAnswer, CallEnd::Refused),
        };
        self.meter.after(endpoint, end);
        answer
    }
}
