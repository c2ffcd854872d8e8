//! A workspace in a temporary folder, and the binary run in it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lianbo::simulator::{Options, SALE_TEMPLATE_ID, Simulator};

/// Whoever measures keeps it until all is measured: for seconds after a folder of many files was removed, the file system
/// searches longer for room for new ones.
pub struct Space {
    pub folder: tempfile::TempDir,
}

/// What one run of the binary cost.
pub struct Cost {
    pub seconds: f64,
    pub peak_bytes: u64,
    pub cpu_seconds: f64,
    pub document: serde_json::Value,
}

impl Cost {
    /// Seconds of one stage, as the run itself says.
    pub fn stage_seconds(&self, name: &str) -> f64 {
        let stages = self.document["stages"].as_array().cloned().unwrap_or_default();
        stages
            .iter()
            .find(|stage| stage["name"] == name)
            .and_then(|stage| stage["seconds"].as_f64())
            .unwrap_or_else(|| panic!("the run has no stage {name}: {}", self.document))
    }
}

/// A WeChat of so many followers with quotas that are no obstacle.
pub async fn simulator(followers: u64) -> Simulator {
    simulator_with(followers, Duration::ZERO).await
}

/// The same with a latency of each call.
pub async fn simulator_with(followers: u64, latency: Duration) -> Simulator {
    let mut options = Options { followers, users: followers, matched_users: followers, latency, ..Options::default() };
    for endpoint in ["user/get", "user/info", "user/info/batchget", "message/template/send"] {
        options.quota.insert(endpoint.to_owned(), 100_000_000);
    }
    Simulator::start(options).await.expect("the simulator starts")
}

impl Space {
    pub fn new(simulator: &Simulator, memory_limit: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = simulator.options();
        let space = Self { folder };
        space.write(
            "config/lianbo.toml",
            &format!(
                "[accounts.main]\napp_id = \"{}\"\napp_secret = \"{}\"\napi_base = \"{}\"\n\
                 [accounts.main.quota]\n\"user/get\" = 100000000\n\"user/info/batchget\" = 100000000\n\"message/template/send\" = 100000000\n\
                 [miniprograms.mall]\napp_id = \"{}\"\n[engine]\nmemory_limit = \"{memory_limit}\"\n",
                options.app_id,
                options.app_secret,
                simulator.base_url(),
                options.miniprogram_app_id
            ),
        );
        space.write(
            "pipelines/sync.toml",
            "[stages.followers]\nkind = \"extract_followers\"\n[stages.profiles]\nkind = \"enrich_unionids\"\n",
        );
        space.write(
            "pipelines/campaign.toml",
            &format!(
                "[stages.audience]\nkind = \"materialize_recipients\"\naccount = \"main\"\n\
                 [stages.push]\nkind = \"push_template\"\naccount = \"main\"\nrecipients = \"audience\"\n\
                 template_id = \"{SALE_TEMPLATE_ID}\"\nrate = \"1000000/s\"\nconcurrency = 64\n\
                 miniprogram = {{ name = \"mall\", pagepath = \"pages/sale/index\" }}\n\
                 data = {{ thing1 = \"{{{{ product }}}}\", time2 = \"{{{{ now | datetime }}}}\", amount3 = \"39.80元\" }}\n"
            ),
        );
        space.write(
            "pipelines/campaign/audience.sql",
            "select openid, unionid, '巧克力' as product from profiles where subscribe",
        );
        space
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("every file is in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }

    pub fn append(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        let before = std::fs::read_to_string(&path).expect("the file is there");
        std::fs::write(path, before + text).expect("a file");
    }

    pub fn replace(&self, path: &str, from: &str, to: &str) {
        let before = std::fs::read_to_string(self.folder.path().join(path)).expect("the file is there");
        assert!(before.contains(from), "{path} has no {from:?}");
        self.write(path, &before.replace(from, to));
    }

    /// What a command says in JSON.
    pub fn ask(&self, arguments: &[&str]) -> serde_json::Value {
        let output = Command::new(env!("CARGO_BIN_EXE_lianbo"))
            .arg("--workspace")
            .arg(self.folder.path())
            .args(arguments)
            .args(["--json", "-q"])
            .output()
            .expect("the binary starts");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("no JSON came of {arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// The rows of a query.
    pub fn query(&self, sql: &str) -> Vec<serde_json::Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_lianbo"))
            .arg("--workspace")
            .arg(self.folder.path())
            .args(["sql", sql, "--format", "json", "-q"])
            .output()
            .expect("the binary starts");
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no JSON came of {sql}: {error}"));
        answer["rows"].as_array().cloned().unwrap_or_else(|| panic!("no rows came of {sql}: {answer}"))
    }

    /// Runs a pipeline to its end and gives what it cost.
    pub fn run(&self, pipeline: &str) -> Cost {
        self.run_to(pipeline, "succeeded")
    }

    /// Runs a pipeline until its status is this one.
    pub fn run_to(&self, pipeline: &str, status: &str) -> Cost {
        let cost = cost(self.folder.path(), &["run", pipeline, "--json", "-q"]);
        assert_eq!(cost.document["status"], status, "{}", cost.document);
        cost
    }
}

/// The middle one of an odd number of figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn cost(workspace: &Path, arguments: &[&str]) -> Cost {
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lianbo"));
    command.arg("--workspace").arg(workspace).args(arguments);
    let (output, usage) = run(command);
    let seconds = began.elapsed().as_secs_f64();
    let document: serde_json::Value =
        serde_json::from_slice(&output).unwrap_or_else(|error| panic!("no JSON came out of {arguments:?}: {error}"));
    for stage in document["stages"].as_array().into_iter().flatten() {
        eprintln!(
            "  {}: {:.3} s",
            stage["name"].as_str().unwrap_or_default(),
            stage["seconds"].as_f64().unwrap_or(0.0)
        );
    }
    eprintln!("  whole process: {seconds:.3} s, processor {:.3} s, peak {} MB", usage.1, usage.0 / 1_000_000);
    Cost { seconds, peak_bytes: usage.0, cpu_seconds: usage.1, document }
}

/// Runs a program to its end: what it printed, its peak bytes and processor seconds.
pub fn run(mut command: Command) -> (Vec<u8>, (u64, f64)) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    wait_with_usage(command.spawn().expect("the program starts"))
}

/// The operating system's own account of the finished process: peak bytes, processor seconds.
///
/// The peak is the process's own high-water mark, read while it lives: `ru_maxrss` would count the memory of the process it
/// was forked from.
#[expect(unsafe_code, reason = "wait4 is the only way to one child's own processor time")]
fn wait_with_usage(mut child: std::process::Child) -> (Vec<u8>, (u64, f64)) {
    use std::io::Read;
    let watched = child.id();
    let watch = std::thread::spawn(move || high_water_mark(watched));
    let mut output = Vec::new();
    child.stdout.take().expect("stdout is piped").read_to_end(&mut output).expect("stdout is read");
    let peak = watch.join().expect("the watch ends with the process");
    let mut status = 0;
    // SAFETY: both pointers are valid for the call, and the child is ours and not waited for yet.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let id = i32::try_from(child.id()).expect("a process id");
        assert_eq!(libc::wait4(id, &raw mut status, 0, &raw mut usage), id);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (output, (peak, seconds(usage.ru_utime) + seconds(usage.ru_stime)))
}

/// The peak of a process in bytes, looked at every few milliseconds until the process has given its memory back.
fn high_water_mark(process: u32) -> u64 {
    let mut peak = 0;
    while let Some(mark) = std::fs::read_to_string(format!("/proc/{process}/status")).ok().and_then(|status| {
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    }) {
        peak = peak.max(mark * 1024);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    peak
}
