//! `lianbo simulate`: the WeChat simulator on its own, until Ctrl-C or SIGTERM.
//!
//! Needs no workspace. What it is told to be consistent with is the shipped one: its app ids, secret and template are the
//! defaults of `config/lianbo.toml` and `pipelines/campaign.toml`.

use std::fmt::Write;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::context::{Context, stop_on_signals};
use super::exit::{Exit, Failure};
use super::table::grouped;
use crate::simulator::{Callback, CallbackMode, Faults, Options, Simulator, write_users_csv};

mod manual;

/// More people than any account has.
const MOST_PEOPLE: u64 = 200_000_000;

#[derive(Debug, clap::Args)]
#[command(after_long_help = manual::MANUAL)]
pub struct Args {
    /// The port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 8788)]
    port: u16,
    /// Followers of the account
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(..=MOST_PEOPLE))]
    followers: u64,
    /// Users of the mini program
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(..=MOST_PEOPLE))]
    users: u64,
    /// Of the users, those who follow; left out: four fifths of the smaller side
    #[arg(long)]
    matched: Option<u64>,
    /// Two worlds of one seed have the same people
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// App id of the account; people of one seed have other openids in each
    #[arg(long, value_name = "APPID")]
    app_id: Option<String>,
    /// The account was moved from APPID: changeopenid tells the openids of now, for `lianbo migrate ACCOUNT --from APPID`
    #[arg(long, value_name = "APPID", requires = "app_id")]
    moved_from: Option<String>,
    /// Openids on a page of the follower list
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    page_size: u64,
    /// Of the followers, the part whose unionid the account sees, 0 to 1
    #[arg(long, default_value_t = 0.95, value_name = "SHARE")]
    bound_share: f64,
    /// How long each call takes at least, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    latency_ms: u64,
    /// Calls a day of an endpoint in place of WeChat's figure (NAME=CALLS, repeatable)
    #[arg(long = "quota", value_name = "NAME=CALLS")]
    quotas: Vec<String>,
    /// Where events are posted: http://HOST[:PORT]/callback/ACCOUNT
    #[arg(long, value_name = "URL", requires = "callback_token")]
    callback: Option<String>,
    /// The token that signs them
    #[arg(long, value_name = "TOKEN", requires = "callback")]
    callback_token: Option<String>,
    /// Whether they come in the open, sealed, or both at once
    #[arg(long, value_name = "MODE", default_value = "plain", requires = "callback")]
    callback_mode: Mode,
    /// The EncodingAESKey that seals them
    #[arg(long, value_name = "KEY", required_if_eq_any = [("callback_mode", "safe"), ("callback_mode", "compatible")])]
    callback_aes_key: Option<String>,
    /// The platform's habits: JSON with the keys that --help lists
    #[arg(long, value_name = "JSON")]
    faults: Option<String>,
    /// Write the mini program's users of this world to a CSV file
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Write that file and end
    #[arg(long, requires = "export")]
    export_only: bool,
}

/// How events are enveloped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// In the open
    Plain,
    /// In the open, and sealed beside it
    Compatible,
    /// Sealed
    Safe,
}

/// What there is to talk to.
#[derive(Debug, Serialize)]
struct Running {
    /// Absent with `--export-only`.
    base_url: Option<String>,
    control: Option<String>,
    app_id: String,
    app_secret: String,
    moved_from: Option<String>,
    miniprogram_app_id: String,
    template_ids: Vec<String>,
    seed: u64,
    followers: u64,
    users: u64,
    matched_users: u64,
    export: Option<Export>,
}

/// The file that was written.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Export {
    pub file: PathBuf,
    pub rows: u64,
    pub users: u64,
    /// Users with a unionid who follow the account.
    pub matched: u64,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let options = options(&args)?;
    let export = args.export.as_deref().map(|file| write_export(file, &options)).transpose()?;
    if args.export_only {
        context.print(&Running::of(&options, None, export), describe);
        return Ok(Exit::Done);
    }
    let stop = stop_on_signals();
    let simulator = Simulator::start(options.clone())
        .await
        .with_context(|| format!("starting the simulator on 127.0.0.1:{}", args.port))?;
    context.print(&Running::of(&options, Some(&simulator), export), describe);
    stop.cancelled().await;
    simulator.stop().await;
    Ok(Exit::Done)
}

/// Writes the users of the world as their mini program would hand them over; missing folders are made.
///
/// # Errors
///
/// [`Failure::Other`] when the file cannot be written.
pub(super) fn write_export(file: &Path, options: &Options) -> Result<Export, Failure> {
    let writing = || format!("writing {}", file.display());
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(writing)?;
    }
    let out = BufWriter::new(File::create(file).with_context(writing)?);
    let exported = write_users_csv(out, &options.users_options()).with_context(writing)?;
    Ok(Export { file: file.to_owned(), rows: exported.rows, users: exported.users, matched: exported.matched })
}

/// Of two sides of these sizes, how many stand on both when nobody says: four fifths of the smaller.
pub(super) fn usual_match(followers: u64, users: u64) -> u64 {
    followers.min(users) * 4 / 5
}

fn options(args: &Args) -> Result<Options, Failure> {
    let most = args.followers.min(args.users);
    let matched_users = args.matched.unwrap_or_else(|| usual_match(args.followers, args.users));
    if matched_users > most {
        return Err(Failure::Usage(format!("--matched {matched_users} is more than the smaller side has ({most})")));
    }
    if !(0.0..=1.0).contains(&args.bound_share) {
        return Err(Failure::Usage(format!("--bound-share {} is no share; 0 to 1 is", args.bound_share)));
    }
    let mut options = Options {
        seed: args.seed,
        page_size: args.page_size,
        bound_share: args.bound_share,
        port: Some(args.port),
        followers: args.followers,
        users: args.users,
        matched_users,
        latency: Duration::from_millis(args.latency_ms),
        moved_from: args.moved_from.clone(),
        ..Options::default()
    };
    if let Some(app_id) = &args.app_id {
        options.app_id.clone_from(app_id);
    }
    if options.moved_from.as_ref() == Some(&options.app_id) {
        return Err(Failure::Usage(format!(
            "--moved-from {0} is the account itself: give --app-id another one",
            options.app_id
        )));
    }
    if let (Some(url), Some(token)) = (&args.callback, &args.callback_token) {
        let mode = match args.callback_mode {
            Mode::Plain => CallbackMode::Plain,
            Mode::Compatible => CallbackMode::Compatible,
            Mode::Safe => CallbackMode::Safe,
        };
        let key = args.callback_aes_key.clone().unwrap_or_default();
        options.callback = Some(Callback::new(url, token).sealed(mode, key));
    }
    if let Some(text) = &args.faults {
        let refused = |error| Failure::Usage(format!("--faults: {error}; `lianbo simulate --help` lists the habits"));
        let changes = serde_json::from_str(text).map_err(refused)?;
        options.faults = Faults::default().with(changes).map_err(refused)?;
    }
    for text in &args.quotas {
        let (name, calls) =
            text.split_once('=').ok_or_else(|| Failure::Usage(format!("--quota `{text}` is not NAME=CALLS")))?;
        let calls =
            calls.parse().map_err(|_| Failure::Usage(format!("--quota {name}: `{calls}` is not a whole number")))?;
        options.quota.insert(name.to_owned(), calls);
    }
    Ok(options)
}

impl Running {
    fn of(options: &Options, simulator: Option<&Simulator>, export: Option<Export>) -> Self {
        let base_url = simulator.map(Simulator::base_url);
        Self {
            control: base_url.as_ref().map(|base| format!("{base}/_simulator/")),
            base_url,
            app_id: options.app_id.clone(),
            app_secret: options.app_secret.clone(),
            moved_from: options.moved_from.clone(),
            miniprogram_app_id: options.miniprogram_app_id.clone(),
            template_ids: options.templates.iter().map(|template| template.template_id.clone()).collect(),
            seed: options.seed,
            followers: options.followers,
            users: options.users,
            matched_users: options.matched_users,
            export,
        }
    }
}

fn describe(running: &Running) -> String {
    let mut text = String::new();
    write_description(&mut text, running).expect("writing to a String cannot fail");
    text
}

fn write_description(out: &mut String, running: &Running) -> std::fmt::Result {
    if let Some(export) = &running.export {
        let (rows, users, matched) = (grouped(export.rows), grouped(export.users), grouped(export.matched));
        writeln!(
            out,
            "{}: {rows} rows of {users} users, {matched} of them with a unionid who follow",
            export.file.display()
        )?;
    }
    let (Some(base), Some(control)) = (&running.base_url, &running.control) else { return Ok(()) };
    writeln!(out, "A WeChat of its own listens on {base}")?;
    writeln!(
        out,
        "{} followers, {} users of the mini program, {} of them follow; seed {}\n",
        grouped(running.followers),
        grouped(running.users),
        grouped(running.matched_users),
        running.seed
    )?;
    if let Some(from) = &running.moved_from {
        writeln!(out, "The account was moved from {from}: lianbo migrate main --from {from}\n")?;
    }
    writeln!(out, "The shipped workspace talks to it as it stands when the port is 8788. Any other wants, in .env:")?;
    writeln!(out, "  LIANBO_API_BASE={base}")?;
    writeln!(out, "  LIANBO_MAIN_APP_ID={}", running.app_id)?;
    writeln!(out, "  LIANBO_MAIN_SECRET={}", running.app_secret)?;
    writeln!(out, "  LIANBO_MALL_APP_ID={}", running.miniprogram_app_id)?;
    for template_id in running.template_ids.iter().take(1) {
        writeln!(out, "  LIANBO_TEMPLATE_ID={template_id}")?;
    }
    writeln!(out, "\nLook and interfere under {control}:")?;
    writeln!(out, "  GET   inbox  calls  world  callbacks  received?openid=…  person?openid=…")?;
    writeln!(
        out,
        "  POST  unfollow  follow  rebind  blacklist  refuse  kill_template  revoke_tokens  faults  order  clock  event"
    )?;
    writeln!(out, "  `lianbo simulate --help` says what each takes")?;
    writeln!(out, "  curl -s {control}inbox")?;
    writeln!(out, "  curl -s {control}unfollow -d '{{\"count\":10}}'\n")?;
    writeln!(out, "Ctrl-C ends it.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::workspace_files;
    use crate::simulator::{SALE_TEMPLATE_ID, UsersOptions};

    fn shipped(name: &str) -> &'static str {
        workspace_files().iter().find(|(path, _)| *path == name).unwrap().1
    }

    #[test]
    fn the_shipped_workspace_speaks_to_the_simulator_without_any_variable() {
        let options = Options::default();
        let house = shipped("config/lianbo.toml");
        for part in [&options.app_id, &options.app_secret, &options.miniprogram_app_id] {
            assert!(house.contains(&format!(":-{part}}}")), "{part}");
        }
        assert!(house.contains(":-http://127.0.0.1:8788}"));
        assert!(shipped("pipelines/campaign.toml").contains(&format!(":-{SALE_TEMPLATE_ID}}}")));
    }

    #[test]
    fn the_shipped_export_is_of_the_simulators_people() {
        let options = UsersOptions {
            users: 60,
            matched_users: 44,
            blank_unionid_share: 0.04,
            repeated_row_every: 24,
            ..Options::default().users_options()
        };
        let mut file = Vec::new();
        let exported = write_users_csv(&mut file, &options).unwrap();
        assert!(exported.rows > exported.users && exported.matched < options.matched_users);
        assert_eq!(String::from_utf8(file).unwrap(), include_str!("../../data/exports/mall/users.csv"));
    }

    #[test]
    fn a_match_larger_than_a_side_is_refused() {
        let mut args = Args {
            port: 0,
            followers: 10,
            users: 20,
            matched: None,
            seed: 1,
            app_id: Some("wx9".to_owned()),
            moved_from: Some("wx8".to_owned()),
            page_size: 500,
            bound_share: 0.5,
            latency_ms: 0,
            quotas: vec!["user/get=3".to_owned()],
            callback: None,
            callback_token: None,
            callback_mode: Mode::Plain,
            callback_aes_key: None,
            faults: Some(r#"{"busy_every":7}"#.to_owned()),
            export: None,
            export_only: false,
        };
        let made = options(&args).unwrap();
        assert_eq!((made.matched_users, made.quota["user/get"], made.faults.busy_every), (8, 3, 7));
        assert_eq!((made.page_size, made.bound_share.to_string()), (500, "0.5".to_owned()));
        assert_eq!((made.app_id.as_str(), made.moved_from.as_deref()), ("wx9", Some("wx8")));
        args.moved_from = args.app_id.clone();
        assert!(matches!(options(&args), Err(Failure::Usage(told)) if told.contains("--moved-from")));
        args.moved_from = None;
        args.bound_share = 1.5;
        assert!(matches!(options(&args), Err(Failure::Usage(told)) if told.contains("--bound-share")));
        args.bound_share = 1.0;
        args.matched = Some(11);
        assert!(matches!(options(&args), Err(Failure::Usage(_))));
    }
}
