//! Progress: bars with rate and time left on a terminal, a plain line now and then elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::context::Context;
use super::table::grouped;
use crate::clock::Clock;
use crate::stage::{Progress, ProgressSink};

/// A plain line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where the stages of a run show how far they are.
pub struct Bars {
    mode: Mode,
    clock: Clock,
    bars: MultiProgress,
    shown: Mutex<BTreeMap<String, Shown>>,
}

enum Mode {
    Bars,
    Lines,
    Nothing,
}

struct Shown {
    bar: Option<ProgressBar>,
    began: Instant,
    began_at: u64,
    last_line: Option<Instant>,
}

impl Bars {
    pub fn new(context: &Context) -> Self {
        let mode = match (context.is_quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Nothing,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        };
        Self { mode, clock: context.clock, bars: MultiProgress::new(), shown: Mutex::new(BTreeMap::new()) }
    }

    /// Leaves the bars as they stand.
    pub fn finish(&self) {
        for shown in self.shown.lock().expect("nobody panics while drawing").values() {
            if let Some(bar) = &shown.bar {
                bar.abandon();
            }
        }
    }

    fn begin(&self, progress: &Progress<'_>, now: Instant) -> Shown {
        let bar = matches!(self.mode, Mode::Bars).then(|| {
            let style =
                ProgressStyle::with_template("{prefix:>16} {bar:30} {done} of {all} {msg}, {rate}/s, {eta} left")
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .with_key("done", |state: &ProgressState, out: &mut dyn Write| put(out, &grouped(state.pos())))
                    .with_key("all", |state: &ProgressState, out: &mut dyn Write| {
                        put(out, &state.len().map_or_else(|| "?".to_owned(), grouped));
                    })
                    .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
                        put(out, &format!("{:.0}", state.per_sec()))
                    });
            let bar = self.bars.add(ProgressBar::new(progress.total.unwrap_or(0)).with_style(style));
            bar.set_prefix(progress.stage.to_owned());
            bar.set_message(progress.unit);
            bar.set_position(progress.done);
            bar.reset_eta();
            bar
        });
        Shown { bar, began: now, began_at: progress.done, last_line: Some(now) }
    }
}

impl ProgressSink for Bars {
    fn update(&self, progress: &Progress<'_>) {
        if matches!(self.mode, Mode::Nothing) {
            return;
        }
        let now = self.clock.monotonic();
        let mut all = self.shown.lock().expect("nobody panics while drawing");
        let shown = match all.get_mut(progress.stage) {
            Some(shown) => shown,
            None => all.entry(progress.stage.to_owned()).or_insert(self.begin(progress, now)),
        };
        if let Some(bar) = &shown.bar {
            if let Some(total) = progress.total {
                bar.set_length(total);
            }
            bar.set_position(progress.done);
        } else if shown.last_line.is_none_or(|at| now - at >= LINE_EVERY) {
            shown.last_line = Some(now);
            eprintln!("{}", line(progress, shown, now));
        }
    }
}

fn put(out: &mut dyn Write, text: &str) {
    // A bar that cannot be drawn is not worth failing for.
    let _ = out.write_str(text);
}

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
fn line(progress: &Progress<'_>, shown: &Shown, now: Instant) -> String {
    let seconds = (now - shown.began).as_secs_f64().max(0.001);
    let rate = progress.done.saturating_sub(shown.began_at) as f64 / seconds;
    let left = match progress.total {
        Some(total) if rate > 0.0 => {
            let seconds = total.saturating_sub(progress.done) as f64 / rate;
            format!(", {seconds:.0} s left")
        }
        _ => String::new(),
    };
    let of = progress.total.map_or_else(String::new, |total| format!(" of {total}"));
    format!("{}: {}{of} {}, {rate:.0}/s{left}", progress.stage, progress.done, progress.unit)
}
