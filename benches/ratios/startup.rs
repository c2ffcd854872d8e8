//! `lianbo --help`, as a whole process.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Figure;

pub fn measure() -> Vec<Figure> {
    let mut times: Vec<f64> = (0..21)
        .map(|_| {
            let began = Instant::now();
            let status = Command::new(env!("CARGO_BIN_EXE_lianbo")).arg("--help").stdout(Stdio::null()).status();
            assert!(status.expect("the binary starts").success());
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    vec![Figure {
        name: "lianbo --help, median of 21".to_owned(),
        ours: median,
        bare: 20.0,
        unit: "ms",
        ratio: median / 20.0,
        wanted: "< 20 ms",
        is_met: median < 20.0,
    }]
}
