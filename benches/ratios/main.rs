//! The figures of `benches/README.md`: each a ratio against a bare client or bare DuckDB taken in the same run, or a peak
//! of memory. `cargo bench` takes all; `cargo bench -- push join` takes some; `--small` takes a tenth of the sizes.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures the machine's own time")]

mod bare;
mod callbacks;
mod growth;
mod join;
mod latency;
mod load;
mod memory;
mod push;
mod scale;
mod second_night;
mod space;
mod startup;
mod sync;

use std::process::ExitCode;

/// One measured figure.
pub struct Figure {
    pub name: String,
    pub ours: f64,
    pub bare: f64,
    pub unit: &'static str,
    /// What `ours / bare` (or, for rates, the inverse of the times) comes to.
    pub ratio: f64,
    pub wanted: &'static str,
    pub is_met: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some((bare::SENDER, rest)) => {
            runtime.block_on(bare::sender(rest));
            return ExitCode::SUCCESS;
        }
        Some((bare::READER, rest)) => {
            runtime.block_on(bare::reader(rest));
            return ExitCode::SUCCESS;
        }
        Some((load::BARE, rest)) => {
            load::bare_alone(rest);
            return ExitCode::SUCCESS;
        }
        Some((join::BARE, rest)) => {
            join::bare_alone(rest);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let is_small = arguments.iter().any(|argument| argument == "--small");
    let wanted: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with("--")).collect();
    let scale = if is_small { 10 } else { 1 };
    let mut figures = Vec::new();
    let takes = |name: &str| wanted.is_empty() || wanted.contains(&name);
    if takes("startup") {
        figures.extend(startup::measure());
    }
    if takes("simulator") {
        figures.extend(runtime.block_on(push::simulator_rate(150_000 / scale)));
    }
    if takes("sync") {
        figures.extend(runtime.block_on(sync::measure(500_000 / scale, (0.8, "≥ 0.8 of a bare client's speed"))));
    }
    if takes("first_night") {
        figures.extend(runtime.block_on(sync::measure(1_000_000 / scale, (0.85, "≥ 0.85 of a bare client's speed"))));
    }
    if takes("second_night") {
        figures.extend(runtime.block_on(second_night::measure(1_000_000 / scale)));
    }
    if takes("latency") {
        figures.extend(runtime.block_on(latency::measure(1_000_000 / scale)));
    }
    if takes("push") {
        figures.extend(runtime.block_on(push::measure(50_000 / scale)));
    }
    if takes("callbacks") {
        figures.extend(runtime.block_on(callbacks::measure(90_000 / scale)));
    }
    if takes("join") {
        figures.extend(runtime.block_on(join::measure(join::Job {
            followers: 2_000_000 / scale,
            users: 5_000_000 / scale,
            memory_limit: "4GB",
            has_coverage: false,
            rounds: 9,
            wanted: (1.2, "≤ 1.2 × bare DuckDB"),
        })));
    }
    if takes("coverage") {
        figures.extend(runtime.block_on(join::measure(join::Job {
            followers: 10_000_000 / scale,
            users: 20_000_000 / scale,
            memory_limit: "2GB",
            has_coverage: true,
            rounds: 3,
            wanted: (1.15, "≤ 1.15 × bare DuckDB"),
        })));
    }
    if takes("segments") {
        figures.extend(runtime.block_on(join::measure_segments(10_000_000 / scale, 20_000_000 / scale)));
    }
    if takes("load") {
        figures.extend(runtime.block_on(load::measure(5_000_000 / scale)));
    }
    if takes("scale") {
        figures.extend(runtime.block_on(scale::measure(scale)));
    }
    if takes("memory") {
        figures.extend(runtime.block_on(memory::measure(scale)));
    }
    if takes("growth") {
        figures.extend(runtime.block_on(growth::measure(scale)));
    }
    println!("\n| figure | ours | against | ratio | wanted | met |");
    println!("|---|---|---|---|---|---|");
    for figure in &figures {
        let Figure { name, ours, bare, unit, ratio, wanted, is_met } = figure;
        let met = if *is_met { "yes" } else { "NO" };
        println!("| {name} | {ours:.3} {unit} | {bare:.3} {unit} | {ratio:.3} | {wanted} | {met} |");
    }
    if figures.iter().all(|figure| figure.is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
