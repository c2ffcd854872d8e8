//! What the program tells about itself while it works: logs on stderr, and numbers for Prometheus.
//!
//! [`init`] sets logs up once, from `main`. [`Metrics`] is a small registry of counters and gauges that rooms add to and
//! `/metrics` renders; every name stands here as a constant with its meaning. Results of commands are not logs and go to
//! stdout elsewhere. Metrics count what this process did; what all processes did stands in the ledger.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::metadata::LevelFilter;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot read LIANBO_LOG `{text}`; it looks like `info` or `warn,lianbo=debug`")]
    Filter {
        text: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// The HTTP libraries write request lines, tokens included, at their `debug` and `trace`; those stay off whatever is asked for.
const QUIET: [&str; 5] = ["h2", "hyper", "hyper_util", "reqwest", "rustls"];

/// Sends logs to stderr. `verbosity` is the count of `-v` less the count of `-q`; `LIANBO_LOG` (levels by module, as
/// `warn,lianbo=debug`) goes before it. A second call changes nothing.
///
/// # Errors
///
/// `LIANBO_LOG` that cannot be read; nothing was set up then.
pub fn init(format: LogFormat, verbosity: i8) -> Result<(), TelemetryError> {
    let asked = std::env::var("LIANBO_LOG").ok().filter(|text| !text.trim().is_empty());
    let filter = filter(asked.as_deref(), verbosity)?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let already = match format {
        LogFormat::Text => lines.with_target(verbosity > 0).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).try_init(),
    };
    if already.is_err() {
        tracing::debug!("logs were set up before");
    }
    Ok(())
}

fn filter(asked: Option<&str>, verbosity: i8) -> Result<EnvFilter, TelemetryError> {
    let text = asked.unwrap_or(match verbosity {
        ..=-2 => "error",
        -1 => "warn",
        0 => "warn,lianbo=info",
        1 => "warn,lianbo=debug",
        2.. => "info,lianbo=trace",
    });
    let filter = EnvFilter::try_new(text).map_err(|source| TelemetryError::Filter { text: text.to_owned(), source })?;
    Ok(caps(text).iter().fold(filter, |filter, directive| {
        filter.add_directive(directive.parse().expect("our own directives are well formed"))
    }))
}

/// Directives that take back what would be too loud in [`QUIET`] modules. Nothing is capped that is not asked for: a
/// directive of ours would raise what is quieter than it.
fn caps(asked: &str) -> Vec<String> {
    let loud = |level: &str| level.trim().parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO);
    let parts = asked.split(',').map(|part| part.trim().split_once('=').unwrap_or(("", part)));
    parts
        .filter(|(_, level)| loud(level))
        .flat_map(|(module, _)| match module {
            "" => QUIET.map(|quiet| format!("{quiet}=info")).to_vec(),
            module if QUIET.iter().any(|quiet| module.starts_with(quiet)) => vec![format!("{module}=info")],
            _ => Vec::new(),
        })
        .collect()
}

/// Whether numbers of a family only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

/// A named family of numbers, told apart by labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    /// What it counts, with its labels.
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, help }
}

/// Labels `pipeline`, `status`.
pub const RUNS_TOTAL: Metric = counter("lianbo_runs_total", "Runs that ended, by pipeline and status.");
/// Labels `pipeline`, `stage`, `status`.
pub const STAGES_TOTAL: Metric = counter("lianbo_stages_total", "Stages that ended, by pipeline, stage and status.");
/// Label `pipeline`. Seconds.
pub const RUN_DURATION_SECONDS: Metric =
    gauge("lianbo_run_duration_seconds", "Duration of the last run that ended, by pipeline.");
/// Label `pipeline`. Seconds since 1970.
pub const LAST_SUCCESS_TIMESTAMP_SECONDS: Metric =
    gauge("lianbo_last_success_timestamp_seconds", "When the last run that succeeded ended, by pipeline.");
/// Labels `pipeline`, `status`.
pub const RUNS: Metric = gauge("lianbo_runs", "Runs the ledger knows, by pipeline and status.");
/// Label `pipeline`. Seconds since 1970.
pub const NEXT_FIRE_TIMESTAMP_SECONDS: Metric =
    gauge("lianbo_next_fire_timestamp_seconds", "When a pipeline's schedule fires next, by pipeline.");
/// Labels `pipeline`, `outcome`.
pub const FIRES_TOTAL: Metric =
    counter("lianbo_fires_total", "Scheduled times that were settled, by pipeline and outcome (run, skipped).");
pub const WAITING_RUNS: Metric =
    gauge("lianbo_waiting_runs", "Runs that wait for quota, window, approval or a switch.");
/// Labels `account`, `endpoint`.
pub const API_CALLS_TOTAL: Metric =
    counter("lianbo_api_calls_total", "Calls to the platform, by account and endpoint.");
/// Labels `account`, `endpoint`, `errcode`.
pub const API_ERRORS_TOTAL: Metric =
    counter("lianbo_api_errors_total", "Calls that were refused, by account, endpoint and errcode.");
/// Labels `account`, `outcome`.
pub const SENDS_TOTAL: Metric = counter("lianbo_sends_total", "Sends that were tried, by account and outcome.");
/// Label `account`. Sends a second.
pub const SEND_RATE: Metric = gauge("lianbo_send_rate", "Sends a second the pace allows now, by account.");
/// Labels `pipeline`, `stage`, `state`.
pub const PUSH_RECIPIENTS: Metric =
    gauge("lianbo_push_recipients", "Recipients of the last push of a stage, by pipeline, stage and state.");
/// Labels `account`, `endpoint`.
pub const QUOTA_USED: Metric = gauge("lianbo_quota_used", "Calls counted today, by account and endpoint.");
/// Labels `account`, `endpoint`.
pub const QUOTA_LIMIT: Metric = gauge("lianbo_quota_limit", "Calls allowed today, by account and endpoint.");
/// Labels `account`, `endpoint`.
pub const QUOTA_REMAINING: Metric = gauge("lianbo_quota_remaining", "Calls left today, by account and endpoint.");
/// Label `account`.
pub const CALLBACKS_TOTAL: Metric = counter(
    "lianbo_callbacks_total",
    "Events received from the platform, by account and event (message, other: not kept).",
);
/// Labels `account`, `reason`.
pub const CALLBACKS_REFUSED_TOTAL: Metric = counter(
    "lianbo_callbacks_refused_total",
    "Posts to the callback address that were not taken, by account and reason (signature, sealed, no_key, malformed, not_kept).",
);
pub const CALLBACKS_WAITING: Metric =
    gauge("lianbo_callbacks_waiting", "Events that were kept and are not applied for good yet.");
/// Label `outcome`.
pub const ALERTS_TOTAL: Metric = counter("lianbo_alerts_total", "Alerts, by outcome (delivered, lost).");
/// Label `version`; always 1.
pub const BUILD_INFO: Metric = gauge("lianbo_build_info", "The running version.");

/// A value of a metric: counts stay exact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measure {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Measure {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Measure {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// The numbers of this process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<&'static str, Family>>>);

#[derive(Debug)]
struct Family {
    metric: Metric,
    /// Rendered labels (`{account="main"}`) → value.
    values: BTreeMap<String, Measure>,
}

impl Metrics {
    /// Holds nothing but [`BUILD_INFO`].
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.set(BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1_u64);
        metrics
    }

    /// Counts `count` more; a number not seen before starts at zero. Labels are `(name, value)`, always in the same order.
    pub fn add(&self, metric: Metric, labels: &[(&str, &str)], count: u64) {
        self.change(metric, labels, |value| match value {
            Some(Measure::Whole(before)) => Measure::Whole(before.saturating_add(count)),
            _ => Measure::Whole(count),
        });
    }

    /// Replaces a number.
    pub fn set(&self, metric: Metric, labels: &[(&str, &str)], value: impl Into<Measure>) {
        let value = value.into();
        self.change(metric, labels, |_| value);
    }

    fn change(&self, metric: Metric, labels: &[(&str, &str)], value: impl FnOnce(Option<Measure>) -> Measure) {
        let labels = rendered(labels);
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(metric.name).or_insert_with(|| Family { metric, values: BTreeMap::new() });
        let before = family.values.get(&labels).copied();
        family.values.insert(labels, value(before));
    }

    /// Everything, in the text format of Prometheus (version 0.0.4), in the order of names and labels.
    pub fn render(&self) -> String {
        let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for Family { metric, values } in families.values() {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
            };
            text.push_str(&format!("# HELP {0} {1}\n# TYPE {0} {kind}\n", metric.name, metric.help));
            for (labels, value) in values {
                match value {
                    Measure::Whole(value) => writeln!(text, "{}{labels} {value}", metric.name),
                    Measure::Real(value) => writeln!(text, "{}{labels} {value}", metric.name),
                }
                .expect("writing to a String never fails");
            }
        }
        text
    }
}

fn rendered(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_rendered_with_help_type_and_sorted_labels() {
        let metrics = Metrics::new();
        metrics.add(SENDS_TOTAL, &[("account", "main"), ("outcome", "sent")], 2);
        metrics.add(SENDS_TOTAL, &[("account", "main"), ("outcome", "sent")], 3);
        metrics.add(SENDS_TOTAL, &[("account", "main"), ("outcome", "failed")], 1);
        metrics.set(SEND_RATE, &[("account", "ma\"in")], 12.5);
        metrics.set(WAITING_RUNS, &[], 7_u64);
        metrics.set(WAITING_RUNS, &[], 4_u64);
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            "# HELP lianbo_build_info The running version.\n# TYPE lianbo_build_info gauge\n\
             lianbo_build_info{{version=\"{version}\"}} 1\n\
             # HELP lianbo_send_rate Sends a second the pace allows now, by account.\n# TYPE lianbo_send_rate gauge\n\
             lianbo_send_rate{{account=\"ma\\\"in\"}} 12.5\n\
             # HELP lianbo_sends_total Sends that were tried, by account and outcome.\n# TYPE lianbo_sends_total counter\n\
             lianbo_sends_total{{account=\"main\",outcome=\"failed\"}} 1\n\
             lianbo_sends_total{{account=\"main\",outcome=\"sent\"}} 5\n\
             # HELP lianbo_waiting_runs Runs that wait for quota, window, approval or a switch.\n\
             # TYPE lianbo_waiting_runs gauge\nlianbo_waiting_runs 4\n"
        );
        assert_eq!(metrics.render(), expected);
    }

    #[test]
    fn clones_count_together_and_counts_stay_exact() {
        let metrics = Metrics::new();
        metrics.clone().add(API_CALLS_TOTAL, &[("account", "a"), ("endpoint", "user/get")], u64::MAX - 1);
        metrics.add(API_CALLS_TOTAL, &[("account", "a"), ("endpoint", "user/get")], 1);
        assert!(metrics.render().contains("\"} 18446744073709551615\n"), "{}", metrics.render());
    }

    #[test]
    fn verbosity_is_about_our_own_lines() {
        let shown = |verbosity| filter(None, verbosity).expect("a filter").to_string();
        assert!(shown(0).contains("lianbo=info") && shown(0).contains("warn"));
        assert_eq!((shown(-1), shown(-2)), ("warn".to_owned(), "error".to_owned()));
        assert!(shown(1).contains("lianbo=debug"));
    }

    #[test]
    fn libraries_that_would_write_tokens_stay_quiet_whatever_is_asked() {
        for (asked, capped) in [
            ("trace", "hyper=info"),
            ("debug,lianbo=trace", "h2=info"),
            ("warn,hyper::proto=trace", "hyper::proto=info"),
        ] {
            let shown = filter(Some(asked), 0).expect("a filter").to_string();
            assert!(shown.contains(capped) && !shown.contains("proto=trace"), "{asked}: {shown}");
        }
        let shown = filter(Some("warn"), 0).expect("a filter").to_string();
        assert!(!shown.contains("hyper"), "what is quieter stays so: {shown}");
    }

    #[test]
    fn an_unreadable_filter_is_refused() {
        assert!(filter(Some("lianbo=loud=very"), 0).is_err());
    }
}
