//! `lianbo demo`: the whole story on one command, against a WeChat that runs inside this process.
//!
//! The shipped workspace is unpacked ([`house`]); the nightly and the campaign run as child processes of this very program,
//! so that the SIGKILL half way is a real one. What the ledger says is then held against what the simulator counted in
//! its inboxes ([`tally`]); anything that does not add up ends with exit 1. The workspace stays for looking around;
//! [`told`] has the words.

mod house;
mod tally;
mod told;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use serde_json::Value;

use self::house::{Ended, House};
use self::tally::{Failed, Tally};
use super::context::{Context, print_line, stop_on_signals};
use super::exit::{Exit, Failure};
use super::simulate::usual_match;
use crate::domain::{Counts, RunStatus};
use crate::simulator::{Options, SALE_TEMPLATE_ID};

/// How often it is looked whether half of the messages have arrived.
const GLANCE: Duration = Duration::from_millis(10);
/// People who leave, and people who refuse the template, after the nightly has seen them.
const LEAVERS: usize = 1;
const REFUSERS: usize = 1;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder for the workspace (new or empty); left out: a temporary one, which is kept
    #[arg(long = "in", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Followers of the account
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    followers: u64,
    /// Users of the mini program
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    users: u64,
    /// Two worlds of one seed have the same people
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What `--json` prints at the end.
#[derive(Debug, Serialize)]
struct Story {
    ok: bool,
    /// What does not add up, in words; empty when all is well.
    wrong: Vec<String>,
    workspace: PathBuf,
    followers: u64,
    users: u64,
    export_rows: u64,
    /// Users who follow and whose unionid both sides know, by the simulator's own knowledge.
    matchable: u64,
    identities: u64,
    coverage: Value,
    kill: Kill,
    push: Counts,
    failures: Vec<Failed>,
    tally: Tally,
    seconds: f64,
}

/// The moment of the SIGKILL.
#[derive(Debug, Clone, Copy, Serialize)]
struct Kill {
    pid: u32,
    /// By the simulator's inboxes, after the process was gone.
    received: u64,
    /// By the ledger it left behind.
    ledger: Counts,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let stop = stop_on_signals();
    let options = Options {
        seed: args.seed,
        followers: args.followers,
        users: args.users,
        matched_users: usual_match(args.followers, args.users),
        ..Options::default()
    };
    let house = House::build(context, args.folder, options).await?;
    let told = tokio::select! {
        story = tell(context, &house) => story.map(Some),
        () = stop.cancelled() => Ok(None),
    };
    house.simulator.stop().await;
    match told? {
        Some(story) if story.ok => Ok(Exit::Done),
        Some(_) => Ok(Exit::Failed),
        None => Ok(Exit::Waiting),
    }
}

/// Dropping it kills the child that is running.
async fn tell(context: &Context, house: &House) -> Result<Story, Failure> {
    let began = context.clock.monotonic();
    let say = |text: String| {
        if !context.is_json {
            print_line(&text);
        }
    };
    say(told::opening(house));

    say(told::heading(1, "The nightly: who follows, under which unionid, and who of the users can be reached"));
    let nightly = succeeded(house.run("nightly", &[]).await?)?;
    say(told::stages(&nightly));
    let coverage = if context.is_json {
        house.json(&["coverage"]).await?
    } else {
        house.show(&["coverage"]).await?;
        Value::Null
    };

    let matchable = house.simulator.matchable();
    let changed = change_minds(house, &matchable)?;
    say(told::heading(2, "Then somebody unfollows, and somebody refuses the template"));
    say(told::minds(&changed));

    say(told::heading(3, "The campaign, and kill -9 half way"));
    let kill = kill_half_way(context, house, matchable.len()).await?;
    say(told::killed(&kill));

    say(told::heading(4, "The same command again"));
    let campaign = succeeded(house.run("campaign", house::EVERY_CITY).await?)?;
    let push = house.push_counts().await?;
    say(told::funnel(&nightly, &campaign, house, &push));
    let failures = house.failures().await?;
    say(told::failures(&failures));

    say(told::heading(5, "Who received what: the simulator's inboxes beside the ledger"));
    let tally = Tally::of(&house.simulator, &matchable, &push);
    let wrong = tally.wrong(&push, &kill.ledger, LEAVERS + REFUSERS);
    say(told::tally(&tally, &wrong));
    let story = Story {
        ok: wrong.is_empty(),
        wrong,
        workspace: house.root.clone(),
        followers: house.options().followers,
        users: house.options().users,
        export_rows: house.export.rows,
        matchable: tally.matchable,
        identities: nightly.rows_of("identities"),
        coverage,
        kill,
        push,
        failures,
        tally,
        seconds: (context.clock.monotonic() - began).as_secs_f64(),
    };
    if context.is_json {
        context.print(&story, |_| String::new());
    } else {
        print_line(&told::next(house, story.seconds));
    }
    Ok(story)
}

fn succeeded(ended: Ended) -> Result<Ended, Failure> {
    if ended.status == RunStatus::Succeeded {
        return Ok(ended);
    }
    let reason = ended.reason.as_deref().unwrap_or("no reason given");
    Err(Failure::Other(anyhow!("run {} of `{}` {}: {reason}", ended.run_id, ended.pipeline, ended.status.as_str())))
}

/// Who changed their mind after the nightly: openids.
struct Changed {
    leavers: Vec<String>,
    refusers: Vec<String>,
}

fn change_minds(house: &House, matchable: &[String]) -> Result<Changed, Failure> {
    let mut some = matchable.iter().step_by((matchable.len() / (LEAVERS + REFUSERS + 1)).max(1)).skip(1).cloned();
    let leavers: Vec<String> = some.by_ref().take(LEAVERS).collect();
    let refusers: Vec<String> = some.take(REFUSERS).collect();
    let is_done = leavers.len() == LEAVERS
        && refusers.len() == REFUSERS
        && leavers.iter().all(|openid| house.simulator.unfollow(openid))
        && refusers.iter().all(|openid| house.simulator.refuse_template(openid, SALE_TEMPLATE_ID));
    if is_done {
        Ok(Changed { leavers, refusers })
    } else {
        Err(Failure::Other(anyhow!("the world has too few people")))
    }
}

/// Starts the campaign and kills its process with SIGKILL when half of the messages have arrived.
async fn kill_half_way(context: &Context, house: &House, matchable: usize) -> Result<Kill, Failure> {
    let half = u64::try_from(matchable / 2).unwrap_or(u64::MAX).max(1);
    let mut child = house.begin("campaign", house::EVERY_CITY)?;
    let pid = child.id().ok_or_else(|| anyhow!("the campaign ended at once"))?;
    loop {
        if house.simulator.inbox().messages >= half {
            break;
        }
        if let Some(status) = child.try_wait().context("looking after the campaign")? {
            return Err(Failure::Other(anyhow!("the campaign ended before half of its messages were sent ({status})")));
        }
        context.clock.sleep(GLANCE).await;
    }
    // `kill` is SIGKILL and waits until the process is gone.
    child.kill().await.context("killing the campaign")?;
    if std::io::stderr().is_terminal() {
        // Its bar stands there without the end of its line.
        eprintln!();
    }
    Ok(Kill { pid, received: house.simulator.inbox().messages, ledger: house.push_counts().await? })
}
