//! What a stage says of the files it is handed: folders that are columns, columns that come and go, files that are late or
//! the same as before.

use crate::house::{EXPORT, House, small};

/// A house with a pipeline of one stage that loads, `keys` its keys, and no export yet.
async fn loading(keys: &str) -> House {
    let house = House::build(small()).await;
    house.write("pipelines/load.toml", &stage(keys));
    for other in [EXPORT, "pipelines/nightly.toml", "pipelines/campaign.toml"] {
        std::fs::remove_file(house.path(other)).unwrap();
    }
    house
}

fn stage(keys: &str) -> String {
    format!("[stages.mall_users]\nkind = \"load_users\"\nminiprogram = \"mall\"\n{keys}\n")
}

const CSV: &str = "source.files = \"data/exports/mall/*.csv\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_parquet_files_are_columns_of_the_people_in_them() {
    let house = loading(
        "source.files = \"data/exports/mall/*\"\ncolumns = { updated_at = \"day\", city = \"城市\" }\ntypes = { level = \"integer\" }",
    )
    .await;
    for (folder, people) in [
        ("day=2026-11-23/城市=%E4%B8%8A%E6%B5%B7/level=1", "('oA', 'uA'), ('oB', null)"),
        ("day=2026-11-24/城市=北京/level=2", "('oB', 'uB')"),
        ("day=2026-11-24/城市=__HIVE_DEFAULT_PARTITION__/level=3", "('oC', 'uC')"),
        ("_temporary/day=2026-11-25/城市=x/level=4", "('oD', 'uD')"),
    ] {
        let folder = house.path("data/exports/mall/users.parquet").join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let target = folder.join("part-0.parquet");
        let sql = format!("select * from (values {people}) as people(openid, unionid)");
        house.lianbo(&["sql", &sql, "-o", target.to_str().unwrap()]).await.ends(0);
    }
    house.lianbo(&["check"]).await.ends(0);
    house.run("load", &[]).await.ends(0);
    let users =
        house.rows("select openid, unionid, updated_at, city, level + 10 from mall_users order by openid").await;
    let expected = [
        ["oA", "uA", "2026-11-22 16:00:00", "上海", "11"],
        ["oB", "uB", "2026-11-23 16:00:00", "北京", "12"],
        ["oC", "uC", "2026-11-23 16:00:00", "", "13"],
    ];
    assert_eq!(users, expected);
}
