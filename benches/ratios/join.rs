//! The join and the recipient set over many people, against the same SQL in bare DuckDB on the same Parquet files, each in
//! a process of its own: memory that a process has used before comes cheaper.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lianbo::clock::Clock;
use lianbo::domain::tables::table_spec;
use lianbo::domain::{PipelineName, RunId, StageName, TableName};
use lianbo::engine::{Engine, Params, TableSource};
use lianbo::lake::Lake;
use lianbo::ledger::{Acquired, Holder, Ledger, NewRun, SnapshotRecord};

use crate::Figure;
use crate::space::{Space, median, simulator};

const AUDIENCE: &str =
    "select oa_openid as openid, unionid, mp_openid, '巧克力' as product, 39.8 as price from identities";

/// As which this program is started to be bare DuckDB.
pub const BARE: &str = "bare-join";

/// Ours and bare DuckDB take turns, and each is compared with its neighbour: a machine that is slower for a while is so for
/// both.
const ROUNDS: usize = 9;

pub async fn measure(followers: u64, users: u64) -> Vec<Figure> {
    let world = simulator(1_000).await;
    let space = Space::new(&world, "4GB");
    space.write(
        "pipelines/campaign.toml",
        "[stages.identities]\nkind = \"join_identities\"\n[stages.audience]\nkind = \"materialize_recipients\"\naccount = \"main\"\n",
    );
    space.write("pipelines/campaign/audience.sql", AUDIENCE);
    space.write(
        "pipelines/load.toml",
        "[stages.mall_users]\nkind = \"load_users\"\nsource.files = \"data/none/*.csv\"\ncolumns = { openid = \"openid\", unionid = \"unionid\" }\n",
    );
    let files = make_tables(&space, followers, users).await;
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        others.push(bare_apart(&space, &files));
        let run = tokio::task::block_in_place(|| space.run("campaign"));
        ours.push(run.stage_seconds("identities") + run.stage_seconds("audience"));
    }
    let ratio = median(ours.iter().zip(&others).map(|(ours, other)| ours / other).collect());
    let (seconds, bare_seconds) = (median(ours), median(others));
    vec![Figure {
        name: format!("join and recipient set, {followers} followers × {users} users, medians of {ROUNDS}"),
        ours: seconds,
        bare: bare_seconds,
        unit: "s",
        ratio,
        wanted: "≤ 1.2 × bare DuckDB",
        is_met: ratio <= 1.2,
    }]
}

/// Followers, profiles and users as published snapshots; every second follower is a user.
async fn make_tables(space: &Space, followers: u64, users: u64) -> Vec<(String, PathBuf)> {
    let root = space.folder.path();
    let lake = Lake::new(root.join("data/lake"));
    let engine = engine(root);
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
    for (table, slice, sql) in tables(followers, users) {
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
                 '2026-01-01' as updated_at
                 from (select case when k < {half} then k * 2 else k + 100000000 end as i from range({users}) as t(k))",
                half = followers / 2
            ),
        ),
    ]
}

fn engine(root: &Path) -> Engine {
    Engine::new("4GB", 0, root.join("spill"), chrono_tz::Asia::Shanghai)
}

/// The seconds of [`bare`] in a process of its own.
fn bare_apart(space: &Space, files: &[(String, PathBuf)]) -> f64 {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg(BARE).arg(space.folder.path());
    for (table, path) in files {
        command.arg(table).arg(path);
    }
    let output = command.stderr(Stdio::inherit()).output().expect("bare DuckDB runs");
    assert!(output.status.success(), "bare DuckDB failed");
    let seconds = String::from_utf8_lossy(&output.stdout).trim().parse().expect("bare DuckDB says its seconds");
    eprintln!("  bare: {seconds:.3} s");
    seconds
}

/// The whole life of a bare DuckDB: `ROOT` and each table with its file.
pub fn bare_alone(arguments: &[String]) {
    let [root, files @ ..] = arguments else { panic!("{BARE} ROOT TABLE FILE …") };
    let files: Vec<(String, PathBuf)> =
        files.chunks_exact(2).map(|pair| (pair[0].clone(), PathBuf::from(&pair[1]))).collect();
    println!("{}", bare(Path::new(root), &files));
}

/// What somebody would write by hand for the same two results, as DuckDB writes Parquet unless it is told otherwise.
fn bare(root: &Path, files: &[(String, PathBuf)]) -> f64 {
    let out = root.join("bare");
    std::fs::create_dir_all(&out).expect("a folder");
    let began = Instant::now();
    let session = engine(root).session().expect("a session");
    for (table, path) in files {
        session
            .add_table(&TableSource {
                name: table.clone(),
                columns: Vec::new(),
                parts: vec![path.clone()],
                sql: None,
                are_alike: false,
            })
            .expect("a view");
    }
    session.copy_as(IDENTITIES, &out.join("identities.parquet"), "format parquet").expect("the join");
    session
        .add_table(&TableSource {
            name: "identities".to_owned(),
            columns: Vec::new(),
            parts: vec![out.join("identities.parquet")],
            sql: None,
            are_alike: false,
        })
        .expect("a view");
    let set = format!(
        "select row_number() over () as seq, 'main' as account, given.openid, given.unionid, 'send' as arm,
                cast(to_json(struct_pack(mp_openid := mp_openid, product := product, price := price)) as varchar) as variables
         from (select *, row_number() over (partition by openid) as nth from ({AUDIENCE})) as given
         join followers on followers.openid = given.openid and followers.active
         where nth = 1"
    );
    session.copy_as(&set, &out.join("set.parquet"), "format parquet").expect("the set");
    began.elapsed().as_secs_f64()
}

const IDENTITIES: &str = "
select profiles.unionid, profiles.account, profiles.openid as oa_openid, mall_users.miniprogram,
       mall_users.openid as mp_openid
from profiles
join followers on followers.account = profiles.account and followers.openid = profiles.openid and followers.active
join mall_users on mall_users.unionid = profiles.unionid";
