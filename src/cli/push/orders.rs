//! What a person orders about a push: approve, pause, resume, cancel, another rate. Each is written to the ledger with a
//! line in the audit, and says what happens next.

use serde::Serialize;

use super::Which;
use crate::app::App;
use crate::cli::context::{Context, who};
use crate::cli::exit::{Exit, Failure};
use crate::cli::run_name::{find_push, find_pushes, find_run, is_carried_out};
use crate::cli::words;
use crate::config::read_rate;
use crate::ledger::{Order, Push, Run};
use crate::scheduler::conductor::CancelOutcome;
use crate::scheduler::next_step::go_on;
use crate::scheduler::push_view::plan;
use crate::stage::push_template::approval_hash;

#[derive(Debug, clap::Args)]
pub struct Approve {
    #[command(flatten)]
    which: Which,
    /// The hash of the messages that were looked at, as `push show` and `push preview` say it
    #[arg(long, value_name = "HASH")]
    hash: String,
}

#[derive(Debug, clap::Args)]
pub struct Rate {
    #[command(flatten)]
    which: Which,
    /// Sends a second, minute or hour: 50/s, 3000/m; `default`: as the pipeline says
    rate: String,
}

/// What an order came to.
#[derive(Debug, Serialize)]
struct Done {
    run_id: String,
    stage: Option<String>,
    /// Whether the order changed anything.
    changed: bool,
    what: String,
    /// What goes on with the run now.
    next: Option<String>,
}

impl Done {
    fn new(run: &Run, stage: Option<&Push>, changed: bool, what: String) -> Self {
        Self {
            run_id: run.run_id.to_string(),
            stage: stage.map(|push| push.stage.to_string()),
            changed,
            what,
            next: None,
        }
    }

    /// Says which command goes on, unless a process is at work already.
    async fn and_next(mut self, app: &App, run: &Run) -> Result<Self, Failure> {
        if !run.status.is_finished() && !is_carried_out(&app.hands().ledger, run).await? {
            self.next = Some(go_on(&run.pipeline));
        }
        Ok(self)
    }

    async fn print(self, context: &Context, app: &App) -> Exit {
        context.print(&self, |done| match &done.next {
            Some(next) => format!("{}; `{next}`, or serve, goes on", done.what),
            None => done.what.clone(),
        });
        app.hands().ledger.close().await;
        Exit::Done
    }
}

/// What is ordered of a run that is over would change nothing, and is not taken for done.
fn refuse_finished(run: &Run, order: &str) -> Result<(), Failure> {
    if !run.status.is_finished() {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "run {} of `{}` is {}: there is nothing to {order}; `lianbo push show {0}` shows what became of it",
        run.run_id,
        run.pipeline,
        run.status.as_str()
    )))
}

pub async fn approve(context: &Context, args: Approve) -> Result<Exit, Failure> {
    let app = context.existing_app().await?;
    let ledger = &app.hands().ledger;
    let (run, push) = find_push(app.hands(), &args.which.run).await?;
    refuse_finished(&run, "approve")?;
    let current = plan(app.hands(), &push).and_then(|plan| approval_hash(plan, &push));
    if push.ended_at.is_some() || current.as_ref() != Some(&args.hash) {
        return Err(Failure::Usage(not_approved(&push, current.as_deref(), &args.hash)));
    }
    let who = who();
    if !ledger.order_approval(&push, &args.hash, Order { who: &who, at: context.clock.now() }).await? {
        return Err(Failure::Usage(not_approved(&push, None, &args.hash)));
    }
    let what = format!("approved: {} messages of {}/{}", push.recipients, run.run_id, push.stage);
    Ok(Done::new(&run, Some(&push), true, what).and_next(&app, &run).await?.print(context, &app).await)
}

fn not_approved(push: &Push, current: Option<&str>, given: &str) -> String {
    let name = format!("{}/{}", push.run_id, push.stage);
    match current {
        _ if push.ended_at.is_some() => format!("{name} is over; there is nothing left to approve"),
        None => format!("the messages of {name} are not frozen yet; `{}` freezes them", go_on(&push.pipeline)),
        Some(hash) => format!(
            "not approved: set, template, texts, rate and window of {name} have the hash {hash}, not {given}; look at them \
             with `lianbo push preview {name}` and `lianbo push show {name}`, then `lianbo push approve {name} --hash {hash}`"
        ),
    }
}

pub async fn pause(context: &Context, which: Which) -> Result<Exit, Failure> {
    let app = context.existing_app().await?;
    let ledger = &app.hands().ledger;
    let (run, pushes) = find_pushes(app.hands(), &which.run).await?;
    refuse_finished(&run, "pause")?;
    let who = who();
    let order = Order { who: &who, at: context.clock.now() };
    let mut paused = 0_u64;
    for push in &pushes {
        paused += u64::from(ledger.order_pause(push, order).await?);
    }
    let name = &run.run_id;
    let what = match (paused, pushes.iter().all(|push| push.ended_at.is_some())) {
        (0, true) => {
            return Err(Failure::Usage(format!("every push of run {name} is over: there is nothing to pause")));
        }
        (0, false) => format!("run {name} was paused already; `lianbo push resume {name}` lifts it"),
        _ => format!("paused; a running push stops within two seconds; `lianbo push resume {name}` lifts it"),
    };
    Ok(Done::new(&run, None, paused > 0, what).print(context, &app).await)
}

pub async fn resume(context: &Context, which: Which) -> Result<Exit, Failure> {
    let app = context.existing_app().await?;
    let ledger = &app.hands().ledger;
    let run_name = which.run.split('/').next().unwrap_or_default();
    let run = find_run(app.hands(), run_name).await?;
    refuse_finished(&run, "resume")?;
    let who = who();
    let order = Order { who: &who, at: context.clock.now() };
    let halt_lifted = ledger.lift_halt(&run.run_id, &who, order.at).await?;
    // A run can be halted before its first push; then there is no pause to lift.
    let pushes = match find_pushes(app.hands(), &which.run).await {
        Ok((_, pushes)) => pushes,
        Err(_) if halt_lifted => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut pauses_lifted = 0_u64;
    for push in &pushes {
        pauses_lifted += u64::from(ledger.order_resume(push, order).await?);
    }
    let name = &run.run_id;
    let what = match (halt_lifted, pauses_lifted > 0) {
        (true, true) => format!("the halt and the pause of run {name} are lifted"),
        (true, false) => format!("the halt of run {name} is lifted"),
        (false, true) => format!("the pause of run {name} is lifted"),
        (false, false) => format!("run {name} is neither halted nor paused: it is {}", run.status.as_str()),
    };
    let changed = halt_lifted || pauses_lifted > 0;
    Ok(Done::new(&run, None, changed, what).and_next(&app, &run).await?.print(context, &app).await)
}

pub async fn cancel(context: &Context, which: Which) -> Result<Exit, Failure> {
    let app = context.existing_app().await?;
    let (run, pushes) = find_pushes(app.hands(), &which.run).await?;
    if which.run.contains('/') && app.hands().ledger.pushes_of(&run.run_id).await?.len() > pushes.len() {
        let text =
            format!("run {} has several pushes, and they are cancelled together: leave the stage out", run.run_id);
        return Err(Failure::Usage(text));
    }
    let name = &run.run_id;
    match app.conductor.cancel_run(name, &who()).await? {
        CancelOutcome::Cancelled { unsent } => {
            let what = format!("run {name} is cancelled; {unsent} recipients stay unsent");
            Ok(Done::new(&run, None, true, what).print(context, &app).await)
        }
        CancelOutcome::Over(status) => {
            Err(Failure::Usage(format!("run {name} is {} already: there is nothing to cancel", status.as_str())))
        }
        CancelOutcome::StillRunning => Err(Failure::Other(anyhow::anyhow!(
            "run {name} is paused, but another process still works on a stage of it; stop that process, \
             or give `lianbo push cancel {name}` again when it has come to the push"
        ))),
    }
}

pub async fn rate(context: &Context, args: Rate) -> Result<Exit, Failure> {
    let per_second = match args.rate.as_str() {
        "default" => None,
        text => Some(read_rate(text).map_err(Failure::Usage)?),
    };
    let app = context.existing_app().await?;
    let (run, push) = find_push(app.hands(), &args.which.run).await?;
    refuse_finished(&run, "send at another rate")?;
    let who = who();
    let order = Order { who: &who, at: context.clock.now() };
    let name = format!("{}/{}", run.run_id, push.stage);
    if !app.hands().ledger.order_rate(&push, per_second, order).await? {
        return Err(Failure::Usage(format!("{name} is over: there is nothing left to send")));
    }
    let what = match per_second {
        Some(rate) => format!("{name} sends at most {} from now on", words::rate(rate)),
        None => format!("{name} sends at the rate of its pipeline from now on"),
    };
    Ok(Done::new(&run, Some(&push), true, what).print(context, &app).await)
}
