//! Which path is answered by whom, and who may ask.
//!
//! `/healthz` and `/readyz` are open to everybody, `/callback/…` to whoever signs as WeChat does; `/metrics` wants the bearer
//! token of `[server]` as soon as the address is not a loopback one. Every other path is 404.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::mailroom::Mailroom;
use super::{Current, callback, health, metrics};
use crate::app::App;
use crate::clock::Timestamp;
use crate::wechat::LARGEST_BODY_BYTES;

/// Complaints about callers that anybody can be are this far apart.
const COMPLAINTS: chrono::TimeDelta = chrono::TimeDelta::minutes(1);

/// The house, as those who answer see it. Cheap to clone.
#[derive(Clone)]
pub struct House {
    current: Current,
    /// Of the lease to serve, where it is ours.
    pub holder_id: String,
    /// Others than this machine can ask.
    is_open: bool,
}

impl House {
    pub fn new(app: App, holder_id: String, address: SocketAddr) -> Self {
        let is_open = !address.ip().is_loopback();
        Self { current: Current::new(app.into()), holder_id, is_open }
    }

    /// The house under the settings that hold now.
    pub fn app(&self) -> App {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What begins from now on is under `app`'s settings; what goes on keeps its own.
    pub fn move_to(&self, app: App) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = app;
    }
}

/// What every answer may need.
#[derive(Clone)]
pub struct Door {
    pub house: House,
    pub stop: CancellationToken,
    pub mailroom: Mailroom,
    complained_at: Arc<Mutex<Option<Timestamp>>>,
}

impl Door {
    pub fn new(house: House, stop: CancellationToken, mailroom: Mailroom) -> Self {
        Self { house, stop, mailroom, complained_at: Arc::default() }
    }

    /// Whether nothing was complained about for a while; if so, it is now.
    pub fn may_complain(&self, now: Timestamp) -> bool {
        let mut last = self.complained_at.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|at| now - at >= COMPLAINTS);
        if may {
            *last = Some(now);
        }
        may
    }
}

/// Every path.
pub fn router(door: Door) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics::metrics))
        .route_layer(middleware::from_fn_with_state(door.clone(), let_in));
    let callbacks = Router::new()
        .route("/callback/{account}", get(callback::check).post(callback::take))
        .route_layer(DefaultBodyLimit::max(LARGEST_BODY_BYTES));
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .merge(guarded)
        .merge(callbacks)
        .with_state(door)
}

/// Answers until `hang_up`.
pub async fn answer(listener: TcpListener, door: Door, hang_up: CancellationToken) {
    let served = axum::serve(listener, router(door)).with_graceful_shutdown(hang_up.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(error = %error, "HTTP stopped");
    }
}

/// Lets in who shows the token, or everybody where only this machine can ask.
async fn let_in(State(door): State<Door>, request: Request, next: Next) -> Response {
    let app = door.house.app();
    let token = app.hands().settings.server.token.as_ref();
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer "));
    let is_let_in = match (door.house.is_open, token) {
        (false, _) => true,
        (true, Some(token)) => shown.is_some_and(|shown| is_same(shown, token.expose_secret())),
        (true, None) => false,
    };
    if is_let_in {
        return next.run(request).await;
    }
    let wants = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, wants, "the token of [server] is wanted\n").into_response()
}

/// Compares hashes: how long that takes tells nothing of the token.
fn is_same(shown: &str, token: &str) -> bool {
    Sha256::digest(shown) == Sha256::digest(token)
}
