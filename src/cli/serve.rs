//! `lianbo serve`: the scheduler, health and metrics, until Ctrl-C or SIGTERM.

use std::net::SocketAddr;

use serde::Serialize;

use super::context::{Context, stop_on_signals};
use super::exit::{Exit, Failure};
use crate::config::settings::ServerSettings;
use crate::serve::{Options, ServeError, Server};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Listen here instead of at [server] listen; port 0 finds a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Listen at this port of the same address; 0 finds a free one
    #[arg(long, conflicts_with = "listen")]
    port: Option<u16>,
    /// Wait while another process serves this workspace, and take over when it ends
    #[arg(long)]
    standby: bool,
}

#[derive(Serialize)]
struct Begun {
    url: String,
    stands_by: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.checked_settings().await?;
    let options = Options { listen: address(&settings.server, &args)?, is_standby: args.standby };
    let app = context.app(settings).await?;
    let ledger = app.hands().ledger.clone();
    let stop = stop_on_signals();
    let server = Server::start(app, &options).await.map_err(failure)?;
    let begun = Begun { url: format!("http://{}", server.address()), stands_by: server.stands_by() };
    context.print(&begun, |begun| {
        let standby = if begun.stands_by { "\nstanding by: another process serves this workspace" } else { "" };
        format!("listening on {}{standby}", begun.url)
    });
    let served = server.run(stop).await;
    ledger.close().await;
    served.map_err(failure)?;
    Ok(Exit::Done)
}

/// Where to listen; others than this machine are let in only where there is a token to ask for.
fn address(settings: &ServerSettings, args: &Args) -> Result<SocketAddr, Failure> {
    let mut listen = args.listen.unwrap_or(settings.listen);
    if let Some(port) = args.port {
        listen.set_port(port);
    }
    if !listen.ip().is_loopback() && settings.token.is_none() {
        return Err(Failure::Usage(format!(
            "{listen} can be reached from other machines: set `token` under [server], or listen on 127.0.0.1"
        )));
    }
    Ok(listen)
}

fn failure(error: ServeError) -> Failure {
    match error {
        ServeError::HeldBy { .. } => {
            Failure::Usage(format!("{error}; stop that one first, or start this one with --standby"))
        }
        ServeError::Listen { .. } => Failure::Other(anyhow::Error::from(error).context("nothing is served")),
        other => Failure::Other(other.into()),
    }
}
