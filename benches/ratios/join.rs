//! The join, the recipient set, and coverage between them, over many people, against the same SQL in bare DuckDB on the same Parquet files, each in
//! a process of its own: memory that a process has used before comes cheaper.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lianbo::clock::Clock;
use lianbo::domain::tables::table_spec;
use lianbo::domain::{PipelineName, RunId, StageName, TableName};
use lianbo::engine::{Engine, Params, Session, TableSource};
use lianbo::lake::Lake;
use lianbo::ledger::{Acquired, Holder, Ledger, NewRun, SnapshotRecord};

use crate::Figure;
use crate::space::{Space, median, simulator};

const AUDIENCE: &str =
    "select oa_openid as openid, unionid, mp_openid, '巧克力' as product, 39.8 as price from identities";

/// By which the users' table is known; it is never run.
const LOAD: &str = "[stages.mall_users]\nkind = \"load_users\"\nsource.files = \"data/none/*.csv\"\ncolumns = { openid = \"openid\", unionid = \"unionid\" }\n";

/// As which this program is started to be bare DuckDB.
pub const BARE: &str = "bare-join";

/// What is joined, and what of it is measured.
pub struct Job {
    pub followers: u64,
    pub users: u64,
    /// Of both.
    pub memory_limit: &'static str,
    /// Coverage and its match report between the join and the set.
    pub has_coverage: bool,
    /// Ours and bare DuckDB take turns, and each is compared with its neighbour: a machine that is slower for a while is so
    /// for both.
    pub rounds: usize,
    /// At most so many times bare DuckDB's time.
    pub wanted: (f64, &'static str),
}

pub async fn measure(job: Job) -> Vec<Figure> {
    let world = simulator(1_000).await;
    let space = Space::new(&world, job.memory_limit);
    let coverage = if job.has_coverage { "[stages.coverage]\nkind = \"measure_coverage\"\n" } else { "" };
    space.write(
        "pipelines/campaign.toml",
        &format!(
            "[stages.identities]\nkind = \"join_identities\"\n{coverage}\
             [stages.audience]\nkind = \"materialize_recipients\"\naccount = \"main\"\n"
        ),
    );
    space.write("pipelines/campaign/audience.sql", AUDIENCE);
    space.write("pipelines/load.toml", LOAD);
    let files = make_tables(&space, &job).await;
    let (mut ours, mut others, mut peak) = (Vec::new(), Vec::new(), 0);
    for _ in 0..job.rounds {
        others.push(bare_apart(&space, &files, &job));
        let run = tokio::task::block_in_place(|| space.run("campaign"));
        // Join and coverage go side by side: the seconds of a run that has both are its own.
        let own = run.document["seconds"].as_f64().expect("a run has its seconds");
        let stages = || run.stage_seconds("identities") + run.stage_seconds("audience");
        ours.push(if job.has_coverage { own } else { stages() });
        peak = peak.max(run.peak_bytes);
    }
    let what = if job.has_coverage { "join, coverage and recipient set" } else { "join and recipient set" };
    let Job { followers, users, memory_limit, rounds, wanted: (most, wanted), .. } = job;
    let ratio = median(ours.iter().zip(&others).map(|(ours, other)| ours / other).collect());
    let mut figures = vec![Figure {
        name: format!(
            "{what}, {followers} followers × {users} users, `memory_limit = \"{memory_limit}\"`, medians of {rounds}"
        ),
        ours: median(ours),
        bare: median(others),
        unit: "s",
        ratio,
        wanted,
        is_met: ratio <= most,
    }];
    if job.has_coverage {
        figures.push(held(peak, memory_limit));
    }
    figures
}

/// Columns of users and profiles, a cohort, and two at once.
const SEGMENTS: &str = r#"["city", "level", "channel", "subscribe_scene", "month(registered_at)", "city + level"]"#;

/// Coverage by six segments beside the join of the same people, each a run of its own.
pub async fn measure_segments(followers: u64, users: u64) -> Vec<Figure> {
    const ROUNDS: usize = 3;
    let job = Job { followers, users, memory_limit: "2GB", has_coverage: false, rounds: ROUNDS, wanted: (1.5, "") };
    let world = simulator(1_000).await;
    let space = Space::new(&world, job.memory_limit);
    space.write("pipelines/join.toml", "[stages.identities]\nkind = \"join_identities\"\n");
    space.write(
        "pipelines/cover.toml",
        &format!("[stages.coverage]\nkind = \"measure_coverage\"\nsegments = {SEGMENTS}\n"),
    );
    space.write("pipelines/load.toml", LOAD);
    make_tables(&space, &job).await;
    let (mut covers, mut joins, mut peak) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        tokio::task::block_in_place(|| {
            joins.push(space.run("join").stage_seconds("identities"));
            let run = space.run("cover");
            covers.push(run.stage_seconds("coverage"));
            peak = peak.max(run.peak_bytes);
        });
    }
    let ratio = median(covers.iter().zip(&joins).map(|(cover, join)| cover / join).collect());
    vec![
        Figure {
            name: format!("coverage by 6 segments, {followers} followers × {users} users, medians of {ROUNDS}"),
            ours: median(covers),
            bare: median(joins),
            unit: "s",
            ratio,
            wanted: "≤ 1.5 × the join into `identities`",
            is_met: ratio <= 1.5,
        },
        held(peak, job.memory_limit),
    ]
}

/// Whether the whole process kept to the limit that is its engine's.
#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn held(peak: u64, memory_limit: &str) -> Figure {
    let limit: f64 = memory_limit.trim_end_matches("GB").parse().expect("a limit in GB");
    let (peak, limit) = (peak as f64 / 1e6, limit * 1e3);
    let name = "the same: peak memory of the whole process".to_owned();
    Figure {
        name,
        ours: peak,
        bare: limit,
        unit: "MB",
        ratio: peak / limit,
        wanted: "the limit holds",
        is_met: peak <= limit,
    }
}

/// Followers, profiles and users as published snapshots; every second follower is a user.
async fn make_tables(space: &Space, job: &Job) -> Vec<(String, PathBuf)> {
    let root = space.folder.path();
    let lake = Lake::new(root.join("data/lake"));
    let engine = engine(root, job.memory_limit);
    let clock = Clock::default();
    let ledger = Ledger::open(&root.join("data/ledger.db")).await.expect("a ledger");
    let holder = Holder::this_process("bench".to_owned());
    let lease = match ledger.acquire_lease("run:made", &holder, Duration::from_secs(60)).await.expect("a lease") {
        Acquired::Mine(lease) => lease,
        Acquired::HeldBy(_) => unreachable!("nobody else is here"),
    };
    let now = clock.now();
    let run_id = RunId::new("made");
    let new = NewRun {
        run_id: run_id.clone(),
        pipeline: PipelineName::new("made"),
        trigger: "hand".to_owned(),
        scheduled_for: None,
        today: now.date_naive(),
        run_at: now,
        params: "{}".to_owned(),
        is_test: false,
        started_at: now,
    };
    ledger.begin_run(&lease, new).await.expect("a run");
    let mut files = Vec::new();
    for (table, slice, sql) in tables(job.followers, job.users) {
        let path = Lake::part_path(&TableName::new(table), slice, "made", 1);
        let target = lake.absolute(&path);
        let session = engine.session().expect("a session");
        let written = session.copy(&sql, &Params::new(), &target).expect("a part");
        let columns = table_spec(table)
            .map_or_else(|| session.bind(&sql, &Params::new()).expect("columns"), |spec| spec.sql_columns());
        let record = SnapshotRecord {
            id: format!("made-{table}"),
            table: TableName::new(table),
            slice: slice.to_owned(),
            run_id: run_id.clone(),
            stage: StageName::new(table),
            as_of: now,
            rows: written.rows,
            bytes: written.bytes,
            parts: vec![path],
            columns,
            source_hash: None,
            made_at: now,
            fence: lease.fence,
            events_to: None,
            app_id: None,
        };
        ledger.record_snapshot(&lease, &record).await.expect("a snapshot");
        files.push((table.to_owned(), target));
    }
    ledger.publish(&lease, &run_id, now).await.expect("published");
    let change =
        lianbo::ledger::RunChange { status: lianbo::domain::RunStatus::Succeeded, reason: None, waiting_until: None };
    ledger.set_run_status(&lease, &run_id, change, now).await.expect("ended");
    ledger.release_lease(&lease).await.expect("released");
    ledger.close().await;
    files
}

fn tables(followers: u64, users: u64) -> Vec<(&'static str, &'static str, String)> {
    let openid = "'o' || substr(sha256('oa' || i), 1, 27)";
    let unionid = "'u' || substr(sha256('un' || i), 1, 27)";
    vec![
        (
            "followers",
            "main",
            format!(
                "select 'main' as account, {openid} as openid, timestamp '2026-01-01' as first_seen_at,
                 timestamp '2026-11-01' as last_seen_at, true as active from range({followers}) as t(i)"
            ),
        ),
        (
            "profiles",
            "main",
            format!(
                "select 'main' as account, {openid} as openid, case when i % 20 <> 0 then {unionid} end as unionid,
                 case when i % 20 = 0 then 'not_bound' end as unionid_missing, true as subscribe,
                 timestamp '2025-01-01' as subscribe_time, 'ADD_SCENE_QR_CODE' as subscribe_scene,
                 cast(1 as bigint) as qr_scene, '' as qr_scene_str, '[2]' as tagid_list, 'zh_CN' as language,
                 '' as remark, cast(0 as bigint) as groupid, timestamp '2026-11-01' as fetched_at,
                 cast(null as bigint) as errcode, cast(null as bigint) as refusals
                 from range({followers}) as t(i)"
            ),
        ),
        (
            "mall_users",
            "mall",
            format!(
                "select 'mall' as miniprogram, 'm' || substr(sha256('mp' || i), 1, 27) as openid, {unionid} as unionid,
                 '2026-01-01' as updated_at, 'city ' || (i % 40) as city, 'level ' || (i % 5) as level,
                 'channel ' || (i % 12) as channel, if(i % 3 = 0, null, 'shop ' || (i % 200)) as shop,
                 timestamp '2024-01-01' + interval (i % 700) day as registered_at
                 from (select case when k < {half} then k * 2 else k + 100000000 end as i from range({users}) as t(k))",
                half = followers / 2
            ),
        ),
    ]
}

fn engine(root: &Path, memory_limit: &str) -> Engine {
    Engine::new(memory_limit, 0, root.join("spill"), chrono_tz::Asia::Shanghai)
}

/// The seconds of [`bare`] in a process of its own.
fn bare_apart(space: &Space, files: &[(String, PathBuf)], job: &Job) -> f64 {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    let coverage = if job.has_coverage { "coverage" } else { "-" };
    command.arg(BARE).arg(space.folder.path()).args([job.memory_limit, coverage]);
    for (table, path) in files {
        command.arg(table).arg(path);
    }
    let output = command.stderr(Stdio::inherit()).output().expect("bare DuckDB runs");
    assert!(output.status.success(), "bare DuckDB failed");
    let seconds = String::from_utf8_lossy(&output.stdout).trim().parse().expect("bare DuckDB says its seconds");
    eprintln!("  bare: {seconds:.3} s");
    seconds
}

/// The whole life of a bare DuckDB: `ROOT LIMIT coverage|-` and each table with its file.
pub fn bare_alone(arguments: &[String]) {
    let [root, limit, coverage, files @ ..] = arguments else { panic!("{BARE} ROOT LIMIT coverage|- TABLE FILE …") };
    let files: Vec<(&str, PathBuf)> =
        files.chunks_exact(2).map(|pair| (pair[0].as_str(), PathBuf::from(&pair[1]))).collect();
    println!("{}", bare(Path::new(root), limit, (coverage == "coverage", &files)));
}

/// Writes a file as DuckDB does it, unless it is told otherwise.
pub fn copy(session: &Session, sql: &str, (target, options): (&Path, &str)) {
    let copy = format!("copy (\n{sql}\n) to '{}' ({options})", target.display());
    session.run(&copy).unwrap_or_else(|error| panic!("{}: {error}", target.display()));
}

/// What somebody would write by hand for the same results, as DuckDB writes Parquet unless it is told otherwise.
fn bare(root: &Path, limit: &str, (has_coverage, files): (bool, &[(&str, PathBuf)])) -> f64 {
    let out = root.join("bare");
    std::fs::create_dir_all(&out).expect("a folder");
    let began = Instant::now();
    let session = engine(root, limit).session().expect("a session");
    let add = |name: &str, path: &Path| {
        let (name, parts) = (name.to_owned(), vec![path.to_owned()]);
        let view = TableSource { name, columns: Vec::new(), parts, sql: None, are_alike: false };
        session.add_table(&view).expect("a view");
    };
    files.iter().for_each(|(table, path)| add(table, path));
    let write = |sql: &str, name: &str| {
        let path = out.join(format!("{name}.parquet"));
        copy(&session, sql, (&path, "format parquet"));
        path
    };
    add("identities", &write(IDENTITIES, "identities"));
    if has_coverage {
        session.run(GATHERED).expect("who follows and who is a user");
        write(COVERAGE, "coverage");
        write(MATCH_REPORT, "match_report");
    }
    let set = format!(
        "select row_number() over () as seq, 'main' as account, given.openid, given.unionid, 'send' as arm,
                cast(to_json(struct_pack(mp_openid := mp_openid, product := product, price := price)) as varchar) as variables
         from (select *, row_number() over (partition by openid) as nth from ({AUDIENCE})) as given
         join followers on followers.openid = given.openid and followers.active
         where nth = 1"
    );
    write(&set, "set");
    began.elapsed().as_secs_f64()
}

const IDENTITIES: &str = "
select profiles.unionid, profiles.account, profiles.openid as oa_openid, mall_users.miniprogram,
       mall_users.openid as mp_openid
from profiles
join followers on followers.account = profiles.account and followers.openid = profiles.openid and followers.active
join mall_users on mall_users.unionid = profiles.unionid";

/// Both sides once, each with whether it matches: every count of coverage is over these.
const GATHERED: &str = "
create temp table f as
select followers.account, followers.openid, profiles.unionid,
       case when profiles.unionid is null then coalesce(profiles.unionid_missing, 'not_asked') end as missing
from followers left join profiles using (account, openid)
where followers.active;
create temp table u as
select mall_users.miniprogram, mall_users.openid, mall_users.unionid, following.unionid is not null as is_matched
from mall_users left join (select distinct unionid from f) as following using (unionid)";

/// Openids within the account and the mini program, people where all are meant (`*`).
const COVERAGE: &str = "
with f_by as (
    select account, count(*) as followers, count(unionid) as with_unionid from f group by account
    union all select '*', count(distinct coalesce(unionid, openid)), count(distinct unionid) from f
),
u_by as (
    select miniprogram, count(*) as users, count(unionid) as with_unionid, count(*) filter (is_matched) as matched
    from u group by miniprogram
    union all
    select '*', count(distinct coalesce(unionid, openid)), count(distinct unionid), count(distinct unionid) filter (is_matched)
    from u
)
select account, miniprogram, followers, f_by.with_unionid as followers_with_unionid, users,
       u_by.with_unionid as users_with_unionid, matched, matched as reachable, matched / users as coverage_rate,
       matched / u_by.with_unionid as match_rate
from f_by cross join u_by";

const MATCH_REPORT: &str = "
select account, 'follower' as side,
       case when f.unionid is null then missing when known.unionid is null then 'not_a_user' else 'matched' end as reason,
       count(*) as people
from f left join (select distinct unionid from u) as known using (unionid)
group by all
union all
select miniprogram, 'user',
       case when unionid is null then 'no_unionid' when is_matched then 'matched' else 'does_not_follow' end, count(*)
from u group by all";
